"""The owners of memory. A process gets a new owner, unless memory was kept for its principal.

Two live agents of one name never share memory: an owner is found by pid, and kept memory goes to
the first process that comes. The interaction log is in the store's table "log" under its owner's
number, and outlives the memory.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from operator import itemgetter

from aios.syscalls.errors import AiosError, BadInput, Conflict, LimitReached, NotFound, StoreDamaged
from aios.syscalls.mem import Whose

from ..config import Config
from ..entry.call import Call
from ..lib.coroutine import background
from ..lib.trees import Trees, check_tree, in_tree, root
from ..process import Process, ProcessTable, check_principal
from ..store.store import NoStore, Store
from ..store.transaction import Txn
from .lru_k import LruKCache
from .rows import OwnerRow, decode_row, encode_row, miscounted, remove_some, space_mark

MAX_KEPT_NAMES = 1024  # that one tree of agents may keep memory under


@dataclass
class MemoryOwner:
    """The memory of one process, or of several in turn where it is kept."""

    id: int
    pid: int  # 0: no process has this memory
    principal: str
    limit: int | None
    cache: LruKCache[tuple[str, str]]  # by space and key
    keep: bool = False
    ended: bool = False
    stored: bool = False  # there is a row, or will be
    labels: frozenset[str] = frozenset()  # as in its row
    size: int = 0  # bytes, as in its row when that was written last
    above: list[Process] = field(default_factory=list)  # processes whose limits hold for it too
    writing: dict[tuple[str, str], int] = field(default_factory=dict)  # writes under way, by item
    busy: int = 0  # writes under way to the whole of it: it is adopted, or cleared
    accepted: int = 0  # puts under way that were acknowledged
    failed: int = 0
    fetched: int = 0  # items read back from the store
    tree: str = field(init=False)  # of agents

    def __post_init__(self) -> None:
        self.tree = root(self.principal)

    @property
    def key(self) -> bytes:
        return self.id.to_bytes(8, "big")

    def is_settled(self, names: Iterable[tuple[str, str]] | None = None) -> bool:
        """Tell whether no write is under way to this memory, or to these items."""
        if self.busy:
            return False
        return not self.writing or (names is not None and self.writing.keys().isdisjoint(names))

    def begin_write(self, name: tuple[str, str]) -> None:
        """Count a write of an item as under way."""
        self.writing[name] = self.writing.get(name, 0) + 1

    def end_write(self, name: tuple[str, str]) -> None:
        """Count a write of an item as ended."""
        left = self.writing.pop(name) - 1
        if left:
            self.writing[name] = left


class Owners:
    """All owners of memory, by id, by process, and by principal where memory is kept."""

    def __init__(
        self, store: Store | NoStore, table: ProcessTable, config: Config, system: str
    ) -> None:
        self.store, self.table, self.config, self.system = store, table, config, system
        self.by_id: dict[int, MemoryOwner] = {}
        self.by_pid: dict[int, MemoryOwner] = {}  # with owners whose process has ended
        self.kept: dict[str, MemoryOwner] = {}  # by principal
        self.ended_ones: dict[str, deque[MemoryOwner]] = {}  # by tree, the oldest first
        self.ended_count = 0
        self.last = 0
        self.trees = Trees()  # bytes, in the writer's thread
        self.sweeping = False
        self.stale: list[MemoryOwner] = []  # of agents that ended with another system
        if isinstance(store, Store):
            store.read(self._load)

    # --- at the kernel's start --------------------------------------------------------------------

    def _load(self, txn: Txn) -> None:
        ended: list[tuple[float, MemoryOwner]] = []
        for key in txn.keys("memory", b"o"):
            self.last = int.from_bytes(key[1:], "big")
            try:
                row = decode_row(txn.get("memory", key) or b"")
            except StoreDamaged as error:
                print(f"memory: an agent's is lost: {error}", file=sys.stderr, flush=True)
                continue
            owner = self._add(self.last, row.pid, row.principal)
            owner.keep, owner.ended, owner.stored = row.keep, row.ended > 0, True
            owner.labels = frozenset(row.labels)
            self.count(owner, row)
            if owner.keep:
                self.kept[owner.principal] = owner
            if owner.ended:
                ended.append((row.ended, owner))
            if row.pid and row.system == self.system:
                self.by_pid[row.pid] = owner
                continue
            owner.pid = 0
            if not owner.keep and not owner.ended:
                self.stale.append(owner)
        for _, owner in sorted(ended, key=itemgetter(0)):
            self._note_ended(owner)

    def recover(self) -> None:
        """End the owners whose process ended unseen. The process table is up to date by now."""
        missed = (o for o in self.by_pid.values() if not self.table.is_alive(o.pid))
        for owner in [*self.stale, *missed]:
            if not owner.ended:
                self._end(owner)
        self.stale = []
        self._forget_oldest()
        self.sweep()

    # --- finding ----------------------------------------------------------------------------------

    def _add(self, number: int, pid: int, principal: str) -> MemoryOwner:
        resident = LruKCache[tuple[str, str]](self.config.mem_resident)
        owner = MemoryOwner(number, pid, principal, self.config.limits.mem_bytes, resident)
        self.by_id[number] = owner
        return owner

    def _new(self, pid: int, principal: str) -> MemoryOwner:
        self.last += 1
        return self._add(self.last, pid, principal)

    def of(self, process: Process) -> MemoryOwner:
        """Return the memory of a process: its own, else that kept for its principal, else new."""
        owner = self.by_pid.get(process.pid)
        if owner is None:
            kept = self.kept.get(process.principal)
            free = kept is not None and kept.pid == 0
            owner = kept if free and kept else self._new(process.pid, process.principal)
            owner.pid = process.pid
            self.by_pid[process.pid] = owner
            if owner.keep:
                process.taint(owner.labels)
                background(self._adopt(owner), _not_adopted)
        if not owner.labels >= process.labels:
            owner.labels |= process.labels
        owner.limit, owner.above = process.limits.mem_bytes, process.line[1:]
        return owner

    async def _adopt(self, owner: MemoryOwner) -> None:
        """Store who has this memory now, so that no other gets it later; reads wait for that."""
        owner.busy += 1
        try:
            await self.store.write(lambda txn: self.put_row(txn, owner, self.row(txn, owner)))
        finally:
            owner.busy -= 1

    def find(self, call: Call, args: Whose, *, make: bool = False) -> MemoryOwner:
        """Return the memory that a call names. `make` creates kept memory for a principal that has
        none.

        Raises:
            NotFound: there is no such memory.
        """
        if args.pid is not None:
            return self.of(self._alive(args.pid))
        if args.principal is None:
            return self.of(call.process)
        check_principal(args.principal)
        owner = self.kept.get(args.principal) or self._living(args.principal)
        if owner is None and make:
            owner = self._new(0, args.principal)
            self.keep(owner, keep=True)
        if owner is None and isinstance(self.store, NoStore):
            raise self.store.error
        if owner is None:
            raise NotFound(f"{args.principal} has no memory", "`aios mem list` says who has")
        return owner

    def _alive(self, pid: int) -> Process:
        process = self.table.get(pid)
        if not process.alive:
            raise NotFound(f"process {pid} has ended", "`aios mem list` says whose memory is kept")
        return process

    def _living(self, principal: str) -> MemoryOwner | None:
        for process in self.table.live():
            if process.kind != "client" and process.principal == principal:
                return self.of(process)
        return None

    # --- rows, in the writer's thread -------------------------------------------------------------

    def row(self, txn: Txn, owner: MemoryOwner) -> OwnerRow:
        """Read an owner's row, with its pid and labels as of now."""
        data = txn.get("memory", b"o" + owner.key)
        row = OwnerRow(0, "", owner.principal, owner.keep) if data is None else decode_row(data)
        row.pid, row.system = owner.pid, self.system
        row.labels = sorted(owner.labels)
        return row

    def put_row(self, txn: Txn, owner: MemoryOwner, row: OwnerRow) -> None:
        txn.put("memory", b"o" + owner.key, encode_row(row))
        self.count(owner, row)

    def count(self, owner: MemoryOwner, row: OwnerRow) -> None:
        """Count for the owner's tree the bytes that its row has now."""
        self.grow(owner, row.bytes - owner.size)

    def grow(self, owner: MemoryOwner, grown: int) -> None:
        owner.size += grown
        if grown and owner.principal:  # a person's memory counts for no tree
            self.trees.add(owner.principal, grown)

    def check_limits(self, owner: MemoryOwner, grown: int) -> None:
        """Raise LimitReached where an owner may not grow by `grown` bytes. The limit of an agent
        holds for it and all agents below it together, kept memory included."""
        below = self.trees.below
        held = [(owner.principal, owner.size, owner.limit)]
        for process in owner.above:
            its = self.by_pid.get(process.pid)
            held.append((process.principal, its.size if its else 0, process.limits.mem_bytes))
        for principal, own, limit in held:
            size = own + below[principal] if principal else own
            if limit is not None and size + grown > limit:
                raise LimitReached(
                    f"{principal or 'a client'} has {size} bytes of memory, with all below it, and "
                    f"this is {grown} more: the limit is {limit}", "delete something first",
                )  # fmt: skip

    def clear(self, txn: Txn, owner: MemoryOwner, row: OwnerRow, names: list[str]) -> None:
        """Empty these spaces. Their items are removed later, in small steps."""
        for space in [row.spaces.pop(name) for name in names if name in row.spaces]:
            txn.put("memory", space_mark(owner.key, space), b"")

    # --- ending -----------------------------------------------------------------------------------

    def keep(self, owner: MemoryOwner, *, keep: bool) -> None:
        """Claim the principal's name for this memory, or give it up.

        Raises:
            BadInput: a client's memory is not kept.
            Conflict: other memory is kept under this name.
            LimitReached: the tree has kept memory under as many names as it may.
        """
        if keep and not owner.principal:
            raise BadInput("a client's memory ends with it", "give the principal of an agent")
        holder = self.kept.get(owner.principal)
        if keep and not owner.keep:
            check_tree(
                owner.principal, in_tree(owner.principal, self.kept), MAX_KEPT_NAMES,
                "names that memory is kept under",
                "have some given up: `aios mem keep --no`, or `aios mem forget`",
            )  # fmt: skip
        if keep and holder not in (None, owner):
            raise Conflict(
                f"other memory is kept as {owner.principal}",
                "let its agent give it up, or spawn this one with a name of its own",
            )
        owner.keep = keep
        if keep:
            self.kept[owner.principal] = owner
        elif holder is owner:
            del self.kept[owner.principal]

    def ended(self, process: Process) -> None:
        """End the memory of a process that has ended, unless it is kept."""
        owner = self.by_pid.get(process.pid)
        if owner is not None:
            self._end(owner)

    def let_go(self, owner: MemoryOwner) -> None:
        """End memory that is not kept any more and that no process has."""
        if not owner.pid and not owner.keep and not owner.ended:
            self._end(owner)

    def _end(self, owner: MemoryOwner) -> None:
        owner.cache = LruKCache(self.config.mem_resident)
        owner.ended = not owner.keep
        if owner.keep and owner.pid:
            del self.by_pid[owner.pid]
            owner.pid = 0
        if not owner.stored or isinstance(self.store, NoStore):
            self._drop(owner)
            return

        def do(txn: Txn) -> None:
            row = self.row(txn, owner)
            if not owner.keep:
                row.ended = time.time()
                self.clear(txn, owner, row, list(row.spaces))
            self.put_row(txn, owner, row)

        background(self._remove(do), _tell)
        if owner.ended and owner.principal:
            self._note_ended(owner)
            self._forget_oldest()
        elif owner.ended:  # a client has no log
            self._forget(owner)

    def _note_ended(self, owner: MemoryOwner) -> None:
        self.ended_ones.setdefault(owner.tree, deque()).append(owner)
        self.ended_count += 1

    def _forget_oldest(self) -> None:
        """Keep the logs of as many ended agents as the settings say. The oldest goes of the tree
        that has most, so that no tree pushes out the logs of others."""
        while self.ended_count > self.config.logs:
            tree = max(self.ended_ones, key=lambda each: len(self.ended_ones[each]))
            self._forget(self.ended_ones[tree].popleft())
            self.ended_count -= 1
            if not self.ended_ones[tree]:
                del self.ended_ones[tree]

    def _forget(self, owner: MemoryOwner) -> None:
        self._drop(owner)
        mark = b"g" + owner.key
        background(self._remove(lambda txn: txn.put("memory", mark, b"")), _tell)

    async def _remove(self, do: Callable[[Txn], None]) -> None:
        """Write a mark, and begin to remove the rows that it marks."""
        await self.store.write(do)
        self.sweep()

    def _drop(self, owner: MemoryOwner) -> None:
        del self.by_id[owner.id]
        if owner.pid:
            del self.by_pid[owner.pid]

    def sweep(self) -> None:
        """Remove marked rows until none is left."""
        if not self.sweeping:
            background(self._sweep(), _tell)

    async def _sweep(self) -> None:
        self.sweeping = True
        try:
            while await self.store.write(remove_some):
                pass
        finally:
            self.sweeping = False

    def counts(self) -> dict[str, int]:
        """Return the counts that the statistics show."""
        owners = self.by_id.values()
        return {
            "mem_resident": sum(owner.cache.bytes for owner in owners),
            "mem_evicted": sum(owner.cache.evicted for owner in owners),
            "mem_fetched": sum(owner.fetched for owner in owners),
        }

    def check(self) -> list[str]:
        """Return broken invariants, in words."""
        problems = [
            f"memory {owner.id} belongs to process {owner.pid}, which is not alive"
            for owner in self.by_id.values()
            if owner.pid and not owner.ended and not self.table.is_alive(owner.pid)
        ]
        problems += self.store.read(miscounted) if isinstance(self.store, Store) else []
        return problems


def _not_adopted(error: AiosError) -> None:
    print(f"memory: whose it is was not written: {error}", file=sys.stderr, flush=True)


def _tell(error: AiosError) -> None:
    print(f"memory: not removed before the next start: {error}", file=sys.stderr, flush=True)
