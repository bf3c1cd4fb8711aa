"""Events of a system, published to the calls that follow them and to the audit log."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from aios.syscalls.kernel import Event, Events

from .entry.call import Call
from .entry.followers import Followers


class EventLog:
    """Publishes events. `note` records them, except events of generations, whose calls are
    recorded.
    """

    def __init__(self, note: Callable[[str, int, dict[str, Any]], None]) -> None:
        self.note = note
        self.followers: Followers[frozenset[str]] = Followers()

    async def follow(self, call: Call, args: Events) -> Any:
        """Send the events of some kinds, of all where none is named, until the caller cancels."""
        await self.followers.follow(call, frozenset(args.kinds))

    def publish(self, kind: str, what: str, pid: int = 0, **detail: Any) -> None:
        if kind != "generation":
            self.note(f"{kind}.{what}", pid, detail)
        if not self.followers:
            return
        event = Event(time=time.time(), kind=kind, what=what, pid=pid, detail=detail)
        for call, kinds in self.followers:
            if not kinds or kind in kinds:
                call.piece(event)
