"""The form of llama.cpp's state of one sequence: rows are cut out of it, and put together again.

    u32 magic, i32 sequence, u32 streams
    per stream: u32 cells; behind that of the sequence's own stream, the only one with cells:
        per cell: i32 position, u32 1, i32 sequence
        u32 0 (values are not transposed), u32 layers
        per plane, the keys of each layer, then the values: i32 type, u64 bytes of a row, the rows

A row is what one token has in one plane. A model whose state is of another form (a window that
slides, a recurrent state) has no rows that could be cut.
"""

from __future__ import annotations

import struct
from itertools import groupby
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
HEAD, PLANE = 12, 12  # bytes of magic, sequence, streams; of a plane's type and row size


class Band(NamedTuple):
    """Neighbouring planes with rows of one size."""

    planes: int
    row: int
    heads: Bytes  # (planes, PLANE)


class Part(NamedTuple):
    """The rows of `tokens` tokens from the one `skip` on, of `data`, which is of `held` tokens."""

    data: Bytes
    held: int
    skip: int
    tokens: int


class StateForm:
    def __init__(self, magic: int, streams: int, layers: int, planes: list[bytes]) -> None:
        self.magic, self.streams, self.layers = magic, streams, layers
        self.bands = []
        for row, heads in groupby(planes, key=lambda head: int(struct.unpack("<iQ", head)[1])):
            joined = np.frombuffer(b"".join(heads), np.uint8).reshape(-1, PLANE)
            self.bands.append(Band(len(joined), row, joined))
        self.row_bytes = sum(band.planes * band.row for band in self.bands)

    @classmethod
    def of(cls, state: Bytes, slot: int) -> StateForm:
        """The form of the state that `slot`, alone in its stream, has.

        Raises:
            ValueError: it has no such form.
        """
        data = state.tobytes()
        try:
            magic, _, streams = struct.unpack_from("<IiI", data)
            stream = min(slot, streams - 1)
            at = HEAD + 4 * stream
            (cells,) = struct.unpack_from("<I", data, at)
            at += 4 + 12 * cells
            _, layers = struct.unpack_from("<II", data, at)
            at += 8
            planes, end = [], len(data) - 4 * (streams - stream - 1)
            while at < end:
                planes.append(data[at : at + PLANE])
                (row,) = struct.unpack_from("<Q", data, at + 4)
                at += PLANE + cells * row
        except struct.error as error:
            raise ValueError("the state is cut short") from error
        form = cls(magic, streams, layers, planes)
        if at != end or form.head(slot, cells) != data[: len(form.head(slot, cells))]:
            raise ValueError("the state has another form")
        return form

    def head(self, slot: int, cells: int) -> bytes:
        """All that is before the planes."""
        stream = min(slot, self.streams - 1)
        meta = np.empty((cells, 3), np.int32)
        meta[:, 0], meta[:, 1], meta[:, 2] = np.arange(cells), 1, slot
        start = struct.pack("<IiI", self.magic, slot, self.streams) + bytes(4 * stream)
        return (
            start + struct.pack("<I", cells) + meta.tobytes() + struct.pack("<II", 0, self.layers)
        )

    def size(self, cells: int) -> int:
        """Bytes of the state of a sequence that holds `cells` tokens, at least one."""
        planes = sum(band.planes * (PLANE + cells * band.row) for band in self.bands)
        return HEAD + 4 * self.streams + 12 * cells + 8 + planes

    def cut(self, state: Bytes, slot: int, cells: int, spans: list[tuple[int, int]]) -> list[Bytes]:
        """Copies of the rows (first, count) of a state.

        Raises:
            ValueError: the state's tokens are not in the order of their positions.
        """
        head = self.head(slot, cells)
        if state.size != self.size(cells) or state[: len(head)].tobytes() != head:
            raise ValueError("the state is not of the tokens 0 to its last, in their order")
        found = []
        for first, count in spans:
            rows = np.empty(count * self.row_bytes, np.uint8)
            self._copy(state, len(head), cells, first, Part(rows, count, 0, count), into=False)
            found.append(rows)
        return found

    def join(self, buffer: Bytes, slot: int, parts: list[Part]) -> Bytes:
        """The state of the parts' rows, one part behind the other, as a view of `buffer`."""
        cells = sum(part.tokens for part in parts)
        state = buffer[: self.size(cells)]
        head = self.head(slot, cells)
        state[: len(head)] = np.frombuffer(head, np.uint8)
        state[-4 * self.streams :] = 0  # the streams behind; the planes write over what is theirs
        first = 0
        for part in parts:
            self._copy(state, len(head), cells, first, part, into=True)
            first += part.tokens
        return state

    def _copy(
        self, state: Bytes, at: int, cells: int, first: int, part: Part, *, into: bool
    ) -> None:
        """Between the rows `first` and on of a state, whose planes begin `at`, and a part."""
        mine = 0
        for planes, row, heads in self.bands:
            width = PLANE + cells * row
            band = state[at : at + planes * width].reshape(planes, width)
            rows = part.data[mine : mine + planes * part.held * row].reshape(planes, -1)
            inside = band[:, PLANE + first * row : PLANE + (first + part.tokens) * row]
            outside = rows[:, part.skip * row : (part.skip + part.tokens) * row]
            if into:
                band[:, :PLANE] = heads
                inside[:] = outside
            else:
                outside[:] = inside
            at += planes * width
            mine += planes * part.held * row
