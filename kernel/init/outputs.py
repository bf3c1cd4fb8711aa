"""init's side of what agents print: out of the pipe that is an agent's stdout and stderr, into its
log. No agent holds its log, so none can change what is in it, nor have its reader wait.

A log grows to LOG_BYTES; from then on what is oldest is given back to the disk. It stays where it
was in the file, as a hole, so every byte keeps its offset.
"""

from __future__ import annotations

import contextlib
import os
import selectors
from functools import partial
from pathlib import Path

from ..lib.linux import punch_hole

LOG_BYTES = 8 << 20  # of a log at most: of what was printed the last
PIECE = 1 << 16  # bytes taken from one agent before the others get a turn
PIPE = 1 << 20  # bytes that a pipe may hold at most: /proc/sys/fs/pipe-max-size
HOLE = 1 << 18  # bytes that are given back at once


class Output:
    def __init__(self, path: Path, reader: int) -> None:
        self.path, self.reader = path, reader
        self.size = self.dropped = 0  # bytes of the log, and of its beginning that are gone

    def take(self) -> bool:
        """Append one piece of what was printed. False: there is nothing now."""
        try:
            data = os.read(self.reader, PIECE)
        except BlockingIOError:
            return False
        if data:
            with contextlib.suppress(OSError):  # its disk is full: this is lost
                self._append(data)
        return bool(data)

    def _append(self, data: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        log = os.open(self.path, flags, 0o600)
        try:
            self.size += os.write(log, data)
            if self.size - self.dropped > LOG_BYTES + HOLE:
                self._drop(log)
        finally:
            os.close(log)

    def _drop(self, log: int) -> None:
        try:
            punch_hole(log, self.size - LOG_BYTES)
            self.dropped = self.size - LOG_BYTES
        except OSError:  # its file system knows no holes
            os.ftruncate(log, 0)
            self.size = 0


class Outputs:
    """Of all agents, by the kernel's key, in init's selector."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self.selector = selector
        self.outputs: dict[int, Output] = {}

    def open(self, key: int, path: str) -> int:
        """Make an agent's log anew; the descriptor that the agent prints into, to be closed here.

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
            self._close(key)  # nobody can print any more

    def ended(self, key: int) -> None:
        """The agent is gone: its log gets what is still in the pipe. What it started itself may
        live on for a moment, and prints in vain."""
        if key in self.outputs:
            for _ in range(PIPE // PIECE + 1):
                if not self.outputs[key].take():
                    break
            self._close(key)

    def close(self) -> None:
        """All agents are gone."""
        for key in list(self.outputs):
            self.ended(key)

    def _close(self, key: int) -> None:
        output = self.outputs.pop(key)
        self.selector.unregister(output.reader)
        os.close(output.reader)
