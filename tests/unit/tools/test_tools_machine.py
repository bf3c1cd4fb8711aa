"""The tool manager, alone, against all that can happen to calls, workers, callers and the kernel,
in any order: each call has one final reply, locks and limits hold for what processes really do, no
worker stays that nobody needs, and whatever waits gets its turn."""

from __future__ import annotations

import heapq
import itertools
import tracemalloc
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar
from unittest.mock import Mock

import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aios.kernel.lib.coroutine import Driver
from aios.kernel.process import Process, ProcessTable
from aios.kernel.tools.jobs import JobRow
from aios.kernel.tools.manager import Tools
from aios.kernel.tools.toolbox import Box
from aios.syscalls import tool as m
from aios.syscalls.errors import Cancelled, Denied, NotFound, ProcessGone, ToolUnknown
from aios.syscalls.proc import Limits

MOST, AGENTS, CALLERS = 3, 9, 3


def spec(name: str, **fields: Any) -> m.Spec:
    return m.Spec(name=name, description="", schema={}, **fields)


class Changing(Box, frozen=True):
    """One whose file changes."""

    changes: ClassVar[int] = 0

    def stamp(self) -> int:
        return Changing.changes


BOXES = {
    "lab": Changing(program="lab", workers=2, idle=300),
    "new": Box(program="new", workers=2, fresh=True),
    "mcp": Box(program="mcp", shared=True),
}
SPECS = {
    each.name: each
    for each in (
        spec("lab.add", limit=2), spec("lab.alone", exclusive="x"), spec("lab.effect", effect=True),
        spec("new.plain", limit=1), spec("new.alone", exclusive="x", effect=True),
        spec("mcp.plain", limit=2), spec("mcp.effect", effect=True, exclusive="x"),
    )
}  # fmt: skip


class Timer:
    def __init__(self, run: Callable[[], None]) -> None:
        self.run, self.cancelled = run, False

    def cancel(self) -> None:
        self.cancelled = True


class Call:
    """As much of a system call as the tool manager uses."""

    count = itertools.count(1)

    def __init__(self, process: Process, args: m.CallTool | None = None) -> None:
        self.process, self.args, self.id = process, args, next(Call.count)
        self.pieces: list[m.Job] = []
        self.ends: list[Any] = []
        self.driver: Driver | None = None

    @property
    def ended(self) -> bool:
        return bool(self.ends)

    def piece(self, body: Any, *, durable: bool = False, keep: bool = True) -> None:
        assert not self.ended or not isinstance(body, m.Job)
        self.pieces.append(body)

    def done(self, body: Any) -> None:
        if not self.ended:
            self.ends.append(body)
            if self.driver is not None:
                self.driver.stop()

    fail = done

    def run(self, work: Awaitable[Any]) -> None:
        self.driver = Driver(work, self.done, self.fail)
        self.driver.go_on()

    def cancel(self) -> None:
        wait = None if self.driver is None else self.driver.wait
        if wait is not None and wait.cancel is not None:
            wait.cancel()
        else:
            self.fail(Cancelled("cancelled"))


class Gate:
    def taint(self, process: Process, labels: set[str]) -> None:
        process.labels |= labels

    def may_ever(self, process: Process, right: str, names: list[str]) -> list[str]:
        return names


class World(RuleBasedStateMachine):
    """The world around a tool manager: processes, time, a journal."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.count = 0.0, itertools.count()
        Changing.changes = 0
        self.table = ProcessTable(AGENTS, 100, 10)
        self.journal: dict[str, bytes] = {}
        self.calls: list[Call] = []  # all that have no end yet
        self.serving: dict[int, Call] = {}
        self.doing: dict[int, dict[int, m.Spec]] = {}  # what processes do, by pid and job
        self.heard: dict[int, int] = {}  # pieces that a worker has taken
        self.deaf: set[int] = set()  # those that do not say a word any more
        self.callers: list[Process] = []
        for number in range(CALLERS):
            self._add_caller("agent" if number else "client")
        self._boot()

    def _boot(self) -> None:
        self.timers: list[tuple[float, int, Timer]] = []
        self.tools = Tools(BOXES, MOST, self, Gate(), self.after, self.put_row)  # type: ignore[arg-type]

    def _add_caller(self, kind: Any) -> None:
        process = self.table.add(kind, kind, 0, 0, Limits(), self.now, 1)
        if kind == "agent":
            process.move("running")
        self.callers.append(process)

    # --- what the manager asks of the world -------------------------------------------------------

    def start_worker(self, name: str, box: Box, caller: Process | None) -> Process:
        process = self.table.add("agent", name, 0, 0, Limits(), self.now, tool=name)
        process.principal = caller.principal if caller is not None else f"/@{name}"
        self.doing[process.pid] = {}
        return process

    def end_now(self, process: Process, reason: str) -> None:
        if reason in ("idle", "makes room", "its toolbox has changed"):
            assert not self.tools.workers[process.pid].jobs
        if process.alive and process.state != "ending":
            process.reason = reason
            process.move("ending")

    def after(self, seconds: float, run: Callable[[], None]) -> Timer:
        timer = Timer(run)
        heapq.heappush(self.timers, (self.now + seconds, next(self.count), timer))
        return timer

    def put_row(self, key: str, row: bytes | None) -> None:
        if row is None:
            del self.journal[key]
        else:
            assert key not in self.journal
            self.journal[key] = row

    # --- what happens -----------------------------------------------------------------------------

    def workers(self, *states: str) -> list[Process]:
        return [p for p in self.table.live() if p.tool and p.state in states]

    @rule(who=st.integers(0, CALLERS - 1), name=st.sampled_from([*SPECS, "lab.none", "no.box"]),
          timeout=st.sampled_from([None, None, 3.0, 1000.0]))  # fmt: skip
    def call(self, who: int, name: str, timeout: float | None) -> None:
        self._call(Call(self.callers[who], m.CallTool(name=name, timeout=timeout)))

    @rule(name=st.sampled_from(sorted(SPECS)))
    def all_call(self, name: str) -> None:
        for who in (0, 1, 2, 0):
            self.call(who, name, None)

    def _call(self, call: Call) -> None:
        self.calls.append(call)
        assert call.args is not None
        call.run(self.tools.call(call, call.args))  # type: ignore[arg-type]

    @rule()
    def a_file_changes(self) -> None:
        Changing.changes += 1

    @rule(who=st.integers(0, CALLERS - 1))
    def list_(self, who: int) -> None:
        call = Call(self.callers[who])
        self.calls.append(call)
        call.run(self.tools.tell(call))  # type: ignore[arg-type]

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.calls)).cancel()

    @precondition(lambda self: self.workers("starting"))
    @rule(data=st.data(), at_once=st.integers(1, 3))
    def serve(self, data: st.DataObject, at_once: int) -> None:
        self._serve(data.draw(st.sampled_from(self.workers("starting"))), at_once)

    @rule()
    def workers_come_and_go(self) -> None:
        for process in self.workers("ending"):
            self._end(process)
        for process in self.workers("starting"):
            self._serve(process)

    def _serve(self, process: Process, at_once: int = 2) -> None:
        process.move("running")
        for each in SPECS.values():
            if each.name.startswith(process.tool + "."):
                self.tools.offer(process, m.Offer(tools=[each]))
        self._say_serve(process, at_once)

    def _say_serve(self, process: Process, at_once: int) -> None:
        call = Call(process)
        self._hear()
        call.run(self.tools.serve(call, m.Serve(at_once=at_once)))  # type: ignore[arg-type]
        if process.pid in self.serving:
            assert self.serving[process.pid].ended
        self.serving[process.pid], self.heard[process.pid] = call, 0

    @precondition(lambda self: self.workers("running"))
    @rule(data=st.data(), at_once=st.integers(1, 3))
    def serve_anew(self, data: st.DataObject, at_once: int) -> None:
        self._say_serve(data.draw(st.sampled_from(self.workers("running"))), at_once)

    @precondition(lambda self: self.workers("running"))
    @rule(data=st.data())
    def serve_no_more(self, data: st.DataObject) -> None:
        self.serving[data.draw(st.sampled_from(self.workers("running"))).pid].cancel()

    def _hear(self) -> None:
        """Jobs reach their workers, if these are not stopped."""
        for pid, call in self.serving.items():
            process = self.table.rows[pid]
            for body in call.pieces[self.heard[pid] :]:
                if process.alive and not body.cancelled:
                    self.doing[pid][body.id] = SPECS[body.tool]
                self.heard[pid] += 1

    def busy(self) -> list[int]:
        return [pid for pid, jobs in self.doing.items() if jobs and pid not in self.deaf]

    @precondition(lambda self: self.busy())
    @rule(data=st.data())
    def hang(self, data: st.DataObject) -> None:
        self.deaf.add(data.draw(st.sampled_from(self.busy())))

    @precondition(lambda self: self.busy())
    @rule(data=st.data(), ok=st.booleans())
    def done(self, data: st.DataObject, ok: bool) -> None:
        pid = data.draw(st.sampled_from(self.busy()))
        self._done(pid, data.draw(st.sampled_from(sorted(self.doing[pid]))), ok)

    def _done(self, pid: int, job: int, ok: bool = True) -> None:
        process = self.table.rows[pid]
        del self.doing[pid][job]
        over = job not in self.tools.running
        try:
            self.tools.done(process, m.JobDone(id=job, value=1, error=None if ok else "no"))
        except (NotFound, Denied):
            assert over

    @precondition(lambda self: self.busy())
    @rule(data=st.data())
    def progress(self, data: st.DataObject) -> None:
        pid = data.draw(st.sampled_from(self.busy()))
        job = data.draw(st.sampled_from(sorted(self.doing[pid])))
        over = job not in self.tools.running
        try:
            self.tools.progress(self.table.rows[pid], m.JobProgress(id=job, done=1))
        except (NotFound, Denied):
            assert over

    @precondition(lambda self: self.workers("running", "stopped"))
    @rule(data=st.data())
    def stop_or_go_on(self, data: st.DataObject) -> None:
        process = data.draw(st.sampled_from(self.workers("running", "stopped")))
        process.move("stopped" if process.state == "running" else "running")

    @precondition(lambda self: self.workers("starting", "running", "stopped"))
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        self._end(data.draw(st.sampled_from(self.workers("starting", "running", "stopped"))))

    @precondition(lambda self: self.workers("ending"))
    @rule(data=st.data())
    def reap(self, data: st.DataObject) -> None:
        self._end(data.draw(st.sampled_from(self.workers("ending"))))

    def _end(self, process: Process) -> None:
        """As Lifecycle does it."""
        reason = process.reason or "signal KILL"
        for call in [c for c in self.calls if c.process is process]:
            call.fail(ProcessGone("the caller is gone"))
        serving = self.serving.pop(process.pid, None)
        if serving is not None:
            serving.fail(ProcessGone("the caller is gone"))
        process.reason = reason
        self.tools.ended(process)
        assert process.reason == reason, "nobody ends what has ended"
        self.doing.pop(process.pid, None)
        self.table.end(process, 1, reason, self.now)

    @rule(who=st.integers(0, CALLERS + 3))
    def caller_ends(self, who: int) -> None:
        if who >= CALLERS:  # most of the time nothing so drastic happens
            return
        process = self.callers.pop(who)
        self._end(process)
        assert not any(w.pool.caller == process.pid and w.process.state != "ending"
                       for w in self.tools.workers.values())  # fmt: skip
        self._add_caller(process.kind)

    @rule(seconds=st.sampled_from([0.0, 0.5, 4.0, 61.0, 1001.0]))
    def time_passes(self, seconds: float) -> None:
        self._pass(seconds)

    def _pass(self, seconds: float) -> None:
        until = self.now + seconds
        while self.timers and self.timers[0][0] <= until:
            self.now, _, timer = heapq.heappop(self.timers)
            if not timer.cancelled:
                timer.run()
        self.now = until

    @rule(dies=st.sampled_from([False, False, False, True]))
    def kernel_dies(self, dies: bool) -> None:
        """As the ledger, and callers that come back, do it."""
        if not dies:
            return
        rows = {msgspec.msgpack.decode(row, type=JobRow).call for row in self.journal.values()}
        effects = {
            job.call.id for job in self.tools.running.values() if SPECS[job.args.name].effect
        }
        assert rows == effects
        self.journal.clear()
        self.serving.clear()
        dead = self.tools  # whose coroutines Python closes some time
        dead.put_row, dead.starter, dead.after = Mock(), Mock(), Mock()
        calls, self.calls = [call for call in self.calls if not call.ended], []
        self._boot()
        for process in [process for process in self.table.live() if process.tool]:
            self.end_now(process, "the kernel has died")
        for call in calls:
            call.driver = None
            if call.id in rows:
                call.fail(ToolUnknown("the kernel died"))
            elif call.args is None:
                self.calls.append(call)
                call.run(self.tools.tell(call))  # type: ignore[arg-type]
            else:
                self._call(call)

    # --- what holds -------------------------------------------------------------------------------

    @invariant()
    def it_finds_nothing_wrong_with_itself(self) -> None:
        assert self.tools.check() == []

    @invariant()
    def no_call_has_two_ends(self) -> None:
        assert all(len(call.ends) < 2 for call in self.calls)
        self.calls = [call for call in self.calls if not call.ended]

    @invariant()
    def locks_and_limits_hold_for_what_processes_do(self) -> None:
        self._hear()
        # Workers of a kernel that has died are told to end before others are started.
        jobs = [each for pid in self.tools.workers for each in self.doing[pid].values()]
        assert all(n == 1 for lock, n in Counter(j.exclusive for j in jobs).items() if lock)
        assert all(n <= SPECS[name].limit for name, n in Counter(j.name for j in jobs).items())
        assert len(self.tools.workers) <= MOST
        for pid in self.tools.workers:
            assert len(self.doing[pid]) <= 1 or self.table.rows[pid].tool == "mcp"

    @invariant()
    def those_who_rest_have_the_file_that_is_known(self) -> None:
        for worker in self.tools.workers.values():
            assert not worker.is_free or worker.stamp == self.tools.states[worker.pool.box].stamp

    @invariant()
    def nobody_is_kept_for_nobody(self) -> None:
        alive = self.workers("starting", "running", "stopped")
        assert {p.pid for p in alive} <= self.tools.workers.keys()
        assert set(self.tools.pools) == {w.pool for w in self.tools.workers.values()}

    def teardown(self) -> None:
        """When all that runs ends well, all that waits has its turn; then all is quiet."""
        for _ in range(200):
            self.locks_and_limits_hold_for_what_processes_do()
            for process in self.workers("ending"):
                self._end(process)
            for process in self.workers("stopped"):
                process.move("running")
            for process in self.workers("starting"):
                self._serve(process)
            self._hear()
            for pid in self.busy():
                for job in list(self.doing[pid]):
                    self._done(pid, job)
            self._pass(1.0)
            self.no_call_has_two_ends()
            if not self.calls:
                break
        assert self.calls == [], "these have no end"
        self._pass(1000.0)
        for process in self.workers("ending"):
            self._end(process)
        assert {process.tool for process in self.workers("starting", "running")} <= {"mcp"}
        assert self.tools.check() == []
        assert self.journal == {}


TestWorld = World.TestCase


def test_a_toolbox_that_never_serves_is_ended_and_whoever_waits_hears_of_it() -> None:
    world = World()
    world.call(1, "lab.add", None)
    world.list_(1)
    waiting = list(world.calls)
    for _ in range(9):  # the listing has a worker of each box started
        world.time_passes(61.0)
        for process in world.workers("ending"):
            world._end(process)
    assert "does not serve within 60 s" in str(waiting[0].ends[0])
    listed = waiting[1].ends[0]
    assert ["does not serve" in box.error for box in listed.boxes] == [True] * 3


def test_a_caller_that_ends_while_its_worker_starts_costs_nobody_else() -> None:
    world = World()
    world.call(0, "lab.add", None)
    (starting,) = world.workers("starting")
    world.caller_ends(0)
    world._end(starting)
    world.call(1, "lab.add", None)
    call = world.calls[-1]
    assert not call.ended
    (process,) = world.workers("starting")
    world._serve(process)
    world._hear()
    (job,) = world.doing[process.pid]
    world._done(process.pid, job)
    assert isinstance(call.ends[0], m.ToolResult)


def order_of(world: World) -> list[int]:
    """The places of the jobs that wait, in the order in which they end."""
    calls, order = list(world.calls), []
    while world.calls:
        for process in world.workers("ending"):
            world._end(process)
        for process in world.workers("starting"):
            world._serve(process)
        world._hear()
        for pid, jobs in list(world.doing.items()):
            for job in list(jobs):
                world._done(pid, job)
        order += [calls.index(call) for call in world.calls if call.ended]
        world.no_call_has_two_ends()
    world.teardown()
    return order


def test_a_lock_goes_round_whoever_calls_more() -> None:
    world = World()
    for who in (0, 0, 1, 0, 0, 1):
        world.call(who, "lab.alone", None)
    assert order_of(world) == [0, 2, 1, 5, 3, 4]


@pytest.mark.parametrize("name", ["new.plain", "mcp.plain"])
def test_a_tree_of_agents_that_calls_a_lot_waits_for_itself(name: str) -> None:
    world = World()
    world.callers[0].principal, world.callers[1].principal = "/evil", "/evil/child"
    world.callers[2].principal = "/good"
    for who in (0, 1) * 10:
        world.call(who, name, None)
    world.call(2, name, None)
    assert order_of(world).index(20) <= MOST


def test_a_tree_of_agents_leaves_workers_for_others() -> None:
    world = World()
    for who, principal in enumerate(("/evil", "/evil/child", "/good")):
        world.callers[who].principal = principal
        for _ in range(2 if who < 2 else 1):
            world.call(who, "lab.add", None)
    starting = [process.principal for process in world.workers("starting")]
    assert sorted(starting) == ["/evil", "/evil", "/good"]
    assert len(order_of(world)) == 5


def test_calls_that_wait_take_as_much_memory_as_their_arguments_have_bytes() -> None:
    """As lists in lists these would take 3 MB each."""
    world = World()
    tool = min(SPECS)
    tracemalloc.start()
    try:
        for _ in range(20):
            args: dict[str, Any] = {"x": [[] for _ in range(50_000)]}
            world._call(Call(world.callers[0], m.CallTool(name=tool, args=args)))
            world.calls[-1].args = None
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert 20 * 50_000 < held < 10 * 20 * 50_000
