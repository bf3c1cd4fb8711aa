"""The tool manager: which tools there are, who runs them for whom, and what comes of a call.

A call becomes a job. It waits for a worker that is free, for the tool's limit and for its lock; then
it has one of four ends: the worker's word, its time limit, its caller's cancel or end, the worker's
death. A worker that did not have the last word is ended: what a job leaves half done is never met by
another. A job of a tool that has an effect is journaled before its worker hears of it; if the
kernel dies, its caller hears that it is unknown what has happened, and nothing is done again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

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
from aios.syscalls.messages import Done

from .access import Gate
from .process import Process
from .toolbox import Box
from .trap import Call

RETRY = 1.0  # seconds until a toolbox that did not start is started again

_encode = msgspec.msgpack.Encoder().encode


class Starter(Protocol):
    """What the tool manager asks of the life of processes."""

    def start_worker(self, box: str, spawn: Any, caller: Process | None) -> Process:
        """Raises LimitReached."""

    def end_now(self, process: Process, reason: str) -> None: ...


class JobRow(msgspec.Struct, array_like=True):
    """What is journaled of a job with an effect."""

    caller: int
    call: int
    tool: str


@dataclass
class Job:
    id: int
    call: Call
    box: str
    tool: str
    args: dict[str, Any]
    timeout: float | None
    spec: m.Spec | None = None  # once it runs
    worker: Worker | None = None
    timer: Any = None
    told: bool = False  # the worker has said how it ended


@dataclass
class Worker:
    process: Process
    box: str
    caller: int  # pid; 0: it is there for all
    serve: Call | None = None
    at_once: int = 0
    jobs: dict[int, Job] = field(default_factory=dict)
    owed: set[int] = field(default_factory=set)  # jobs that are over, but not for it
    idle: Any = None  # the timer that ends it

    @property
    def free(self) -> bool:
        return self.serve is not None and len(self.jobs) + len(self.owed) < self.at_once


@dataclass
class State:
    """What is known of a toolbox."""

    box: Box
    specs: dict[str, m.Spec] | None = None  # None: no worker has said yet
    error: str = ""
    retry: float = 0.0  # when one that did not start may be started again


class Tools:
    """`note` journals a job, or with None that it is over."""

    def __init__(
        self, boxes: dict[str, Box], starter: Starter, gate: Gate,
        after: Callable[[float, Callable[[], None]], Any],
        note: Callable[[int, bytes | None], None],
    ) -> None:  # fmt: skip
        self.starter, self.gate, self.after, self.note = starter, gate, after, note
        self.states = {name: State(box) for name, box in boxes.items()}
        self.workers: dict[int, Worker] = {}  # by pid
        self.queue: dict[int, Job] = {}  # the oldest first
        self.running: dict[int, Job] = {}
        self.listing: list[Call] = []
        self.last = time.time_ns() // 1000  # above those of the kernels before

    # --- callers ----------------------------------------------------------------------------------

    def list(self, call: Call) -> None:
        """Once each toolbox has said what it serves, or could not be started."""
        for name, state in self.states.items():
            if state.specs is None and time.monotonic() >= state.retry:
                self._start(name, None)
        self.listing.append(call)
        call.on_end = partial(self.listing.remove, call)
        self._tell_listing()

    def _tell_listing(self) -> None:
        if any(state.specs is None and not state.error for state in self.states.values()):
            return
        for call in self.listing.copy():
            specs = [spec for state in self.states.values() for spec in (state.specs or {}).values()]
            may = [s for s in specs if self.gate.may_ever(call.process, "tool.call", s.name)]
            call.done(m.Tools(tools=may, boxes=[*self._boxes()]))

    def _boxes(self) -> Iterator[m.Box]:
        for name, state in self.states.items():
            pids = [pid for pid, worker in self.workers.items() if worker.box == name]
            yield m.Box(name=name, tools=len(state.specs or {}), workers=pids, error=state.error)

    def call(self, call: Call, args: m.CallTool) -> None:
        """Raises NotFound."""
        box = args.name.partition(".")[0]
        if box not in self.states:
            raise NotFound(f"no tool {args.name!r}", "`aios tool list` lists them")
        self.last += 1
        job = Job(self.last, call, box, args.name, args.args, args.timeout)
        self.queue[job.id] = job
        call.on_end = partial(self._over, job)
        if args.timeout is not None:
            job.timer = self.after(args.timeout, partial(self._timed_out, job, args.timeout))
        self._dispatch()

    # --- jobs -------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        """Give what waits to whoever is free."""
        for job in list(self.queue.values()):
            if job.id not in self.queue:  # it ended by what became of one before it
                continue
            try:
                spec = self._spec(job)
                if spec is None or self._may_run(spec):
                    self._place(job, spec)
            except AiosError as error:
                job.call.fail(error)

    def _spec(self, job: Job) -> m.Spec | None:
        """None: not yet known. Raises NotFound."""
        specs = self.states[job.box].specs
        if specs is not None and job.tool not in specs:
            raise NotFound(f"no tool {job.tool!r}", f"{job.box} has: {', '.join(specs)}")
        return None if specs is None else specs[job.tool]

    def _may_run(self, spec: m.Spec) -> bool:
        same = sum(job.tool == spec.name for job in self.running.values())
        locked = any(
            job.spec is not None and job.spec.exclusive == spec.exclusive
            for job in self.running.values()
        )
        return same < spec.limit and not (spec.exclusive and locked)

    def _place(self, job: Job, spec: m.Spec | None) -> None:
        caller = 0 if self.states[job.box].box.shared else job.call.process.pid
        pool = [w for w in self.workers.values() if (w.box, w.caller) == (job.box, caller)]
        free = next((worker for worker in pool if worker.free), None)
        if free is not None and spec is not None:
            self._run(job, spec, free)
            return
        coming = sum(worker.serve is None for worker in pool)
        waiting = sum(j.box == job.box and self._pool(j) == caller for j in self.queue.values())
        most = 1 if caller == 0 else self.states[job.box].box.workers
        if coming < waiting and len(pool) < most:
            self._start(job.box, job.call.process if caller else None)

    def _pool(self, job: Job) -> int:
        return 0 if self.states[job.box].box.shared else job.call.process.pid

    def _run(self, job: Job, spec: m.Spec, worker: Worker) -> None:
        assert worker.serve is not None
        del self.queue[job.id]
        self.running[job.id] = worker.jobs[job.id] = job
        job.worker, job.spec = worker, spec
        if worker.idle is not None:
            worker.idle.cancel()
        if job.timer is None:
            job.timer = self.after(spec.timeout, partial(self._timed_out, job, spec.timeout))
        if spec.effect:
            self.note(job.id, _encode(JobRow(job.call.process.pid, job.call.id, job.tool)))
        self.gate.taint(worker.process, job.call.process.labels)
        body = m.Job(id=job.id, tool=job.tool, args=job.args)
        worker.serve.piece(body, durable=spec.effect)

    def _timed_out(self, job: Job, seconds: float) -> None:
        what = f"{job.tool} was not done within {seconds:g} s"
        effect = job.spec is not None and job.spec.effect
        job.call.fail(ToolUnknown(what) if effect else ToolTimeout(what))

    def _over(self, job: Job) -> None:
        """Its call has had its final reply, for whatever reason."""
        if job.timer is not None:
            job.timer.cancel()
        self.queue.pop(job.id, None)
        worker = job.worker
        if worker is not None and self.running.pop(job.id, None) is not None:
            assert job.spec is not None
            if job.spec.effect:
                self.note(job.id, None)
            worker.jobs.pop(job.id, None)
            self._leave(worker, job)
        self._dispatch()

    def _leave(self, worker: Worker, job: Job) -> None:
        """What becomes of the worker that had it."""
        box = self.states[worker.box].box
        if not worker.process.alive:
            return
        if not job.told and box.shared and worker.serve is not None:
            worker.serve.piece(m.Job(id=job.id, cancelled=True))
            worker.owed.add(job.id)
            if not worker.jobs and not worker.free:  # it has come to nothing but what hangs
                self.starter.end_now(worker.process, "hangs")
        elif not job.told:
            self.starter.end_now(worker.process, f"{job.tool} was not to go on")
        elif box.fresh:
            self.starter.end_now(worker.process, "has done its job")
        elif not worker.jobs and not box.shared:
            end = partial(self.starter.end_now, worker.process, "idle")
            worker.idle = self.after(box.idle, end)

    # --- workers ----------------------------------------------------------------------------------

    def _start(self, name: str, caller: Process | None) -> None:
        """Raises AiosError where it cannot be."""
        state = self.states[name]
        if time.monotonic() < state.retry:
            raise ToolFailed(f"the toolbox {name} did not start: {state.error}", "try again later")
        pid = 0 if caller is None else caller.pid
        if any((w.box, w.caller, w.serve) == (name, pid, None) for w in self.workers.values()) and (
            caller is None
        ):
            return
        state.error = ""
        process = self.starter.start_worker(name, state.box.spawn(name), caller)
        self.workers[process.pid] = Worker(process, name, pid)

    def _worker(self, process: Process) -> Worker:
        if process.pid not in self.workers:
            raise Denied("only a worker of a toolbox may", "tools are files with @tool: docs/tools.md")
        return self.workers[process.pid]

    def offer(self, call: Call, args: m.Offer) -> None:
        """Raises Denied, and BadInput for a name that is not the box's."""
        worker = self._worker(call.process)
        foreign = [s.name for s in args.tools if s.name.partition(".")[0] != worker.box]
        if foreign:
            raise BadInput(f"{foreign[0]} is no name for a tool of {worker.box}", "BOX or BOX.NAME")
        state = self.states[worker.box]
        known = {} if args.anew or state.specs is None else state.specs
        state.specs = known | {spec.name: spec for spec in args.tools}

    def serve(self, call: Call, args: m.Serve) -> None:
        """Raises Denied."""
        worker = self._worker(call.process)
        if worker.serve is not None:
            worker.serve.done(Done())
        worker.serve, worker.at_once = call, args.at_once
        state = self.states[worker.box]
        if state.specs is None:
            state.specs = {}

        def over() -> None:
            if worker.serve is call:
                worker.serve = None

        call.on_end = over
        if not worker.caller and not state.box.shared:
            self.starter.end_now(worker.process, "has said what it serves")
        self._tell_listing()
        self._dispatch()

    def progress(self, call: Call, args: m.JobProgress) -> None:
        job = self._job(call, args.id)
        job.call.piece(m.ToolProgress(done=args.done, total=args.total, message=args.message))

    def done(self, call: Call, args: m.JobDone) -> None:
        """Raises Denied, and NotFound for a job that is over."""
        worker = self._worker(call.process)
        if args.id in worker.owed:
            worker.owed.discard(args.id)
            self._dispatch()
            return
        job = self._job(call, args.id)
        job.told = True
        caller = job.call.process
        self.gate.taint(caller, {f"tool:{job.tool}"} | worker.process.labels)
        if args.error is None:
            job.call.done(m.ToolResult(value=args.value, stored=args.stored, size=args.size))
        else:
            kind = ToolArguments if args.code == "tool.arguments" else ToolFailed
            job.call.fail(kind(args.error))

    def _job(self, call: Call, job_id: int) -> Job:
        job = self._worker(call.process).jobs.get(job_id)
        if job is None:
            raise NotFound(f"no job {job_id} of this worker", "it is over already")
        return job

    def ended(self, process: Process) -> None:
        """A worker, or somebody who has some."""
        for worker in list(self.workers.values()):
            if worker.caller == process.pid and worker.process.alive:
                self.starter.end_now(worker.process, "caller gone")
        worker = self.workers.pop(process.pid, None)
        if worker is None:
            return
        if worker.idle is not None:
            worker.idle.cancel()
        how = f"{process.reason or 'exit'}, code {process.code}"
        for job in list(worker.jobs.values()):
            assert job.spec is not None
            what = f"the process that ran {job.tool} has ended: {how}"
            job.call.fail(ToolUnknown(what) if job.spec.effect else ToolCrashed(what))
        if not worker.at_once:
            self._did_not_start(worker, how)
        self._dispatch()

    def _did_not_start(self, worker: Worker, how: str) -> None:
        state = self.states[worker.box]
        said = worker.process.result
        why = said.get("error") if isinstance(said, dict) else None
        state.error = f"{why or how} (`aios log {worker.process.pid}`)"
        state.retry = time.monotonic() + RETRY
        self._tell_listing()

    # --- after the kernel's death -----------------------------------------------------------------

    def recover(self, workers: list[Process]) -> None:
        """Workers of the kernel before have nobody to tell; what they were doing is unknown."""
        for process in workers:
            self.starter.end_now(process, "the kernel has died")

    def check(self) -> list[str]:
        problems = [f"job {i} runs, and its call has ended" for i, j in self.running.items()
                    if j.call.ended]
        problems += [f"job {i} waits, and its call has ended" for i, j in self.queue.items()
                     if j.call.ended]
        problems += [f"worker {pid} is dead" for pid, w in self.workers.items()
                     if not w.process.alive]
        return problems
