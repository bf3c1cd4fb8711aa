"""What a core needs of a model: slots that read tokens, and the logits behind what was read.

`LlamaEngine` computes them with llama.cpp. Everything above it (the batcher, the snapshots, the
self-test) is typed against `Engine`, so that another engine can take its place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from .state import BlockSlice, Bytes

if TYPE_CHECKING:
    from .grammar import Grammars

CHUNK = 64  # tokens of a prefill chunk; chunks end at its multiples, so they never depend on others


class Engine(Protocol):
    """A model with `slots` sequences of up to `window` tokens each.

    A slot holds the tokens at positions 0 to `length(slot)` - 1, and tokens enter at its end. The
    logits behind a token depend on the tokens before it and on how these were entered (in which
    chunk, or decoded), not on the slot, its neighbours or what it held before. `certify` tests
    that, up to which batch size it holds, and whether it outlasts a move to another slot.
    """

    slots: int
    streams: int  # slots, and those beside them that have room for company alone
    window: int  # tokens
    n_vocab: int
    row_bytes: int  # of a token's keys and values, which is a row; 0: rows cannot be moved
    alone: int  # tokens from which on a sequence without a neighbour gets company in its batch
    index: list[int]  # where the logits of each row of the last `decode` are

    @property
    def sliding(self) -> int:
        """Tokens that layers with a window look back at; 0 if there are none."""

    @property
    def grammars(self) -> Grammars:
        """Compiles what answers are held to, for this vocabulary."""

    def piece(self, token: int) -> bytes:
        """The bytes of one token; control tokens have none.

        Raises:
            BadInput: there is no such token.
        """

    def is_end(self, token: int) -> bool:
        """Whether `token` ends an answer."""

    def fingerprint(self, batch: int) -> bytes:
        """16 bytes that name all that decides the bits of a row, where decode batches have up to
        `batch` sequences. Rows of another fingerprint are of no use."""

    # --- computing --------------------------------------------------------------------------------

    def prefill(self, slot: int, tokens: tuple[int, ...], pos: int) -> None:
        """Enter one chunk of 1 to CHUNK tokens behind the `pos` that the slot holds. The logits
        behind its last token are then at index len(tokens) - 1.

        Raises:
            Internal: there is no room for them, or the slot holds tokens and does not end at `pos`.
        """

    def decode(self, rows: list[tuple[int, int, int]]) -> None:
        """Enter one token each for (slot, token, pos) rows, one a slot, in any order. The logits
        behind that of row i are then at `self.index[i]`.

        Raises:
            Internal: there is no room for one, or its slot holds tokens and does not end at `pos`.
        """

    def logits(self, index: int) -> NDArray[np.float32]:
        """A view, shape (n_vocab,), valid until the next prefill or decode."""

    # --- what slots hold: `copy` and what follows it are called only where `row_bytes` is not 0 ---

    def length(self, slot: int) -> int:
        """How many tokens a slot holds."""

    def clear(self, slot: int, since: int = 0) -> None:
        """Drop what a slot holds from position `since` on."""

    def copy(self, source: int, target: int) -> None:
        """Have a slot hold what another one does, which is not empty, and nothing else."""

    def swap(self, one: int, other: int) -> None:
        """Exchange what two slots hold, one of which may be empty."""

    def cut(self, slot: int, spans: list[tuple[int, int]]) -> list[Bytes]:
        """Copies of the rows (first, count) that a slot holds, count * `row_bytes` bytes each.

        Raises:
            ValueError: the slot does not hold all of them.
        """

    def paste(self, slot: int, parts: list[BlockSlice]) -> None:
        """Have a slot hold the rows of `parts`, one behind the other, and nothing else. The first
        begin at position 0, and each follow those before in the sequence they were cut from.

        Raises:
            ValueError: the size of a part's data is not that of its block's rows.
            Internal: there is no room for them.
        """
