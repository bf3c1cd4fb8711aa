"""A kernel resumes its audit log in every state; full disks; what is durable before what."""

from __future__ import annotations

import itertools
import os
import queue
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock

import msgspec
import pytest
from audit_logs import Open, records, whats_wrong, write
from conftest import eventually

from aios.kernel.audit.checkpoint import split_notes
from aios.kernel.audit.log import AHEAD_BYTES, RESERVE_RECORDS
from aios.kernel.audit.read import entries
from aios.kernel.audit.recorder import AuditRecorder
from aios.kernel.audit.segment import (
    LENGTH,
    SEGMENT_RECORDS,
    begin,
    decode,
    path_of,
    segments,
)
from aios.kernel.audit.verify import verify
from aios.kernel.init.protocol import ExitAcknowledged, SignalChild
from aios.kernel.journal import Journal
from aios.kernel.ledger.ledger import Ledger
from aios.kernel.ledger.outbox import Outbox
from aios.kernel.lib.coroutine import background
from aios.kernel.llm.contexts import ContextManager
from aios.kernel.llm.scheduler import Scheduler
from aios.kernel.process import ProcessTable
from aios.kernel.store.store import Store
from aios.syscalls.errors import AuditDamaged, DiskFull
from aios.syscalls.proc import Kill, Limits
from aios.syscalls.table import TABLE


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


# --- what a kernel finds -------------------------------------------------------------------------


def test_a_log_goes_on(home: Path) -> None:
    receipts = write(home, 10) + write(home, 10)
    assert [sequence for sequence, _ in receipts] == list(range(20))
    report = verify(home / "audit", receipts=receipts)
    assert (report.problems, report.receipts, report.checkpoints) == ([], 20, 2)
    assert {path.stat().st_mode & 0o777 for path in (home / "keys").iterdir()} == {0o600}


def test_the_thread_that_makes_room_keeps_out_of_the_way(home: Path) -> None:
    """Segments follow each other quicker than files are made for them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for number in range(3):
            (home / str(number)).mkdir()
            write(home / str(number), 4 * SEGMENT_RECORDS + 1)
            assert not whats_wrong(home / str(number))
    finally:
        sys.setswitchinterval(before)


@pytest.mark.parametrize("count", [SEGMENT_RECORDS - 1, SEGMENT_RECORDS, SEGMENT_RECORDS + 1])
def test_a_log_goes_on_at_the_end_of_a_segment(home: Path, count: int) -> None:
    receipts = write(home, count) + write(home, 0) + write(home, 2)
    assert verify(home / "audit", receipts=receipts).problems == []
    assert [first for first, _ in segments(home / "audit")][:2] == [0, SEGMENT_RECORDS]


def test_what_is_not_whole_at_the_end_is_cut_off(home: Path) -> None:
    """Cut at every byte of the last unsigned record, as a power cut does."""
    write(home, 5)
    opened = Open(home)
    receipts = opened.add(3)
    path = path_of(home / "audit", 0)
    at, end = list(records(home))[7]
    opened.log.sync()
    data = path.read_bytes()
    shutil.copytree(home, home.with_name("cut"))
    opened.close()
    # None of these logs is closed: that would sign what the kernel's death leaves unsigned.
    for cut in (*range(at + 1, end, 13), end - 1):
        again = home.with_name("cut")
        path_of(again / "audit", 0).write_bytes(data[:cut].ljust(len(data), b"\0"))
        torn = Open(again)
        assert (torn.log.torn, torn.log.trouble) == (len(data[at:cut].rstrip(b"\0")), "")
        assert torn.add(1)[0][0] == 7
        assert path_of(again / "audit", 0).read_bytes()[at + 4 : at + 5] != b"\0"
        assert verify(again / "audit", receipts=receipts[:2]).problems == []


def test_a_long_tail_that_is_not_whole_leaves_nothing(home: Path) -> None:
    write(home, 5)
    path = path_of(home / "audit", 0)
    end = list(records(home))[-1][1]
    data = path.read_bytes()
    path.write_bytes(data[:end] + b"\x50\0\0\0" + b"?" * 5000 + data[end + 5004 :])
    receipts = write(home, 1)
    assert verify(home / "audit", receipts=receipts).problems == []


def test_a_header_that_is_not_whole_is_begun_again(home: Path) -> None:
    write(home, SEGMENT_RECORDS)
    opened = Open(home)
    opened.settle()
    path = path_of(home / "audit", SEGMENT_RECORDS)
    opened.close()
    path.write_bytes(b"\x50\0\0\0half of a header")
    again = Open(home)
    assert (again.log.torn, again.log.trouble, again.log.size) == (20, "", SEGMENT_RECORDS)
    receipts = again.add(3)
    again.close()
    assert verify(home / "audit", receipts=receipts).problems == []


def test_records_that_were_signed_and_are_lost_are_told_for_good(home: Path) -> None:
    write(home, 10)
    path = path_of(home / "audit", 0)
    at, _ = list(records(home))[6]
    data = path.read_bytes()
    path.write_bytes(data[:at].ljust(len(data), b"\0"))
    for count in (3, 2):
        opened = Open(home)
        if count == 3:
            assert opened.log.trouble.startswith("records 6 to 9 were signed, and are lost")
        else:
            assert opened.log.trouble == ""
        opened.add(count)
        opened.close()
        assert whats_wrong(home) == ["6: records 6 to 9 are missing: a checkpoint has them"]
    assert verify(home / "audit").records == 15
    assert [first for first, _ in segments(home / "audit")] == [0, 10]
    (home / "audit").rename(home / "away")
    (home / "audit").mkdir()
    shutil.copy(home / "away" / "checkpoints", home / "audit")
    opened = Open(home)
    assert opened.log.trouble.startswith("records 0 to 14 were signed, and are lost")
    assert opened.add(1)[0][0] == 15
    opened.close()


def cut_back(home: Path, count: int) -> None:
    """Cut the log back to its first checkpoint, as one without the key can do it."""
    path, checkpoints = path_of(home / "audit", 0), home / "audit" / "checkpoints"
    _, end = list(records(home))[count - 1]
    data = path.read_bytes()
    path.write_bytes(data[:end].ljust(len(data), b"\0"))
    checkpoints.write_bytes(split_notes(checkpoints.read_bytes())[0][0] + b"\n")


def test_a_log_that_is_cut_back_with_its_checkpoints_is_noticed(home: Path) -> None:
    write(home, 10)
    write(home, 5)
    cut_back(home, 10)
    assert whats_wrong(home) == ["10: records 10 to 14 are missing: a checkpoint has them"]
    opened = Open(home)
    assert opened.log.trouble.startswith("records 10 to 14 were signed, and are lost")
    opened.add(3)
    opened.close()
    assert write(home, 1)[0][0] == 18
    assert whats_wrong(home) == ["10: records 10 to 14 are missing: a checkpoint has them"]


def test_other_records_in_the_place_of_those_that_were_signed_are_noticed(home: Path) -> None:
    write(home, 10)
    write(home, 5)
    forger = home / "forger"
    shutil.copytree(home, forger)
    cut_back(forger, 10)
    (forger / "keys" / "audit-newest").unlink()
    opened = Open(forger)
    opened.add(5)
    opened.log.sync()
    shutil.copy(path_of(forger / "audit", 0), home / "audit")
    shutil.copy(forger / "audit" / "checkpoints", home / "audit")
    assert whats_wrong(home) == ["14: the checkpoint says otherwise"]
    found = Open(home)
    assert found.log.trouble.endswith("others are in their place")
    found.add(1)
    found.close()
    assert whats_wrong(home)
    opened.close()


def test_the_newest_checkpoint_is_missed(home: Path) -> None:
    write(home, 10)
    newest = home / "keys" / "audit-newest"
    newest.unlink()
    assert whats_wrong(home) == [f"None: the newest checkpoint is not in {newest} any more"]
    opened = Open(home)
    assert opened.log.trouble == f"the newest checkpoint is not in {newest} any more"
    opened.add(1)
    opened.close()
    assert whats_wrong(home) == []
    newest.write_bytes(newest.read_bytes().replace(b"11", b"12"))
    assert "is signed by none of the log's keys" in whats_wrong(home)[0]


def test_a_kernel_that_died_between_the_two_places_of_a_checkpoint_is_no_trouble(
    home: Path,
) -> None:
    write(home, 10)
    checkpoints = home / "audit" / "checkpoints"
    before = checkpoints.read_bytes()
    receipts = write(home, 5)
    checkpoints.write_bytes(before)
    assert whats_wrong(home, receipts) == []
    opened = Open(home)
    assert opened.log.trouble == ""
    opened.close()
    assert len(split_notes(checkpoints.read_bytes())[0]) == 2
    assert whats_wrong(home, receipts) == []


def test_old_segments_go(home: Path) -> None:
    receipts = []
    for _ in range(4):
        opened = Open(home, keep=5 << 20)
        receipts += opened.add(SEGMENT_RECORDS)
        opened.close()
    first = segments(home / "audit")[0][0]
    assert 0 < first < 3 * SEGMENT_RECORDS
    report = verify(home / "audit", receipts=receipts)
    assert (report.problems, report.first, report.records) == ([], first, 4 * SEGMENT_RECORDS + 2)
    assert 0 < report.receipts < len(receipts)
    last = segments(home / "audit")[-1]
    data = last[1].read_bytes()
    at = begin(data, last[0]).at
    note = decode(data[at + LENGTH.size : at + LENGTH.size + LENGTH.unpack_from(data, at)[0]])
    assert (note.kind, note.call) == ("note", "audit.retention")
    assert note.object.endswith(f"-{first - 1}")
    segments(home / "audit")[0][1].unlink()
    assert f"{first}: records {first} to " in whats_wrong(home)[0]


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
