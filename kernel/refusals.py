"""What agents tried and seccomp refused: Linux asks init, which takes note and says no."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import selectors
import socket
import struct
from collections.abc import Callable
from functools import partial

from .seccomp import NAMES

RECEIVE, SEND = 0xC0502100, 0xC0182101  # ioctls of a listener
NOTICE, ANSWER = "=QIIi60x", "=QqiI"  # id, pid, flags, call; id, value, error, flags
MOST = 1000  # of one agent; from then on such calls fail with ENOSYS, unheard


class Listener:
    """Of one agent. `tell` gets the name of each call once."""

    def __init__(self, fd: int, tell: Callable[[str], None]) -> None:
        self.fd, self.tell = fd, tell
        self.told: set[str] = set()
        self.left = MOST

    def refuse(self) -> bool:
        """Answer one call that is waiting. False: nobody is left to ask, or too much was asked."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        if not any(events & select.POLLIN for _, events in poll.poll(0)) or not self.left:
            return False
        self.left -= 1
        notice = bytearray(struct.calcsize(NOTICE))
        try:
            fcntl.ioctl(self.fd, RECEIVE, notice)
            asked, _pid, _flags, number = struct.unpack(NOTICE, notice)
            answer = struct.pack(ANSWER, asked, 0, -errno.EPERM, 0)
            fcntl.ioctl(self.fd, SEND, bytearray(answer))
        except FileNotFoundError:  # who asked has ended, or was interrupted and asks again
            return True
        name = NAMES.get(number, str(number))
        if name not in self.told:
            self.told.add(name)
            self.tell(name)
        return True


class Refusals:
    """The listeners of all agents, in init's selector."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self.selector = selector

    def expect(self, tell: Callable[[str], None]) -> socket.socket:
        """Where an agent's process is to `hand_over` its listener."""
        ours, theirs = socket.socketpair()
        self.selector.register(ours, selectors.EVENT_READ, partial(self._received, ours, tell))
        return theirs

    def _received(self, ours: socket.socket, tell: Callable[[str], None]) -> None:
        self.selector.unregister(ours)
        with ours:
            _, found, _, _ = socket.recv_fds(ours, 1, 1)
        for fd in found:  # none: it ended before
            listener = Listener(fd, tell)
            self.selector.register(fd, selectors.EVENT_READ, partial(self._asked, listener))

    def _asked(self, listener: Listener) -> None:
        if not listener.refuse():
            self.selector.unregister(listener.fd)
            os.close(listener.fd)


def hand_over(line: int, listener: int) -> None:
    """In the agent's process, which keeps neither open."""
    with socket.socket(fileno=os.dup(line)) as theirs:
        socket.send_fds(theirs, [b"x"], [listener])
    os.close(listener)
