"""The outbox: what leaves the kernel, which waits for the commit of what it follows from."""

from __future__ import annotations

from collections.abc import Callable

from ..init.protocol import ToInit
from ..journal import Journal


class Outbox:
    """Frames to init, and replies that wait for a sync. `release` sends them after a commit.

    `send` sends to a caller at once, `tell_init` to init; `is_safe` tells whether the intents of
    all that goes to init would survive a power cut.
    """

    def __init__(
        self, journal: Journal, is_safe: Callable[[], bool], send: Callable[[bytes, bytes], None],
        tell_init: Callable[[ToInit], None],
    ) -> None:  # fmt: skip
        self.journal, self.is_safe = journal, is_safe
        self.send, self.tell_init = send, tell_init
        self.synced: list[tuple[bytes, bytes]] = []
        self.to_init: list[ToInit] = []
        self.waiting = 0  # syncs under way: later frames have to wait for them

    def send_synced(self, route: bytes, data: bytes) -> None:
        """Send a reply once the state that it follows from would survive a power cut."""
        self.synced.append((route, data))

    def send_init(self, frame: ToInit) -> None:
        """Send a frame to init at the end of the turn, or once the intent of its call is
        durable.
        """
        self.to_init.append(frame)

    def release(self) -> None:
        """Send now or after a sync, but never before what was released earlier."""
        frames, self.to_init = self.to_init, []
        replies, self.synced = self.synced, []

        def out() -> None:
            for frame in frames:
                self.tell_init(frame)
            for route, data in replies:
                self.send(route, data)

        def synced() -> None:
            self.waiting -= 1
            out()

        if replies or self.waiting or not self.is_safe():
            self.waiting += 1
            self.journal.sync(synced)
        else:
            out()
