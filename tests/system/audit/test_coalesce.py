"""Limits on what callers without rights can make the audit log hold."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from audit_logs import read_records
from conftest import Boot

from aios.agents import connect
from aios.kernel.audit.coalesce import (
    BURST_RECORDS,
    OVERFLOW,
    REFILL_S,
    WINDOW_S,
    Coalescer,
    Fields,
)
from aios.kernel.audit.verify import verify
from aios.syscalls.wire import Receipt


class Log:
    """A log, its clock, and a coalescer for its records."""

    def __init__(self) -> None:
        self.records: list[Fields] = []
        self.time = 0.0
        self.coalescer = Coalescer(self.append, lambda: self.time)

    def append(self, fields: Fields) -> Receipt:
        self.records.append(fields)
        return len(self.records) - 1, b""

    def refuse(self, principal: str = "/evil", call: str = "kernel.stop", pid: int = 7) -> Receipt:
        about = "os_pid=100"
        return self.coalescer.add(
            (pid, principal, "denied", 1, call, about, b"", "rule", "denied", 0)
        )

    def wait(self, seconds: float) -> None:
        while seconds > 0:
            self.time += WINDOW_S
            seconds -= WINDOW_S
            self.coalescer.flush()


@pytest.fixture
def log() -> Log:
    return Log()


def test_equal_ones_are_one_record_and_one_with_a_count(log: Log) -> None:
    receipts = {log.refuse() for _ in range(30_000)}
    assert (len(log.records), len(receipts)) == (1, 1)
    log.wait(WINDOW_S)
    first, more = log.records
    assert more[5] == "29999 more, as record 0: os_pid=100"
    assert (more[:3], more[4], more[7:]) == (first[:3], first[4], ("rule", "denied", 0))
    log.wait(10 * WINDOW_S)
    assert len(log.records) == 2


def test_those_that_differ_have_a_share(log: Log) -> None:
    for number in range(30_000):
        log.refuse(call=f"no.{number}")
    assert len(log.records) == BURST_RECORDS + 1
    log.wait(WINDOW_S)
    assert log.records[-1][4:6] == (OVERFLOW, log.records[-1][5])
    assert log.records[-1][5].startswith(
        f"{30_000 - BURST_RECORDS - 1} more, as record {BURST_RECORDS}"
    )


def test_what_it_starts_has_no_share_of_its_own_and_nobody_elses_is_less(log: Log) -> None:
    for pid in range(1000):
        log.refuse(f"/evil/child{pid}/x", f"no.{pid}", pid)
    before = len(log.records)
    assert before == BURST_RECORDS + 1
    for number in range(BURST_RECORDS):
        log.refuse("/good", f"no.{number}", 5000)
        assert log.records[-1][:2] == (5000, "/good")
    assert len(log.records) == before + BURST_RECORDS


def test_a_day_of_it_is_a_bounded_number(log: Log) -> None:
    day = 3600.0
    for _ in range(int(day / WINDOW_S)):
        for number in range(BURST_RECORDS):
            log.refuse(call=f"no.{number}")
        log.wait(WINDOW_S)
    assert len(log.records) < 2 * BURST_RECORDS + 3 * day / REFILL_S
    log.wait(BURST_RECORDS * REFILL_S + WINDOW_S)
    assert (log.coalescer.same, log.coalescer.shares) == ({}, {})


FLOOD = """
def ends(*calls):
    for call in calls:
        try:
            call.wait()
        except AiosError:
            pass

for turn in range(20):
    ends(*[aios.start("kernel.stats") for _ in range(100)])
    ends(*[aios.start("proc.whoami") for _ in range(100)])
    ends(*[aios.start("call.cancel", call=n + 1) for n in range(100)])
    ends(*[aios.start(f"no.{turn}.{n}") for n in range(100)])
"""
CALLS = 20 * 100


def test_an_agent_that_may_do_nothing_cannot_fill_the_log(boot: Boot, program: object) -> None:
    assert callable(program)
    system = boot(slots=1)
    with connect(system.home) as aios:
        pid = aios.spawn(program(FLOOD), name="evil", manifest={"allow": []})
        assert aios.wait(pid).code == 0
    system.end()
    records = [record for record in read_records(system.home) if record.principal == "/evil"]
    assert len(records) < 3 * BURST_RECORDS
    more = re.compile(r"(\d+) more, as record (\d+)")
    counted: Counter[str] = Counter()
    for record in records:
        if found := more.match(record.object):
            assert record.intent == int(found[2])
            counted[record.call] += int(found[1])
        else:
            counted[record.call] += 1
    assert (
        min(counted[name] for name in ("kernel.stats", "proc.whoami", "call.cancel", OVERFLOW)) > 1
    )
    # Cancelling has an intent and an outcome. More is what Linux has refused it, and its own start.
    assert 5 * CALLS < counted.total() < 5 * CALLS + 50
    assert verify(system.home / "audit").problems == []
