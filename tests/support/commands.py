"""`aios` as a person runs it, in this process or in one of its own; and its commands."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import click

from aios.shell.cli import cli, execute

AIOS = [sys.executable, "-P", "-m", "aios.shell"]
LIMIT = 60  # seconds: a command that hangs fails its test


def environment(home: Path) -> dict[str, str]:
    return os.environ | {"AIOS_HOME": str(home)}


def run(
    home: Path,
    *args: str,
    stdin: str = "",
    cwd: Path | None = None,
    limit: float = LIMIT,
    **variables: str,
) -> subprocess.CompletedProcess[str]:
    """Run a command in this process, as `main` does, with streams that are no terminal; but one
    that starts a system, which is a child of who started it, in a process of its own."""
    if args[:1] == ("start",):
        return run_process(home, *args, stdin=stdin, cwd=cwd, limit=limit, **variables)
    streams = [io.TextIOWrapper(io.BytesIO(text), "utf-8") for text in (stdin.encode(), b"", b"")]
    names = ("stdin", "stdout", "stderr")
    before = signal.signal(signal.SIGALRM, _too_long)
    with contextlib.ExitStack() as stack:
        stack.callback(signal.signal, signal.SIGALRM, before)
        stack.enter_context(mock.patch.dict(os.environ, environment(home) | variables))
        for name, stream in zip(names, streams, strict=True):
            stack.enter_context(mock.patch.object(sys, name, stream))
        if cwd is not None:
            stack.enter_context(contextlib.chdir(cwd))
        stack.callback(signal.setitimer, signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_REAL, limit)
        try:
            code = execute(args)
        except SystemExit as ended:  # of completions
            code = int(ended.code or 0)
    printed = []
    for stream in streams[1:]:
        stream.flush()
        printed.append(stream.buffer.getvalue().decode())
    return subprocess.CompletedProcess(["aios", *args], code, *printed)


def _too_long(*_: object) -> NoReturn:
    raise AssertionError("the command hangs")


def run_process(
    home: Path, *args: str, stdin: str = "", cwd: Path | None = None, limit: float = LIMIT,
    **variables: str,
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """Run a command as a process of its own, where the process matters."""
    return subprocess.run(
        [*AIOS, *args], env=environment(home) | variables, input=stdin, cwd=cwd, text=True,
        capture_output=True, timeout=limit, check=False,
    )  # fmt: skip


@contextmanager
def started(
    home: Path, *args: str, stdin: int = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[str]]:
    """With its streams open, while it runs; killed if the block leaves it running."""
    process = subprocess.Popen(
        [*AIOS, *args], env=environment(home), stdin=stdin,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def answer(home: Path, *args: str) -> Any:
    """Return what a command prints with --json, which must be all that it prints."""
    done = run(home, *args, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def every_command(
    command: click.Command = cli, path: tuple[str, ...] = ()
) -> list[tuple[tuple[str, ...], click.Command]]:
    """The words of each command, and the command: groups as well, and `aios` itself."""
    found = [(path, command)]
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            found += every_command(each, (*path, name))
    return found


LEAVES = [
    (path, command) for path, command in every_command() if not isinstance(command, click.Group)
]
