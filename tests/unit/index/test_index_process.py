"""The index as a process: fed, killed, damaged, and out of step."""

from __future__ import annotations

import contextlib
import random
import resource
import signal
import sqlite3
import time
from collections.abc import Iterator

import pytest
import zmq
from conftest import eventually
from index_documents import CAR, FOX, ask, put
from index_harness import PATIENCE_MS, FakeKernel, with_index

from aios.kernel.index.database import FILE_NAME, SET_ASIDE_NAME
from aios.kernel.index.protocol import (
    IndexUnusable,
    Position,
    ResetIndex,
    SearchResults,
    decode_report,
    encode,
)


@pytest.fixture
def kernel() -> Iterator[FakeKernel]:
    with with_index() as kernel:
        yield kernel


def test_it_indexes_and_finds(kernel: FakeKernel) -> None:
    assert kernel.reset() == Position(1, 0, 0, 0)
    kernel.send(put(5, "fox", FOX), put(9, "car", CAR))
    assert kernel.until(9) == Position(1, 9, 2, 2)
    kernel.send(ask("vehicle mechanic"))
    found = kernel.hear(SearchResults)
    assert (found.req, found.error) == (1, None)
    assert found.hits[0].path == "car"
    assert found.hits[0].meaning and found.hits[0].meaning.rank == 1


def test_it_goes_on_where_it_was(kernel: FakeKernel) -> None:
    kernel.reset()
    kernel.put(*range(1, 301))
    kernel.until(300)
    kernel.kill()
    kernel.start()
    assert kernel.reset() == Position(2, 300, 300, 300)
    assert kernel.paths("word7 word300") == {"p7", "p300"}


def test_what_another_epoch_sent_is_ignored(kernel: FakeKernel) -> None:
    kernel.reset()
    kernel.put(1)
    kernel.until(1)
    kernel.put(2, epoch=7)
    kernel.put(3)
    assert kernel.until(3).documents == 2
    assert kernel.reset(drop=True) == Position(2, 0, 0, 0)
    kernel.put(4, epoch=1)
    assert kernel.paths("word1 word4") == set()
    kernel.put(5)
    assert kernel.until(5).documents == 1
    other = kernel.reset(store="restored from a backup")
    assert other == Position(3, 0, 0, 0, began_again="it was of another store")


def test_what_waits_is_dropped_at_a_reset(kernel: FakeKernel) -> None:
    kernel.reset()
    kernel.put(*range(1, 1501), text="and more " * 300)
    assert kernel.reset(drop=True).documents == 0
    kernel.put(1)
    assert kernel.until(1).documents == 1


def test_it_outlives_its_kernel(kernel: FakeKernel) -> None:
    kernel.reset()
    kernel.put(1)
    kernel.until(1)
    kernel.socket.close()
    kernel.bind()
    kernel.here()
    assert kernel.reset() == Position(2, 1, 1, 1)


def test_a_search_does_not_wait_for_all_that_is_to_be_indexed(kernel: FakeKernel) -> None:
    kernel.reset()
    kernel.put(1)
    kernel.until(1)
    assert kernel.process
    kernel.process.send_signal(signal.SIGSTOP)
    kernel.put(*range(2, 3002), text="and much more " * 50)
    kernel.send(ask("word1", "words"))
    kernel.process.send_signal(signal.SIGCONT)
    while not isinstance(report := decode_report(kernel.receive()[1]), SearchResults):
        assert isinstance(report, Position)
        assert report.seq < 1000  # batches that began before it had arrived
    assert {hit.path for hit in report.hits} == {"p1"}
    kernel.until(3001)


def test_killed_in_the_middle_it_never_claims_what_it_has_not(
    kernel: FakeKernel, full: bool
) -> None:
    """The index has every change up to its position, and none that follows."""
    dice, seq, told = random.Random(4), 0, 0
    for _ in range(100 if full else 8):
        position = kernel.reset().seq
        assert told <= position <= seq
        has = {
            int(path[1:]) for path in kernel.paths(" ".join(f"word{n}" for n in window(position)))
        }
        assert has == {n for n in window(position) if 0 < n <= position}
        seq = position + dice.randrange(200, 1500)
        kernel.put(*range(position + 1, seq + 1), text="and more of it " * 40)
        told = kernel.until(dice.randrange(position, seq)).seq
        time.sleep(dice.uniform(0, 0.1))  # anywhere in a batch
        kernel.kill()
        while kernel.socket.poll(0):  # what it had said before
            told = max(told, heard(kernel.receive()[1]))
        kernel.start()


def window(position: int) -> range:
    return range(position - 15, position + 16)


def heard(data: bytes) -> int:
    report = decode_report(data)
    assert isinstance(report, Position)
    return report.seq


def test_a_damaged_file_is_made_again(kernel: FakeKernel) -> None:
    kernel.reset()
    kernel.put(1)
    kernel.until(1)
    kernel.kill()
    for path in (kernel.home / "index").iterdir():
        path.write_bytes(b"scribbled over" * 500)
    kernel.start()
    position = kernel.reset()
    assert (position.seq, position.documents) == (0, 0)
    assert "not a database" in position.began_again
    assert "not a database" in (kernel.home / "index.log").read_text()
    assert (kernel.home / "index" / SET_ASIDE_NAME).exists()
    kernel.put(1)
    kernel.until(1)
    assert kernel.paths("word1") == {"p1"}


def test_damage_while_it_runs_is_found_out(kernel: FakeKernel) -> None:
    """It comes back with a new connection and nothing in it."""
    kernel.reset()
    kernel.put(*range(1, 3001), text=" ".join(f"other{n}" for n in range(200)))
    kernel.until(3000)
    kernel.kill()
    with contextlib.closing(sqlite3.connect(kernel.home / "index" / FILE_NAME)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    kernel.start()
    assert kernel.reset().seq == 3000
    path = kernel.home / "index" / FILE_NAME
    with path.open("r+b") as file:  # more than it has in its cache
        file.seek(4096)
        file.write(b"\xa5" * (path.stat().st_size - 4096))
    kernel.put(3001)
    before = kernel.route
    kernel.here()
    eventually(lambda: not reaches(kernel, before))
    position = kernel.reset()
    assert position.seq == 0
    assert position.began_again
    assert kernel.paths("word7") == set()


def reaches(kernel: FakeKernel, route: bytes) -> bool:
    try:
        kernel.socket.send_multipart([route, encode(ResetIndex(1, "store"))])
    except zmq.ZMQError as error:
        if error.errno != zmq.EHOSTUNREACH:
            raise
        return False
    return True


def test_a_full_disk_is_told_and_got_over(kernel: FakeKernel) -> None:
    kernel.reset()
    kernel.put(1)
    kernel.until(1)
    assert kernel.process
    size = (kernel.home / "index" / f"{FILE_NAME}-wal").stat().st_size
    resource.prlimit(kernel.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    kernel.put(*range(2, 502), text="and more " * 100)
    position = kernel.hear(Position)
    while not position.trouble:
        position = kernel.hear(Position)
    assert position.seq < 501
    assert kernel.paths("word1") == {"p1"}
    limits = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    resource.prlimit(kernel.process.pid, resource.RLIMIT_FSIZE, limits)
    position = kernel.until(501)
    assert (position.trouble, position.documents) == ("", 501)
    assert "cannot index" in (kernel.home / "index.log").read_text()


def test_it_says_why_it_cannot_start(kernel: FakeKernel) -> None:
    kernel.kill()
    index = kernel.home / "index"
    index.rename(kernel.home / "elsewhere")
    index.write_text("a file where the folder should be")
    kernel.start()
    failed = kernel.hear(IndexUnusable)
    assert "cannot be opened" in failed.error["message"]
    assert "index.log" in failed.error["hint"]
    assert kernel.process and kernel.process.wait(PATIENCE_MS / 1000) == 1


def test_two_on_one_file_do_not_take_it_for_damaged(kernel: FakeKernel) -> None:
    kernel.reset()
    kernel.put(1)
    kernel.until(1)
    first = kernel.process
    assert first
    try:
        kernel.start()
        assert "locked" in kernel.hear(IndexUnusable).error["message"]
        assert kernel.process and kernel.process.wait(PATIENCE_MS / 1000) == 1
        assert not (kernel.home / "index" / SET_ASIDE_NAME).exists()
    finally:
        first.kill()
        first.wait()
