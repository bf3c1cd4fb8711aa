"""The messages that agents send each other: the `msg.` calls."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from .base import Message, Pid, Reply, Seconds

Address = Annotated[str, Meta(min_length=1, max_length=4096, pattern=r"^([\w.+-]+|(/[\w.+-]+)+)\Z")]


class Send(Message):
    """To a pid, a principal ("/ann/helper"), or a name: that of a child of the caller, else of one
    beside it, else of one beside an agent above it. The oldest that is alive is meant."""

    to: Pid | Address
    body: Any


class Recv(Message):
    sender: Pid | None = None  # None: anyone's
    timeout: Seconds | None = None


class Mail(Reply):
    sender: Pid
    name: str  # which anybody may have been given
    body: Any
    labels: list[str] = []  # where it comes from, but for a person: "msg:/writer", "tool:web"
    principal: str = ""  # who the sender is, as the kernel knows; "": a person
