"""The tool manager: which tools there are, which worker runs them for whom, and how a call ends.

A call becomes a job. A job waits for a free worker, for the tool's limit and for its lock, and ends
in one of four ways: by its worker's answer, its time limit, its caller's cancel or end, its
worker's death. Trees of agents take turns. A worker that did not answer is ended, so that no other
job meets what it leaves half done. A job of a tool that has an effect is journaled before its
worker hears of it; if the kernel dies, the caller is told that the outcome is unknown, and the job
is not done again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import msgspec

from aios.syscalls import tool as m
from aios.syscalls.base import Done, Empty
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
from ..lib.callbacks import After
from ..lib.coroutine import Wait
from ..lib.trees import leaves_room, root
from ..process import Process
from .concurrency import Concurrency
from .job_queue import JobQueue
from .jobs import Job, JobRow, Pool, State, Worker, broken, how_ended
from .toolbox import Box, Starter

START_TIMEOUT_S = 60.0  # until a worker serves
CANCEL_GRACE_S = 5.0  # for a shared worker to stop a job that is cancelled

_encode = msgspec.msgpack.Encoder().encode


class Tools:
    """Toolboxes, workers and jobs. At most `most` workers are alive; `put_row` journals a job."""

    def __init__(
        self, boxes: dict[str, Box], most: int, starter: Starter, gate: Gate,
        after: After, put_row: PutRow,
    ) -> None:  # fmt: skip
        self.most, self.starter, self.gate = most, starter, gate
        self.after, self.put_row = after, put_row
        self.states = {name: State(box) for name, box in boxes.items()}
        self.workers: dict[int, Worker] = {}  # by pid
        self.pools: dict[Pool, list[Worker]] = {}
        self.queue, self.concurrency = JobQueue(), Concurrency()
        self.running: dict[int, Job] = {}
        self.listing: list[tuple[Call, Wait[m.Tools]]] = []
        self.is_assigning = self.assign_again = False
        self.last = time.time_ns() // 1000  # the last job, above those of earlier kernels

    # --- callers ----------------------------------------------------------------------------------

    async def tell(self, call: Call, args: Empty) -> m.Tools:
        """List all tools, once each toolbox has offered its own, or could not be started."""
        for state in self.states.values():
            state.look_again()
        entry = (call, Wait[m.Tools]())
        self.listing.append(entry)
        try:
            self._assign()
            return await entry[1]
        finally:
            self.listing.remove(entry)

    def _answer_listings(self) -> None:
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
            pids = [pid for pid, worker in self.workers.items() if worker.state is state]
            yield m.Box(name=name, tools=len(state.specs or {}), workers=pids, error=state.error)

    async def call(self, call: Call, args: m.CallTool) -> m.ToolResult:
        """Have a worker do a job. Raises NotFound, and the job's error."""
        box = args.name.partition(".")[0]
        if box not in self.states:
            raise NotFound(f"no tool {args.name!r}", "`aios tool list` lists them")
        self.last += 1
        pool = Pool(box, 0 if self.states[box].box.shared else call.process.pid)
        as_bytes = msgspec.Raw(_encode(args.args))  # objects take forty times the room
        tree = root(call.process.principal) or f"pid {call.process.pid}"
        args = msgspec.structs.replace(args, args=as_bytes)
        job = Job(self.last, call, pool, args, tree)
        self.queue.add(job)
        try:
            if args.timeout is not None:
                late = partial(self._timed_out, job, args.timeout)
                job.timers.append(self.after(args.timeout, late))
            self._try_job(job, set())  # it changes nothing for the jobs before it
            return await job.end
        finally:
            self._end_job(job)

    # --- jobs -------------------------------------------------------------------------------------

    def _assign(self) -> None:
        """Assign queued jobs to idle workers. Re-entrant calls are coalesced into one more pass."""
        self.assign_again = True
        if self.is_assigning:
            return
        self.is_assigning = True
        try:
            while self.assign_again:
                self.assign_again = False
                if self.listing:
                    self._answer_listings()
                blocked: set[Pool | str] = set()
                for job in self.queue.in_turn(blocked):
                    self._try_job(job, blocked)
        finally:
            self.is_assigning = False

    def _try_job(self, job: Job, blocked: set[Pool | str]) -> None:
        """Run a job if it may. Add its pool to `blocked` if no worker is free, or its tool if that
        may not run now."""
        try:
            spec = self._spec(job)
            if spec is not None and not self.concurrency.may_run(spec):
                blocked.add(spec.name)
                return
            there = self.pools.get(job.pool, [])
            free = next((worker for worker in there if worker.is_free), None)
            if free is None or spec is None:
                self._start_more(job)
                blocked.add(job.pool)
            else:
                self._run(job, spec, free)
        except AiosError as error:
            job.end.fail(error)

    def _spec(self, job: Job) -> m.Spec | None:
        """Return the spec of a job's tool, or None while it is not known. Raises NotFound."""
        specs = self.states[job.pool.box].specs
        if specs is not None and job.args.name not in specs:
            raise NotFound(f"no tool {job.args.name!r}", f"there are: {', '.join(specs)}")
        return None if specs is None else specs[job.args.name]

    def _start_more(self, job: Job) -> None:
        """Start a worker, unless there are enough. Raises LimitReached, Denied."""
        pool = job.pool
        box, there = self.states[pool.box].box, self.pools.get(pool, [])
        coming = sum(worker.is_coming for worker in there)
        most = 1 if box.shared else box.workers
        if coming < len(self.queue.of(pool)) and len(there) < most:
            try:
                self._start(pool, job.call.process if pool.caller else None)
            except LimitReached:
                if not there:
                    raise  # else the job waits for one of those

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

    def _end_job(self, job: Job) -> None:
        """Clean up after a job whose call has ended, for whatever reason."""
        for timer in job.timers:
            timer.cancel()
        self.queue.remove(job)
        if job.worker is not None and job.spec is not None:
            del self.running[job.id], job.worker.jobs[job.id]
            if job.spec.effect:
                self.put_row(f"job/{job.id}", None)
            if job.answered:
                self.concurrency.end(job.spec)
            else:
                job.worker.unfinished[job.id] = job.spec
            self._release(job.worker, job)
        if job.answered:  # else its place is free once its worker has stopped it
            self._assign()

    def _release(self, worker: Worker, job: Job) -> None:
        """Free, keep or end the worker that had a job."""
        box, process = worker.state.box, worker.process
        if process.pid not in self.workers:  # it has ended
            return
        if not job.answered and box.shared and worker.serve is not None:
            worker.serve.piece(m.Job(id=job.id, cancelled=True))
            self.after(CANCEL_GRACE_S, partial(self._end_hanging, worker, job))
        elif not job.answered:
            self.starter.end_now(process, f"ended with its job, {job.args.name}")
        elif box.fresh or worker.stamp != worker.state.stamp:
            self.starter.end_now(process, "done")
        else:
            self._keep_idle(worker)

    def _end_hanging(self, worker: Worker, job: Job) -> None:
        if job.id in worker.unfinished:
            self.starter.end_now(worker.process, f"does not let go of {job.args.name}")

    def _keep_idle(self, worker: Worker) -> None:
        """Keep a worker that has nothing to do for a while."""
        if not worker.state.box.shared:
            end = partial(self.starter.end_now, worker.process, "idle")
            worker.timer = self.after(worker.state.box.idle, end)

    # --- workers ----------------------------------------------------------------------------------

    def _start(self, pool: Pool, caller: Process | None) -> None:
        """Start a worker, or make room for one. A tree of agents has half of the room that others
        leave. Raises LimitReached, Denied."""
        tree, workers = root(caller.principal) if caller else "", list(self.workers.values())
        own = [each for each in workers if tree and root(each.process.principal) == tree]
        if len(workers) >= self.most:
            self._make_room(workers)
            return
        if tree and not leaves_room(len(own), len(workers), self.most):
            self._make_room(own)
            return
        state = self.states[pool.box]
        stamp = state.box.stamp()
        process = self.starter.start_worker(pool.box, state.box, caller)
        why = f"does not serve within {START_TIMEOUT_S:g} s"
        timer = self.after(START_TIMEOUT_S, partial(self.starter.end_now, process, why))
        worker = self.workers[process.pid] = Worker(process, pool, state, timer, stamp)
        self.pools.setdefault(pool, []).append(worker)

    def _make_room(self, workers: list[Worker]) -> None:
        if any(worker.process.state == "ending" for worker in workers):
            return
        for worker in workers:
            if worker.is_free and not worker.jobs and not worker.state.box.shared:
                self.starter.end_now(worker.process, "makes room")
                return

    def _worker(self, process: Process) -> Worker:
        if process.pid not in self.workers:
            raise Denied("only a toolbox's worker may", "tools are files with @tool: docs/tools.md")
        return self.workers[process.pid]

    def offer(self, call: Call, args: m.Offer) -> Done:
        """Take the tools that a worker offers: before it serves, or later if it is shared. Raises
        Denied, BadInput."""
        worker = self._worker(call.process)
        if worker.at_once and not worker.state.box.shared:
            raise Denied("what it serves, a worker says before it does", "see docs/tools.md")
        worker.offer(args)
        if worker.at_once:
            worker.state.specs = worker.offered
        return Done()

    async def serve(self, call: Call, args: m.Serve) -> Done:
        """Give a worker jobs by this call, until it makes another. Raises Denied."""
        worker = self._worker(call.process)
        before, worker.serve = worker.served, call
        cancel = partial(self.starter.end_now, call.process, "serves no more")
        worker.served = served = Wait[Done](cancel=cancel)
        before.done(Done())
        try:
            if not worker.at_once:
                self._begins_to_serve(worker, args.at_once)
            self._assign()
            return await served
        finally:
            if worker.serve is call:
                worker.serve = None

    def _begins_to_serve(self, worker: Worker, at_once: int) -> None:
        shared = worker.state.box.shared
        worker.at_once = at_once if shared else 1
        self._take_offer(worker)
        worker.timer.cancel()
        if worker.pool.caller or shared:
            self._keep_idle(worker)
        else:
            self.starter.end_now(worker.process, "has said what it serves")

    def _take_offer(self, worker: Worker) -> None:
        """Note the tools of a worker's toolbox, and end the idle workers of an older file."""
        state = worker.state
        state.specs, state.stamp, state.is_known = worker.offered, worker.stamp, True
        for other in self.workers.values():
            is_old = other.state is state and other.stamp != worker.stamp
            if is_old and other.is_free:  # a busy one ends after its job
                self.starter.end_now(other.process, "its toolbox has changed")

    def progress(self, call: Call, args: m.JobProgress) -> Done:
        """Tell the caller how far a job is; reports that come too often are left out.

        Raises:
            Denied, NotFound.
        """
        job, now = self._job(call.process, args.id), time.monotonic()
        if job.may_report(now):
            body = m.ToolProgress(done=args.done, total=args.total, message=args.message)
            self._taint_caller(job, call.process)
            job.call.piece(body, keep=False)
        return Done()

    def done(self, call: Call, args: m.JobDone) -> Done:
        """End a job by its worker's answer. Raises Denied, NotFound."""
        over = self._worker(call.process).unfinished.pop(args.id, None)
        if over is not None:
            self.concurrency.end(over)
            self._assign()
            return Done()
        job = self._job(call.process, args.id)
        job.answered = True
        self._taint_caller(job, call.process)
        job.end_with(args, call.process.principal)
        return Done()

    def _taint_caller(self, job: Job, process: Process) -> None:
        """Taint the caller of a job, which is about to read what the worker says."""
        read = process.labels if job.pool.caller else set()  # a shared worker is not tainted
        job.call.process.taint({f"tool:{job.args.name}"} | read)

    def _job(self, process: Process, job_id: int) -> Job:
        job = self._worker(process).jobs.get(job_id)
        if job is None:
            raise NotFound(f"no job {job_id} of this worker", "it is over already")
        return job

    def ended(self, process: Process) -> None:
        """Clean up after a process: a worker, or a caller that has workers."""
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
        for spec in ended.unfinished.values():
            self.concurrency.end(spec)
        ended.unfinished.clear()
        self._assign()

    def _did_not_start(self, worker: Worker) -> None:
        """Fail the jobs that wait for a worker that did not start: why may be theirs alone."""
        pool = worker.pool
        error = f"{how_ended(worker.process)} (see `aios logs {worker.process.pid}`)"
        if not pool.caller:
            worker.state.error, worker.state.failed = error, (time.monotonic(), worker.stamp)
        for job in self.queue.of(pool):
            job.end.fail(ToolFailed(f"the toolbox {pool.box} did not start: {error}"))

    def check(self) -> list[str]:
        """List each broken invariant in words."""
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
        specs += [spec for worker in self.workers.values() for spec in worker.unfinished.values()]
        return problems + self.concurrency.check(specs)
