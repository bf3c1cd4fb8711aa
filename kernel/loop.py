"""The kernel's loop: its connections, its link to init, and its timers. Nothing here blocks.

Data for callers and init is sent at the end of a turn, once the journal has committed what it
follows from. While the journal waits for room, only init is read.
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

from .entry.listener import Listener
from .entry.peer import PeerLost
from .init.protocol import MAX_FRAME_BYTES, Takeover, ToInit, ToKernel, decode_to_kernel
from .init.protocol import encode as encode_to_init
from .lib.callbacks import ignore
from .lib.poll import READ, WRITE, Poll

MAX_CALL_FRAME_BYTES = 1 << 20  # a longer one is disconnected; over 64 KiB is TooBig
MAX_TIMERS = 1024  # before cancelled ones are removed
COMMIT_RETRY_S = 0.1  # when the disk is full
REMOTE = bytes(9)  # prefix of the routes of remote callers; other routes have 8 bytes
FRAMES_PER_TURN = 64  # from init
MAX_TURN_BYTES = 4 << 20  # of replies in one turn; then no call is read


class Timer:
    """A function to run at a time, unless cancelled."""

    def __init__(self, at: float, run: Callable[[], None]) -> None:
        self.at, self.run = at, run
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True
        self.run = ignore  # what it holds may be large


class Loop:
    """Reads all sockets, and hands what arrives to the `on_...` callbacks, which the boot sets."""

    on_call: Callable[[bytes, int, list[bytes]], None]  # route, OS pid of the sender, frames
    on_lost: Callable[[bytes, str], None]  # route, why
    on_closed: Callable[[bytes], None]  # route
    on_init: Callable[[ToKernel], None]
    say_remote: Callable[[bytes, bytes], None]  # to a remote caller
    on_turn: Callable[[], bool]  # end of a turn; True: it is committed
    is_waiting: Callable[[], bool]  # True: read no calls now

    def __init__(self, home: Path, init_fd: int) -> None:
        # `peers` has all descriptors; while no call is read, `own` is waited for, without callers.
        self.own, self.peers = Poll(), Poll()
        self.calls = Listener(
            home / "run" / "kernel.sock", self.peers, MAX_CALL_FRAME_BYTES, bounded=True
        )
        self.calls.on_message = self._from_caller
        self.calls.may_connect = lambda _os_pid: True
        self.calls.is_busy = lambda: not self.listening or self.bytes_to_callers > MAX_TURN_BYTES
        self.calls.on_closed = lambda route: self.after(0, lambda: self.on_closed(route))
        self.listeners = [self.calls]  # and those of the kernel's services
        self.init = socket.socket(fileno=init_fd)
        self.init.setblocking(False)
        self.to_init: deque[bytes] = deque()
        self.to_callers: list[tuple[bytes, bytes]] = []
        self.bytes_to_callers = 0
        self.posted: deque[Callable[[], None]] = deque()
        self.wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        for poll in (self.own, self.peers):
            poll.watch(init_fd, self._from_init)
            poll.watch(self.wake, self._woken)
        self.lost: dict[bytes, str] = {}
        self.timers: list[tuple[float, int, Timer]] = []
        self.crowded = MAX_TIMERS
        self.count = itertools.count()
        self.running = self.listening = True

    # --- out ------------------------------------------------------------------------------------

    def send(self, route: bytes, data: bytes) -> None:
        """Send to a caller at the end of this turn."""
        self.to_callers.append((route, data))
        self.bytes_to_callers += len(data)

    def post(self, run: Callable[[], None]) -> None:
        """Run a function in the loop. Thread-safe."""
        self.posted.append(run)
        os.eventfd_write(self.wake, 1)

    def run_posted(self) -> None:
        while self.posted:
            self.posted.popleft()()

    def _end_turn(self) -> None:
        committed = self.on_turn()
        self.listening = committed and not self.is_waiting()  # otherwise calls would pile up
        if not committed:
            self.after(COMMIT_RETRY_S, ignore)  # nothing is sent until the commit
            return
        self._flush_init()
        ready, self.to_callers, self.bytes_to_callers = self.to_callers, [], 0
        for route, data in ready:
            self.send_now(route, data)
        for listener in self.listeners:
            if listener.to_flush:
                listener.flush()

    def send_now(self, route: bytes, data: bytes) -> None:
        """Send at once. A peer that is gone or does not read is reported to `on_lost` later."""
        if route.startswith(REMOTE):
            self.say_remote(route.removeprefix(REMOTE), data)
            return
        try:
            self.calls.send(route, data)
        except PeerLost as error:
            self.lost[route] = str(error)

    def send_init(self, frame: ToInit) -> None:
        """Send a frame to init at the end of this turn."""
        self.to_init.append(encode_to_init(frame))

    def tell_init(self, frame: ToInit) -> None:
        """Send a frame to init now, if it reads."""
        self.send_init(frame)
        self._flush_init()

    def _flush_init(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self.to_init:
                self.init.send(self.to_init[0])
                self.to_init.popleft()

    # --- timers ---------------------------------------------------------------------------------

    def after(self, seconds: float, run: Callable[[], None]) -> Timer:
        if len(self.timers) >= self.crowded:  # many may be cancelled, with far times
            self.timers = [entry for entry in self.timers if not entry[2].cancelled]
            heapq.heapify(self.timers)
            self.crowded = max(MAX_TIMERS, 2 * len(self.timers))
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
            poll = self.peers if self.listening else self.own
            poll.change(self.init.fileno(), READ | WRITE if self.to_init else READ)
            wait = max(0.0, self.timers[0][0] - time.monotonic()) if self.timers else 1.0
            more = any(each.waiting and not each.is_busy() for each in self.listeners)
            # News from init about a caller come before its calls.
            poll.wait(0.0 if self.lost or more else wait, first=self.init.fileno())
            for listener in self.listeners:
                if listener.taken_s or listener.waiting:
                    listener.resume()
            self._run_timers()
            while self.lost:
                self.on_lost(*self.lost.popitem())
        self._end_turn()

    def _woken(self, _events: int) -> None:
        os.eventfd_read(self.wake)
        self.run_posted()

    def _from_caller(self, route: bytes, os_pid: int, data: bytes | None) -> None:
        self.on_call(route, os_pid, [b"", b""] if data is None else [data])

    def _from_init(self, _events: int) -> None:
        for _ in range(FRAMES_PER_TURN):
            try:
                data = self.init.recv(MAX_FRAME_BYTES)
            except BlockingIOError:
                return
            if not data:  # init is gone: Linux kills all its children
                self.running = False
                return
            self.on_init(decode_to_kernel(data))

    def receive_takeover(self) -> Takeover:
        """Wait for init's first frame, in as many parts as it takes."""
        self.init.setblocking(True)
        whole = Takeover("", {}, [], [], more=True)
        while whole.more:
            part = decode_to_kernel(self.init.recv(MAX_FRAME_BYTES))
            assert isinstance(part, Takeover)
            whole.children |= part.children
            whole = Takeover(
                part.system, whole.children, whole.paused + part.paused, whole.gone + part.gone,
                part.more, part.crashed, whole.mechanisms | part.mechanisms,
            )  # fmt: skip
        self.init.setblocking(False)
        return whole

    def close(self) -> None:
        for listener in self.listeners:
            listener.close()
        self.peers.close()
        self.own.close()
