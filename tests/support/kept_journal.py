"""A journal in tests, with the loop that it needs."""

from __future__ import annotations

import queue
from collections.abc import Callable
from pathlib import Path

from aios.kernel.journal import Journal
from aios.kernel.lib.encryption import AeadCodec

SMALL = 4096  # bytes of a log: it fills up often


class Kept:
    """A journal, and a loop for the functions that its thread posts."""

    def __init__(
        self, folder: Path, log_bytes: int = SMALL, codec: AeadCodec | None = None
    ) -> None:
        self.posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.journal = Journal(folder, self.posted.put, log_bytes, codec)

    def commit(self) -> None:
        while not self.journal.commit() or self.journal.is_waiting():
            self.posted.get(timeout=60)()
        self.drain()

    def drain(self) -> None:
        while not self.posted.empty():
            self.posted.get()()
