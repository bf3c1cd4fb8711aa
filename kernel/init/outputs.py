"""Copy what agents print, from the pipe that is an agent's stdout and stderr into its log.

No agent holds its log open, so none can change the log or block its reader. A log keeps its last
MAX_LOG_BYTES: older bytes are given back to the disk as a hole, so all others keep their offsets.
"""

from __future__ import annotations

import contextlib
import os
import selectors
from collections import Counter
from functools import partial
from pathlib import Path

from ..lib.linux import punch_hole

MAX_LOG_BYTES = 8 << 20  # the last bytes that were printed
READ_BYTES = 1 << 16  # read from one agent before others get a turn
MAX_PIPE_BYTES = 1 << 20  # /proc/sys/fs/pipe-max-size
HOLE_BYTES = 1 << 18  # freed at once


class Output:
    """The pipe and the log of one agent."""

    def __init__(self, path: Path, reader: int) -> None:
        self.path, self.reader = path, reader
        self.size = self.dropped = 0  # bytes of the log, and bytes freed at its beginning
        self.lost = 0  # bytes that a full disk had no room for

    def take(self) -> bool:
        """Append one piece of what was printed to the log. Return False if there is nothing to
        read.
        """
        try:
            data = os.read(self.reader, READ_BYTES)
        except BlockingIOError:
            return False
        if data:
            with contextlib.suppress(OSError):  # the disk is full
                self._append(data)
        return bool(data)

    def _append(self, data: bytes) -> None:
        self.lost += len(data)  # until it is written
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        log = os.open(self.path, flags, 0o600)
        try:
            written = os.write(log, data)
            self.size += written
            self.lost -= written
            if self.size - self.dropped > MAX_LOG_BYTES + HOLE_BYTES:
                self._drop(log)
        finally:
            os.close(log)

    def _drop(self, log: int) -> None:
        try:
            punch_hole(log, self.size - MAX_LOG_BYTES)
            self.dropped = self.size - MAX_LOG_BYTES
        except OSError:  # the file system has no holes
            os.ftruncate(log, 0)
            self.size = 0


class Outputs:
    """The outputs of all agents by the kernel's key, in init's selector."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self.selector = selector
        self.outputs: dict[int, Output] = {}
        self.lost: Counter[int] = Counter()  # bytes, of those that are closed and have not ended

    def open(self, key: int, path: str) -> int:
        """Create an agent's log, and return the descriptor it prints to. The caller closes that.

        Raises:
            OSError: no descriptor is left, or the log cannot be made.
        """
        Path(path).unlink(missing_ok=True)  # of an earlier boot
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        reader, writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(reader, False)
        output = self.outputs[key] = Output(Path(path), reader)
        self.selector.register(reader, selectors.EVENT_READ, partial(self._ready, key, output))
        return writer

    def _ready(self, key: int, output: Output) -> None:
        if not output.take():
            self._close(key)  # all writers are gone

    def ended(self, key: int) -> int:
        """Append the rest of the pipe to the log of an agent that has ended. Return how many bytes
        of all that it printed the disk had no room for.

        Its own children may live on for a moment; nobody reads what they print.
        """
        if key in self.outputs:
            for _ in range(MAX_PIPE_BYTES // READ_BYTES + 1):
                if not self.outputs[key].take():
                    break
            self._close(key)
        return self.lost.pop(key, 0)

    def close(self) -> None:
        """Close the outputs of all agents. They have ended."""
        for key in list(self.outputs):
            self.ended(key)

    def _close(self, key: int) -> None:
        output = self.outputs.pop(key)
        if output.lost:
            self.lost[key] = output.lost
        self.selector.unregister(output.reader)
        os.close(output.reader)
