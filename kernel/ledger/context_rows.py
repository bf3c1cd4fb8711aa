"""The rows of contexts in the journal. A row is written whole once, then its changes are added.

A change to a list says how many items stay and what follows them. A new checkpoint is written as
its difference from the context. So an append or a checkpoint costs what it adds. Once the changes
are longer than the row, the row is written whole again: all that is written for a context is at
most twice what changed, and what is read again at most twice what it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from ..core.protocol import Halted, Out, Segment
from ..journal import Journal
from ..llm.context_state import ContextState, Turn
from ..llm.generation import GenerationState

SLACK_BYTES = 4096  # of changes, before a short row is written whole again
NEAR_TOKENS = 64  # for a smaller change no checkpoint is compared
LIST_FIELDS = ("history", "turns", "dropped")
PAST_FIELDS = [name for name in ContextState.__struct_fields__ if name not in LIST_FIELDS]
ROW_FIELDS = ("owner", "principal", "name", "own", "labels")


class ContextRow(ContextState, kw_only=True):
    """A context as it is written, with its checkpoints and its generation."""

    owner: int  # 0: asleep
    principal: str = ""
    owner_name: str | UnsetType = UNSET  # in its place, in rows of before contexts had one
    name: str | None
    checkpoints: dict[str, ContextState]
    own: bool
    labels: set[str]
    work: GenerationState | None


TYPES = {field.name: field.type for field in msgspec.structs.fields(ContextRow)}


class Tail(Struct, array_like=True):
    """A list, compared with another: how many items stay, and the items that follow them."""

    stay: int
    turns: list[Turn]


class Difference(Struct, omit_defaults=True):
    """The difference between two pasts."""

    fields: dict[str, Any] = {}  # the fields that differ
    stay: int = 0  # segments of the history that stay
    cut: int = 0  # tokens that stay of the next segment; history[0] follows them
    history: list[Segment] = []
    turns: Tail | None = None
    dropped: Tail | None = None

    @property
    def weight(self) -> int:
        """The number of tokens and characters in it."""
        tails = [tail for tail in (self.turns, self.dropped) if tail is not None]
        texts = [turn.text + turn.note for tail in tails for turn in tail.turns]
        return sum(len(tokens) for _, tokens in self.history) + sum(map(len, texts))


class Change(Struct, tag_field="t", omit_defaults=True):
    """The difference between two rows of one context."""

    past: Difference
    since: str | None = None  # the checkpoint that `past` differs from; None: the row
    fields: dict[str, Any] = {}
    checkpoints: dict[str, Difference] = {}  # new ones, as differences from the row
    work: GenerationState | UnsetType | None = UNSET


_encode = msgspec.msgpack.Encoder().encode
_row = msgspec.msgpack.Decoder(ContextRow).decode
_note = msgspec.msgpack.Decoder(Out | Halted | Change).decode


def common_prefix(old: Sequence[Any], new: Sequence[Any]) -> int:
    """Count the items with which both lists begin."""
    low, high = 0, min(len(old), len(new))
    middle = high  # most often one list begins with the other
    while low < high:
        if old[low:middle] == new[low:middle]:
            low = middle
        else:
            high = middle - 1
        middle = (low + high + 1) // 2
    return low


def difference(old: ContextState, new: ContextState) -> Difference:
    """Return the difference that turns `old` into `new`."""
    stay = common_prefix(old.history, new.history)
    cut, history = 0, new.history[stay:]
    if history and stay < len(old.history) and old.history[stay][0] == history[0][0]:
        how, tokens = history[0]
        cut = common_prefix(old.history[stay][1], tokens)
        history = [(how, tokens[cut:]), *history[1:]]
    turns, dropped = _tail(old.turns, new.turns), _tail(old.dropped, new.dropped)
    return Difference(_others(PAST_FIELDS, old, new), stay, cut, history, turns, dropped)


def _others(names: Iterable[str], old: ContextState, new: ContextState) -> dict[str, Any]:
    values = {name: getattr(new, name) for name in names}
    return {name: value for name, value in values.items() if value != getattr(old, name)}


def _tail(old: list[Turn], new: list[Turn]) -> Tail | None:
    stay = common_prefix(old, new)
    return None if stay == len(old) == len(new) else Tail(stay, new[stay:])


def apply_difference(past: ContextState, change: Difference) -> None:
    """Turn a past into another. It has to share no list with anyone."""
    for name, value in change.fields.items():
        setattr(past, name, msgspec.convert(value, TYPES[name]))
    added = [(how, list(tokens)) for how, tokens in change.history]
    if change.cut:
        _, tokens = past.history[change.stay]
        tokens[change.cut :] = added.pop(0)[1]
        past.history[change.stay + 1 :] = added
    else:
        past.history[change.stay :] = added
    for turns, tail in ((past.turns, change.turns), (past.dropped, change.dropped)):
        if tail is not None:
            turns[tail.stay :] = tail.turns


def row_change(old: ContextRow, new: ContextRow) -> Change:
    """Return the change that turns the row `old` into `new`."""
    past, since = difference(old, new), None
    if past.weight > NEAR_TOKENS:  # it may have been rolled back
        for name, checkpoint in old.checkpoints.items():
            other = difference(checkpoint, new)
            if other.weight < past.weight:
                past, since = other, name
    return Change(
        past=past,
        since=since,
        fields=_others(ROW_FIELDS, old, new),
        checkpoints={
            name: difference(new, checkpoint)
            for name, checkpoint in new.checkpoints.items()
            if old.checkpoints.get(name) is not checkpoint
        },
        work=UNSET if old.work is None and new.work is None else new.work,
    )


def apply_change(row: ContextRow, change: Change) -> None:
    """Turn a row into another."""
    if change.since is not None:
        row.become(row.checkpoints[change.since])
    apply_difference(row, change.past)
    for name, value in change.fields.items():
        setattr(row, name, msgspec.convert(value, TYPES[name]))
    for name, other in change.checkpoints.items():
        row.checkpoints[name] = row.copy_state()
        apply_difference(row.checkpoints[name], other)
    if change.work is not UNSET:
        row.work = change.work


def read_row(items: Iterable[bytes]) -> ContextRow:
    """Rebuild a row from its items."""
    first, *notes = items
    row = _row(first)
    if row.owner_name:
        row.principal, row.owner_name = f"/{row.owner_name}", UNSET
    for note in map(_note, notes):
        if isinstance(note, Change):
            apply_change(row, note)
            continue
        if isinstance(note, Out) and note.token is not None:
            row.draw(note.token)
        if row.work is not None and isinstance(note, Out):
            row.work.take(note)
        elif row.work is not None and isinstance(note, Halted):
            row.work.held = note.text
            row.work.switches += 1
    return row


@dataclass
class WrittenContext:
    """A row as the journal has it."""

    row: ContextRow  # as in the journal, except `work`
    whole: int  # bytes of the whole row
    added: int = 0  # bytes of the changes added to it


class ContextRows:
    """Write rows when contexts change. `row_of` returns a context's present row, or None if it is
    gone.
    """

    def __init__(self, journal: Journal, row_of: Callable[[int], ContextRow | None]) -> None:
        self.journal, self.row_of = journal, row_of
        self.written: dict[int, WrittenContext] = {}

    def end_turn(self, changed: Iterable[int], reports: dict[int, list[Out | Halted]]) -> None:
        """Write the rows of changed contexts, and of the others what the core reports of them."""
        for ctx in changed:
            reports.pop(ctx, None)  # the row has it
            row = self.row_of(ctx)
            if row is None:
                self.journal.put(f"context/{ctx}", None)
                self.written.pop(ctx, None)
            else:
                self._write(ctx, row)
        for ctx, notes in reports.items():
            for note in notes:
                if not self._add(ctx, note):
                    break

    def _write(self, ctx: int, row: ContextRow) -> None:
        known = self.written.get(ctx)
        if known is None:
            self._write_whole(ctx, row)
            return
        change = row_change(known.row, row)
        if self._add(ctx, change):
            apply_change(known.row, change)
            known.row.checkpoints = dict(row.checkpoints)  # the same objects, compared by identity

    def _add(self, ctx: int, what: Out | Halted | Change) -> bool:
        """Add to a row; return False if the row was written whole instead, with all that has
        happened.
        """
        known, data = self.written[ctx], _encode(what)
        known.added += len(data)
        if known.added > known.whole + SLACK_BYTES:
            row = self.row_of(ctx)
            assert row is not None
            self._write_whole(ctx, row)
            return False
        self.journal.add(f"context/{ctx}", data)
        if isinstance(what, Out) and what.token is not None:
            known.row.draw(what.token)
        return True

    def _write_whole(self, ctx: int, row: ContextRow) -> None:
        data = _encode(row)
        self.journal.put(f"context/{ctx}", data)
        row.become(row.copy_state())  # copies of its lists
        row.checkpoints = dict(row.checkpoints)
        self.written[ctx] = WrittenContext(row, len(data))
