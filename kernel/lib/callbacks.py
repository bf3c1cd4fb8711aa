"""The types of callbacks that many parts take, and the callback for where nobody listens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

After = Callable[[float, Callable[[], None]], Any]  # after(seconds, run): returns a timer to cancel
Post = Callable[[Callable[[], None]], None]  # post(run): has the loop run it; thread-safe


def ignore(*_args: object) -> None:
    """Do nothing."""
