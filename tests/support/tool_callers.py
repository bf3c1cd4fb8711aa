"""Toolboxes, and the callers, timers and gate that a tool manager under test has."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

from aios.kernel.lib.coroutine import Driver
from aios.kernel.process import Process
from aios.kernel.tools.toolbox import Box
from aios.syscalls import tool as m
from aios.syscalls.errors import Cancelled


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
