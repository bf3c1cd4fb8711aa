"""What agents try that is not for them: seccomp asks init, which takes note, and says no or lets
it through to the walls that stop it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import selectors
import socket
import struct
from collections.abc import Callable, Container
from functools import partial

from .path_observer import Witness, signed
from .seccomp import INET, INET6, KIND, NAMES, NUMBERS, SIGNALS, STREAM, deciding, misused

RECEIVE, SEND, ADD_FD = 0xC0502100, 0xC0182101, 0x40182103  # ioctls of a listener
NOTICE = "=QIIiIQ6Q"  # id, thread, flags, call, architecture, place in the program, arguments
ANSWER = "=QqiI"  # id, value, error, flags
ADDED = "=QIIII"  # id, flags, our descriptor, its number there, flags of that
AS_ANSWER = 2
SET_FLAGS, SAME_PROCESSOR = 0x40082104, 1  # an agent then waits half as long for an answer
LET_THROUGH = 1
MOST = 1000  # that are told of one agent
Tell = Callable[[str, str, str], None]
STARTS = ("fork", "vfork", "clone")


class Listener:
    """Of one agent. `tell` gets each call with what it is about, and what it needs to be let
    through, once."""

    def __init__(self, fd: int, witness: Witness, watched: Container[str], tell: Tell) -> None:
        self.fd, self.witness, self.watched, self.tell = fd, witness, watched, tell
        self.told: set[int] = set()  # hashes: paths are long, and an agent chooses them

    def answer(self) -> bool:
        """One call that is waiting. False: nobody is left to ask."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        if not any(events & select.POLLIN for _, events in poll.poll(0)):
            return False
        notice = bytearray(struct.calcsize(NOTICE))
        try:
            fcntl.ioctl(self.fd, RECEIVE, notice)
            asked, task, _, number, _, _, *args = struct.unpack(NOTICE, notice)
            call = NAMES.get(number, str(number))
            own, flags = self.witness.own(call, task, args)
            if own and self._given(asked, own, flags & os.O_CLOEXEC):
                return True
            found, error, how = self._judged(call, task, args)
            for about, needs in found:  # before the agent goes on: its next call comes after this
                self._tell(call, about, needs)
            fcntl.ioctl(self.fd, SEND, bytearray(struct.pack(ANSWER, asked, 0, error, how)))
        except FileNotFoundError:  # who asked has ended, or was interrupted and asks again
            pass
        return True

    def _given(self, asked: int, path: str, flags: int) -> bool:
        """Answer with a descriptor of that file, if it can be had (from Linux 5.14). Who asked is
        there until then, so its number was nobody else's meanwhile.

        Raises FileNotFoundError: it is gone."""
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            added = struct.pack(ADDED, asked, AS_ANSWER, file, 0, flags)
            fcntl.ioctl(self.fd, ADD_FD, added)
        except FileNotFoundError:
            raise
        except OSError:
            return False
        finally:
            os.close(file)
        return True

    def _judged(
        self, call: str, task: int, args: list[int]
    ) -> tuple[list[tuple[str, str]], int, int]:
        """What is to be told, and how it is answered: an error of Linux, flags."""
        if call not in NUMBERS:
            return [("", "")], -errno.ENOSYS, 0
        if call in SIGNALS:
            return self._signalled(call, signed(args[0]))
        if call not in self.watched or misused(call, args):
            about = " ".join(str(signed(args[at])) for at in deciding(call))
            return [(about, _needed(call, args))], -errno.EPERM, 0
        return self.witness.out_of_reach(call, task, args), 0, LET_THROUGH

    def _signalled(self, call: str, whom: int) -> tuple[list[tuple[str, str]], int, int]:
        """By a pid, or with a minus by a group. Who is not there is not waited for: it may be
        somebody else a moment later."""
        if self.witness.is_kin(whom):
            return [], 0, LET_THROUGH
        if not is_there(whom):
            return [], -errno.ESRCH, 0
        return [(str(whom), "")], -errno.EPERM, 0

    def _tell(self, *said: str) -> None:
        if hash(said) not in self.told and len(self.told) < MOST:
            self.told.add(hash(said))
            self.tell(*said)


def is_there(whom: int) -> bool:
    """Whether there is a process or thread, or with a minus a group, of that number."""
    try:
        os.kill(whom, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _needed(call: str, args: list[int]) -> str:
    """What lets an agent make a call that seccomp refuses."""
    if call == "socket" and args[0] in (INET, INET6) and args[1] & KIND == STREAM:
        return "ports"
    return "processes" if call in STARTS else ""


class Refusals:
    """The listeners of all agents, in init's selector. The calls of `watched` are let through."""

    def __init__(self, selector: selectors.BaseSelector, watched: Container[str]) -> None:
        self.selector, self.watched = selector, watched

    def expect(self, witness: Witness, tell: Tell) -> socket.socket:
        """Where an agent's process is to `hand_over` its listener."""
        ours, theirs = socket.socketpair()
        received = partial(self._received, ours, witness, tell)
        self.selector.register(ours, selectors.EVENT_READ, received)
        return theirs

    def _received(self, ours: socket.socket, witness: Witness, tell: Tell) -> None:
        self.selector.unregister(ours)
        with ours:
            os_pid, found, _, _ = socket.recv_fds(ours, 16, 3)
        if not found:  # it ended before
            return
        fd, *opened = found
        witness.begin(int(os_pid), *opened)
        with contextlib.suppress(OSError):  # before Linux 6.6
            fcntl.ioctl(fd, SET_FLAGS, SAME_PROCESSOR)
        listener = Listener(fd, witness, self.watched, tell)
        self.selector.register(fd, selectors.EVENT_READ, partial(self._asked, listener))

    def _asked(self, listener: Listener) -> None:
        if not listener.answer():
            self.selector.unregister(listener.fd)
            os.close(listener.fd)
            listener.witness.end()


def hand_over(line: int, listener: int, *opened: int) -> None:
    """In the agent's process, which keeps none open; `opened` is what a Witness begins with."""
    try:
        with socket.socket(fileno=os.dup(line)) as theirs:
            socket.send_fds(theirs, [b"%d" % os.getpid()], [listener, *opened])
    finally:  # also where it fails: what is asked of a listener that nobody has waits for good
        for fd in (listener, *opened):
            os.close(fd)
