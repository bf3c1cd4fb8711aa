"""The cost of the worst of each system call for the kernel's loop, which serves everybody else
meanwhile: in steps, and bounded by the steps of a plain call."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from turns import Caller, TooMuch, Turns, counted
from worst import worst_of

from aios.kernel.access import approvals
from aios.kernel.access.grants import MAX_GRANTS
from aios.kernel.entry.followers import MAX_OF_PROCESS, MAX_OF_TREE
from aios.kernel.entry.trap import ENTRY_BYTES, MAX_WAITING_BYTES
from aios.kernel.sandbox.sandbox import real_shared_paths
from aios.kernel.storage import catalog, shares
from aios.kernel.storage import uploads as upload
from aios.kernel.storage.turns import MAX_WRITES
from aios.syscalls.rules import Manifest
from aios.syscalls.table import TABLE
from aios.syscalls.wire import DONE, FAILED

TIMES = 200  # the steps of a plain call
LIMIT = 10_000_000
OTHERWISE = {
    "hello": "it is said once",
    "kernel.stop": "it is the last",
    "proc.exit": "it is the caller's last",
    "sto.backup": "it writes to folders of this machine, in a thread",
}


@pytest.fixture(scope="module")
def turns(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Turns]:
    """A kernel in which something is there already."""
    made = Turns(tmp_path_factory.mktemp("turns"), ctx=1024)
    kernel = made.kernel
    real_shared_paths(kernel.config.path)  # they are found once, and not for each spawn
    kernel.contexts.model, kernel.contexts.window, kernel.contexts.vocab = "none", 1024, 1000
    person = made.person()
    for number in range(64):
        person.done("sto.put", path=f"notes/{number}", data=b"x" * 100)
        person.done("mem.put", items={f"k{number}": "x" * 100})
        person.done("msg.send", to=1, body=[number] * 100)
    above = 0
    for number in range(32):  # each below the one before, with the others beside
        one = made.agent(f"a{number}", parent=above)
        one.send("kernel.events", {"kinds": ["policy"]})
        one.send("sto.watch", {"prefix": "a"})
        one.send("llm.open", {})
        made.turn()
        above = one.pid
    yield made
    made.close()


@pytest.fixture
def caller(turns: Turns) -> Iterator[Caller]:
    """The one that is below all others. Nothing is left to do of what others began, which would be
    counted as its work."""
    turns.settle()
    above = max(process.pid for process in turns.kernel.table.live() if process.kind == "agent")
    one = turns.agent("evil", parent=above)
    yield one
    turns.kernel.lifecycle._end(turns.kernel.table.rows[one.pid], 0, "exit")
    turns.turn()


def steps_of(caller: Caller, name: str, args: Any, most: int) -> int:
    try:
        with counted(most) as steps:
            caller.send(name, args)
            caller.turns.loop._end_turn()
            return steps()
    except TooMuch:
        return most


@pytest.fixture(scope="module")
def plain(turns: Turns) -> int:
    """Steps of a call that does nothing much."""
    one = turns.agent("plain")
    one.done("proc.whoami")
    return steps_of(one, "proc.whoami", {}, LIMIT)


@pytest.mark.parametrize("name", sorted(TABLE.keys() - OTHERWISE.keys()))
def test_the_worst_of_a_call_takes_a_bounded_number_of_steps(
    turns: Turns, caller: Caller, plain: int, name: str
) -> None:
    for args in worst_of(TABLE[name].args):
        steps = steps_of(caller, name, args, LIMIT)
        assert steps < TIMES * plain, (steps / plain, str(args)[:300])
        caller.final(0)
        for call in list(turns.kernel.sessions.by_pid[caller.pid].calls.values()):
            call.cancel()
        for pending in list(turns.kernel.lifecycle.pending_spawns.values()):
            turns.kernel.lifecycle._end(pending.process, 0, "exit")
        turns.settle()


def test_what_may_be_said_in_one_turn_takes_as_long_as_its_calls(
    turns: Turns, caller: Caller, plain: int
) -> None:
    """Pipelined calls, as many as one turn takes of a caller."""
    args = {"to": 2, "body": "x"}
    one = steps_of(caller, "msg.send", args, LIMIT)
    with counted(LIMIT) as steps:
        for _ in range(64):
            caller.send("msg.send", args)
        turns.loop._end_turn()
        assert steps() < 64 * 2 * max(one, plain)


def all_steps(caller: Caller, name: str, **args: Any) -> int:
    """Return the steps of all turns until the final reply."""
    with counted(20 * LIMIT) as steps:
        caller.wait(caller.send(name, args))
        return steps()


def test_what_many_follow_costs_no_more_than_there_are_pieces(
    turns: Turns, caller: Caller, plain: int
) -> None:
    """As many watches as there may be, on a commit that changes as much as one can."""
    helpers = [turns.agent("helper", parent=caller.pid) for _ in range(5)]
    owner = turns.kernel.table.rows[caller.pid].principal
    caller.done("sto.share", prefix="b", to=f"{owner}/*", mode="read")
    sent = 0
    for one in (caller, *helpers):
        for _ in range(MAX_OF_PROCESS + 1):
            one.send("sto.watch", {"prefix": "b", "owner": owner})
            one.send("kernel.events", {"kinds": ["policy"]})
            sent += 1
    turns.turn()
    mine = [call for call, (other, _) in turns.kernel.storage.watches if other == owner]
    assert MAX_OF_PROCESS < len(mine) <= MAX_OF_TREE < sent
    batch = [{"path": f"b/{number}", "data": b""} for number in range(256)]
    assert all_steps(caller, "sto.batch", changes=batch) < 3 * TIMES * plain
    with counted(LIMIT) as steps:
        turns.kernel.events.publish("policy", "changed")
        assert steps() < TIMES * plain / 4
    for one in helpers:
        turns.kernel.lifecycle._end(turns.kernel.table.rows[one.pid], 0, "exit")


def test_an_end_is_told_to_those_who_wait_for_it_alone(
    turns: Turns, caller: Caller, plain: int
) -> None:
    rows = turns.kernel.table.rows
    children = [turns.agent(f"child{number}", parent=caller.pid) for number in range(256)]
    waits = [caller.send("proc.wait", {}) for _ in range(128)]
    waits += [caller.send("proc.wait", {"pid": child.pid}) for child in children[:128]]
    turns.turn()
    with counted(LIMIT) as steps:
        turns.kernel.lifecycle._end(rows[children[0].pid], 3, "exit")
        turns.turn()
        assert steps() < TIMES * plain / 4
    ended = {call_id for call_id, _, _ in turns.replies.pop(caller.route)}
    assert ended == {waits[0], waits[128]}
    for child in children[1:]:
        turns.kernel.lifecycle._end(rows[child.pid], 0, "exit")
    turns.turn()
    ended |= {call_id for call_id, _, _ in turns.replies.pop(caller.route)}
    assert ended == set(waits)
    assert turns.kernel.waiters.waiters == {}


def test_the_items_of_maps_that_wait_count_as_what_they_take(turns: Turns) -> None:
    """Else a tree could have forty times its bytes wait for the store, and others behind it."""
    one, most = turns.agent("one"), MAX_WAITING_BYTES // (1024 * ENTRY_BYTES)
    items = {str(number): 0 for number in range(1024)}
    sent = [one.send("mem.put", {"items": items}) for _ in range(most + 1)]
    turns.turn()
    refused = [call for call, kind, _ in turns.replies[one.route] if kind == FAILED]
    assert refused == sent[-len(refused) :]
    assert 1 <= len(refused) <= most // 10  # what a call takes besides counts as well
    other = turns.agent("other")
    other.done("mem.put", items={"a": 1})


def test_trees_take_turns_at_the_stores_writer(turns: Turns) -> None:
    """Who has many changes on their way delays others by as many as the writer has at once."""
    greedy, other = turns.agent("greedy"), turns.agent("other")
    changes = [{"path": "a", "data": b"x"}] * 20
    for _ in range(4 * MAX_WRITES):
        greedy.send("sto.batch", {"changes": changes})
    other.done("sto.put", path="b", data=b"x")
    ends = turns.replies[greedy.route]
    assert len(ends) <= 2 * MAX_WRITES  # those that had begun, and those beside the other's
    while turns.kernel.storage.turns.queue.begun:
        turns.turn(0.01)
    assert len(ends) == 4 * MAX_WRITES


def test_others_write_while_a_long_history_is_purged(
    turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "MAX_DROPPED_ROWS", 100)
    one, store = turns.agent("prolific"), turns.kernel.store
    for _ in range(4):
        one.done("sto.batch", changes=[{"path": "a", "data": b"x"}] * 250)
    commits = store.commits
    assert one.done("sto.purge", path="a")["version"] == 1001
    assert store.commits - commits >= 1000 // 100
    assert one.wait(one.send("sto.history", {"path": "a"}))[1]["code"] == "not_found"
    assert turns.kernel.storage.trees.total("/prolific") == catalog.ENTRY_BYTES
    assert one.done("sto.put", path="a", data=b"")["version"] == 1002


def test_a_purge_that_comes_again_drops_nothing_that_was_put_since(
    turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was done, and the kernel died before its caller heard of that."""
    monkeypatch.setattr(catalog, "MAX_DROPPED_ROWS", 2)
    one = turns.agent("one")
    one.done("sto.put", path="a", data=b"")
    purged = one.wait(one.send("sto.purge", {"path": "a"}, heard=False))
    for _ in range(6):
        one.wait(one.send("sto.put", {"path": "a", "data": b""}, heard=False))
    one.ids = itertools.count(2)
    assert one.wait(one.send("sto.purge", {"path": "a"}, heard=False)) == purged
    one.ids = itertools.count(20)
    assert len(one.done("sto.history", path="a")) == 6


def test_a_tree_has_so_many_shares_whatever_the_names_of_its_agents(
    turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each search of whom they are to reads them, also when their owners have ended."""
    monkeypatch.setattr(shares, "MAX_OF_TREE", 10)
    one, kept = turns.agent("generous"), turns.kernel.storage.shares
    for number in range(4):
        child = turns.agent(f"child{number}", parent=one.pid)
        ends = [child.wait(child.send("sto.share", {"prefix": f"{n}", "to": "/*"})) for n in "abc"]
        turns.kernel.lifecycle._end(turns.kernel.table.rows[child.pid], 0, "exit")
    assert [kind for kind, _ in ends] == [DONE, FAILED, FAILED]
    assert "/generous and all below it have 10 shares" in ends[1][1]["message"]
    other = turns.agent("other")
    other.done("sto.share", prefix="a", to="/*")
    other.done("sto.share", prefix="a", to="/*", mode="none")
    after_a_restart = shares.Shares(dict)
    turns.kernel.store.read(after_a_restart.load)
    assert after_a_restart.trees.held == kept.trees.held
    assert kept.trees.total("/generous") == 10


def test_a_spawn_whose_contexts_there_is_no_room_for_leaves_nothing(
    turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, table = turns.agent("lender"), turns.kernel.table
    ctx = one.done("llm.open")["ctx"]
    one.done("llm.append", ctx=ctx, tokens=[1, 2, 3])
    monkeypatch.setattr("aios.kernel.llm.contexts.MAX_TREE_BYTES", 1)
    before = set(table.rows)
    kind, body = one.wait(one.send("proc.spawn", {"program": "chat", "contexts": [ctx]}))
    assert (kind, body["code"]) == (FAILED, "limit")
    assert (set(table.rows), table.rows[one.pid].below) == (before, 0)
    assert turns.kernel.contexts.check(table.rows.values()) == []


def test_what_is_cut_off_is_told_of_the_last_that_had_the_os_pid(
    turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, os_pid = turns.kernel, 2**22
    told: list[int] = []
    monkeypatch.setattr(kernel.events, "note", lambda what, pid, _detail: told.append(pid)
                        if what == "process.refused" else None)  # fmt: skip
    for name in ("before", "now"):
        one = turns.agent(name)
        assert one.process is not None
        kernel.table.bind(one.process, os_pid)
        kernel.greeter.cut_off(os_pid, f"{name} says nonsense")
        kernel.lifecycle._end(one.process, 0, "exit")
        kernel.greeter.cut_off(os_pid, f"{name} said nonsense before its end")
        assert told[-2:] == [one.pid, one.pid]


def test_all_below_an_agent_end_with_it_and_start_nothing_more(turns: Turns) -> None:
    root = turns.agent("root")
    child = turns.agent("child", parent=root.pid)
    last = turns.agent("last", parent=child.pid)
    assert root.process and child.process and last.process
    turns.kernel.lifecycle._end(root.process, 0, "exit")
    for one in (child, last):
        assert one.process is not None and one.process.state == "ending"
        kind, body = one.wait(one.send("proc.spawn", {"program": "chat"}))
        assert (kind, body["code"]) == (FAILED, "access.denied")
    for process in (last.process, child.process):
        turns.kernel.lifecycle._end(process, 0, "exit")
        assert process.reason == "parent gone"


def test_who_was_above_an_agent_binds_it_when_that_is_gone(turns: Turns) -> None:
    """An agent elsewhere is forgotten as soon as its connection ends; what it has started has some
    time left."""
    kernel, tight = turns.kernel, Manifest(allow=["proc", "msg"])
    above = turns.agent("elsewhere", tight)
    assert above.process is not None
    above.process.kind = "remote"
    child = turns.agent("child", parent=above.pid)
    assert child.process is not None
    denied = child.wait(child.send("mem.put", {"items": {"a": 1}}))
    assert (denied[0], denied[1]["code"]) == (FAILED, "access.denied")
    kernel.lifecycle._end(above.process, 0, "closed its connection")
    assert above.pid not in kernel.table.rows and child.process.alive
    for name, args in (("mem.put", {"items": {"a": 1}}), ("mem.get", {"keys": ["a"]})):
        denied = child.wait(child.send(name, args))
        assert (denied[0], denied[1]["code"]) == (FAILED, "access.denied"), name
    kernel.lifecycle._end(child.process, 0, "exit")
    assert kernel.gate.layers.keys() <= kernel.table.rows.keys()


def test_what_a_tree_has_granted_is_bounded_and_goes_at_once(
    turns: Turns, caller: Caller, plain: int
) -> None:
    """Every call looks at what was granted."""
    helpers = [turns.agent("helper", parent=caller.pid) for _ in range(4)]
    for number in range(MAX_GRANTS + 8):
        helpers[number % 4].send("acc.grant", {"to": f"/other{number}", "right": "msg.send"})
        turns.turn()
    assert len(turns.kernel.grants.by_id) == MAX_GRANTS
    assert steps_of(caller, "acc.grant", {"to": "/x", "right": "msg.send"}, LIMIT) < 20 * plain
    for one in helpers:
        with counted(LIMIT) as steps:
            turns.kernel.lifecycle._end(turns.kernel.table.rows[one.pid], 0, "exit")
            turns.turn()
            assert steps() < 20 * plain
    assert turns.kernel.grants.by_id == {}


def test_the_rules_of_an_agent_are_kept_once_whatever_it_asks_for(turns: Turns) -> None:
    caller = turns.agent("ruled", Manifest(allow=["*", "* /other:**"]))
    for call in ("llm.contexts", "acc.grants"):
        caller.done(call)
    layers = turns.kernel.gate.layers[caller.pid]
    first, second = (layers[right][0][0] for right in ("llm", "acc.read"))
    assert [id(named) for named in first] == [id(named) for named in second]


def test_a_tree_has_so_many_uploads_and_no_more(
    turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "MAX_OF_TREE", 3)
    above, other = turns.agent("sender"), turns.agent("another")
    below = turns.agent("below", parent=above.pid)
    for caller in (above, below, below):
        caller.done("sto.upload", data=b"x", offset=0)
    kind, error = above.wait(above.send("sto.upload", {"data": b"x", "offset": 0}))
    assert (kind, error["code"]) == (FAILED, "limit")
    other.done("sto.upload", data=b"x", offset=0)


def test_a_tree_has_so_many_questions_unanswered_and_no_more(
    turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(approvals, "MAX_UNANSWERED", 2)
    asked, person = turns.kernel.approvals, turns.person()
    asked.timeout = 0.2
    asking = Manifest(allow=["*"], ask=["mem.write"])
    above = turns.agent("asker", asking)
    below, other = turns.agent("below", parent=above.pid), turns.agent("free", asking)
    put = {"items": {"a": 1}}
    for caller in (above, below):
        number = caller.send("mem.put", put)
        caller.done("call.cancel", call=number)  # whoever follows has read of it all the same
    kind, error = below.wait(below.send("mem.put", put))
    assert (kind, error["code"]) == (FAILED, "limit")
    other.send("mem.put", put)
    person.done("acc.answer", id=asked.last, answer="once")
    assert asked.unanswered.held == {"/asker": 1, "/asker/below": 1}
    while asked.unanswered.held:  # their time is over
        turns.turn(0.05)
    above.send("mem.put", put)
    person.done("acc.answer", id=asked.last, answer="deny")
    assert not asked.unanswered.held and not asked.pending
