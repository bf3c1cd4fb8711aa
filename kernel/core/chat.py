"""Chat messages rendered by the model's template, so that no content becomes a control token.

Random words, the marks, are rendered along with the contents: one at the end of each content, and
one inside all of a content that reads like a control token. So the rendered text shows where each
content ends, and where to cut it before it is tokenized: a control token that is cut is none.

New turns enter a context as the text that the template puts behind the mark of the last turn there,
less the part that is there already: the part that is the same whatever turn follows (`settled`).
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise, takewhile
from typing import Any

from aios.syscalls.errors import BadInput

from .template import NO_TEMPLATE_HINT, Message, RenderRequest, TemplateRenderer

Turns = Sequence[tuple[str, str | None]]
PromptPart = str | list[int]  # text to be tokenized, or tokens
MARK_DIGITS = 8  # hexadecimal, of the number in a mark
CUT_MARK = "f" * MARK_DIGITS  # in the place of a turn's number: within a content
NEXT_TURN = 0xEEEEEEEE  # the number of a turn that may follow
MAX_SPAN_CHARS = 256  # no mark and no control token is as long


def misplaced() -> BadInput:
    """Return the error for a template that changes turns already in the context."""
    return BadInput(
        "the model's chat template does not put these messages behind those of the context",
        "send them in one call, or open another context",
    )


def common_prefix(texts: Sequence[str]) -> str:
    """Return the longest common prefix."""
    first, last = min(texts), max(texts)  # in alphabetical order all others lie between
    same = takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return "".join(letter for letter, _ in same)


class ControlTokens:
    """The control tokens of a vocabulary, as they are written."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = {text for text in texts if len(text) > 1}
        self.suffixes = {text[at:] for text in self.texts for at in range(1, len(text))}
        self.lengths = sorted({len(text) for text in self.texts})
        first = "".join(re.escape(letter) for letter in sorted({text[0] for text in self.texts}))
        self.first = re.compile(f"[{first}]" if first else "(?!)")

    def find(self, text: str) -> list[tuple[int, int]]:
        """Return the spans (start, end) of control tokens in `text`; they may overlap."""
        return [
            (at, at + length)
            for at in (found.start() for found in self.first.finditer(text))
            for length in self.lengths
            if at + length <= len(text) and text[at : at + length] in self.texts
        ]

    def begins_with_suffix(self, text: str) -> bool:
        """Return whether `text` could complete a control token that the template begins."""
        lengths = range(1, max(self.lengths, default=1))
        return any(text[:length] in self.suffixes for length in lengths)


class Marks:
    """The marks of one rendering; each has the same 64 random bits, so that no content has them."""

    def __init__(self, controls: ControlTokens) -> None:
        self.controls = controls
        self.word = secrets.token_hex(8)
        self.any = re.compile(f"{self.word}([0-9a-f]{{{MARK_DIGITS}}})")

    def mark(self, turn: int) -> str:
        return f"{self.word}{turn:0{MARK_DIGITS}x}"

    def break_controls(self, text: str) -> str:
        """Return `text` with a mark inside each control token."""
        bounds = [0, *sorted({start + 1 for start, _ in self.controls.find(text)}), len(text)]
        parts = [text[one:other] for one, other in pairwise(bounds)]
        return f"{self.word}{CUT_MARK}".join(parts)

    def mark_content(self, turn: int, content: str | None) -> str:
        """Return a turn's content with its marks. Blanks at both ends stay outside, for the
        template to strip, and an empty content stays empty."""
        if content is None:
            return self.mark(turn)
        body = content.strip()
        if not body:
            return content
        begin = content[: len(content) - len(content.lstrip())]
        end = content[len(content.rstrip()) :]
        if self.controls.begins_with_suffix(body):
            begin += f"{self.word}{CUT_MARK}"
        return f"{begin}{self.break_controls(body)}{self.mark(turn)}{end}"

    def turns_in(self, text: str) -> list[int]:
        return [int(found, 16) for found in self.any.findall(text) if found != CUT_MARK]

    def cut(self, text: str, tokens: Mapping[int, list[int]]) -> list[PromptPart]:
        """Return `text` without marks, cut within each control token that a content has. The marks
        of turns in `tokens` are replaced by the turn's tokens."""
        parts: list[PromptPart] = []
        at = 0
        for found in self.any.finditer(text):
            own = tokens.get(int(found[1], 16))
            if own is not None:
                parts += [*self._cut(text[at : found.start()]), own]
                at = found.end()
        return [*parts, *self._cut(text[at:])]

    def _cut(self, text: str) -> list[str]:
        parts = self.any.split(text)[::2]
        whole = "".join(parts)
        if self.word[:8] in whole:
            raise BadInput("the model's chat template cuts texts apart", NO_TEMPLATE_HINT)
        cuts, at = set(), 0
        spans = self.controls.find(whole)
        for part in parts[:-1]:
            at += len(part)
            if any(start < at < end for start, end in spans):
                cuts.add(at)
        bounds = [0, *sorted(cuts), len(whole)]
        return [whole[one:other] for one, other in pairwise(bounds)]


def tools_of(turns: Turns, marks: Marks) -> list[Any] | None:
    """Return the list of tools in the turn with the role "tools", which holds it as JSON; chat
    templates take it as `tools`. None: there is no such turn.

    Raises:
        BadInput: the turn has no list, or there are two such turns.
    """
    given = [content for role, content in turns if role == "tools"]
    if not given:
        return None
    try:
        (text,) = given
        plain = json.dumps(json.loads(text or ""), ensure_ascii=False)
        plain.encode()  # fails for half of a surrogate pair
        tools = json.loads(marks.break_controls(plain))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"no list of tools: {error}", "send one message with them") from error
    if not isinstance(tools, list):
        raise BadInput("the tools are not a list", 'send [{"type": "function", ...}] as JSON')
    return tools


class Chat:
    """A conversation as the template renders it. `turns` without content were generated; others may
    have `tokens` in the place of their content."""

    def __init__(
        self, template: TemplateRenderer, controls: ControlTokens, turns: Turns,
        tokens: Mapping[int, list[int]] | None = None,
    ) -> None:  # fmt: skip
        self.tokens = tokens or {}
        self.generated = {turn for turn, (_, content) in enumerate(turns) if content is None}
        self.template, self.marks = template, Marks(controls)
        self.tools = tools_of(turns, self.marks)
        self.last_generated: int | None = None  # a turn: all up to its end is in the context
        self.turns = [
            (role, self._content_of(turn, role, content))
            for turn, (role, content) in enumerate(turns)
        ]

    def _content_of(self, turn: int, role: str, content: str | None) -> str:
        if role == "tools":
            return ""
        if turn in self.tokens:
            return self.marks.mark(turn)
        return self.marks.mark_content(turn, content)

    def parts_after(self, old: int, *, reply: bool) -> list[PromptPart]:
        """Return the text that goes behind the first `old` turns, which are in the context, in
        parts to be tokenized one by one; `reply` opens an answer. Text that the template would move
        until another turn follows (a system message in front of the last question) comes with that.

        Raises:
            BadInput: the template refuses the turns, changes those before, or leaves some out.
        """
        self.last_generated = max((turn for turn in self.generated if turn < old), default=None)
        before = self.settled(old) if old and self.last_generated != old - 1 else ""
        opened = (self._messages(len(self.turns)), True)
        texts = self._render([opened]) if reply else self._continuations()
        found = [self._text_after(text, before) for text in texts]
        new = self._stable_prefix(found)
        entered = {*self.marks.turns_in(before)}
        coming = {turn for text in found for turn in self.marks.turns_in(text)}
        first = 0 if self.last_generated is None else self.last_generated + 1
        for turn in self._marked_turns(first):
            if turn not in coming and (turn >= old or turn not in entered):
                role = self.turns[turn][0]
                raise BadInput(
                    f"the model's chat template leaves out a message of the role {role!r}",
                    "send it with another role",
                )
        return self.marks.cut(new, self.tokens)

    def _marked_turns(self, first: int) -> list[int]:
        turns = enumerate(self.turns[first:], first)
        return [turn for turn, (_, content) in turns if self.marks.mark(turn) in content]

    def _text_after(self, text: str, before: str) -> str:
        """Return what follows `before` in `text`; earlier turns may be rendered otherwise there."""
        last = self.marks.turns_in(before)[-1:]
        if last:
            mark = self.marks.mark(last[0])
            parts = text.split(mark, before.count(mark))
            if len(parts) <= before.count(mark):
                raise misplaced()
            text, before = parts[-1], before.rpartition(mark)[2]
        if not text.startswith(before):
            raise misplaced()
        return text[len(before) :]

    def settled(self, count: int) -> str:
        """Return the part of the rendered first `count` turns that is the same whatever follows,
        from behind the last generated turn on: all before that is in the context."""
        return self._stable_prefix(self._continuations(count))

    def _continuations(self, count: int | None = None) -> list[str]:
        """Render the first `count` turns with an end, an answer, or another turn behind them."""
        count = len(self.turns) if count is None else count
        talk, role = self._messages(count), self.turns[count - 1][0]
        others = {role, "assistant" if role == "user" else "user"} - {"tools"}
        requests: list[RenderRequest] = [(talk, False), (talk, True)]
        for other in sorted(others):
            following = {"role": other, "content": self.marks.mark(NEXT_TURN)}
            requests.append(([*talk, following], False))
        return self._render(requests)

    def _render(self, requests: Sequence[RenderRequest]) -> list[str]:
        """Render requests, and return the texts of those that the template accepts.

        Raises:
            BadInput: it accepts neither of the first two.
        """
        found = self.template.render(requests, self.tools)
        if isinstance(found[0], BadInput) and isinstance(found[len(found[:2]) - 1], BadInput):
            raise found[0]
        texts = [text for text in found if isinstance(text, str)]
        if self.last_generated is None:
            return texts
        parts = [text.rpartition(self.marks.mark(self.last_generated)) for text in texts]
        if not all(mark for _, mark, _ in parts):
            raise misplaced()
        return [text for _, _, text in parts]

    def _stable_prefix(self, texts: list[str]) -> str:
        """Return the common prefix of texts, without a partial mark or control token at its end."""
        text = common_prefix(texts)
        end = len(text)
        for each in texts:
            first = max(0, end - MAX_SPAN_CHARS)
            near, at = each[first : end + MAX_SPAN_CHARS], end - first
            spans = self.marks.controls.find(near)
            spans += [found.span() for found in self.marks.any.finditer(near)]
            end -= max((at - start for start, stop in spans if start < at < stop), default=0)
        return text[:end]

    def _messages(self, count: int) -> list[Message]:
        return [
            {"role": role, "content": content}
            for role, content in self.turns[:count]
            if role != "tools"
        ]
