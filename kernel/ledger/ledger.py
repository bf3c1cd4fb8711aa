"""The ledger: writes the kernel's state to the journal as rows. recovery.py reads them.

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

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import msgspec

from aios.syscalls.proc import Spawn

from ..audit.log import AuditLog
from ..journal import Journal
from ..llm.context_state import ContextState
from ..llm.contexts import ContextManager
from ..llm.generations import Generations
from ..llm.scheduler.scheduler import Scheduler
from ..process import Process, ProcessTable
from ..processes.pending_spawn import PendingSpawn
from .context_rows import ContextRow, ContextRows
from .field_rows import FieldRows
from .outbox import Outbox

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


class Ledger:
    """Commits what has changed in a turn, and has the outbox send what follows from it."""

    def __init__(
        self, journal: Journal, outbox: Outbox, log: AuditLog, table: ProcessTable,
        contexts: ContextManager, generations: Generations, scheduler: Scheduler,
        pending_spawns: Mapping[int, PendingSpawn],
    ) -> None:  # fmt: skip
        self.journal, self.outbox, self.log = journal, outbox, log
        self.table, self.pending_spawns = table, pending_spawns
        self.contexts, self.generations, self.scheduler = contexts, generations, scheduler
        self.context_rows = ContextRows(journal, self._context_row)
        self.field_rows = FieldRows(journal)
        self.written: dict[str, tuple[Any, ...]] = {}  # rows of which there is one each

    def end_turn(self) -> bool:
        """Commit all changes. Return False if there is no room now."""
        if self.log.written < self.log.size and not self.log.flush():
            return False
        for pid in self.table.changed | self.table.spent:
            self._put_process(pid)
        self.table.changed.clear()
        self.table.spent.clear()
        if self.contexts.changed or self.generations.reports:
            self.context_rows.end_turn(self.contexts.changed, self.generations.reports)
            self.contexts.changed.clear()
            self.generations.reports.clear()
        self._put_one("next", self.table.last, self.contexts.last)
        self._put_one("model", self.contexts.model, self.contexts.window, self.contexts.vocab)
        self._put_one("policy", self.scheduler.policy_name, self.scheduler.quantum)
        if not self.journal.commit():
            return False
        if self.outbox.to_init or self.outbox.synced:
            self.outbox.release()
        return True

    def _put_one(self, key: str, *values: Any) -> None:
        if self.written.get(key) != values:
            self.journal.put(key, _encode(values))
            self.written[key] = values

    def _put_process(self, pid: int) -> None:
        process = self.table.rows.get(pid)
        if pid in self.table.changed:
            pending = self.pending_spawns.get(pid)
            self.field_rows.put(
                f"process/{pid}", None if process is None else _process_row(process)
            )
            self.field_rows.put(f"birth/{pid}", None if pending is None else _spawn_row(pending))
        self.journal.put(
            f"tokens/{pid}", None if process is None else _encode((process.tokens, process.drawn))
        )

    def _context_row(self, ctx: int) -> ContextRow | None:
        context = self.contexts.contexts.get(ctx)
        if context is None:
            return None
        gen = self.generations.active.get(ctx)
        if gen is not None:
            gen.state.waiting, gen.state.switches = gen.task.waiting, gen.task.switches
        past = {name: getattr(context, name) for name in ContextState.__struct_fields__}
        return ContextRow(
            **past,
            owner=context.owner.pid if context.owner else 0,
            principal=context.principal,
            name=context.name,
            checkpoints=context.checkpoints,
            own=context.own,
            labels=set(context.labels),
            work=gen.state if gen is not None else None,
        )


def _process_row(process: Process) -> dict[str, Any]:
    return {name: getattr(process, name) for name in FIELDS}


def _spawn_row(pending: PendingSpawn) -> dict[str, Any]:
    call = pending.call
    who = (0, 0) if call is None or call.ended else (call.process.pid, call.id)
    row = PendingSpawnRow(pending.token, pending.spawn, *who, pending.signals, pending.greeted)
    return msgspec.structs.asdict(row)
