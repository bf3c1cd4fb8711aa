"""The composition of a step: which chunk is prefilled, which tokens are decoded together. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class WaitingPrefill(NamedTuple):
    """A run that has chunks to prefill."""

    slot: int
    operations: int  # left to compute
    started_step: int  # the step in which the run began


def choose_prefill(waiting: Iterable[WaitingPrefill]) -> int:
    """Return the slot whose next chunk is prefilled: the one with the least to compute, where each
    step of waiting makes up for a chunk. So no run starves behind a stream of shorter ones."""
    return min(waiting, key=lambda run: run.operations + run.started_step).slot


def decode_batches(slots: Iterable[int], max_batch: int, *, gapless: bool) -> list[list[int]]:
    """Cut slots into decode batches of at most `max_batch`, in rising order.

    Where not every batch size is exact, batches must be `gapless`: a slot without a neighbour in
    its batch may get a padding row, which would make the batch larger than `max_batch`.
    """
    batches: list[list[int]] = []
    for slot in sorted(slots):
        gap = gapless and batches and batches[-1][-1] != slot - 1
        if not batches or gap or len(batches[-1]) == max_batch:
            batches.append([])
        batches[-1].append(slot)
    return batches
