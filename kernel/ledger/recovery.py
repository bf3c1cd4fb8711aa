"""Recovery: the kernel's state, made again of the rows that the kernel before has left."""

from __future__ import annotations

import msgspec

from aios.syscalls.errors import ToolUnknown

from ..access.grants import Grants
from ..entry.trap import Trap
from ..journal import Journal
from ..llm.contexts import Context, ContextManager
from ..llm.generations import Generations
from ..llm.scheduler.scheduler import Scheduler
from ..process import Process, ProcessTable
from ..processes.lifecycle import Lifecycle
from ..processes.mailbox import Mailroom
from ..processes.pending_spawn import PendingSpawn
from ..tools.jobs import JobRow
from .context_rows import read_row
from .field_rows import read_fields
from .ledger import PendingSpawnRow


class Recovery:
    def __init__(
        self, journal: Journal, table: ProcessTable, trap: Trap, contexts: ContextManager,
        generations: Generations, scheduler: Scheduler, lifecycle: Lifecycle, mailroom: Mailroom,
        grants: Grants,
    ) -> None:  # fmt: skip
        self.journal, self.table, self.trap = journal, table, trap
        self.contexts, self.generations, self.scheduler = contexts, generations, scheduler
        self.lifecycle, self.mailroom, self.grants = lifecycle, mailroom, grants

    def run(self, system: str) -> None:
        """Restore all rows; of another system's only the contexts with a name."""
        rows = self.journal.rows
        self.journal.rows = {}
        numbers = rows.pop("next", None)
        if numbers is not None:
            self.table.last, self.contexts.last = msgspec.msgpack.decode(
                numbers[-1], type=tuple[int, int]
            )
        same = rows.pop("system", None) == [system.encode()]
        self.journal.put("system", system.encode())
        model = rows.pop("model", None)
        if same and model is not None:
            known = msgspec.msgpack.decode(model[-1], type=tuple[str, int, int])
            self.contexts.model, self.contexts.window, self.contexts.vocab = known
        policy = rows.pop("policy", None)
        if same and policy is not None:
            name, quantum = msgspec.msgpack.decode(policy[-1], type=tuple[str, int])
            self.scheduler.set_policy(name, quantum, 0.0)
        grouped: dict[str, list[tuple[list[int], list[bytes]]]] = {}
        for key, items in rows.items():
            kind, *ids = key.split("/")
            if same or kind == "context":
                grouped.setdefault(kind, []).append(([int(i) for i in ids], items))
            else:
                self.journal.put(key, None)
        for kind, take in (
            ("process", self._take_process),
            ("tokens", self._take_tokens),
            ("mail", self._take_mail),
            ("reply", self._take_reply),
            ("birth", self._take_spawn),
            ("job", self._take_job),
            ("grant", self._take_grant),
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
        self.journal.put(f"job/{ids[0]}", None)
        row = msgspec.msgpack.decode(items[-1], type=JobRow)
        if row.caller in self.trap.sessions.by_pid:
            call = self.trap.detached(row.caller, row.call, "tool.call")
            call.fail(ToolUnknown(f"the kernel died while {row.tool} ran"))

    def _take_grant(self, _ids: list[int], items: list[bytes]) -> None:
        self.grants.take(items[-1])

    def _take_spawn(self, ids: list[int], items: list[bytes]) -> None:
        row = msgspec.msgpack.decode(read_fields(items), type=PendingSpawnRow)
        process = self.table.rows[ids[0]]
        known = row.caller in self.trap.sessions.by_pid
        call = self.trap.detached(row.caller, row.call, "proc.spawn") if known else None
        pending = PendingSpawn(process, row.token, row.spawn, call, row.signals, row.greeted)
        self.lifecycle.pending_spawns[process.pid] = pending
        if call is not None:
            call.run(self.lifecycle.reply(pending))

    def _take_context(self, ids: list[int], items: list[bytes]) -> None:
        row = read_row(items)
        owner = self.table.rows.get(row.owner)
        unfinished = row.own and (row.work is None or row.work.call == 0)
        if row.name is None and (owner is None or unfinished):
            self.journal.put(f"context/{ids[0]}", None)
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
