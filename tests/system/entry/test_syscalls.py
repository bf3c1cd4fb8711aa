"""The ABI as a program without the SDK sees it: whatever is sent, a call gets one final reply."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
import zmq
from conftest import eventually
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw import PATIENCE, Raw
from samples import DEEP, JUNK, SAMPLES, pack

from aios.agents import Aios, connect
from aios.shell.launch import System
from aios.syscalls.errors import BY_CODE
from aios.syscalls.home import endpoint
from aios.syscalls.table import TABLE
from aios.syscalls.wire import ABI_VERSION, DONE, FAILED, MAX_CALL_BYTES, PIECE


@pytest.fixture
def raw(system: System) -> Iterator[Raw]:
    with Raw(system.home) as raw:
        yield raw


def test_the_samples_cover_the_table() -> None:
    assert SAMPLES.keys() == TABLE.keys()


# --- the first message -------------------------------------------------------------------------


def test_hello_comes_first(system: System) -> None:
    with Raw(system.home, hello=False) as raw:
        for name in TABLE.keys() - {"hello"}:
            assert raw.error(name, **SAMPLES[name][0])["code"] == "call.out_of_order"
        assert raw.done("hello", version=ABI_VERSION, name="late")["name"] == "late"


def test_hello_comes_once(raw: Raw) -> None:
    assert raw.error("hello", version=ABI_VERSION)["code"] == "call.out_of_order"
    assert raw.done("proc.whoami")["pid"] == raw.pid


@pytest.mark.parametrize("version", [0, ABI_VERSION + 1, 2**40])
def test_an_unknown_version_gets_an_error_that_names_both(system: System, version: int) -> None:
    with Raw(system.home, hello=False) as raw:
        error = raw.error("hello", version=version)
        assert error["code"] == "hello.version"
        assert f"version {version}," in error["message"]
        assert f"kernel {ABI_VERSION}" in error["message"]
        assert raw.done("hello", version=ABI_VERSION)["version"] == ABI_VERSION


def test_nothing_is_served_after_exit(system: System) -> None:
    with Raw(system.home) as raw:
        raw.done("proc.exit")
        raw.pid = 0
        assert raw.error("proc.whoami")["code"] == "call.out_of_order"


def test_a_client_that_exits_is_gone_at_once(aios: Aios, system: System) -> None:
    with Raw(system.home) as raw:
        assert raw.pid in {row.pid for row in aios.ps(all=True)}
    eventually(lambda: raw.pid not in {row.pid for row in aios.ps(all=True)})


def test_a_client_whose_connection_closes_without_a_word_goes_with_it(
    aios: Aios, system: System
) -> None:
    raw = Raw(system.home)
    assert raw.pid in {row.pid for row in aios.ps(all=True)}
    raw.socket.close()
    eventually(lambda: raw.pid not in {row.pid for row in aios.ps(all=True)})


def test_the_next_client_of_a_name_never_meets_the_last(system: System) -> None:
    for _ in range(50):
        with connect(system.home, "same") as aios:
            assert [row.pid for row in aios.ps(all=True) if row.name == "same"] == [aios.pid]


# --- malformed ---------------------------------------------------------------------------------

UNREADABLE = {
    "empty": b"",
    "no msgpack": b"\xc1\xff",
    "cut": pack(1, "proc.whoami", {})[:-3],
    "trailing": pack(1, "proc.whoami", {}) + b"\x01",
    "map": msgpack.packb({"id": 1, "name": "proc.whoami", "args": {}}),
    "too few": msgpack.packb([1, "proc.whoami"]),
    "too many": msgpack.packb([1, "proc.whoami", {}, {}]),
    "id 0": pack(0, "proc.whoami", {}),
    "id below 0": pack(-1, "proc.whoami", {}),
    "id too large": pack(2**63, "proc.whoami", {}),
    "id of text": pack("1", "proc.whoami", {}),
    "id of a fraction": pack(1.5, "proc.whoami", {}),
    "id of ext": pack(msgpack.ExtType(1, b"1"), "proc.whoami", {}),
    "name of bytes": pack(1, b"proc.whoami", {}),
    "name not UTF-8": b"\x93\x01\xa2\xff\xfe\x80",
    "deep": b"\x93\x01\xa1a" + b"\x91" * 60_000 + b"\x01",
    "endless": b"\x91" * 60_000,
    "a huge array": b"\x93\x01\xa1a\xdd\xff\xff\xff\xff",
}


@pytest.mark.parametrize("data", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_what_cannot_be_read_is_answered_on_id_0(raw: Raw, data: bytes) -> None:
    raw.send(data)
    call_id, _, body = raw.reply()
    assert (call_id, body["code"]) == (0, "call.malformed")
    assert raw.done("proc.whoami")["pid"] == raw.pid


@pytest.mark.parametrize("frames", [2, 3, 1000])
def test_a_call_is_one_frame(raw: Raw, frames: int) -> None:
    raw.send(*[pack(5, "proc.whoami", {})] * frames)
    assert raw.failed(0)["code"] == "call.malformed"


def test_an_unknown_call_is_named(raw: Raw) -> None:
    error = raw.error("proc.fly")
    assert error["code"] == "call.unknown"
    assert "proc.fly" in error["message"]


WRONG: list[tuple[str, Any]] = [
    ("proc.whoami", []),
    ("proc.whoami", None),
    ("proc.whoami", {"unknown": 1}),
    ("proc.spawn", {}),
    ("proc.kill", {"pid": 1, "signal": "HUP"}),
    ("proc.kill", {"pid": 2**31 + 1, "signal": "TERM"}),
    ("proc.kill", {"pid": True, "signal": "TERM"}),
    ("proc.nice", {"nice": 20}),
    ("proc.nice", {"nice": 1.5}),
    ("proc.limits", {"limits": {"tokens": -1}}),
    ("proc.limits", {"limits": {"tokns": 1}}),
    ("proc.limits", {"limits": {"wall": float("nan")}}),
    ("proc.wait", {"timeout": float("nan")}),
    ("proc.wait", {"timeout": -1.0}),
    ("proc.wait", {"timeout": float("inf")}),
    ("proc.log", {"pid": 1, "offset": "end"}),
    ("proc.exit", {"code": 256}),
    ("llm.generate", {"text": "a", "temperature": float("nan")}),
    ("llm.generate", {"text": "a", "temperature": -0.1}),
    ("llm.generate", {"text": "a", "top_p": 0.0}),
    ("llm.generate", {"text": "a", "top_p": float("nan")}),
    ("llm.generate", {"text": "a", "max_tokens": 0}),
    ("llm.generate", {"text": "a", "seed": 2**32}),
    ("llm.generate", {"text": "a", "stop": [""]}),
    ("llm.generate", {"text": "a", "stop": "a"}),
    ("llm.generate", {"text": b"\xff"}),
    ("llm.generate", {"tokens": []}),
    ("llm.generate", {"tokens": [-1]}),
    ("llm.generate", {"messages": [{"role": "user"}]}),
    ("llm.generate", {"messages": []}),
    ("msg.send", {"to": 1}),
    ("msg.send", {"to": "no spaces", "body": 1}),
    ("msg.send", {"to": 1, "body": float("nan")}),
    ("msg.send", {"to": 1, "body": msgpack.ExtType(5, b"x")}),
    ("msg.send", {"to": 1, "body": msgpack.Timestamp(1)}),
    ("msg.send", {"to": 1, "body": {1.5: 1}}),
    ("msg.send", {"to": 1, "body": DEEP}),
    ("kernel.events", {"kinds": ["weather"]}),
    ("kernel.policy", {"quantum": 0}),
]


@pytest.mark.parametrize(("name", "args"), WRONG)
def test_wrong_arguments_are_refused_on_their_id(raw: Raw, name: str, args: Any) -> None:
    raw.send(pack(77, name, args))
    error = raw.failed(77)
    assert error["code"] == "call.malformed"
    assert name in error["message"]


def test_the_longest_call_is_served_and_one_byte_more_is_not(raw: Raw) -> None:
    def send(size: int) -> int:
        body = b"x" * size
        return raw.start("msg.send", to=raw.pid, body=body)

    spare = len(pack(1, "msg.send", {"to": raw.pid, "body": b"x" * 60_000})) - 60_000
    raw.final(send(MAX_CALL_BYTES - spare - 8))
    assert len(raw.done("msg.recv")["body"]) == MAX_CALL_BYTES - spare - 8
    assert raw.failed(send(MAX_CALL_BYTES + 1))["code"] == "call.too_big"
    assert raw.failed(send(1_000_000))["code"] == "call.too_big"


def test_a_frame_above_a_mebibyte_costs_the_connection_and_nobody_else(
    aios: Aios, raw: Raw
) -> None:
    monitor = raw.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    raw.send(b"x" * (2 << 20))
    assert monitor.poll(PATIENCE), "the connection holds"
    raw.socket.disable_monitor()
    monitor.close()
    # libzmq connects again by itself: that is a stranger to the kernel
    assert raw.error("proc.whoami")["code"] == "call.out_of_order"
    assert aios.whoami().name == "test"


# --- ids and routes ----------------------------------------------------------------------------


def test_an_id_in_use_is_refused_on_id_0_and_the_first_call_is_unharmed(raw: Raw) -> None:
    raw.send(pack(9, "msg.recv", {}))
    raw.send(pack(9, "proc.whoami", {}))
    error = raw.failed(0)
    assert error["code"] == "call.out_of_order"
    assert "9" in error["message"]
    raw.start("msg.send", to=raw.pid, body="for the first")
    assert raw.final(9)[1]["body"] == "for the first"


def test_what_had_an_effect_and_is_sent_again_is_answered_again_until_it_was_heard(
    raw: Raw,
) -> None:
    raw.send(pack(50, "msg.send", {"to": raw.pid, "body": "once"}))
    assert raw.final(50)[0] == DONE
    raw.send(pack(50, "msg.send", {"to": raw.pid, "body": "once"}))
    assert raw.final(50)[0] == DONE
    generate = pack(51, "llm.generate", {"text": "One,", "max_tokens": 3, "ignore_eos": True})
    raw.send(generate)
    first = [raw.reply()]
    while first[-1][1] == PIECE:
        first.append(raw.reply())
    raw.send(generate)
    assert [raw.reply() for _ in first] == first
    assert raw.done("msg.recv", timeout=0)["body"] == "once"
    assert raw.error("msg.recv", timeout=0)["code"] == "call.timed_out"
    raw.send(msgpack.packb([60, "proc.whoami", {}, 59]))
    raw.final(60)
    raw.send(pack(50, "msg.send", {"to": raw.pid, "body": "anew"}))
    kind, error = raw.final(50)
    assert (kind, error["code"]) == (FAILED, "call.out_of_order")
    raw.send(pack(61, "msg.recv", {"timeout": 0}))
    assert raw.final(61)[1]["code"] == "call.timed_out"


def test_a_cancelled_call_ends_with_an_error_and_cancelling_it_again_finds_nothing(
    raw: Raw,
) -> None:
    waiting = raw.start("msg.recv")
    cancel = raw.start("call.cancel", call=waiting)
    assert raw.failed(waiting)["code"] == "call.cancelled"
    assert raw.final(cancel)[1] == {"found": True}
    assert raw.done("call.cancel", call=waiting) == {"found": False}


STRANGER = """
import sys, zmq, msgpack
socket = zmq.Context().socket(zmq.DEALER)
socket.setsockopt(zmq.ROUTING_ID, bytes.fromhex(sys.argv[2]))
socket.connect(sys.argv[1])
for number, (name, args) in enumerate([("hello", {"version": 1}), ("proc.whoami", {})], 1):
    socket.send(msgpack.packb([number, name, args]))
    print(msgpack.unpackb(socket.recv())[2]["pid"], flush=True)
"""


def test_a_forged_route_reaches_nothing(system: System) -> None:
    with Raw(system.home, route=b"mine") as raw:
        waiting = raw.start("msg.recv", timeout=30.0)
        command = [sys.executable, "-c", STRANGER, endpoint(system.home), b"mine".hex()]
        heard = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        assert len(set(heard)) == 1
        assert int(heard[0]) != raw.pid
        assert raw.done("proc.whoami")["pid"] == raw.pid
        assert raw.done("call.cancel", call=waiting) == {"found": True}


# --- exactly one -------------------------------------------------------------------------------

HARMLESS = sorted(TABLE.keys() - {"hello", "proc.exit", "kernel.stop", "kernel.policy"})

fields = st.dictionaries(st.sampled_from(["pid", "ctx", "text", "x"]), st.sampled_from(JUNK))
samples = st.sampled_from(HARMLESS).flatmap(
    lambda name: st.tuples(st.just(name), st.sampled_from(SAMPLES[name]))
)
calls = st.tuples(samples, fields | st.just({})).map(lambda s: (s[0][0], s[0][1] | s[1]))


shared_raw = HealthCheck.function_scoped_fixture  # its ids go on from example to example


@settings(max_examples=30, suppress_health_check=[shared_raw])
@given(st.lists(calls, min_size=1, max_size=12))
def test_each_call_gets_exactly_one_final_reply(raw: Raw, batch: list[tuple[str, Any]]) -> None:
    first = next(raw.ids)
    for name, args in batch:
        raw.send(pack(first, name, args))
        first = next(raw.ids)
    ids = range(first - len(batch), first)
    cancels = [raw.start("call.cancel", call=call_id) for call_id in ids]
    finals: Counter[int] = Counter()
    while finals.keys() != {*ids, *cancels}:
        call_id, kind, body = raw.reply()
        finals[call_id] += kind != PIECE
        finals += Counter()  # drops the zeros of pieces
        if kind == FAILED:
            assert body["code"] in BY_CODE.keys() - {"internal", "error"}
    fence = raw.start("proc.whoami")
    while (reply := raw.reply())[0] != fence:
        finals[reply[0]] += 1
    assert set(finals.values()) == {1}
