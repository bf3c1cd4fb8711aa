"""The messages about a connection: `hello`, and the end of one of its calls."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from .base import CtxId, Message, Name, Pid, Reply
from .proc import Kind


class Return(Message):
    """A caller that comes back after the kernel has died and another has taken its place."""

    pid: Pid
    secret: bytes  # of the welcome


class Hello(Message):
    version: int
    token: bytes | None = None  # the one-time token of a spawned agent
    name: Name | None = None  # how a client wants to be listed; an agent's name is given at spawn
    back: Return | None = None


class Welcome(Reply):
    pid: Pid
    name: str
    kind: Kind
    version: int
    boot: str  # changes with each start of the kernel
    program: str  # what was spawned, and its task; empty for a client
    task: Any
    contexts: list[CtxId]  # the forks that it was spawned with
    secret: bytes  # to come back with, should the kernel die


class Cancel(Message):
    call: Annotated[int, Meta(ge=1)]


class CancelReply(Reply):
    found: bool  # False: the call had ended already
