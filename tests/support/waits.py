"""Work that waits, as a test hears of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from aios.kernel.lib.coroutine import Driver


def hear(work: Awaitable[Any], heard: Callable[[Any], object]) -> None:
    """Run it; `heard` gets its result, or its error."""
    Driver(work, heard, heard).go_on()
