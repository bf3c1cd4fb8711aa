"""Room that all trees of agents share, of which none takes what the others need."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from turns import Caller, Turns

from aios.kernel.init.protocol import Started, StartFailed
from aios.kernel.processes.starts import MAX_STARTS
from aios.kernel.storage import catalog
from aios.kernel.storage.turns import MAX_WRITES
from aios.syscalls.errors import Internal


@pytest.fixture
def turns(tmp_path: Path) -> Iterator[Turns]:
    made = Turns(tmp_path, logs=4)
    yield made
    made.close()


def end(turns: Turns, caller: Caller) -> None:
    turns.kernel.lifecycle._end(turns.kernel.table.rows[caller.pid], 0, "exit")
    turns.turn()


def test_logs_of_ended_agents_push_out_those_of_their_own_tree(turns: Turns) -> None:
    """Else one that starts and ends children without end would have the logs of all others go."""
    person, receiver = turns.person(), turns.agent("receiver")
    quiet, busy = turns.agent("quiet"), turns.agent("busy")
    quiet.done("msg.send", to=receiver.pid, body="kept")
    end(turns, quiet)
    for number in range(6):
        child = turns.agent(f"child{number}", parent=busy.pid)
        child.done("msg.send", to=receiver.pid, body=number)
        receiver.done("msg.recv")
        end(turns, child)
    assert person.done("mem.log", principal="/quiet")["entries"][0]["body"] == "kept"
    assert person.done("mem.log", principal="/busy/child5")["entries"]
    gone = person.wait(person.send("mem.log", {"principal": "/busy/child2"}))[1]
    assert gone["code"] == "not_found"
    assert len(turns.kernel.owners.check()) == 0


def test_trees_take_turns_at_the_starts_of_processes(turns: Turns) -> None:
    """init forks one after the other: else many starts of one are before that of another."""
    lifecycle, greedy, other = turns.kernel.lifecycle, turns.agent("greedy"), turns.agent("other")
    for _ in range(4 * MAX_STARTS):
        greedy.send("proc.spawn", {"program": "echo"})
    call = other.send("proc.spawn", {"program": "echo"})
    begun = lifecycle.starts.queue.begun
    first, last = min(begun), max(lifecycle.pending_spawns)
    assert len(begun) == MAX_STARTS and last not in begun
    lifecycle.started(Started(first, first))
    lifecycle.start_failed(StartFailed(first + 1, Internal("no memory").to_wire()))
    assert last in begun and len(begun) == MAX_STARTS
    lifecycle.started(Started(last, last))
    assert other.wait(call)[1] == {"pid": last}
    while begun:
        lifecycle.started(Started(min(begun), min(begun)))
    assert lifecycle.starts.frames == {}


def test_trees_take_turns_at_the_parts_of_purges(
    turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who purges many long histories at once delays others by as many parts as have begun."""
    monkeypatch.setattr(catalog, "MAX_DROPPED_ROWS", 2)
    greedy, other = turns.agent("greedy"), turns.agent("other")
    greedy.done("sto.batch", changes=[{"path": "a", "data": b"x"}] * 250)
    for _ in range(2 * MAX_WRITES):
        greedy.send("sto.purge", {"path": "a"})
    assert len(turns.kernel.storage.turns.waiting) == MAX_WRITES
    other.done("sto.put", path="b", data=b"x")
