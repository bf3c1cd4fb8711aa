"""The content of a context: turns, and the tokens by how they entered. Pure."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from aios.syscalls.errors import ContextFull
from aios.syscalls.llm import OnFull

from ..core.protocol import DECODED, PREFILLED, Segment

CUT = "\N{REPLACEMENT CHARACTER}"  # stands where bytes are no whole character
DROPPED = 1 << 17  # characters of dropped turns that may be recalled; TURN more for each
PAST, TURN, TOKEN, CHARACTER = 512, 64, 16, 2  # bytes that each takes, about


class Turn(Struct):
    """A message that is in a context, or was."""

    role: str
    text: str
    note: str = ""  # what was recalled for it: it is in the context, in front of the text
    generated: bool = False
    drawn: int = 0  # tokens of a generated one
    tokens: list[int] = []  # these, where the text cannot say them: a character is cut in it

    @property
    def content(self) -> str | None:
        """The text for the chat template; None where the tokens are in the context already."""
        return None if self.generated else self.note + self.text


class Past(Struct, kw_only=True):
    """The content of a context, which a checkpoint remembers and a fork begins with."""

    history: list[Segment] = []
    turns: list[Turn] = []
    mixed: bool = False  # it holds text or tokens that are in no turn
    prelude: list[Turn] = []  # system text, not entered yet
    used: int = 0
    sealed: bool = True  # the last segment has been computed with: it grows no more
    on_full: OnFull = "error"
    model: str = ""  # whose tokens they are
    summary: str | None = None  # of the turns that were dropped
    dropped: list[Turn] = []  # that may be recalled

    def past(self) -> Past:
        """A copy."""
        return Past(
            history=[(how, list(tokens)) for how, tokens in self.history],
            turns=list(self.turns),
            mixed=self.mixed,
            prelude=list(self.prelude),
            used=self.used,
            sealed=self.sealed,
            on_full=self.on_full,
            model=self.model,
            summary=self.summary,
            dropped=list(self.dropped),
        )

    def become(self, past: Past) -> None:
        for name, value in msgspec.structs.asdict(past.past()).items():
            setattr(self, name, value)

    @property
    def size(self) -> int:
        """About what it takes, in memory as in the journal."""
        turns = (*self.turns, *self.dropped, *self.prelude)
        characters = sum(len(turn.text) + len(turn.note) for turn in turns)
        return PAST + TOKEN * self.used + TURN * len(turns) + CHARACTER * characters

    @property
    def tokens(self) -> list[int]:
        return [token for _, tokens in self.history for token in tokens]

    def append(self, tokens: list[int], window: int) -> None:
        """Raises ContextFull where `tokens` do not fit, and changes nothing then."""
        if self.used + len(tokens) > window:
            raise ContextFull(
                f"{len(tokens)} tokens do not fit: {self.used} of {window} are used",
                "shorten it, open another context, or start with a larger --ctx",
            )
        self.used += len(tokens)
        if not self.sealed:
            self.history[-1][1].extend(tokens)
        elif tokens:
            self.history.append((PREFILLED, [*self._undecoded(), *tokens]))
            self.sealed = False

    def _undecoded(self) -> list[int]:
        if not self.history or self.history[-1][0] == PREFILLED:
            return []
        drawn = self.history[-1][1]
        last = drawn.pop()
        if not drawn:
            self.history.pop()
        return [last]

    def seal(self) -> None:
        """A generation starts: where the next prefill's chunks begin is decided by this."""
        self.sealed = True

    def draw(self, token: int) -> None:
        """A generation drew `token`."""
        if self.history[-1][0] == PREFILLED:
            self.history.append((DECODED, [token]))
        else:
            self.history[-1][1].append(token)
        self.used += 1

    def drop(self, turns: list[Turn]) -> None:
        """These may be recalled from now on; the oldest are forgotten where they are too many."""
        self.dropped += turns
        held = sum(len(turn.text) + TURN for turn in self.dropped)
        while held > DROPPED:
            held -= len(self.dropped.pop(0).text) + TURN

    def answered(self, text: str, drawn: int) -> None:
        """Make a turn of the newest tokens, which were generated, if this is a conversation."""
        if not self.turns:
            return
        if self.turns[-1].generated:
            before = self.turns.pop()
            text, drawn = before.text + text, before.drawn + drawn
        tokens = self.tokens[-drawn:] if CUT in text and drawn else []
        self.turns.append(Turn("assistant", text, generated=True, drawn=drawn, tokens=tokens))
