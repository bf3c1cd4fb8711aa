"""Rows cut out of a state and joined again, on states made by hand in llama.cpp's layout."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from aios.kernel.core.state_layout import BlockSlice, StateLayout

Bytes = NDArray[np.uint8]


def state_of(
    cells: int, rows: list[int], slot: int = 0, streams: int = 2, *, transposed: int = 0,
    positions: range | None = None, seed: int = 0, window: tuple[list[int], int] | None = None,
    token: int | None = None,
) -> Bytes:  # fmt: skip
    """A state of `cells` tokens with one plane for each size in `rows`, each row its own; behind it
    that of a cache with a window: its planes, and how many tokens it has. With a `token`, which all
    are, positions have several parts."""
    data = struct.pack("<Ii", 0xAF143CD8, slot)
    data += cache_of(range(cells), rows, slot, streams, transposed, positions, seed, token)
    if window is not None:
        planes, last = window
        data += cache_of(range(cells)[-last:], planes, slot, streams, transposed, None, seed + 1)
    return np.frombuffer(data, np.uint8)


def cache_of(
    tokens: range, rows: list[int], slot: int, streams: int, transposed: int,
    positions: range | None, seed: int, token: int | None = None,
) -> bytes:  # fmt: skip
    """Rows depend on the token, the plane and the seed alone."""
    data = struct.pack("<I", streams) + bytes(4 * slot) + struct.pack("<I", len(tokens))
    for pos in positions or tokens:
        places = (pos, pos, token) if token is not None else ()
        data += struct.pack(f"<iI{len(places)}ii", pos, 1, *places, slot)
    data += struct.pack("<II", transposed, (len(rows) + 1) // 2)
    for plane, row in enumerate(rows):
        data += struct.pack("<iQ", 1, row)
        for each in tokens:
            data += np.random.default_rng([seed, plane, each]).bytes(row)
    return data + bytes(4 * (streams - slot - 1))


SIZES = st.sampled_from([[8, 8], [4, 4, 4, 4], [8, 6, 8, 6], [34, 34, 2, 2, 2, 2], [3]])


@given(
    SIZES, st.integers(0, 3), st.lists(st.integers(1, 9), min_size=1, max_size=5),
    st.sampled_from([None, 0, 7]),
)  # fmt: skip
def test_what_is_cut_and_joined_is_the_same_bytes(
    rows: list[int], slot: int, lengths: list[int], token: int | None
) -> None:
    """But for the tokens, where a state has them."""
    cells = sum(lengths)
    state = state_of(cells, rows, slot, streams=4, token=token)
    layout = StateLayout.of(state, slot)
    assert layout.row_bytes == sum(rows)
    assert layout.size(cells) == state.size
    spans = [(sum(lengths[:at]), length) for at, length in enumerate(lengths)]
    cut = layout.cut(state, slot, cells, spans)
    parts = [BlockSlice(data, n, 0, n) for data, n in zip(cut, lengths, strict=True)]
    buffer = np.full(state.size + 7, 0xEE, np.uint8)  # as a buffer that was used before
    expected = state_of(cells, rows, slot, streams=4, token=token and 0)
    assert layout.join(buffer, slot, parts).tobytes() == expected.tobytes()


@given(SIZES, SIZES, st.integers(0, 3), st.integers(1, 9), st.integers(1, 9))
def test_a_cache_with_a_window_has_rows_of_the_last_tokens(
    rows: list[int], planes: list[int], slot: int, cells: int, last: int
) -> None:
    """Rows cut out of states of a growing sequence, joined, are the state with all rows."""
    last = min(cells, last)

    def state(count: int, kept: int) -> Bytes:
        return state_of(count, rows, slot, 4, window=(planes, kept))

    layout = StateLayout.of(state(cells, cells), slot)
    assert layout.row_bytes == sum(rows) + sum(planes)
    assert layout.start(state(cells, last), slot, cells) == cells - last
    parts = []
    for first in range(0, cells, last):
        end = min(first + last, cells)
        (cut,) = layout.cut(state(end, last), slot, end, [(first, end - first)])
        parts.append(BlockSlice(cut, end - first, 0, end - first))
    buffer = np.full(layout.size(cells) + 7, 0xEE, np.uint8)
    joined = layout.join(buffer, slot, parts)
    assert joined.tobytes() == state(cells, cells).tobytes()
    assert layout.start(joined, slot, cells) == 0


@given(SIZES, st.integers(1, 12), st.data())
def test_part_of_a_block_goes_into_another_slot(
    rows: list[int], cells: int, data: st.DataObject
) -> None:
    state = state_of(cells, rows, slot=0)
    layout = StateLayout.of(state, 0)
    keep = data.draw(st.integers(1, cells))
    (whole,) = layout.cut(state, 0, cells, [(0, cells)])
    middle = data.draw(st.integers(0, keep))
    parts = [BlockSlice(whole, cells, 0, middle), BlockSlice(whole, cells, middle, keep - middle)]
    joined = layout.join(np.empty(state.size, np.uint8), 1, [p for p in parts if p.tokens])
    again = layout.cut(joined, 1, keep, [(0, keep)])[0]
    assert again.tobytes() == layout.cut(state, 0, cells, [(0, keep)])[0].tobytes()


@pytest.mark.parametrize(
    "state",
    [
        state_of(5, [8, 8], transposed=1),
        state_of(5, [8, 8])[:-9],
        np.concatenate([state_of(5, [8, 8]), np.arange(40, dtype=np.uint8)]),
        state_of(5, [8, 8], positions=range(1, 6)),  # a window that slid
        state_of(5, [8, 8])[:20],
        np.zeros(3, np.uint8),
        state_of(5, [8, 8], window=([8], 3)),
    ],
    ids=["transposed", "short", "longer", "slid", "no planes", "nothing", "not whole"],
)
def test_another_layout_is_refused(state: Bytes) -> None:
    with pytest.raises(ValueError, match=r"layout|short"):
        StateLayout.of(state, 0)


def test_rows_in_another_order_are_not_cut() -> None:
    layout = StateLayout.of(state_of(5, [8, 8]), 0)
    with pytest.raises(ValueError, match="order"):
        layout.cut(state_of(5, [8, 8], positions=range(4, -1, -1)), 0, 5, [(0, 5)])
