"""Every change to an audit log shows."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest
from audit_logs import COUNT, Open, Victim, records, whats_wrong, write

from aios.kernel.audit.checkpoint import public_key
from aios.kernel.audit.segment import SEGMENT_RECORDS, begin, path_of
from aios.kernel.audit.verify import verify
from aios.syscalls.errors import AuditDamaged, BadInput


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Victim:
    return Victim(tmp_path_factory.mktemp("victim"))


def test_a_change_of_any_byte_shows(victim: Victim) -> None:
    """Change each byte of all records, and of the zeros behind."""
    rng = random.Random(1)
    for sequence in range(COUNT):
        assert victim.hidden(sequence, lambda: [rng.randrange(1, 256)]) == []


def test_a_change_of_any_byte_of_a_header_shows(home: Path) -> None:
    write(home, SEGMENT_RECORDS + 3)
    for first in (0, SEGMENT_RECORDS):
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
    """Cut at the edges of records and within, as a shorter file and as zeros."""
    data = victim.data
    for sequence, (at, end) in enumerate(victim.edges):
        for cut in (*range(at, end, 7), end - 1):
            assert victim.shows(data[:cut], sequence), cut
            filled = data[:cut].ljust(len(data), b"\0")
            assert filled == data or victim.shows(filled, sequence), cut


def test_a_log_that_is_written_anew_shows(home: Path) -> None:
    """Even with all chain values, it lacks the root that was signed."""
    receipts = write(home, 100)
    checkpoints = (home / "audit" / "checkpoints").read_bytes()
    shutil.rmtree(home / "audit")
    (home / "keys" / "audit-newest").unlink()
    write(home, 100)
    assert not whats_wrong(home)
    assert whats_wrong(home, receipts[:1]) == ["0: the receipt says otherwise"]
    (home / "audit" / "checkpoints").write_bytes(checkpoints)
    assert whats_wrong(home) == ["99: the checkpoint says otherwise"]


def test_a_checkpoint_that_is_changed_shows(home: Path) -> None:
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


def test_whoever_signs_anew_is_not_whom_a_person_trusts(home: Path) -> None:
    """A log that was made anew with another key verifies, unless the old key was noted
    elsewhere.
    """
    write(home, 5)
    trusted = public_key((home / "audit" / "key").read_text())
    shutil.rmtree(home)
    write(home, 5)
    assert not whats_wrong(home)
    report = verify(home / "audit", keys=[trusted])
    assert "signed by none of the log's keys" in report.problems[0].what


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_segment_that_is_gone_shows(home: Path, number: int) -> None:
    write(home, 2 * SEGMENT_RECORDS + 10)
    path_of(home / "audit", number * SEGMENT_RECORDS).unlink()
    first, last = (
        number * SEGMENT_RECORDS,
        min((number + 1) * SEGMENT_RECORDS, 2 * SEGMENT_RECORDS + 10) - 1,
    )
    found = whats_wrong(home)
    assert found[0].startswith(f"{first}: records {first} to {last} are missing")


def test_a_segment_of_another_log_shows(home: Path) -> None:
    """It does not follow from the segment before it, even where nothing was signed."""
    for number in (0, 1):
        (home / str(number)).mkdir()
        write(home / str(number), SEGMENT_RECORDS + 5)
        (home / str(number) / "audit" / "checkpoints").unlink()
        (home / str(number) / "keys" / "audit-newest").unlink()
        assert not whats_wrong(home / str(number))
    shutil.copy(path_of(home / "1" / "audit", SEGMENT_RECORDS), home / "0" / "audit")
    said = f"{SEGMENT_RECORDS}: the segment does not follow from the one before"
    assert whats_wrong(home / "0") == [said]


def test_receipts_show_what_was_cut_off_behind_the_last_checkpoint(home: Path) -> None:
    write(home, 10)
    opened = Open(home)
    receipts = opened.add(5)
    data = path_of(home / "audit", 0).read_bytes()
    newest = home / "keys" / "audit-newest"
    shutil.copy(newest, home / "newest")
    opened.close()
    shutil.copy(home / "newest", newest)
    shutil.copy(home / "audit" / "checkpoints", home / "later")
    at, _ = list(records(home))[13]
    path_of(home / "audit", 0).write_bytes(data[:at].ljust(len(data), b"\0"))
    note = (home / "audit" / "checkpoints").read_bytes()
    (home / "audit" / "checkpoints").write_bytes(note[: len(note) // 2])  # the first of two
    assert not whats_wrong(home, receipts[:3])
    assert whats_wrong(home, receipts) == ["13: records 13 to 14 are missing: a receipt has them"]


def test_every_receipt_is_verified(home: Path) -> None:
    receipts = write(home, SEGMENT_RECORDS + 100)
    report = verify(home / "audit", receipts=receipts)
    assert (report.problems, report.receipts) == ([], SEGMENT_RECORDS + 100)
    assert (report.records, report.signed, report.segments) == (
        SEGMENT_RECORDS + 100,
        SEGMENT_RECORDS + 100,
        2,
    )
    for number in (0, 99, SEGMENT_RECORDS - 1, SEGMENT_RECORDS, SEGMENT_RECORDS + 99):
        sequence, head = receipts[number]
        lie = (sequence, head[::-1])
        assert whats_wrong(home, [lie]) == [f"{number}: the receipt says otherwise"]


def test_many_segments_are_verified_by_several_processes(home: Path) -> None:
    receipts = write(home, 9 * SEGMENT_RECORDS + 1)
    steps: list[tuple[int, int]] = []
    report = verify(
        home / "audit",
        receipts=receipts[:: SEGMENT_RECORDS // 3],
        progress=lambda *step: steps.append(step),
    )
    assert (report.problems, report.records) == ([], 9 * SEGMENT_RECORDS + 1)
    assert steps == [(done, 10) for done in range(1, 11)]
    path = path_of(home / "audit", 4 * SEGMENT_RECORDS)
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    [wrong] = verify(home / "audit").problems
    assert 4 * SEGMENT_RECORDS < (wrong.sequence or 0) < 4 * SEGMENT_RECORDS + 10


def test_there_has_to_be_a_log(home: Path) -> None:
    with pytest.raises(BadInput, match="no audit log in"):
        verify(home / "audit")
