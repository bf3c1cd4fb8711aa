"""First come, first served: a task runs to completion (paper, section 3.3)."""

from __future__ import annotations

from .policy import Policy
from .task import Task


class Fifo(Policy):
    def key(self, task: Task) -> float:
        return task.arrived
