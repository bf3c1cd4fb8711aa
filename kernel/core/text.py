"""Text out of tokens, and tokens out of text and chat messages."""

from __future__ import annotations

import codecs
import json
import secrets
from typing import Any, Protocol

from aios.syscalls.errors import AiosError, BadInput

from .protocol import Decode, Encode, Encoded


class Vocabulary(Protocol):
    def tokenize(self, text: str, *, start: bool) -> list[int]: ...
    def piece(self, token: int) -> bytes: ...
    def render(self, messages: list[dict[str, str]], *, reply: bool) -> str: ...


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


def tools_apart(
    messages: list[dict[str, str]],
) -> tuple[list[dict[str, str]], list[Any] | None]:
    """The messages of a talk, and the tools that one with the role "tools" lists as JSON: what chat
    templates know as `tools`.

    Raises:
        BadInput: it lists none, or there are two such messages.
    """
    talk = [message for message in messages if message.get("role") != "tools"]
    given = [message["content"] for message in messages if message.get("role") == "tools"]
    if not given:
        return talk, None
    try:
        (text,) = given
        tools = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"no list of tools: {error}", "send one message with them") from error
    if not isinstance(tools, list):
        raise BadInput("the tools are not a list", 'send [{"type": "function", ...}] as JSON')
    return talk, tools


def render_behind(vocab: Vocabulary, question: Encode) -> str:
    """What the chat template puts behind the turns that are already in the context."""
    mark = secrets.token_hex(16)  # stands for each generated answer; nobody's text can hold it
    turns = [
        {"role": role, "content": mark if content is None else content}
        for role, content in question.turns
    ]
    new = [{"role": role, "content": content} for role, content in question.messages]
    if turns and any(message["role"] == "tools" for message in new):
        raise BadInput("tools come first in a context", "open another for them")
    text = vocab.render([*turns, *new], reply=question.reply)
    if not turns:
        return text
    if question.turns[-1][1] is None:
        return text.rpartition(mark)[2]
    return text[len(vocab.render(turns, reply=False)) :]


def answer(vocab: Vocabulary, question: Encode | Decode) -> Encoded:
    try:
        if isinstance(question, Decode):
            data = b"".join(vocab.piece(token) for token in question.tokens)
            return Encoded(question.req, text=data.decode(errors="replace"))
        text = question.text
        if text is None:
            text = render_behind(vocab, question)
        return Encoded(question.req, vocab.tokenize(text, start=question.start))
    except AiosError as error:
        return Encoded(question.req, error=error.to_wire())
