"""A scheduler that decides after each event, as if a step of the core had no other."""

from __future__ import annotations

from typing import Any

from aios.kernel.llm.scheduler.scheduler import Decision, Dispatch, Scheduler
from aios.kernel.llm.scheduler.task import Task


class Stepwise:
    """Events of a `scheduler`, and the decisions that follow from each."""

    def __init__(self, policy: str, quantum: int, slots: int = 1) -> None:
        self.scheduler = Scheduler(policy, quantum, slots)

    def add(self, task: int, now: float = 0.0, **given: Any) -> list[Decision]:
        return self.scheduler.add(Task(task, **given), now)

    def served(
        self, task: int, decoded: int, now: float = 0.0, *, prefilled: int = 0, again: int = 0
    ) -> list[Decision]:
        self.scheduler.served(task, now, prefilled=prefilled, decoded=decoded, again=again)
        return self.scheduler.decide(now)

    def halted(self, task: int, now: float = 0.0) -> list[Decision]:
        self.scheduler.halted(task, now)
        return self.scheduler.decide(now)

    def remove(self, task: int, now: float = 0.0) -> list[Decision]:
        return self.scheduler.remove(task, now)

    def order(self, now: float = 0.0) -> list[int]:
        """End one task after the other; return those that are dispatched, in their order."""
        turns: list[int] = []
        while self.scheduler.running:
            for task in list(self.scheduler.running):
                decisions = self.remove(task, now)
                turns += [each.task for each in decisions if isinstance(each, Dispatch)]
        return turns
