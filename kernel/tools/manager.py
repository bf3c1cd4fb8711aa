"""The tool manager: which tools there are, and which worker runs a call for whom.

A call becomes a job. It waits for a worker that is free, for the tool's limit and for its lock, and
has one of four ends: the worker's word, its time limit, its caller's cancel or end, the worker's
death. A tree of agents has one turn a round, however many of its jobs wait. A worker
that did not have the last word is ended: what a job leaves half done is met by no other. A job of a
tool that has an effect is journaled before its worker hears of it; if the kernel dies, its caller
hears that it is unknown what has happened, and nothing is done again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import msgspec

from aios.syscalls import tool as m
from aios.syscalls.base import Done
from aios.syscalls.errors import (
    AiosError,
    Denied,
    LimitReached,
    NotFound,
    ToolCrashed,
    ToolFailed,
    ToolTimeout,
)

from ..access.gate import Gate
from ..entry.call import Call
from ..journal import PutRow
from ..lib.coroutine import Wait
from ..lib.trees import leaves_room, root
from ..process import Process
from .concurrency import Concurrency
from .job_queue import JobQueue
from .jobs import Job, JobRow, Pool, State, Worker, broken, how_ended
from .toolbox import Box, Starter

START = 60.0  # seconds that a worker has until it serves
LET_GO = 5.0  # seconds that a shared one has to let go of a job that is cancelled

_encode = msgspec.msgpack.Encoder().encode


class Tools:
    """At most `most` workers are alive. `put_row` journals a job, or its end."""

    def __init__(
        self, boxes: dict[str, Box], most: int, starter: Starter, gate: Gate,
        after: Callable[[float, Callable[[], None]], Any],
        put_row: PutRow,
    ) -> None:  # fmt: skip
        self.most, self.starter, self.gate, self.after = most, starter, gate, after
        self.put_row = put_row
        self.states = {name: State(box) for name, box in boxes.items()}
        self.workers: dict[int, Worker] = {}  # by pid
        self.pools: dict[Pool, list[Worker]] = {}
        self.queue = JobQueue()
        self.running: dict[int, Job] = {}
        self.concurrency = Concurrency()
        self.listing: list[tuple[Call, Wait[m.Tools]]] = []
        self.looking = self.look_again = False
        self.last = time.time_ns() // 1000  # above those of the kernels before

    # --- callers ----------------------------------------------------------------------------------

    async def tell(self, call: Call) -> m.Tools:
        """Tell of all tools, once each toolbox has said what it serves, or could not be started."""
        for state in self.states.values():
            state.look_again()
        entry = (call, Wait[m.Tools]())
        self.listing.append(entry)
        try:
            self._look()
            return await entry[1]
        finally:
            self.listing.remove(entry)

    def _tell_listing(self) -> None:
        for name, state in self.states.items():
            if not state.is_known and not state.error and Pool(name, 0) not in self.pools:
                try:
                    self._start(Pool(name, 0), None)
                except AiosError as error:
                    state.error = str(error)
        if any(not state.is_known and not state.error for state in self.states.values()):
            return
        specs = [spec for state in self.states.values() for spec in (state.specs or {}).values()]
        for call, told in self.listing.copy():
            may = set(self.gate.may_ever(call.process, "tool.call", [s.name for s in specs]))
            tools = [spec for spec in specs if spec.name in may]
            told.done(m.Tools(tools=tools, boxes=list(self._boxes())))

    def _boxes(self) -> Iterator[m.Box]:
        for name, state in self.states.items():
            pids = [pid for pid, worker in self.workers.items() if worker.pool.box == name]
            yield m.Box(name=name, tools=len(state.specs or {}), workers=pids, error=state.error)

    async def call(self, call: Call, args: m.CallTool) -> m.ToolResult:
        """Have a worker do it. Raises NotFound, and what the job ends with."""
        box = args.name.partition(".")[0]
        if box not in self.states:
            raise NotFound(f"no tool {args.name!r}", "`aios tool list` lists them")
        self.last += 1
        pool = Pool(box, 0 if self.states[box].box.shared else call.process.pid)
        as_bytes = msgspec.Raw(_encode(args.args))  # while it waits: a forty-th of the objects
        tree = root(call.process.principal) or f"pid {call.process.pid}"
        args = msgspec.structs.replace(args, args=as_bytes)
        job = Job(self.last, call, pool, args, tree)
        self.queue.add(job)
        try:
            if args.timeout is not None:
                late = partial(self._timed_out, job, args.timeout)
                job.timers.append(self.after(args.timeout, late))
            self._look_at(job, set())  # those before it wait for what it does not bring
            return await job.end
        finally:
            self._over(job)

    # --- jobs -------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Assign queued jobs to idle workers. A call from within is one more pass of the loop."""
        self.look_again = True
        if self.looking:
            return
        self.looking = True
        try:
            while self.look_again:
                self.look_again = False
                if self.listing:
                    self._tell_listing()
                stuck: set[Pool | str] = set()
                for job in self.queue.in_turn(stuck):
                    self._look_at(job, stuck)
        finally:
            self.looking = False

    def _look_at(self, job: Job, stuck: set[Pool | str]) -> None:
        """`stuck`: pools in which nobody is free, and tools that may not run now."""
        try:
            spec = self._spec(job)
            if spec is not None and not self.concurrency.may_run(spec):
                stuck.add(spec.name)
                return
            there = self.pools.get(job.pool, [])
            free = next((worker for worker in there if worker.is_free), None)
            if free is None or spec is None:
                self._have_more(job)
                stuck.add(job.pool)
            else:
                self._run(job, spec, free)
        except AiosError as error:
            job.end.fail(error)

    def _spec(self, job: Job) -> m.Spec | None:
        """None: not yet known. Raises NotFound."""
        specs = self.states[job.pool.box].specs
        if specs is not None and job.args.name not in specs:
            raise NotFound(f"no tool {job.args.name!r}", f"there are: {', '.join(specs)}")
        return None if specs is None else specs[job.args.name]

    def _have_more(self, job: Job) -> None:
        """Start a worker, unless enough are coming, or there. Raises LimitReached, Denied."""
        pool = job.pool
        box, there = self.states[pool.box].box, self.pools.get(pool, [])
        coming = sum(worker.is_coming for worker in there)
        most = 1 if box.shared else box.workers
        if coming < len(self.queue.of(pool)) and len(there) < most:
            try:
                self._start(pool, job.call.process if pool.caller else None)
            except LimitReached:
                if not there:
                    raise  # else it waits for one of those

    def _run(self, job: Job, spec: m.Spec, worker: Worker) -> None:
        assert worker.serve is not None
        caller, name = job.call.process, job.args.name
        self.queue.begin(job)
        self.running[job.id] = worker.jobs[job.id] = job
        self.concurrency.begin(spec)
        job.worker, job.spec = worker, spec
        worker.timer.cancel()
        job.timers.append(self.after(spec.timeout, partial(self._timed_out, job, spec.timeout)))
        if spec.effect:
            self.put_row(f"job/{job.id}", _encode(JobRow(caller.pid, job.call.id, name)))
        if job.pool.caller:
            worker.process.taint(caller.labels)
        body = m.Job(id=job.id, tool=name, args=job.args.args, caller=caller.principal)
        worker.serve.piece(body, durable=spec.effect)

    def _timed_out(self, job: Job, seconds: float) -> None:
        job.end.fail(broken(job, f"was not done within {seconds:g} s", ToolTimeout))

    def _over(self, job: Job) -> None:
        """Its call ends, for whatever reason."""
        for timer in job.timers:
            timer.cancel()
        self.queue.remove(job)
        if job.worker is not None and job.spec is not None:
            del self.running[job.id], job.worker.jobs[job.id]
            if job.spec.effect:
                self.put_row(f"job/{job.id}", None)
            if job.told:
                self.concurrency.end(job.spec)
            else:
                job.worker.owed[job.id] = job.spec
            self._leave(job.worker, job)
        if job.told:  # else its places are free when its worker has let go of it
            self._look()

    def _leave(self, worker: Worker, job: Job) -> None:
        """Free, keep or end the worker that had a job."""
        box, process = self.states[worker.pool.box].box, worker.process
        if process.pid not in self.workers:  # it has ended
            return
        if not job.told and box.shared and worker.serve is not None:
            worker.serve.piece(m.Job(id=job.id, cancelled=True))
            self.after(LET_GO, partial(self._hangs, worker, job))
        elif not job.told:
            self.starter.end_now(process, f"ended with its job, {job.args.name}")
        elif box.fresh or worker.stamp != self.states[worker.pool.box].stamp:
            self.starter.end_now(process, "done")
        else:
            self._rest(worker)

    def _hangs(self, worker: Worker, job: Job) -> None:
        if job.id in worker.owed:
            self.starter.end_now(worker.process, f"does not let go of {job.args.name}")

    def _rest(self, worker: Worker) -> None:
        """It has nothing to do: it is kept for a while."""
        box = self.states[worker.pool.box].box
        if not box.shared:
            end = partial(self.starter.end_now, worker.process, "idle")
            worker.timer = self.after(box.idle, end)

    # --- workers ----------------------------------------------------------------------------------

    def _start(self, pool: Pool, caller: Process | None) -> None:
        """Unless there is no room; the next end has this looked at. A tree of agents has half of
        the room that others leave. Raises LimitReached, Denied."""
        tree, workers = root(caller.principal) if caller else "", list(self.workers.values())
        own = [each for each in workers if tree and root(each.process.principal) == tree]
        if len(workers) >= self.most:
            self._make_room(workers)
            return
        if tree and not leaves_room(len(own), len(workers), self.most):
            self._make_room(own)
            return
        box = self.states[pool.box].box
        stamp = box.stamp()
        process = self.starter.start_worker(pool.box, box, caller)
        late = partial(self.starter.end_now, process, f"does not serve within {START:g} s")
        worker = self.workers[process.pid] = Worker(process, pool, self.after(START, late), stamp)
        self.pools.setdefault(pool, []).append(worker)

    def _make_room(self, workers: list[Worker]) -> None:
        if any(worker.process.state == "ending" for worker in workers):
            return
        for worker in workers:
            if worker.is_free and not worker.jobs and not self.states[worker.pool.box].box.shared:
                self.starter.end_now(worker.process, "makes room")
                return

    def _worker(self, process: Process) -> Worker:
        if process.pid not in self.workers:
            raise Denied("only a toolbox's worker may", "tools are files with @tool: docs/tools.md")
        return self.workers[process.pid]

    def offer(self, process: Process, args: m.Offer) -> None:
        """Before it serves; one that is shared also later. Raises Denied, and BadInput for a name
        that is not the box's to use, and for too much."""
        worker = self._worker(process)
        state = self.states[worker.pool.box]
        if worker.at_once and not state.box.shared:
            raise Denied("what it serves, a worker says before it does", "see docs/tools.md")
        worker.offer(args)
        if worker.at_once:
            state.specs = worker.offered

    async def serve(self, call: Call, args: m.Serve) -> Done:
        """Give a worker jobs, until it serves by another call. Raises Denied."""
        worker = self._worker(call.process)
        before, worker.serve = worker.served, call
        cancel = partial(self.starter.end_now, call.process, "serves no more")
        worker.served = served = Wait[Done](cancel=cancel)
        before.done(Done())
        try:
            if not worker.at_once:
                self._begins_to_serve(worker, args.at_once)
            self._look()
            return await served
        finally:
            if worker.serve is call:
                worker.serve = None

    def _begins_to_serve(self, worker: Worker, at_once: int) -> None:
        box = self.states[worker.pool.box].box
        worker.at_once = at_once if box.shared else 1
        self._has_told(worker)
        worker.timer.cancel()
        if worker.pool.caller or box.shared:
            self._rest(worker)
        else:
            self.starter.end_now(worker.process, "has said what it serves")

    def _has_told(self, worker: Worker) -> None:
        """Note the tools of a worker's toolbox, and end the idle workers of an older file."""
        state = self.states[worker.pool.box]
        state.specs, state.stamp, state.is_known = worker.offered, worker.stamp, True
        for other in self.workers.values():
            same = other.pool.box != worker.pool.box or other.stamp == worker.stamp
            if not same and other.is_free:  # or it goes when it has done its job
                self.starter.end_now(other.process, "its toolbox has changed")

    def progress(self, process: Process, args: m.JobProgress) -> None:
        """Tell the caller how far a job is; reports that come too often are left out.

        Raises:
            Denied, NotFound.
        """
        job, now = self._job(process, args.id), time.monotonic()
        if job.tells(now):
            body = m.ToolProgress(done=args.done, total=args.total, message=args.message)
            self._hears(job, process)
            job.call.piece(body, keep=False)

    def done(self, process: Process, args: m.JobDone) -> None:
        """Raises Denied, and NotFound for a job that is over."""
        worker = self._worker(process)
        over = worker.owed.pop(args.id, None)
        if over is not None:
            self.concurrency.end(over)
            self._look()
            return
        job = self._job(process, args.id)
        job.told = True
        self._hears(job, process)
        job.end_with(args, process.principal)

    def _hears(self, job: Job, process: Process) -> None:
        """Its caller is about to read what the worker says."""
        read = process.labels if job.pool.caller else set()  # one that serves all mixes nothing
        job.call.process.taint({f"tool:{job.args.name}"} | read)

    def _job(self, process: Process, job_id: int) -> Job:
        job = self._worker(process).jobs.get(job_id)
        if job is None:
            raise NotFound(f"no job {job_id} of this worker", "it is over already")
        return job

    def ended(self, process: Process) -> None:
        """A worker, or somebody who has some."""
        for worker in list(self.workers.values()):
            if worker.pool.caller == process.pid:
                self.starter.end_now(worker.process, "caller gone")
        ended = self.workers.pop(process.pid, None)
        if ended is None:
            return
        self.pools[ended.pool].remove(ended)
        if not self.pools[ended.pool]:
            del self.pools[ended.pool]
        ended.timer.cancel()
        if not ended.at_once:
            self._did_not_start(ended)
        for job in list(ended.jobs.values()):
            job.end.fail(broken(job, f"ended: {how_ended(process)}", ToolCrashed))
        for spec in ended.owed.values():
            self.concurrency.end(spec)
        ended.owed.clear()
        self._look()

    def _did_not_start(self, worker: Worker) -> None:
        """Fail the jobs that wait for a worker that did not start: why may be theirs alone."""
        pool = worker.pool
        error = f"{how_ended(worker.process)} (see `aios logs {worker.process.pid}`)"
        if not pool.caller:
            state = self.states[pool.box]
            state.error, state.failed = error, (time.monotonic(), worker.stamp)
        for job in self.queue.of(pool):
            job.end.fail(ToolFailed(f"the toolbox {pool.box} did not start: {error}"))

    def check(self) -> list[str]:
        jobs = [*self.queue.all(), *self.running.values()]
        problems = [
            f"job {job.id} is kept, and its call has ended" for job in jobs if job.call.ended
        ]
        for pid, worker in self.workers.items():
            if not worker.process.alive:
                problems.append(f"worker {pid} is kept, and has ended")
            problems += [f"job {i} of worker {pid} does not run" for i in worker.jobs
                         if i not in self.running]  # fmt: skip
        specs = [job.spec for job in self.running.values() if job.spec is not None]
        specs += [spec for worker in self.workers.values() for spec in worker.owed.values()]
        return problems + self.concurrency.check(specs)
