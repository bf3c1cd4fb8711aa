"""A process of the kernel's own: a core, the index, the gateway. init starts it, and again when it
has died, later each time. The kernel and the process talk over sockets in the home.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from .config import Config
from .entry.listener import Listener
from .entry.peer import PeerLost
from .init.protocol import ExitAcknowledged, Gone, Started, StartFailed, StartService, Takeover
from .lib.callbacks import ignore
from .loop import Loop

BACKOFF_S, MAX_BACKOFF_S = 0.05, 5.0
UNBOUNDED = 1 << 40  # bytes of a frame


class Channel:
    """A socket on which only the started process may connect and send.

    Messages go to `on_data`. `on_here` is called when the process has connected and listens, also
    when it connects to this kernel after another.
    """

    on_data: Callable[[bytes], None]
    on_here: Callable[[], None]

    def __init__(self, path: Path, loop: Loop) -> None:
        self.listener = Listener(path, loop.peers, UNBOUNDED, bounded=False)
        self.listener.on_message = self._receive
        self.listener.is_known = lambda route: route == self.route
        self.listener.may_connect = lambda os_pid: os_pid == self.os_pid
        self.listener.on_closed = ignore  # init reports its end
        self.listener.on_refused = lambda _os_pid, why: print(f"{path.name}: {why}", flush=True)
        loop.listeners.append(self.listener)
        self.os_pid = 0
        self.route: bytes | None = None

    def send(self, data: bytes) -> None:
        """Send to the process at the next flush, or drop the data while it is not connected."""
        if self.route is not None:
            # init notices a process that has ended; its successor is sent everything again.
            with contextlib.suppress(PeerLost):
                self.listener.send(self.route, data)

    def _receive(self, route: bytes, _os_pid: int, data: bytes | None) -> None:
        if data:
            self.on_data(data)
        elif data is not None:  # the empty message of ZMQ_PROBE_ROUTER: it has connected
            self.route = route
            self.on_here()

    def gone(self) -> None:
        """Forget the process, which has ended."""
        self.os_pid, self.route = 0, None


class Service:
    """Keeps a process running. `start` has its owner call `launch`; `on_died` is told how it ended.

    `channels` are those to the process, by the names of their sockets.
    """

    start: Callable[[], None]
    on_died: Callable[[str, Gone], None]
    on_not_started: Callable[[StartFailed], None]  # init could not fork: no memory, say

    def __init__(
        self, key: int, name: str, config: Config, loop: Loop, *sockets: str, ring: bool = False
    ) -> None:
        """`key` is below those of agents. `ring`: give it the keys of an encrypted home."""
        self.key, self.name, self.ring = key, name, ring
        self.home = config.path
        self.channels = [Channel(self.home / f"{socket}.sock", loop) for socket in sockets]
        self.to_init, self.after = loop.send_init, loop.after
        self.restarts = 0
        self.backoff_s = BACKOFF_S

    def launch(self, settings: dict[str, Any]) -> None:
        module = f"aios.kernel.{self.name}"
        argv = [sys.executable, "-m", module, msgspec.json.encode(settings).decode()]
        log = str(self.home / "log" / f"{self.name}.log")
        self.to_init(StartService(self.key, argv, log, ring=self.ring))

    def launch_later(self, longest_s: float = MAX_BACKOFF_S) -> None:
        self.restarts += 1
        self.after(self.backoff_s, self.start)
        self.backoff_s = min(self.backoff_s * 2, longest_s)

    def left_running(self, takeover: Takeover) -> int:
        """Return the OS pid of the process that the kernel before this one has started, or 0."""
        for frame in takeover.gone:
            if frame.key == self.key:
                self.to_init(ExitAcknowledged(frame.os_pid))
        running = [os_pid for os_pid, key in takeover.children.items() if key == self.key]
        return running[0] if running else 0

    def adopt(self, os_pid: int) -> None:
        """Let this process connect, and no other."""
        for channel in self.channels:
            channel.os_pid = os_pid

    # --- reports of init --------------------------------------------------------------------------

    def started(self, frame: Started) -> None:
        self.adopt(frame.os_pid)

    def start_failed(self, frame: StartFailed) -> None:
        self.on_not_started(frame)

    def gone(self, frame: Gone) -> None:
        self.to_init(ExitAcknowledged(frame.os_pid))
        for channel in self.channels:
            channel.gone()
        self.on_died(f"signal {frame.signal}" if frame.signal else f"exit code {frame.code}", frame)
