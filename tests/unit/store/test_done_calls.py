"""A call that comes again is done once; how much is remembered for that."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest
from opened_store import Opened, fail
from store_loop import LIMIT
from waits import hear

from aios.kernel.store import done_calls
from aios.kernel.store.done_calls import MAX_RESULTS, CallId
from aios.kernel.store.transaction import Txn
from aios.syscalls.errors import Conflict, OutOfOrder, StoreFull


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    opened = Opened(tmp_path / "store")
    yield opened
    opened.store.close()


def known(pid: int, number: int, name: str = "sto.put") -> CallId:
    return CallId(pid, number, name)


def test_a_call_that_comes_again_is_done_once(tmp_path: Path) -> None:
    def count(txn: Txn) -> int:
        number = int(txn.get("memory", b"n") or b"0") + 1
        txn.put("memory", b"n", b"%d" % number)
        return number

    opened = Opened(tmp_path, system="one")
    assert opened.write(count, once=known(3, 7)) == opened.write(count, once=known(3, 7)) == [1]
    opened.store.close()
    opened = Opened(tmp_path, system="one")  # the kernel was killed
    assert opened.write(count, once=known(3, 7)) == [1]
    assert opened.write(count, once=known(3, 8)) == [2]
    assert opened.write(count, once=known(3, 7 + MAX_RESULTS)) == [3]  # by then 7 is forgotten
    assert opened.write(count, once=known(3, 7)) == [4]
    opened.store.close()
    opened = Opened(tmp_path, system="two")  # pids begin anew
    assert opened.write(count, once=known(3, 8)) == [5]
    opened.store.close()


def remembered(opened: Opened) -> int:
    found: int = opened.store.read(lambda txn: sum(1 for _ in txn.keys("done", b"")))
    return found


def test_no_more_calls_are_remembered_than_a_caller_may_repeat(opened: Opened) -> None:
    """Also where most of its calls are others, and until it ends."""
    for call in (1, 2, 500, 501, MAX_RESULTS + 1, MAX_RESULTS + 600, 9000):
        assert opened.write(lambda _: "done", once=known(3, call)) == ["done"]
        opened.write(lambda _: "done", once=known(4, 1))
    assert remembered(opened) == 2
    assert opened.write(lambda _: "again", once=known(3, 9000)) == ["done"]
    opened.store.forget(3)
    opened.store.forget(5)
    assert opened.write(lambda _: "again", once=known(3, 9000)) == ["again"]
    opened.store.forget(3)
    opened.store.forget(4)
    opened.write(lambda _: None)
    assert remembered(opened) == 0


def test_another_call_of_that_number_is_refused(opened: Opened) -> None:
    assert opened.write(lambda _: 1, once=known(3, 7, "mem.delete")) == [1]
    error = opened.write(lambda _: [], once=known(3, 7))[0]
    assert isinstance(error, OutOfOrder)
    assert error.message == "call 7 was mem.delete"


def test_what_is_remembered_has_a_bound_in_bytes_whatever_the_numbers(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that counts down, one whose numbers are far apart, many that have a little each."""
    monkeypatch.setattr(done_calls, "MAX_BYTES", 100_000)
    monkeypatch.setattr(done_calls, "MAX_ALL_BYTES", 300_000)
    for number in range(50):
        opened.write(lambda _: "x" * 9_000, once=known(1, 2**40 - number))
        opened.write(lambda _: "x" * 9_000, once=known(2, 2**40 + number * 10))
        assert opened.write(lambda _: "done", once=known(3, number + 1)) == ["done"]
    assert 20 < remembered(opened) - 50 < 24
    for pid in range(4, 20):
        for number in range(1, 6):
            opened.write(lambda _: "x" * 9_000, once=known(pid, number))
    assert remembered(opened) - 50 < 34
    assert opened.write(lambda _: "again", once=known(3, 1)) == ["done"]
    assert opened.write(lambda _: "again", once=known(19, 5)) != ["again"]


def test_a_result_that_is_larger_than_the_bound_is_remembered_alone(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(done_calls, "MAX_BYTES", 100)
    for number in (1, 2):
        opened.write(lambda _: "x" * 1000, once=known(3, number))
        assert opened.write(lambda _: "again", once=known(3, number)) == ["x" * 1000]
    assert remembered(opened) == 1


def test_what_is_counted_as_remembered_follows_a_commit_that_failed(opened: Opened) -> None:
    def full(_txn: Txn) -> None:
        raise lmdb.MapFullError("no room")

    block = threading.Event()
    answers: list[Any] = []
    hear(opened.store.write(lambda _: block.wait(LIMIT)), answers.append)
    hear(opened.store.write(lambda _: "done", once=known(3, 1)), answers.append)
    hear(opened.store.write(full), answers.append)
    block.set()
    opened.loop.wait(answers, 3)
    assert isinstance(answers[2], StoreFull)
    assert (remembered(opened), opened.store.done.counts) == (1, {3: 1})
    opened.store.forget(3)
    opened.write(lambda _: None)
    assert (opened.store.done.counts, opened.store.done.bytes) == ({}, {})


def test_a_call_that_failed_is_tried_again(opened: Opened) -> None:
    assert isinstance(opened.write(fail, once=known(1, 1))[0], Conflict)
    assert opened.write(lambda _: "done", once=known(1, 1)) == ["done"]
