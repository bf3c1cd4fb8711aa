"""The trap: decode, identify, authorize, record and dispatch each system call.

Whatever comes in, each call gets exactly one final reply, and a call that has an effect has it
once: a caller that comes back after the kernel's death sends again each call whose final reply it
has not had. Such a call is still on its way (detached), or has ended (its reply is kept), or had no
effect yet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from types import CoroutineType
from typing import Any, Protocol

import msgspec

from aios.syscalls import wire
from aios.syscalls.base import Message
from aios.syscalls.errors import (
    AiosError,
    Denied,
    LimitReached,
    Malformed,
    OutOfOrder,
    UnknownCall,
)
from aios.syscalls.table import TABLE, Syscall
from aios.syscalls.wire import Receipt

from ..audit.recorder import AuditRecorder
from ..journal import Journal
from ..lib import defects
from ..lib.callbacks import ignore
from ..lib.coroutine import Wait
from ..lib.trees import Trees, check_tree, root
from ..process import Process, ProcessTable
from ..rules import Permit
from .call import Call, Session
from .envelope import Envelope, arguments, open_envelope
from .replies import KeptReply
from .sessions import Sessions

MAX_WAITING_BYTES = 48 << 20  # of calls of one tree of agents that wait
# Taken by a call besides the bytes of its arguments, and by each item in them, about: in a list, in
# a list of objects, in a map.
CALL_BYTES, ITEM_BYTES, STRUCT_BYTES, ENTRY_BYTES = 2048, 40, 256, 256
WAITING = (CoroutineType, Wait)  # what a handler returns that has no result yet
UNLIMITED = ("call.cancel", "proc.exit")  # whoever waits for too much can still make an end

_encode = msgspec.msgpack.Encoder().encode


Handler = Callable[[Call, Any], Any]


class Authorizer(Protocol):
    """The part of the gate that the trap uses."""

    def check(self, process: Process, syscall: Syscall, args: Any) -> Permit:
        """Permit a call, maybe once a person has approved it. Raises Denied."""


class Trap:
    """Receives system calls.

    `hello` makes a process of a session, `handlers` has one function a system call, `ask` asks a
    person to approve a call, `settle` hears of a process's first call. `send` sends a reply at the
    end of the turn, `send_synced` once all that was committed would survive a power cut.
    """

    def __init__(
        self, table: ProcessTable, handlers: dict[str, Handler],
        send: Callable[[bytes, bytes], None], hello: Callable[[Session, Any], Any],
        gate: Authorizer,
        ask: Callable[[Call, Message, Permit], tuple[int, Awaitable[Sequence[str]]]],
        journal: Journal, send_synced: Callable[[bytes, bytes], None], audit: AuditRecorder,
        sessions: Sessions, settle: Callable[[Process], None] = ignore,
    ) -> None:  # fmt: skip
        self.table, self.handlers, self.hello, self.settle = table, handlers, hello, settle
        self.gate, self.ask, self.journal, self.audit = gate, ask, journal, audit
        self.send, self.send_synced = send, send_synced
        self.sessions, self.replies = sessions, sessions.replies
        self.calls: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.waiting = Trees()  # bytes of calls that have not ended

    def receive(self, route: bytes, os_pid: int, frames: list[bytes], key: str = "") -> None:
        """Serve a call, or refuse it. A session is kept from hello on."""
        session = self.sessions.by_route.get(route) or Session(route, os_pid, key=key)
        call = None
        try:
            if (session.os_pid, session.key) != (os_pid, key):  # another, under an id that is taken
                other = Session(route, os_pid, key=key)
                self._record(other, _unopened(frames), Denied("the connection is another's"))
                return
            if len(frames) != 1:
                raise Malformed(f"a system call has 1 frame, not {len(frames)}")
            call = open_envelope(frames[0])
            if not self._came_before(session, call):
                self._dispatch(session, call)
        except AiosError as error:  # whatever goes wrong with a call is its final reply
            self._refuse(session, call or _unopened(frames), error)
        except Exception:  # noqa: BLE001 (a defect of the kernel: its caller is told)
            self._refuse(session, call or _unopened(frames), defects.report())

    def _came_before(self, session: Session, call: Envelope) -> bool:
        """Answer a call that was sent again, and tell whether it was one.

        Raises:
            OutOfOrder: the id is another call's.
        """
        pid = session.process.pid if session.process is not None else 0
        self.replies.heard(pid, call.heard)
        session.heard = max(session.heard, call.heard)
        if call.id <= session.heard:  # what was done for that id would pass for done now
            raise OutOfOrder(f"call id {call.id} was one that is over", "choose a higher one")
        kept = self.replies.get(pid, call.id)
        if kept is not None:
            self._say_again(session, call.id, kept)
            return True
        known = session.calls.get(call.id)
        if known is None:
            return False
        if not known.detached:
            taken, call.id = call.id, 0  # an answer with that id would end the other call
            raise OutOfOrder(f"call id {taken} is in use", "choose another")
        known.receipted = call.receipt
        known.attach()
        return True

    def _dispatch(self, session: Session, asked: Envelope) -> None:
        name = asked.name
        syscall = TABLE.get(name)
        if syscall is None:
            raise UnknownCall(f"no system call {name[:64]!r}")
        if (session.process is None) != (name == "hello"):
            raise OutOfOrder("hello comes first, and once")
        args = arguments(syscall, asked.args)
        self.calls[name] += 1
        self.audit.check_room(syscall, session.process)
        if session.process is None:
            self._hello(session, asked, syscall, args)
            return
        process = session.process
        if process.reported:
            raise OutOfOrder("the process has made its exit")
        process.calls += 1
        if process.calls == 1:
            self.settle(process)
        passed = self.gate.check(process, syscall, args)
        if syscall.exactly_once and not syscall.allowed_when_full:
            self.journal.check_room()
        if name not in UNLIMITED:
            self._check_waiting(session, process)
        call = Call(
            self,
            session,
            process,
            asked.id,
            syscall,
            durable=syscall.external,
            receipted=asked.receipt,
        )
        call.receipt = self.audit.called(process, asked.id, syscall, args, asked.args, passed.rule)
        call.intent, _ = call.receipt
        session.calls[asked.id] = call
        held = None
        if passed.asked:
            held, answer = self.ask(call, args, passed)
            call.run(self._go_on(asked, call, answer))
        else:
            self._serve(call, args)
        if process.principal and not call.ended:  # what persons have waiting has no bound
            held = _items(args) if held is None else held
            call.bytes = CALL_BYTES + memoryview(asked.args).nbytes + held
            self.waiting.add(process.principal, call.bytes)

    def _check_waiting(self, session: Session, process: Process) -> None:
        """Raise LimitReached where a process has too many calls that wait, or a tree of agents too
        much in them."""
        hint = "wait for one of them, or cancel it"
        limit = process.limits.queue
        if limit is not None and len(session.calls) >= limit:
            raise LimitReached(
                f"{limit} calls are waiting: the limit of process {process.pid}", hint
            )
        if process.principal.startswith("/"):
            held = self.waiting.total(root(process.principal))
            check_tree(process.principal, held, MAX_WAITING_BYTES, "bytes of calls that wait", hint)

    def _serve(self, call: Call, args: Message) -> None:
        body = self.handlers[call.syscall.name](call, args)
        if type(body) in WAITING:
            call.run(body)
        else:
            call.done(body)

    async def _go_on(self, asked: Envelope, call: Call, answer: Awaitable[Sequence[str]]) -> Any:
        """Serve a call once a person has approved what was shown.

        The call is checked again, since rules may deny it by now, and a name may have come to mean
        something else. The arguments wait as bytes: objects may take seventy times the room.
        """
        shown = await answer
        args = arguments(call.syscall, asked.args)
        now = self.gate.check(call.process, call.syscall, args)
        if now.asked and now.objects != tuple(shown):
            raise Denied(
                f"{call.syscall.name} is about something else than a person was shown", "call again"
            )
        body = self.handlers[call.syscall.name](call, args)
        del args
        return await body if type(body) in WAITING else body

    def _hello(self, session: Session, asked: Envelope, syscall: Syscall, args: Message) -> None:
        body = self.hello(session, args)
        process = session.process or self.sessions.by_route[session.route].process
        assert process is not None
        receipt = self.audit.called(process, asked.id, syscall, args, asked.args, "")
        self.reply(session, asked.id, wire.DONE, body, receipt=receipt if asked.receipt else None)

    def _refuse(self, session: Session, asked: Envelope, error: AiosError) -> None:
        call = session.calls.get(asked.id)
        if call is not None:
            call.fail(error)
            return
        self.errors[error.code] += 1
        receipt = self._record(session, asked, error)
        self.reply(
            session, asked.id, wire.FAILED, error.to_wire(),
            receipt=receipt if asked.receipt else None,
        )  # fmt: skip

    def _record(self, session: Session, asked: Envelope, error: AiosError) -> Receipt | None:
        raw = bytes(asked.args)
        return self.audit.refused(session.process, session.peer, asked.id, asked.name, raw, error)

    def reply(
        self, session: Session, call_id: int, kind: int, body: Any, *, durable: bool = False,
        receipt: Receipt | None = None,
    ) -> None:  # fmt: skip
        if not session.closed:
            send = self.send_synced if durable else self.send
            frame = (call_id, kind, body) if receipt is None else (call_id, kind, body, receipt)
            send(session.route, _encode(frame))

    # --- calls that come again ------------------------------------------------------------------

    def _say_again(self, session: Session, call_id: int, kept: KeptReply) -> None:
        for piece in kept.pieces:
            self.reply(session, call_id, wire.PIECE, piece)
        self.reply(session, call_id, kept.kind, kept.body, durable=True, receipt=kept.receipt)

    def detached(self, pid: int, call_id: int, name: str) -> Call:
        """Return a call that was on its way when the kernel died."""
        session = self.sessions.by_pid[pid]
        assert session.process is not None
        call = Call(self, session, session.process, call_id, TABLE[name], detached=True)
        session.calls[call_id] = call
        return call

    def check(self) -> list[str]:
        """List each broken invariant in words."""
        return self.sessions.check() + [
            f"replies to dead process {pid} are kept"
            for pid in self.replies.callers
            if not self.table.is_alive(pid)
        ]


def _unopened(frames: list[bytes]) -> Envelope:
    return Envelope(0, "", msgspec.Raw(b"".join(frames)))


def _items(args: Message) -> int:
    """Return the bytes, about, that the items of lists and maps take as objects, besides their
    own."""
    size = 0
    for value in msgspec.structs.astuple(args):
        if type(value) is dict:
            size += len(value) * ENTRY_BYTES
        elif type(value) is list and value:
            is_struct = isinstance(value[0], msgspec.Struct)
            size += len(value) * (STRUCT_BYTES if is_struct else ITEM_BYTES)
    return size
