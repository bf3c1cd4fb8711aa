"""The scheduler: the states of all tasks, and decisions by a policy.

A task leaves a slot only between two tokens, so a decision to preempt frees the slot at once for
whoever is dispatched after it, while the task itself is `halting` until the core confirms.

    ready -> running -> halting -> ready

A suspended task keeps its state but is not dispatched.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from aios.syscalls.errors import BadInput

from .policies import POLICIES
from .policy import Policy
from .ready_queue import ReadyQueue
from .task import State, Task


class Dispatch(NamedTuple):
    """Give a task a slot."""

    task: int


class Preempt(NamedTuple):
    """Take a task's slot away after its next token."""

    task: int


Decision = Dispatch | Preempt


@dataclass
class Scheduler:
    """Decides which tasks run on the slots. Methods that return decisions have made them."""

    policy_name: str
    quantum: int
    slots: int = 0
    tasks: dict[int, Task] = field(default_factory=dict)
    running: dict[int, Task] = field(default_factory=dict)
    clock: int = 0  # counts arrivals and entries into the ready queue
    policy: Policy = field(init=False)
    ready: ReadyQueue = field(init=False)  # without suspended tasks

    def __post_init__(self) -> None:
        self.set_policy(self.policy_name, self.quantum, 0.0)

    def set_policy(self, name: str, quantum: int, now: float) -> list[Decision]:
        """Order the ready tasks anew. Raise BadInput for a policy that is not registered."""
        if name not in POLICIES:
            raise BadInput(f"no policy {name!r}", "one of " + ", ".join(sorted(POLICIES)))
        self.policy_name, self.quantum = name, quantum
        self.policy = POLICIES[name](quantum)
        self.ready = ReadyQueue(self.policy)
        for task in self.tasks.values():
            self.policy.joined(task, now)
            if task.state == "running":
                self.policy.started(task, now)
            self._file(task)
        return self.decide(now)

    def set_slots(self, slots: int, now: float) -> list[Decision]:
        """Begin to use so many slots. With 0 the core is gone: all that ran is ready again."""
        self.slots = slots
        if slots == 0:
            for task in self.tasks.values():
                self._move(task, "ready", now)
        return self.decide(now)

    def add(self, task: Task, now: float) -> list[Decision]:
        self.clock += 1
        task.arrived, task.joined, task.since = self.clock, now, now
        self.tasks[task.id] = task
        self.policy.joined(task, now)
        self._line_up(task, now)
        self._file(task)
        return self.decide(now)

    def served(
        self, task_id: int, now: float, *, prefilled: int = 0, decoded: int = 0, again: int = 0
    ) -> None:
        """Book tokens of a task, without a decision: a step of the core is booked as a whole.
        Tokens computed `again` count for no share."""
        task = self.tasks.get(task_id)
        if task is None:
            return
        task.used += prefilled + decoded
        task.again += again
        task.prefilled += prefilled
        task.decoded += decoded
        self.policy.served(task, prefilled, decoded, now)
        if self.policy.charges and self.ready.paths:
            self.ready.refresh(self.policy.path(task))

    def halted(self, task_id: int, now: float) -> None:
        """Put a task whose preemption the core has confirmed back into the ready queue, without a
        decision."""
        task = self.tasks.get(task_id)
        if task is not None and task.state == "halting":
            self._line_up(task, now)
            self._move(task, "ready", now)

    def remove(self, task_id: int, now: float) -> list[Decision]:
        """Remove a task that has ended, or was dropped together with its slot."""
        task = self.tasks.pop(task_id, None)
        if task is not None:
            task.waiting, task.since = task.waited(now), now  # it is final
            self.ready.drop(task_id)
            if self.running.pop(task_id, None) is not None:
                self._stopped(task, now)
            self.policy.left(task, now)
        return self.decide(now)

    def suspend(self, task_ids: Iterable[int], suspended: bool, now: float) -> list[Decision]:
        """Suspend tasks, or resume them."""
        for task_id in task_ids:
            task = self.tasks.get(task_id)
            if task is not None and task.suspended != suspended:
                task.waiting, task.since = task.waited(now), now
                task.suspended = suspended
                self._file(task)
        return self.decide(now)

    def renice(self, task_ids: Iterable[int], nice: int) -> None:
        for task_id in task_ids:
            if task_id in self.tasks:
                self.tasks[task_id].nice = nice
                self._file(self.tasks[task_id])

    def upcoming(self) -> list[Task]:
        """List the tasks that are dispatched next, as many as there are slots."""
        return [self.tasks[each] for each in self.ready.first(self.slots)]

    def in_state(self, state: State) -> list[Task]:
        return [task for task in self.tasks.values() if task.state == state]

    def decide(self, now: float) -> list[Decision]:
        """Decide who runs, after all that was booked."""
        decisions: list[Decision] = [
            self._preempt(task, now) for task in list(self.running.values()) if task.suspended
        ]
        if not self.ready.paths:
            return decisions
        free = self.slots - len(self.running)
        rivals = self.ready.first(free + 1)
        for task in sorted(self.running.values(), key=self.policy.yields, reverse=True):
            if len(rivals) <= free:
                break
            if not self.policy.keep(task, self.tasks[rivals[free]], now):
                decisions.append(self._preempt(task, now))
                free += 1
                rivals = self.ready.first(free + 1)
        while self.ready.paths and len(self.running) < self.slots:
            decisions.append(self._dispatch(self.tasks[self.ready.next()], now))
        return decisions

    def _preempt(self, task: Task, now: float) -> Preempt:
        self._move(task, "halting", now)
        task.switches += 1
        return Preempt(task.id)

    def _dispatch(self, task: Task, now: float) -> Dispatch:
        self._move(task, "running", now)
        task.used = task.again = 0
        self.policy.started(task, now)
        self.ready.refresh(self.policy.path(task))
        return Dispatch(task.id)

    def _stopped(self, task: Task, now: float) -> None:
        self.policy.stopped(task, now)
        self.ready.refresh(self.policy.path(task))

    def _line_up(self, task: Task, now: float) -> None:
        self.clock += 1
        task.queued, task.queued_at = self.clock, now

    def _move(self, task: Task, state: State, now: float) -> None:
        task.waiting = task.waited(now)
        ran = task.state == "running" != state
        task.state, task.since = state, now
        self._file(task)
        if ran:
            self._stopped(task, now)

    def _file(self, task: Task) -> None:
        """Put a task where tasks of its state are."""
        self.ready.drop(task.id)
        self.running.pop(task.id, None)
        if task.state == "running":
            self.running[task.id] = task
        elif task.state == "ready" and not task.suspended:
            self.ready.put(task)
