"""A system call on its way, and the session of a connection that it came by."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aios.syscalls import wire
from aios.syscalls.errors import AiosError, Cancelled
from aios.syscalls.table import Syscall
from aios.syscalls.wire import Receipt

from ..lib.coroutine import Driver, Wait
from ..process import Process
from ..store.done_calls import CallId

if TYPE_CHECKING:
    from .trap import Trap


@dataclass
class Session:
    """One connection: its peer as Linux names it, and after hello the process it speaks for."""

    route: bytes
    os_pid: int  # 0: a remote peer, known by its key
    process: Process | None = None
    calls: dict[int, Call] = field(default_factory=dict)
    closed: bool = False
    key: str = ""
    heard: int = 0  # the caller has had the final replies to all calls up to this id

    @property
    def peer(self) -> str:
        return f"key={self.key}" if self.key else f"os_pid={self.os_pid}"


@dataclass(slots=True)
class Call:
    """A system call on its way. However a call ends, a coroutine that serves it is stopped, so its
    `finally` clauses run."""

    trap: Trap
    session: Session
    process: Process
    id: int
    syscall: Syscall
    driver: Driver | None = None  # runs the coroutine that serves it
    pieces: list[Any] = field(default_factory=list)  # sent so far, of a call done exactly once
    detached: bool = False  # its caller has to send it again to hear of it
    durable: bool = False  # the final reply waits until its effect would survive a power cut
    intent: int = 0  # the sequence of its record in the audit log
    receipt: Receipt | None = None  # of its last record
    receipted: bool = False  # the caller wants a receipt
    bytes: int = 0  # that it takes while it waits, about
    ended: bool = False

    @property
    def once(self) -> CallId:
        """The identity of the call, should it come again."""
        return CallId(self.process.pid, self.id, self.syscall.name)

    def run(self, work: Awaitable[Any]) -> None:
        """Serve the call by `work`, whose result or error is the final reply."""
        if isinstance(work, Wait) and work.cancel is None:
            # There is nothing to stop or release; and a driver costs mem.put a microsecond.
            work.tell(self.done, self.fail)
            return
        self.driver = Driver(work, self.done, self.fail)
        self.driver.go_on()

    def piece(self, body: Any, *, durable: bool = False, keep: bool = True) -> None:
        """Send a reply before the final one.

        Args:
            durable: send it once what it follows from would survive a power cut.
            keep: send it again to a caller that comes back.
        """
        if self.ended:
            return
        if self.syscall.exactly_once and keep:
            self.pieces.append(body)
        if not self.detached:
            self.trap.reply(self.session, self.id, wire.PIECE, body, durable=durable)

    def attach(self) -> None:
        """Send all pieces again to a caller that is back, and that knows how many it has had."""
        self.detached = False
        for body in self.pieces:
            self.trap.reply(self.session, self.id, wire.PIECE, body)

    def done(self, body: Any) -> None:
        self._end(wire.DONE, body)

    def fail(self, error: AiosError) -> None:
        if not self.ended:
            self.trap.errors[error.code] += 1
        self._end(wire.FAILED, error.to_wire())

    def _end(self, kind: int, body: Any) -> None:
        """Send the final reply, unless there has been one."""
        if self.ended:
            return
        self.ended = True
        self.session.calls.pop(self.id, None)
        if self.bytes:
            self.trap.waiting.add(self.process.principal, -self.bytes)
        if self.syscall.mutates:
            code = "ok" if kind == wire.DONE else body["code"]
            self.receipt = self.trap.audit.ended(
                self.process, self.id, self.syscall, self.intent, code
            )
        receipt = self.receipt if self.receipted else None
        if self.syscall.exactly_once:
            self.trap.replies.keep(self.process.pid, self.id, kind, body, self.pieces, receipt)
        if not self.detached:
            self.trap.reply(
                self.session, self.id, kind, body, durable=self.durable, receipt=receipt
            )
        driver, self.driver = self.driver, None  # no ring is left for gc
        if driver is not None:
            driver.stop()

    def cancel(self) -> None:
        wait = None if self.driver is None else self.driver.wait
        if wait is not None and wait.cancel is not None:
            wait.cancel()
        else:
            self.fail(Cancelled(f"{self.syscall.name} was cancelled"))
