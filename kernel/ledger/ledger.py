"""The ledger: writes the kernel's state to the journal as rows, and recovers it from them.

    system             the system that the processes belong to: the journal outlives it
    next               the last pid and the last context that were given out
    model              the model and its sizes as the core reported them, until it does again
    policy             the scheduler's policy and quantum
    process/PID        a row of the process table, then what has changed; tokens/PID, its usage
    birth/PID          a process that has not said hello
    mail/PID/N         a message in a mailbox
    reply/PID/ID       the final reply to a call that is done exactly once, until it is acknowledged
    grant/ID           a right that an agent has handed on
    job/ID             a running call of a tool that is done exactly once
    context/ID         a context and its generation, then what has changed (context_rows.py)

Objects that changed in a turn of the loop are written at its end, in one commit. Only then does
anything leave the kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, Protocol

import msgspec

from aios.syscalls.errors import ToolUnknown
from aios.syscalls.proc import Spawn

from ..access.grants import Grants
from ..core.protocol import Halted, Out
from ..entry.trap import Trap
from ..init.protocol import ToInit
from ..journal import Journal
from ..llm.contexts import Context, ContextManager
from ..llm.generations import Generations
from ..llm.past import Past
from ..llm.scheduler import Scheduler
from ..process import Process, ProcessTable
from ..processes.lifecycle import Lifecycle
from ..processes.mailbox import Mailroom
from ..processes.pending_spawn import PendingSpawn
from ..tools.jobs import JobRow
from .context_rows import ContextRow, ContextRows, read_row
from .field_rows import FieldRows, read_fields

NOT_JOURNALED = { # fields of a Process in no row, or in another one
    "mailbox", "contexts", "children", "cpu", "memory", "calls", "changed", "spent", "drawn",
    "below", "line",
}  # fmt: skip
FIELDS = [field.name for field in fields(Process) if field.name not in NOT_JOURNALED]

_encode = msgspec.msgpack.Encoder().encode


class PendingSpawnRow(msgspec.Struct):
    """A spawned process that has not said hello."""

    token: bytes
    spawn: Spawn
    caller: int
    call: int
    signals: list[str]
    greeted: bool


class AuditBarrier(Protocol):
    """The part of the audit log that the ledger needs."""

    @property
    def is_safe(self) -> bool:
        """Tell whether the intents of all that goes to init would survive a power cut."""

    def flush(self) -> bool:
        """Write all records; return False if there is no room now."""


class Ledger:
    """Commits state at the end of a turn, then releases what follows from it.

    `send` sends to a caller at once, `tell_init` to init.
    """

    def __init__(
        self, journal: Journal, audit: AuditBarrier, send: Callable[[bytes, bytes], None],
        tell_init: Callable[[ToInit], None],
    ) -> None:  # fmt: skip
        self.journal, self.audit = journal, audit
        self.context_rows, self.field_rows = (
            ContextRows(journal, self._context_row),
            FieldRows(journal),
        )
        self.send, self.tell_init = send, tell_init
        self.synced: list[tuple[bytes, bytes]] = []
        self.to_init: list[ToInit] = []
        self.waiting = 0  # syncs under way: later frames have to wait for them
        self.numbers = (0, 0)
        self.model = ("", 0, 0)
        self.policy = ("", 0)
        self.table: ProcessTable  # these are set by the boot, since they write here
        self.contexts: ContextManager
        self.generations: Generations
        self.scheduler: Scheduler
        self.lifecycle: Lifecycle
        self.trap: Trap
        self.mailroom: Mailroom
        self.grants: Grants

    # --- what the parts write -------------------------------------------------------------------

    def check_room(self) -> None:
        """Refuse to begin something new on a full disk. Raises DiskFull."""
        self.journal.check_room()

    def keep_reply(self, pid: int, call_id: int, data: bytes | None) -> None:
        self._set(f"reply/{pid}/{call_id}", data)

    def note_mail(self, pid: int, number: int, mail: bytes | None) -> None:
        self._set(f"mail/{pid}/{number}", mail)

    def note_work(self, ctx: int, what: Out | Halted) -> None:
        self.context_rows.note(ctx, what)

    def note_grant(self, number: int, row: bytes | None) -> None:
        self._set(f"grant/{number}", row)

    def note_job(self, number: int, row: bytes | None) -> None:
        self._set(f"job/{number}", row)

    def send_synced(self, route: bytes, data: bytes) -> None:
        """Send a reply once the state that it follows from would survive a power cut."""
        self.synced.append((route, data))

    def send_init(self, frame: ToInit) -> None:
        """Send a frame to init at the end of the turn, or once the intent of its call is
        durable.
        """
        self.to_init.append(frame)

    def _set(self, key: str, item: bytes | None) -> None:
        if item is None:
            self.journal.delete(key)
        else:
            self.journal.put(key, item)

    # --- the end of a turn ----------------------------------------------------------------------

    def end_turn(self) -> bool:
        """Commit all changes. Return False if there is no room now."""
        if not self.audit.flush():
            return False
        for pid in self.table.changed | self.table.spent:
            self._put_process(pid)
        self.table.changed.clear()
        self.table.spent.clear()
        self.context_rows.end_turn(self.contexts.changed)
        self.contexts.changed.clear()
        numbers = (self.table.last, self.contexts.last)
        if numbers != self.numbers:
            self.journal.put("next", _encode(numbers))
            self.numbers = numbers
        model = (self.contexts.model, self.contexts.window, self.contexts.vocab)
        if model != self.model:
            self.journal.put("model", _encode(model))
            self.model = model
        policy = (self.scheduler.policy_name, self.scheduler.quantum)
        if policy != self.policy:
            self.journal.put("policy", _encode(policy))
            self.policy = policy
        if not self.journal.commit():
            return False
        if self.to_init or self.synced:
            self._release(self.to_init, self.synced)
            self.to_init, self.synced = [], []
        return True

    def _release(self, frames: list[ToInit], replies: list[tuple[bytes, bytes]]) -> None:
        """Send now or after a sync, but never before what was released earlier."""

        def out() -> None:
            for frame in frames:
                self.tell_init(frame)
            for route, data in replies:
                self.send(route, data)

        def synced() -> None:
            self.waiting -= 1
            out()

        if replies or self.waiting or not self.audit.is_safe:
            self.waiting += 1
            self.journal.sync(synced)
        else:
            out()

    def _put_process(self, pid: int) -> None:
        process = self.table.rows.get(pid)
        if pid in self.table.changed:
            birth = self.lifecycle.births.get(pid)
            self.field_rows.put(
                f"process/{pid}", None if process is None else _process_row(process)
            )
            self.field_rows.put(f"birth/{pid}", None if birth is None else _birth_row(birth))
        self._set(
            f"tokens/{pid}", None if process is None else _encode((process.tokens, process.drawn))
        )

    def _context_row(self, ctx: int) -> ContextRow | None:
        context = self.contexts.contexts.get(ctx)
        if context is None:
            return None
        gen = self.generations.active.get(ctx)
        if gen is not None:
            gen.work.waiting, gen.work.switches = gen.task.waiting, gen.task.switches
        past = {name: getattr(context, name) for name in Past.__struct_fields__}
        return ContextRow(
            **past,
            owner=context.owner.pid if context.owner else 0,
            principal=context.principal,
            name=context.name,
            checkpoints=context.checkpoints,
            own=context.own,
            labels=set(context.labels),
            work=gen.work if gen is not None else None,
        )

    # --- after the kernel's death ---------------------------------------------------------------

    def recover(self, system: str) -> None:
        """Restore all rows; of another system's only the contexts with a name."""
        rows = self.journal.rows
        self.journal.rows = {}
        numbers = rows.pop("next", None)
        if numbers is not None:
            self.numbers = msgspec.msgpack.decode(numbers[-1], type=tuple[int, int])
            self.table.last, self.contexts.last = self.numbers
        same = rows.pop("system", None) == [system.encode()]
        self.journal.put("system", system.encode())
        model = rows.pop("model", None)
        if same and model is not None:
            self.model = msgspec.msgpack.decode(model[-1], type=tuple[str, int, int])
            self.contexts.model, self.contexts.window, self.contexts.vocab = self.model
        policy = rows.pop("policy", None)
        if same and policy is not None:
            self.policy = msgspec.msgpack.decode(policy[-1], type=tuple[str, int])
            self.scheduler.set_policy(*self.policy, 0.0)
        grouped: dict[str, list[tuple[list[int], list[bytes]]]] = {}
        for key, items in rows.items():
            kind, *ids = key.split("/")
            if same or kind == "context":
                grouped.setdefault(kind, []).append(([int(i) for i in ids], items))
            else:
                self.journal.delete(key)
        for kind, take in (
            ("process", self._take_process),
            ("tokens", self._take_tokens),
            ("mail", self._take_mail),
            ("reply", self._take_reply),
            ("birth", self._take_birth),
            ("job", self._take_job),
            ("grant", lambda _, rows: self.grants.take(rows[-1])),
            ("context", self._take_context),
        ):
            for found, items in sorted(grouped.get(kind, [])):
                take(found, items)

    def _take_process(self, ids: list[int], items: list[bytes]) -> None:
        process = msgspec.msgpack.decode(read_fields(items), type=Process)
        self.table.insert(process)
        if process.alive:
            self.trap.sessions.expect(process)

    def _take_tokens(self, ids: list[int], items: list[bytes]) -> None:
        if ids[0] in self.table.rows:
            process = self.table.rows[ids[0]]
            process.tokens, process.drawn = msgspec.msgpack.decode(items[-1], type=tuple[int, int])

    def _take_mail(self, ids: list[int], items: list[bytes]) -> None:
        pid, number = ids
        self.mailroom.keep(self.table.rows[pid], number, items[0])

    def _take_reply(self, ids: list[int], items: list[bytes]) -> None:
        pid, call_id = ids
        self.trap.replies.take(pid, call_id, items[-1])

    def _take_job(self, ids: list[int], items: list[bytes]) -> None:
        self.journal.delete(f"job/{ids[0]}")
        row = msgspec.msgpack.decode(items[-1], type=JobRow)
        if row.caller in self.trap.sessions.by_pid:
            call = self.trap.detached(row.caller, row.call, "tool.call")
            call.fail(ToolUnknown(f"the kernel died while {row.tool} ran"))

    def _take_birth(self, ids: list[int], items: list[bytes]) -> None:
        row = msgspec.msgpack.decode(read_fields(items), type=PendingSpawnRow)
        process = self.table.rows[ids[0]]
        known = row.caller in self.trap.sessions.by_pid
        call = self.trap.detached(row.caller, row.call, "proc.spawn") if known else None
        birth = PendingSpawn(process, row.token, row.spawn, call, row.signals, row.greeted)
        self.lifecycle.births[process.pid] = birth
        if call is not None:
            call.run(self.lifecycle.reply(birth))

    def _take_context(self, ids: list[int], items: list[bytes]) -> None:
        row = read_row(items)
        owner = self.table.rows.get(row.owner)
        unfinished = row.own and (row.work is None or row.work.call == 0)
        if row.name is None and (owner is None or unfinished):
            self.journal.delete(f"context/{ids[0]}")
            return
        context = Context(
            id=ids[0], owner=owner, principal=row.principal, name=row.name,
            checkpoints=row.checkpoints, own=row.own, labels=row.labels,
        )  # fmt: skip
        context.become(row)
        self.contexts.take(context)
        if owner is not None:
            owner.contexts.add(context.id)
        if row.work is not None and owner is not None:
            call = self.trap.detached(owner.pid, row.work.call, "llm.generate")
            self.generations.recover(call, context, row.work)
        elif row.work is not None:
            context.answered(row.work.text, row.work.drawn)


def _process_row(process: Process) -> dict[str, Any]:
    return {name: getattr(process, name) for name in FIELDS}


def _birth_row(birth: PendingSpawn) -> dict[str, Any]:
    call = birth.call
    who = (0, 0) if call is None or call.ended else (call.process.pid, call.id)
    row = PendingSpawnRow(birth.token, birth.spawn, *who, birth.signals, birth.greeted)
    return msgspec.structs.asdict(row)
