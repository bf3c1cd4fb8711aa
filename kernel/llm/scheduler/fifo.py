"""First come, first served: a task runs to completion (paper, section 3.3)."""

from __future__ import annotations

from .policy import Policy


class Fifo(Policy):
    """The base, as it is."""
