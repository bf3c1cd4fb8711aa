"""Read, set and enforce limits: measure processes, and end those that are over a limit."""

from __future__ import annotations

import time

import psutil

from aios.syscalls.proc import Limits, SetLimits

from ..entry.call import Call
from ..process import Process
from .inherited import changed, tightened
from .lifecycle import Lifecycle

PROCESSES_PER_SWEEP = 25  # that are measured


class LimitEnforcer:
    """Measures processes in turn. It also finds clients that have left without a word."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self.lifecycle, self.table = lifecycle, lifecycle.table
        self.figures: dict[int, psutil.Process] = {}  # by pid
        self.next = 0  # place of the live process that the next sweep begins with
        lifecycle.ended.append(self._forget)

    def _forget(self, process: Process) -> None:
        self.figures.pop(process.pid, None)

    def set_limits(self, call: Call, args: SetLimits) -> Limits:
        """Return the limits of a process, changed first if the call says how. An agent sets none
        above its own."""
        process = call.process if args.pid is None else self.table.get(args.pid)
        if args.limits is not None:
            wanted, caller = changed(process.limits, args.limits), call.process
            process.limits = wanted if caller.kind == "client" else tightened(caller.limits, wanted)
            process.touch()
        return process.limits

    def sweep(self) -> None:
        """Check the time of all processes, and measure some."""
        live = list(self.table.live())
        now = time.monotonic()
        for process in live:
            wall = process.limits.wall
            if wall is not None and now - process.started > wall:
                self.lifecycle.end_over_limit(process, "wall", f"{wall:g} s have passed")
        for process in live[self.next : self.next + PROCESSES_PER_SWEEP]:
            self._measure(process)
        self.next = (
            self.next + PROCESSES_PER_SWEEP if self.next + PROCESSES_PER_SWEEP < len(live) else 0
        )

    def _measure(self, process: Process) -> None:
        if not process.alive or not process.os_pid:
            return
        try:
            figures = self.figures.setdefault(process.pid, psutil.Process(process.os_pid))
            with figures.oneshot():
                if figures.status() == psutil.STATUS_ZOMBIE:  # a client whose parent is slow
                    raise psutil.ZombieProcess(process.os_pid)
                times, process.memory = figures.cpu_times(), figures.memory_info().rss
            process.cpu = times.user + times.system
        except psutil.NoSuchProcess:
            session = self.lifecycle.sessions.by_pid.get(process.pid)
            if process.kind == "client" and session is not None:
                self.lifecycle.lost(session, "gone")
            return  # an agent's end is init's to tell
        limit = process.limits.memory
        if limit is not None and process.memory > limit:
            what = f"it holds {process.memory} bytes, {limit} are allowed"
            self.lifecycle.end_over_limit(process, "memory", what)
