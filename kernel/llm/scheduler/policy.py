"""A scheduling policy: which ready task is next, and when a running one makes room."""

from __future__ import annotations

from collections.abc import Iterator

from .task import Task

Path = tuple[str, ...]
NICE_STEP = 1.25  # how much more a step of nice counts for, as in Linux


class Policy:
    """The base of all policies: each task runs to completion, in the order of arrival. All else is
    the Scheduler's.

    Tasks are ordered below the shares that they count for: the share with the smallest `share` has
    the next turn, and of its own shares and tasks again the first. A hook is told of each event
    before anything is decided.
    """

    turn = 0.0  # that a turn adds to a share
    charges = False  # whether tokens move shares, and not turns alone

    def __init__(self, quantum: int) -> None:
        self.quantum = quantum  # tokens of a turn

    # --- order --------------------------------------------------------------------------------

    def path(self, task: Task) -> Path:
        """Return the shares that a task counts for, from the largest down."""
        return ()

    def share(self, path: Path) -> float:
        """Return the place of a share beside those with the same ones above."""
        return 0.0

    def key(self, task: Task) -> float:
        """Return a task's place among the ready ones of its share. It is asked for as the task
        enters the queue."""
        return task.arrived

    # --- preemption ---------------------------------------------------------------------------

    def keep(self, task: Task, rival: Task, now: float) -> bool:
        """Tell whether a running task keeps its slot, where `rival` waits and is next."""
        return True

    def yields(self, task: Task) -> float:
        """Return how soon a running task is to make room: the largest is asked first."""
        return -task.queued

    def in_turn(self, task: Task, quantum: float) -> bool:
        """Tell whether a turn of so many tokens goes on. It is at least as long as what was
        computed again to begin it, so half of all work is of use."""
        return task.used < max(1.0, quantum, task.again)

    # --- hooks --------------------------------------------------------------------------------

    def joined(self, task: Task, now: float) -> None:
        """A task has arrived."""

    def started(self, task: Task, now: float) -> None:
        """A turn has begun."""

    def served(self, task: Task, prefilled: int, decoded: int, now: float) -> None:
        """The core has worked on a task."""

    def stopped(self, task: Task, now: float) -> None:
        """A turn is over."""

    def left(self, task: Task, now: float) -> None:
        """A task is gone."""


def parts(path: Path) -> Iterator[Path]:
    """Iterate over a path's shares, from the largest down."""
    return (path[:depth] for depth in range(1, len(path) + 1))
