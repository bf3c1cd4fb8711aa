"""The records of the tool manager: jobs, workers, and what toolboxes have said."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from aios.syscalls import tool as m
from aios.syscalls.base import Done
from aios.syscalls.errors import AiosError, BadInput, ToolArguments, ToolFailed, ToolUnknown

from ..entry.call import Call
from ..lib.coroutine import Wait
from ..process import Process
from .toolbox import Box

PROGRESS_BURST, PROGRESS_INTERVAL_S = 16, 0.1  # reports passed on; then between two
RETRY_S = 60.0  # until a toolbox that could not be started is tried again unchanged
MAX_OFFER_BYTES = 1 << 20  # of the descriptions of a toolbox's tools

_encode = msgspec.msgpack.Encoder().encode


class JobRow(msgspec.Struct, array_like=True):
    """The row in the journal of a job with an effect."""

    caller: int
    call: int
    tool: str


class Pool(NamedTuple):
    """Workers of one toolbox, for one caller or for all."""

    box: str
    caller: int  # pid; 0: all


@dataclass
class Job:
    """A call of a tool, from its call to its end."""

    id: int
    call: Call
    pool: Pool
    args: m.CallTool
    tree: str  # of agents, that the caller is in
    round: int = 0  # that the tree has this turn in
    end: Wait[m.ToolResult] = field(default_factory=Wait)
    spec: m.Spec | None = None  # these two are set while it runs
    worker: Worker | None = None
    timers: list[Any] = field(default_factory=list)
    steps: int = 0  # of its progress
    next_step: float = 0.0
    answered: bool = False  # the worker has said how it ended

    @property
    def turn(self) -> tuple[int, int]:
        return self.round, self.id

    def may_report(self, now: float) -> bool:
        """Count a report of progress, and tell whether it is passed on."""
        self.steps += 1
        if self.steps > PROGRESS_BURST and now < self.next_step:
            return False
        self.next_step = now + PROGRESS_INTERVAL_S
        return True

    def end_with(self, said: m.JobDone, principal: str) -> None:
        """End the job by its worker's word; `principal` is the worker's."""
        if said.error is not None:
            kind = ToolArguments if said.code == "tool.arguments" else ToolFailed
            self.end.fail(kind(said.error))
            return
        owner = principal if said.stored else ""
        self.end.done(
            m.ToolResult(value=said.value, owner=owner, stored=said.stored, size=said.size)
        )


@dataclass
class Worker:
    """A process that does jobs."""

    process: Process
    pool: Pool
    state: State  # of its toolbox
    timer: Any  # ends it
    stamp: int  # of the file with its tools, when it was started
    offered: dict[str, m.Spec] = field(default_factory=dict)
    serve: Call | None = None
    served: Wait[Done] = field(default_factory=Wait)  # the end of that call
    at_once: int = 0  # 0: it does not serve yet
    jobs: dict[int, Job] = field(default_factory=dict)
    # Specs of jobs that ended without its answer, and that it may still do.
    unfinished: dict[int, m.Spec] = field(default_factory=dict)

    def offer(self, args: m.Offer) -> None:
        """Add tools. Raises BadInput for a name that is not the box's to use, and for too much."""
        for spec in args.tools:
            if spec.name.partition(".")[0] != self.pool.box:
                raise BadInput(
                    f"{spec.name!r} is no tool of {self.pool.box}", "name it BOX or BOX.NAME"
                )
        offered = {} if args.anew else dict(self.offered)
        offered |= {spec.name: spec for spec in args.tools}
        if len(_encode(list(offered.values()))) > MAX_OFFER_BYTES:
            raise BadInput(
                f"the tools of {self.pool.box} take more than {MAX_OFFER_BYTES} bytes to tell"
            )
        self.offered = offered

    @property
    def is_free(self) -> bool:
        # A stopped worker is given jobs as well, whose time limit then ends it.
        ready = self.serve is not None and self.process.state in ("running", "stopped")
        return ready and len(self.jobs) + len(self.unfinished) < self.at_once

    @property
    def is_coming(self) -> bool:
        return self.process.state in ("starting", "running") and not self.at_once


@dataclass
class State:
    """The state of a toolbox."""

    box: Box
    specs: dict[str, m.Spec] | None = None  # None: no worker has offered any yet
    stamp: int = 0  # of the file that the specs are from
    is_known: bool = False  # the specs are those of the file as it is
    error: str = ""  # why no worker could be started
    failed: tuple[float, int] = (0.0, 0)  # when that was, monotonic, and the file's stamp

    def look_again(self) -> None:
        """Forget tools of a file that has changed, and an error that may be gone."""
        stamp, (when, failed) = self.box.stamp(), self.failed
        self.is_known = self.is_known and self.stamp == stamp
        if stamp != failed or time.monotonic() - when > RETRY_S:
            self.error = ""


def how_ended(process: Process) -> str:
    """Return in words how a worker ended."""
    said = msgspec.msgpack.decode(process.result)
    if isinstance(said, dict) and "error" in said:  # as the runner has it
        return str(said["error"])
    code = "" if process.code is None else f", code {process.code}"
    return f"{process.reason}{code}"


def broken(job: Job, what: str, kind: type[AiosError]) -> AiosError:
    """Return the error for the caller of a job that had no end of its own."""
    effect = job.spec is not None and job.spec.effect
    return (ToolUnknown if effect else kind)(f"{job.args.name} {what}")
