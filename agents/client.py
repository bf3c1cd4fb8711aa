"""A connection to the kernel: system calls out, replies in. One thread at a time may use it.

It outlives the kernel: when that dies and init starts another, the connection says who it was and
sends again what it has no final reply to. Whoever waits notices nothing but the time.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from aios.syscalls import wire
from aios.syscalls.errors import AiosError, BadToken, KernelGone, TimedOut, from_wire
from aios.syscalls.home import default_home, endpoint, init_runs
from aios.syscalls.table import EFFECTS

HELLO = 30.0  # seconds a kernel has to answer the first call
LOOK, LONGEST_LOOK = 0.01, 0.25  # seconds between two looks for the next kernel

NEVER = 2**30  # ms


class Pending:
    """A system call on its way: iterate its pieces, then `wait` for its final reply."""

    def __init__(self, connection: Connection, call_id: int, data: bytes, *, effect: bool) -> None:
        self.connection = connection
        self.id = call_id
        self.data = data
        self.effect = effect
        self.pieces: deque[Any] = deque()
        self.had = 0  # pieces, of those that the kernel that is there now has sent
        self.skip = 0  # of those that it will send again
        self.ended = False
        self.body: Any = None
        self.error: AiosError | None = None
        self.receipt: wire.Receipt | None = None

    def take(self, kind: int, body: Any, receipt: wire.Receipt | None) -> None:
        if kind == wire.PIECE:
            self.had += 1
            if self.skip < self.had:
                self.pieces.append(body)
            return
        self.ended, self.receipt = True, receipt
        if kind == wire.FAILED:
            self.error = from_wire(body)
        else:
            self.body = body

    def again(self) -> None:
        """It is sent to another kernel: of a call with an effect, that sends all pieces again."""
        self.skip = max(self.skip, self.had) if self.effect else 0
        self.had = 0

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


class Connection:
    """Says hello: as the agent that `token` was made for, or as a client listed as `name`. With
    `receipts`, every final reply comes with where the audit log has its call.

    Raises:
        KernelGone: no kernel answers.
    """

    def __init__(
        self, home: Path, token: bytes | None, name: str | None, *, receipts: bool = False
    ) -> None:
        self.home = home
        self.receipts = receipts
        self.receipt: wire.Receipt | None = None  # the last
        self.endpoint = endpoint(home)
        self.pending: dict[int, Pending] = {}
        self.last = 0
        self.is_agent = token is not None
        self.lost = False  # the kernel that was there is not any more
        self.welcome = self._connect({"token": token, "name": name})

    def start(self, name: str, args: dict[str, Any]) -> Pending:
        """Send a call.

        Raises:
            TooBig: it does not fit into one message.
            KernelGone: the system has stopped.
        """
        self._look()
        if self.lost:
            self._come_back()
        self.last += 1
        heard = next(iter(self.pending), self.last) - 1
        data = wire.pack_call(self.last, name, args, heard, self.receipts)
        call = Pending(self, self.last, data, effect=name in EFFECTS)
        self.pending[self.last] = call
        self._send(call)
        return call

    def pump(self, limit: float | None = None) -> None:
        """Take the replies that are there, waiting for the first, until `limit` (monotonic).

        Raises:
            KernelGone: the system has stopped.
            TimedOut: nothing came.
        """
        if self.lost:
            self._come_back()
        if not self._poll(limit):
            raise TimedOut("no reply in time")
        self._take_all()
        self._look()

    def _take_all(self) -> None:
        while self.socket.poll(0):
            call_id, kind, body, receipt = wire.unpack_reply(self.socket.recv())
            call = self.pending.get(call_id)
            if call is None:
                raise from_wire(body)  # id 0: the kernel could not read what was sent
            call.take(kind, body, receipt)
            self.receipt = receipt or self.receipt
            if call.ended:
                del self.pending[call_id]

    def close(self, linger: int | None = None) -> None:
        if self.socket.closed:
            return
        self.socket.disable_monitor()
        self.monitor.close()
        self.socket.close(linger)

    # --- the kernel's death ---------------------------------------------------------------------

    def _look(self) -> None:
        """Notice that the connection is lost, and take what had been sent before."""
        if self.socket.closed:  # it did not come back
            return
        while self.monitor.poll(0):
            recv_monitor_message(self.monitor)
            self.lost = True
        if self.lost:
            self._take_all()

    def _come_back(self) -> None:
        """To the kernel that follows."""
        self.close(0)
        try:
            welcome = self._connect(
                {"back": {"pid": self.welcome["pid"], "secret": self.welcome["secret"]}}
            )
        except BadToken as error:
            raise KernelGone("the system was started anew") from error
        self.welcome["boot"] = welcome["boot"]
        self.lost = False
        for call in self.pending.values():
            call.again()
            self._send(call)

    def _send(self, call: Pending) -> None:
        self.socket.send(call.data)

    def _connect(self, who: dict[str, Any]) -> dict[str, Any]:
        """Say hello to the kernel that is there, or to the next one; its welcome."""
        wait = LOOK
        while True:
            if self._listens():
                self._open()
                try:
                    welcome = self._hello(who)
                except BaseException:
                    self.close()
                    raise
                if welcome is not None:
                    return welcome
                self.close(0)
            elif not self.is_agent and not init_runs(self.home):  # an agent ends with init
                what = "the kernel went away from" if self.lost else "no kernel answers at"
                raise KernelGone(f"{what} {self.endpoint}")
            else:
                time.sleep(wait)
                wait = min(wait * 1.2, LONGEST_LOOK)

    def _open(self) -> None:
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 500)
        self.socket.setsockopt(zmq.RCVHWM, 0)
        self.socket.setsockopt(zmq.SNDHWM, 0)  # what is sent is kept here anyway
        # Another kernel must hear who we are first. (-1 would lose what came and is not read yet.)
        self.socket.setsockopt(zmq.RECONNECT_IVL, NEVER)
        lost = zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED | zmq.EVENT_CONNECT_RETRIED
        self.monitor: zmq.Socket[bytes] = self.socket.get_monitor_socket(lost)
        self.poller = zmq.Poller()
        self.poller.register(self.socket, zmq.POLLIN)
        self.poller.register(self.monitor, zmq.POLLIN)
        self.socket.connect(self.endpoint)

    def _poll(self, limit: float | None) -> dict[Any, int]:
        left = None if limit is None else max(0, math.ceil((limit - time.monotonic()) * 1000))
        return dict(self.poller.poll(left))

    def _hello(self, who: dict[str, Any]) -> dict[str, Any] | None:
        """The welcome; None: the kernel died of late."""
        self.last += 1
        args = {"version": wire.ABI_VERSION, **who}
        self.socket.send(wire.pack_call(self.last, "hello", args))
        ready = self._poll(time.monotonic() + HELLO)
        if not ready:
            raise KernelGone(f"the kernel at {self.endpoint} does not answer")
        if self.socket not in ready:
            return None
        _, kind, body, _ = wire.unpack_reply(self.socket.recv())
        if kind == wire.FAILED:
            raise from_wire(body)
        welcome: dict[str, Any] = body
        return welcome

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(self.endpoint.removeprefix("ipc://"))
            except OSError:
                return False
        return True


def inherited_token() -> bytes | None:
    """The one-time token that init left for this process, taken once."""
    fd = os.environ.pop("AIOS_FD", None)
    if fd is None:
        return None
    with os.fdopen(int(fd), "rb") as pipe:
        return pipe.read() or None


def say_hello(home: Path | None, name: str | None, *, receipts: bool = False) -> Connection:
    """A connection that the kernel knows: as the agent that init started, or as a client."""
    return Connection(home or default_home(), inherited_token(), name, receipts=receipts)
