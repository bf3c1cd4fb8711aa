"""The content of a context: its turns, and its tokens by how they entered. Pure."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from aios.syscalls.errors import ContextFull
from aios.syscalls.llm import OnFull

from ..core.protocol import DECODED, PREFILLED, Segment

CUT = "\N{REPLACEMENT CHARACTER}"  # in the place of bytes that are no whole character
MAX_DROPPED_CHARS = 1 << 17  # of dropped turns that may be recalled; TURN_BYTES more for each
STATE_BYTES, TURN_BYTES, TOKEN_BYTES, CHAR_BYTES = 512, 64, 16, 2  # that each takes, about


class Turn(Struct):
    """A message that is in a context, or was."""

    role: str
    text: str
    note: str = ""  # recalled for it: in the context, in front of the text
    generated: bool = False
    drawn: int = 0  # tokens of a generated one
    tokens: list[int] = []  # those drawn, where a character is cut in the text

    @property
    def content(self) -> str | None:
        """The text for the chat template; None where the tokens are in the context already."""
        return None if self.generated else self.note + self.text


class ContextState(Struct, kw_only=True):
    """The content of a context, which a checkpoint remembers and a fork begins with."""

    history: list[Segment] = []
    turns: list[Turn] = []
    mixed: bool = False  # it holds text or tokens that are in no turn
    prelude: list[Turn] = []  # system text, not entered yet
    used: int = 0
    sealed: bool = True  # the last segment has been computed with: it grows no more
    on_full: OnFull = "error"
    model: str = ""  # the id of the model that the tokens are of
    summary: str | None = None  # of the turns that were dropped
    dropped: list[Turn] = []  # turns that may be recalled

    def copy_state(self) -> ContextState:
        """Return a copy that shares no list."""
        copy = ContextState(
            **{name: getattr(self, name) for name in ContextState.__struct_fields__}
        )
        copy.history = [(how, list(tokens)) for how, tokens in self.history]
        copy.turns, copy.prelude = list(self.turns), list(self.prelude)
        copy.dropped = list(self.dropped)
        return copy

    def become(self, state: ContextState) -> None:
        """Take over the content of another state."""
        for name, value in msgspec.structs.asdict(state.copy_state()).items():
            setattr(self, name, value)

    @property
    def size(self) -> int:
        """The bytes that it takes in memory or in the journal, about."""
        turns = (*self.turns, *self.dropped, *self.prelude)
        characters = sum(len(turn.text) + len(turn.note) for turn in turns)
        return (
            STATE_BYTES
            + TOKEN_BYTES * self.used
            + TURN_BYTES * len(turns)
            + CHAR_BYTES * characters
        )

    @property
    def tokens(self) -> list[int]:
        return [token for _, tokens in self.history for token in tokens]

    def append(self, tokens: list[int], window: int) -> None:
        """Enter tokens to be prefilled. Raise ContextFull, with nothing changed, where they do not
        fit."""
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
        """Remove and return the token that was drawn last, which was never computed."""
        if not self.history or self.history[-1][0] == PREFILLED:
            return []
        drawn = self.history[-1][1]
        last = drawn.pop()
        if not drawn:
            self.history.pop()
        return [last]

    def seal(self) -> None:
        """End the last segment, as a generation starts: the next prefill's chunks begin anew."""
        self.sealed = True

    def draw(self, token: int) -> None:
        """Enter a token that a generation has drawn."""
        if self.history[-1][0] == PREFILLED:
            self.history.append((DECODED, [token]))
        else:
            self.history[-1][1].append(token)
        self.used += 1

    def drop(self, turns: list[Turn]) -> None:
        """Keep turns that have left, to be recalled; forget the oldest of too many."""
        self.dropped += turns
        held = sum(len(turn.text) + TURN_BYTES for turn in self.dropped)
        while held > MAX_DROPPED_CHARS:
            held -= len(self.dropped.pop(0).text) + TURN_BYTES

    def answered(self, text: str, drawn: int) -> None:
        """Make a turn of the newest tokens, which were generated, if this is a conversation."""
        if not self.turns:
            return
        if self.turns[-1].generated:
            before = self.turns.pop()
            text, drawn = before.text + text, before.drawn + drawn
        tokens = self.tokens[-drawn:] if CUT in text and drawn else []
        self.turns.append(Turn("assistant", text, generated=True, drawn=drawn, tokens=tokens))
