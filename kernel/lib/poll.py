"""Descriptors that the kernel's loop watches, and what to run when one is ready."""

from __future__ import annotations

import select
from collections.abc import Callable

READ, WRITE = select.EPOLLIN, select.EPOLLOUT
MAX_EVENTS = 64  # handled before the rest of a turn


class Poll:
    """An epoll instance with a callback a descriptor."""

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.run: dict[int, Callable[[int], None]] = {}
        self.events: dict[int, int] = {}  # by descriptor, as epoll has them

    def watch(self, fd: int, run: Callable[[int], None]) -> None:
        """Watch a descriptor, to read. `run` gets READ, WRITE, both, or neither if the other end is
        gone."""
        self.run[fd], self.events[fd] = run, READ
        self.epoll.register(fd, READ)

    def change(self, fd: int, events: int) -> None:
        if events != self.events[fd]:
            self.events[fd] = events
            self.epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        """Stop watching a descriptor that is about to be closed."""
        del self.run[fd], self.events[fd]
        self.epoll.unregister(fd)

    def wait(self, seconds: float, first: int = -1) -> None:
        """Wait at most `seconds` for ready descriptors, and run their callbacks: that of `first`
        before all others."""
        ready = self.epoll.poll(seconds, MAX_EVENTS)
        if len(ready) == MAX_EVENTS:  # there may be more, and `first` among those
            ready.append((first, READ))
        if len(ready) > 1:
            ready.sort(key=lambda each: each[0] != first)
        for fd, events in ready:
            if fd in self.run:  # unless an earlier callback closed it
                self.run[fd](events)

    def close(self) -> None:
        self.epoll.close()
