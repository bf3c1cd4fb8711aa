"""A connection to the kernel: system calls out, replies in. One thread at a time may use it."""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zmq

from aios.syscalls import wire
from aios.syscalls.errors import AiosError, KernelGone, TimedOut, from_wire
from aios.syscalls.home import default_home, endpoint

HELLO = 30.0  # seconds a kernel has to answer the first call
ALIVE = 1.0  # seconds between two looks at whether the kernel is there


class Pending:
    """A system call on its way: iterate its pieces, then `wait` for its final reply."""

    def __init__(self, connection: Connection, call_id: int) -> None:
        self.connection = connection
        self.id = call_id
        self.pieces: deque[Any] = deque()
        self.ended = False
        self.body: Any = None
        self.error: AiosError | None = None

    def take(self, kind: int, body: Any) -> None:
        if kind == wire.PIECE:
            self.pieces.append(body)
            return
        self.ended = True
        if kind == wire.FAILED:
            self.error = from_wire(body)
        else:
            self.body = body

    def __iter__(self) -> Iterator[Any]:
        while True:
            while self.pieces:
                yield self.pieces.popleft()
            if self.ended:
                return
            self.connection.pump()

    def wait(self, timeout: float | None = None) -> Any:
        """The body of the final reply; pieces that were not iterated are kept.

        Raises:
            AiosError: what the call ended with.
            TimedOut: no final reply within `timeout` seconds; the call goes on.
        """
        limit = None if timeout is None else time.monotonic() + timeout
        while not self.ended:
            self.connection.pump(limit)
        if self.error is not None:
            raise self.error
        return self.body


SocketFile = tuple[int, int]  # inode, and when it was made


def _socket_file(endpoint: str) -> SocketFile | None:
    try:
        found = os.stat(endpoint.removeprefix("ipc://"))  # noqa: PTH116 (1 us, before each call)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


class Connection:
    """Raises KernelGone where no kernel listens."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.endpoint = endpoint(home)
        self.kernel = self._listener()
        if self.kernel is None:
            raise KernelGone(f"no kernel answers at {self.endpoint}")
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 500)
        self.socket.setsockopt(zmq.RCVHWM, 0)
        self.socket.connect(self.endpoint)
        self.pending: dict[int, Pending] = {}
        self.last = 0

    def start(self, name: str, args: dict[str, Any]) -> Pending:
        """Send a call.

        Raises:
            TooBig: it does not fit into one message.
            KernelGone: the kernel that said welcome is not there any more.
        """
        if _socket_file(self.endpoint) != self.kernel:
            raise KernelGone("the kernel went away")
        self.last += 1
        data = wire.pack_call(self.last, name, args)
        call = self.pending[self.last] = Pending(self, self.last)
        self.socket.send(data)
        return call

    def pump(self, limit: float | None = None) -> None:
        """Take the replies that are there, waiting for the first, until `limit` (monotonic).

        Raises:
            KernelGone: the kernel is not there any more.
            TimedOut: nothing came.
        """
        while True:
            wait = ALIVE if limit is None else min(ALIVE, max(0.0, limit - time.monotonic()))
            if self.socket.poll(int(wait * 1000)):
                break
            if limit is not None and time.monotonic() >= limit:
                raise TimedOut("no reply in time")
            if self._listener() != self.kernel:
                raise KernelGone("the kernel went away during a call")
        while self.socket.poll(0):
            call_id, kind, body = wire.unpack_reply(self.socket.recv())
            call = self.pending.get(call_id)
            if call is None:
                raise from_wire(body)  # id 0: the kernel could not read what was sent
            call.take(kind, body)
            if call.ended:
                del self.pending[call_id]

    def _listener(self) -> SocketFile | None:
        """The socket of the kernel that listens now. libzmq would go on with the next one in
        silence, and that knows nothing of our calls."""
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(self.endpoint.removeprefix("ipc://"))
            except OSError:
                return None
        return _socket_file(self.endpoint)

    def close(self) -> None:
        self.socket.close()


def inherited_token() -> bytes | None:
    """The one-time token that init left for this process, taken once."""
    fd = os.environ.pop("AIOS_FD", None)
    if fd is None:
        return None
    with os.fdopen(int(fd), "rb") as pipe:
        return pipe.read() or None


def say_hello(home: Path | None, name: str | None) -> tuple[Connection, dict[str, Any]]:
    """A connection that the kernel knows: as the agent that init started, or as a client."""
    connection = Connection(home or default_home())
    args = {"version": wire.ABI_VERSION, "token": inherited_token(), "name": name}
    try:
        welcome = connection.start("hello", args).wait(HELLO)
    except BaseException:
        connection.close()
        raise
    return connection, welcome
