"""A process that does one thing for a command, with the kernel's code, and says how far it is."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from aios.syscalls.errors import AiosError, from_wire

from .launch import end_with_parent
from .output import say


def said(module: str, request: dict[str, Any], does: str) -> Iterator[tuple[str, Any]]:
    """What it says, a kind and what, each in a line of JSON, until its report. Whatever ends this
    ends that process.

    Raises:
        AiosError: what it could not do, and why.
    """
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, json.dumps(request)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True,
            start_new_session=True,
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
