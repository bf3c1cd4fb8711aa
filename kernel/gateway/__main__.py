"""The gateway: whoever calls from elsewhere comes in here, by CURVE, with a key that is allowed.

    python -m aios.kernel.gateway CONFIG    (a GatewayConfig as JSON)

It is a process of its own: what the network reaches, libzmq's handshake and its queues, is none of
the kernel. The kernel says which keys there are, and checks each message's again. It ends with the
connection to its kernel; then its callers notice, and come back to the next one's.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import zmq
from zmq.utils import z85

from aios.syscalls.errors import BadInput, StoreDamaged

from ..lib.log_stream import become_log
from .protocol import Allow, Bound, Came, Left, Refused, Say, decode_command, encode

LONGEST = 1 << 18  # bytes of a frame; over 64 KiB the trap answers TooBig
UNREAD = 4096  # replies that a caller may leave unread
PING = 2.0  # seconds between two looks at who is still there
BEAT, DEAF = 5_000, 15_000  # ms between heartbeats, and without any until a caller counts as gone
BURST = 64  # messages taken before the others get a turn


class GatewayConfig(msgspec.Struct, frozen=True):
    home: str
    address: str


class Pair(msgspec.Struct):
    """A key pair, in Z85."""

    public: str
    secret: str


class Gateway:
    def __init__(self, config: GatewayConfig, pair: Pair) -> None:
        self.config, self.pair = config, pair
        self.context: zmq.Context[Any] = zmq.Context()
        self.listens = False  # it begins with the first list of keys
        self.allowed: set[str] = set()
        self.routes: dict[bytes, str] = {}  # of callers who have said something, with their keys
        self.zap: zmq.Socket[bytes] = self.context.socket(zmq.REP)
        self.zap.bind("inproc://zeromq.zap.01")  # where libzmq asks who may connect
        self.callers = self._for_callers()
        self.kernel: zmq.Socket[bytes] = self.context.socket(zmq.DEALER)
        self.kernel.setsockopt(zmq.PROBE_ROUTER, 1)
        self.lost: zmq.Socket[bytes] = self.kernel.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self.kernel.connect(f"ipc://{config.home}/gate.sock")

    def _for_callers(self) -> zmq.Socket[bytes]:
        bound: zmq.Socket[bytes] = self.context.socket(zmq.ROUTER)
        bound.setsockopt(zmq.CURVE_SERVER, 1)
        bound.setsockopt(zmq.CURVE_PUBLICKEY, self.pair.public.encode())
        bound.setsockopt(zmq.CURVE_SECRETKEY, self.pair.secret.encode())
        bound.setsockopt(zmq.ZAP_DOMAIN, b"aios")
        bound.setsockopt(zmq.ROUTER_MANDATORY, 1)
        bound.setsockopt(zmq.MAXMSGSIZE, LONGEST)
        bound.setsockopt(zmq.SNDHWM, UNREAD)
        bound.setsockopt(zmq.HEARTBEAT_IVL, BEAT)
        bound.setsockopt(zmq.HEARTBEAT_TIMEOUT, DEAF)
        bound.setsockopt(zmq.LINGER, 0)
        return bound

    def serve(self) -> None:
        """Until the kernel is gone, or the address cannot be had."""
        poller = zmq.Poller()
        for each in (self.zap, self.kernel, self.callers, self.lost):
            poller.register(each, zmq.POLLIN)
        ping = time.monotonic() + PING
        while True:
            wait = max(0.0, ping - time.monotonic())
            ready = dict(poller.poll(int(wait * 1000) + 1))
            if self.lost in ready:
                return
            if self.kernel in ready and not self.command():
                return
            if self.zap in ready:
                self.authenticate()
            if self.callers in ready:
                self.take()
            if time.monotonic() >= ping:
                ping = time.monotonic() + PING
                for route in list(self.routes):
                    self.say(route, b"")

    def command(self) -> bool:
        """False: it is to end."""
        match decode_command(self.kernel.recv()):
            case Allow() as allow:
                self.allowed = set(allow.keys)
                self.routes = {r: key for r, key in self.routes.items() if key in self.allowed}
                return self.listens or self.bind()
            case Say() as say:
                self.say(say.route, say.data)
        return True

    def bind(self) -> bool:
        try:
            self.callers.bind(self.config.address)
        except zmq.ZMQError as error:
            why = BadInput(f"cannot listen at {self.config.address}: {error}", "see `listen`")
            self.tell(Refused(why.to_wire()))
            return False
        address = self.callers.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
        self.tell(Bound(address, self.pair.public))
        self.listens = True
        return True

    def authenticate(self) -> None:
        """Answer libzmq, as RFC 27 has it; the user id stamps all messages of the connection."""
        version, number, _domain, _address, _route, mechanism, *shown = self.zap.recv_multipart()
        key = z85.encode(shown[0]).decode() if mechanism == b"CURVE" else ""
        known = key in self.allowed
        status = [b"200", b""] if known else [b"400", b"this key is not allowed"]
        user = key.encode() if known else b""
        self.zap.send_multipart([version, number, *status, user, b""])

    def take(self) -> None:
        for _ in range(BURST):
            try:
                route, *frames = self.callers.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            key = str(frames[0].get("User-Id")) if frames else ""
            if key in self.allowed:  # or it was, until a moment ago
                self.routes[route.bytes] = key
                self.tell(Came(route.bytes, key, [frame.bytes for frame in frames]))

    def say(self, route: bytes, data: bytes) -> None:
        """An empty one only shows whether its caller is there, who drops it."""
        try:
            self.callers.send_multipart([route, data], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            gone = error.errno == zmq.EHOSTUNREACH
            self.routes.pop(route, None)
            self.tell(Left(route, "closed its connection" if gone else "does not read its replies"))

    def tell(self, report: Any) -> None:
        self.kernel.send(encode(report))


def own_pair(path: Path) -> Pair:
    """The kernel's, made where there is none.

    Raises:
        StoreDamaged: the file holds none.
    """
    if not path.exists():
        public, secret = zmq.curve_keypair()
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(msgspec.json.encode(Pair(public.decode(), secret.decode())))
    try:
        return msgspec.json.decode(path.read_bytes(), type=Pair)
    except msgspec.DecodeError as error:
        raise StoreDamaged(f"{path} holds no key: {error}", "restore it, or remove it") from error


def main() -> int:
    become_log()
    config = msgspec.json.decode(sys.argv[1], type=GatewayConfig)
    gateway = Gateway(config, own_pair(Path(config.home) / "keys" / "kernel.key"))
    gateway.serve()
    gateway.context.destroy(linger=1000)  # ms for the kernel to hear why
    return 0


if __name__ == "__main__":
    sys.exit(main())
