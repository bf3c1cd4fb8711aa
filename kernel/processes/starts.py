"""Starts of processes by init, which forks one after the other: trees of agents take turns."""

from __future__ import annotations

from collections.abc import Callable

from ..init.protocol import StartAgent
from ..lib.fair_queue import FairQueue

MAX_STARTS = 4  # that init has at once


class Starts:
    """`to_init` sends a frame to init."""

    def __init__(self, to_init: Callable[[StartAgent], None]) -> None:
        self.to_init = to_init
        self.queue = FairQueue(MAX_STARTS)
        self.frames: dict[int, StartAgent] = {}  # that wait, by pid

    def add(self, tree: str, frame: StartAgent) -> None:
        self.frames[frame.key] = frame
        self.queue.add(tree, frame.key)
        self._begin()

    def tried(self, pid: int) -> None:
        """init has started a process, or could not."""
        self.queue.end(pid)
        self._begin()

    def _begin(self) -> None:
        while (pid := self.queue.begin()) is not None:
            self.to_init(self.frames.pop(pid))
