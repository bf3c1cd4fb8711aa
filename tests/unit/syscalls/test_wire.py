"""The frames, and the error tree that both sides share."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios.syscalls import errors, wire
from aios.syscalls.errors import (
    BY_CODE,
    AiosError,
    Cancelled,
    KernelGone,
    Malformed,
    TooBig,
    from_wire,
)

CLASSES = sorted(
    (
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, AiosError)
    ),
    key=lambda cls: cls.__name__,
)

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False)
    | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text() | st.integers(0, 99), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(st.integers(1, 2**63 - 1), st.sampled_from([wire.DONE, wire.FAILED, wire.PIECE]), plain)
def test_a_reply_comes_out_as_it_went_in(call_id: int, kind: int, body: Any) -> None:
    assert wire.unpack_reply(msgpack.packb([call_id, kind, body])) == (call_id, kind, body, None)


def test_a_call_is_an_array_of_id_name_a_map_and_what_was_heard() -> None:
    data = wire.pack_call(7, "proc.kill", {"pid": 3, "signal": "STOP"}, 5)
    assert msgpack.unpackb(data) == [7, "proc.kill", {"pid": 3, "signal": "STOP"}, 5]


def test_a_call_holds_64_kib_and_not_a_byte_more() -> None:
    around = len(wire.pack_call(1, "msg.send", {"body": b"x" * 60_000})) - 60_000
    most = wire.MAX_CALL_BYTES - around
    assert len(wire.pack_call(1, "msg.send", {"body": b"x" * most})) == 64 * 1024
    with pytest.raises(TooBig, match=r"msg\.send: 65537 bytes, a system call holds 65536"):
        wire.pack_call(1, "msg.send", {"body": b"x" * (most + 1)})


def test_no_two_errors_share_a_code() -> None:
    codes = [cls.code for cls in CLASSES]
    assert len(codes) == len(set(codes))
    assert set(CLASSES) == set(BY_CODE.values())


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_comes_out_as_the_type_it_was(cls: type[AiosError]) -> None:
    sent = cls("what happened", "what to do")
    got = from_wire(msgpack.unpackb(msgpack.packb(sent.to_wire())))
    assert type(got) is cls
    assert (got.code, got.message, got.hint) == (cls.code, "what happened", "what to do")
    assert str(got) == "what happened (what to do)"


def test_an_error_has_the_hint_of_its_type_unless_told_another() -> None:
    assert KernelGone("gone").hint == "start one with `aios start --detach`"
    assert KernelGone("gone", "wait").hint == "wait"
    assert str(Cancelled("no")) == "no"


def test_an_error_of_a_newer_kernel_keeps_its_text() -> None:
    got = from_wire({"code": "quantum.decoherence", "message": "what", "hint": "how"})
    assert type(got) is AiosError
    assert (got.message, got.hint) == ("what", "how")


@pytest.mark.parametrize("body", [None, [], "text", 7])
def test_an_error_reply_without_a_body_is_malformed(body: object) -> None:
    assert type(from_wire(body)) is Malformed
