"""Parts that the benches share: the text they run on, and a system of their own."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from aios.agents import Aios
from aios.kernel.config import embedded_model
from aios.shell.launch import System
from aios.syscalls.proc import Exited

Progress = Callable[[str], None]


class Target(NamedTuple):
    """The bound of a bench's ratio, from above unless it is to be at least so much."""

    bound: float
    at_least: bool = False

    def missed(self, ratio: float) -> bool:
        return ratio < self.bound if self.at_least else ratio > self.bound


READY_TIMEOUT_S = 60.0  # of an agent
MODEL: ContextVar[Path | None] = ContextVar("model", default=None)  # None: the embedded one


def model() -> Path:
    """Return the model's file, which both sides of a bench load."""
    return MODEL.get() or embedded_model()


def text() -> str:
    """Return the first chapter of Alice's Adventures in Wonderland, about 2,900 tokens."""
    return files("aios.examples").joinpath("alice.txt").read_text()


def threads() -> int:
    """Return the threads that both sides of a bench compute with: one a processor, as `aios start`
    takes."""
    return os.cpu_count() or 1


@contextmanager
def system(progress: Progress, **settings: Any) -> Iterator[Path]:
    """Yield the home of a system that runs as long as the block does."""
    with tempfile.TemporaryDirectory(prefix="aios-") as home:
        running = System(Path(home), {"model": str(model()), **settings}, detach=False)
        try:
            running.ready(progress)
            yield running.home
        finally:
            running.end()


def race(aios: Aios, program: str, tasks: Sequence[dict[str, Any]]) -> list[Exited]:
    """Spawn an agent for each task; once all are ready, let them go. Return the end of each."""
    pids = [aios.spawn(program, {"starter": aios.pid, **task}) for task in tasks]
    for pid in pids:
        aios.recv(pid, timeout=READY_TIMEOUT_S)
    for pid in pids:
        aios.send(pid, "go")
    return [aios.wait(pid) for pid in pids]


def timed(work: Callable[[], object], count: int) -> list[float]:
    """Return the seconds that each of `count` calls of `work` takes."""
    seconds = []
    for _ in range(count):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return seconds
