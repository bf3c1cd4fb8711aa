"""An engine without a model: its logits are a hash of what a slot has read.

It stands for llama.cpp wherever no numbers of a model matter, and is some thousand times quicker.
`test_engine` holds both to one contract. It is stricter than llama.cpp where that cannot tell right
from wrong: rows that do not follow each other are refused, and logits become NaN when they are no
longer valid. Told to, it is inexact as some formats and builds are, and so are the rows it makes.

It is in tests/ because no system ever runs on it: it has nothing to say.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from functools import cached_property
from hashlib import blake2b, shake_128
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from aios.kernel.core.engine import CHUNK_TOKENS
from aios.kernel.core.grammar import Grammars
from aios.kernel.core.state_layout import BlockSlice, Bytes
from aios.syscalls.errors import BadInput, Internal

ENDS = 8  # tokens that end an answer, behind all others
SYLLABLES = [f"{a}{b}{c}" for a in ("", " ") for b in "bdfghjklmnprstvwz" for c in "aeiou"]
PIECES = [*(bytes([n]) for n in range(256)), *(s.encode() for s in SYLLABLES), *[b""] * ENDS]
LIKELY = np.where(np.arange(len(PIECES)) < 256, -4, 0)  # an answer is syllables, few single bytes
HEAD = struct.Struct("<iii")  # how a token was entered: itself, its chunk's first position, a Kind
# A Kind is the size of a prefilled chunk; or these added up, the last for each row of the batch.
SOLO, MOVED, TOO_MANY = -1, -2, -4


class Row(NamedTuple):
    """A token in a slot. `seed` names all that was entered up to it, and how."""

    seed: bytes
    data: bytes


class DeterministicEngine:
    """Computes `slots` sequences of up to `window` tokens, with the interface of `LlamaEngine`.

    It is exact in decode batches of up to `exact_batch` sequences, padding included, and behind any
    move but the methods that `inexact_after` names. A sequence of `solo_from` tokens or more is
    computed otherwise when its slot has no neighbour in the batch.
    """

    def __init__(
        self, *, slots: int = 3, window: int = 320, row_bytes: int = 64, exact_batch: int = 99,
        solo_from: int = 256, inexact_after: Collection[str] = (),
    ) -> None:  # fmt: skip
        self.slots, self.window, self.row_bytes = slots, window, row_bytes
        self.exact_batch, self.solo_from = exact_batch, solo_from
        self.inexact_after = inexact_after
        self.streams, self.n_vocab, self.sliding = max(slots, 2), len(PIECES), 0
        self.pad_solo_from = 256
        self.index: list[int] = []
        self.width = row_bytes  # also where `row_bytes` was set to 0
        self.held: list[list[Row]] = [[] for _ in range(self.streams)]
        self.moved: set[int] = set()  # slots that go on inexactly
        self.outputs: dict[int, bytes] = {}  # seeds of the rows that have logits, by index
        self.views: list[NDArray[np.float32]] = []

    # --- vocabulary -------------------------------------------------------------------------------

    def piece(self, token: int) -> bytes:
        if token >= self.n_vocab:
            raise BadInput(f"token {token} is out of the vocabulary of {self.n_vocab}")
        return PIECES[token]

    def is_end(self, token: int) -> bool:
        return token >= self.n_vocab - ENDS

    @cached_property
    def grammars(self) -> Grammars:
        return Grammars(PIECES, list(filter(self.is_end, range(self.n_vocab))), list)

    def fingerprint(self, batch: int) -> bytes:
        what = batch, self.width, self.exact_batch, self.solo_from, sorted(self.inexact_after)
        return blake2b(repr(what).encode(), digest_size=16).digest()

    # --- computing --------------------------------------------------------------------------------

    def prefill(self, slot: int, tokens: tuple[int, ...], pos: int) -> None:
        assert 1 <= len(tokens) <= CHUNK_TOKENS
        self._check_room(slot, pos, len(tokens))
        kind = len(tokens) + MOVED * CHUNK_TOKENS * (slot in self.moved)
        for token in tokens:
            self._enter(slot, HEAD.pack(token, pos, kind))
        self._expect({len(tokens) - 1: slot})

    def decode(self, batch: list[tuple[int, int, int]]) -> None:
        slots = {slot for slot, _, _ in batch}
        assert len(slots) == len(batch)
        for slot, _, pos in batch:
            self._check_room(slot, pos, 1)
        long = [slot for slot, _, pos in batch if pos >= self.pad_solo_from]
        solo = [slot for slot in long if not {slot - 1, slot + 1} & slots]
        slots |= {slot + 1 if slot + 1 < self.streams else slot - 1 for slot in solo}
        for slot, token, pos in batch:
            many = len(slots) if len(slots) > self.exact_batch else 0
            kind = TOO_MANY * many + MOVED * (slot in self.moved)
            if pos >= self.solo_from and not {slot - 1, slot + 1} & slots:
                kind += SOLO
            self._enter(slot, HEAD.pack(token, pos, kind))
        order = sorted(slots)
        self.index = [order.index(slot) for slot, _, _ in batch]
        self._expect({order.index(slot): slot for slot, _, _ in batch})

    def _check_room(self, slot: int, pos: int, count: int) -> None:
        if pos != len(self.held[slot]):
            raise Internal(f"slot {slot} ends at {len(self.held[slot])}, not at {pos}")
        if pos + count > self.window + 1:  # of one more than the window, for padding
            raise Internal(f"slot {slot} has no room for {count} tokens at {pos}")

    def _enter(self, slot: int, head: bytes) -> None:
        held = self.held[slot]
        held.append(self._row(held[-1].seed if held else b"", head))

    def _row(self, before: bytes, head: bytes) -> Row:
        seed = blake2b(before + head, digest_size=16).digest()
        return Row(seed, head + shake_128(seed).digest(self.width - HEAD.size))

    def _expect(self, outputs: dict[int, int]) -> None:
        """From now on there are the logits behind the last tokens of these slots, and no others."""
        for view in self.views:
            view[:] = np.nan
        self.views.clear()
        self.outputs = {index: self.held[slot][-1].seed for index, slot in outputs.items()}

    def logits(self, index: int) -> NDArray[np.float32]:
        drawn = np.frombuffer(
            shake_128(b"logits" + self.outputs[index]).digest(4 * self.n_vocab), "<u4"
        )
        self.views.append((drawn / 2.0**29 + LIKELY).astype(np.float32))
        return self.views[-1]

    # --- rows of slots ----------------------------------------------------------------------------

    def length(self, slot: int) -> int:
        return len(self.held[slot])

    def clear(self, slot: int, since: int = 0) -> None:
        del self.held[slot][since:]
        if not self.held[slot]:
            self.moved.discard(slot)

    def copy(self, source: int, target: int) -> None:
        assert self.row_bytes
        assert self.held[source]
        self._put(target, self.held[source], "copy")

    def swap(self, one: int, other: int) -> None:
        assert self.row_bytes
        mine, theirs = self.held[one], self.held[other]
        self._put(one, theirs, "swap")
        self._put(other, mine, "swap")

    def _put(self, slot: int, rows: list[Row], how: str) -> None:
        self.held[slot] = list(rows)
        if rows and how in self.inexact_after:
            self.moved.add(slot)
        else:
            self.moved.discard(slot)

    def cut(self, slot: int, spans: list[tuple[int, int]]) -> list[Bytes]:
        assert self.row_bytes
        held = self.held[slot]
        if any(first + count > len(held) for first, count in spans):
            raise ValueError(f"slot {slot} holds {len(held)} tokens, and not all of {spans}")
        rows = (b"".join(row.data for row in held[at : at + count]) for at, count in spans)
        return [np.frombuffer(bytearray(data), np.uint8) for data in rows]

    def paste(self, slot: int, parts: list[BlockSlice]) -> None:
        assert self.row_bytes
        if sum(part.tokens for part in parts) > self.window + 1:
            raise Internal(f"slot {slot} has no room for all of {parts}")
        rows: list[Row] = []
        for data, held, skip, tokens in parts:
            if data.size != held * self.width or skip + tokens > held:
                raise ValueError(f"{data.size} bytes are not the rows of {held} tokens")
            found = data.tobytes()
            for at in range(skip * self.width, (skip + tokens) * self.width, self.width):
                head = found[at : at + HEAD.size]
                row = self._row(rows[-1].seed if rows else b"", head)
                assert row.data == found[at : at + self.width], f"row {len(rows)} follows another"
                rows.append(row)
        self._put(slot, rows, "paste")
