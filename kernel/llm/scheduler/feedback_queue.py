"""A feedback queue that is joined below its top: FastServe's skip-join MLFQ (Wu et al., 2023).

A task begins at the level of which a turn is as long as its prompt, and sinks by one with each turn
that it has used up.
"""

from __future__ import annotations

from .levels import LEVELS, Levels
from .task import Task


class FeedbackQueue(Levels):
    def __init__(self, quantum: int) -> None:
        super().__init__(quantum)
        self.levels: dict[int, int] = {}  # by task
        self.left_of: dict[int, float] = {}  # tokens until it sinks

    def level(self, task: Task) -> int:
        return self.levels[task.id]

    def joined(self, task: Task, now: float) -> None:
        self._enter(task, self.level_of(task.prompt + task.decoded))

    def served(self, task: Task, prefilled: int, decoded: int, now: float) -> None:
        self.left_of[task.id] -= prefilled + decoded
        if self.left_of[task.id] <= 0:
            self._enter(task, min(LEVELS - 1, self.levels[task.id] + 1))

    def left(self, task: Task, now: float) -> None:
        del self.levels[task.id], self.left_of[task.id]

    def _enter(self, task: Task, level: int) -> None:
        self.levels[task.id] = level
        self.left_of[task.id] = self.quantum * 2**level
