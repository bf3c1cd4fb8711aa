"""The interactive shell: the commands of `aios`, with history, completion and background jobs."""

from __future__ import annotations

import shlex
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import click
from click.shell_completion import ShellComplete
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory
from prompt_toolkit.patch_stdout import patch_stdout

from .jobs import BackgroundJob
from .launch import usable
from .output import say
from .questions import Notices

BUILTINS = {
    "jobs": "list what runs in the background",
    "fg": "wait for a job; Ctrl-C ends it",
    "help": "show help on a command",
    "exit": "end the shell, and its jobs",
    "quit": "the same",
}
HELP = (
    "\nIn this shell:\n"
    + "\n".join(f"  {k:6}{v}" for k, v in BUILTINS.items())
    + """
  A line that ends in & runs in the background; # begins a comment."""
)


class Line(NamedTuple):
    args: list[str]
    background: bool


def parse(text: str) -> Line:
    """Split a line into words as a POSIX shell does; a & at the end is for the background.

    Raises:
        ValueError: a quote is not closed.
    """
    args = shlex.split(text, comments=True)
    if not (args and args[-1].endswith("&") and text.rstrip().endswith("&")):
        return Line(args, False)
    last = args.pop()[:-1]
    return Line([*args, last] if last else args, True)


def split_at_cursor(text: str) -> tuple[list[str], str]:
    """Return the whole words before the cursor, and the one that it is in."""
    try:
        words = shlex.split(text)
    except ValueError:  # in a quoted word: there is nothing to complete
        return [], ""
    if not words or text[-1].isspace():
        return words, ""
    return words[:-1], words[-1]


class CommandCompleter(Completer):
    """Completes as `aios` does in bash, through click, and the shell's own commands."""

    def __init__(
        self, home: Path, cli: click.Command, jobs: Callable[[], Iterable[BackgroundJob]]
    ) -> None:
        self.home, self.jobs = home, jobs
        self.click = ShellComplete(cli, {}, "aios", "_AIOS_COMPLETE")

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterator[Completion]:
        words, word = split_at_cursor(document.text_before_cursor)
        if words == ["fg"]:
            found = [(str(job.number), job.command) for job in self.jobs() if job.running]
        else:
            found = list(BUILTINS.items()) if words in ([], ["help"]) else []
            args = ["--home", str(self.home), *([] if words == ["help"] else words)]
            for item in self.click.get_completions(args, word):
                if item.type == "plain":
                    found.append((str(item.value), item.help or ""))
                else:
                    yield from PathCompleter(expanduser=True).get_completions(Document(word), event)
        for text, meta in found:
            if text.startswith(word):
                yield Completion(text, -len(word), display_meta=meta)


class Shell:
    """`execute` runs one command line of `cli` in this process; its exit code."""

    def __init__(
        self, home: Path, cli: click.Command, execute: Callable[[Sequence[str]], int]
    ) -> None:
        self.home, self.cli, self.execute = home, cli, execute
        self.jobs: list[BackgroundJob] = []
        self.printing = threading.Lock()  # jobs print while the prompt comes and goes

    def interactive(self) -> int:
        """Read and run commands until `exit` or Ctrl-D. Return the exit code of the last one.

        Raises:
            BadInput: the home is no folder that can be written to.
        """
        history = self.home / "shell_history"
        with usable(self.home):
            history.touch(mode=0o600)
        session: PromptSession[str] = PromptSession(
            history=FileHistory(history),
            completer=CommandCompleter(self.home, self.cli, lambda: self.jobs),
            complete_while_typing=False, complete_in_thread=True,
        )  # fmt: skip
        say("`help` lists the commands; Ctrl-D ends the shell", err=True)
        code = 0
        notices = Notices(self.home, self._emit)
        try:
            while True:
                try:
                    code = self.run(self._prompt(session, notices))
                except KeyboardInterrupt:
                    continue
        except EOFError:
            return code
        finally:
            notices.end()
            self._end_jobs()

    def batch(self, lines: Iterable[str]) -> int:
        """Run every line, then wait for the jobs. Return the exit code of the last line."""
        code = 0
        try:
            for line in lines:
                code = self.run(line)
            for job in self.jobs:
                job.wait()
        except EOFError:
            return code
        finally:
            self._end_jobs()
        return code

    def _prompt(self, session: PromptSession[str], notices: Notices) -> str:
        patched = patch_stdout()  # what jobs print meanwhile goes above the prompt
        with self.printing:
            patched.__enter__()
        notices.prompting.set()
        try:
            return session.prompt("aios> ")
        finally:
            notices.prompting.clear()
            with self.printing:
                patched.__exit__(None, None, None)

    def _emit(self, line: str) -> None:
        with self.printing:
            say(line)

    def run(self, text: str) -> int:
        """Run one line, and return its exit code. Raises EOFError for `exit`."""
        try:
            line = parse(text)
        except ValueError as error:
            say(f"aios: {error}", err=True)
            return 2
        if line.args[:1] == ["aios"]:  # as in the examples of every --help
            line.args.pop(0)
        if not line.args:
            return 0
        if line.background:
            return self._start_job(line.args)
        name, *args = line.args
        if name in BUILTINS:
            code: int = getattr(self, f"_do_{name}")(args)
            return code
        return self.execute(["--home", str(self.home), *line.args])

    def _start_job(self, args: Sequence[str]) -> int:
        job = BackgroundJob(len(self.jobs) + 1, self.home, args, self._emit)
        self.jobs.append(job)
        say(f"[{job.number}] started: {job.command}")
        return 0

    def _do_jobs(self, _: list[str]) -> int:
        for job in self.jobs:
            state = "running" if job.running else f"ended with {job.wait()}"
            say(f"[{job.number}] {state}: {job.command}")
        return 0

    def _do_fg(self, args: list[str]) -> int:
        job = next((job for job in self.jobs if [str(job.number)] == args), None)
        if job is None:
            say("aios: no such job\nhint: `fg N`; `jobs` lists them", err=True)
            return 1
        try:
            say(f"[{job.number}] in the foreground: {job.command}")
            return job.wait()
        except KeyboardInterrupt:
            return job.end()

    def _do_help(self, args: list[str]) -> int:
        if args and args[0] in BUILTINS:
            say(f"{args[0]}: {BUILTINS[args[0]]}")
            return 0
        code = self.execute([*args, "--help"])
        if not args:
            say(HELP)
        return code

    def _do_exit(self, _: list[str]) -> int:
        raise EOFError

    _do_quit = _do_exit

    def _end_jobs(self) -> None:
        for job in self.jobs:
            if job.running:
                say(f"[{job.number}] ending: {job.command}")
                job.end()
