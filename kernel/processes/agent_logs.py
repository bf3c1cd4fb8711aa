"""Read what agents print, from their logs, and wait for more where a call asks for that."""

from __future__ import annotations

import contextlib
import os
from functools import partial
from pathlib import Path
from typing import NamedTuple

from aios.syscalls.errors import AiosError, LimitReached
from aios.syscalls.proc import Log, LogPart

from ..entry.call import Call
from ..init.outputs import MAX_LOG_BYTES
from ..lib.callbacks import After
from ..lib.coroutine import Wait, within
from ..process import ProcessTable

PART_BYTES = 32 << 10  # of a log in one reply
MAX_READERS = 16  # calls of one process that wait for more
READERS_PER_LOOK = 64


class Reader(NamedTuple):
    """A call that waits for more of a log."""

    pid: int
    offset: int
    call: Call
    wait: Wait[LogPart]


class Logs:
    """All logs. `folder` has a file for each agent."""

    def __init__(self, folder: Path, table: ProcessTable, after: After) -> None:
        self.folder, self.table, self.after = folder, table, after
        self.readers: list[Reader] = []

    def path(self, pid: int) -> Path:
        return self.folder / f"agent-{pid}.log"

    async def read(self, call: Call, args: Log) -> LogPart:
        """Return a part of a log; where there is nothing to read yet, wait for it.

        Raises:
            LimitReached: too many calls of the process wait already.
        """
        call.process.hear(self.table.get(args.pid))
        part = self._part(args.pid, args.offset)
        if part.data or part.ended or args.wait == 0:
            return part
        if sum(other.call.process is call.process for other in self.readers) >= MAX_READERS:
            raise LimitReached(
                f"{MAX_READERS} calls of process {call.process.pid} wait for logs",
                "wait for one of them, or cancel it",
            )
        reader = Reader(args.pid, part.offset, call, Wait())
        self.readers.append(reader)
        try:
            return await within(reader.wait, args.wait, self.after, partial(reader.wait.done, part))
        finally:
            self.readers.remove(reader)

    def look(self) -> None:
        """Answer calls for which there is something to read now; look at some of many each time."""
        turn, self.readers = self.readers[:READERS_PER_LOOK], self.readers[READERS_PER_LOOK:]
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
            data = log.read(PART_BYTES)
            end = offset + len(data)
            return LogPart(data=data, offset=end, ended=ended and end >= size)
        return LogPart(data=b"", offset=0, ended=ended)

    def check(self) -> list[str]:
        """List each broken invariant in words."""
        calls = [reader.call for reader in self.readers]
        return [f"a log read of call {call.id} is kept" for call in calls if call.ended]


def _safe(path: str, flags: int) -> int:
    """Open a log without waiting for what may be there instead, and without following a link."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW)
