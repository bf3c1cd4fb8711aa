"""A KV block: the keys and values of consecutive operations, in RAM, on disk or on the way."""

from __future__ import annotations

from concurrent.futures import Future

from .disk import BlockName
from .history import Op, length
from .protocol import DECODED
from .state_layout import Bytes

# The cost of having a token's rows again, in milliseconds as measured on 2 cores: decoded,
# prefilled, read from disk. Only the ratios matter.
DECODE_MS, PREFILL_MS, READ_MS = 8.0, 3.0, 0.05


class KVBlock:
    """The KV rows of consecutive operations of a history, in one page of CHUNK_TOKENS."""

    def __init__(self, parent: bytes, keys: list[bytes], first: int, tokens: int) -> None:
        self.parent = parent  # the key of the operation before
        self.keys = keys  # of its operations; the last alone while PrefixCache.unplaced has it
        self.first, self.tokens = first, tokens
        self.cost_ms = DECODE_MS  # to compute one of its tokens again
        self.last_used = 0.0  # by the cache's clock
        self.users: set[int] = set()  # contexts
        self.data: Bytes | None = None  # (tokens * row_bytes,)
        self.file = 0  # bytes on disk
        self.writing: Future[int] | None = None
        self.reading: Future[Bytes] | None = None

    @classmethod
    def of(cls, ops: list[Op], keys: list[bytes], start: int, end: int) -> KVBlock:
        """Return a block without data for the operations `start` to `end`."""
        first = ops[start][1]
        parent = keys[start - 1] if start else b""
        block = cls(parent, keys[start:end], first, length(ops[:end]) - first)
        costs = (
            DECODE_MS if how == DECODED else PREFILL_MS * len(t) for how, _, t in ops[start:end]
        )
        block.cost_ms = sum(costs) / block.tokens
        return block

    @property
    def name(self) -> BlockName:
        return BlockName(self.keys[-1], self.first, self.tokens)

    @property
    def dirty(self) -> bool:
        """In RAM only, and not on its way to disk."""
        return self.data is not None and not self.file and self.writing is None
