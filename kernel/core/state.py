"""The form of llama.cpp's state of one sequence: rows are cut out of it, and put together again.

    u32 magic, i32 sequence
    per cache, of which a model has one for layers that look at all, one for those with a window:
        u32 streams
        per stream: u32 cells; behind that of the sequence's own stream, the only one with cells:
            per cell: i32 position, u32 1, i32 sequence
            u32 0 (values are not transposed), u32 layers
            per plane, the keys of each layer, then the values: i32 type, u64 bytes of a row, rows

A row is what one token has in one plane. llama.cpp leaves out of a state the rows that have left a
layer's window, though the cache has them; a *whole* state has the rows of all tokens, in every
cache, and is taken in as well. A model whose state is of another form (a recurrent state) has no
rows that could be cut.
"""

from __future__ import annotations

import struct
from itertools import groupby
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
HEAD, CELL, PLANE = 8, 12, 12  # bytes of magic and sequence; of a cell; of a plane before its rows


class Band(NamedTuple):
    """Neighbouring planes with rows of one size."""

    planes: int
    row: int
    heads: Bytes  # (planes, PLANE)


class BlockSlice(NamedTuple):
    """The rows of `tokens` tokens within a block of `block_tokens`, behind the first `skip`."""

    data: Bytes  # (block_tokens * row_bytes,)
    block_tokens: int
    skip: int
    tokens: int


class CacheForm:
    """The form of one cache's part of a state."""

    def __init__(self, streams: int, layers: int, planes: list[bytes]) -> None:
        self.streams, self.layers = streams, layers
        self.bands = []
        for row, heads in groupby(planes, key=lambda head: int(struct.unpack("<iQ", head)[1])):
            joined = np.frombuffer(b"".join(heads), np.uint8).reshape(-1, PLANE)
            self.bands.append(Band(len(joined), row, joined))
        self.row_bytes = sum(band.planes * band.row for band in self.bands)

    @classmethod
    def read(cls, data: bytes, at: int, slot: int, values: int) -> tuple[CacheForm, int]:
        """The form of the cache that begins at `at`, and where it ends; some models have no planes
        of `values`.

        Raises:
            ValueError: it has no such form.
        """
        (streams,) = struct.unpack_from("<I", data, at)
        before = min(slot, streams - 1)
        (cells,) = struct.unpack_from("<I", data, at + 4 + 4 * before)
        start = at + 8 + 4 * before + CELL * cells
        _, layers = struct.unpack_from("<II", data, start)
        start += 8
        planes = []
        for _ in range(min(layers, len(data)) * (1 + values)):
            (row,) = struct.unpack_from("<Q", data, start + 4)
            planes.append(data[start : start + PLANE])
            start += PLANE + cells * row
        form = cls(streams, layers, planes)
        end = at + form.size(cells)
        head = form.head(slot, 0, cells)
        if end > len(data) or any(data[start:end]) or data[at : at + len(head)] != head:
            raise ValueError("the state has another form")
        return form, end

    def head(self, slot: int, first: int, cells: int) -> bytes:
        """What is before the planes, where the cells are those of the tokens from `first` on."""
        before = min(slot, self.streams - 1)
        meta = np.empty((cells, 3), np.int32)
        meta[:, 0], meta[:, 1], meta[:, 2] = np.arange(first, first + cells), 1, slot
        start = struct.pack("<I", self.streams) + bytes(4 * before) + struct.pack("<I", cells)
        return start + meta.tobytes() + struct.pack("<II", 0, self.layers)

    def size(self, cells: int) -> int:
        """Bytes of a sequence that has `cells` cells here, at least one."""
        planes = sum(band.planes * (PLANE + cells * band.row) for band in self.bands)
        return 4 + 4 * self.streams + CELL * cells + 8 + planes

    def cells(self, state: Bytes, at: int, slot: int) -> int:
        """How many the sequence has in the cache that begins at `at`."""
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
        """Between the rows `first` and on of a state's cells, whose planes begin `at`, and a part,
        whose rows of this cache begin at `mine`."""
        for planes, row, heads in self.bands:
            width = PLANE + cells * row
            band = state[at : at + planes * width].reshape(planes, width)
            rows = part.data[mine : mine + planes * part.block_tokens * row].reshape(planes, -1)
            inside = band[:, PLANE + first * row : PLANE + (first + part.tokens) * row]
            outside = rows[:, part.skip * row : (part.skip + part.tokens) * row]
            if into:
                band[:, :PLANE] = heads
                inside[:] = outside
            else:
                outside[:] = inside
            at += planes * width
            mine += planes * part.block_tokens * row


class StateForm:
    """The form of a sequence's state: that of each of its caches."""

    def __init__(self, magic: int, caches: list[CacheForm]) -> None:
        self.magic, self.caches = magic, caches
        self.row_bytes = sum(cache.row_bytes for cache in caches)

    @classmethod
    def of(cls, state: Bytes, slot: int) -> StateForm:
        """The form of the whole state that `slot`, alone in its stream, has.

        Raises:
            ValueError: it has no such form.
        """
        data = state.tobytes()
        try:
            (magic,) = struct.unpack_from("<I", data)
            return cls(magic, _caches(data, HEAD, slot))
        except struct.error as error:
            raise ValueError("the state is cut short") from error

    def size(self, cells: int) -> int:
        """Bytes of the whole state of a sequence that holds `cells` tokens, at least one."""
        return HEAD + sum(cache.size(cells) for cache in self.caches)

    def start(self, state: Bytes, slot: int, cells: int) -> int:
        """The first token from which on a state has the rows of all `cells` tokens; 0: it is whole.

        Raises:
            ValueError: the state's tokens are not in the order of their positions.
        """
        return max(first for _, _, first, _ in self._places(state, slot, cells))

    def _places(self, state: Bytes, slot: int, cells: int) -> list[tuple[CacheForm, int, int, int]]:
        """Each cache, where its planes begin in a state, its first token, and how many it has."""
        at, found = HEAD, []
        whole = struct.pack("<Ii", self.magic, slot) == state[:HEAD].tobytes()
        for cache in self.caches:
            here = cache.cells(state, at, slot)
            head = cache.head(slot, cells - here, here)
            whole = whole and 0 < here <= cells and state[at : at + len(head)].tobytes() == head
            found.append((cache, at + len(head), cells - here, here))
            at += cache.size(here)
        if not whole or at != state.size:
            raise ValueError("the state is not of the tokens up to its last, in their order")
        return found

    def cut(self, state: Bytes, slot: int, cells: int, spans: list[tuple[int, int]]) -> list[Bytes]:
        """Copies of the rows (first, count) of a state that has them.

        Raises:
            ValueError: the state's tokens are not in the order of their positions, or it has not
                all of these.
        """
        places = self._places(state, slot, cells)
        start = max(first for _, _, first, _ in places)
        if any(first < start for first, _ in spans):
            raise ValueError("the state does not have all of the rows")
        found = [np.empty(count * self.row_bytes, np.uint8) for _, count in spans]
        before = 0  # bytes of a token's rows in the caches before
        for cache, at, start, here in places:
            for rows, (first, count) in zip(found, spans, strict=True):
                part = BlockSlice(rows, count, 0, count)
                cache.copy(state, at, here, first - start, part, before * count, into=False)
            before += cache.row_bytes
        return found

    def join(self, buffer: Bytes, slot: int, parts: list[BlockSlice]) -> Bytes:
        """The whole state of the parts' rows, one part behind the other, as a view of `buffer`.

        Raises:
            ValueError: a part has other bytes than the rows of the tokens it is said to hold.
        """
        for data, held, skip, tokens in parts:
            if data.size != held * self.row_bytes or skip + tokens > held:
                raise ValueError(f"{data.size} bytes are not the rows of {held} tokens")
        cells = sum(part.tokens for part in parts)
        state = buffer[: self.size(cells)]
        state[:HEAD] = np.frombuffer(struct.pack("<Ii", self.magic, slot), np.uint8)
        at, before = HEAD, 0
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


def _caches(data: bytes, at: int, slot: int) -> list[CacheForm]:
    """The forms of the caches from `at` on; whether the planes have values shows in what follows.

    Raises:
        ValueError: they have no such form.
    """
    if at == len(data):
        return []
    for values in (1, 0):
        try:
            form, end = CacheForm.read(data, at, slot, values)
            return [form, *_caches(data, end, slot)]
        except (ValueError, struct.error):
            continue
    raise ValueError("the state has another form")
