"""The store: transactions that hold or leave nothing, the room in its file, full disks."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest
from opened_store import Opened, fail
from store_loop import LIMIT
from waits import hear

from aios.kernel.store.file_space import RESERVED_BYTES
from aios.kernel.store.transaction import Txn
from aios.syscalls.errors import (
    BadInput,
    Conflict,
    DiskFull,
    HomeBusy,
    Internal,
    StoreDamaged,
    StoreFull,
)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    opened = Opened(tmp_path / "store")
    yield opened
    opened.store.close()


def test_what_raises_leaves_nothing_and_harms_nobody_in_its_group(opened: Opened) -> None:
    block = threading.Event()
    answers: list[Any] = []
    before = opened.store.commits
    hear(opened.store.write(lambda _: block.wait(LIMIT)), answers.append)
    for do in (
        lambda txn: txn.put("memory", b"a", b"1"),
        fail,
        lambda txn: txn.get("memory", b"a"),
    ):
        hear(opened.store.write(do), answers.append)
    block.set()
    opened.loop.wait(answers, 4)
    assert answers[1] is None
    assert isinstance(answers[2], Conflict)
    assert answers[3] == b"1"
    assert opened.get(b"half") is None
    assert opened.store.commits - before <= 2  # those that waited went together


def test_a_defect_is_told_and_the_store_goes_on(
    opened: Opened, capsys: pytest.CaptureFixture[str]
) -> None:
    assert isinstance(opened.write(lambda _: 1 // 0)[0], Internal)
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert opened.put(b"a", b"1") is None


def test_keys_that_it_cannot_hold(opened: Opened) -> None:
    long = opened.write(lambda txn: txn.put("memory", b"k" * 512, b""))[0]
    none = opened.write(lambda txn: txn.put("memory", b"", b""))[0]
    assert isinstance(long, BadInput)
    assert isinstance(none, BadInput)


def test_scan(opened: Opened) -> None:
    def fill(txn: Txn) -> None:
        for key in (b"a", b"b1", b"b2", b"b\xff", b"c"):
            txn.put("memory", key, key + b"!")

    opened.write(fill)

    def keys(prefix: bytes, start: bytes = b"", *, back: bool = False) -> list[bytes]:
        found: list[bytes] = opened.store.read(
            lambda txn: [key for key, _ in txn.scan("memory", prefix, start, back=back)]
        )
        return found

    assert keys(b"") == [b"a", b"b1", b"b2", b"b\xff", b"c"]
    assert keys(b"b") == [b"b1", b"b2", b"b\xff"]
    assert keys(b"b", b"b2") == [b"b2", b"b\xff"]
    assert keys(b"b", back=True) == [b"b\xff", b"b2", b"b1"]
    assert keys(b"b", b"b2", back=True) == [b"b1"]
    assert keys(b"c", back=True) == [b"c"]
    assert keys(b"d") == keys(b"d", back=True) == []


def test_reads_that_failed_hold_nothing(opened: Opened) -> None:
    """LMDB has few slots for those who read."""
    kept = []
    for _ in range(50):
        with pytest.raises(Conflict) as raised:
            opened.store.read(fail_to_read)
        kept.append(raised.value)
    assert opened.get(b"none") is None


def fail_to_read(txn: Txn) -> None:
    keys = txn.keys("memory", b"")
    assert list(keys) == []
    raise Conflict("no")


# --- the file -------------------------------------------------------------------------------------


def test_the_file_is_extended_ahead_of_what_is_written(opened: Opened) -> None:
    for number in range(6):
        assert opened.put(b"%d" % number, b"x" * (4 << 20)) is None
    assert opened.write(lambda _: opened.store.space.unused() >= RESERVED_BYTES) == [True]
    assert opened.store.path.stat().st_blocks * 512 >= opened.store.space.size - (
        1 << 20
    )  # no holes


def test_two_kernels_cannot_have_one_store(tmp_path: Path) -> None:
    opened = Opened(tmp_path)
    with pytest.raises(HomeBusy):
        Opened(tmp_path)
    opened.store.close()
    Opened(tmp_path).store.close()


def test_a_full_store_refuses_and_reads_on(tmp_path: Path) -> None:
    opened = Opened(tmp_path, limit=1 << 25)
    kept = 0
    while (answer := opened.put(b"%d" % kept, b"x" * (1 << 20))) is None:
        kept += 1
    assert isinstance(answer, StoreFull)
    assert 20 < kept < 32
    assert len(opened.get(b"0")) == 1 << 20
    assert opened.write(lambda txn: txn.delete("memory", b"0")) == [True]
    assert opened.write(lambda txn: txn.delete("memory", b"1")) == [True]
    assert opened.put(b"small", b"x") is None
    opened.store.close()


READER = """
import lmdb, sys
env = lmdb.open(sys.argv[1])
txn = env.begin()
print("reads", flush=True)
sys.stdin.read()
"""


def test_a_reader_that_was_killed_holds_no_room(tmp_path: Path) -> None:
    """Another program that looked at the store: what it could see is not used again before it is
    known to be gone."""
    opened = Opened(tmp_path, limit=1 << 25)
    assert opened.put(b"first", b"x") is None
    with subprocess.Popen(
        [sys.executable, "-c", READER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"reads\n"
        reader.kill()
    for number in range(200):  # each in place of the one before
        assert opened.put(b"same", b"%d" % number * (1 << 18)) is None
    opened.store.close()


def test_of_a_group_that_does_not_fit_the_rest_is_written(tmp_path: Path) -> None:
    opened = Opened(tmp_path, limit=1 << 25)

    def put(key: bytes, size: int) -> Callable[[Txn], None]:
        return lambda txn: txn.put("memory", key, b"x" * size)

    block = threading.Event()
    answers: list[Any] = []
    hear(opened.store.write(lambda _: block.wait(LIMIT)), answers.append)
    for key, size in ((b"a", 100), (b"b", 1 << 26), (b"c", 100)):
        hear(opened.store.write(put(key, size)), answers.append)
    block.set()
    opened.loop.wait(answers, 4)
    assert [type(answer) for answer in answers] == [bool, type(None), StoreFull, type(None)]
    assert len(opened.get(b"a")) == len(opened.get(b"c")) == 100
    opened.store.close()


def test_a_full_disk_refuses_what_grows_and_lets_delete(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full for what extends the file; LMDB writes within it."""
    real = os.pwrite

    def full(file: int, data: bytes, at: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    answers = [opened.put(b"%d" % number, b"x" * (1 << 20)) for number in range(12)]
    assert answers[0] is None
    assert isinstance(answers[-1], DiskFull)
    size = opened.store.path.stat().st_size
    assert size == opened.store.space.size
    assert opened.get(b"0") is not None
    assert opened.write(lambda txn: txn.delete("memory", b"0")) == [True]
    monkeypatch.setattr(os, "pwrite", real)
    assert isinstance(opened.put(b"again", b"x" * (1 << 20)), DiskFull | None)
    assert opened.put(b"again", b"x" * (1 << 20)) is None


def test_after_a_sync_that_failed_nothing_is_written(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert opened.put(b"a", b"1") is None

    class Broken:
        def __getattr__(self, name: str) -> Any:
            return getattr(env, name)

        def begin(self, **options: Any) -> Any:
            if options.get("write"):
                raise lmdb.Error("mdb_txn_commit: Input/output error")
            return env.begin(**options)

    env = opened.store.env
    monkeypatch.setattr(opened.store, "env", Broken())
    assert isinstance(opened.put(b"b", b"2"), StoreDamaged)
    monkeypatch.setattr(opened.store, "env", env)
    assert isinstance(opened.put(b"b", b"2"), StoreDamaged)
    assert opened.get(b"a") == b"1"


def test_a_backup_while_running_is_a_store(opened: Opened, tmp_path: Path) -> None:
    opened.put(b"a", b"1")
    with opened.store.backup(tmp_path / "backup"):
        pass
    opened.put(b"a", b"2")
    copy = Opened(tmp_path / "backup")
    assert copy.get(b"a") == b"1"
    assert copy.put(b"b", b"3") is None
    copy.store.close()
