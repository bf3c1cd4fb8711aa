"""Detokenizing into text that may be shown, and tokenizing of text and chat messages."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

from aios.syscalls.errors import AiosError, BadInput

from ..lib import defects
from .chat import Chat, ControlTokens, PromptPart
from .protocol import DetokenizeRequest, Tokenized, TokenizeRequest
from .template import TemplateRenderer


class Vocabulary(Protocol):
    """The part of a model that tokenizing needs; see LlamaVocabulary."""

    @property
    def template(self) -> TemplateRenderer: ...
    @property
    def controls(self) -> ControlTokens: ...
    def tokenize_parts(self, parts: Sequence[PromptPart], *, start: bool) -> list[int]: ...
    def piece(self, token: int) -> bytes: ...


class TextStream:
    """Turns the bytes of tokens into text that may be shown: whole characters, and no part of a
    stop string.

    Its state depends on the tokens alone, so feeding it a history again rebuilds it.
    """

    def __init__(self, stops: list[str]) -> None:
        self.stops = stops
        self.stopped = False
        self._held = ""
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, piece: bytes, *, last: bool = False) -> str:
        """Return the text that can be shown now. Sets `stopped` once a stop string is complete."""
        self._held += self._utf8.decode(piece, last)
        found = [at for at in (self._held.find(stop) for stop in self.stops) if at >= 0]
        if found:
            self.stopped = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        keep = 0 if last else max((_overlap(self._held, stop) for stop in self.stops), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def flush(self) -> str:
        """Return the text held back so far; for the end of the generation."""
        return "" if self.stopped else self.feed(b"", last=True)


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest suffix of `text` that is a prefix of `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0


def parts_after(vocab: Vocabulary, question: TokenizeRequest) -> list[PromptPart]:
    """Return what the chat template puts behind the turns that are already in the context."""
    old = len(question.turns)
    if old and any(role == "tools" for role, _ in question.messages):
        raise BadInput("tools come first in a context", "open another for them")
    turns = [*question.turns, *question.messages]
    if not turns:
        raise BadInput("there is no message to render", "send one at least")
    chat = Chat(vocab.template, vocab.controls, turns, question.tokens)
    return chat.parts_after(old, reply=question.reply)


def answer(vocab: Vocabulary, question: TokenizeRequest | DetokenizeRequest) -> Tokenized:
    """Tokenize or detokenize; an error is part of the answer."""
    try:
        if isinstance(question, DetokenizeRequest):
            data = b"".join(vocab.piece(token) for token in question.tokens)
            return Tokenized(question.req, text=data.decode(errors="replace"))
        text = question.text
        parts: list[PromptPart] = [text] if text is not None else parts_after(vocab, question)
        return Tokenized(question.req, vocab.tokenize_parts(parts, start=question.start))
    except AiosError as error:
        return Tokenized(question.req, error=error.to_wire())
    except Exception:  # noqa: BLE001 (a defect of the core: all that generates goes on)
        return Tokenized(question.req, error=defects.report().to_wire())
