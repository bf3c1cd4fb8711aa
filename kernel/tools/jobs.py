"""The records of the tool manager: jobs, workers, and what toolboxes have said."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from aios.syscalls import tool as m
from aios.syscalls.base import Done

from ..entry.call import Call
from ..lib.coroutine import Wait
from ..process import Process
from .toolbox import Box


class JobRow(msgspec.Struct, array_like=True):
    """The row in the journal of a job with an effect."""

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
    tree: str  # of agents, that its caller is in
    round: int = 0  # in which that has this turn
    end: Wait[m.ToolResult] = field(default_factory=Wait)
    spec: m.Spec | None = None  # these two are set while it runs
    worker: Worker | None = None
    timers: list[Any] = field(default_factory=list)
    steps: int = 0  # of its progress
    next_step: float = 0.0
    told: bool = False  # the worker has said how it ended

    @property
    def turn(self) -> tuple[int, int]:
        return self.round, self.id


@dataclass
class Worker:
    process: Process
    pool: Pool
    timer: Any  # that ends it
    stamp: int  # of the file that it has its tools from
    offered: dict[str, m.Spec] = field(default_factory=dict)
    serve: Call | None = None
    served: Wait[Done] = field(default_factory=Wait)  # the end of that
    at_once: int = 0  # 0: it has not said yet
    jobs: dict[int, Job] = field(default_factory=dict)
    owed: dict[int, m.Spec] = field(default_factory=dict)  # of jobs that are over, but not for it

    @property
    def is_free(self) -> bool:
        # One that was stopped is given some as well: their time limit makes an end of it.
        ready = self.serve is not None and self.process.state in ("running", "stopped")
        return ready and len(self.jobs) + len(self.owed) < self.at_once

    @property
    def is_coming(self) -> bool:
        return self.process.state in ("starting", "running") and not self.at_once


@dataclass
class State:
    """The state of a toolbox."""

    box: Box
    specs: dict[str, m.Spec] | None = None  # None: no worker has said yet
    stamp: int = 0  # of the file that they are from
    is_known: bool = False  # they are of the file as it is
    error: str = ""  # why none could
    failed: tuple[float, int] = (0.0, 0)  # when that was, monotonic, and of which file
