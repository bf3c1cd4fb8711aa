"""The gateway: accepts remote callers whose keys are allowed, by CURVE.

    python -m aios.kernel.gateway CONFIG    (a GatewayConfig as JSON)

It is a process of its own, so the network reaches libzmq's handshake and queues, but nothing of the
kernel. The kernel says which keys are allowed, and checks the key of each message again. The
gateway ends when it loses its kernel; its callers notice, and connect to the next one's.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any

import msgspec
import zmq
from zmq.utils import z85

from aios.syscalls.errors import BadInput, StoreDamaged

from ..lib.log_stream import become_log
from .protocol import (
    Allow,
    ListenFailed,
    Listening,
    MessageReceived,
    PeerClosed,
    SendReply,
    decode_command,
    encode,
)

MAX_FRAME_BYTES = 1 << 18  # over 64 KiB the kernel answers TooBig
MAX_UNREAD_REPLIES, MAX_UNREAD_BYTES = 4096, 16 << 20  # of one caller
MAX_HELD_BYTES = 48 << 20  # of all callers
QUEUED_REPLIES, QUEUED_CALLS = 16, 64  # of one caller, by libzmq, which does not count bytes
RETRY_S = 0.02  # until replies that libzmq did not take are tried again
PING_S = 2.0  # between two checks of which callers are still there
HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS = 5_000, 15_000
MESSAGES_PER_TURN = 64  # handled before other sockets get a turn


class GatewayConfig(msgspec.Struct, frozen=True):
    """The home and the address to listen on."""

    home: str
    address: str


class KeyPair(msgspec.Struct):
    """A CURVE key pair, in Z85."""

    public: str
    secret: str


class Gateway:
    """The sockets to the callers, to the kernel, and to libzmq's authentication."""

    def __init__(self, config: GatewayConfig, pair: KeyPair) -> None:
        self.config, self.pair = config, pair
        self.context: zmq.Context[Any] = zmq.Context()
        self.listens = False  # from the first list of keys on
        self.allowed: set[str] = set()
        self.unread: dict[bytes, deque[bytes]] = {}  # what libzmq does not take, by caller
        self.held: Counter[bytes] = Counter()  # bytes of that
        self.routes: dict[bytes, str] = {}  # of callers that have sent a message, with their keys
        self.zap: zmq.Socket[bytes] = self.context.socket(zmq.REP)
        self.zap.bind("inproc://zeromq.zap.01")  # libzmq asks here who may connect
        self.callers = self._for_callers()
        self.kernel: zmq.Socket[bytes] = self.context.socket(zmq.DEALER)
        self.kernel.setsockopt(zmq.PROBE_ROUTER, 1)
        self.kernel.setsockopt(zmq.SNDHWM, QUEUED_CALLS)
        self.lost: zmq.Socket[bytes] = self.kernel.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self.kernel.connect(f"ipc://{config.home}/gate.sock")

    def _for_callers(self) -> zmq.Socket[bytes]:
        bound: zmq.Socket[bytes] = self.context.socket(zmq.ROUTER)
        bound.setsockopt(zmq.CURVE_SERVER, 1)
        bound.setsockopt(zmq.CURVE_PUBLICKEY, self.pair.public.encode())
        bound.setsockopt(zmq.CURVE_SECRETKEY, self.pair.secret.encode())
        bound.setsockopt(zmq.ZAP_DOMAIN, b"aios")
        bound.setsockopt(zmq.ROUTER_MANDATORY, 1)
        bound.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        bound.setsockopt(zmq.SNDHWM, QUEUED_REPLIES)
        bound.setsockopt(zmq.RCVHWM, QUEUED_CALLS)
        bound.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        bound.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
        bound.setsockopt(zmq.LINGER, 0)
        return bound

    def serve(self) -> None:
        """Serve until the kernel is gone, or the address cannot be had."""
        poller = zmq.Poller()
        for each in (self.zap, self.kernel, self.callers, self.lost):
            poller.register(each, zmq.POLLIN)
        ping = time.monotonic() + PING_S
        while True:
            wait = RETRY_S if self.unread else max(0.0, ping - time.monotonic())
            ready = dict(poller.poll(int(wait * 1000) + 1))
            if self.lost in ready:
                return
            if self.kernel in ready and not self.command():
                return
            if self.zap in ready:
                self.authenticate()
            if self.callers in ready:
                self.receive()
            self.retry()
            if time.monotonic() >= ping:
                ping = time.monotonic() + PING_S
                for route in list(self.routes):
                    self.send_reply(route, b"")

    def command(self) -> bool:
        """Handle one frame of the kernel. Return False if the gateway has to end."""
        match decode_command(self.kernel.recv()):
            case Allow() as allow:
                self.allowed = set(allow.keys)
                self.routes = {r: key for r, key in self.routes.items() if key in self.allowed}
                return self.listens or self.bind()
            case SendReply() as reply:
                self.send_reply(reply.route, reply.data)
        return True

    def bind(self) -> bool:
        try:
            self.callers.bind(self.config.address)
        except zmq.ZMQError as error:
            why = BadInput(f"cannot listen at {self.config.address}: {error}", "see `listen`")
            self.report(ListenFailed(why.to_wire()))
            return False
        address = self.callers.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
        self.report(Listening(address, self.pair.public))
        self.listens = True
        return True

    def authenticate(self) -> None:
        """Answer libzmq's request (RFC 27). The user id in the answer marks all messages of a
        connection.
        """
        version, number, _domain, _address, _route, mechanism, *shown = self.zap.recv_multipart()
        key = z85.encode(shown[0]).decode() if mechanism == b"CURVE" else ""
        known = key in self.allowed
        status = [b"200", b""] if known else [b"400", b"this key is not allowed"]
        user = key.encode() if known else b""
        self.zap.send_multipart([version, number, *status, user, b""])

    def receive(self) -> None:
        for _ in range(MESSAGES_PER_TURN):
            try:
                route, *frames = self.callers.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            key = str(frames[0].get("User-Id")) if frames else ""
            if key in self.allowed:  # the key may have been removed since it connected
                self.routes[route.bytes] = key
                self.report(MessageReceived(route.bytes, key, [frame.bytes for frame in frames]))

    def send_reply(self, route: bytes, data: bytes) -> None:
        """Send to a caller. Empty data is dropped by callers, and shows whether they are still
        there.
        """
        if route not in self.routes:  # it was lost, of which the kernel is about to hear
            return
        if route not in self.unread:
            if self._is_taken(route, data):
                return
            self.unread[route] = deque()
        if data:  # else there is enough to be sent already
            self.unread[route].append(data)
            self.held[route] += len(data)
        if self.held[route] > MAX_UNREAD_BYTES or len(self.unread[route]) > MAX_UNREAD_REPLIES:
            self._lose(route, "does not read its replies")
        while self.held.total() > MAX_HELD_BYTES:
            self._lose(max(self.held, key=self.held.__getitem__), "does not read its replies")

    def retry(self) -> None:
        """Send what callers have room for by now."""
        for route, unread in list(self.unread.items()):
            while unread and self._is_taken(route, unread[0]):
                if unread:  # else it was lost
                    self.held[route] -= len(unread.popleft())
            if not unread:
                self.unread.pop(route, None)
                del self.held[route]

    def _is_taken(self, route: bytes, data: bytes) -> bool:
        """Hand data to libzmq, or drop that of a caller that is gone. Return False where it has
        too much of that caller's."""
        try:
            self.callers.send_multipart([route, data], zmq.NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._lose(route, "closed its connection")
        return True

    def _lose(self, route: bytes, why: str) -> None:
        self.routes.pop(route, None)
        self.unread.pop(route, deque()).clear()
        del self.held[route]
        self.report(PeerClosed(route, why))

    def report(self, frame: Any) -> None:
        self.kernel.send(encode(frame))


def load_key_pair(path: Path) -> KeyPair:
    """Load the server's key pair, or make one.

    Raises:
        StoreDamaged: the file holds no key pair.
    """
    if not path.exists():
        public, secret = zmq.curve_keypair()
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(msgspec.json.encode(KeyPair(public.decode(), secret.decode())))
    try:
        return msgspec.json.decode(path.read_bytes(), type=KeyPair)
    except msgspec.DecodeError as error:
        raise StoreDamaged(f"{path} holds no key: {error}", "restore it, or remove it") from error


def main() -> int:
    become_log()
    config = msgspec.json.decode(sys.argv[1], type=GatewayConfig)
    gateway = Gateway(config, load_key_pair(Path(config.home) / "keys" / "kernel.key"))
    gateway.serve()
    gateway.context.destroy(linger=1000)  # ms for the kernel to get the reason
    return 0


if __name__ == "__main__":
    sys.exit(main())
