"""`aios` as a person runs it: a process of its own, its streams and exit code; and its commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from aios.shell.cli import cli

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
    """What a command prints with --json, which must be all that it prints."""
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
