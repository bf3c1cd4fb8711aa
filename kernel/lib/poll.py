"""Descriptors that the kernel's loop waits for, and what runs when one is ready."""

from __future__ import annotations

import select
from collections.abc import Callable

READ, WRITE = select.EPOLLIN, select.EPOLLOUT
BATCH = 64  # descriptors that are looked at before all else gets a turn


class Poll:
    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.fd = self.epoll.fileno()  # ready when one of its descriptors is
        self.run: dict[int, Callable[[int], None]] = {}
        self.events: dict[int, int] = {}  # that Linux waits for now

    def watch(self, fd: int, run: Callable[[int], None], events: int = READ) -> None:
        """`run` gets READ, WRITE, both, or neither where the other end is gone."""
        self.run[fd], self.events[fd] = run, events
        self.epoll.register(fd, events)

    def change(self, fd: int, events: int) -> None:
        if events != self.events[fd]:
            self.events[fd] = events
            self.epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        """Before it is closed."""
        del self.run[fd], self.events[fd]
        self.epoll.unregister(fd)

    def wait(self, seconds: float) -> None:
        """For the first that is ready, at most so long; run what each is watched for."""
        for fd, events in self.epoll.poll(seconds, BATCH):
            if fd in self.run:  # none before it has closed it
                self.run[fd](events)

    def close(self) -> None:
        self.epoll.close()
