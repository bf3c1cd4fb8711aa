"""The audit log on a full or broken disk; what is durable before what."""

from __future__ import annotations

import itertools
import os
import queue
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock

import msgspec
import pytest
from audit_logs import Open, whats_wrong, write
from conftest import eventually

from aios.kernel.audit.log import AHEAD_BYTES, RESERVE_RECORDS
from aios.kernel.audit.read import entries
from aios.kernel.audit.recorder import AuditRecorder
from aios.kernel.audit.segment import SEGMENT_RECORDS
from aios.kernel.audit.verify import verify
from aios.kernel.init.protocol import ExitAcknowledged, SignalChild
from aios.kernel.journal import Journal
from aios.kernel.ledger.ledger import Ledger
from aios.kernel.ledger.outbox import Outbox
from aios.kernel.lib.coroutine import background
from aios.kernel.llm.contexts import ContextManager
from aios.kernel.llm.scheduler.scheduler import Scheduler
from aios.kernel.process import ProcessTable
from aios.kernel.store.store import Store
from aios.syscalls.errors import AuditDamaged, DiskFull
from aios.syscalls.proc import Kill, Limits
from aios.syscalls.table import TABLE


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


# --- the disk ------------------------------------------------------------------------------------


@pytest.fixture
def no_room() -> Iterator[Callable[[int], None]]:
    """Limit the size of this process's files to so many bytes; 0 removes the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size or soft, hard))

    yield limit
    limit(0)


def test_on_a_full_disk_nothing_is_lost(home: Path, no_room: Callable[[int], None]) -> None:
    opened = Open(home)
    receipts = opened.add(10)
    no_room(AHEAD_BYTES - 1)
    while opened.log.has_room(RESERVE_RECORDS):  # what has an effect
        receipts += opened.add(100)
    assert opened.log.full == "File too large"
    assert opened.log.has_room(RESERVE_RECORDS // 2)  # what only reads
    while opened.log.has_room(1):  # what makes room
        receipts += opened.add(1)
    assert opened.log.size == SEGMENT_RECORDS
    receipts += opened.add(3)  # outcomes of what runs
    assert not opened.log.flush()
    assert verify(home / "audit", receipts=receipts[:-3]).problems == []
    no_room(0)
    eventually(opened.log.flush)
    receipts += opened.add(1)
    opened.close()
    assert verify(home / "audit", receipts=receipts).problems == []


def test_on_a_full_disk_calls_that_make_room_are_served_last(
    home: Path, no_room: Callable[[int], None]
) -> None:
    opened = Open(home)
    audit = AuditRecorder(opened.log)
    clock = itertools.count(0.0, 1e6)
    audit.coalescer.now = lambda: next(clock)  # each refusal has its record
    table = ProcessTable(9, 9, 9)
    me, agent = (table.add(kind, "x", 0, 0, Limits(), 0.0) for kind in ("client", "agent"))
    no_room(AHEAD_BYTES - 1)
    ends = []
    for name, process in (
        ("mem.put", me), ("mem.get", me), ("refused", agent), ("mem.delete", agent),
        ("mem.delete", me),
    ):  # fmt: skip
        if name == "refused":
            while audit.refused(process, "", 1, f"call {opened.log.size}", b"", DiskFull("full")):
                pass
        else:
            row, raw = TABLE[name], msgspec.Raw(b"")
            with pytest.raises(DiskFull, match="cannot grow: File too large"):
                while True:
                    audit.check_room(row, process)
                    audit.called(process, 1, row, Kill(pid=1), raw, "")
        ends.append(opened.log.size)
    assert ends == sorted(set(ends))
    assert ends[-1] == SEGMENT_RECORDS
    for _ in range(6):
        assert audit.refused(process, "os_pid=1", 1, "mem.get", b"", DiskFull("full")) is None
    no_room(0)
    eventually(lambda: opened.log.has_room(RESERVE_RECORDS))
    audit.check_room(TABLE["mem.get"], None)
    opened.close()
    found = [record for record, _, _ in entries(home / "audit") if record.kind == "note"]
    assert [(note.call, note.object) for note in found] == [
        ("audit.unrecorded", "1 refused calls"), ("audit.unrecorded", "6 refused calls")
    ]  # fmt: skip


def test_a_key_that_is_no_key_is_said(home: Path) -> None:
    write(home, 1)
    (home / "keys" / "audit").write_bytes(b"short")
    with pytest.raises(AuditDamaged, match="cannot be used"):
        Open(home)
    (home / "keys" / "audit").unlink()
    opened = Open(home)
    assert "signed by none of the log's keys" in opened.log.trouble
    opened.add(1)
    opened.close()
    assert not whats_wrong(home)  # both keys are in the folder


def test_a_log_that_has_no_room_is_not_begun(home: Path, no_room: Callable[[int], None]) -> None:
    no_room(AHEAD_BYTES - 1)
    with pytest.raises(DiskFull, match="no audit log in"):
        Open(home)


def test_a_sync_that_fails_stops_the_kernel(home: Path) -> None:
    opened = Open(home)
    opened.add(1)
    out, into = os.pipe()  # which cannot be synced
    opened.append(2)
    opened.log.flush()
    true, opened.log.files[-1] = opened.log.files[-1], out
    with pytest.raises(OSError, match="Invalid argument"):
        opened.log.sync()
    [stop] = opened.posted
    with pytest.raises(OSError, match="Invalid argument"):
        stop()
    opened.posted.clear()
    opened.log.files[-1] = true
    opened.close()
    os.close(out)
    os.close(into)


# --- what is durable before what ------------------------------------------------------------------


def test_a_commit_of_the_store_comes_after_the_intents(home: Path) -> None:
    opened = Open(home)
    posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    seen: list[tuple[object, bool]] = []

    def barrier() -> None:
        opened.log.sync()
        there = store.read(lambda txn: txn.get("memory", b"k"))
        seen.append((there, opened.log.synced == opened.log.size))

    store = Store(home / "store", posted.put, barrier=barrier)
    opened.append(1)
    background(
        store.write(lambda txn: txn.put("memory", b"k", b"v")),
        lambda error: pytest.fail(str(error)),
    )
    posted.get(timeout=60)()
    assert seen == [(None, True)]
    assert store.read(lambda txn: txn.get("memory", b"k")) == b"v"
    store.close()
    opened.close()


def test_what_leaves_the_kernel_waits_for_its_intent(home: Path) -> None:
    """Nothing that came later overtakes it."""
    opened = Open(home)
    audit = AuditRecorder(opened.log)
    posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    journal = Journal(home / "journal", posted.put, before_sync=opened.log.sync)
    told: list[object] = []

    def tell(what: object) -> None:
        assert opened.log.written == opened.log.size
        told.append(what)

    outbox = Outbox(journal, audit.is_safe, lambda *reply: tell(reply), tell)
    contexts, scheduler = ContextManager(lambda _: None), Scheduler("rr", 8)
    ledger = Ledger(
        journal,
        outbox,
        opened.log,
        ProcessTable(9, 9, 9),
        contexts,
        Mock(reports={}),
        scheduler,
        {},
    )
    process = ProcessTable(9, 9, 9).add("client", "me", 0, 0, Limits(), 0.0)
    kill, ended = SignalChild(11, 9), ExitAcknowledged(12)

    outbox.send_init(ended)
    assert ledger.end_turn()
    assert told == [ended]  # of no call
    row, raw = TABLE["proc.kill"], msgspec.Raw(b"")
    audit.called(process, 1, row, Kill(pid=11), raw, "")
    outbox.send_init(kill)
    outbox.send_synced(b"route", b"done")
    assert ledger.end_turn()
    assert opened.log.written == opened.log.size  # in time for the other replies of this turn
    first = posted.get(timeout=60)  # the sync is done, and not heard of
    assert audit.is_safe()
    outbox.send_init(ended)
    assert ledger.end_turn()
    assert told == [ended]
    first()
    posted.get(timeout=60)()
    assert told == [ended, kill, (b"route", b"done"), ended]
    journal.close()
    opened.close()
