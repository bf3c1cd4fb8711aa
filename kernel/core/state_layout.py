"""The layout of llama.cpp's state of a sequence: rows are cut out of it, and joined again.

    u32 magic, i32 sequence
    per cache (a model has one for full-attention layers, one for sliding-window layers):
        u32 streams
        per stream: u32 cells; after the count of the sequence's stream, the only one with cells:
            per cell: i32 position, u32 1, i32 sequence; where a position has several parts, as in
                models that see images: i32 position, u32 1, two i32 for places in an image, which
                are the position in a text, i32 token, i32 sequence
            u32 0 (values are not transposed), u32 layers
            per plane, the keys of each layer, then the values: i32 type, u64 bytes of a row, rows

A row is one token's part of a plane. llama.cpp leaves out of a state the rows that have left a
layer's sliding window, though the cache has them; a *whole* state has the rows of all tokens in
every cache, and is accepted as well. A model whose state has another layout (a recurrent state) has
no rows that could be cut. The token in a cell decides nothing, and is 0 in what is joined.
"""

from __future__ import annotations

import struct
from itertools import groupby, product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
HEAD_BYTES, PLANE_BYTES = 8, 12  # a plane: before its rows
CELL_WORDS, LONG_CELL_WORDS, TOKEN_WORD = 3, 6, 4  # of 4 bytes


class PlaneGroup(NamedTuple):
    """Neighbouring planes with rows of one size."""

    planes: int
    row: int  # bytes
    heads: Bytes  # (planes, PLANE_BYTES)


class BlockSlice(NamedTuple):
    """The rows of `tokens` tokens within a block of `block_tokens`, behind the first `skip`."""

    data: Bytes  # (block_tokens * row_bytes,)
    block_tokens: int
    skip: int
    tokens: int


class CacheLayout:
    """The layout of one cache within a state."""

    def __init__(self, streams: int, layers: int, planes: list[bytes], words: int) -> None:
        self.streams, self.layers, self.words = streams, layers, words
        self.groups = []
        for row, heads in groupby(planes, key=lambda head: int(struct.unpack("<iQ", head)[1])):
            joined = np.frombuffer(b"".join(heads), np.uint8).reshape(-1, PLANE_BYTES)
            self.groups.append(PlaneGroup(len(joined), row, joined))
        self.row_bytes = sum(group.planes * group.row for group in self.groups)

    @classmethod
    def read(
        cls, data: bytes, at: int, slot: int, values: int, words: int
    ) -> tuple[CacheLayout, int]:
        """Read the layout of the cache that begins at `at`; some models have no planes of `values`,
        and some have cells of more `words`.

        Returns:
            The layout, and where the cache ends.

        Raises:
            ValueError: the cache has another layout.
        """
        (streams,) = struct.unpack_from("<I", data, at)
        before = min(slot, streams - 1)
        (cells,) = struct.unpack_from("<I", data, at + 4 + 4 * before)
        start = at + 8 + 4 * before + 4 * words * cells
        _, layers = struct.unpack_from("<II", data, start)
        start += 8
        planes = []
        for _ in range(min(layers, len(data)) * (1 + values)):
            if start > len(data):
                raise ValueError("the state has another layout")
            (row,) = struct.unpack_from("<Q", data, start + 4)
            planes.append(data[start : start + PLANE_BYTES])
            start += PLANE_BYTES + cells * row
        layout = cls(streams, layers, planes, words)
        end = at + layout.size(cells)
        whole = np.frombuffer(data, np.uint8)
        if end > len(data) or any(data[start:end]) or not layout.begins(whole, at, slot, 0, cells):
            raise ValueError("the state has another layout")
        return layout, end

    def head(self, slot: int, first: int, cells: int) -> bytes:
        """Return the bytes before the planes, with `cells` cells from token `first` on."""
        before = min(slot, self.streams - 1)
        meta = np.empty((cells, self.words), np.int32)
        meta[:] = np.arange(first, first + cells)[:, None]
        meta[:, 1], meta[:, TOKEN_WORD:-1], meta[:, -1] = 1, 0, slot
        start = struct.pack("<I", self.streams) + bytes(4 * before) + struct.pack("<I", cells)
        return start + meta.tobytes() + struct.pack("<II", 0, self.layers)

    def begins(self, state: Bytes, at: int, slot: int, first: int, cells: int) -> bool:
        """Tell whether the cache at `at` begins as `head` has it, whatever its tokens are."""
        size = self.head_bytes(slot, cells)
        found = state[at : at + size].copy()
        if len(found) == size:
            meta = found[size - 8 - 4 * self.words * cells : -8].view(np.int32)
            meta.reshape(cells, self.words)[:, TOKEN_WORD:-1] = 0
        return found.tobytes() == self.head(slot, first, cells)

    def head_bytes(self, slot: int, cells: int) -> int:
        """Return the length of a `head`."""
        return 16 + 4 * min(slot, self.streams - 1) + 4 * self.words * cells

    def size(self, cells: int) -> int:
        """Return the bytes of this cache for a sequence with `cells` cells, at least one."""
        planes = sum(group.planes * (PLANE_BYTES + cells * group.row) for group in self.groups)
        return 4 + 4 * self.streams + 4 * self.words * cells + 8 + planes

    def cells(self, state: Bytes, at: int, slot: int) -> int:
        """Return how many cells the sequence has in the cache that begins at `at`."""
        place = at + 4 + 4 * min(slot, self.streams - 1)
        return int(state[place : place + 4].view(np.uint32)[0]) if place + 4 <= state.size else 0

    def copy(
        self,
        state: Bytes,
        at: int,
        cells: int,
        first: int,
        part: BlockSlice,
        mine: int,
        *,
        into: bool,
    ) -> None:
        """Copy rows from a state to a part's block, or with `into` from there to the state.

        Args:
            at: where this cache's planes begin in the state, which has `cells` cells.
            first: the cell of the part's first token.
            mine: where this cache's rows begin in the part's data.
        """
        for planes, row, heads in self.groups:
            width = PLANE_BYTES + cells * row
            group = state[at : at + planes * width].reshape(planes, width)
            rows = part.data[mine : mine + planes * part.block_tokens * row].reshape(planes, -1)
            inside = group[:, PLANE_BYTES + first * row : PLANE_BYTES + (first + part.tokens) * row]
            outside = rows[:, part.skip * row : (part.skip + part.tokens) * row]
            if into:
                group[:, :PLANE_BYTES] = heads
                inside[:] = outside
            else:
                outside[:] = inside
            at += planes * width
            mine += planes * part.block_tokens * row


class StateLayout:
    """The layout of a sequence's state: the layout of each of its caches."""

    def __init__(self, magic: int, caches: list[CacheLayout]) -> None:
        self.magic, self.caches = magic, caches
        self.row_bytes = sum(cache.row_bytes for cache in caches)

    @classmethod
    def of(cls, state: Bytes, slot: int) -> StateLayout:
        """Read the layout out of the whole state of `slot`, which is alone in its stream.

        Raises:
            ValueError: the state has another layout.
        """
        data = state.tobytes()
        try:
            (magic,) = struct.unpack_from("<I", data)
            return cls(magic, _read_caches(data, HEAD_BYTES, slot))
        except struct.error as error:
            raise ValueError("the state is cut short") from error

    def size(self, cells: int) -> int:
        """Return the bytes of the whole state of a sequence of `cells` tokens, at least one."""
        return HEAD_BYTES + sum(cache.size(cells) for cache in self.caches)

    def start(self, state: Bytes, slot: int, cells: int) -> int:
        """Return the first token whose rows a state of `cells` tokens has in every cache, as of all
        that follow; 0: the state is whole.

        Raises:
            ValueError: the state's tokens are not in the order of their positions.
        """
        return max(first for _, _, first, _ in self._places(state, slot, cells))

    def _places(
        self, state: Bytes, slot: int, cells: int
    ) -> list[tuple[CacheLayout, int, int, int]]:
        """Return each cache with where its planes begin in a state, its first token, its cells."""
        at, found = HEAD_BYTES, []
        whole = struct.pack("<Ii", self.magic, slot) == state[:HEAD_BYTES].tobytes()
        for cache in self.caches:
            here = cache.cells(state, at, slot)
            whole = whole and 0 < here <= cells
            whole = whole and cache.begins(state, at, slot, cells - here, here)
            planes = at + cache.head_bytes(slot, here)
            found.append((cache, planes, cells - here, here))
            at += cache.size(here)
        if not whole or at != state.size:
            raise ValueError("the state is not of the tokens up to its last, in their order")
        return found

    def cut(self, state: Bytes, slot: int, cells: int, spans: list[tuple[int, int]]) -> list[Bytes]:
        """Copy the rows (first, count) out of a state, count * `row_bytes` bytes each.

        Raises:
            ValueError: the state's tokens are not in the order of their positions, or it lacks some
                of these.
        """
        places = self._places(state, slot, cells)
        if any(first < begin for first, _ in spans for _, _, begin, _ in places):
            raise ValueError("the state does not have all of the rows")
        found = [np.empty(count * self.row_bytes, np.uint8) for _, count in spans]
        before = 0  # bytes of a token's rows in the caches before
        for cache, at, begin, here in places:
            for rows, (first, count) in zip(found, spans, strict=True):
                part = BlockSlice(rows, count, 0, count)
                cache.copy(state, at, here, first - begin, part, before * count, into=False)
            before += cache.row_bytes
        return found

    def join(self, buffer: Bytes, slot: int, parts: list[BlockSlice]) -> Bytes:
        """Make the whole state with the parts' rows, one part behind the other.

        Returns:
            A view of `buffer`.

        Raises:
            ValueError: the size of a part's data is not that of its block's rows.
        """
        for data, held, skip, tokens in parts:
            if data.size != held * self.row_bytes or skip + tokens > held:
                raise ValueError(f"{data.size} bytes are not the rows of {held} tokens")
        cells = sum(part.tokens for part in parts)
        state = buffer[: self.size(cells)]
        state[:HEAD_BYTES] = np.frombuffer(struct.pack("<Ii", self.magic, slot), np.uint8)
        at, before = HEAD_BYTES, 0
        for cache in self.caches:
            head, end = cache.head(slot, 0, cells), at + cache.size(cells)
            state[at : at + len(head)] = np.frombuffer(head, np.uint8)
            state[end - 4 * (cache.streams - 1 - min(slot, cache.streams - 1)) : end] = 0
            first = 0
            for part in parts:
                mine = before * part.block_tokens
                cache.copy(state, at + len(head), cells, first, part, mine, into=True)
                first += part.tokens
            at, before = end, before + cache.row_bytes
        return state


def _read_caches(data: bytes, at: int, slot: int) -> list[CacheLayout]:
    """Read the layouts of the caches from `at` on. If a cache has no planes of values, or cells
    of another length, the rest cannot be read as if it had not.

    Raises:
        ValueError: the caches have another layout.
    """
    if at == len(data):
        return []
    for values, words in product((1, 0), (CELL_WORDS, LONG_CELL_WORDS)):
        try:
            layout, end = CacheLayout.read(data, at, slot, values, words)
            return [layout, *_read_caches(data, end, slot)]
        except (ValueError, struct.error):
            continue
    raise ValueError("the state has another layout")
