"""A process of the kernel's own: a core, the index, the gateway. init starts it, and again when it
has died, later each time. The kernel and the process talk over sockets in the home.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

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

    def __init__(
        self, path: Path, loop: Loop, on_here: Callable[[], None], on_data: Callable[[bytes], None]
    ) -> None:
        self.on_here, self.on_data = on_here, on_data
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


class ServiceOwner(Protocol):
    """Whoever has a service."""

    def start(self) -> None:
        """Call `launch` with the settings of the process."""

    def died(self, how: str, frame: Gone) -> None:
        """Hear how the process ended."""

    def not_started(self, frame: StartFailed) -> None:
        """Hear that init could not fork: there was no memory, say."""


class Service:
    """Keeps a process running, and has channels to it."""

    def __init__(
        self, key: int, name: str, config: Config, loop: Loop, owner: ServiceOwner, *,
        ring: bool = False,
    ) -> None:  # fmt: skip
        """`key` is below those of agents. `ring`: give it the keys of an encrypted home."""
        self.key, self.name, self.owner, self.ring = key, name, owner, ring
        self.home, self.loop = config.path, loop
        self.channels: list[Channel] = []
        self.restarts = 0
        self.backoff_s = BACKOFF_S

    def channel(
        self, name: str, on_here: Callable[[], None], on_data: Callable[[bytes], None]
    ) -> Channel:
        """Open a socket for the process."""
        channel = Channel(self.home / f"{name}.sock", self.loop, on_here, on_data)
        self.channels.append(channel)
        return channel

    def launch(self, settings: dict[str, Any]) -> None:
        module = f"aios.kernel.{self.name}"
        argv = [sys.executable, "-m", module, msgspec.json.encode(settings).decode()]
        log = str(self.home / "log" / f"{self.name}.log")
        self.loop.send_init(StartService(self.key, argv, log, ring=self.ring))

    def launch_later(self, longest_s: float = MAX_BACKOFF_S) -> None:
        self.restarts += 1
        self.loop.after(self.backoff_s, self.owner.start)
        self.backoff_s = min(self.backoff_s * 2, longest_s)

    def left_running(self, takeover: Takeover) -> int:
        """Return the OS pid of the process that the kernel before this one has started, or 0."""
        for frame in takeover.gone:
            if frame.key == self.key:
                self.loop.send_init(ExitAcknowledged(frame.os_pid))
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
        self.owner.not_started(frame)

    def gone(self, frame: Gone) -> None:
        self.loop.send_init(ExitAcknowledged(frame.os_pid))
        for channel in self.channels:
            channel.gone()
        how = f"signal {frame.signal}" if frame.signal else f"exit code {frame.code}"
        self.owner.died(how, frame)
