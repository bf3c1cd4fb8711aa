"""A history cut into operations, each with a key that names all that was entered up to it.

An operation is what enters the KV cache in one computation: a prefill chunk or one decoded token.
The cut depends on the history alone, so an operation that is computed again gives the same bits.
Its key is a hash chained over all operations from the start: contexts that begin alike have equal
keys.
"""

from __future__ import annotations

import struct
from hashlib import blake2b
from itertools import accumulate

from .engine import CHUNK_TOKENS
from .protocol import DECODED, Segment

Op = tuple[str, int, tuple[int, ...]]  # how, position of the first token, tokens


def plan(history: list[Segment]) -> list[Op]:
    """Cut a history into operations. Chunks end at absolute multiples of CHUNK_TOKENS."""
    ops: list[Op] = []
    pos = 0
    for how, tokens in history:
        end = pos + len(tokens)
        start = pos
        while pos < end:
            stop = pos + 1 if how == DECODED else min(end, (pos // CHUNK_TOKENS + 1) * CHUNK_TOKENS)
            ops.append((how, pos, tuple(tokens[pos - start : stop - start])))
            pos = stop
    return ops


def link(parent: bytes, op: Op) -> bytes:
    """Return the key of `op` behind the operation with the key `parent`; b"" before the first."""
    how, pos, tokens = op
    data = struct.pack(f"<cI{len(tokens)}i", how.encode(), pos, *tokens)
    return blake2b(parent + data, digest_size=16).digest()


def chain(ops: list[Op], parent: bytes = b"") -> list[bytes]:
    """Return the keys of operations that follow the one with the key `parent`."""
    return list(accumulate(ops, link, initial=parent))[1:]


def common_prefix_length(mine: list[Op], theirs: list[Op]) -> int:
    """Return how many operations both begin with."""
    for at, (one, other) in enumerate(zip(mine, theirs, strict=False)):
        if one != other:
            return at
    return min(len(mine), len(theirs))


def length(ops: list[Op]) -> int:
    """Return the length in tokens of a context with these operations."""
    return ops[-1][1] + len(ops[-1][2]) if ops else 0
