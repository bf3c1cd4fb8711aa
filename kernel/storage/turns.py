"""Turns at the store's writer. Whoever has much to write delays only the own tree of agents."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ..lib.coroutine import Wait
from ..lib.fair_queue import FairQueue

MAX_WRITES = 32  # calls that the writer has at once: a commit for each alone would be slow
T = TypeVar("T")


class WriteTurns:
    """Trees of agents take turns; within a tree the oldest call is first."""

    def __init__(self) -> None:
        self.queue = FairQueue(MAX_WRITES)
        self.numbers = itertools.count(1)
        self.waiting: dict[int, Wait[None]] = {}
        self.is_beginning = False

    async def take(self, tree: str, write: Callable[[], Awaitable[T]]) -> T:
        """Write in the tree's turn."""
        number = next(self.numbers)
        turn = self.waiting[number] = Wait()
        self.queue.add(tree, number)
        try:
            self._begin()
            await turn
            return await write()
        finally:
            self.waiting.pop(number, None)
            self.queue.end(number)
            self._begin()

    def _begin(self) -> None:
        if self.is_beginning:  # one that fails at once ends within the loop below
            return
        self.is_beginning = True
        while (number := self.queue.begin()) is not None:
            self.waiting.pop(number).done(None)
        self.is_beginning = False
