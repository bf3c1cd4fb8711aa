"""What waits in the kernel for its callers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from turns import Caller, Turns

from aios.kernel import trap
from aios.syscalls.wire import DONE, FAILED


@pytest.fixture
def turns(tmp_path: Path) -> Iterator[Turns]:
    made = Turns(tmp_path)
    yield made
    made.close()


def wait_with(caller: Caller, letters: int) -> int:
    """Start a call that no core answers here; its id."""
    return caller.send("llm.tokenize", {"text": "x" * letters})


def test_a_tree_of_agents_has_so_many_bytes_of_calls_that_wait(
    turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trap, "WAITING_BYTES", 100_000)
    above, other = turns.agent("above"), turns.agent("other")
    below = turns.agent("below", parent=above.pid)
    first = [wait_with(each, 50_000) for each in (above, below)]
    kind, error = below.wait(wait_with(below, 1))
    assert (kind, error["code"]) == (FAILED, "limit")
    assert error["message"].startswith(
        "/above and all below it have 100018 bytes of calls that wait"
    )
    assert other.final(wait_with(other, 50_000)) is None
    assert below.wait(below.send("call.cancel", {"call": first[1]}))[0] == DONE
    assert above.final(wait_with(above, 1)) is None
    assert turns.kernel.trap.waiting.total("/above/below") == 0
