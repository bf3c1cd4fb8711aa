"""The journal against a model of it: commits, deaths, torn tails, full logs, a full disk."""

from __future__ import annotations

import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import fewer
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from kept_journal import SMALL, Kept
from places import SUPPORT

from aios.kernel.journal import Rows, _write_base, read
from aios.kernel.lib.encryption import AeadCodec, KeyRing
from aios.kernel.lib.files import make_ahead
from aios.syscalls.errors import DiskFull

keys = st.sampled_from(["a", "b", "process/1", "process/2"])
items = st.binary(max_size=600)


class JournalMachine(RuleBasedStateMachine):
    codec: AeadCodec | None = None

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp()) / "journal"
        self.kept = Kept(self.folder, codec=self.codec)
        self.rows: Rows = {}  # with what is not committed
        self.committed: list[Rows] = [{}]  # since it was opened

    def teardown(self) -> None:
        self.kept.journal.close()
        shutil.rmtree(self.folder.parent)

    @rule(key=keys, item=items)
    def put(self, key: str, item: bytes) -> None:
        self.kept.journal.put(key, item)
        self.rows[key] = [item]

    @rule(key=keys, item=items)
    def add(self, key: str, item: bytes) -> None:
        self.kept.journal.add(key, item)
        self.rows[key] = [*self.rows.get(key, []), item]

    @rule(key=keys)
    def delete(self, key: str) -> None:
        self.kept.journal.put(key, None)
        self.rows.pop(key, None)

    @rule()
    def commit(self) -> None:
        self.kept.commit()
        if self.rows != self.committed[-1]:
            self.committed.append(dict(self.rows))

    @rule()
    def die(self) -> None:
        """Lose the uncommitted changes, and nothing else."""
        self.kept.journal.close()
        self.reopen(self.committed[-1])

    @precondition(lambda self: len(self.committed) > 1)
    @rule(data=st.data())
    def tear(self, data: st.DataObject) -> None:
        """Cut the newest log at any byte: each commit is there as a whole or not at all."""
        journal = self.kept.journal
        log = self.folder / f"log-{journal.number}"
        end = journal.at
        journal.close()
        cut = data.draw(st.integers(0, end))
        with log.open("r+b") as file:
            file.truncate(cut)
        found, _ = read(self.folder, codec=self.codec)
        assert found in self.committed
        if cut == end:
            assert found == self.committed[-1]
        self.reopen(found)

    def reopen(self, expected: Rows) -> None:
        self.kept = Kept(self.folder, codec=self.codec)
        assert self.kept.journal.rows == expected
        self.rows = dict(expected)
        self.committed = [dict(expected)]

    @invariant()
    def files_are_few(self) -> None:
        assert len(list(self.folder.iterdir())) < 60


JournalMachine.TestCase.settings = fewer(2)
TestJournal = JournalMachine.TestCase


class SealedJournalMachine(JournalMachine):
    codec = AeadCodec(KeyRing.new())


SealedJournalMachine.TestCase.settings = fewer(10)
TestSealedJournal = SealedJournalMachine.TestCase


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "journal"


def test_full_logs_are_folded_away(folder: Path) -> None:
    kept = Kept(folder)
    for number in range(200):
        kept.journal.put(f"key/{number % 3}", bytes(500))
        kept.commit()
    kept.journal.close()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 8 * SMALL
    assert len(read(folder)[0]) == 3


def test_a_commit_larger_than_a_log_is_one(folder: Path) -> None:
    kept = Kept(folder)
    for size in (SMALL * 3, 10, SMALL * 5):
        kept.journal.put("key", bytes(size))
        kept.commit()
    kept.journal.close()
    assert read(folder)[0] == {"key": [bytes(SMALL * 5)]}


def test_what_follows_a_torn_log_is_not_read(folder: Path) -> None:
    """Only a power cut tears a log that another follows."""
    kept = Kept(folder, 1 << 16)
    first = folder / f"log-{kept.journal.number}"
    kept.journal.put("a", bytes(40_000))
    kept.commit()
    early = first.read_bytes()
    kept.journal.put("b", bytes(20_000))
    kept.commit()
    full = first.read_bytes()
    kept.journal.put("c", bytes(20_000))
    kept.commit()
    kept.journal.close()
    for path in folder.glob("base-*"):
        path.unlink()  # as if it had not been folded yet
    first.write_bytes(full)
    assert read(folder)[0].keys() == {"a", "b", "c"}
    first.write_bytes(early)
    assert read(folder)[0].keys() == {"a"}


@pytest.mark.parametrize("at", [0, 4, 8, 20])
def test_a_flipped_bit_ends_what_is_read(folder: Path, at: int) -> None:
    kept = Kept(folder)
    kept.journal.put("a", b"first")
    kept.commit()
    end = kept.journal.at
    kept.journal.put("b", b"second, and long enough for every position")
    kept.commit()
    kept.journal.close()
    log = folder / f"log-{kept.journal.number}"
    data = bytearray(log.read_bytes())
    data[end + at] ^= 0x10
    log.write_bytes(data)
    assert read(folder)[0] == {"a": [b"first"]}


def test_a_burst_waits_for_the_log_that_is_being_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, may_go_on = Kept(folder), threading.Event()

    def slowly(path: Path, size: int) -> int:
        assert may_go_on.wait(10)
        return make_ahead(path, size)

    monkeypatch.setattr("aios.kernel.journal.make_ahead", slowly)
    written = 0
    while kept.journal.commit():
        kept.journal.check_room()  # the disk is not full
        kept.journal.put(f"key/{written}", bytes(500))
        written += 1
    kept.journal.check_room()
    may_go_on.set()
    kept.commit()
    kept.journal.close()
    assert len(read(folder)[0]) == written


def test_what_is_written_is_in_proportion_to_what_was_committed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that stay are not written again for each full log."""
    written: list[int] = []

    def counted(*args: Any) -> int:
        written.append(_write_base(*args))
        return written[-1]

    monkeypatch.setattr("aios.kernel.journal._write_base", counted)
    kept = Kept(folder)
    for number in range(100):
        kept.journal.put(f"stays/{number}", bytes(1000))
        kept.commit()
    written.clear()
    for number in range(500):
        kept.journal.put(f"key/{number % 3}", bytes(500))
        kept.commit()
    kept.journal.close()
    assert sum(written) < 3 * 500 * 500
    assert len(read(folder)[0]) == 103


def test_a_sync_tells_when_it_is_done(folder: Path) -> None:
    kept = Kept(folder)
    done: list[bool] = []
    kept.journal.put("a", b"1")
    kept.commit()
    kept.journal.sync(lambda: done.append(True))
    kept.posted.get(timeout=60)()
    assert done == [True]
    kept.journal.close()


FULL_DISK = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from kept_journal import SMALL, Kept
from aios.kernel.lib.encryption import KeyRing, AeadCodec
from aios.syscalls.errors import DiskFull

kept = Kept(Path(sys.argv[1]))
limits = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))  # no file can be made: as a full disk
written = 0
while True:
    try:
        kept.journal.check_room()
    except DiskFull:
        break
    kept.journal.put(f"key/{written}", bytes(100))
    kept.commit()
    written += 1
kept.journal.put("late", b"what runs already has the reserve")
assert kept.journal.commit()
kept.journal.check_running()
kept.journal.put("late too", bytes(SMALL // 2))
assert kept.journal.commit()
try:
    kept.journal.check_running()
except DiskFull:
    pass
else:
    sys.exit("what runs is to leave the last of it to what ends something")
kept.journal.put("the end", bytes(100))
assert kept.journal.commit()
kept.journal.put("too late", bytes(SMALL))
while kept.journal.commit():  # it is kept until there is room
    pass
resource.setrlimit(resource.RLIMIT_NOFILE, limits)
Path(sys.argv[1] + ".count").write_text(str(written))
"""


def test_a_full_disk_refuses_what_is_new_and_loses_nothing(folder: Path) -> None:
    script = [sys.executable, "-c", FULL_DISK, str(folder), str(SUPPORT)]
    ran = subprocess.run(script, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    rows, _ = read(folder)
    assert len(rows) == int(Path(f"{folder}.count").read_text()) + 3
    assert {"late", "late too", "the end"} <= rows.keys()
    assert "too late" not in rows


def test_no_room_for_a_first_log_is_said(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, before[1]))
    try:
        with pytest.raises(DiskFull, match="no journal in"):
            Kept(tmp_path / "journal")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
