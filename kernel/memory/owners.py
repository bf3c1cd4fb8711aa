"""Whose memory is whose. An owner is one life of an agent, or several where its memory is kept: who
comes back under the same principal has that again.

Two agents of one name never meet: an owner is found by pid, and kept memory goes to the first who
comes. In the store's table "memory", numbers big-endian:

    "o" owner                     a Row
    "k" owner space key           an item
    "g" owner space               a space that was cleared; its items are removed in small steps
    "g" owner                     an owner that is forgotten, with its interaction log, likewise

and in the table "log", below its owner, the interaction log, which outlives the memory.
"""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from operator import itemgetter

import msgspec

from aios.syscalls.errors import AiosError, BadInput, Conflict, LimitReached, NotFound, StoreDamaged
from aios.syscalls.mem import MAX_SPACES, Whose

from ..config import Config
from ..entry.call import Call
from ..lib.coroutine import background
from ..lib.trees import Trees, check_tree, in_tree
from ..process import Process, ProcessTable, check_principal
from ..store.store import NoStore, Store
from ..store.transaction import Txn
from .lru_k import Resident

STEP = 500  # rows that one job removes
KEPT = 1024  # names that one tree of agents may keep memory under

_encode = msgspec.msgpack.Encoder().encode


class Space(msgspec.Struct, array_like=True):
    number: int
    count: int = 0
    bytes: int = 0  # of keys and values


class Row(msgspec.Struct, omit_defaults=True):
    """What the store keeps of an owner."""

    pid: int  # 0: nobody has it
    system: str  # that the pid belongs to
    principal: str
    keep: bool = False
    ended: float = 0.0  # Unix time; of one that left its log alone
    spaces: dict[str, Space] = {}
    last_space: int = 0
    first_turn: int = 1  # of the interaction log
    last_turn: int = 0
    log_bytes: int = 0
    labels: list[str] = []  # of those who had it: where it may come from

    @property
    def bytes(self) -> int:
        return sum(space.bytes for space in self.spaces.values())

    def space(self, name: str) -> Space:
        """Or one that may become it. Raises LimitReached for one too many."""
        found = self.spaces.get(name)
        if found is None and len(self.spaces) >= MAX_SPACES:
            raise LimitReached(f"there are {MAX_SPACES} spaces: no more", "clear one first")
        return found or Space(self.last_space + 1)


_row = msgspec.msgpack.Decoder(Row).decode


@dataclass
class Owner:
    id: int
    pid: int  # 0: nobody has it
    principal: str
    limit: int | None
    resident: Resident[tuple[str, str]]  # by space and key
    keep: bool = False
    ended: bool = False
    stored: bool = False  # there is a row, or will be
    labels: frozenset[str] = frozenset()  # as in its row
    size: int = 0  # bytes, as in its row when that was written last
    above: list[Process] = field(default_factory=list)  # those whose limits hold for it too
    writing: dict[tuple[str, str], int] = field(default_factory=dict)  # not on disk yet: how often
    busy: int = 0  # writes to all of it that are on their way: it is adopted, or cleared
    accepted: int = 0  # puts of these that were acknowledged
    failed: int = 0
    fetched: int = 0  # items that came back from the store

    @property
    def key(self) -> bytes:
        return self.id.to_bytes(8, "big")

    def is_settled(self, names: Iterable[tuple[str, str]] | None = None) -> bool:
        """Whether nothing of it is being written, or of these items alone."""
        if self.busy:
            return False
        return not self.writing or (names is not None and self.writing.keys().isdisjoint(names))

    def begin(self, name: tuple[str, str]) -> None:
        """It is being written."""
        self.writing[name] = self.writing.get(name, 0) + 1

    def settled(self, name: tuple[str, str]) -> None:
        """One write of it has ended."""
        left = self.writing.pop(name) - 1
        if left:
            self.writing[name] = left


def item_key(owner: Owner, space: Space, key: str) -> bytes:
    return b"k%b%b%b" % (owner.key, space.number.to_bytes(4, "big"), key.encode())


class Owners:
    def __init__(
        self, store: Store | NoStore, table: ProcessTable, config: Config, system: str
    ) -> None:
        self.store, self.table, self.config, self.system = store, table, config, system
        self.by_id: dict[int, Owner] = {}
        self.by_pid: dict[int, Owner] = {}  # those that have ended as well
        self.kept: dict[str, Owner] = {}  # by principal
        self.ended_ones: deque[Owner] = deque()  # the first to be forgotten first
        self.last = 0
        self.trees = Trees()  # bytes, in the writer's thread
        self.sweeping = False
        self.stale: list[Owner] = []  # whose agents ended with another system
        if isinstance(store, Store):
            store.read(self._load)

    # --- at the kernel's start --------------------------------------------------------------------

    def _load(self, txn: Txn) -> None:
        ended: list[tuple[float, Owner]] = []
        for key in txn.keys("memory", b"o"):
            self.last = int.from_bytes(key[1:], "big")
            try:
                row = _row(txn.get("memory", key) or b"")
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
        self.ended_ones += [owner for _, owner in sorted(ended, key=itemgetter(0))]

    def recover(self) -> None:
        """Those whose end no kernel saw; processes are as init knows them by now."""
        missed = (o for o in self.by_pid.values() if not self.table.is_alive(o.pid))
        for owner in [*self.stale, *missed]:
            if not owner.ended:
                self._end(owner)
        self.stale = []
        self._forget_oldest()
        self.sweep()

    # --- finding ----------------------------------------------------------------------------------

    def _add(self, number: int, pid: int, principal: str) -> Owner:
        resident = Resident[tuple[str, str]](self.config.mem_resident)
        owner = Owner(number, pid, principal, self.config.limits.mem_bytes, resident)
        self.by_id[number] = owner
        return owner

    def _new(self, pid: int, principal: str) -> Owner:
        self.last += 1
        return self._add(self.last, pid, principal)

    def of(self, process: Process) -> Owner:
        """Its own: what it has, or was kept for it, or a new one."""
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

    async def _adopt(self, owner: Owner) -> None:
        """Have the store know whose this is, so no other gets it later; until then reads wait."""
        owner.busy += 1
        try:
            await self.store.write(lambda txn: self.put_row(txn, owner, self.row(txn, owner)))
        finally:
            owner.busy -= 1

    def find(self, call: Call, args: Whose, *, make: bool = False) -> Owner:
        """Whom a call is about; with `make`, of a principal that has no memory a kept one.

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

    def _living(self, principal: str) -> Owner | None:
        for process in self.table.live():
            if process.kind != "client" and process.principal == principal:
                return self.of(process)
        return None

    # --- rows, in the writer's thread -------------------------------------------------------------

    def row(self, txn: Txn, owner: Owner) -> Row:
        """As it is to be put: with who has it now."""
        data = txn.get("memory", b"o" + owner.key)
        row = Row(0, "", owner.principal, owner.keep) if data is None else _row(data)
        row.pid, row.system = owner.pid, self.system
        row.labels = sorted(owner.labels)
        return row

    def put_row(self, txn: Txn, owner: Owner, row: Row) -> None:
        txn.put("memory", b"o" + owner.key, _encode(row))
        self.count(owner, row)

    def count(self, owner: Owner, row: Row) -> None:
        """What it has now, for its tree."""
        self.grow(owner, row.bytes - owner.size)

    def grow(self, owner: Owner, grown: int) -> None:
        if grown:
            self.trees.add(owner.principal, grown)
            owner.size += grown

    def check_limits(self, owner: Owner, grown: int) -> None:
        """Raises LimitReached where an owner may not grow by that: each agent's limit holds for it
        and for all below it together, kept memory included."""
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

    def clear(self, txn: Txn, owner: Owner, row: Row, names: list[str]) -> None:
        """These spaces are empty from now on; their items are removed by and by."""
        for space in [row.spaces.pop(name) for name in names if name in row.spaces]:
            txn.put("memory", b"g%b%b" % (owner.key, space.number.to_bytes(4, "big")), b"")

    # --- ending -----------------------------------------------------------------------------------

    def keep(self, owner: Owner, *, keep: bool) -> None:
        """Claim the name, or let it go.

        Raises:
            BadInput: a client's memory is not kept.
            Conflict: another has kept memory under this name.
            LimitReached: its tree has kept as much as it may.
        """
        if keep and not owner.principal:
            raise BadInput("a client's memory ends with it", "give the principal of an agent")
        holder = self.kept.get(owner.principal)
        if keep and not owner.keep:
            check_tree(
                owner.principal, in_tree(owner.principal, self.kept), KEPT,
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
        owner = self.by_pid.get(process.pid)
        if owner is not None:
            self._end(owner)

    def let_go(self, owner: Owner) -> None:
        """What is not kept any more, and nobody has, ends."""
        if not owner.pid and not owner.keep and not owner.ended:
            self._end(owner)

    def _end(self, owner: Owner) -> None:
        owner.resident = Resident(self.config.mem_resident)
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
            self.ended_ones.append(owner)
            self._forget_oldest()
        elif owner.ended:  # a client has no log
            self._forget(owner)

    def _forget_oldest(self) -> None:
        """Of ended agents as many logs are kept as the settings say."""
        while len(self.ended_ones) > self.config.logs:
            self._forget(self.ended_ones.popleft())

    def _forget(self, owner: Owner) -> None:
        self._drop(owner)
        mark = b"g" + owner.key
        background(self._remove(lambda txn: txn.put("memory", mark, b"")), _tell)

    async def _remove(self, do: Callable[[Txn], None]) -> None:
        """Write what marks something as to be removed, and begin with it."""
        await self.store.write(do)
        self.sweep()

    def _drop(self, owner: Owner) -> None:
        del self.by_id[owner.id]
        if owner.pid:
            del self.by_pid[owner.pid]

    def sweep(self) -> None:
        """Remove what nobody has any more, while there is some."""
        if not self.sweeping:
            background(self._sweep(), _tell)

    async def _sweep(self) -> None:
        self.sweeping = True
        try:
            while await self.store.write(_remove_some):
                pass
        finally:
            self.sweeping = False

    def counts(self) -> dict[str, int]:
        """For the statistics."""
        owners = self.by_id.values()
        return {
            "mem_resident": sum(owner.resident.bytes for owner in owners),
            "mem_evicted": sum(owner.resident.evicted for owner in owners),
            "mem_fetched": sum(owner.fetched for owner in owners),
        }

    def check(self) -> list[str]:
        problems = [
            f"memory {owner.id} belongs to process {owner.pid}, which is not alive"
            for owner in self.by_id.values()
            if owner.pid and not owner.ended and not self.table.is_alive(owner.pid)
        ]
        problems += self.store.read(_miscounted) if isinstance(self.store, Store) else []
        return problems


def _remove_some(txn: Txn) -> bool:
    """Whether there may be more."""
    mark = next(txn.keys("memory", b"g"), None)
    if mark is None:
        return False
    owner, space = mark[1:9], mark[9:]
    table, prefix = ("memory", b"k" + owner + space) if space else ("log", owner)
    keys = list(islice(txn.keys(table, prefix), STEP))
    for key in keys:
        txn.delete(table, key)
    if len(keys) < STEP:
        txn.delete("memory", mark)
        if not space:
            txn.delete("memory", b"o" + owner)
    return True


def _miscounted(txn: Txn) -> list[str]:
    """Whether each space holds as many items and bytes as its owner's row says."""
    counted: Counter[tuple[bytes, int]] = Counter()
    for key in txn.keys("memory", b"k"):
        counted[key[1:13], 0] += 1
        counted[key[1:13], 1] += len(key) - 13 + (txn.size("memory", key) or 0)
    for mark in txn.keys("memory", b"g"):
        counted.pop((mark[1:], 0), None)
        counted.pop((mark[1:], 1), None)
    known: Counter[tuple[bytes, int]] = Counter()
    for key, data in txn.scan("memory", b"o"):
        for space in _row(data).spaces.values():
            at = key[1:] + space.number.to_bytes(4, "big")
            known[at, 0], known[at, 1] = space.count, space.bytes
    return [f"memory {at.hex()} is miscounted" for at, _ in (+counted - known) + (known - counted)]


def _not_adopted(error: AiosError) -> None:
    print(f"memory: whose it is was not written: {error}", file=sys.stderr, flush=True)


def _tell(error: AiosError) -> None:
    print(f"memory: not removed before the next start: {error}", file=sys.stderr, flush=True)
