"""The audit log: the kernel killed under callers with receipts, and every change of a byte."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from audit_logs import COUNT, Victim
from conftest import Boot

from aios.agents import Aios, connect
from aios.kernel.audit.verify import verify
from aios.syscalls.wire import Receipt

CALLERS, FLYING = 4, 8


@pytest.mark.faults
def test_receipts_outlive_the_kernel(
    boot: Boot, full: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(11)
    system = boot(slots=1, ctx=256)
    receipts: list[Receipt] = []
    refused: list[Receipt] = []  # equal refusals have one record
    callers = [connect(system.home, f"c{n}", receipts=True) for n in range(CALLERS)]

    def work(number: int, caller: Aios) -> None:
        """Some calls that change something, some that only ask, one that may not be."""
        calls = [caller.start("mem.put", items={f"k{n}": number}) for n in range(FLYING)]
        calls += [caller.start("mem.get", keys=["k1"]), caller.start("llm.open", name=f"n{number}")]
        calls.append(caller.start("no.such.call"))
        for call in calls:
            while not call.ended:
                caller.connection.pump()
            assert call.receipt is not None
            (refused if call.error else receipts).append(call.receipt)

    kills = 200 if full else 5
    for number in range(kills):
        until = time.monotonic() + rng.random() * 0.3  # a random moment is the point here
        while time.monotonic() < until:
            work(number, rng.choice(callers))
        late = rng.choice(callers)
        flying = [late.start("mem.put", items={f"k{n}": number}) for n in range(FLYING)]
        os.kill(callers[0].status().os_pid, signal.SIGKILL)
        for call in flying:
            call.wait()
            assert call.receipt is not None
            receipts.append(call.receipt)
    for caller in callers:
        assert caller.check() == []
        caller.close()
    system.end()
    report = verify(system.home / "audit", receipts=receipts + refused)
    assert (report.problems, report.receipts) == ([], len(receipts) + len(refused))
    assert len(set(receipts)) == len(receipts)
    with capsys.disabled():
        print(f"\n{kills} kills: {len(receipts)} receipts, each in a log of {report.records}")


@pytest.mark.faults
def test_every_other_value_of_every_byte_shows(tmp_path: Path, full: bool) -> None:
    victim = Victim(tmp_path)
    for record in range(0, COUNT, 1 if full else 333):
        assert victim.hidden(record, lambda: range(1, 256)) == []
