"""Questions of rules to a person: in words, asked in the terminal, and told above a prompt."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import get_terminal_size
from typing import Any

import msgspec

from aios.agents import Aios, connect
from aios.agents.sdk.connection import Pending
from aios.syscalls.acc import Question
from aios.syscalls.errors import AiosError, NotFound, TimedOut

from .escape import as_json_text, folded, shown
from .jobs import WIDTH
from .output import at_terminal, choose, headline, say

ANSWERS = ("once", "agent", "always", "deny")
POLL_S = 0.1  # between two looks for questions, while a prompt waits
KERNEL_POLL_S = 1.0  # between two looks for a kernel
LABEL = "            "  # room for what each part is
MARK = "| "  # in front of each line that an agent has, or may have, chosen the words of
WHOLE = 2**31  # lines
LONG, SHORT = 40, 6  # lines of a part that are shown without being asked for; above a prompt


def heading(question: Question) -> str:
    left = max(0.0, question.expires - time.time())
    asks = f"process {question.pid} asks for {question.call}"
    return f"question {question.id}: {asks}; {left:.0f} s to answer"


def in_words(question: Question, width: int, longest: int) -> tuple[list[str], bool]:
    """Return the lines of a question below its heading, and whether some were left out of the
    middle of a part with more than `longest`. No agent's words begin a line, or are mistaken for
    the shell's: each line of them is marked, and folded by the shell, not by the terminal."""
    parts = [
        ("agent", question.principal), ("on", "\n".join(question.objects)),
        ("with", as_json_text(legible(question.args)) if question.args else ""),
        ("has read", ", ".join(question.tainted)), ("rule", question.rule),
    ]  # fmt: skip
    lines: list[str] = []
    cut = False
    for label, text in parts:
        if not text:
            continue
        part = folded(text, width, LABEL + MARK)
        if len(part) > longest:
            left_out = len(part) - longest
            part[longest // 2 : longest // 2 + left_out] = [f"  ({left_out} lines are not shown)"]
            cut = True
        lines += [f"  {label}".ljust(len(LABEL)) + part[0][len(LABEL) :], *part[1:]]
    return lines, cut


def legible(value: Any) -> Any:
    """Return a value with bytes as text if they are UTF-8: it is what a person is asked to
    allow."""
    if isinstance(value, bytes):
        with contextlib.suppress(UnicodeDecodeError):
            return value.decode()
    if isinstance(value, dict):
        return {name: legible(each) for name, each in value.items()}
    return [legible(each) for each in value] if isinstance(value, list) else value


def ask_person(aios: Aios, question: Question) -> None:
    """Ask a question in the terminal, and pass the answer on. Raises click.Abort at Ctrl-C."""
    longest = LONG
    answer: Any = "all"
    while answer == "all":
        lines, cut = in_words(question, get_terminal_size().columns, longest)
        headline(heading(question))
        say("\n".join(lines), err=True)
        answer = choose("answer", [*ANSWERS, "all"] if cut else ANSWERS)
        longest = WHOLE
    try:
        aios.answer(question.id, answer)
    except NotFound as error:  # it took too long, or another terminal was quicker
        say(f"aios: {shown(error.message)}", err=True)


def come(call: Pending) -> Iterator[Question]:
    """Yield the questions that have come, of a call of acc.ask."""
    while call.pieces:
        yield msgspec.convert(call.pieces.popleft(), Question)


def asking_in_place(aios: Aios, pid: int) -> Callable[[], None]:
    """Return a function that asks a person, if there is one at the terminal, what an agent and
    those below it have asked since; call it now and then."""
    if not (sys.stdin.isatty() and at_terminal(err=True)):
        return lambda: None
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
    """Tells what waits for an answer while a prompt is shown, from a thread of its own. It does not
    say why it cannot: each command that is typed does."""

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
            with contextlib.suppress(AiosError), connect(self.home, "aios-shell") as aios:
                self._follow(aios)
            self.ended.wait(KERNEL_POLL_S)

    def _follow(self, aios: Aios) -> None:
        """Tell at each prompt what still waits, each question once."""
        told: set[int] = set()
        while not self.ended.is_set():
            if not self.prompting.wait(POLL_S):
                continue
            call = aios.start("acc.ask")
            while self.prompting.is_set() and not self.ended.is_set():
                with contextlib.suppress(TimedOut):
                    call.wait(POLL_S)
                for question in come(call):
                    if question.id not in told:
                        told.add(question.id)
                        self._tell(question)
            aios.cancel(call.id)

    def _tell(self, question: Question) -> None:
        lines, cut = in_words(question, WIDTH, SHORT)
        how = "`policy ask` shows all of it; then " if cut else ""
        lines.append(f"  {how}policy answer {question.id} {'|'.join(ANSWERS)}")
        for line in [heading(question), *lines]:
            self.emit(line)
