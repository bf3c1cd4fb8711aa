"""`aios demo`: more agents than slots, on a system of its own; then each of them alone, on another.

The proof is that the two outputs of each agent have the same token ids and the same chained hash
of all logits, however often the agent was preempted in between.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from aios.agents import Aios, connect
from aios.syscalls.errors import AiosError, TimedOut
from aios.syscalls.kernel import Event, Status
from aios.syscalls.llm import Result
from aios.syscalls.proc import Exited

from .. import render
from ..launch import System
from ..output import at_terminal, live, progress, say
from . import view as demo_view
from .jobs import DemoJob
from .view import Report, Runner

REFRESH_S = 0.1  # between two looks at the agents
TAIL_BYTES = 160  # of an agent's log
Draw = Callable[[Sequence[Runner]], None]


def measure(jobs: Sequence[DemoJob], settings: dict[str, Any]) -> Report:
    """Run all jobs at once; then each alone, on another system, which has computed nothing yet."""
    with temporary_system(settings) as (home, status), connect(home, "demo") as aios:
        began = time.monotonic()
        with display(status) as draw:
            runners = play(aios, jobs, draw)
        together = time.monotonic() - began
    with (
        temporary_system(settings) as (home, _),
        connect(home, "demo") as aios,
        progress(plain=True) as tell,
    ):
        for number, runner in enumerate(runners, start=1):
            tell(f"alone: agent {number} of {len(runners)}, {runner.job.name}")
            runner.solo = play(aios, [runner.job], lambda _: None)[0].result
    return Report(status, runners, together)


@contextmanager
def temporary_system(settings: dict[str, Any]) -> Iterator[tuple[Path, Status]]:
    """Run a system that ends with the block and leaves nothing behind."""
    with tempfile.TemporaryDirectory(prefix="aios-demo-") as folder:
        system = System(Path(folder), settings, detach=False)
        try:
            with progress(plain=True) as tell:
                status = system.ready(tell)
            yield system.home, status
        finally:
            system.end()


def play(aios: Aios, jobs: Sequence[DemoJob], draw: Draw) -> list[Runner]:
    """Run one agent a job, all at once, showing how they get on.

    Raises:
        AiosError: an agent failed.
    """
    events = aios.start("kernel.events", kinds=["generation"])
    pids = [aios.spawn("demo_worker", job._asdict(), name=job.name) for job in jobs]
    runners = {pid: Runner(job, pid) for pid, job in zip(pids, jobs, strict=True)}
    ends = [aios.start("proc.wait", pid=pid) for pid in pids]
    while waited := [end for end in ends if not end.ended]:
        try:
            waited[0].wait(REFRESH_S)
        except TimedOut:
            observe(aios, runners, events.pieces)
            draw(list(runners.values()))
    observe(aios, runners, events.pieces)
    aios.cancel(events.id)
    for end in ends:
        exited = msgspec.convert(end.wait(), Exited)
        runners[exited.pid].result = result_of(aios, exited)
    draw(list(runners.values()))
    return list(runners.values())


def observe(aios: Aios, runners: dict[int, Runner], events: Any) -> None:
    """Bring the figures of all runners up to date."""
    for row in aios.ps(all=True):
        if row.pid in runners:
            runners[row.pid].row = row
    while events:
        event = msgspec.convert(events.popleft(), Event)
        if event.pid in runners:
            runners[event.pid].take(event)
    for pid, runner in runners.items():
        runner.tail = aios.log(pid, -TAIL_BYTES).data.decode(errors="ignore")


def result_of(aios: Aios, end: Exited) -> Result:
    if end.code:
        said = aios.log(end.pid, -2000).data.decode(errors="replace")
        raise AiosError(render.ending(end), said)
    return msgspec.convert(end.result, Result)


@contextmanager
def display(status: Status) -> Iterator[Draw]:
    """Show a live table on stderr in a terminal; else a line for each agent that is done."""
    if not at_terminal(err=True):
        shown: set[int] = set()

        def lines(runners: Sequence[Runner]) -> None:
            for runner in runners:
                if runner.done and runner.pid not in shown:
                    shown.add(runner.pid)
                    say(f"done: {runner.line()}", err=True)

        say(demo_view.heading(status), err=True)
        yield lines
        return
    with live() as drawn:

        def table(runners: Sequence[Runner]) -> None:
            size = drawn.console.size
            drawn.update(demo_view.live(status, runners, time.time(), *size), refresh=True)

        yield table
