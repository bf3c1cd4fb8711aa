"""Chat messages become text by the model's template, and nobody's text becomes control tokens.

Private words, the marks, go along into the template: one at the end of each content, and one into
all of a content that reads like a control token. So the rendered text shows where each content
ends, and where it has to be cut before it is tokenized: what is cut apart is no control token.

What enters a context behind other turns is what the template puts behind the mark of the last of
these, less what is there already: all that stays the same whatever comes next (`settled`).
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
PromptPart = str | list[int]  # of what enters a context
LENGTH = 8  # hexadecimal digits of a mark's number
CUT = "f" * LENGTH  # the number of those within a content
NEXT = 0xEEEEEEEE  # the number of a turn that may come
NEAR = 256  # characters: no mark and no control token is as long


def moved() -> BadInput:
    return BadInput(
        "the model's chat template does not put these messages behind those of the context",
        "send them in one call, or open another context",
    )


def common(texts: Sequence[str]) -> str:
    """What all of them begin with."""
    first, last = min(texts), max(texts)  # in alphabetical order all others lie between
    same = takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return "".join(letter for letter, _ in same)


class ControlTokens:
    """How control tokens are written."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = {text for text in texts if len(text) > 1}
        self.rests = {text[at:] for text in self.texts for at in range(1, len(text))}
        self.lengths = sorted({len(text) for text in self.texts})
        first = "".join(re.escape(letter) for letter in sorted({text[0] for text in self.texts}))
        self.first = re.compile(f"[{first}]" if first else "(?!)")

    def find(self, text: str) -> list[tuple[int, int]]:
        """From where to where `text` has one; they may overlap."""
        return [
            (at, at + length)
            for at in (found.start() for found in self.first.finditer(text))
            for length in self.lengths
            if at + length <= len(text) and text[at : at + length] in self.texts
        ]

    def begins_with_rest(self, text: str) -> bool:
        """Whether `text` may complete one that the template begins."""
        return any(text[:length] in self.rests for length in range(1, max(self.lengths, default=1)))


class Marks:
    """The marks of one question; 64 drawn bits are in each of them."""

    def __init__(self, controls: ControlTokens) -> None:
        self.controls = controls
        self.word = secrets.token_hex(8)
        self.any = re.compile(f"{self.word}([0-9a-f]{{{LENGTH}}})")

    def of(self, turn: int) -> str:
        return f"{self.word}{turn:0{LENGTH}x}"

    def within(self, text: str) -> str:
        """`text` with a mark inside all that reads like a control token."""
        bounds = [0, *sorted({start + 1 for start, _ in self.controls.find(text)}), len(text)]
        parts = [text[one:other] for one, other in pairwise(bounds)]
        return f"{self.word}{CUT}".join(parts)

    def content(self, turn: int, content: str | None) -> str:
        """What the template is given; the blanks at both ends stay there for it to strip, and
        nothing stays nothing."""
        if content is None:
            return self.of(turn)
        body = content.strip()
        if not body:
            return content
        begin = content[: len(content) - len(content.lstrip())]
        end = content[len(content.rstrip()) :]
        if self.controls.begins_with_rest(body):
            begin += f"{self.word}{CUT}"
        return f"{begin}{self.within(body)}{self.of(turn)}{end}"

    def turns_in(self, text: str) -> list[int]:
        return [int(found, 16) for found in self.any.findall(text) if found != CUT]

    def cut(self, text: str, tokens: Mapping[int, list[int]]) -> list[PromptPart]:
        """`text` without marks, in parts between which a control token would have been; marks of
        some turns stand for their tokens."""
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
    """What the turn with the role "tools" lists as JSON: what chat templates know as `tools`.

    Raises:
        BadInput: it lists none, or there are two such turns.
    """
    given = [content for role, content in turns if role == "tools"]
    if not given:
        return None
    try:
        (text,) = given
        plain = json.dumps(json.loads(text or ""), ensure_ascii=False)
        plain.encode()  # half of a surrogate pair is no text
        tools = json.loads(marks.within(plain))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"no list of tools: {error}", "send one message with them") from error
    if not isinstance(tools, list):
        raise BadInput("the tools are not a list", 'send [{"type": "function", ...}] as JSON')
    return tools


class Chat:
    """A conversation as the template renders it; `turns` without content were generated, and some
    others enter as their own `tokens`."""

    def __init__(
        self, template: TemplateRenderer, controls: ControlTokens, turns: Turns,
        tokens: Mapping[int, list[int]] | None = None,
    ) -> None:  # fmt: skip
        self.tokens = tokens or {}
        self.generated = {turn for turn, (_, content) in enumerate(turns) if content is None}
        self.template, self.marks = template, Marks(controls)
        self.tools = tools_of(turns, self.marks)
        self.since: int | None = None  # the last generated turn: all up to it is in the context
        self.turns = [
            (role, self._given(turn, role, content)) for turn, (role, content) in enumerate(turns)
        ]

    def _given(self, turn: int, role: str, content: str | None) -> str:
        if role == "tools":
            return ""
        return self.marks.of(turn) if turn in self.tokens else self.marks.content(turn, content)

    def behind(self, old: int, *, reply: bool) -> list[PromptPart]:
        """The text that goes behind the first `old` turns, which are in the context, in parts to be
        tokenized one by one; `reply` opens an answer. What the template puts elsewhere as long as
        no other turn has come, a system message in front of the last question, comes with that.

        Raises:
            BadInput: the template refuses the turns, or puts them elsewhere, or leaves some out.
        """
        self.since = max((turn for turn in self.generated if turn < old), default=None)
        before = self.settled(old) if old and self.since != old - 1 else ""
        texts = self._texts([(self._talk(len(self.turns)), True)]) if reply else self._next()
        found = [self._behind(text, before) for text in texts]
        new = self._whole_words(found)
        entered = {*self.marks.turns_in(before)}
        coming = {turn for text in found for turn in self.marks.turns_in(text)}
        for turn in self._marked(0 if self.since is None else self.since + 1):
            if turn not in coming and (turn >= old or turn not in entered):
                role = self.turns[turn][0]
                raise BadInput(
                    f"the model's chat template leaves out a message of the role {role!r}",
                    "send it with another role",
                )
        return self.marks.cut(new, self.tokens)

    def _marked(self, first: int) -> list[int]:
        turns = enumerate(self.turns[first:], first)
        return [turn for turn, (_, content) in turns if self.marks.of(turn) in content]

    def _behind(self, text: str, before: str) -> str:
        """What `text` has behind `before`, whose earlier turns may be rendered otherwise now."""
        last = self.marks.turns_in(before)[-1:]
        if last:
            mark = self.marks.of(last[0])
            parts = text.split(mark, before.count(mark))
            if len(parts) <= before.count(mark):
                raise moved()
            text, before = parts[-1], before.rpartition(mark)[2]
        if not text.startswith(before):
            raise moved()
        return text[len(before) :]

    def settled(self, count: int) -> str:
        """What the template makes of the first `count` turns, as far as it stays so whatever comes
        next; of those behind the last generated one, since all others are in the context."""
        return self._whole_words(self._next(count))

    def _next(self, count: int | None = None) -> list[str]:
        """The texts of the first `count` turns, with an end, an answer, or another turn behind."""
        count = len(self.turns) if count is None else count
        talk, role = self._talk(count), self.turns[count - 1][0]
        others = {role, "assistant" if role == "user" else "user"} - {"tools"}
        asked: list[RenderRequest] = [(talk, False), (talk, True)]
        for other in sorted(others):
            asked.append(([*talk, {"role": other, "content": self.marks.of(NEXT)}], False))
        return self._texts(asked)

    def _texts(self, asked: Sequence[RenderRequest]) -> list[str]:
        """Of those that the template takes: of the first two, one at least."""
        found = self.template.render(asked, self.tools)
        if isinstance(found[0], BadInput) and isinstance(found[len(found[:2]) - 1], BadInput):
            raise found[0]
        texts = [text for text in found if isinstance(text, str)]
        if self.since is None:
            return texts
        parts = [text.rpartition(self.marks.of(self.since)) for text in texts]
        if not all(mark for _, mark, _ in parts):
            raise moved()
        return [text for _, _, text in parts]

    def _whole_words(self, texts: list[str]) -> str:
        """What all of them begin with, less a part of a mark or of a control token at its end."""
        text = common(texts)
        end = len(text)
        for each in texts:
            first = max(0, end - NEAR)
            near, at = each[first : end + NEAR], end - first
            spans = self.marks.controls.find(near)
            spans += [found.span() for found in self.marks.any.finditer(near)]
            end -= max((at - start for start, stop in spans if start < at < stop), default=0)
        return text[:end]

    def _talk(self, count: int) -> list[Message]:
        return [
            {"role": role, "content": content}
            for role, content in self.turns[:count]
            if role != "tools"
        ]
