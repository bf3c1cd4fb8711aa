"""What waits to be asked, by trees of agents that take turns. Pure."""

from __future__ import annotations


class FairQueue:
    """Numbers that wait: each tree has its turn, and in that what came first. So whoever asks a lot
    waits for itself; `at_once` are on their way together."""

    def __init__(self, at_once: int) -> None:
        self.at_once = at_once
        self.begun: set[int] = set()
        self.waiting: dict[str, dict[int, None]] = {}  # by tree, the one whose turn it is first
        self.trees: dict[int, str] = {}  # of those that wait

    def add(self, tree: str, number: int) -> None:
        self.waiting.setdefault(tree, {})[number] = None
        self.trees[number] = tree

    def begin(self) -> int | None:
        """Return what is next, on its way from now; None: nothing, or not yet."""
        if not self.waiting or len(self.begun) >= self.at_once:
            return None
        tree = next(iter(self.waiting))
        number = next(iter(self.waiting[tree]))
        self.drop(number)
        if tree in self.waiting:
            self.waiting[tree] = self.waiting.pop(tree)  # the last
        self.begun.add(number)
        return number

    def end(self, number: int) -> None:
        """It has been answered."""
        self.begun.discard(number)
        self.drop(number)

    def drop(self, number: int) -> None:
        """Nobody waits for it any more; what is on its way is so until it is answered."""
        tree = self.trees.pop(number, None)
        if tree is not None:
            del self.waiting[tree][number]
            if not self.waiting[tree]:
                del self.waiting[tree]
