"""Jobs of the interactive shell: command lines that run as processes in the background."""

from __future__ import annotations

import codecs
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from .launch import exit_code

WIDTH = 76  # columns of a job's output: longer lines are shown in parts
READ_BYTES = 4096  # of output at once


def cut(text: str, width: int) -> tuple[list[str], str]:
    """Split `text` into the lines that can be shown, each at most `width` wide, and the rest."""
    lines: list[str] = []
    while True:
        at = text.find("\n", 0, width + 1)
        if at < 0 and len(text) <= width:
            return lines, text
        at = at if at >= 0 else text.rfind(" ", 1, width + 1)
        if at < 0:  # one long word
            lines.append(text[:width])
            text = text[width:]
        else:
            lines.append(text[:at])
            text = text[at + 1 :]


class BackgroundJob:
    """`emit` gets each line of output, and one more at the end, from a thread of the job."""

    def __init__(
        self, number: int, home: Path, args: Sequence[str], emit: Callable[[str], None]
    ) -> None:
        self.number = number
        self.command = " ".join(args)
        self.emit = emit
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "aios.shell", "--home", str(home), *args],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C is for what runs in the foreground
        )  # fmt: skip
        # Not a join: a Ctrl-C in that has Python 3.11 take the thread for ended.
        self.ended = threading.Event()
        threading.Thread(target=self._relay, daemon=True).start()

    def _relay(self) -> None:
        assert self.process.stdout is not None
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        rest = ""
        try:
            with self.process.stdout as output:
                while data := os.read(output.fileno(), READ_BYTES):
                    lines, rest = cut(rest + decoder.decode(data), WIDTH)
                    for line in lines:
                        self.emit(f"[{self.number}] {line}")
            if rest:
                self.emit(f"[{self.number}] {rest}")
            code = exit_code(self.process)
            how = "done" if code == 0 else f"exit code {code}"
            self.emit(f"[{self.number}] {how}: {self.command}")
        finally:
            self.ended.set()

    @property
    def running(self) -> bool:
        return not self.ended.is_set()

    def wait(self) -> int:
        """Wait until the job has ended and all its output is shown. Return its exit code."""
        self.ended.wait()
        return exit_code(self.process)

    def end(self) -> int:
        """End the job as Ctrl-C in the foreground does: it ends what it started."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.wait()
