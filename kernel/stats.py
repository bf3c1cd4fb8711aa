"""Counters and timings since boot, and those who follow events as they happen."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from aios.syscalls.messages import Event, Summary

from .core.protocol import Counters
from .followers import Followers
from .trap import Call

KEPT = 10_000  # generations whose timings are summed up


class Series:
    def __init__(self) -> None:
        self.values: deque[float] = deque(maxlen=KEPT)
        self.count = 0

    def add(self, value: float) -> None:
        self.values.append(value)
        self.count += 1

    def summary(self) -> Summary:
        """Over the last KEPT values; zeros when there are none."""
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
    def __init__(self) -> None:
        self.generations = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.switches = 0
        self.core = Counters()
        self.waiting, self.turnaround, self.ttft = Series(), Series(), Series()


class EventLog:
    """Publishes events to the calls that follow them, and has `note` record them, all but those of
    generations, of which the calls are recorded."""

    def __init__(self, note: Callable[[str, int, dict[str, Any]], None]) -> None:
        self.note = note
        self.followers: Followers[frozenset[str]] = Followers()

    def follow(self, call: Call, kinds: list[str]) -> None:
        self.followers.add(call, frozenset(kinds))

    def publish(self, kind: str, what: str, pid: int = 0, **detail: Any) -> None:
        if kind != "generation":
            self.note(f"{kind}.{what}", pid, detail)
        if not self.followers:
            return
        event = Event(time=time.time(), kind=kind, what=what, pid=pid, detail=detail)
        for call, kinds in self.followers:
            if not kinds or kind in kinds:
                call.piece(event)
