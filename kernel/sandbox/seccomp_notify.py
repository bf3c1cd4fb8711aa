"""Answer the system calls of agents that seccomp passes to init.

init records the calls that are not allowed. It refuses them, or lets Linux go on with those that
Landlock or the mount namespace refuse.
"""

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

from .path_observer import PathObserver, signed
from .seccomp import (
    INET,
    INET6,
    KIND,
    NAMES,
    NUMBERS,
    SIGNALS,
    STREAM,
    deciding_arguments,
    is_refused,
)

RECEIVE, SEND, ADD_FD = 0xC0502100, 0xC0182101, 0x40182103
NOTIFICATION = "=QIIiIQ6Q"  # id, thread, flags, call, architecture, instruction, arguments
RESPONSE = "=QqiI"  # id, value, error, flags
ADD_FD_REQUEST = "=QIIII"  # id, flags, our descriptor, its number there, its flags
SEND_AS_RESPONSE = 2
SET_FLAGS, SYNC_WAKE_UP = 0x40082104, 1  # halves the time that an agent waits
CONTINUE = 1
MAX_REPORTS = 1000  # of one agent
Report = Callable[[str, str, str], None]
PROCESS_STARTS = ("fork", "vfork", "clone")
WHOSE = {  # limits and priorities: the position of the process, and behind which kind it is one
    "prlimit64": (0, None), "sched_setaffinity": (0, None), "sched_setparam": (0, None),
    "sched_setattr": (0, None), "sched_setscheduler": (0, None), "setpriority": (1, 0),
    "ioprio_set": (1, 1),
}  # fmt: skip


class SeccompListener:
    """The receiving end of one agent's seccomp filter.

    `report` gets each call that is not allowed once, with its object and the grant that would allow
    it.
    """

    def __init__(
        self, fd: int, observer: PathObserver, observed: Container[str], report: Report
    ) -> None:
        self.fd, self.observer, self.observed, self.report = fd, observer, observed, report
        self.reported: set[int] = set()  # hashes, as an agent chooses the lengths

    def answer(self) -> bool:
        """Answer one waiting call. Return False when the agent has no process left."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        if not any(events & select.POLLIN for _, events in poll.poll(0)):
            return False
        notification = bytearray(struct.calcsize(NOTIFICATION))
        try:
            fcntl.ioctl(self.fd, RECEIVE, notification)
            asked, task, _, number, _, _, *args = struct.unpack(NOTIFICATION, notification)
            call = NAMES.get(number, str(number))
            own, flags = self.observer.own_proc_file(call, task, args)
            if own and self._answer_with_file(asked, own, flags & os.O_CLOEXEC):
                return True
            found, error, how = self._judge(call, task, args)
            for about, needs in found:  # before the agent goes on and makes its next call
                self._report(call, about, needs)
            fcntl.ioctl(self.fd, SEND, bytearray(struct.pack(RESPONSE, asked, 0, error, how)))
        except FileNotFoundError:  # the caller ended, or was interrupted and calls again
            pass
        return True

    def _answer_with_file(self, asked: int, path: str, flags: int) -> bool:
        """Answer with a descriptor of that file, if it can be had (from Linux 5.14).

        The caller existed until then, so its number was nobody else's meanwhile.

        Raises:
            FileNotFoundError: the caller has ended.
        """
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            added = struct.pack(ADD_FD_REQUEST, asked, SEND_AS_RESPONSE, file, 0, flags)
            fcntl.ioctl(self.fd, ADD_FD, added)
        except FileNotFoundError:
            raise
        except OSError:
            return False
        finally:
            os.close(file)
        return True

    def _judge(
        self, call: str, task: int, args: list[int]
    ) -> tuple[list[tuple[str, str]], int, int]:
        """Return the reports about a call, and its answer: an errno of Linux and flags."""
        if call not in NUMBERS:
            return [("", "")], -errno.ENOSYS, 0
        if call in SIGNALS:
            return self._judge_signal(call, signed(args[0]))
        if call in WHOSE and self._is_of_descendant(call, args):
            return [], 0, CONTINUE
        if call not in self.observed or is_refused(call, args):
            about = " ".join(str(signed(args[at])) for at in deciding_arguments(call))
            return [(about, _missing_grant(call, args))], -errno.EPERM, 0
        return self.observer.not_granted(call, task, args), 0, CONTINUE

    def _judge_signal(self, call: str, whom: int) -> tuple[list[tuple[str, str]], int, int]:
        """Allow a signal to a descendant. `whom` is a pid, or a group with a minus.

        A pid that does not exist is refused: it may be another process's a moment later.
        """
        if self.observer.is_descendant(whom):
            return [], 0, CONTINUE
        if not exists(whom):
            return [], -errno.ESRCH, 0
        return [(str(whom), "")], -errno.EPERM, 0

    def _is_of_descendant(self, call: str, args: list[int]) -> bool:
        """Tell whether a limit or a priority is one of a process that the agent has started. Linux
        lets nobody raise them who has no privileges."""
        at, kind = WHOSE[call]
        whom = signed(args[at])
        return (kind is None or args[0] == kind) and whom > 0 and self.observer.is_descendant(whom)

    def _report(self, *said: str) -> None:
        if hash(said) not in self.reported and len(self.reported) < MAX_REPORTS:
            self.reported.add(hash(said))
            self.report(*said)


def exists(whom: int) -> bool:
    """Tell whether a process or thread, or with a minus a group, has this number."""
    try:
        os.kill(whom, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _missing_grant(call: str, args: list[int]) -> str:
    """Name the grant that would allow a call that seccomp refuses, or ""."""
    if call == "socket" and args[0] in (INET, INET6) and args[1] & KIND == STREAM:
        return "ports"
    return "processes" if call in PROCESS_STARTS else ""


class SeccompNotifications:
    """The seccomp listeners of all agents, in init's selector.

    Calls in `observed` are recorded and go on; the others are refused.
    """

    def __init__(self, selector: selectors.BaseSelector, observed: Container[str]) -> None:
        self.selector, self.observed = selector, observed

    def expect(self, observer: PathObserver, report: Report) -> socket.socket:
        """Return the socket over which an agent's process passes its listener (`send_listener`)."""
        ours, theirs = socket.socketpair()
        received = partial(self._received, ours, observer, report)
        self.selector.register(ours, selectors.EVENT_READ, received)
        return theirs

    def _received(self, ours: socket.socket, observer: PathObserver, report: Report) -> None:
        self.selector.unregister(ours)
        with ours:
            os_pid, found, _, _ = socket.recv_fds(ours, 16, 3)
        if not found:  # the agent ended before it sent its listener
            return
        fd, *opened = found
        observer.attach(int(os_pid), *opened)
        with contextlib.suppress(OSError):  # not before Linux 6.6
            fcntl.ioctl(fd, SET_FLAGS, SYNC_WAKE_UP)
        listener = SeccompListener(fd, observer, self.observed, report)
        self.selector.register(fd, selectors.EVENT_READ, partial(self._asked, listener))

    def _asked(self, listener: SeccompListener) -> None:
        if not listener.answer():
            self.selector.unregister(listener.fd)
            os.close(listener.fd)
            listener.observer.detach()


def send_listener(channel: int, listener: int, *opened: int) -> None:
    """Pass the listener and the files that a PathObserver needs to init, and close them here."""
    try:
        with socket.socket(fileno=os.dup(channel)) as theirs:
            socket.send_fds(theirs, [b"%d" % os.getpid()], [listener, *opened])
    finally:  # on failure too: calls would wait for a listener that nobody serves
        for fd in (listener, *opened):
            os.close(fd)
