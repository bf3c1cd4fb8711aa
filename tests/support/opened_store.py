"""A store in tests, whose calls seem to return at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from store_loop import Loop
from waits import hear

from aios.kernel.store.store import Store
from aios.kernel.store.transaction import Txn
from aios.syscalls.errors import Conflict


class Opened:
    """A store, and its calls as if they returned at once."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.loop = Loop()
        self.store = Store(folder, self.loop.posted.put, **options)

    def write(self, *jobs: Callable[[Txn], Any], **options: Any) -> list[Any]:
        """Results or errors, of all, asked for at once."""
        answers: list[Any] = []
        for job in jobs:
            hear(self.store.write(job, **options), answers.append)
        return self.loop.wait(answers, len(jobs))

    def put(self, key: bytes, value: bytes) -> Any:
        return self.write(lambda txn: txn.put("memory", key, value), size=len(value))[0]

    def get(self, key: bytes) -> Any:
        return self.store.read(lambda txn: txn.get("memory", key))


def fail(txn: Txn) -> None:
    txn.put("memory", b"half", b"of it")
    raise Conflict("no")
