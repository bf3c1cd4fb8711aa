"""The policies that ship, by the names that people give."""

from __future__ import annotations

from .attained_service import AttainedService
from .fair_share import FairShare
from .feedback_queue import FeedbackQueue
from .fifo import Fifo
from .policy import Policy
from .priority import Priority
from .round_robin import RoundRobin
from .shortest_job import ShortestJob

POLICIES: dict[str, type[Policy]] = {
    "fifo": Fifo,
    "rr": RoundRobin,
    "priority": Priority,
    "sjf": ShortestJob,
    "mlfq": FeedbackQueue,
    "fair": FairShare,
    "las": AttainedService,
}
