"""Bounds of what the gateway holds for callers; these tests play its kernel."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from aios.kernel.gateway.__main__ import (
    MAX_UNREAD_BYTES,
    QUEUED_REPLIES,
    Gateway,
    GatewayConfig,
    KeyPair,
)
from aios.kernel.gateway.protocol import (
    Allow,
    Listening,
    MessageReceived,
    PeerClosed,
    SendReply,
    decode_report,
    encode,
)

PATIENCE_MS = 30_000
REPLY = b"x" * (1 << 18)


class Kernel:
    """The kernel's end, and a gateway that serves in a thread."""

    def __init__(self, home: Path) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.SNDHWM, 0)
        self.socket.bind(f"ipc://{home}/gate.sock")
        self.pairs = [KeyPair(*(key.decode() for key in zmq.curve_keypair())) for _ in range(2)]
        self.gateway = Gateway(GatewayConfig(str(home), "tcp://127.0.0.1:*"), self.pairs[0])
        self.thread = threading.Thread(target=self.gateway.serve)
        self.thread.start()
        self.callers: list[zmq.Socket[bytes]] = []
        self.route, _ = self.socket.recv_multipart()
        self.send(Allow([self.pairs[1].public]))
        listening = self.report()
        assert isinstance(listening, Listening)
        self.address = listening.address

    def send(self, frame: Allow | SendReply) -> None:
        self.socket.send_multipart([self.route, encode(frame)])

    def report(self) -> object:
        assert self.socket.poll(PATIENCE_MS), "no report"
        return decode_report(self.socket.recv_multipart()[1])

    def caller(self) -> tuple[zmq.Socket[bytes], bytes]:
        """Connect one that holds little; return it with its route."""
        server, own = self.pairs
        caller = self.context.socket(zmq.DEALER)
        self.callers.append(caller)
        for option, value in ((zmq.RCVHWM, 1), (zmq.RCVBUF, 1 << 16), (zmq.LINGER, 0)):
            caller.setsockopt(option, value)
        caller.setsockopt(zmq.CURVE_SERVERKEY, server.public.encode())
        caller.setsockopt(zmq.CURVE_PUBLICKEY, own.public.encode())
        caller.setsockopt(zmq.CURVE_SECRETKEY, own.secret.encode())
        caller.connect(self.address)
        caller.send(b"hello")
        came = self.report()
        assert isinstance(came, MessageReceived)
        return caller, came.route

    def close(self) -> None:
        for each in (self.socket, *self.callers):
            each.close()
        self.thread.join()
        self.gateway.context.destroy(linger=0)
        self.context.destroy(linger=0)


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    made = Kernel(tmp_path)
    yield made
    made.close()


def test_who_does_not_read_is_dropped_before_it_holds_much(kernel: Kernel) -> None:
    _, route = kernel.caller()
    replies = 3 * (MAX_UNREAD_BYTES // len(REPLY) + QUEUED_REPLIES)
    for _ in range(replies):
        kernel.send(SendReply(route, REPLY))
    assert kernel.report() == PeerClosed(route, "does not read its replies")
    other, route = kernel.caller()
    kernel.send(SendReply(route, b"heard"))
    assert other.recv() == b"heard"


def test_who_reads_late_gets_all_in_order(kernel: Kernel) -> None:
    caller, route = kernel.caller()
    for number in range(60):
        kernel.send(SendReply(route, bytes([number]) + REPLY))
    got: list[bytes] = []
    while len(got) < 60:
        assert caller.poll(PATIENCE_MS)
        got.append(caller.recv()[:1])
    assert got == [bytes([number]) for number in range(60)]
