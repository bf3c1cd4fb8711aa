"""A queue in which trees of agents take turns. Pure."""

from __future__ import annotations


class FairQueue:
    """Numbers that wait for an answer, at most `at_once` of them begun.

    Trees take turns; within a tree the oldest is first. So a tree with many requests delays only
    itself.
    """

    def __init__(self, at_once: int) -> None:
        self.at_once = at_once
        self.begun: set[int] = set()
        self.waiting: dict[str, dict[int, None]] = {}  # by tree, in the order of turns
        self.trees: dict[int, str] = {}  # of the numbers that wait

    def add(self, tree: str, number: int) -> None:
        self.waiting.setdefault(tree, {})[number] = None
        self.trees[number] = tree

    def begin(self) -> int | None:
        """Begin the next number and return it; None if there is none, or too many have begun."""
        if not self.waiting or len(self.begun) >= self.at_once:
            return None
        tree = next(iter(self.waiting))
        number = next(iter(self.waiting[tree]))
        self.drop(number)
        if tree in self.waiting:
            self.waiting[tree] = self.waiting.pop(tree)  # to the end
        self.begun.add(number)
        return number

    def end(self, number: int) -> None:
        """Forget a number that was answered."""
        self.begun.discard(number)
        self.drop(number)

    def drop(self, number: int) -> None:
        """Take a number out of the queue. One that has begun still counts until it is answered."""
        tree = self.trees.pop(number, None)
        if tree is not None:
            del self.waiting[tree][number]
            if not self.waiting[tree]:
                del self.waiting[tree]
