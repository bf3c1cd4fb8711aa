"""A connection to the kernel: system calls out, replies in. One thread at a time may use it.

It outlives the kernel: when that dies and init starts another, the connection introduces itself as
before, and sends again all calls that have had no final reply. Callers notice a delay only.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zmq

from aios.syscalls import wire
from aios.syscalls.errors import (
    AiosError,
    BadInput,
    BadToken,
    Denied,
    KernelGone,
    TimedOut,
    from_wire,
)
from aios.syscalls.home import endpoint, init_runs
from aios.syscalls.table import TABLE

from .remote import RemoteKernel

HELLO_TIMEOUT_S = 30.0
POLL_S, MAX_POLL_S = 0.01, 0.25  # between two looks for the next kernel

NEVER_MS = 2**30
RECONNECT_S = 25.0  # to a remote kernel, which keeps its callers a little longer
HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS = 5_000, 15_000  # to a remote kernel
REFUSED = zmq.EVENT_HANDSHAKE_FAILED_AUTH
EVENT = struct.Struct("=H")  # zmq_socket_monitor(3); zmq.utils.monitor has asyncio loaded
ELSEWHERE = "start it there, and look at address and server_key: there, `aios key list` shows both"
NO_KEY = "there, `aios key list` shows the keys that are allowed, and the kernel's own"


class Pending:
    """A system call on its way: iterate its pieces, then `wait` for its final reply."""

    def __init__(
        self, connection: Connection, call_id: int, data: bytes, *, exactly_once: bool
    ) -> None:
        self.connection = connection
        self.id = call_id
        self.data = data
        self.exactly_once = exactly_once
        self.pieces: deque[Any] = deque()
        self.received = 0  # pieces, from the present kernel
        self.skip = 0  # pieces that the next kernel repeats
        self.ended = False
        self.body: Any = None
        self.error: AiosError | None = None
        self.receipt: wire.Receipt | None = None

    def take(self, kind: int, body: Any, receipt: wire.Receipt | None) -> None:
        if kind == wire.PIECE:
            self.received += 1
            if self.skip < self.received:
                self.pieces.append(body)
            return
        self.ended, self.receipt = True, receipt
        if kind == wire.FAILED:
            self.error = from_wire(body)
        else:
            self.body = body

    def resend(self) -> None:
        """Prepare to send the call to another kernel, which may repeat the pieces it has sent."""
        self.skip = max(self.skip, self.received) if self.exactly_once else 0
        self.received = 0

    def __iter__(self) -> Iterator[Any]:
        while True:
            while self.pieces:
                yield self.pieces.popleft()
            if self.ended:
                return
            self.connection.pump(enough=lambda: self.pieces or self.ended)

    def wait(self, timeout: float | None = None) -> Any:
        """Wait for the final reply and return its body. Pieces that were not iterated are kept.

        Raises:
            AiosError: the call failed.
            TimedOut: no final reply within `timeout` seconds; the call goes on.
        """
        limit = None if timeout is None else time.monotonic() + timeout
        while not self.ended:
            self.connection.pump(limit, lambda: self.ended)
        if self.error is not None:
            raise self.error
        return self.body


class Connection:
    """A connection to the kernel of `home`, or to a remote one: of the agent that `token` was made
    for, of a client listed as `name`, or of the owner of a key. With `receipts`, every final reply
    says where the audit log has its call.

    Raises:
        KernelGone: no kernel answers.
        Denied: a remote kernel does not allow the key.
    """

    def __init__(
        self, home: Path, token: bytes | None, name: str | None,
        remote: RemoteKernel | None = None, *, receipts: bool = False,
    ) -> None:  # fmt: skip
        self.home, self.remote = home, remote
        self.receipts = receipts
        self.receipt: wire.Receipt | None = None  # the last
        self.endpoint = endpoint(home) if remote is None else remote.address
        self.pending: dict[int, Pending] = {}
        self.abandoned: deque[int] = deque()  # calls to cancel: nobody can read their replies
        self.thread, self.within = threading.get_ident(), 0  # calls of `start` and `pump`
        self.lock = threading.RLock()  # held within them
        self.last = 0
        self.is_agent = token is not None
        self.lost = False  # the kernel that was there is not any more
        self.owner, self.closed = os.getpid(), False
        self.welcome = self._connect({"token": token, "name": name})

    def start(self, name: str, args: dict[str, Any]) -> Pending:
        """Send a call.

        Raises:
            TooBig: it does not fit into one message.
            KernelGone: the system has stopped, or this connection is closed, or another process's.
            BadInput: another thread is within a call.
        """
        self._enter()
        try:
            self._cancel_abandoned()
            return self._start(name, args)
        finally:
            self.within -= 1
            self.lock.release()

    def _start(self, name: str, args: dict[str, Any]) -> Pending:
        self._check_usable()
        self._notice_loss()
        if self.lost:
            self._reconnect()
        self.last += 1
        heard = next(iter(self.pending), self.last) - 1
        data = wire.pack_call(self.last, name, args, heard, self.receipts)
        exactly_once = name in TABLE and TABLE[name].exactly_once
        call = Pending(self, self.last, data, exactly_once=exactly_once)
        self.pending[self.last] = call
        self.socket.send(call.data)
        return call

    def pump(
        self, limit: float | None = None, enough: Callable[[], object] = lambda: False
    ) -> None:
        """Take the replies that are there, waiting for the first until `limit` (monotonic). Return
        at once if `enough` is true: another thread took the reply that this one waits for.

        Raises:
            KernelGone: the system has stopped, or this connection is closed, or another process's.
            TimedOut: nothing came.
            BadInput: another thread is within a call.
        """
        self._enter()
        try:
            self._cancel_abandoned()
            self._check_usable()
            if enough():
                return
            if self.lost:
                self._reconnect()
            if not self._poll(limit):
                raise TimedOut("no reply in time")
            self._take_all()
            self._notice_loss()
        finally:
            self.within -= 1
            self.lock.release()

    def _enter(self) -> None:
        """Enter a call. Raises BadInput if another thread is within one: it would take the replies
        that this one waits for."""
        if not self.lock.acquire(blocking=False):
            hint = "wait for it, or start several calls in one thread: they run at once"
            raise BadInput("another thread is using this connection", hint)
        self.within += 1

    def cancel_later(self, call_id: int) -> None:
        """Cancel a call whose reply nobody can read any more: now, or with the next call if this is
        another thread, or within a call. It raises nothing, so finalizers can use it."""
        self.abandoned.append(call_id)
        usable = not (self.closed or self.socket.closed or sys.is_finalizing())
        if usable and not self.within and self.thread == threading.get_ident():
            with contextlib.suppress(AiosError, zmq.ZMQError):
                self._cancel_abandoned()

    def _cancel_abandoned(self) -> None:
        while self.abandoned:
            call_id = self.abandoned.popleft()
            if call_id in self.pending:
                self._start("call.cancel", {"call": call_id})

    def _take_all(self) -> None:
        while self.socket.poll(0):
            data = self.socket.recv()
            if not data:  # a remote kernel looks if somebody is here
                continue
            call_id, kind, body, receipt = wire.unpack_reply(data)
            call = self.pending.get(call_id)
            if call is None:
                raise from_wire(body)  # id 0: the kernel could not read what was sent
            call.take(kind, body, receipt)
            self.receipt = receipt or self.receipt
            if call.ended:
                del self.pending[call_id]

    def descriptors(self) -> list[int]:
        """Return descriptors that become readable when a reply may have come. zmq signals edges:
        call `pump` before waiting for them, and after each call that was sent. They change when a
        lost connection is back."""
        return [int(socket.getsockopt(zmq.FD)) for socket in (self.socket, self.monitor)]

    def close(self, linger: int | None = None) -> None:
        self.closed = True
        if self.owner == os.getpid():  # a fork would end what its parent goes on with
            self._disconnect(linger)

    def _check_usable(self) -> None:
        if self.closed:
            raise KernelGone("this connection is closed", "open another with connect()")
        if self.owner != os.getpid():
            hint = "call connect() in the fork"
            raise KernelGone(f"this connection is that of process {self.owner}", hint)

    def _disconnect(self, linger: int | None = None) -> None:
        if self.socket.closed:
            return
        self.socket.disable_monitor()
        self.monitor.close()
        self.socket.close(linger)

    # --- the kernel's death ---------------------------------------------------------------------

    def _notice_loss(self) -> None:
        """Notice that the connection is lost, and take the replies that were sent before."""
        if self.socket.closed:  # it did not come back
            return
        while self.monitor.poll(0):
            self.monitor.recv_multipart()
            self.lost = True
        if self.lost:
            self._take_all()

    def _reconnect(self) -> None:
        """Connect to the next kernel, and send it all pending calls."""
        self._disconnect(0)
        try:
            welcome = self._connect(
                {"back": {"pid": self.welcome["pid"], "secret": self.welcome["secret"]}}
            )
        except BadToken as error:
            raise KernelGone("the system was started anew") from error
        self.welcome["boot"] = welcome["boot"]
        self.lost = False
        for call in self.pending.values():
            call.resend()
            self.socket.send(call.data)

    def _connect(self, who: dict[str, Any]) -> dict[str, Any]:
        """Say hello to the present kernel, or to the next one; return its welcome."""
        wait, limit = POLL_S, time.monotonic() + (RECONNECT_S if self.lost else 0.0)
        while True:
            if self._listens():
                self._open()
                try:
                    welcome = self._hello(who)
                except BaseException:
                    self._disconnect()
                    raise
                if welcome is not None:
                    return welcome
                self._disconnect(0)
            if not self._may_return(limit):
                what = "the kernel went away from" if self.lost else "no kernel answers at"
                hint = ELSEWHERE if self.remote else ""
                raise KernelGone(f"{what} {self.endpoint}", hint)
            time.sleep(wait)
            wait = min(wait * 1.2, MAX_POLL_S)

    def _may_return(self, limit: float) -> bool:
        """Return true if another kernel may start, or this one be reachable again."""
        if self.remote is not None:
            return time.monotonic() < limit
        return self.is_agent or init_runs(self.home)  # an agent ends with init

    def _open(self) -> None:
        """Open the socket. Raises BadInput if the address or a key is malformed."""
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 500)
        self.socket.setsockopt(zmq.RCVHWM, 0)
        self.socket.setsockopt(zmq.SNDHWM, 0)  # what is sent is kept here anyway
        # Another kernel must hear who we are first. (-1 would lose what came and is not read yet.)
        self.socket.setsockopt(zmq.RECONNECT_IVL, NEVER_MS)
        lost = zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED | zmq.EVENT_CONNECT_RETRIED | REFUSED
        self.monitor: zmq.Socket[bytes] = self.socket.get_monitor_socket(lost)
        self.poller = zmq.Poller()
        self.poller.register(self.socket, zmq.POLLIN)
        self.poller.register(self.monitor, zmq.POLLIN)
        try:
            if self.remote is not None:
                self.socket.setsockopt(zmq.CURVE_SERVERKEY, self.remote.server.encode())
                self.socket.setsockopt(zmq.CURVE_PUBLICKEY, self.remote.public.encode())
                self.socket.setsockopt(zmq.CURVE_SECRETKEY, self.remote.secret.encode())
                self.socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
                self.socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
            self.socket.connect(self.endpoint)
        except zmq.ZMQError as error:
            self._disconnect(0)
            hint = "give tcp://HOST:PORT, and keys as `aios key list` and `aios key new` show them"
            why = f"cannot connect to {self.endpoint}: {error.strerror}"
            raise BadInput(why, hint) from error

    def _poll(self, limit: float | None) -> dict[Any, int]:
        left = None if limit is None else max(0, math.ceil((limit - time.monotonic()) * 1000))
        return dict(self.poller.poll(left))

    def _hello(self, who: dict[str, Any]) -> dict[str, Any] | None:
        """Say hello and return the welcome, or None if the kernel has just died."""
        self.last += 1
        args = {"version": wire.ABI_VERSION, **who}
        self.socket.send(wire.pack_call(self.last, "hello", args))
        ready = self._poll(time.monotonic() + HELLO_TIMEOUT_S)
        if not ready:
            raise KernelGone(f"the kernel at {self.endpoint} does not answer")
        if self.socket not in ready:
            (event,) = EVENT.unpack_from(self.monitor.recv_multipart()[0])
            if event == REFUSED:
                raise Denied(f"the kernel at {self.endpoint} refuses this key", NO_KEY)
            return None
        data = self.socket.recv()
        _, kind, body, _ = wire.unpack_reply(data or self.socket.recv())
        if kind == wire.FAILED:
            raise from_wire(body)
        welcome: dict[str, Any] = body
        return welcome

    def _listens(self) -> bool:
        if self.remote is not None:
            return True
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(self.endpoint.removeprefix("ipc://"))
            except OSError:
                return False
        return True


def inherited_token() -> bytes | None:
    """Take the one-time token that init left for this process."""
    fd = os.environ.pop("AIOS_FD", None)
    if fd is None:
        return None
    with os.fdopen(int(fd), "rb") as pipe:
        return pipe.read() or None
