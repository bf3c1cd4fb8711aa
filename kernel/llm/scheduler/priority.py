"""Strict priority by nice, with aging: the most urgent task runs, from the next token on.

A step of nice is worth AGING_S seconds of waiting. So a task stands behind those alone that came
before it or at most 39 * AGING_S seconds after it, whatever their nice.
"""

from __future__ import annotations

from .policy import Policy
from .task import Task

AGING_S = 5.0


class Priority(Policy):
    def key(self, task: Task) -> float:
        return task.joined + AGING_S * task.nice

    def keep(self, task: Task, rival: Task, now: float) -> bool:
        return self.key(task) <= self.key(rival)

    def yields(self, task: Task) -> float:
        return self.key(task)
