"""Eight tools that do well or badly, as they are told: for many callers at once."""

from __future__ import annotations

import ctypes
import time
from typing import Any

from aios.agents.runtime.tool import Tool, tool


def act(how: str, number: int) -> int:
    if how == "fail":
        raise ValueError(f"number {number}")
    if how == "crash":
        ctypes.string_at(0)
    if how == "hang":
        time.sleep(600)
    return number + 1


def make(which: int) -> Tool:
    lock: dict[str, Any] = {"exclusive": "lock"}
    by: dict[int, dict[str, Any]] = {3: {"effect": True}, 4: lock, 5: {"limit": 4}, 7: lock}
    extra = by.get(which, {})

    def one_more(how: str, number: int) -> int:
        """Add one."""
        return act(how, number)

    one_more.__module__ = __name__
    return tool(name=f"storm.t{which}", timeout=60.0, **extra)(one_more)


TOOLS = [make(which) for which in range(8)]
globals().update({each.name.replace(".", "_"): each for each in TOOLS})
