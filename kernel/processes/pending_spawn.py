"""A spawn that is under way: a process that has not made its first call yet."""

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
    """A process between spawn and its first call. Until then it may say hello again, should the
    kernel die before the welcome was heard."""

    process: Process
    token: bytes
    spawn: Spawn
    call: Call | None  # None: its caller has had the reply, or is gone
    signals: list[str] = field(default_factory=list)  # sent before it has an OS pid
    greeted: bool = False
    told: Wait[Spawned] = field(default_factory=Wait)  # the reply to its caller

    def __post_init__(self) -> None:
        """Have the task wait as bytes: as objects it may take seventy times the room."""
        task = msgspec.Raw(_encode(self.spawn.task))
        self.spawn = msgspec.structs.replace(self.spawn, task=task)
