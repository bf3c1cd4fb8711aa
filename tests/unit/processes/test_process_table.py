"""The process table against a plain model of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aios.kernel.process import MOVES, IllegalMove, Process, ProcessTable, QueuedMessage, named_by
from aios.syscalls.base import Name
from aios.syscalls.errors import LimitReached, NotFound
from aios.syscalls.proc import Kind, Limits, ProcessState

STATES: tuple[ProcessState, ...] = get_args(ProcessState)
MAX_AGENTS, MAX_CLIENTS, MAX_DEAD, MAX_CHILDREN = 7, 2, 3, 2


def new_table() -> ProcessTable:
    return ProcessTable(max_agents=4, max_clients=2, max_dead=2)


def add(table: ProcessTable, parent: int = 0, name: str = "x") -> Process:
    return table.add("agent", name, parent, 0, Limits(), 0.0)


@pytest.mark.parametrize("before", STATES)
@pytest.mark.parametrize("after", STATES)
def test_only_the_moves_of_the_table_are_made(before: ProcessState, after: ProcessState) -> None:
    process = Process(1, 0, "x", "agent", 0, 0, Limits(), 0.0, before)
    if after in MOVES[before]:
        process.move(after)
        assert (process.state, process.path) == (after, [before])
    else:
        with pytest.raises(IllegalMove, match=f"{before} to {after}"):
            process.move(after)
        assert process.state == before


def test_the_dead_stay_dead_and_nobody_comes_back_from_ending() -> None:
    assert MOVES["zombie"] == frozenset()
    assert MOVES["ending"] == {"zombie"}
    assert all("zombie" in after for state, after in MOVES.items() if state != "zombie")


def test_nobody_pushes_out_the_ends_of_others() -> None:
    table = ProcessTable(max_agents=9, max_clients=2, max_dead=4)
    other = add(table, name="other")
    table.end(other, 0, "exit", 1.0)
    many = add(table, name="many")
    for number in range(9):
        table.end(add(table, many.pid, name=f"child{number}"), 0, "exit", 2.0 + number)
    assert [pid for pid, row in table.rows.items() if not row.alive] == [other.pid, 9, 10, 11]


def test_it_is_known_in_which_states_a_process_was_last() -> None:
    process = add(new_table())
    process.move("running")
    for _ in range(100):  # as its parent can have it
        process.move("stopped")
        process.move("running")
    assert process.path[-3:] == ["stopped", "running", "stopped"]
    assert len(process.path) == 16


def test_a_name_means_the_oldest_live_process_that_has_it() -> None:
    table = new_table()
    first, second = add(table, name="twin"), add(table, name="twin")
    assert table.find("twin") is first
    table.end(first, 0, "exit", 1.0)
    assert table.find("twin") is second
    assert table.find(second.pid) is second
    for gone in (first.pid, 99, "nobody"):
        with pytest.raises(NotFound):
            table.find(gone)
    with pytest.raises(NotFound):
        table.get(99)


def test_a_name_is_what_its_sender_means_by_it() -> None:
    table = ProcessTable(max_agents=9, max_clients=2, max_dead=2)
    ann, eve = add(table, name="ann"), add(table, name="eve")
    fake = add(table, eve.pid, "bank")  # older than the one that persons mean
    bank = add(table, name="bank")
    own = add(table, ann.pid, "bank")
    kid = add(table, own.pid, "kid")
    client = table.add("client", "test", 0, 0, Limits(), 0.0)
    for caller, found in (
        ("", bank), ("/bank", bank), ("/carl", bank), ("/ann", own), ("/ann/x", own),
        ("/ann/bank/kid", own), ("/eve", fake),
    ):  # fmt: skip
        assert table.find("bank", caller) is found, caller
    assert table.find("kid", "/ann/bank") is kid
    for caller in ("", "/ann", "/eve"):
        assert table.find("/ann/bank", caller) is own
        assert table.find("test", caller) is client
        with pytest.raises(NotFound):
            table.find("kid", caller)
        with pytest.raises(NotFound):
            table.find("/test", caller)


@pytest.mark.parametrize("kind", ["agent", "remote"])
def test_a_tree_leaves_room_for_processes_of_others(kind: Kind) -> None:
    """An agent has children without end; or one elsewhere makes many connections."""
    table = ProcessTable(max_agents=8, max_clients=8, max_dead=2)
    top = table.add(kind, "many", 0, 0, Limits(), 0.0)
    above = top.pid if kind == "agent" else 0

    def fill(name: str, above: int) -> int:
        for count in range(9):
            try:
                table.add(kind, name, above, 0, Limits(), 0.0)
            except LimitReached as error:
                assert "the rest is for others" in str(error)
                return count
        raise AssertionError("no limit")

    assert fill("many", above) == 3
    other = table.add(kind, "other", 0, 0, Limits(), 0.0)
    assert fill("other", other.pid if kind == "agent" else 0) == 1
    if kind == "agent":
        add(table, name="many")  # of a person


def test_workers_of_tools_are_in_nobodys_way() -> None:
    table = ProcessTable(max_agents=9, max_clients=2, max_dead=2)
    worker = table.add("agent", "x", 0, 0, Limits(), 0.0, tool="x")
    agent = add(table)
    assert table.find("x") is agent
    assert table.find(worker.pid) is worker
    agent.limits = Limits(children=0)
    table.add("agent", "x", agent.pid, 0, Limits(), 0.0, tool="x")
    with pytest.raises(LimitReached):
        add(table, agent.pid)
    table.end(agent, 0, "exit", 1.0)
    for ended in range(2, 9):
        worker = table.add("agent", "x", 0, 0, Limits(), 0.0, tool="x")
        table.end(worker, 0, "done", float(ended))
    assert table.get(agent.pid).code == 0  # more have ended than are remembered


def test_what_a_process_reports_of_its_end_is_kept() -> None:
    table = new_table()
    process = add(table)
    process.reported, process.code = True, 3
    process.reason = "limit wall"
    table.end(process, 137, "signal KILL", 5.0)
    assert (process.code, process.reason) == (3, "limit wall")
    assert process.info(99.0).age == 5.0


def test_ending_frees_the_mailbox_and_the_os_pid() -> None:
    table = new_table()
    process = add(table)
    table.bind(process, 4242)
    process.mailbox[1] = QueuedMessage(sender=1)
    table.end(process, 0, "exit", 1.0)
    assert not process.mailbox
    assert 4242 not in table.by_os_pid
    assert table.check() == []


def _lose_the_os_pid(table: ProcessTable) -> None:
    table.by_os_pid.clear()


def _adopt_nobody(table: ProcessTable) -> None:
    table.rows[1].children.add(99)


def _rob_the_parent(table: ProcessTable) -> None:
    table.rows[2].parent = 0


def _swap_the_rows(table: ProcessTable) -> None:
    table.rows[3] = table.rows.pop(1)


def _leave_a_context_to_the_dead(table: ProcessTable) -> None:
    dead = add(table)
    table.end(dead, 0, "exit", 1.0)
    dead.contexts.add(5)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (_lose_the_os_pid, "process 2 is not found by its OS pid 77"),
        (_adopt_nobody, "process 1 lists 99, not a child of it"),
        (_rob_the_parent, "process 1 lists 2, not a child of it"),
        (_swap_the_rows, "row 3 holds process 1"),
        (_leave_a_context_to_the_dead, "dead process 3 holds messages or contexts"),
    ],
)
def test_check_sees_what_is_wrong(damage: Callable[[ProcessTable], None], problem: str) -> None:
    table = new_table()
    table.bind(add(table, add(table).pid), 77)
    assert table.check() == []
    damage(table)
    assert problem in table.check()


@dataclass
class Row:
    kind: Kind
    parent: int
    state: ProcessState
    os_pid: int = 0


class Table(RuleBasedStateMachine):
    """Processes come, move and go in any order; `rows` is what there should be."""

    def __init__(self) -> None:
        super().__init__()
        self.table = ProcessTable(MAX_AGENTS, MAX_CLIENTS, MAX_DEAD)
        self.rows: dict[int, Row] = {}
        self.parents = {0: 0}  # of all that ever were
        self.last = 0

    def pick(self, n: int) -> int:
        """The pid of some row; 0, which has none, if there are no rows."""
        return list(self.rows)[n % len(self.rows)] if self.rows else 0

    def children(self, pid: int, *, alive: bool) -> list[int]:
        return [
            child
            for child, row in self.rows.items()
            if row.parent == pid and (row.state != "zombie") == alive
        ]

    def above(self, pid: int) -> list[int]:
        """Itself and those above it, also where these are forgotten."""
        return [pid, *self.above(self.parents[pid])] if pid else []

    def below(self, pid: int) -> int:
        alive = [each for each, row in self.rows.items() if row.state != "zombie"]
        return sum(pid in self.above(each)[1:] for each in alive)

    @rule(kind=st.sampled_from(["agent", "agent", "client"]), n=st.integers(0, 20))
    def add(self, kind: Kind, n: int) -> None:
        parent = self.pick(n) if kind == "agent" and n % 3 else 0
        most = MAX_AGENTS if kind == "agent" else MAX_CLIENTS
        alive = sum(row.kind == kind and row.state != "zombie" for row in self.rows.values())
        full = alive >= most or any(self.below(pid) >= MAX_CHILDREN for pid in self.above(parent))
        full = full or (parent > 0 and 2 * alive >= most)  # all of one name are one tree
        limits = Limits(children=MAX_CHILDREN)
        if full:
            with pytest.raises(LimitReached):
                self.table.add(kind, "x", parent, 0, limits, 0.0)
            return
        process = self.table.add(kind, "x", parent, 0, limits, 0.0)
        self.last += 1
        assert process.pid == self.last  # pids are never used again
        state: ProcessState = "starting" if kind == "agent" else "running"
        self.rows[self.last] = Row(kind, parent, state)
        self.parents[self.last] = parent

    @rule(n=st.integers(0, 20))
    def bind(self, n: int) -> None:
        row = self.rows.get(self.pick(n))
        if row is not None and row.state != "zombie" and not row.os_pid:
            row.os_pid = 1000 + self.pick(n)
            self.table.bind(self.table.get(self.pick(n)), row.os_pid)

    @rule(n=st.integers(0, 20), state=st.sampled_from(STATES[:-1]))
    def move(self, n: int, state: ProcessState) -> None:
        row = self.rows.get(self.pick(n))
        if row is None:
            return
        process = self.table.get(self.pick(n))
        if state in MOVES[row.state]:
            process.move(state)
            row.state = state
        else:
            with pytest.raises(IllegalMove):
                process.move(state)

    @rule(n=st.integers(0, 20))
    def end(self, n: int) -> None:
        pid = self.pick(n)
        if pid == 0:
            return
        if self.rows[pid].state == "zombie":
            with pytest.raises(IllegalMove):
                self.table.end(self.table.get(pid), 0, "exit", 1.0)
            return
        left = self.table.end(self.table.get(pid), 0, "exit", 1.0)
        assert sorted(child.pid for child in left) == self.children(pid, alive=True)
        self.rows[pid].state = "zombie"
        for child in self.children(pid, alive=False):
            del self.rows[child]
        if self.rows[pid].kind == "client":
            del self.rows[pid]
        dead = [pid for pid, row in self.rows.items() if row.state == "zombie"]
        for pid in dead[: max(0, len(dead) - MAX_DEAD)]:
            del self.rows[pid]

    @invariant()
    def the_rows_are_those_of_the_model(self) -> None:
        found = {
            pid: Row(p.kind, p.parent, p.state, p.os_pid) for pid, p in self.table.rows.items()
        }
        assert found == self.rows

    @invariant()
    def families_are_known_from_both_ends(self) -> None:
        for pid, process in self.table.rows.items():
            every = [*self.children(pid, alive=True), *self.children(pid, alive=False)]
            assert process.children == set(every)

    @invariant()
    def ancestors_are_those_that_the_chain_of_parents_names(self) -> None:
        for process in self.table.rows.values():
            found = {pid for pid in self.rows if self.table.is_above(pid, process)}
            assert found == self.rows.keys() & self.above(process.pid)[1:]

    @invariant()
    def only_the_living_have_an_os_pid_to_be_found_by(self) -> None:
        bound = {row.os_pid: pid for pid, row in self.rows.items() if row.state != "zombie"}
        bound.pop(0, None)
        assert {os_pid: p.pid for os_pid, p in self.table.by_os_pid.items()} == bound

    @invariant()
    def nothing_is_wrong(self) -> None:
        assert self.table.check() == []
        assert len([row for row in self.rows.values() if row.state == "zombie"]) <= MAX_DEAD


TestTable = Table.TestCase


@pytest.mark.parametrize(
    ("program", "name"),
    [("/x/scout.py", "scout"), ("chat", "chat"), ("/x/my notes.py", "my-notes"),
     ("/x/a:b.py", "a-b"), ("/x/*.py", "-"), ("/x/...py", "agent"), ("/", "agent")],
)  # fmt: skip
def test_a_name_out_of_a_program_is_one_of_those_that_can_be_given(program: str, name: str) -> None:
    """In rules ":" ends the owner, and "*" is any."""
    assert named_by(program) == name
    assert msgspec.convert(name, Name) == name
