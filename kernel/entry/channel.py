"""The kernel's connection to a process that it has started: a core, the index, the gateway."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from ..lib.callbacks import ignore
from ..lib.poll import Poll
from .listener import Listener, PeerLost

UNBOUNDED = 1 << 40


class Channel:
    """A socket on which only the started process may connect and send.

    Messages go to `on_data`. `on_here` is called when the process has connected and listens, also
    when it connects to this kernel after another.
    """

    on_data: Callable[[bytes], None]
    on_here: Callable[[], None]

    def __init__(self, path: Path, poll: Poll) -> None:
        self.listener = Listener(path, poll, UNBOUNDED, bounded=False)
        self.listener.on_message = self._receive
        self.listener.is_known = lambda route: route == self.route
        self.listener.may_connect = lambda os_pid: os_pid == self.os_pid
        self.listener.on_closed = ignore  # init reports its end
        self.listener.on_refused = lambda _os_pid, why: print(f"{path.name}: {why}", flush=True)
        self.os_pid = 0
        self.route: bytes | None = None

    def send(self, data: bytes) -> None:
        # init notices a process that has ended; its successor is sent everything again.
        """Send to the process at the next flush, or drop the data while it is not connected."""
        if self.route is not None:
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
