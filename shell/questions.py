"""What agents ask a person: put into words, asked in the terminal, and told above a prompt."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from aios.agents import Aios, connect
from aios.agents.client import Pending
from aios.syscalls.acc import Question
from aios.syscalls.errors import KernelGone, NotFound, TimedOut

from . import render

ANSWERS = ("once", "agent", "always", "deny")
LOOK = 0.1  # seconds between two looks for questions, while a prompt waits
KERNEL_LOOK = 1.0  # seconds between two looks for a kernel


def in_words(question: Question) -> str:
    about = f" on {question.object!r}" if question.object else ""
    args = f" with {render.line(question.args, 400)}" if question.args else ""
    left = max(0.0, question.expires - time.time())
    tainted = f"\n  it has read from {', '.join(question.tainted)}" if question.tainted else ""
    return (
        f"{question.id}: {question.principal} (process {question.pid}) asks for {question.call}"
        f"{about}{args}{tainted}\n  {question.rule}; {left:.0f} s to answer"
    )


def ask_person(aios: Aios, question: Question) -> None:
    """In the terminal. Raises click.Abort at Ctrl-C."""
    click.echo(in_words(question), err=True)
    answer: Any = click.prompt("answer", type=click.Choice(ANSWERS), err=True)
    try:
        aios.answer(question.id, answer)
    except NotFound as error:  # it took too long, or another terminal was quicker
        click.echo(f"aios: {error.message}", err=True)


def come(call: Pending) -> Iterator[Question]:
    """The questions that have come, of a call of acc.ask."""
    while call.pieces:
        yield msgspec.convert(call.pieces.popleft(), Question)


def asking_in_place(aios: Aios, pid: int) -> Callable[[], None]:
    """Asks what an agent and those below it have asked since; to be called now and then."""
    call = aios.start("acc.ask")

    def below(asker: int) -> bool:
        parents = {row.pid: row.parent for row in aios.ps(all=True)}
        while asker not in (0, pid):
            asker = parents.get(asker, 0)
        return asker == pid

    def look() -> None:
        for question in come(call):
            if below(question.pid):
                ask_person(aios, question)

    return look


class Notices:
    """Tells what waits for an answer while a prompt is shown, from a thread of its own."""

    def __init__(self, home: Path, emit: Callable[[str], None]) -> None:
        self.home, self.emit = home, emit
        self.prompting, self.ended = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def end(self) -> None:
        self.ended.set()
        self.thread.join()

    def _run(self) -> None:
        while not self.ended.is_set():
            with contextlib.suppress(KernelGone), connect(self.home, "aios-shell") as aios:
                self._follow(aios)
            self.ended.wait(KERNEL_LOOK)

    def _follow(self, aios: Aios) -> None:
        """At each prompt what still waits, each question once."""
        told: set[int] = set()
        while not self.ended.is_set():
            if not self.prompting.wait(LOOK):
                continue
            call = aios.start("acc.ask")
            while self.prompting.is_set() and not self.ended.is_set():
                with contextlib.suppress(TimedOut):
                    call.wait(LOOK)
                for question in come(call):
                    if question.id not in told:
                        told.add(question.id)
                        self._tell(question)
            aios.cancel(call.id)

    def _tell(self, question: Question) -> None:
        answers = "|".join(ANSWERS)
        for line in f"{in_words(question)}\n  policy answer {question.id} {answers}".splitlines():
            self.emit(line)
