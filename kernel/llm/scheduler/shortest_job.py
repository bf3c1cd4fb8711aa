"""The shortest job first, as far as one can tell: answers of an agent are about as long as its last
ones were. A task runs to completion.

A task that has waited for AGING_S seconds stands before all that come then, so none starves.
"""

from __future__ import annotations

from .policy import Policy
from .task import Task

AGING_S = 300.0
FIRST_GUESS = 128  # tokens that an agent draws of which nothing is known
PREFILL = 0.1  # the time of a token of a prompt, in that of one that is drawn
NEW_SHARE = 0.25  # of the newest answer in the mean
MAX_TOKENS = 4096  # a job of more counts as one of so many
MAX_AGENTS = 4096  # of which something is remembered


class ShortestJob(Policy):
    def __init__(self, quantum: int) -> None:
        super().__init__(quantum)
        self.lengths: dict[str, float] = {}  # mean, in tokens, by agent: the newest ones are last

    def key(self, task: Task) -> float:
        return task.joined + AGING_S * min(1.0, self.expected(task) / MAX_TOKENS)

    def expected(self, task: Task) -> float:
        """Return the work that is left of a task, in tokens drawn, as far as one can tell."""
        length = self.lengths.get(task.agent, FIRST_GUESS)
        length = min(length, task.limit) if task.limit else length
        return PREFILL * max(0, task.prompt - task.prefilled) + max(1.0, length - task.decoded)

    def left(self, task: Task, now: float) -> None:
        if task.decoded:
            known = self.lengths.pop(task.agent, float(task.decoded))
            self.lengths[task.agent] = known + NEW_SHARE * (task.decoded - known)
            if len(self.lengths) > MAX_AGENTS:
                del self.lengths[next(iter(self.lengths))]
