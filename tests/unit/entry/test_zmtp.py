"""The kernel's side of ZeroMQ's protocol: messages in any pieces, and violations by a peer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios.kernel.entry.zmtp import (
    COMMAND,
    GREETING,
    LONG,
    MAX_PARTS,
    MORE,
    ZmtpConnection,
    ZmtpError,
    encode_frame,
)

LONGEST = 1000
HELLO = GREETING + encode_frame(b"\x05READY\x0bSocket-Type\0\0\0\x06DEALER", COMMAND)

bodies = st.binary(max_size=300)
messages = st.lists(st.lists(bodies, min_size=1, max_size=3), max_size=6)


def said(message: list[bytes]) -> bytes:
    parts = [encode_frame(body, MORE) for body in message[:-1]]
    return b"".join([*parts, encode_frame(message[-1])])


@given(messages, st.lists(st.integers(1, 400), max_size=40))
def test_in_whatever_pieces_messages_are_the_same(
    sent: list[list[bytes]], sizes: list[int]
) -> None:
    data = HELLO + b"".join(said(message) for message in sent)
    protocol = ZmtpConnection(LONGEST)
    heard: list[bytes | None] = []
    for size in sizes:
        heard += protocol.receive(data[:size])
        data = data[size:]
    heard += protocol.receive(data)
    while protocol.has_more:
        heard += protocol.receive(b"")
    assert heard == [message[0] if len(message) == 1 else None for message in sent]
    assert protocol.buffer == b""


def test_it_answers_with_its_greeting_and_a_ready_and_each_ping_with_a_pong() -> None:
    protocol = ZmtpConnection(LONGEST)
    assert protocol.output == GREETING
    protocol.output.clear()
    list(protocol.receive(HELLO))
    assert b"READY" in protocol.output
    protocol.output.clear()
    list(protocol.receive(encode_frame(b"\x04PING\x00\x0acontext", COMMAND)))
    assert protocol.output == encode_frame(b"\x04PONGcontext", COMMAND)


def test_a_ping_has_no_more_answered_than_the_protocol_says() -> None:
    protocol = ZmtpConnection(LONGEST)
    list(protocol.receive(HELLO))
    with pytest.raises(ZmtpError, match="PING"):
        list(protocol.receive(encode_frame(b"\x04PING\0\0" + bytes(17), COMMAND)))


def test_of_a_message_that_never_ends_nothing_is_kept() -> None:
    protocol = ZmtpConnection(LONGEST)
    list(protocol.receive(HELLO))
    for _ in range(MAX_PARTS):
        assert list(protocol.receive(encode_frame(bytes(LONGEST), MORE))) == []
        assert len(protocol.buffer) == 0
    with pytest.raises(ZmtpError, match="without an end"):
        list(protocol.receive(encode_frame(b"", MORE)))


CURVE = GREETING[:12] + b"CURVE".ljust(20, b"\0") + bytes(32)
OLD = GREETING[:10] + b"\x01" + GREETING[11:]
TOO_LONG = bytes([LONG]) + (LONGEST + 1).to_bytes(8, "big")


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\n\r\n", b"\0", CURVE, OLD, HELLO + TOO_LONG, HELLO + b"\x80\x01x"],
    ids=["HTTP", "zeros", "CURVE", "ZMTP 1", "too long", "flags"],
)  # fmt: skip
def test_what_is_not_the_protocol_ends_the_conversation(data: bytes) -> None:
    with pytest.raises(ZmtpError):
        list(ZmtpConnection(LONGEST).receive(data))
