"""A task of the scheduler: a context that generates, and how far it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ready", "running", "halting"]


@dataclass
class Task:
    """A context that generates. The first six fields are its caller's, the others the scheduler's.

    Times are in seconds, of a clock that only goes forward.
    """

    id: int
    agent: str = ""  # its principal
    program: str = ""  # the agent above it that nobody but a person has started
    nice: int = 0
    prompt: int = 0  # tokens that its call appended
    limit: int = 0  # tokens that it draws at most
    suspended: bool = False
    state: State = "ready"
    arrived: int = 0  # order of arrival
    joined: float = 0.0  # time of arrival
    queued: int = 0  # order of the last entry into the ready queue
    queued_at: float = 0.0
    since: float = 0.0  # time of the last change of state
    used: int = 0  # tokens of this turn
    again: int = 0  # tokens computed again in this turn: they had left the core's memory
    prefilled: int = 0  # tokens of all turns
    decoded: int = 0
    waiting: float = 0.0
    switches: int = 0

    def waited(self, now: float) -> float:
        """Return the seconds that it was ready but did not run; time suspended does not count."""
        waits = self.state == "ready" and not self.suspended
        return self.waiting + (now - self.since if waits else 0.0)
