"""Commands of a shell, inside the walls of the worker: off unless a person grants it. The toolbox
is `fresh` and may start processes; what a command leaves running ends with the worker."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from typing import IO, Annotated

import msgspec
from msgspec import Meta

from aios.agents.runtime.tool import tool
from aios.syscalls.errors import ToolFailed

MAX_SHOWN_BYTES = 20_000  # of the output
LINGER_S = 1.0  # that its output is read after its end


class Ended(msgspec.Struct):
    exit: int  # 128 + the number of the signal that ended it
    output: str


class CommandOutput(threading.Thread):
    """Reads all output, so that the command never blocks, and keeps its beginning."""

    def __init__(self, pipe: IO[bytes]) -> None:
        super().__init__(daemon=True)
        self.pipe = pipe
        self.kept = b""
        self.lost = 0
        self.start()

    def run(self) -> None:
        with self.pipe:
            while data := os.read(self.pipe.fileno(), 65_536):
                room = MAX_SHOWN_BYTES - len(self.kept)
                self.kept += data[:room]
                self.lost += max(0, len(data) - room)

    def text(self) -> str:
        self.join(LINGER_S)  # something that left the group may hold the pipe open
        more = f"\n... and {self.lost} bytes more" if self.lost else ""
        return self.kept.decode(errors="replace") + more


@tool(effect=True, timeout=610)
def shell(
    command: Annotated[str, Meta(max_length=20_000)],
    seconds: Annotated[float, Meta(gt=0, le=600, description="to the end of it")] = 30,
) -> Ended:
    """Run a command with /bin/sh: its exit code and what it prints. It gets no input."""
    process = subprocess.Popen(
        ["/bin/sh", "-c", command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    printed = CommandOutput(process.stdout)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    code = process.poll()
    with contextlib.suppress(ProcessLookupError):  # all of it has ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if code is None:
        text = f"the command was not done after {seconds:g} s, and was ended; it had printed:\n"
        raise ToolFailed(text + printed.text())
    return Ended(code if code >= 0 else 128 - code, printed.text())
