"""Jobs that wait for a worker, in turns of the trees of agents that they come from.

A tree has one turn a round, however many jobs it has waiting. Pure.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator
from operator import attrgetter

from .jobs import Job, Pool


class JobQueue:
    """Jobs by pool, and the turns of trees."""

    def __init__(self) -> None:
        self.pools: dict[Pool, dict[int, Job]] = {}  # the oldest first
        self.waiting: Counter[str] = Counter()  # jobs, by trees
        self.rounds: dict[str, int] = {}  # the last in which a tree with waiting jobs has a turn
        self.round = 0  # the latest of which a job has begun

    def add(self, job: Job) -> None:
        """Add a job, with the next turn of its tree."""
        job.round = self.rounds[job.tree] = max(self.round, self.rounds.get(job.tree, 0)) + 1
        self.pools.setdefault(job.pool, {})[job.id] = job
        self.waiting[job.tree] += 1

    def begin(self, job: Job) -> None:
        """Remove a job that runs from now on."""
        self.round = max(self.round, job.round)
        self.remove(job)

    def remove(self, job: Job) -> None:
        """Remove a job, if it waits."""
        waiting = self.pools.get(job.pool, {})
        if waiting.pop(job.id, None) is None:
            return
        if not waiting:
            del self.pools[job.pool]
        self.waiting[job.tree] -= 1
        if not self.waiting[job.tree]:
            del self.waiting[job.tree], self.rounds[job.tree]

    def of(self, pool: Pool) -> list[Job]:
        """List the jobs that wait for a pool."""
        return list(self.pools.get(pool, {}).values())

    def all(self) -> list[Job]:
        return [job for waiting in self.pools.values() for job in waiting.values()]

    def in_turn(self, blocked: set[Pool | str]) -> Iterator[Job]:
        """Iterate over jobs by their turns; skip those whose pool or tool gets into `blocked`."""
        queues = [self._of_one(pool, blocked) for pool in self.pools]
        return heapq.merge(*queues, key=attrgetter("turn"))

    def _of_one(self, pool: Pool, blocked: set[Pool | str]) -> Iterator[Job]:
        for job in sorted(self.pools[pool].values(), key=attrgetter("turn")):
            if pool in blocked:
                return
            if job.args.name not in blocked:
                yield job
