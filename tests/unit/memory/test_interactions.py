"""The interaction log where the disk is slower than agents are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from turns import Turns

from aios.kernel.config import Config
from aios.kernel.lib.coroutine import Wait
from aios.kernel.memory.interactions import MAX_WAITING_ENTRIES, InteractionLog
from aios.kernel.memory.owners import Owners
from aios.kernel.process import ProcessTable
from aios.kernel.store.store import NoStore
from aios.syscalls.errors import StoreDamaged
from aios.syscalls.proc import Limits
from aios.syscalls.wire import FAILED


class Slow(NoStore):
    """A store that is at the first job until it is told to go on."""

    def __init__(self) -> None:
        super().__init__(StoreDamaged("nothing is here"))
        self.waiting: list[Wait[Any]] = []

    def write(self, do: Callable[[Any], Any], **_options: Any) -> Wait[Any]:
        self.waiting.append(Wait())
        return self.waiting[-1]


def test_what_waits_for_the_disk_is_bounded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, store = ProcessTable(9, 9, 9), Slow()
    log = InteractionLog(Owners(store, table, Config(home=str(tmp_path)), "system"), 1 << 20)
    ann = table.add("agent", "ann", 0, 0, Limits(), 0.0)
    log.sent(ann, ann, "the first is being written")
    for number in range(2 * MAX_WAITING_ENTRIES):
        log.sent(ann, ann, number)
    half = MAX_WAITING_ENTRIES // 2
    assert len(log.waiting) == half
    said = capsys.readouterr().err
    assert said.splitlines() == [
        f"interaction log: not written: {half} entries of /ann wait for the disk"
    ]
    bob = table.add("agent", "bob", 0, 0, Limits(), 0.0)
    log.sent(bob, ann, "another tree's is not lost by that")
    assert len(log.waiting) == half + 1
    store.waiting.pop().done(None)  # it is done: those that wait are its next job
    assert (log.waiting, len(store.waiting)) == ([], 1)


@pytest.mark.parametrize("turn", [-1, 2**53, 2**64 - 1])
def test_a_place_that_no_entry_can_have_is_malformed(tmp_path: Path, turn: int) -> None:
    turns = Turns(tmp_path)
    caller = turns.agent("caller")
    caller.done("msg.send", to=caller.pid, body=1)
    after = caller.done("mem.log", limit=1)["entries"][0]["turn"]
    kind, body = caller.wait(caller.send("mem.log", {"after": [after, turn]}))
    assert (kind, body["code"]) == (FAILED, "call.malformed")
    turns.close()
