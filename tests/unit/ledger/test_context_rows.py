"""Rows of contexts, rebuilt from their changes, equal the context, and cost what has changed."""

from __future__ import annotations

from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aios.kernel.core.protocol import Halted, Out
from aios.kernel.ledger.context_rows import ContextRow, ContextRows, read_row
from aios.kernel.llm.context_state import Turn
from aios.kernel.llm.generation import GenerationState
from aios.syscalls.llm import Decoding

WINDOW = 10**6


class Kept:
    """A context's row in a journal without files, and how many bytes were written of it."""

    def __init__(self) -> None:
        self.items: list[bytes] = []
        self.bytes = 0
        self.row: ContextRow | None = ContextRow(
            owner=1, principal="/ann", name=None, checkpoints={}, own=False, labels=set(), work=None
        )
        self.rows = ContextRows(self, self.live)  # type: ignore[arg-type]
        self.reports: dict[int, list[Out | Halted]] = {}

    def live(self, _ctx: int) -> ContextRow | None:
        """Return the row with the lists that go on to change, as a context's do."""
        if self.row is None:
            return None
        fields = {name: getattr(self.row, name) for name in ContextRow.__struct_fields__}
        return ContextRow(**fields | {"labels": set(self.row.labels)})

    def put(self, _key: str, item: bytes | None) -> None:
        self.items = [] if item is None else [item]
        self.bytes += len(item or b"")

    def add(self, _key: str, item: bytes) -> None:
        self.items.append(item)
        self.bytes += len(item)

    def report(self, what: Out | Halted) -> None:
        self.reports.setdefault(7, []).append(what)

    def end_turn(self, *, changed: bool = True) -> int:
        """Write the row, and return how many bytes that took."""
        before = self.bytes
        self.rows.end_turn([7] if changed else [], self.reports)
        self.reports = {}
        return self.bytes - before


tokens = st.lists(st.integers(0, 5), max_size=60)
names = st.sampled_from("abc")
turns = st.lists(st.builds(Turn, st.sampled_from(["user", "assistant"]), st.text(max_size=9)))


class RowsMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.kept = Kept()
        assert self.kept.row is not None
        self.row = self.kept.row
        self.changed = True

    def change(self) -> ContextRow:
        self.changed = True
        return self.row

    @precondition(lambda self: self.row.work is None)
    @rule(new=tokens)
    def append(self, new: list[int]) -> None:
        self.change().append(new, WINDOW)

    @precondition(lambda self: self.row.work is None and self.row.history)
    @rule()
    def generate(self) -> None:
        self.change().seal()
        self.row.work = GenerationState(
            call=3, decoding=Decoding(), stream=True, prompt=2, began=0.0
        )

    @precondition(lambda self: self.row.work is not None)
    @rule(token=st.integers(0, 5), digest=st.binary(max_size=3))
    def draw(self, token: int, digest: bytes) -> None:
        out = Out(7, 1, 1, token, "t", digest=digest)
        assert self.row.work is not None
        self.kept.report(out)
        self.row.draw(token)
        self.row.work.take(out)

    @precondition(lambda self: self.row.work is not None)
    @rule()
    def preempt(self) -> None:
        assert self.row.work is not None
        self.kept.report(Halted(7, 1, "preempted", "held"))
        self.row.work.held = "held"
        self.row.work.switches += 1

    @precondition(lambda self: self.row.work is not None)
    @rule()
    def answer(self) -> None:
        assert self.row.work is not None
        self.change().answered(self.row.work.text, self.row.work.drawn)
        self.row.work = None

    @precondition(lambda self: self.row.work is None)
    @rule(new=turns, dropped=turns)
    def talk(self, new: list[Turn], dropped: list[Turn]) -> None:
        self.change().turns += new
        self.row.dropped += dropped

    @precondition(lambda self: self.row.work is None)
    @rule(new=tokens, first=st.integers(0, 3))
    def cut(self, new: list[int], first: int) -> None:
        row = self.change()
        row.turns = row.turns[first:]
        row.history = [("p", new)] if new else []
        row.used, row.sealed, row.summary = len(new), not new, "short"

    @precondition(lambda self: self.row.work is None)
    @rule(name=names)
    def checkpoint(self, name: str) -> None:
        self.change().checkpoints[name] = self.row.copy_state()

    @precondition(lambda self: self.row.work is None)
    @rule(name=names)
    def rollback(self, name: str) -> None:
        if name in self.row.checkpoints:
            self.change().become(self.row.checkpoints[name])

    @rule(label=names)
    def taint(self, label: str) -> None:
        self.change().labels.add(label)

    @rule()
    def end_turn(self) -> None:
        self.kept.end_turn(changed=self.changed)
        self.changed = False
        assert read_row(self.kept.items) == self.row

    @invariant()
    def what_is_known_is_what_is_written(self) -> None:
        known = self.kept.rows.written.get(7)
        if known is not None:
            written = read_row(self.kept.items)
            written.work = known.row.work  # that goes on to change
            assert known.row == written


TestRows = RowsMachine.TestCase


def a_long_one(kept: Kept) -> ContextRow:
    """Make a full context with checkpoints, whose owner asked to recall."""
    row = kept.row
    assert row is not None
    row.append(list(range(2000)), WINDOW)
    row.turns = [Turn("user", "a question " * 50) for _ in range(20)]
    row.dropped = [Turn("user", "of earlier " * 50) for _ in range(100)]
    for number in range(10):
        row.checkpoints[f"at {number}"] = row.copy_state()
    kept.end_turn()
    return row


def test_an_append_costs_what_it_adds() -> None:
    kept = Kept()
    row = a_long_one(kept)
    whole = kept.bytes
    for number in range(50):
        row.append([number] * 10, WINDOW)
        row.turns.append(Turn("user", "short"))
        row.checkpoints["at 3"] = row.copy_state()
        assert kept.end_turn() < whole / 100
    assert read_row(kept.items) == row


def test_going_back_and_forth_between_checkpoints_costs_little() -> None:
    kept = Kept()
    row = a_long_one(kept)
    row.history, row.used = [("p", list(range(3000, 5000)))], 2000
    row.checkpoints["other"] = row.copy_state()
    kept.end_turn()
    for name in ("at 1", "other", "at 2", "other"):
        row.become(row.checkpoints[name])
        assert kept.end_turn() < 500
    assert read_row(kept.items) == row


def test_all_that_is_written_is_in_proportion_to_what_changed() -> None:
    kept = Kept()
    row = a_long_one(kept)
    whole, changes = kept.bytes, 0
    for _ in range(3000):
        row.labels ^= {"x" * 100}  # which makes nothing longer
        changes += 150
        kept.end_turn()
    assert kept.bytes < whole + 3 * changes
    assert sum(map(len, kept.items)) < 3 * whole
    assert read_row(kept.items) == row


def test_a_context_that_is_gone_leaves_nothing(tmp_path: Path) -> None:
    kept = Kept()
    kept.end_turn()
    kept.row = None
    kept.end_turn()
    assert (kept.items, kept.rows.written) == ([], {})
    kept.end_turn()
