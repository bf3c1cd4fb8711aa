"""A job for a tool to run in, where no tool manager is there to call it."""

from __future__ import annotations

from typing import cast

from aios.agents import Aios
from aios.agents.tools import Running

FOLDER = "tooltest"  # in storage
NO_KERNEL = cast(Running, None)  # for tools that do not ask for a Running


class Job:
    """A call, with the real storage of whoever tests."""

    def __init__(self, aios: Aios) -> None:
        self.aios = aios

    def progress(self, done: float, total: float | None = None, message: str = "") -> None:
        raise AssertionError("no tool that ships tells its progress")
