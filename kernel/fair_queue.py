"""What waits to be asked, by trees of agents that take turns. Pure."""

from __future__ import annotations

from collections import deque


class FairQueue:
    """Numbers that wait: each tree has its turn, and in that what came first. So whoever asks a lot
    waits for itself; `at_once` are on their way together."""

    def __init__(self, at_once: int) -> None:
        self.at_once = at_once
        self.begun: set[int] = set()
        self.waiting: dict[str, deque[int]] = {}  # by tree, the one whose turn it is first

    def add(self, tree: str, number: int) -> None:
        self.waiting.setdefault(tree, deque()).append(number)

    def begin(self) -> int | None:
        """Return what is next, on its way from now; None: nothing, or not yet."""
        if not self.waiting or len(self.begun) >= self.at_once:
            return None
        tree = next(iter(self.waiting))
        queue = self.waiting.pop(tree)
        number = queue.popleft()
        if queue:
            self.waiting[tree] = queue
        self.begun.add(number)
        return number

    def end(self, number: int) -> None:
        self.begun.discard(number)
