"""Queues of several levels: a higher level is served first, a task sinks by what it has had."""

from __future__ import annotations

from abc import ABC, abstractmethod

from .policy import Policy
from .task import Task

LEVELS = 8
AGING_S = 10.0  # a task that has waited so long stands as one of the next level that comes then


class Levels(Policy, ABC):
    """The base of policies with levels, of which each has turns twice as long as the one above."""

    @abstractmethod
    def level(self, task: Task) -> int:
        """Return the level of a task, 0 to LEVELS - 1."""

    def level_of(self, tokens: float) -> int:
        """Return the first level of which a turn has so many tokens."""
        return min(LEVELS - 1, max(0, int(tokens / self.quantum)).bit_length())

    def key(self, task: Task) -> float:
        return task.queued_at + AGING_S * self.level(task)

    def keep(self, task: Task, rival: Task, now: float) -> bool:
        """A task makes room at the end of its turn, and at once for one of a higher level, unless
        its own waiting stands against that as in the queue: else an old task would have a token,
        and wait as long again."""
        if self.level(rival) < self.level(task) and self.key(rival) < self.key(task):
            return task.used < task.again
        return self.in_turn(task, self.quantum * 2 ** self.level(task))

    def yields(self, task: Task) -> float:
        return self.level(task)
