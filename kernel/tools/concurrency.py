"""Limits on how many jobs of a tool run at once, and locks that tools share. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from aios.syscalls.tool import Spec


class Concurrency:
    """Counts running jobs, and holds their locks."""

    def __init__(self) -> None:
        self.running: Counter[str] = Counter()  # jobs, by their tools
        self.locks: set[str] = set()  # held by these jobs

    def may_run(self, spec: Spec) -> bool:
        """Tell whether one more job of a tool may run now."""
        return self.running[spec.name] < spec.limit and spec.exclusive not in self.locks

    def begin(self, spec: Spec) -> None:
        self.running[spec.name] += 1
        if spec.exclusive:
            self.locks.add(spec.exclusive)

    def end(self, spec: Spec) -> None:
        """Free a job's place and lock, once its worker has stopped it."""
        self.running[spec.name] -= 1
        self.locks.discard(spec.exclusive)

    def check(self, specs: Iterable[Spec]) -> list[str]:
        """List each broken invariant in words, where jobs of these tools run."""
        specs, problems = list(specs), []
        if +self.running != Counter(spec.name for spec in specs):
            problems.append(f"of tools that run these are counted: {dict(+self.running)}")
        if self.locks != {spec.exclusive for spec in specs if spec.exclusive}:
            problems.append(f"these locks are held: {sorted(self.locks)}")
        return problems
