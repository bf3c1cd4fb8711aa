"""The world around a tool manager under test, as a machine of Hypothesis: its rules are all that
can happen, its invariants what holds after each."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tool_callers import BOXES, SPECS, Call, Changing, Gate, Timer

from aios.kernel.process import Process, ProcessTable
from aios.kernel.tools.jobs import JobRow
from aios.kernel.tools.manager import Tools
from aios.kernel.tools.toolbox import Box
from aios.syscalls import tool as m
from aios.syscalls.base import Empty
from aios.syscalls.errors import Denied, NotFound, ProcessGone, ToolUnknown
from aios.syscalls.proc import Limits

MOST, AGENTS, CALLERS = 3, 9, 3


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
        call.run(self.tools.tell(call, Empty()))  # type: ignore[arg-type]

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
                self.tools.offer(Call(process), m.Offer(tools=[each]))  # type: ignore[arg-type]
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
        call = Call(self.table.rows[pid])
        args = m.JobDone(id=job, value=1, error=None if ok else "no")
        del self.doing[pid][job]
        over = job not in self.tools.running
        try:
            self.tools.done(call, args)  # type: ignore[arg-type]
        except (NotFound, Denied):
            assert over

    @precondition(lambda self: self.busy())
    @rule(data=st.data())
    def progress(self, data: st.DataObject) -> None:
        pid = data.draw(st.sampled_from(self.busy()))
        job = data.draw(st.sampled_from(sorted(self.doing[pid])))
        call, args = Call(self.table.rows[pid]), m.JobProgress(id=job, done=1)
        over = job not in self.tools.running
        try:
            self.tools.progress(call, args)  # type: ignore[arg-type]
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
                call.run(self.tools.tell(call, Empty()))  # type: ignore[arg-type]
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
