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

import click
import msgspec

from aios.agents import Aios, connect
from aios.syscalls.errors import AiosError, TimedOut
from aios.syscalls.messages import Event, Exited, Generate, Result, Status

from . import demo_view, render
from .completion import policies
from .demo_jobs import DemoJob, pick
from .demo_view import Report, Runner
from .launch import System
from .options import Whole, field
from .output import at_terminal, live, progress, say, show
from .system import QUANTUM, SLOTS

REFRESH_S = 0.1  # between two looks at the agents
TAIL = 160  # bytes of an agent's log that are looked at
Draw = Callable[[Sequence[Runner]], None]


@click.command()
@click.option("--agents", type=Whole(1, 256), default=8, show_default=True)
@click.option("--slots", type=SLOTS, default=3, show_default=True)
@click.option(
    "--max-tokens", type=field(Generate, "max_tokens"), default=72, show_default=True,
    help="Of each agent.",
)  # fmt: skip
@click.option("--policy", default="rr", show_default=True, shell_complete=policies)
@click.option("--quantum", type=QUANTUM, default=16, show_default=True, help="Tokens of a turn.")
@click.option("--model", type=click.Path(path_type=Path), help="A GGUF file.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def demo(agents: int, max_tokens: int, model: Path | None, as_json: bool, **settings: Any) -> int:
    """Watch more agents than slots share a model.

    Runs on systems of its own, in temporary homes. Every agent runs once beside the others and once
    alone, on a second system that has nothing of the first. Exit code 0 only if both outputs of
    every agent are identical, bit for bit.

    \b
    Examples:
      aios demo
      aios demo --agents 16 --slots 4 --quantum 8
      aios demo --json
    """
    if model is not None:
        settings["model"] = str(model.absolute())
    report = measure(pick(agents, max_tokens), {"ctx": 1024, **settings})
    show(report.summary(), as_json, demo_view.summary(report))
    return int(report.identical < len(report.runners))


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
    """A system that ends with the block, and of which nothing is left."""
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
        runner.tail = aios.log(pid, -TAIL).data.decode(errors="ignore")


def result_of(aios: Aios, end: Exited) -> Result:
    if end.code:
        said = aios.log(end.pid, -2000).data.decode(errors="replace")
        raise AiosError(render.ending(end), said)
    return msgspec.convert(end.result, Result)


@contextmanager
def display(status: Status) -> Iterator[Draw]:
    """A live table on stderr in a terminal; else a line for each agent that is done."""
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


COMMANDS = (demo,)
