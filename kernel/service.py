"""A process of the kernel's own: a core, the index, the gateway. init starts it, and again when it
has died, later each time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from .config import Config
from .entry.channel import Channel
from .init.protocol import ExitAcknowledged, Gone, Started, StartFailed, StartService, Takeover
from .loop import Loop

BACKOFF_S, MAX_BACKOFF_S = 0.05, 5.0


class Service:
    """`start` makes its owner call `launch`; `on_died` is told how it ended."""

    start: Callable[[], None]
    on_died: Callable[[str, Gone], None]
    on_not_started: Callable[[StartFailed], None]  # init could not fork: no memory, say

    def __init__(
        self, key: int, name: str, config: Config, loop: Loop, channels: Sequence[Channel], *,
        ring: bool = False,
    ) -> None:  # fmt: skip
        """`key` is below those of agents. `ring`: give it the keys of an encrypted home."""
        self.key, self.name, self.channels, self.ring = key, name, channels, ring
        self.home = config.path
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
        """Return the OS pid of the process that the kernel before has started, or 0."""
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
