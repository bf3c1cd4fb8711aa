"""The kernel's loop: all of its ZeroMQ, its link to init, and its timers. Nothing here blocks.

What goes out to callers and to init waits for the end of the turn, when the journal has taken note
of what it follows from.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

from aios.syscalls.errors import HomeBusy

from .init_protocol import FRAME_BYTES, Census, ToInit, ToKernel, decode_to_kernel
from .init_protocol import encode as encode_to_init

MAX_FRAME = 1 << 20  # a longer one is cut off by libzmq; over 64 KiB the trap answers TooBig
UNREAD = 4096  # replies that a peer may leave unread before it counts as gone
CROWDED = 1024  # timers that are kept before the cancelled ones are thrown out
RETRY = 0.1  # seconds until a commit is tried again, when the disk is full
REMOTE = bytes(256)  # begins the routes of callers from elsewhere: no id on ipc is that long
BURST = 64  # messages taken from one socket before the others get a turn


class Timer:
    def __init__(self, at: float, run: Callable[[], None]) -> None:
        self.at, self.run = at, run
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Line:
    """The kernel's end of a connection to a process that it has had started: a core, the index.
    Nobody else may speak on it. What arrives goes to `on_data`; `on_here` hears that the process
    has connected, to this kernel or to this one as well, and listens."""

    on_data: Callable[[bytes], None]
    on_here: Callable[[], None]

    def __init__(self, bound: zmq.Socket[bytes]) -> None:
        self.bound = bound
        self.os_pid = 0
        self.route: bytes | None = None

    def send(self, data: bytes) -> None:
        # A process that is gone is noticed by init; all that was sent to it is sent again then.
        if self.route is not None:
            with contextlib.suppress(zmq.ZMQError):
                self.bound.send_multipart([self.route, data], zmq.NOBLOCK)

    def receive(self) -> None:
        for _ in range(BURST):
            try:
                route, *frames = self.bound.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            # Else it is not our process, or one that was given up.
            if len(frames) == 1 and _os_pid(frames[0]) == self.os_pid:
                if frames[0].bytes:
                    self.on_data(frames[0].bytes)
                else:  # ZMQ_PROBE_ROUTER: it has just connected
                    self.route = route.bytes
                    self.on_here()

    def gone(self) -> None:
        self.os_pid, self.route = 0, None


class Loop:
    """What arrives is handed to the `on_...` callbacks, which the boot sets."""

    on_call: Callable[[bytes, int, list[bytes]], None]  # route, OS pid of the sender, frames
    on_lost: Callable[[bytes, str], None]  # route, why
    on_init: Callable[[ToKernel], None]
    say_remote: Callable[[bytes, bytes], None]  # to a caller from elsewhere
    on_turn: Callable[[], bool]  # all of a turn is done; True: it is committed

    def __init__(self, home: Path, init_fd: int) -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        self.paths: list[Path] = []
        self.calls = self._bind(home / "kernel.sock", UNREAD, MAX_FRAME)
        self.work = Line(self._bind(home / "core.sock", 0, -1))
        self.text = Line(self._bind(home / "text.sock", 0, -1))
        self.index = Line(self._bind(home / "index.sock", 0, -1))
        self.gate = Line(self._bind(home / "gate.sock", 0, -1))
        lines = (self.work, self.text, self.index, self.gate)
        self.lines = {line.bound: line for line in lines}
        self.init = socket.socket(fileno=init_fd)
        self.init.setblocking(False)
        self.to_init: deque[bytes] = deque()
        self.to_callers: list[tuple[bytes, bytes]] = []
        self.posted: deque[Callable[[], None]] = deque()
        self.wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.lost: dict[bytes, str] = {}
        self.timers: list[tuple[float, int, Timer]] = []
        self.crowded = CROWDED
        self.count = itertools.count()
        self.running = True

    def _bind(self, path: Path, unread: int, longest: int) -> zmq.Socket[bytes]:
        bound: zmq.Socket[bytes] = self.context.socket(zmq.ROUTER)
        bound.setsockopt(zmq.ROUTER_MANDATORY, 1)
        bound.setsockopt(zmq.SNDHWM, unread)
        bound.setsockopt(zmq.MAXMSGSIZE, longest)
        bound.setsockopt(zmq.LINGER, 500)
        if path.exists():
            if _answers(path):
                raise HomeBusy(f"another kernel listens at {path}", "stop it first")
            path.unlink()
        bound.bind(f"ipc://{path}")
        path.chmod(0o600)
        self.paths.append(path)
        return bound

    # --- out ------------------------------------------------------------------------------------

    def send(self, route: bytes, data: bytes) -> None:
        """To a caller, at the end of this turn."""
        self.to_callers.append((route, data))

    def post(self, run: Callable[[], None]) -> None:
        """Run it in the loop; may be called from another thread."""
        self.posted.append(run)
        os.eventfd_write(self.wake, 1)

    def run_posted(self) -> None:
        while self.posted:
            self.posted.popleft()()

    def _end_turn(self) -> None:
        if not self.on_turn():
            self.after(RETRY, lambda: None)  # nothing is shown until the journal has it
            return
        self._flush_init()
        ready, self.to_callers = self.to_callers, []
        for route, data in ready:
            self.send_now(route, data)

    def send_now(self, route: bytes, data: bytes) -> None:
        """One that is gone or does not read is lost, which on_lost hears later."""
        if route.startswith(REMOTE):
            self.say_remote(route.removeprefix(REMOTE), data)
            return
        try:
            self.calls.send_multipart([route, data], zmq.NOBLOCK)
        except zmq.Again:
            self.lost[route] = "does not read its replies"
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self.lost[route] = "closed its connection"

    def send_init(self, frame: ToInit) -> None:
        """At the end of this turn."""
        self.to_init.append(encode_to_init(frame))

    def _flush_init(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self.to_init:
                self.init.send(self.to_init[0])
                self.to_init.popleft()

    # --- timers ---------------------------------------------------------------------------------

    def after(self, seconds: float, run: Callable[[], None]) -> Timer:
        if len(self.timers) >= self.crowded:  # cancelled ones, maybe far from their time
            self.timers = [entry for entry in self.timers if not entry[2].cancelled]
            heapq.heapify(self.timers)
            self.crowded = max(CROWDED, 2 * len(self.timers))
        timer = Timer(time.monotonic() + seconds, run)
        heapq.heappush(self.timers, (timer.at, next(self.count), timer))
        return timer

    def every(self, seconds: float, run: Callable[[], None]) -> None:
        def again() -> None:
            run()
            self.after(seconds, again)

        self.after(seconds, again)

    def _run_timers(self) -> None:
        now = time.monotonic()
        while self.timers and self.timers[0][0] <= now:
            _, _, timer = heapq.heappop(self.timers)
            if not timer.cancelled:
                timer.run()

    # --- in -------------------------------------------------------------------------------------

    def run(self) -> None:
        poller = zmq.Poller()
        for bound in (self.calls, *self.lines, self.wake):
            poller.register(bound, zmq.POLLIN)
        while self.running:
            self._end_turn()
            events = zmq.POLLIN | (zmq.POLLOUT if self.to_init else 0)
            poller.register(self.init.fileno(), events)
            wait = max(0.0, self.timers[0][0] - time.monotonic()) if self.timers else 1.0
            wait = 0.0 if self.lost else wait
            ready = dict(poller.poll(math.ceil(wait * 1000)))
            if self.init.fileno() in ready:
                self._from_init()
            if self.wake in ready:
                os.eventfd_read(self.wake)
                self.run_posted()
            for bound, line in self.lines.items():
                if bound in ready:
                    line.receive()
            if self.calls in ready:
                self._from_callers()
            self._run_timers()
            while self.lost:
                self.on_lost(*self.lost.popitem())
        self._end_turn()

    def _from_callers(self) -> None:
        for _ in range(BURST):
            try:
                route, *frames = self.calls.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            sender = _os_pid(frames[0]) if frames else 0
            self.on_call(route.bytes, sender, [frame.bytes for frame in frames])

    def _from_init(self) -> None:
        for _ in range(BURST):
            try:
                data = self.init.recv(FRAME_BYTES)
            except BlockingIOError:
                return
            if not data:  # init is gone: Linux is about to kill us all
                self.running = False
                return
            self.on_init(decode_to_kernel(data))

    def first_word(self) -> Census:
        """What init says to a kernel before anything else, in as many parts as it takes."""
        self.init.setblocking(True)
        whole = Census("", {}, [], [], more=True)
        while whole.more:
            part = decode_to_kernel(self.init.recv(FRAME_BYTES))
            assert isinstance(part, Census)
            whole.children |= part.children
            whole = Census(
                part.system, whole.children, whole.paused + part.paused, whole.gone + part.gone,
                part.more,
            )  # fmt: skip
        self.init.setblocking(False)
        return whole

    def close(self) -> None:
        self.calls.close()
        for bound in self.lines:
            bound.close(linger=0)
        self.context.term()
        for path in self.paths:  # libzmq leaves them
            path.unlink(missing_ok=True)


def _os_pid(frame: zmq.Frame) -> int:
    """Who sent it, as Linux says (SO_PEERCRED), in libzmq's form `host:uid:gid:pid`."""
    return int(str(frame.get("Peer-Address")).rpartition(":")[2])


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
        probe.connect(os.fspath(path))
        return True
    return False
