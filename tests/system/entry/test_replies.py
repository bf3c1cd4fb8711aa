"""Replies that nobody says to have heard: how many are kept, and how long."""

from __future__ import annotations

import contextlib

import msgpack
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw import Raw

from aios.agents import Aios
from aios.kernel.entry import replies
from aios.kernel.entry.replies import MAX_BYTES, MAX_REPLIES, Replies
from aios.shell.launch import System
from aios.syscalls.wire import DONE

steps = st.lists(
    st.one_of(
        st.tuples(st.just("keep"), st.integers(1, 4), st.integers(0, 40)),
        st.tuples(st.just("heard"), st.integers(1, 4), st.integers(0, 60)),
        st.tuples(st.just("ended"), st.integers(1, 4), st.just(0)),
    ),
    max_size=60,
)


class Journal:
    def __init__(self) -> None:
        self.rows: dict[str, bytes] = {}

    def put(self, key: str, row: bytes | None) -> None:
        if row is None:
            del self.rows[key]
        else:
            self.rows[key] = row


@given(steps)
def test_what_is_kept_is_bounded_and_as_it_is_journaled(found: list[tuple[str, int, int]]) -> None:
    bounds = replies.MAX_REPLIES, replies.MAX_BYTES, replies.MAX_ALL_BYTES
    replies.MAX_REPLIES, replies.MAX_BYTES, replies.MAX_ALL_BYTES = 5, 150, 300
    try:
        journal = Journal()
        kept, last = Replies(journal.put), 0
        for what, pid, number in found:
            if what == "keep":
                last += 1
                kept.keep(pid, last, DONE, bytes(number), [], None)
                assert kept.get(pid, last) is not None
            elif what == "heard":
                kept.heard(pid, number)
                assert all(kept.get(pid, call_id) is None for call_id in range(number + 1))
            else:
                kept.ended(pid)
                assert pid not in kept.callers
            sizes = {pid: each.held_bytes for pid, each in kept.callers.items()}
            assert max(sizes.values(), default=0) <= 150
            assert sum(sizes.values()) == kept.bytes <= 300
            assert all(0 < len(each.rows) <= 5 for each in kept.callers.values())
            rows = {f"reply/{pid}/{i}" for pid, each in kept.callers.items() for i in each.rows}
            assert rows == journal.rows.keys()
    finally:
        replies.MAX_REPLIES, replies.MAX_BYTES, replies.MAX_ALL_BYTES = bounds


def test_of_one_caller_the_oldest_go_and_nobody_elses() -> None:
    kept = Replies(Journal().put)
    kept.keep(2, 1, DONE, "of another", [], None)
    for call_id in range(1, MAX_REPLIES + 10):
        kept.keep(1, call_id, DONE, None, [], None)
    assert len(kept.callers[1].rows) == MAX_REPLIES
    assert kept.get(1, 9) is None
    assert kept.get(1, 10) is not None
    for call_id in range(MAX_REPLIES + 10, MAX_REPLIES + 300):
        kept.keep(1, call_id, DONE, bytes(1 << 16), [], None)
    assert kept.callers[1].held_bytes <= MAX_BYTES
    assert kept.get(2, 1) is not None


def test_where_all_have_too_much_the_oldest_go_of_the_tree_that_has_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else one with many children, each with little, pushes out what another has not heard."""
    monkeypatch.setattr(replies, "MAX_ALL_BYTES", 2000)
    kept = Replies(Journal().put, lambda pid: "/one" if pid == 1 else "/many")
    kept.keep(1, 1, DONE, bytes(500), [], None)
    for pid in range(2, 40):
        kept.keep(pid, 1, DONE, bytes(100), [], None)
    assert kept.get(1, 1) is not None
    assert kept.get(39, 1) is not None
    assert kept.bytes <= 2000


def test_who_never_says_what_it_heard_does_not_fill_the_kernel(aios: Aios, system: System) -> None:
    kernel = psutil.Process(aios.status().os_pid)
    before = kernel.memory_info().rss
    body = "x" * 60_000
    with contextlib.ExitStack() as held:
        for _ in range(6):
            raw = held.enter_context(Raw(system.home))
            for _ in range(200):
                raw.done("msg.send", to=raw.pid, body=body)
                assert raw.done("msg.recv")["body"] == body
        assert kernel.memory_info().rss - before < 64 << 20
    aios.send(aios.pid, msgpack.packb(1))  # the disk is not full
    assert aios.recv().body == msgpack.packb(1)
