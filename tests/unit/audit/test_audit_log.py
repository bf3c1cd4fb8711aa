"""A kernel resumes its audit log in every state, and notices what is missing of it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from audit_logs import Open, records, whats_wrong, write

from aios.kernel.audit.checkpoint import split_notes
from aios.kernel.audit.segment import LENGTH, SEGMENT_RECORDS, begin, decode, path_of, segments
from aios.kernel.audit.verify import verify


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


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
