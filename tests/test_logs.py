"""Those who wait for more of a log: however many there are, a turn of the loop looks at few."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from aios.kernel.process import Process, ProcessTable
from aios.kernel.processes.agent_logs import LOOKS, READERS, Logs
from aios.syscalls.errors import LimitReached
from aios.syscalls.messages import Limits, LogPart


class Timer:
    def cancel(self) -> None:
        pass


@dataclass(eq=False)
class Call:
    """As much of a system call as the logs use."""

    process: Process
    parts: list[LogPart] = field(default_factory=list)
    on_end: Any = None

    def done(self, part: LogPart) -> None:
        self.parts.append(part)
        self.on_end()


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
        for _ in range(READERS):
            calls.append(Call(reader))
            assert logs.read(calls[-1], (said, silent)[number % 2].pid, 0, 9.0) is None  # type: ignore[arg-type]
    logs.path(said.pid).write_bytes(b"said")
    for _ in range(len(calls) // LOOKS):
        looks.clear()
        logs.look()
        assert len(looks) == LOOKS
    answered = [call for call in calls if call.parts]
    assert len(answered) == len(calls) // 2
    assert all(call.parts[0].data == b"said" for call in answered)
    assert len(logs.readers) == len(calls) // 2


def test_one_process_waits_with_so_many_calls_and_no_more(
    tmp_path: Path, table: ProcessTable
) -> None:
    logs = Logs(tmp_path, table, lambda *_: Timer())
    one, other = (table.add("agent", name, 0, 0, Limits(), 0.0) for name in "ab")
    waiting = [Call(one) for _ in range(READERS)]
    for call in waiting:
        assert logs.read(call, other.pid, 0, 9.0) is None  # type: ignore[arg-type]
    with pytest.raises(LimitReached, match="wait for logs"):
        logs.read(Call(one), other.pid, 0, 9.0)  # type: ignore[arg-type]
    assert logs.read(Call(one), other.pid, 0, 0.0) == LogPart(b"", 0, ended=False)  # type: ignore[arg-type]
    assert logs.read(Call(other), other.pid, 0, 9.0) is None  # type: ignore[arg-type]
    waiting[0].on_end()
    assert logs.read(Call(one), other.pid, 0, 9.0) is None  # type: ignore[arg-type]
