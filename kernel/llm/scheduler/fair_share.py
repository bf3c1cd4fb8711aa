"""Virtual token counters: who has had least is next (Sheng et al., OSDI'24).

Trees of agents share the model's work equally, the agents of a tree what the tree gets, and the
contexts of an agent what that gets, in turns of a quantum. A token of a prompt counts 1, one that
is drawn 2, as in the paper; each step of nice makes tokens count a quarter more.
"""

from __future__ import annotations

from .policy import NICE_STEP, Path, Policy, parts
from .shares import ShareCounters
from .task import Task

PREFILL, DECODE = 1.0, 2.0  # that a token counts


class FairShare(Policy):
    """A turn counts as had when it begins, and is settled by what it comes to. So slots that are
    free at once go to several shares, and not all to the one that has had least."""

    charges = True

    def __init__(self, quantum: int) -> None:
        super().__init__(quantum)
        self.turn = DECODE * quantum
        self.tokens = ShareCounters()
        self.advances: dict[int, tuple[Path, float]] = {}  # of tasks that run
        self.ahead: dict[Path, float] = {}  # their sums

    def path(self, task: Task) -> Path:
        return task.program, task.agent

    def share(self, path: Path) -> float:
        return self.tokens.had[path] + self.ahead.get(path, 0.0)

    def key(self, task: Task) -> float:
        return task.queued

    def keep(self, task: Task, rival: Task, now: float) -> bool:
        """A slot goes to another share once the two are apart by more than the turn that ends and
        the one that begins."""
        ours, theirs = self.path(task), self.path(rival)
        for our, their in zip(parts(ours), parts(theirs), strict=True):
            if our != their:
                apart = self.share(our) - self.share(their)
                turns = self.cost_of_turn(task) + self.cost_of_turn(rival)
                return apart <= turns or task.used < task.again
        return self.in_turn(task, self.quantum)

    def cost_of_turn(self, task: Task) -> float:
        return self.turn * NICE_STEP**task.nice

    def yields(self, task: Task) -> float:
        return self.share(self.path(task)[:1])

    def joined(self, task: Task, now: float) -> None:
        self.tokens.join(self.path(task))

    def started(self, task: Task, now: float) -> None:
        path = self.path(task)
        self.tokens.start(path)
        self.advances[task.id] = path, self.cost_of_turn(task)
        self._advance(path, self.cost_of_turn(task))

    def served(self, task: Task, prefilled: int, decoded: int, now: float) -> None:
        cost = PREFILL * prefilled + DECODE * decoded
        self.tokens.charge(self.path(task), cost * NICE_STEP**task.nice)

    def stopped(self, task: Task, now: float) -> None:
        path, amount = self.advances.pop(task.id)
        self._advance(path, -amount)

    def left(self, task: Task, now: float) -> None:
        self.tokens.leave(self.path(task))

    def _advance(self, path: Path, amount: float) -> None:
        for part in parts(path):
            self.ahead[part] = self.ahead.get(part, 0.0) + amount
            if not any(each[: len(part)] == part for each, _ in self.advances.values()):
                del self.ahead[part]
