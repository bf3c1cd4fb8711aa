"""Counters and timings since boot."""

from __future__ import annotations

from collections import deque

from aios.syscalls.kernel import Summary

from ..core.protocol import Counters

MAX_SAMPLES = 10_000  # of a series, the newest


class Series:
    """The newest values of a timing."""

    def __init__(self) -> None:
        self.values: deque[float] = deque(maxlen=MAX_SAMPLES)
        self.count = 0

    def add(self, value: float) -> None:
        self.values.append(value)
        self.count += 1

    def summary(self) -> Summary:
        """Sum up the values that are kept; zeros when there are none."""
        ranked = sorted(self.values)
        if not ranked:
            return Summary(count=0, mean=0.0, p50=0.0, p99=0.0, max=0.0)
        return Summary(
            count=self.count,
            mean=sum(ranked) / len(ranked),
            p50=ranked[len(ranked) // 2],
            p99=ranked[len(ranked) * 99 // 100],
            max=ranked[-1],
        )


class Statistics:
    """Counters of generations, those of the core, and timings in seconds."""

    def __init__(self) -> None:
        self.generations = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.switches = 0
        self.core = Counters()
        self.waiting, self.turnaround, self.ttft = Series(), Series(), Series()
