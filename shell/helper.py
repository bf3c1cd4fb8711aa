"""A process that does one thing for a command, with the kernel's code, and says how far it is."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from aios.syscalls.errors import AiosError, from_wire

from .launch import end_with_parent, memory_file
from .output import say


def said(module: str, request: dict[str, Any], does: str) -> Iterator[tuple[str, Any]]:
    """Run a program of the kernel, and yield what it says: a kind and a body for each line of JSON,
    up to its report. The request goes to its stdin, since an argument holds 128 KiB. Whatever ends
    this ends that process.

    Raises:
        AiosError: what the program could not do, and why.
    """
    with tempfile.TemporaryFile() as errors, memory_file(json.dumps(request)) as given:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module], stdin=given, stdout=subprocess.PIPE,
            stderr=errors, text=True, start_new_session=True,
            preexec_fn=end_with_parent,  # noqa: PLW1509 (one system call)
        )  # fmt: skip
        with process:
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    [(kind, what)] = json.loads(line).items()
                    if kind == "error":
                        raise from_wire(what)
                    yield kind, what
                    if kind == "report":
                        return
            finally:
                process.kill()
        errors.seek(0)
        say(errors.read().decode(errors="backslashreplace"), err=True, nl=False)
    how = f"exit code {process.returncode}"
    raise AiosError(f"the process that {does} ended unasked: {how}", "its errors are above")


def report(said: Iterator[tuple[str, Any]], step: Callable[[Any], None]) -> dict[str, Any]:
    """Return a program's report; `step` is called with what it says before that."""
    for kind, what in said:
        if kind == "report":
            return dict(what)
        step(what)
    raise AssertionError("it says a report or an error, and else raises")
