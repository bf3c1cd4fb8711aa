"""The kernel's loop: its connections, its link to init, and its timers. Nothing here blocks. While
the journal waits for room, nobody but init is listened to.

What goes out to callers and to init waits for the end of the turn, when the journal has taken note
of what it follows from.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from .entry.connections import Listener, Lost
from .init.protocol import FRAME_BYTES, Census, ToInit, ToKernel, decode_to_kernel
from .init.protocol import encode as encode_to_init
from .lib.poll import READ, WRITE, Poll

MAX_FRAME = 1 << 20  # a longer one costs the connection; over 64 KiB the trap answers TooBig
UNBOUNDED = 1 << 40
CROWDED = 1024  # timers that are kept before the cancelled ones are thrown out
RETRY = 0.1  # seconds until a commit is tried again, when the disk is full
REMOTE = bytes(9)  # begins the routes of callers from elsewhere: a listener's have 8 bytes
BURST = 64  # frames taken from init before the others get a turn
TURN_BYTES = 4 << 20  # of replies: whoever else says something waits for the next turn


class Timer:
    def __init__(self, at: float, run: Callable[[], None]) -> None:
        self.at, self.run = at, run
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True
        self.run = lambda: None  # what that holds may be large, and its time far


class Line:
    """The kernel's end of a connection to a process that it has had started: a core, the index.
    Nobody else may speak on it. What arrives goes to `on_data`; `on_here` hears that the process
    has connected, to this kernel or to this one as well, and listens."""

    on_data: Callable[[bytes], None]
    on_here: Callable[[], None]

    def __init__(self, path: Path, poll: Poll) -> None:
        self.listener = Listener(path, poll, UNBOUNDED, bounded=False)
        self.listener.on_message = self._receive
        self.listener.is_known = lambda route: route == self.route
        self.listener.may_connect = lambda os_pid: os_pid == self.os_pid
        self.listener.on_closed = lambda _route: None  # init tells of its end
        self.listener.on_refused = lambda _os_pid, why: print(f"{path.name}: {why}", flush=True)
        self.os_pid = 0
        self.route: bytes | None = None

    def send(self, data: bytes) -> None:
        # A process that is gone is noticed by init; all that was sent to it is sent again then.
        if self.route is not None:
            with contextlib.suppress(Lost):
                self.listener.say(self.route, data)

    def _receive(self, route: bytes, _os_pid: int, data: bytes | None) -> None:
        if data:
            self.on_data(data)
        elif data is not None:  # ZMQ_PROBE_ROUTER: it has just connected
            self.route = route
            self.on_here()

    def gone(self) -> None:
        self.os_pid, self.route = 0, None


class Loop:
    """What arrives is handed to the `on_...` callbacks, which the boot sets."""

    on_call: Callable[[bytes, int, list[bytes]], None]  # route, OS pid of the sender, frames
    on_lost: Callable[[bytes, str], None]  # route, why
    on_closed: Callable[[bytes], None]  # route
    on_init: Callable[[ToKernel], None]
    say_remote: Callable[[bytes, bytes], None]  # to a caller from elsewhere
    on_turn: Callable[[], bool]  # all of a turn is done; True: it is committed
    is_waiting: Callable[[], bool]  # whether it is better to take in nothing now

    def __init__(self, home: Path, init_fd: int) -> None:
        self.poll, self.peers = Poll(), Poll()
        self.poll.watch(self.peers.fd, self._from_peers)
        self.calls = Listener(home / "run" / "kernel.sock", self.peers, MAX_FRAME, bounded=True)
        self.calls.on_message = self._from_caller
        self.calls.may_connect = lambda _os_pid: True
        self.calls.is_busy = lambda: not self.listening or self.bytes_to_callers > TURN_BYTES
        self.calls.on_closed = lambda route: self.after(0, lambda: self.on_closed(route))
        self.work = Line(home / "core.sock", self.peers)
        self.text = Line(home / "text.sock", self.peers)
        self.index = Line(home / "index.sock", self.peers)
        self.gate = Line(home / "gate.sock", self.peers)
        lines = (self.work, self.text, self.index, self.gate)
        self.listeners = [self.calls, *(line.listener for line in lines)]
        self.init = socket.socket(fileno=init_fd)
        self.init.setblocking(False)
        self.poll.watch(init_fd, self._from_init)
        self.to_init: deque[bytes] = deque()
        self.to_callers: list[tuple[bytes, bytes]] = []
        self.bytes_to_callers = 0
        self.posted: deque[Callable[[], None]] = deque()
        self.wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.poll.watch(self.wake, self._woken)
        self.lost: dict[bytes, str] = {}
        self.timers: list[tuple[float, int, Timer]] = []
        self.crowded = CROWDED
        self.count = itertools.count()
        self.running = self.listening = True

    # --- out ------------------------------------------------------------------------------------

    def send(self, route: bytes, data: bytes) -> None:
        """To a caller, at the end of this turn."""
        self.to_callers.append((route, data))
        self.bytes_to_callers += len(data)

    def post(self, run: Callable[[], None]) -> None:
        """Run it in the loop; may be called from another thread."""
        self.posted.append(run)
        os.eventfd_write(self.wake, 1)

    def run_posted(self) -> None:
        while self.posted:
            self.posted.popleft()()

    def _end_turn(self) -> None:
        committed = self.on_turn()
        listening = committed and not self.is_waiting()  # or what came in would pile up
        if listening != self.listening:
            self.listening = listening
            self.poll.change(self.peers.fd, READ if listening else 0)
        if not committed:
            self.after(RETRY, lambda: None)  # nothing is shown until the journal has it
            return
        self._flush_init()
        ready, self.to_callers, self.bytes_to_callers = self.to_callers, [], 0
        for route, data in ready:
            self.send_now(route, data)
        for listener in self.listeners:
            listener.flush()

    def send_now(self, route: bytes, data: bytes) -> None:
        """One that is gone or does not read is lost, which on_lost hears later."""
        if route.startswith(REMOTE):
            self.say_remote(route.removeprefix(REMOTE), data)
            return
        try:
            self.calls.say(route, data)
        except Lost as error:
            self.lost[route] = str(error)

    def send_init(self, frame: ToInit) -> None:
        """At the end of this turn."""
        self.to_init.append(encode_to_init(frame))

    def tell_init(self, frame: ToInit) -> None:
        """Now, if init listens."""
        self.send_init(frame)
        self._flush_init()

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
        while self.running:
            self._end_turn()
            self.poll.change(self.init.fileno(), READ | WRITE if self.to_init else READ)
            wait = max(0.0, self.timers[0][0] - time.monotonic()) if self.timers else 1.0
            more = self.calls.waiting and not self.calls.is_busy()
            self.poll.wait(0.0 if self.lost or more else wait)
            self.calls.go_on()
            self._run_timers()
            while self.lost:
                self.on_lost(*self.lost.popitem())
        self._end_turn()

    def _woken(self, _events: int) -> None:
        os.eventfd_read(self.wake)
        self.run_posted()

    def _from_peers(self, _events: int) -> None:
        self._from_init(READ)  # what init knew of a caller comes before what that says
        self.peers.wait(0.0)

    def _from_caller(self, route: bytes, os_pid: int, data: bytes | None) -> None:
        self.on_call(route, os_pid, [b"", b""] if data is None else [data])

    def _from_init(self, _events: int) -> None:
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
                part.more, part.crashed, whole.walls | part.walls,
            )  # fmt: skip
        self.init.setblocking(False)
        return whole

    def close(self) -> None:
        for listener in self.listeners:
            listener.close()
        self.peers.close()
        self.poll.close()
