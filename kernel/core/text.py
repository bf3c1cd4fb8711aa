"""Text out of tokens, and tokens out of text and chat messages."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

from aios.syscalls.errors import AiosError, BadInput

from .chat import Chat, ControlTokens, PromptPart
from .protocol import Decode, Encode, Encoded
from .template import TemplateRenderer


class Vocabulary(Protocol):
    @property
    def template(self) -> TemplateRenderer: ...
    @property
    def controls(self) -> ControlTokens: ...
    def tokenize_parts(self, parts: Sequence[PromptPart], *, start: bool) -> list[int]: ...
    def piece(self, token: int) -> bytes: ...


class TextStream:
    """Bytes of tokens in, text that may be shown out: whole characters, nothing of a stop string.

    A function of the tokens alone, so feeding it a history again rebuilds it.
    """

    def __init__(self, stops: list[str]) -> None:
        self.stops = stops
        self.stopped = False
        self._held = ""
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, piece: bytes, *, last: bool = False) -> str:
        """What can be shown now; sets `stopped` when a stop string is complete."""
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
        """What was held back, at the end of the generation."""
        return "" if self.stopped else self.feed(b"", last=True)


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0


def parts_behind(vocab: Vocabulary, question: Encode) -> list[PromptPart]:
    """What the chat template puts behind the turns that are already in the context."""
    old = len(question.turns)
    if old and any(role == "tools" for role, _ in question.messages):
        raise BadInput("tools come first in a context", "open another for them")
    turns = [*question.turns, *question.messages]
    chat = Chat(vocab.template, vocab.controls, turns, question.tokens)
    return chat.behind(old, reply=question.reply)


def answer(vocab: Vocabulary, question: Encode | Decode) -> Encoded:
    try:
        if isinstance(question, Decode):
            data = b"".join(vocab.piece(token) for token in question.tokens)
            return Encoded(question.req, text=data.decode(errors="replace"))
        text = question.text
        parts: list[PromptPart] = [text] if text is not None else parts_behind(vocab, question)
        return Encoded(question.req, vocab.tokenize_parts(parts, start=question.start))
    except AiosError as error:
        return Encoded(question.req, error=error.to_wire())
