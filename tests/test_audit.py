"""The audit log by itself: whatever is done to it shows, and a kernel that finds it goes on."""

from __future__ import annotations

import os
import queue
import random
import resource
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from conftest import eventually

from aios.kernel.audit.checkpoint import Signer, public_key
from aios.kernel.audit.log import AHEAD, RESERVE, Log
from aios.kernel.audit.merkle import Peaks
from aios.kernel.audit.read import entries
from aios.kernel.audit.recorder import Audit
from aios.kernel.audit.segment import (
    HASH,
    LENGTH,
    SEGMENT,
    State,
    begin,
    decode,
    follow,
    path_of,
    segments,
)
from aios.kernel.audit.verify import Stop, examine, verify
from aios.kernel.context import ContextManager
from aios.kernel.init_protocol import Heard, SignalChild
from aios.kernel.journal import Journal
from aios.kernel.ledger import Ledger
from aios.kernel.process import ProcessTable
from aios.kernel.store import Store
from aios.syscalls.errors import AuditDamaged, BadInput, DiskFull
from aios.syscalls.messages import Kill, Limits
from aios.syscalls.table import TABLE
from aios.syscalls.wire import Receipt

Home = Path
COUNT = 1000  # records of the log that is tampered with


class Open:
    """A log in `home`, with a loop for what its thread posts."""

    def __init__(self, home: Home, keep: int = 1 << 30) -> None:
        self.posted: list[Callable[[], None]] = []
        signer = Signer(home / "keys" / "audit")
        self.log = Log(home / "audit", signer, self.posted.append, boot=b"the boot", keep=keep)

    def add(self, count: int) -> list[Receipt]:
        """Records that are written: enough for the kernel's death."""
        receipts = [self.append(number) for number in range(count)]
        self.log.flush()
        return receipts

    def append(self, n: int) -> Receipt:
        fields = (7, "/writer", "intent", n, "mem.put", f"items=k{n}", b"", "", "", 0)
        return self.log.append(fields)

    def settle(self) -> None:
        """Wait until the thread has done what it was asked for."""
        done = threading.Event()
        self.log.jobs.put(done.set)
        assert done.wait(10)

    def close(self) -> None:
        self.log.close()
        assert self.posted == []


def write(home: Home, count: int) -> list[Receipt]:
    opened = Open(home)
    receipts = opened.add(count)
    opened.close()
    return receipts


def whats_wrong(home: Home, receipts: list[Receipt] = []) -> list[str]:  # noqa: B006
    report = verify(home / "audit", receipts=receipts)
    return [f"{problem.sequence}: {problem.what}" for problem in report.problems]


def records(home: Home) -> Iterator[tuple[int, int]]:
    """Where each record of the first segment begins and ends."""
    data = path_of(home / "audit", 0).read_bytes()
    at = begin(data, 0).at
    while length := LENGTH.unpack_from(data, at)[0]:
        end = at + LENGTH.size + length + HASH
        yield at, end
        at = end


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return tmp_path


# --- tampering -----------------------------------------------------------------------------------


class Victim:
    """A log of COUNT records in memory; every change of it is shown to the verifier's own
    `examine`, from before the first record that is touched, with the last checkpoint alone."""

    def __init__(self, home: Home) -> None:
        write(home, COUNT)
        self.edges = list(records(home))
        end = self.edges[-1][1]
        self.data = path_of(home / "audit", 0).read_bytes()[: end + 64]
        self.before: list[State] = []  # before each record
        state = begin(self.data, 0)
        for sequence in range(COUNT):
            self.before.append(state)
            state = State(state.at, state.chain, Peaks(sequence, state.peaks.roots), 0)
            follow(self.data, state, sequence + 1)
        assert (state.sequence, state.at) == (COUNT, end)
        self.stops = [Stop(COUNT, root=state.peaks.root())]
        assert not self.shows(self.data, 0)

    def shows(self, data: bytes | bytearray, record: int) -> bool:
        known = self.before[min(record, COUNT - 1)]
        state = State(known.at, known.chain, Peaks(known.sequence, known.peaks.roots), 0)
        return bool(examine(data, state, SEGMENT, self.stops))

    def record_at(self, at: int) -> int:
        """Of this byte; the last, of one behind."""
        return next((n for n, (_, end) in enumerate(self.edges) if at < end), COUNT - 1)


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Victim:
    return Victim(tmp_path_factory.mktemp("victim"))


def test_a_change_of_any_byte_shows(victim: Victim, full: bool) -> None:
    """Each byte of all records and of the zeros behind, to another value; to all of them for a few
    records, or in the fault campaign for all."""
    rng = random.Random(1)
    thorough = {0, 1, COUNT // 2, COUNT - 1}
    first = victim.edges[0][0]
    data = bytearray(victim.data)
    sequence = 0
    for at in range(first, len(data)):
        if sequence < COUNT - 1 and at >= victim.edges[sequence][1]:
            sequence += 1
        true = data[at]
        others = range(1, 256) if full or sequence in thorough else [rng.randrange(1, 256)]
        for other in others:
            data[at] = true ^ other
            assert victim.shows(data, sequence), (at, other)
        data[at] = true


def test_a_change_of_any_byte_of_a_header_shows(home: Home) -> None:
    write(home, SEGMENT + 3)
    for first in (0, SEGMENT):
        data = bytearray(path_of(home / "audit", first).read_bytes()[:1000])
        for at in range(begin(bytes(data), first).at):
            true = data[at]
            for other in range(1, 256):
                data[at] = true ^ other
                with pytest.raises(AuditDamaged):
                    begin(bytes(data), first)
            data[at] = true


def test_a_record_that_is_taken_out_shows(victim: Victim) -> None:
    for sequence, (at, end) in enumerate(victim.edges):
        assert victim.shows(victim.data[:at] + victim.data[end:], sequence), sequence


def test_records_that_change_places_show(victim: Victim) -> None:
    rng = random.Random(2)
    pairs = [(n, n + 1) for n in range(COUNT - 1)]
    pairs += [sorted(rng.sample(range(COUNT), 2)) for _ in range(COUNT)]  # type: ignore[misc]
    data = victim.data
    for one, two in pairs:
        (a, b), (c, d) = victim.edges[one], victim.edges[two]
        swapped = data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]
        assert victim.shows(swapped, one), (one, two)


def test_a_record_that_is_put_in_twice_shows(victim: Victim) -> None:
    for sequence, (at, end) in enumerate(victim.edges):
        doubled = victim.data[:end] + victim.data[at:]
        assert victim.shows(doubled, sequence), sequence


def test_a_log_that_is_cut_anywhere_shows(victim: Victim) -> None:
    """At the edges of records and within, as a shorter file and as zeros."""
    data = victim.data
    for sequence, (at, end) in enumerate(victim.edges):
        for cut in (*range(at, end, 7), end - 1):
            assert victim.shows(data[:cut], sequence), cut
            filled = data[:cut].ljust(len(data), b"\0")
            assert filled == data or victim.shows(filled, sequence), cut


def test_a_log_that_is_written_anew_shows(home: Home) -> None:
    """Chain values and all: then it does not have the root that was signed."""
    receipts = write(home, 100)
    checkpoints = (home / "audit" / "checkpoints").read_bytes()
    shutil.rmtree(home / "audit")
    write(home, 100)
    assert not whats_wrong(home)
    assert whats_wrong(home, receipts[:1]) == ["0: the receipt says otherwise"]
    (home / "audit" / "checkpoints").write_bytes(checkpoints)
    assert whats_wrong(home) == ["99: the checkpoint says otherwise"]


def test_a_checkpoint_that_is_changed_shows(home: Home) -> None:
    write(home, 10)
    os.truncate(path_of(home / "audit", 0), list(records(home))[-1][1])  # quicker to read
    path = home / "audit" / "checkpoints"
    data = path.read_bytes()
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert whats_wrong(home), at
    for cut in range(1, len(data)):
        path.write_bytes(data[:cut])
        assert whats_wrong(home), cut


def test_whoever_signs_anew_is_not_whom_a_person_trusts(home: Home) -> None:
    """Without the key that was noted elsewhere, a log that was made anew with another verifies."""
    write(home, 5)
    trusted = public_key((home / "audit" / "key").read_text())
    shutil.rmtree(home)
    write(home, 5)
    assert not whats_wrong(home)
    report = verify(home / "audit", keys=[trusted])
    assert "signed by none of the log's keys" in report.problems[0].what


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_segment_that_is_gone_shows(home: Home, number: int) -> None:
    write(home, 2 * SEGMENT + 10)
    path_of(home / "audit", number * SEGMENT).unlink()
    first, last = number * SEGMENT, min((number + 1) * SEGMENT, 2 * SEGMENT + 10) - 1
    found = whats_wrong(home)
    assert found[0].startswith(f"{first}: records {first} to {last} are missing")


def test_a_segment_of_another_log_shows(home: Home) -> None:
    """Also where nothing was signed: it does not follow from the one before it."""
    for number in (0, 1):
        (home / str(number)).mkdir()
        write(home / str(number), SEGMENT + 5)
        (home / str(number) / "audit" / "checkpoints").unlink()
        assert not whats_wrong(home / str(number))
    shutil.copy(path_of(home / "1" / "audit", SEGMENT), home / "0" / "audit")
    said = f"{SEGMENT}: the segment does not follow from the one before"
    assert whats_wrong(home / "0") == [said]


def test_receipts_show_what_was_cut_off_behind_the_last_checkpoint(home: Home) -> None:
    write(home, 10)
    opened = Open(home)
    receipts = opened.add(5)
    data = path_of(home / "audit", 0).read_bytes()
    opened.close()
    shutil.copy(home / "audit" / "checkpoints", home / "later")
    at, _ = list(records(home))[13]
    path_of(home / "audit", 0).write_bytes(data[:at].ljust(len(data), b"\0"))
    note = (home / "audit" / "checkpoints").read_bytes()
    (home / "audit" / "checkpoints").write_bytes(note[: len(note) // 2])  # the first of two
    assert not whats_wrong(home, receipts[:3])
    assert whats_wrong(home, receipts) == ["13: records 13 to 14 are missing: a receipt has them"]


def test_every_receipt_is_verified(home: Home) -> None:
    receipts = write(home, SEGMENT + 100)
    report = verify(home / "audit", receipts=receipts)
    assert (report.problems, report.receipts) == ([], SEGMENT + 100)
    assert (report.records, report.signed, report.segments) == (SEGMENT + 100, SEGMENT + 100, 2)
    for number in (0, 99, SEGMENT - 1, SEGMENT, SEGMENT + 99):
        sequence, head = receipts[number]
        lie = (sequence, head[::-1])
        assert whats_wrong(home, [lie]) == [f"{number}: the receipt says otherwise"]


def test_many_segments_are_verified_by_several_processes(home: Home) -> None:
    receipts = write(home, 9 * SEGMENT + 1)
    steps: list[tuple[int, int]] = []
    report = verify(
        home / "audit",
        receipts=receipts[:: SEGMENT // 3],
        progress=lambda *step: steps.append(step),
    )
    assert (report.problems, report.records) == ([], 9 * SEGMENT + 1)
    assert steps == [(done, 10) for done in range(1, 11)]
    path = path_of(home / "audit", 4 * SEGMENT)
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    [wrong] = verify(home / "audit").problems
    assert 4 * SEGMENT < (wrong.sequence or 0) < 4 * SEGMENT + 10


def test_there_has_to_be_a_log(home: Home) -> None:
    with pytest.raises(BadInput, match="no audit log in"):
        verify(home / "audit")


# --- what a kernel finds -------------------------------------------------------------------------


def test_a_log_goes_on(home: Home) -> None:
    receipts = write(home, 10) + write(home, 10)
    assert [sequence for sequence, _ in receipts] == list(range(20))
    report = verify(home / "audit", receipts=receipts)
    assert (report.problems, report.receipts, report.checkpoints) == ([], 20, 2)
    assert [path.stat().st_mode & 0o777 for path in (home / "keys").iterdir()] == [0o600]


def test_the_thread_that_makes_room_keeps_out_of_the_way(home: Home) -> None:
    """At a pace at which segments follow each other quicker than files are made for them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for number in range(3):
            (home / str(number)).mkdir()
            write(home / str(number), 4 * SEGMENT + 1)
            assert not whats_wrong(home / str(number))
    finally:
        sys.setswitchinterval(before)


@pytest.mark.parametrize("count", [SEGMENT - 1, SEGMENT, SEGMENT + 1])
def test_a_log_goes_on_at_the_end_of_a_segment(home: Home, count: int) -> None:
    receipts = write(home, count) + write(home, 0) + write(home, 2)
    assert verify(home / "audit", receipts=receipts).problems == []
    assert [first for first, _ in segments(home / "audit")][:2] == [0, SEGMENT]


def test_what_is_not_whole_at_the_end_is_cut_off(home: Home) -> None:
    """At every byte of the last record that nobody has signed, as a power cut leaves it."""
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


def test_a_long_tail_that_is_not_whole_leaves_nothing(home: Home) -> None:
    write(home, 5)
    path = path_of(home / "audit", 0)
    end = list(records(home))[-1][1]
    data = path.read_bytes()
    path.write_bytes(data[:end] + b"\x50\0\0\0" + b"?" * 5000 + data[end + 5004 :])
    receipts = write(home, 1)
    assert verify(home / "audit", receipts=receipts).problems == []


def test_a_header_that_is_not_whole_is_begun_again(home: Home) -> None:
    write(home, SEGMENT)
    opened = Open(home)
    opened.settle()
    path = path_of(home / "audit", SEGMENT)
    opened.close()
    path.write_bytes(b"\x50\0\0\0half of a header")
    again = Open(home)
    assert (again.log.torn, again.log.trouble, again.log.size) == (20, "", SEGMENT)
    receipts = again.add(3)
    again.close()
    assert verify(home / "audit", receipts=receipts).problems == []


def test_records_that_were_signed_and_are_lost_are_told_for_good(home: Home) -> None:
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


def test_old_segments_go(home: Home) -> None:
    receipts = []
    for _ in range(4):
        opened = Open(home, keep=5 << 20)
        receipts += opened.add(SEGMENT)
        opened.close()
    first = segments(home / "audit")[0][0]
    assert 0 < first < 3 * SEGMENT
    report = verify(home / "audit", receipts=receipts)
    assert (report.problems, report.first, report.records) == ([], first, 4 * SEGMENT + 2)
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
    """No file of this process may grow beyond so many bytes (0: any number)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size or soft, hard))

    yield limit
    limit(0)


def test_on_a_full_disk_nothing_is_lost(home: Home, no_room: Callable[[int], None]) -> None:
    opened = Open(home)
    receipts = opened.add(10)
    no_room(AHEAD - 1)
    while opened.log.has_room(RESERVE):  # what has an effect
        receipts += opened.add(100)
    assert opened.log.full == "File too large"
    assert opened.log.has_room(RESERVE // 2)  # what only reads
    while opened.log.has_room(1):  # what makes room
        receipts += opened.add(1)
    assert opened.log.size == SEGMENT
    receipts += opened.add(3)  # outcomes of what runs
    assert not opened.log.flush()
    assert verify(home / "audit", receipts=receipts[:-3]).problems == []
    no_room(0)
    eventually(opened.log.flush)
    receipts += opened.add(1)
    opened.close()
    assert verify(home / "audit", receipts=receipts).problems == []


def test_on_a_full_disk_calls_that_make_room_are_served_last(
    home: Home, no_room: Callable[[int], None]
) -> None:
    opened = Open(home)
    audit = Audit(opened.log)
    process = ProcessTable(9, 9, 9).add("client", "me", 0, 0, Limits(), 0.0)
    no_room(AHEAD - 1)
    ends = []
    for name in ("mem.put", "mem.get", "mem.delete"):
        row, raw = TABLE[name], msgspec.Raw(b"")
        with pytest.raises(DiskFull, match="cannot grow: File too large"):
            while True:
                audit.check_room(row)
                audit.called(process, 1, row, Kill(pid=1), raw, "")
        ends.append(opened.log.size)
    assert ends[0] < ends[1] < ends[2] == SEGMENT
    for _ in range(7):
        assert audit.refused(process, 1, 1, "mem.get", b"", DiskFull("full")) is None
    no_room(0)
    eventually(lambda: opened.log.has_room(RESERVE))
    audit.check_room(TABLE["mem.get"])
    opened.close()
    found = [record for record, _, _ in entries(home / "audit") if record.kind == "note"]
    assert [(note.call, note.object) for note in found] == [("audit.unrecorded", "7 refused calls")]


def test_a_key_that_is_no_key_is_said(home: Home) -> None:
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


def test_a_log_that_has_no_room_is_not_begun(home: Home, no_room: Callable[[int], None]) -> None:
    no_room(AHEAD - 1)
    with pytest.raises(DiskFull, match="no audit log in"):
        Open(home)


def test_a_sync_that_fails_stops_the_kernel(home: Home) -> None:
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


def test_a_commit_of_the_store_comes_after_the_intents(home: Home) -> None:
    opened = Open(home)
    posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    seen: list[tuple[object, bool]] = []

    def barrier() -> None:
        opened.log.sync()
        there = store.read(lambda txn: txn.get("memory", b"k"))
        seen.append((there, opened.log.synced == opened.log.size))

    store = Store(home / "store", posted.put, barrier=barrier)
    opened.append(1)
    store.write(
        lambda txn: txn.put("memory", b"k", b"v"),
        lambda _: None,
        lambda error: pytest.fail(str(error)),
    )
    posted.get(timeout=10)()
    assert seen == [(None, True)]
    assert store.read(lambda txn: txn.get("memory", b"k")) == b"v"
    store.close()
    opened.close()


def test_what_leaves_the_kernel_waits_for_its_intent(home: Home) -> None:
    """And nothing that came later overtakes it."""
    opened = Open(home)
    audit = Audit(opened.log)
    posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    journal = Journal(home / "journal", posted.put, before_sync=opened.log.sync)
    told: list[object] = []

    def tell(what: object) -> None:
        assert opened.log.written == opened.log.size
        told.append(what)

    ledger = Ledger(journal, audit, lambda *reply: tell(reply), tell)
    ledger.table = ProcessTable(9, 9, 9)
    ledger.contexts = ContextManager(lambda _: None)
    process = ProcessTable(9, 9, 9).add("client", "me", 0, 0, Limits(), 0.0)
    kill, ended = SignalChild(11, 9), Heard(12)

    ledger.send_init(ended)
    assert ledger.end_turn()
    assert told == [ended]  # of no call
    row, raw = TABLE["proc.kill"], msgspec.Raw(b"")
    audit.called(process, 1, row, Kill(pid=11), raw, "")
    ledger.send_init(kill)
    ledger.send_synced(b"route", b"done")
    assert ledger.end_turn()
    assert opened.log.written == opened.log.size  # in time for the other replies of this turn
    first = posted.get(timeout=10)  # the sync is done, and not heard of
    assert audit.is_safe
    ledger.send_init(ended)
    assert ledger.end_turn()
    assert told == [ended]
    first()
    posted.get(timeout=10)()
    assert told == [ended, kill, (b"route", b"done"), ended]
    journal.close()
    opened.close()
