"""The agent scheduler: which contexts hold the core's slots (paper, section 3.3).

Pure: events in, decisions out, the time passed in. A task is a context that generates. It leaves
a slot only between two tokens, so a decision to preempt frees the slot at once for whoever is
dispatched after it, while the task itself is `halting` until the core confirms.

    ready -> running -> halting -> ready

A suspended task keeps its state but is not dispatched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from aios.syscalls.errors import BadInput

State = Literal["ready", "running", "halting"]


class Dispatch(NamedTuple):
    task: int


class Preempt(NamedTuple):
    task: int


Decision = Dispatch | Preempt


@dataclass
class Task:
    id: int
    nice: int
    arrived: int  # order of arrival
    queued: int  # order of the last entry into the ready queue
    since: float  # time of the last change of state
    state: State = "ready"
    suspended: bool = False
    used: int = 0  # tokens of this turn
    waiting: float = 0.0
    switches: int = 0

    def waited(self, now: float) -> float:
        """Seconds ready but not running; time spent suspended is not waiting."""
        waits = self.state == "ready" and not self.suspended
        return self.waiting + (now - self.since if waits else 0.0)


class Policy(Protocol):
    """What a scheduling policy decides; the rest is the Scheduler's."""

    def order(self, task: Task) -> float:
        """The ready task with the smallest is dispatched next."""

    def expired(self, task: Task, quantum: int) -> bool:
        """Whether a running task must make room for one that waits."""


class Fifo:
    """First come, first served: a task runs to completion (paper, section 3.3)."""

    def order(self, task: Task) -> float:
        return task.arrived

    def expired(self, task: Task, quantum: int) -> bool:
        return False


class RoundRobin:
    """Turns of a quantum of tokens; nice changes the quantum by a quarter a step, as in Linux."""

    def order(self, task: Task) -> float:
        return task.queued

    def expired(self, task: Task, quantum: int) -> bool:
        return task.used >= max(1.0, quantum * 1.25**-task.nice)


POLICIES: dict[str, Callable[[], Policy]] = {"fifo": Fifo, "rr": RoundRobin}


@dataclass
class Scheduler:
    policy_name: str
    quantum: int
    slots: int = 0
    tasks: dict[int, Task] = field(default_factory=dict)
    clock: int = 0  # counts arrivals and entries into the ready queue

    def __post_init__(self) -> None:
        self.set_policy(self.policy_name, self.quantum, 0.0)

    def set_policy(self, name: str, quantum: int, now: float) -> list[Decision]:
        """Raises BadInput for a policy that is not registered."""
        if name not in POLICIES:
            raise BadInput(f"no policy {name!r}", "one of " + ", ".join(sorted(POLICIES)))
        self.policy_name, self.quantum = name, quantum
        self.policy = POLICIES[name]()
        return self._decide(now)

    def set_slots(self, slots: int, now: float) -> list[Decision]:
        """The core is ready with `slots`, or is gone: all that ran is ready again, in order."""
        self.slots = slots
        if slots == 0:
            for task in self.tasks.values():
                self._move(task, "ready", now)
        return self._decide(now)

    def add(
        self, task_id: int, nice: int, now: float, *, suspended: bool = False
    ) -> list[Decision]:
        self.clock += 1
        self.tasks[task_id] = Task(task_id, nice, self.clock, self.clock, now, suspended=suspended)
        return self._decide(now)

    def served(self, task_id: int, tokens: int, now: float) -> list[Decision]:
        """`tokens` were prefilled or decoded for a task."""
        task = self.tasks.get(task_id)
        if task is not None:
            task.used += tokens
        return self._decide(now)

    def halted(self, task_id: int, now: float) -> list[Decision]:
        """The core confirms a preemption."""
        task = self.tasks.get(task_id)
        if task is not None and task.state == "halting":
            self.clock += 1
            task.queued = self.clock
            self._move(task, "ready", now)
        return self._decide(now)

    def remove(self, task_id: int, now: float) -> list[Decision]:
        """A task has ended, or was dropped together with its slot."""
        task = self.tasks.pop(task_id, None)
        if task is not None:
            self._move(task, task.state, now)  # its waiting time is final
        return self._decide(now)

    def suspend(self, task_ids: Iterable[int], now: float) -> list[Decision]:
        return self._suspend(task_ids, True, now)

    def resume(self, task_ids: Iterable[int], now: float) -> list[Decision]:
        return self._suspend(task_ids, False, now)

    def renice(self, task_ids: Iterable[int], nice: int) -> None:
        for task_id in task_ids:
            if task_id in self.tasks:
                self.tasks[task_id].nice = nice

    def upcoming(self) -> list[Task]:
        """Who is dispatched next, as many as there are slots."""
        return self._ready()[: self.slots]

    def in_state(self, state: State) -> list[Task]:
        return [task for task in self.tasks.values() if task.state == state]

    def _suspend(self, task_ids: Iterable[int], suspended: bool, now: float) -> list[Decision]:
        for task_id in task_ids:
            task = self.tasks.get(task_id)
            if task is not None and task.suspended != suspended:
                self._move(task, task.state, now)
                task.suspended = suspended
        return self._decide(now)

    def _decide(self, now: float) -> list[Decision]:
        decisions: list[Decision] = []
        ready = self._ready()
        running = self.in_state("running")
        waiting = len(ready) - (self.slots - len(running))
        for task in sorted(running, key=lambda task: task.queued):
            if task.suspended or (waiting > 0 and self.policy.expired(task, self.quantum)):
                waiting -= 1
                self._move(task, "halting", now)
                task.switches += 1
                decisions.append(Preempt(task.id))
        free = self.slots - len(self.in_state("running"))
        for task in ready[: max(0, free)]:
            self._move(task, "running", now)
            task.used = 0
            decisions.append(Dispatch(task.id))
        return decisions

    def _ready(self) -> list[Task]:
        ready = [task for task in self.in_state("ready") if not task.suspended]
        return sorted(ready, key=self.policy.order)

    def _move(self, task: Task, state: State, now: float) -> None:
        task.waiting = task.waited(now)
        task.state, task.since = state, now
