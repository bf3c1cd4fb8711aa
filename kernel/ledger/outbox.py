"""The outbox: what leaves the kernel, which waits for the commit of what it follows from."""

from __future__ import annotations

from collections.abc import Callable

from ..core.protocol import Halted, Out
from ..init.protocol import ToInit
from ..journal import Journal


class Outbox:
    """Rows that parts write themselves, and what they send. `commit` writes the one, then releases
    the other.

    `send` sends to a caller at once, `tell_init` to init; `is_safe` tells whether the intents of
    all that goes to init would survive a power cut.
    """

    def __init__(
        self, journal: Journal, is_safe: Callable[[], bool], send: Callable[[bytes, bytes], None],
        tell_init: Callable[[ToInit], None],
    ) -> None:  # fmt: skip
        self.journal, self.is_safe = journal, is_safe
        self.send, self.tell_init = send, tell_init
        self.work: dict[int, list[Out | Halted]] = {}  # reports of this turn, by context
        self.synced: list[tuple[bytes, bytes]] = []
        self.to_init: list[ToInit] = []
        self.waiting = 0  # syncs under way: later frames have to wait for them

    # --- rows -------------------------------------------------------------------------------------

    def check_room(self) -> None:
        """Refuse to begin something new on a full disk. Raises DiskFull."""
        self.journal.check_room()

    def put(self, key: str, item: bytes | None) -> None:
        """Write a row; with None, delete it."""
        if item is None:
            self.journal.delete(key)
        else:
            self.journal.put(key, item)

    def keep_reply(self, pid: int, call_id: int, data: bytes | None) -> None:
        self.put(f"reply/{pid}/{call_id}", data)

    def note_mail(self, pid: int, number: int, mail: bytes | None) -> None:
        self.put(f"mail/{pid}/{number}", mail)

    def note_grant(self, number: int, row: bytes | None) -> None:
        self.put(f"grant/{number}", row)

    def note_job(self, number: int, row: bytes | None) -> None:
        self.put(f"job/{number}", row)

    def note_work(self, ctx: int, what: Out | Halted) -> None:
        """Note what the core reports of a generating context."""
        self.work.setdefault(ctx, []).append(what)

    # --- what leaves ------------------------------------------------------------------------------

    def send_synced(self, route: bytes, data: bytes) -> None:
        """Send a reply once the state that it follows from would survive a power cut."""
        self.synced.append((route, data))

    def send_init(self, frame: ToInit) -> None:
        """Send a frame to init at the end of the turn, or once the intent of its call is
        durable.
        """
        self.to_init.append(frame)

    def commit(self) -> bool:
        """Write all rows, and release what follows from them. Return False if there is no room
        now."""
        if not self.journal.commit():
            return False
        if self.to_init or self.synced:
            self._release(self.to_init, self.synced)
            self.to_init, self.synced = [], []
        return True

    def _release(self, frames: list[ToInit], replies: list[tuple[bytes, bytes]]) -> None:
        """Send now or after a sync, but never before what was released earlier."""

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
