"""Sessions by connection and by process: who speaks where, who is expected back, who has gone."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from aios.syscalls.connection import Return
from aios.syscalls.errors import AiosError, BadToken, Cancelled, OutOfOrder, ProcessGone

from ..journal import PutRow
from ..lib.callbacks import ignore
from ..lib.trees import root
from ..process import Process
from .call import Session
from .replies import Replies


class Sessions:
    """All sessions, from hello on. `put_row` journals a kept reply, or its removal; `on_parted`
    hears of a connection that nobody uses any more."""

    def __init__(self, put_row: PutRow, on_parted: Callable[[bytes], None] = ignore) -> None:
        self.replies, self.on_parted = Replies(put_row, self._tree_of_pid), on_parted
        self.by_route: dict[bytes, Session] = {}
        self.by_pid: dict[int, Session] = {}
        self.greeted: set[bytes] = set()  # connections of this machine on which somebody said hello

    def tree_of(self, route: bytes) -> str:
        """Return the tree of agents that speaks there; all others have a name of their own."""
        return _tree_of(self.by_route.get(route)) or route.hex()

    def _tree_of_pid(self, pid: int) -> str:
        return _tree_of(self.by_pid.get(pid)) or f"pid {pid}"

    def expect(self, process: Process) -> Session:
        """Return a session for a process that is to come back."""
        session = self.by_pid[process.pid] = Session(
            b"", process.os_pid, process, closed=True, key=process.key
        )
        return session

    def part(self, session: Session) -> None:
        """Note that a connection is gone; its process is expected back by another one."""
        self.by_route.pop(session.route, None)
        session.route, session.closed = b"", True

    def back(self, session: Session, back: Return) -> Process:
        """Have a peer that has come back speak for the process that it was, and return that.

        Raises:
            BadToken: the peer is not that process.
        """
        known = self.by_pid.get(back.pid)
        if (
            known is None
            or known.process is None
            or (known.os_pid, known.key) != (session.os_pid, session.key)
            or not secrets.compare_digest(known.process.secret, back.secret)
        ):
            raise BadToken("no process of that number and secret is expected back")
        self._leave(known.route)
        known.closed = True
        for call in list(known.calls.values()):
            call.detached = True
            if not call.syscall.exactly_once:  # it will be sent again, and is another call then
                call.fail(Cancelled("its caller came back"))
        known.route, known.closed = session.route, False
        self.by_route[known.route] = known
        return known.process

    def greet(self, session: Session) -> None:
        """Note a hello on a connection. Raises OutOfOrder for a second one, even if the first was
        refused."""
        if session.route in self.greeted:
            raise OutOfOrder("hello comes once on a connection", "make another connection")
        if not session.key:
            self.greeted.add(session.route)

    def bind(self, session: Session, process: Process) -> None:
        """Have a session speak for a process."""
        before = self.by_pid.get(process.pid)
        if before is not None:  # an agent that says hello again
            self._leave(before.route)
        session.process = process
        self.by_route[session.route] = session
        self.by_pid[process.pid] = session

    def _leave(self, route: bytes) -> None:
        if self.by_route.pop(route, None) is not None:
            self.on_parted(route)

    def end_calls(self, process: Process, error: AiosError) -> None:
        """End all calls of a process with an error."""
        session = self.by_pid.get(process.pid)
        for call in list(session.calls.values()) if session else []:
            call.fail(error)

    def close(self, session: Session) -> None:
        """End the calls of a connection that is gone; nobody hears of it."""
        session.closed = True
        self._leave(session.route)
        if session.process is not None:
            self.by_pid.pop(session.process.pid, None)
        for call in list(session.calls.values()):
            call.fail(ProcessGone("the caller is gone"))
        if session.process is not None:
            self.replies.ended(session.process.pid)

    def check(self) -> list[str]:
        """List each broken invariant in words."""
        problems: list[str] = []
        for session in self.by_route.values():
            if session.process is not None and not session.process.alive:
                problems.append(f"the connection of dead process {session.process.pid} is open")
            problems += [
                f"call {i} has ended and is kept" for i, c in session.calls.items() if c.ended
            ]
        return problems


def _tree_of(session: Session | None) -> str:
    """Return the tree of agents that a session is of; "" if it is of none."""
    process = session.process if session is not None else None
    return root(process.principal) if process is not None else ""
