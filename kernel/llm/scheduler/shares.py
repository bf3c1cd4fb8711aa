"""Counters of what each share of the model's time has had."""

from __future__ import annotations

from collections import Counter
from heapq import nlargest

from .policy import Path, parts

MAX_IDLE = 1024  # shares without tasks that are remembered: those that have had most


class ShareCounters:
    """Counters by share, in a unit of the policy.

    A share that had no task begins again no lower than the one that had the last turn beside it:
    what it did not use, it has not saved (the lift of VTC, OSDI'24, section 4).
    """

    def __init__(self) -> None:
        self.had: dict[Path, float] = {}
        self.tasks: Counter[Path] = Counter()  # alive, also of ()
        self.floor: dict[Path, float] = {}  # of the shares below a path

    def join(self, path: Path) -> None:
        """Count another task of a share, and of those that it is in."""
        self.tasks[()] += 1
        for part in parts(path):
            if not self.tasks[part]:
                self.had[part] = max(self.had.get(part, 0.0), self.floor.get(part[:-1], 0.0))
            self.tasks[part] += 1

    def leave(self, path: Path) -> None:
        own = list(parts(path))
        self.tasks.subtract([(), *own])
        for part in reversed(own):
            if not self.tasks[part]:
                if not self.tasks[part[:-1]]:  # the last one: who comes next begins where it was
                    self._lift(part)
                del self.tasks[part]
                self.floor.pop(part, None)
        if len(self.had) > 2 * (len(self.tasks) + MAX_IDLE):
            self._forget()

    def start(self, path: Path) -> None:
        """Note that a share has the next turn."""
        for part in parts(path):
            self._lift(part)

    def charge(self, path: Path, amount: float) -> None:
        for part in parts(path):
            self.had[part] += amount

    def _lift(self, part: Path) -> None:
        above = part[:-1]
        self.floor[above] = max(self.floor.get(above, 0.0), self.had[part])

    def _forget(self) -> None:
        """Drop the counters of shares without tasks that a lift would raise anyway, of those below
        them, and beyond so many the lowest."""
        idle = (
            path
            for path, had in self.had.items()
            if path not in self.tasks and had > self.floor.get(path[:-1], 0.0)
            and path[:-1] in self.tasks
        )  # fmt: skip
        kept = {*nlargest(MAX_IDLE, idle, key=self.had.__getitem__), *self.tasks}
        self.had = {path: had for path, had in self.had.items() if path in kept}
