"""Calls that follow events, each with the subject that it follows.

Every event is compared with all of them, so they are limited by process and by tree of agents.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from aios.syscalls.errors import LimitReached

from ..lib.coroutine import Wait
from ..lib.trees import check_tree, in_tree
from .call import Call

MAX_OF_PROCESS, MAX_OF_TREE = 16, 64

T = TypeVar("T")


class Followers(Generic[T]):
    """The calls that follow one kind of event."""

    def __init__(self) -> None:
        self.entries: dict[int, tuple[Call, T]] = {}

    async def follow(self, call: Call, about: T) -> Any:
        """Follow until the call ends."""
        with self.following(call, about):
            await Wait[Any]()

    @contextlib.contextmanager
    def following(self, call: Call, about: T) -> Iterator[None]:
        """Have the call follow while the block runs. Raises LimitReached for one too many."""
        process = call.process
        if process.kind != "client":
            others = [other.process for other, _ in self.entries.values()]
            hint = "cancel some of these calls"
            if sum(other is process for other in others) >= MAX_OF_PROCESS:
                raise LimitReached(
                    f"process {process.pid} follows {MAX_OF_PROCESS} already: no more", hint
                )
            following = in_tree(process.principal, (other.principal for other in others))
            check_tree(process.principal, following, MAX_OF_TREE, "calls that follow", hint)
        key = id(call)
        self.entries[key] = (call, about)
        try:
            yield
        finally:
            del self.entries[key]

    def __iter__(self) -> Iterator[tuple[Call, T]]:
        return iter(list(self.entries.values()))

    def __bool__(self) -> bool:
        return bool(self.entries)

    def check(self) -> list[str]:
        return [f"call {call.id} has ended, and follows" for call, _ in self if call.ended]
