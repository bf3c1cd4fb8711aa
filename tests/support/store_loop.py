"""The kernel's loop in tests of the store."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any

LIMIT = 10.0  # seconds


class Loop:
    """The kernel's loop, as far as a store needs one."""

    def __init__(self) -> None:
        self.posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def wait(self, answers: list[Any], count: int) -> list[Any]:
        while len(answers) < count:
            self.posted.get(timeout=LIMIT)()
        return answers
