"""Turns of a quantum of tokens (paper, section 3.3): of the trees of agents, of the agents of a
tree, of the contexts of an agent."""

from __future__ import annotations

from .policy import NICE_STEP, Path, Policy
from .shares import ShareCounters
from .task import Task


class RoundRobin(Policy):
    """Nice changes the quantum by a quarter a step. A tree has one turn a round, however many
    agents it has, and so has an agent, however many of its contexts wait."""

    turn = 1.0

    def __init__(self, quantum: int) -> None:
        super().__init__(quantum)
        self.turns = ShareCounters()

    def path(self, task: Task) -> Path:
        return task.program, task.agent

    def share(self, path: Path) -> float:
        return self.turns.had[path]

    def key(self, task: Task) -> float:
        return task.queued

    def keep(self, task: Task, rival: Task, now: float) -> bool:
        return self.in_turn(task, self.quantum * NICE_STEP**-task.nice)

    def joined(self, task: Task, now: float) -> None:
        self.turns.join(self.path(task))

    def started(self, task: Task, now: float) -> None:
        self.turns.start(self.path(task))
        self.turns.charge(self.path(task), 1.0)

    def left(self, task: Task, now: float) -> None:
        self.turns.leave(self.path(task))
