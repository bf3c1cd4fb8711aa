"""Agents' logs: reads what agents print, and waits for more where a call asks for that."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from aios.syscalls.errors import AiosError, LimitReached
from aios.syscalls.proc import LogPart

from ..entry.call import Call
from ..init.outputs import MAX_LOG_BYTES
from ..lib.coroutine import Wait, within
from ..process import ProcessTable

LOG_PART = 32 * 1024  # bytes of a log in one reply
READERS = 16  # calls of one process that wait for more
LOOKS = 64  # of them all that are looked after at once


class Reader(NamedTuple):
    """A call that waits for more of a log."""

    pid: int
    offset: int
    call: Call
    wait: Wait[LogPart]


class Logs:
    """`folder` has a file for each agent; `after(seconds, run)` starts a timer."""

    def __init__(
        self, folder: Path, table: ProcessTable, after: Callable[[float, Callable[[], None]], Any]
    ) -> None:
        self.folder, self.table, self.after = folder, table, after
        self.readers: list[Reader] = []

    def path(self, pid: int) -> Path:
        return self.folder / f"agent-{pid}.log"

    async def read(self, call: Call, pid: int, offset: int, wait_s: float) -> LogPart:
        """Return a part of a log; where there is nothing to read yet, wait for it so long.

        Raises:
            LimitReached: too many calls of the process wait already.
        """
        part = self._part(pid, offset)
        if part.data or part.ended or wait_s == 0:
            return part
        if sum(other.call.process is call.process for other in self.readers) >= READERS:
            raise LimitReached(
                f"{READERS} calls of process {call.process.pid} wait for logs",
                "wait for one of them, or cancel it",
            )
        reader = Reader(pid, part.offset, call, Wait())
        self.readers.append(reader)
        try:
            return await within(reader.wait, wait_s, self.after, partial(reader.wait.done, part))
        finally:
            self.readers.remove(reader)

    def look(self) -> None:
        """Answer those for whom there is something to read now; of many, some each time."""
        turn, self.readers = self.readers[:LOOKS], self.readers[LOOKS:]
        self.readers += turn
        for reader in turn:
            try:
                part = self._part(reader.pid, reader.offset)
            except AiosError as error:
                reader.wait.fail(error)
                continue
            if part.data or part.ended:
                reader.wait.done(part)

    def _part(self, pid: int, offset: int) -> LogPart:
        ended = not self.table.get(pid).alive
        with (
            contextlib.suppress(FileNotFoundError),
            open(self.path(pid), "rb", opener=_safe) as log,
        ):
            size = log.seek(0, os.SEEK_END)
            first = max(0, size - MAX_LOG_BYTES)  # before that there may be nothing any more
            offset = log.seek(max(first, size + offset if offset < 0 else min(size, offset)))
            data = log.read(LOG_PART)
            end = offset + len(data)
            return LogPart(data=data, offset=end, ended=ended and end >= size)
        return LogPart(data=b"", offset=0, ended=ended)

    def check(self) -> list[str]:
        calls = [reader.call for reader in self.readers]
        return [f"a log read of call {call.id} is kept" for call in calls if call.ended]


def _safe(path: str, flags: int) -> int:
    """Whatever is there, it is not waited for, and is in this folder."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW)
