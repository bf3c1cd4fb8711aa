"""The tool manager: which tools there are, who runs them for whom, and what comes of a call.

A call becomes a job. It waits for a worker that is free, for the tool's limit and for its lock, and
has one of four ends: the worker's word, its time limit, its caller's cancel or end, the worker's
death. A worker that did not have the last word is ended: what a job leaves half done is met by no
other. A job of a tool that has an effect is journaled before its worker hears of it; if the kernel
dies, its caller hears that it is unknown what has happened, and nothing is done again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

import msgspec

from aios.syscalls import tool as m
from aios.syscalls.errors import (
    AiosError,
    BadInput,
    Denied,
    NotFound,
    ToolArguments,
    ToolCrashed,
    ToolFailed,
    ToolTimeout,
    ToolUnknown,
)
from aios.syscalls.messages import Done, Spawn

from .access import Gate
from .process import Process
from .toolbox import Box
from .trap import Call

STEPS, OFTEN = 16, 0.1  # of a job's progress that are told; then seconds between two
RETRY = 1.0  # seconds until a toolbox that did not start is started again

_encode = msgspec.msgpack.Encoder().encode


class Starter(Protocol):
    """What the tool manager asks of those who see to processes."""

    def start_worker(self, args: Spawn, caller: Process | None) -> Process:
        """Raises Denied, LimitReached."""

    def end_now(self, process: Process, reason: str) -> None: ...


class JobRow(msgspec.Struct, array_like=True):
    """What is journaled of a job with an effect."""

    caller: int
    call: int
    tool: str


class Pool(NamedTuple):
    """Workers that do the same for the same."""

    box: str
    caller: int  # pid; 0: all


@dataclass
class Job:
    id: int
    call: Call
    pool: Pool
    args: m.CallTool
    spec: m.Spec | None = None  # these two are set while it runs
    worker: Worker | None = None
    timer: Any = None
    steps: int = 0  # of its progress
    next_step: float = 0.0
    told: bool = False  # the worker has said how it ended


@dataclass
class Worker:
    process: Process
    pool: Pool
    serve: Call | None = None
    at_once: int = 0  # 0: it has not said yet
    jobs: dict[int, Job] = field(default_factory=dict)
    owed: set[int] = field(default_factory=set)  # jobs that are over, but not for it
    idle: Any = None  # the timer that ends it

    @property
    def is_free(self) -> bool:
        ready = self.serve is not None and self.process.state == "running"
        return ready and len(self.jobs) + len(self.owed) < self.at_once

    @property
    def is_coming(self) -> bool:
        return self.process.state in ("starting", "running") and not self.at_once


@dataclass
class State:
    """What is known of a toolbox."""

    box: Box
    specs: dict[str, m.Spec] | None = None  # None: no worker has said yet
    error: str = ""  # why the last one did not start
    retry: float = 0.0  # when the next one may


class Tools:
    """At most `most` workers are alive. `note` journals a job; with None, that it is over."""

    def __init__(
        self, boxes: dict[str, Box], most: int, starter: Starter, gate: Gate,
        after: Callable[[float, Callable[[], None]], Any],
        note: Callable[[int, bytes | None], None],
    ) -> None:  # fmt: skip
        self.most, self.starter, self.gate, self.after = most, starter, gate, after
        self.note = note
        self.states = {name: State(box) for name, box in boxes.items()}
        self.workers: dict[int, Worker] = {}  # by pid
        self.pools: dict[Pool, list[Worker]] = {}
        self.queues: dict[Pool, dict[int, Job]] = {}  # jobs that wait, the oldest first
        self.running: dict[int, Job] = {}
        self.at_work: Counter[str] = Counter()  # jobs that run, by their tools
        self.locks: set[str] = set()  # of those
        self.listing: list[Call] = []
        self.looking = self.look_again = False
        self.last = time.time_ns() // 1000  # above those of the kernels before

    # --- callers ----------------------------------------------------------------------------------

    def tell(self, call: Call) -> None:
        """Once each toolbox has said what it serves, or could not be started."""
        self.listing.append(call)
        call.on_end = partial(self.listing.remove, call)
        for name, state in self.states.items():
            if state.specs is None and not any(
                w.is_coming for w in self.pools.get(Pool(name, 0), [])
            ):
                try:
                    self._start(name, None)
                except AiosError as error:
                    state.error = state.error or str(error)
        self._tell_listing()

    def _tell_listing(self) -> None:
        if any(state.specs is None and not state.error for state in self.states.values()):
            return
        for call in self.listing.copy():
            specs = [
                spec for state in self.states.values() for spec in (state.specs or {}).values()
            ]
            may = [s for s in specs if self.gate.may_ever(call.process, "tool.call", s.name)]
            call.done(m.Tools(tools=may, boxes=list(self._boxes())))

    def _boxes(self) -> Iterator[m.Box]:
        for name, state in self.states.items():
            pids = [pid for pid, worker in self.workers.items() if worker.pool.box == name]
            yield m.Box(name=name, tools=len(state.specs or {}), workers=pids, error=state.error)

    def call(self, call: Call, args: m.CallTool) -> None:
        """Raises NotFound."""
        box = args.name.partition(".")[0]
        if box not in self.states:
            raise NotFound(f"no tool {args.name!r}", "`aios tool list` lists them")
        self.last += 1
        pool = Pool(box, 0 if self.states[box].box.shared else call.process.pid)
        job = Job(self.last, call, pool, args)
        self.queues.setdefault(pool, {})[job.id] = job
        call.on_end = partial(self._over, job)
        if args.timeout is not None:
            job.timer = self.after(args.timeout, partial(self._timed_out, job, args.timeout))
        self._look()

    # --- jobs -------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Give what waits to whoever is free. What ends by it has this looked at once more."""
        self.look_again = True
        if self.looking:
            return
        self.looking = True
        try:
            while self.look_again:
                self.look_again = False
                for pool in list(self.queues):
                    self._look_at(pool)
        finally:
            self.looking = False

    def _look_at(self, pool: Pool) -> None:
        for job in list(self.queues.get(pool, {}).values()):
            try:
                spec = self._spec(job)
                if spec is not None and not self._may_run(spec):
                    continue
                free = next((worker for worker in self.pools.get(pool, []) if worker.is_free), None)
                if free is None or spec is None:
                    self._have_more(pool, job)
                    return
                self._run(job, spec, free)
            except AiosError as error:
                job.call.fail(error)

    def _spec(self, job: Job) -> m.Spec | None:
        """None: not yet known. Raises NotFound."""
        specs = self.states[job.pool.box].specs
        if specs is not None and job.args.name not in specs:
            raise NotFound(f"no tool {job.args.name!r}", f"there are: {', '.join(specs)}")
        return None if specs is None else specs[job.args.name]

    def _may_run(self, spec: m.Spec) -> bool:
        return self.at_work[spec.name] < spec.limit and spec.exclusive not in self.locks

    def _have_more(self, pool: Pool, job: Job) -> None:
        """Start a worker, unless enough are coming, or there."""
        box, there = self.states[pool.box].box, self.pools.get(pool, [])
        coming = sum(worker.is_coming for worker in there)
        most = 1 if box.shared else box.workers
        if coming < len(self.queues[pool]) and len(there) < most:
            self._start(pool.box, job.call.process if pool.caller else None)

    def _run(self, job: Job, spec: m.Spec, worker: Worker) -> None:
        assert worker.serve is not None
        caller, name = job.call.process, job.args.name
        self._unqueue(job)
        self.running[job.id] = worker.jobs[job.id] = job
        self.at_work[name] += 1
        if spec.exclusive:
            self.locks.add(spec.exclusive)
        job.worker, job.spec = worker, spec
        if worker.idle is not None:
            worker.idle.cancel()
        if job.timer is None:
            job.timer = self.after(spec.timeout, partial(self._timed_out, job, spec.timeout))
        if spec.effect:
            self.note(job.id, _encode(JobRow(caller.pid, job.call.id, name)))
        if job.pool.caller:
            self.gate.taint(worker.process, caller.labels)
        body = m.Job(id=job.id, tool=name, args=job.args.args, caller=caller.principal)
        worker.serve.piece(body, durable=spec.effect)

    def _timed_out(self, job: Job, seconds: float) -> None:
        job.call.fail(_broken(job, f"was not done within {seconds:g} s", ToolTimeout))

    def _over(self, job: Job) -> None:
        """Its call has had its final reply, for whatever reason."""
        if job.timer is not None:
            job.timer.cancel()
        self._unqueue(job)
        if job.worker is not None and job.spec is not None:
            del self.running[job.id], job.worker.jobs[job.id]
            self.at_work[job.spec.name] -= 1
            self.locks.discard(job.spec.exclusive)
            if job.spec.effect:
                self.note(job.id, None)
            self._leave(job.worker, job)
        self._look()

    def _unqueue(self, job: Job) -> None:
        waiting = self.queues.get(job.pool, {})
        waiting.pop(job.id, None)
        if not waiting:
            self.queues.pop(job.pool, None)

    def _leave(self, worker: Worker, job: Job) -> None:
        """What becomes of the worker that had it."""
        box = self.states[worker.pool.box].box
        if worker.process.state not in ("starting", "running", "stopped"):
            return
        if not job.told and box.shared and worker.serve is not None:
            worker.serve.piece(m.Job(id=job.id, cancelled=True))
            worker.owed.add(job.id)
            if not worker.jobs and not worker.is_free:  # it has come to nothing but what hangs
                self.starter.end_now(worker.process, "hangs")
        elif not job.told:
            self.starter.end_now(worker.process, f"ended with its job, {job.args.name}")
        elif box.fresh:
            self.starter.end_now(worker.process, "done")
        elif not box.shared:
            end = partial(self.starter.end_now, worker.process, "idle")
            worker.idle = self.after(box.idle, end)

    # --- workers ----------------------------------------------------------------------------------

    def _start(self, name: str, caller: Process | None) -> None:
        """Raises ToolFailed for one that did not start a moment ago, LimitReached, Denied."""
        state = self.states[name]
        if time.monotonic() < state.retry:
            raise ToolFailed(f"the toolbox {name} did not start: {state.error}")
        if len(self.workers) >= self.most:
            idle = next((w for w in self.workers.values() if w.is_free and not w.jobs), None)
            if idle is not None and not self.states[idle.pool.box].box.shared:
                self.starter.end_now(idle.process, "makes room")
            return  # the next end has the queue looked at
        state.error = ""
        process = self.starter.start_worker(state.box.spawn(name), caller)
        pool = Pool(name, 0 if caller is None else caller.pid)
        worker = self.workers[process.pid] = Worker(process, pool)
        self.pools.setdefault(pool, []).append(worker)

    def _worker(self, process: Process) -> Worker:
        if process.pid not in self.workers:
            raise Denied("only a toolbox's worker may", "tools are files with @tool: docs/tools.md")
        return self.workers[process.pid]

    def offer(self, process: Process, args: m.Offer) -> None:
        """Raises Denied, and BadInput for a name that is not the box's to use."""
        worker = self._worker(process)
        if worker.at_once and not self.states[worker.pool.box].box.shared:
            # From its first job on, what its caller sent may speak for it: code, to `python`.
            raise Denied("a worker says which tools it has before it takes jobs")
        for spec in args.tools:
            if spec.name.partition(".")[0] != worker.pool.box:
                raise BadInput(
                    f"{spec.name!r} is no tool of {worker.pool.box}", "name it BOX or BOX.NAME"
                )
        state = self.states[worker.pool.box]
        known = {} if args.anew or state.specs is None else state.specs
        state.specs = known | {spec.name: spec for spec in args.tools}

    def serve(self, call: Call, args: m.Serve) -> None:
        """Raises Denied."""
        worker = self._worker(call.process)
        if worker.serve is not None:
            worker.serve.done(Done())
        worker.serve, worker.at_once = call, args.at_once
        state = self.states[worker.pool.box]
        state.specs = {} if state.specs is None else state.specs

        def over() -> None:
            worker.serve = None

        call.on_end = over
        if not worker.pool.caller and not state.box.shared:
            self.starter.end_now(worker.process, "has said what it serves")
            worker.serve = None
        self._tell_listing()
        self._look()

    def progress(self, process: Process, args: m.JobProgress) -> None:
        """What comes too often to be looked at is left out. Raises Denied, NotFound."""
        job, now = self._job(process, args.id), time.monotonic()
        job.steps += 1
        if job.steps <= STEPS or now >= job.next_step:
            job.next_step = now + OFTEN
            body = m.ToolProgress(done=args.done, total=args.total, message=args.message)
            job.call.piece(body, keep=False)

    def done(self, process: Process, args: m.JobDone) -> None:
        """Raises Denied, and NotFound for a job that is over."""
        worker = self._worker(process)
        if args.id in worker.owed:
            worker.owed.discard(args.id)
            self._look()
            return
        job = self._job(process, args.id)
        job.told = True
        read = process.labels if job.pool.caller else set()  # one that serves all mixes nothing
        self.gate.taint(job.call.process, {f"tool:{job.args.name}"} | read)
        if args.error is not None:
            kind = ToolArguments if args.code == "tool.arguments" else ToolFailed
            job.call.fail(kind(args.error))
            return
        owner = process.principal if args.stored else ""
        job.call.done(
            m.ToolResult(value=args.value, owner=owner, stored=args.stored, size=args.size)
        )

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
        if ended.idle is not None:
            ended.idle.cancel()
        if not ended.at_once:
            self._did_not_start(ended)
        for job in list(ended.jobs.values()):
            job.call.fail(_broken(job, f"ended: {_how(process)}", ToolCrashed))
        self._look()

    def _did_not_start(self, worker: Worker) -> None:
        state = self.states[worker.pool.box]
        state.error = f"{_how(worker.process)} (see `aios logs {worker.process.pid}`)"
        state.retry = time.monotonic() + RETRY
        self._tell_listing()

    # --- after the kernel's death -----------------------------------------------------------------

    def recover(self, workers: list[Process]) -> None:
        """Those of the kernel before have nobody to tell; new ones are started for new calls."""
        for process in workers:
            self.starter.end_now(process, "the kernel has died")

    def check(self) -> list[str]:
        waiting = [job for queue in self.queues.values() for job in queue.values()]
        jobs = [*waiting, *self.running.values()]
        problems = [
            f"job {job.id} is kept, and its call has ended" for job in jobs if job.call.ended
        ]
        for pid, worker in self.workers.items():
            if not worker.process.alive:
                problems.append(f"worker {pid} is kept, and has ended")
            problems += [f"job {i} of worker {pid} does not run" for i in worker.jobs
                         if i not in self.running]  # fmt: skip
        if +self.at_work != Counter(job.args.name for job in self.running.values()):
            problems.append(f"of tools that run these are counted: {dict(+self.at_work)}")
        return problems


def _how(process: Process) -> str:
    said = process.result
    if isinstance(said, dict) and "error" in said:  # as the runner has it
        return str(said["error"])
    code = "" if process.code is None else f", code {process.code}"
    return f"{process.reason}{code}"


def _broken(job: Job, what: str, kind: type[AiosError]) -> AiosError:
    """What its caller hears of a job that had no end of its own."""
    effect = job.spec is not None and job.spec.effect
    return (ToolUnknown if effect else kind)(f"{job.args.name} {what}")
