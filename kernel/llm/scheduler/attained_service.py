"""Least attained service of programs: Autellix's PLAS (Luo et al., 2025).

A program, which is an agent with all below it, sinks by what all its calls have had. So the short
ones are served first, and a call of a long program does not pass for a short one.
"""

from __future__ import annotations

from .levels import Levels
from .task import Task

MAX_PROGRAMS = 4096  # of which something is remembered


class AttainedService(Levels):
    def __init__(self, quantum: int) -> None:
        super().__init__(quantum)
        self.attained: dict[str, float] = {}  # tokens by program: those served last are last

    def level(self, task: Task) -> int:
        return self.level_of(self.attained.get(task.program, 0.0))

    def served(self, task: Task, prefilled: int, decoded: int, now: float) -> None:
        known = self.attained.pop(task.program, 0.0)
        self.attained[task.program] = known + prefilled + decoded
        if len(self.attained) > MAX_PROGRAMS:
            del self.attained[next(iter(self.attained))]
