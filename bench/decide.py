"""A decision of the agent scheduler: its time with 10, 1,000 and 10,000 calls that wait.

A step books a token of each task that runs on 8 slots, confirms who was to make room, and decides.
An answer has 100 tokens; another call comes for each that ends. The calls are of 200 agents in 50
trees. `ratio` is the time of a step with 10,000 over that with 10, of the policy of which it is
most. The peer is a heap of as many entries, of which the first goes to the end as often.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from heapq import heappush, heappushpop
from statistics import median
from typing import Any

from aios.kernel.llm.scheduler.policies import POLICIES
from aios.kernel.llm.scheduler.scheduler import Decision, Preempt, Scheduler
from aios.kernel.llm.scheduler.task import Task

from .common import Progress, Target

TARGET = Target(2.0)
SIZES = (10, 1_000, 10_000)  # calls that wait
SLOTS, QUANTUM, ANSWER_TOKENS = 8, 32, 100
ROUNDS, STEPS = 15, 400
TREES, AGENTS = 50, 4  # of each tree


class Load:
    """A scheduler with so many calls that wait."""

    def __init__(self, policy: str, waiting: int) -> None:
        self.scheduler = Scheduler(policy, QUANTUM, slots=SLOTS)
        self.halting: list[int] = []
        self.now, self.last = 0.0, 0
        for _ in range(waiting + SLOTS):
            self._add()

    def _add(self) -> None:
        self.last += 1
        program = f"/{self.last % TREES}"
        agent = f"{program}/{self.last // TREES % AGENTS}"
        task = Task(self.last, agent, program, prompt=self.last * 37 % 500)
        self._note(self.scheduler.add(task, self.now))

    def step(self) -> None:
        scheduler = self.scheduler
        self.now += 0.05
        for task in list(scheduler.running.values()):
            scheduler.served(task.id, self.now, decoded=1)
            if task.decoded == ANSWER_TOKENS:
                self._note(scheduler.remove(task.id, self.now))
                self._add()
        for task_id in self.halting:
            scheduler.halted(task_id, self.now)
        self.halting.clear()
        self._note(scheduler.decide(self.now))

    def _note(self, decisions: list[Decision]) -> None:
        self.halting += [each.task for each in decisions if isinstance(each, Preempt)]


class Peer:
    """A heap of as many entries."""

    def __init__(self, waiting: int) -> None:
        self.heap: list[tuple[float, int]] = []
        self.last = 0
        for _ in range(waiting):
            self._put()

    def _put(self) -> None:
        self.last += 1
        heappush(self.heap, (float(self.last), self.last))

    def step(self) -> None:
        for _ in range(SLOTS):
            self.last += 1
            heappushpop(self.heap, (float(self.last), self.last))


def run(
    progress: Progress, sizes: tuple[int, ...] = SIZES, rounds: int = ROUNDS, steps: int = STEPS
) -> dict[str, Any]:
    ours: dict[str, float] = {}
    ratios = []
    for policy in POLICIES:
        progress(policy)
        times = in_turns([Load(policy, size) for size in sizes], rounds, steps)
        ours |= {f"{policy}_us_{size}": each for size, each in zip(sizes, times, strict=True)}
        ratios.append(times[-1] / times[0])
    times = in_turns([Peer(size) for size in sizes], rounds, steps)
    peer = {f"heap_us_{size}": each for size, each in zip(sizes, times, strict=True)}
    return {"ratio": max(ratios), "ours": ours, "peer": peer}


def in_turns(loads: Sequence[Load | Peer], rounds: int, steps: int) -> list[float]:
    """Return the microseconds of a step of each, the median of rounds in which they take turns."""
    taken: list[list[float]] = [[] for _ in loads]
    for _ in range(rounds):
        for load, times in zip(loads, taken, strict=True):
            begin = time.perf_counter()
            for _ in range(steps):
                load.step()
            times.append((time.perf_counter() - begin) / steps * 1e6)
    return [median(times) for times in taken]
