"""The interaction log of each agent (paper, section 3.5): its generations and its messages. Only
the kernel writes it, after its replies: waiting entries are written by one job at a time. A kernel
that is killed loses the entries of the last moments, as long as a commit takes.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec

from aios.syscalls.errors import NotFound, StoreDamaged
from aios.syscalls.llm import PastMessage
from aios.syscalls.mem import Interaction, Interactions, LogPage
from aios.syscalls.msg import Mail

from ..entry.call import Call
from ..lib.coroutine import background
from ..lib.trees import leaves_room, root
from ..process import Process
from ..store.transaction import Txn
from .owners import MemoryOwner, Owners

if TYPE_CHECKING:
    from ..llm.generation import Generation

MAX_TEXT_CHARS = 4096  # that are logged of a text
ENTRY_BYTES = 1024  # of one entry, about
MAX_WAITING_ENTRIES = 4096  # to be written: the disk may be slower than the agents
REPLY_BYTES = 256 << 10  # of one reply, about

_encode = msgspec.msgpack.Encoder().encode
_entry = msgspec.msgpack.Decoder(Interaction).decode


class InteractionLog:
    """All interaction logs. `limit`: bytes of one agent's log, whose oldest entries are dropped."""

    def __init__(self, owners: Owners, limit: int) -> None:
        self.store, self.owners, self.limit = owners.store, owners, limit
        self.waiting: list[tuple[MemoryOwner, Interaction]] = []
        self.shares: Counter[str] = Counter()  # of those that wait, by tree of agents
        self.jobs = 0  # writes under way
        self.failed = False

    # --- adding -----------------------------------------------------------------------------------

    def generated(self, gen: Generation) -> None:
        """Log a generation that has ended, with an answer or without."""
        process, state = gen.call.process, gen.state
        cut: dict[str, int] = {}
        entry = self._entry(
            process, "generation",
            prompt=[_cut_message(each, cut) for each in state.given],
            answer=_cut("answer", state.text + gen.tail, cut),
            finish=gen.finish, usage=gen.usage(),
        )  # fmt: skip
        self._add(process, entry, cut)

    def sent(self, process: Process, to: Process, body: Any) -> None:
        cut: dict[str, int] = {}
        body = _cut_body(body, cut)
        entry = self._entry(process, "sent", peer=to.pid, name=to.name, body=body)
        self._add(process, entry, cut)

    def received(self, process: Process, mail: Mail) -> None:
        cut: dict[str, int] = {}
        body = _cut_body(mail.body, cut)
        entry = self._entry(process, "received", peer=mail.sender, name=mail.name, body=body)
        self._add(process, entry, cut)

    def _entry(self, process: Process, kind: Any, **what: Any) -> Interaction:
        return Interaction(turn=0, time=time.time(), pid=process.pid, kind=kind, **what)

    def _add(self, process: Process, entry: Interaction, cut: dict[str, int]) -> None:
        """Log an entry, unless it is a person's."""
        if process.kind == "client":
            return
        if cut:
            entry.cut = cut
        tree = root(process.principal)
        if not leaves_room(self.shares[tree], len(self.waiting), MAX_WAITING_ENTRIES):
            self._lost(f"{self.shares[tree]} entries of {tree} wait for the disk")
            return
        self.shares[tree] += 1
        owner = self.owners.of(process)
        owner.stored = True
        self.waiting.append((owner, entry))
        if not self.jobs:
            self.flush()

    # --- writing ----------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write the entries that wait: before a read, or the end."""
        if self.waiting:
            entries, self.waiting = self.waiting, []
            self.shares.clear()
            background(self._write(entries), lambda error: self._lost(str(error)))

    async def _write(self, entries: list[tuple[MemoryOwner, Interaction]]) -> None:
        """Write entries. If that fails they are lost, and the first error is printed."""

        def do(txn: Txn) -> None:
            for owner, entry in entries:
                self._append(txn, owner, entry)

        self.jobs += 1
        try:
            await self.store.write(do, size=ENTRY_BYTES * len(entries))
            self.failed = False
        finally:
            self.jobs -= 1
            if not self.jobs:
                self.flush()

    def _lost(self, why: str) -> None:
        if not self.failed:
            print(f"interaction log: not written: {why}", file=sys.stderr, flush=True)
        self.failed = True

    def _append(self, txn: Txn, owner: MemoryOwner, entry: Interaction) -> None:
        if owner.id not in self.owners.by_id:  # forgotten meanwhile
            return
        row = self.owners.row(txn, owner)
        row.last_turn += 1
        entry.turn = row.last_turn
        data = _encode(entry)
        txn.put("log", _key(owner, entry.turn), data)
        row.log_bytes += len(data)
        while row.log_bytes > self.limit and row.first_turn < row.last_turn:
            oldest = _key(owner, row.first_turn)
            row.log_bytes -= txn.size("log", oldest) or 0
            txn.delete("log", oldest)
            row.first_turn += 1
        self.owners.put_row(txn, owner, row)

    # --- reading ----------------------------------------------------------------------------------

    async def read(self, call: Call, args: Interactions) -> LogPage:
        """Read a page of the log, after the entries that are being written."""
        owners = self._whose(call, args)
        self.flush()

        def do(txn: Txn) -> LogPage:
            return _page(txn, owners, args)

        page: LogPage = await self.store.write(do) if self.jobs else self.store.read(do)
        return page

    def _whose(self, call: Call, args: Interactions) -> list[MemoryOwner]:
        """Return all owners of a principal; or the one of a process, alive or not."""
        if args.principal is not None:
            found = [o for o in self.owners.by_id.values() if o.principal == args.principal]
        elif args.pid is None:
            found = [self.owners.of(call.process)]
        else:
            found = [o for o in [self.owners.by_pid.get(args.pid)] if o is not None]
            if not found:
                self.owners.table.get(args.pid)
        if args.principal is not None and not found:
            raise NotFound(f"no interactions of {args.principal}", "`aios mem list` shows names")
        return found


def _key(owner: MemoryOwner, turn: int) -> bytes:
    return owner.key + turn.to_bytes(8, "big")


def _page(txn: Txn, owners: list[MemoryOwner], args: Interactions) -> LogPage:
    page, size = LogPage(entries=[], after=None), 0
    at = args.after
    for owner in sorted(owners, key=lambda owner: owner.id, reverse=args.back):
        start = b""
        if at is not None and owner.id == at[0]:
            start = _key(owner, at[1] + (not args.back))
        elif at is not None and (owner.id < at[0]) != args.back:
            continue
        for key in txn.keys("log", owner.key, start, back=args.back):
            if len(page.entries) == args.limit or size > REPLY_BYTES:
                return page
            try:
                data = txn.get("log", key) or b""
            except StoreDamaged:
                continue
            size += len(data)
            page.entries.append(_entry(data))
            page.after = (owner.id, page.entries[-1].turn)
    page.after = None
    return page


# --- cutting --------------------------------------------------------------------------------------


def _cut(name: str, text: str, cut: dict[str, int]) -> str:
    if len(text) > MAX_TEXT_CHARS:
        cut[name] = len(text)
    return text[:MAX_TEXT_CHARS]


def _cut_message(message: PastMessage, cut: dict[str, int]) -> PastMessage:
    return PastMessage(role=message.role, content=_cut("prompt", message.content, cut))


def _cut_body(body: Any, cut: dict[str, int]) -> Any:
    """Return a body as bytes: while it waits, its objects may take seventy times the room. A long
    body is cut to the first part of its JSON."""
    data = _encode(body)
    if len(data) <= MAX_TEXT_CHARS:
        return msgspec.Raw(data)
    text = body if isinstance(body, str) else msgspec.json.encode(body).decode()
    return _cut("body", text, cut)
