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
from heapq import heapify, heappop, heappush
from typing import Literal, NamedTuple, Protocol

from aios.syscalls.errors import BadInput

State = Literal["ready", "running", "halting"]


class Dispatch(NamedTuple):
    """Give a task a slot."""

    task: int


class Preempt(NamedTuple):
    """Take a task's slot away after its next token."""

    task: int


Decision = Dispatch | Preempt


@dataclass
class Task:
    """A context that generates."""

    id: int
    nice: int
    arrived: int  # order of arrival
    since: float  # time of the last change of state
    owner: str = ""  # whom its turns count for
    queued: int = 0  # order of the last entry into the ready queue
    round: int = 0  # of its owner, that this turn is in
    state: State = "ready"
    suspended: bool = False
    used: int = 0  # tokens of this turn
    again: int = 0  # tokens computed again in this turn: they had left the core's memory
    waiting: float = 0.0
    switches: int = 0

    def waited(self, now: float) -> float:
        """Return the seconds that it was ready but did not run; time suspended does not count."""
        waits = self.state == "ready" and not self.suspended
        return self.waiting + (now - self.since if waits else 0.0)


class Policy(Protocol):
    """The decisions of a scheduling policy; the Scheduler does the rest."""

    def order(self, task: Task) -> float:
        """Return a task's place: the ready task with the smallest is dispatched next."""

    def expired(self, task: Task, quantum: int) -> bool:
        """Tell whether a running task must make room for one that waits."""


class Fifo:
    """First come, first served: a task runs to completion (paper, section 3.3)."""

    def order(self, task: Task) -> float:
        return task.arrived

    def expired(self, task: Task, quantum: int) -> bool:
        return False


class RoundRobin:
    """Turns of a quantum of tokens; nice changes the quantum by a quarter a step, as in Linux.

    A turn is at least as long as what was computed again to begin it, so half of all work is of
    use. An owner has one turn a round, however many of its tasks wait.
    """

    def order(self, task: Task) -> float:
        return task.round

    def expired(self, task: Task, quantum: int) -> bool:
        return task.used >= max(1.0, quantum * 1.25**-task.nice, task.again)


class Queue:
    """Ready tasks in the order of a policy. A step costs the logarithm of their number at most."""

    def __init__(self) -> None:
        self.orders: dict[int, float] = {}
        self._heap: list[tuple[float, int]] = []  # with entries outdated by `orders`

    def __len__(self) -> int:
        return len(self.orders)

    def put(self, task_id: int, order: float) -> None:
        self.orders[task_id] = order
        heappush(self._heap, (order, task_id))

    def drop(self, task_id: int) -> None:
        self.orders.pop(task_id, None)
        if len(self._heap) > 2 * len(self.orders) + 64:
            self._heap = [(order, each) for each, order in self.orders.items()]
            heapify(self._heap)

    def first(self, count: int) -> list[int]:
        found: dict[int, float] = {}
        while self._heap and len(found) < count:
            order, task_id = heappop(self._heap)
            if self.orders.get(task_id) == order:
                found[task_id] = order
        for task_id, order in found.items():
            heappush(self._heap, (order, task_id))
        return list(found)


@dataclass
class Owner:
    """An agent that tasks belong to, with all below it."""

    tasks: int = 0
    round: int = 0  # the last that one of its tasks has its turn in


POLICIES: dict[str, Callable[[], Policy]] = {"fifo": Fifo, "rr": RoundRobin}


@dataclass
class Scheduler:
    """Decides which tasks run on the slots. Methods that change something return decisions."""

    policy_name: str
    quantum: int
    slots: int = 0
    tasks: dict[int, Task] = field(default_factory=dict)
    owners: dict[str, Owner] = field(default_factory=dict)  # of tasks
    clock: int = 0  # counts arrivals and entries into the ready queue
    round: int = 0  # the latest that a turn has begun in
    ready: Queue = field(default_factory=Queue)  # without suspended tasks
    running: dict[int, Task] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.set_policy(self.policy_name, self.quantum, 0.0)

    def set_policy(self, name: str, quantum: int, now: float) -> list[Decision]:
        """Order the ready tasks anew. Raise BadInput for a policy that is not registered."""
        if name not in POLICIES:
            raise BadInput(f"no policy {name!r}", "one of " + ", ".join(sorted(POLICIES)))
        self.policy_name, self.quantum = name, quantum
        self.policy = POLICIES[name]()
        self.ready = Queue()
        for task in self.tasks.values():
            self._file(task)
        return self._decide(now)

    def set_slots(self, slots: int, now: float) -> list[Decision]:
        """Begin to use so many slots. With 0 the core is gone: all that ran is ready again."""
        self.slots = slots
        if slots == 0:
            for task in self.tasks.values():
                self._move(task, "ready", now)
        return self._decide(now)

    def add(
        self, task_id: int, nice: int, now: float, *, owner: str = "", suspended: bool = False
    ) -> list[Decision]:
        task = Task(task_id, nice, self.clock + 1, now, owner, suspended=suspended)
        self.tasks[task_id] = task
        self.owners.setdefault(owner, Owner()).tasks += 1
        self._line_up(task)
        self._file(task)
        return self._decide(now)

    def served(self, task_id: int, tokens: int, now: float, *, again: int = 0) -> list[Decision]:
        """Count tokens prefilled or decoded for a task, and those computed `again`."""
        task = self.tasks.get(task_id)
        if task is not None:
            task.used += tokens
            task.again += again
        return self._decide(now)

    def halted(self, task_id: int, now: float) -> list[Decision]:
        """Put a task whose preemption the core has confirmed back into the ready queue."""
        task = self.tasks.get(task_id)
        if task is not None and task.state == "halting":
            self._line_up(task)
            self._move(task, "ready", now)
        return self._decide(now)

    def remove(self, task_id: int, now: float) -> list[Decision]:
        """Remove a task that has ended, or was dropped together with its slot."""
        task = self.tasks.pop(task_id, None)
        if task is not None:
            self._move(task, task.state, now)  # its waiting time is final
            self.ready.drop(task_id)
            self.running.pop(task_id, None)
            self.owners[task.owner].tasks -= 1
            if not self.owners[task.owner].tasks:
                del self.owners[task.owner]
        return self._decide(now)

    def suspend(self, task_ids: Iterable[int], suspended: bool, now: float) -> list[Decision]:
        """Suspend tasks, or resume them."""
        for task_id in task_ids:
            task = self.tasks.get(task_id)
            if task is not None and task.suspended != suspended:
                self._move(task, task.state, now)
                task.suspended = suspended
                self._file(task)
        return self._decide(now)

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

    def _decide(self, now: float) -> list[Decision]:
        decisions: list[Decision] = []
        waiting = len(self.ready) - (self.slots - len(self.running))
        for task in sorted(self.running.values(), key=lambda task: task.queued):
            if task.suspended or (waiting > 0 and self.policy.expired(task, self.quantum)):
                waiting -= 1
                self._move(task, "halting", now)
                task.switches += 1
                decisions.append(Preempt(task.id))
        for each in self.ready.first(self.slots - len(self.running)):
            task = self.tasks[each]
            self._move(task, "running", now)
            task.used = task.again = 0
            self.round = max(self.round, task.round)
            decisions.append(Dispatch(task.id))
        return decisions

    def _line_up(self, task: Task) -> None:
        """Queue a task behind its owner's others, in the next round without a turn of the owner."""
        self.clock += 1
        owner = self.owners[task.owner]
        task.queued = self.clock
        task.round = owner.round = max(self.round, owner.round) + 1

    def _move(self, task: Task, state: State, now: float) -> None:
        task.waiting = task.waited(now)
        task.state, task.since = state, now
        self._file(task)

    def _file(self, task: Task) -> None:
        """Put a task where tasks of its state are."""
        self.ready.drop(task.id)
        self.running.pop(task.id, None)
        if task.state == "running":
            self.running[task.id] = task
        elif task.state == "ready" and not task.suspended:
            self.ready.put(task.id, self.policy.order(task))
