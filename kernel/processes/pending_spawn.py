"""A spawn under way: a process that has not made its first call yet."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from aios.syscalls.proc import Spawn, Spawned

from ..entry.call import Call
from ..lib.coroutine import Wait
from ..process import Process

_encode = msgspec.msgpack.Encoder().encode


@dataclass
class PendingSpawn:
    """A process between its spawn and its first call. Until then it may say hello again, since the
    kernel may die before the process has its welcome."""

    process: Process
    token: bytes
    spawn: Spawn
    call: Call | None  # None: its caller has had the reply, or is gone
    signals: list[str] = field(default_factory=list)  # sent before it has an OS pid
    greeted: bool = False
    reply: Wait[Spawned] = field(default_factory=Wait)  # to its caller

    def __post_init__(self) -> None:
        """Keep the task as bytes: objects may take seventy times the room."""
        task = msgspec.Raw(_encode(self.spawn.task))
        self.spawn = msgspec.structs.replace(self.spawn, task=task)
