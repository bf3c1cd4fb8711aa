"""A stand-in for an engine's slot in tests of the prefix cache: rows that depend on the history."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from aios.kernel.core.engine import CHUNK_TOKENS
from aios.kernel.core.history import Op, plan
from aios.kernel.core.protocol import DECODED, PREFILLED, Segment
from aios.kernel.core.state_layout import BlockSlice

ROW = 8  # bytes of a token
PAGE = CHUNK_TOKENS * ROW
PLENTY = 1 << 30
Bytes = NDArray[np.uint8]


def rows_of(ops: list[Op]) -> Bytes:
    """Return the KV rows of `ops`: bytes that depend on all that was entered, and how."""
    rows, entered = b"", b""
    for op in ops:
        entered = blake2b(entered + repr(op).encode()).digest()
        for at in range(len(op[2])):
            rows += blake2b(entered + bytes([at]), digest_size=ROW).digest()
    return np.frombuffer(rows, np.uint8)


class Slot:
    """A slot that has entered `ops`."""

    def __init__(self, ops: list[Op]) -> None:
        self.rows = rows_of(ops)
        self.cuts = 0  # tokens that were cut out

    def cut(self, spans: list[tuple[int, int]]) -> list[Bytes]:
        self.cuts += sum(count for _, count in spans)
        return [self.rows[ROW * first : ROW * (first + count)].copy() for first, count in spans]

    def paste(self, parts: list[BlockSlice]) -> None:
        assert all(part.data.size == ROW * part.block_tokens for part in parts)
        assert all(
            part.skip >= 0 and 0 < part.tokens <= part.block_tokens - part.skip for part in parts
        )
        pieces = [part.data[ROW * part.skip :][: ROW * part.tokens] for part in parts]
        self.rows = np.concatenate(pieces)


def history(*lengths: tuple[str, int], start: int = 0) -> list[Op]:
    """Operations of segments (how, tokens), of tokens that count up from `start`."""
    segments: list[Segment] = []
    for how, count in lengths:
        segments.append(
            (PREFILLED if how == PREFILLED else DECODED, [*range(start, start + count)])
        )
        start += count
    return plan(segments)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now
