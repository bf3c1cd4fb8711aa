"""Callers who wait for more of a log: however many there are, a turn of the loop looks at few."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from aios.kernel.lib.coroutine import Driver
from aios.kernel.process import Process, ProcessTable
from aios.kernel.processes.agent_logs import MAX_READERS, READERS_PER_LOOK, Logs
from aios.syscalls.errors import LimitReached
from aios.syscalls.proc import Limits, Log, LogPart


class Timer:
    def cancel(self) -> None:
        pass


@dataclass(eq=False)
class Call:
    """As much of a system call as the logs use."""

    process: Process
    ends: list[Any] = field(default_factory=list)

    def read(self, logs: Logs, pid: int, wait_s: float = 9.0) -> Driver:
        """Run it; what it ends with is in `ends`."""
        work = logs.read(self, Log(pid, 0, wait_s))  # type: ignore[arg-type]
        driver = Driver(work, self.ends.append, self.ends.append)
        driver.go_on()
        return driver


@pytest.fixture
def table() -> ProcessTable:
    return ProcessTable(1000, 9, 9)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """One entry for each log that was looked at."""
    seen: list[int] = []
    look = Logs._part

    def counted(self: Logs, pid: int, offset: int) -> LogPart:
        seen.append(pid)
        return look(self, pid, offset)

    monkeypatch.setattr(Logs, "_part", counted)
    yield seen


def test_a_turn_has_a_bound_and_all_are_answered(
    tmp_path: Path, table: ProcessTable, looks: list[int]
) -> None:
    logs = Logs(tmp_path, table, lambda *_: Timer())
    said, silent = (table.add("agent", name, 0, 0, Limits(), 0.0) for name in "ab")
    calls = []
    for number in range(40):
        reader = table.add("agent", f"r{number}", 0, 0, Limits(), 0.0)
        for _ in range(MAX_READERS):
            calls.append(Call(reader))
            calls[-1].read(logs, (said, silent)[number % 2].pid)
    assert not any(call.ends for call in calls)
    logs.path(said.pid).write_bytes(b"said")
    for _ in range(len(calls) // READERS_PER_LOOK):
        looks.clear()
        logs.look()
        assert len(looks) == READERS_PER_LOOK
    answered = [call for call in calls if call.ends]
    assert len(answered) == len(calls) // 2
    assert all(call.ends[0].data == b"said" for call in answered)
    assert len(logs.readers) == len(calls) // 2


def test_one_process_waits_with_so_many_calls_and_no_more(
    tmp_path: Path, table: ProcessTable
) -> None:
    logs = Logs(tmp_path, table, lambda *_: Timer())
    one, other = (table.add("agent", name, 0, 0, Limits(), 0.0) for name in "ab")
    mine, theirs = Call(one), Call(other)
    waiting = [mine.read(logs, other.pid) for _ in range(MAX_READERS)]
    assert mine.ends == []
    mine.read(logs, other.pid)
    assert isinstance(mine.ends.pop(), LimitReached)
    mine.read(logs, other.pid, 0.0)
    assert mine.ends.pop() == LogPart(b"", 0, ended=False)
    theirs.read(logs, other.pid)
    waiting[0].stop()
    mine.read(logs, other.pid)
    assert (mine.ends, theirs.ends) == ([], [])
