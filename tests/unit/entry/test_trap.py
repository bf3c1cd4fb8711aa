"""Things that wait in the kernel for its callers."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import msgpack
from turns import Caller, Turns

from aios.kernel.core.protocol import Counters, Out, Step, decode_report, encode
from aios.kernel.entry import trap
from aios.kernel.entry.trap import CALL_BYTES, ITEM_BYTES, STRUCT_BYTES
from aios.kernel.llm.generation import GenerationState
from aios.syscalls.llm import Decoding, Logprob
from aios.syscalls.rules import Manifest
from aios.syscalls.wire import DONE, FAILED

ASKED = Manifest(allow=["*"], ask=["mem.write", "tool.call time", "proc.spawn"])
LISTS: list[list[Any]] = [[] for _ in range(20_000)]
FEW = 2000  # objects that a call takes, besides those that it was given


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
    monkeypatch.setattr(trap, "MAX_WAITING_BYTES", 100_000)
    above, other = turns.agent("above"), turns.agent("other")
    below = turns.agent("below", parent=above.pid)
    first = [wait_with(each, 50_000) for each in (above, below)]
    kind, error = below.wait(wait_with(below, 1))
    assert (kind, error["code"]) == (FAILED, "limit")
    assert error["message"].startswith(
        f"/above and all below it have {100_018 + 2 * CALL_BYTES} bytes of calls that wait"
    )
    assert other.final(wait_with(other, 50_000)) is None
    assert below.wait(below.send("call.cancel", {"call": first[1]}))[0] == DONE
    assert above.final(wait_with(above, 1)) is None
    assert turns.kernel.trap.waiting.total("/above/below") == 0


@pytest.mark.parametrize(
    ("call", "args"),
    [
        ("mem.put", {"items": {"a": LISTS}}),
        ("tool.call", {"name": "time", "args": {"a": LISTS}}),
        ("tool.call", {"name": "calculate", "args": {"a": LISTS}}),
        ("proc.spawn", {"program": "/bin/true", "task": LISTS}),
        ("llm.generate", {"text": "x", "schema": {"enum": LISTS}}),
    ],
)
@pytest.mark.parametrize("manifest", [ASKED, Manifest(allow=["*"])], ids=["asked", "allowed"])
def test_lists_in_lists_wait_as_bytes(
    turns: Turns, call: str, args: dict[str, Any], manifest: Manifest
) -> None:
    caller = turns.agent("caller", manifest)
    gc.collect()
    before = len(gc.get_objects())
    number = caller.send(call, args)
    gc.collect()
    assert len(gc.get_objects()) - before < FEW
    turns.turn()
    assert caller.final(number) is None or call == "mem.put"


def test_what_was_said_waits_as_bytes_for_its_log(turns: Turns) -> None:
    caller = turns.agent("caller")
    turns.kernel.interactions.jobs = 1  # one is being written
    caller.done("msg.send", to=caller.pid, body=1)
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(10):
        caller.done("msg.send", to=caller.pid, body=LISTS[:4000])
    gc.collect()
    assert len(gc.get_objects()) - before < FEW
    turns.kernel.interactions.jobs = 0


@pytest.mark.parametrize(
    ("call", "args", "held"),
    [
        ("msg.recv", {}, CALL_BYTES + 1),
        ("llm.detokenize", {"tokens": [1] * 100}, 100 * ITEM_BYTES),
        ("llm.tokenize", {"messages": [{"role": "user", "content": ""}] * 100}, 100 * STRUCT_BYTES),
    ],
)
def test_a_call_that_waits_counts_with_what_it_takes_besides_its_bytes(
    turns: Turns, call: str, args: dict[str, Any], held: int
) -> None:
    caller = turns.agent("caller")
    number = caller.send(call, args)
    waiting = turns.kernel.trap.waiting
    assert held <= waiting.total("/caller") < 2 * held + CALL_BYTES
    caller.send("call.cancel", {"call": number})
    assert waiting.total("/caller") == 0


def test_a_question_counts_as_long_as_it_is(turns: Turns) -> None:
    """It names all objects, each with who owns it."""
    caller = turns.agent("a" * 64, Manifest(allow=["*"], ask=["sto.write"]))
    caller.send("sto.batch", {"changes": [{"path": f"{n}", "data": b""} for n in range(256)]})
    assert turns.kernel.trap.waiting.total(f"/{'a' * 64}") > 256 * 2 * 64


def test_the_alternatives_of_each_token_wait_as_bytes() -> None:
    work = GenerationState(
        call=1, decoding=Decoding(logprobs=20), stream=False, prompt=1, began=0.0
    )
    logprob = Logprob(token=1, logprob=-1.0, top=[(at, -1.0) for at in range(20)])
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(1000):
        taken = decode_report(encode(Step([Out(1, 1, 1, 7, "x", logprob)], [], Counters())))
        assert isinstance(taken, Step)
        work.take(taken.outs[0])
    gc.collect()
    assert len(gc.get_objects()) - before < 1000 * 5
    assert msgpack.decode(msgpack.encode(work), type=GenerationState).pieces[-1].logprobs == [
        logprob
    ]


def test_an_id_that_its_caller_has_done_with_is_refused(turns: Turns) -> None:
    """The effect of the first would pass for that of the second, and be told as done."""
    caller = turns.agent("caller")
    caller.done("sto.put", path="a", data=b"x")
    caller.done("proc.whoami")
    caller.ids = itertools.count(1)
    kind, error = caller.wait(caller.send("sto.put", {"path": "b", "data": b"x"}, heard=False))
    assert (kind, error["code"]) == (FAILED, "call.out_of_order")
    caller.ids = itertools.count(3)
    assert [each["path"] for each in caller.done("sto.list")["objects"]] == ["a"]


def test_a_number_used_again_for_another_call_is_no_defect(turns: Turns) -> None:
    caller = turns.agent("caller")
    for name, args in (("mem.delete", {"keys": ["a"]}), ("sto.put", {"path": "a", "data": b"x"})):
        caller.ids = itertools.count(1)
        kind, body = caller.wait(caller.send(name, args, heard=False))
    assert (kind, body["code"]) == (FAILED, "call.out_of_order")
