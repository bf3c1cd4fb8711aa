"""The interface of an engine: slots that read tokens, and the logits behind what was read.

`LlamaEngine` implements it with llama.cpp. Everything above it (the batcher, the prefix cache, the
self-test) is typed against `Engine`, so another engine can take its place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from .state_layout import BlockSlice, Bytes

if TYPE_CHECKING:
    from .grammar import Grammars

CHUNK_TOKENS = 64  # of a prefill; chunks end at its multiples, so none depends on another


class Engine(Protocol):
    """A model with `slots` sequences of up to `window` tokens each.

    A slot holds the tokens at positions 0 to `length(slot)` - 1, and tokens enter at its end. The
    logits behind a token depend on the tokens before it and on how these were entered (in which
    chunk, or decoded), not on the slot, its neighbours or what it held before. `certify` tests
    that, up to which batch size it holds, and whether it outlasts a move to another slot.
    """

    slots: int
    streams: int  # slots, and streams beside them that have room for padding alone
    window: int  # tokens
    n_vocab: int
    row_bytes: int  # of a row, which is a token's keys and values; 0: rows cannot be moved
    pad_solo_from: int  # tokens from which on a sequence without a neighbour in its batch is padded
    index: list[int]  # where the logits of each sequence of the last `decode` are

    @property
    def sliding(self) -> int:
        """The tokens that sliding-window layers look back at; 0: there are no such layers."""

    @property
    def grammars(self) -> Grammars:
        """The compiler of grammars for this vocabulary."""

    def piece(self, token: int) -> bytes:
        """Return the bytes of one token; control tokens have none.

        Raises:
            BadInput: there is no such token.
        """

    def is_end(self, token: int) -> bool:
        """Return whether `token` ends an answer."""

    def fingerprint(self, batch: int) -> bytes:
        """Return 16 bytes that name all that decides the bits of a row, where decode batches have
        up to `batch` sequences. Rows with another fingerprint must not be used."""

    # --- computing --------------------------------------------------------------------------------

    def prefill(self, slot: int, tokens: tuple[int, ...], pos: int) -> None:
        """Enter one chunk of up to CHUNK_TOKENS behind the `pos` tokens that the slot holds. The
        logits of its last token are then at index len(tokens) - 1.

        Raises:
            Internal: there is no room for them, or the slot holds tokens and does not end at `pos`.
        """

    def decode(self, batch: list[tuple[int, int, int]]) -> None:
        """Enter one token each for (slot, token, pos), in any order, each slot at most once. The
        logits of batch[i] are then at `self.index[i]`.

        Raises:
            Internal: there is no room for one, or its slot holds tokens and does not end at `pos`.
        """

    def logits(self, index: int) -> NDArray[np.float32]:
        """Return a view, shape (n_vocab,), valid until the next prefill or decode."""

    # --- rows of slots: `copy` and what follows it are called only where `row_bytes` is not 0 -----

    def length(self, slot: int) -> int:
        """Return how many tokens a slot holds."""

    def clear(self, slot: int, since: int = 0) -> None:
        """Drop a slot's rows from position `since` on."""

    def copy(self, source: int, target: int) -> None:
        """Replace a slot's rows by those of `source`, which is not empty."""

    def swap(self, one: int, other: int) -> None:
        """Exchange the rows of two slots, one of which may be empty."""

    def cut(self, slot: int, spans: list[tuple[int, int]]) -> list[Bytes]:
        """Copy the rows (first, count) out of a slot, count * `row_bytes` bytes each.

        Raises:
            ValueError: the slot does not hold all of them.
        """

    def paste(self, slot: int, parts: list[BlockSlice]) -> None:
        """Replace a slot's rows by those of `parts`, one behind the other. The first begin at
        position 0, and each follow those before in the sequence they were cut from.

        Raises:
            ValueError: the size of a part's data is not that of its block's rows.
            Internal: there is no room for them.
        """
