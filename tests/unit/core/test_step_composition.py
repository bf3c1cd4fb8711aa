"""The composition of a step: any runs make batches that are exact, and none waits without end."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios.kernel.core.step_composition import WaitingPrefill, choose_prefill, decode_batches

slots = st.sets(st.integers(0, 20))


@given(slots, st.integers(1, 8), st.booleans())
def test_every_slot_is_decoded_once_and_in_rising_order(
    slots: set[int], max_batch: int, gapless: bool
) -> None:
    batches = decode_batches(slots, max_batch, gapless=gapless)
    assert [slot for batch in batches for slot in batch] == sorted(slots)
    assert all(1 <= len(batch) <= max_batch for batch in batches)


@given(slots, st.integers(1, 8))
def test_a_gapless_batch_has_neighbours_alone(slots: set[int], max_batch: int) -> None:
    batches = decode_batches(slots, max_batch, gapless=True)
    assert all(b == a + 1 for batch in batches for a, b in pairwise(batch))
    for left, right in pairwise(batches):  # and no batch ends before it must
        assert len(left) == max_batch or right[0] != left[-1] + 1


@given(slots, st.integers(1, 8))
def test_with_gaps_there_are_as_few_batches_as_can_be(slots: set[int], max_batch: int) -> None:
    batches = decode_batches(slots, max_batch, gapless=False)
    assert len(batches) == -(-len(slots) // max_batch)


@pytest.mark.parametrize(
    ("waiting", "slot"),
    [
        ([(0, 3, 1), (1, 2, 1)], 1),  # the shorter
        ([(0, 3, 1), (1, 3, 1)], 0),  # of equals the first
        ([(0, 9, 1), (1, 2, 9)], 0),  # it has waited for eight steps, each of which is a chunk
        ([(0, 9, 1), (1, 2, 7)], 1),
    ],
)
def test_the_shortest_is_prefilled_but_waiting_counts(
    waiting: list[tuple[int, int, int]], slot: int
) -> None:
    assert choose_prefill(WaitingPrefill(*run) for run in waiting) == slot


@given(st.integers(1, 30), st.integers(1, 5))
def test_no_run_waits_for_a_stream_of_short_ones_without_end(long: int, short: int) -> None:
    """A run of `short` operations begins at each step."""
    pending = {0: WaitingPrefill(0, long, 0)}
    for step in range(1, 2 * long * short + long + short):
        pending[step] = WaitingPrefill(step, short, step)
        slot = choose_prefill(pending.values())
        left = pending.pop(slot)
        if left.operations > 1:
            pending[slot] = left._replace(operations=left.operations - 1)
        elif slot == 0:
            return
    pytest.fail("the long run was not done")
