"""Room that all trees of agents share, of which none takes what the others need."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from turns import Caller, Turns

from aios.kernel.init.protocol import Started, StartFailed
from aios.kernel.memory.write_batch import MAX_TREE_BYTES, PendingPut
from aios.kernel.processes.starts import MAX_STARTS
from aios.kernel.storage import catalog
from aios.kernel.storage.turns import MAX_WRITES
from aios.syscalls.errors import Internal
from aios.syscalls.wire import DONE, FAILED


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


# --- puts of memory ---------------------------------------------------------------------------

LARGE = b"x" * 60_000  # a call holds 65,536 bytes
FULL = MAX_TREE_BYTES // len(LARGE)  # puts that fill what a tree may have with the store


def fill(caller: Caller, puts: int) -> list[int]:
    """Send puts of one key, numbered; none is answered yet."""
    return [
        caller.send("mem.put", {"items": {"last": number, "large": LARGE}})
        for number in range(puts)
    ]


def settled(turns: Turns) -> bool:
    batch = turns.kernel.memory.batch
    return not (batch.backlog or batch.held or batch.waiting or batch.batches)


def test_puts_beyond_a_part_of_the_store_wait_and_those_of_others_do_not(turns: Turns) -> None:
    batch, greedy, other = turns.kernel.memory.batch, turns.agent("greedy"), turns.agent("other")
    calls = fill(greedy, 3 * FULL)
    child = turns.agent("child", parent=greedy.pid)
    child.send("mem.put", {"items": {"small": 1}})
    assert set(batch.backlog) == {"/greedy"}
    assert len(batch.backlog["/greedy"]) > 2 * FULL
    assert MAX_TREE_BYTES <= batch.held["/greedy"] < MAX_TREE_BYTES + 2 * len(LARGE)
    call = other.send("mem.put", {"items": {"mine": 1}})
    assert set(batch.backlog) == {"/greedy"}
    assert other.wait(call)[0] == DONE
    assert greedy.wait(calls[-1])[0] == DONE
    turns.settle()
    assert settled(turns)


def test_small_items_count_as_the_work_that_they_are(turns: Turns) -> None:
    batch, greedy = turns.kernel.memory.batch, turns.agent("greedy")
    items = {str(number): 0 for number in range(1024)}
    for _ in range(16):
        greedy.send("mem.put", {"items": items})
    assert len(batch.backlog["/greedy"]) >= 7


def test_what_waits_in_a_backlog_keeps_its_order(turns: Turns) -> None:
    batch, greedy = turns.kernel.memory.batch, turns.agent("greedy")
    fill(greedy, 2 * FULL)
    first = greedy.send("mem.get", {"keys": ["last"]})
    deleted = greedy.send("mem.delete", {"keys": ["last"]})
    second = greedy.send("mem.get", {"keys": ["last"]})
    again = greedy.send("mem.put", {"items": {"last": "new"}, "ack": "accepted"})
    third = greedy.send("mem.get", {"keys": ["last"]})
    assert batch.backlog
    ends: dict[int, object] = {}
    while len(ends) < 2 * FULL + 5:
        turns.turn(0.01)
        for number, _, body in turns.replies.pop(greedy.route, []):
            ends[number] = body
    assert ends[first] == {"items": {"last": 2 * FULL - 1}, "rest": []}
    assert ends[deleted] == {"count": 1}
    assert ends[second] == {"items": {}, "rest": []}
    assert again in ends
    assert ends[third] == {"items": {"last": "new"}, "rest": []}
    assert settled(turns)


def test_a_call_in_a_backlog_can_be_cancelled(turns: Turns) -> None:
    greedy = turns.agent("greedy")
    calls = fill(greedy, 2 * FULL)
    waiting = greedy.send("mem.get", {"keys": ["last"]})
    greedy.send("call.cancel", {"call": waiting})
    kind, body = greedy.wait(waiting)
    assert (kind, body["code"]) == (FAILED, "call.cancelled")
    assert greedy.wait(calls[-1])[0] == DONE
    turns.settle()
    assert settled(turns)


def test_with_an_agent_its_backlog_ends(turns: Turns) -> None:
    batch, greedy = turns.kernel.memory.batch, turns.agent("greedy")
    child = turns.agent("child", parent=greedy.pid)
    fill(child, 3 * FULL)
    child.send("mem.get", {"keys": ["last"]})
    call = greedy.send("mem.put", {"items": {"mine": 1}})
    end(turns, child)
    assert len(batch.backlog.get("/greedy", ())) <= 1
    assert greedy.wait(call)[0] == DONE
    turns.settle()
    assert settled(turns)
    assert turns.kernel.owners.check() == []


def test_what_was_acknowledged_is_never_in_a_backlog(turns: Turns) -> None:
    greedy = turns.agent("greedy")
    for number in range(2 * FULL):
        greedy.send("mem.put", {"items": {str(number): LARGE}, "ack": "accepted"})
    waits = list(turns.kernel.memory.batch.backlog["/greedy"])
    assert waits
    assert not any(put.early for put in waits if isinstance(put, PendingPut))
