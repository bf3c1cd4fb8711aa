"""The write batch: puts of many agents, written together. While one batch is being committed the
next one gathers.

So hundreds of calls share one transaction and one sync, from which memory has its throughput. Each
put is all or nothing by itself: its owner's limit is checked before it changes anything; and where
the store has no room for all, each put is tried in a nested transaction, so that only the one which
is too large fails.

A tree of agents has MAX_TREE_BYTES on their way to the disk. Whatever else it writes waits in its
backlog, in the order in which it came, and so delays nobody else.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeVar

from aios.syscalls.base import Done
from aios.syscalls.errors import AiosError, NotFound

from ..lib.coroutine import Wait, background
from ..store.transaction import Txn
from .owners import MemoryOwner, Owners
from .rows import OwnerRow, item_key

MAX_BATCH_BYTES = 1 << 20  # of values, about
MAX_TREE_BYTES = 8 << 20  # that the store has at once of one tree of agents
ITEM_BYTES, JOB_BYTES = 1 << 10, 1 << 20  # that an item, and a job that is no put, count besides

T = TypeVar("T")


@dataclass(slots=True)
class PendingPut:
    """A put that waits to be written, and then its outcome."""

    owner: MemoryOwner
    space: str
    data: dict[str, bytes]  # values as msgpack
    early: bool  # it was acknowledged already
    end: Wait[Done] = field(default_factory=Wait)
    error: AiosError | None = None
    size: int = field(init=False)
    counted: int = field(init=False)  # bytes that it takes of its tree's part

    def __post_init__(self) -> None:
        self.size = sum(map(len, self.data.values()))
        self.counted = self.size + ITEM_BYTES * len(self.data)


class PendingJob(NamedTuple):
    """A job that waits for its turn."""

    owner: MemoryOwner
    end: Wait[None]


class WriteBatch:
    """The puts that gather while others are being written, and the backlogs of trees."""

    def __init__(self, owners: Owners) -> None:
        self.store, self.owners = owners.store, owners
        self.waiting: list[PendingPut] = []
        self.size = 0
        self.batches = 0  # that are being written
        self.held: Counter[str] = Counter()  # bytes that the store has, or is to get next, by tree
        self.backlog: dict[str, deque[PendingPut | PendingJob]] = {}  # by tree

    def is_full(self, tree: str) -> bool:
        """Tell whether whatever a tree writes now has to wait for what it wrote before."""
        return tree in self.backlog or self.held[tree] >= MAX_TREE_BYTES

    def add(self, put: PendingPut) -> None:
        """Add a put. It is written at once if nothing else is, or if a batch is full."""
        owner = put.owner
        owner.stored = True
        for key in put.data:
            owner.begin_write((put.space, key))
        owner.accepted += put.early
        if self.is_full(owner.tree):
            self.backlog.setdefault(owner.tree, deque()).append(put)
        else:
            self._admit(put)

    def _admit(self, put: PendingPut) -> None:
        self.held[put.owner.tree] += put.counted
        self.waiting.append(put)
        self.size += put.size
        if not self.batches or self.size > MAX_BATCH_BYTES:
            self.flush()

    async def run(self, owner: MemoryOwner, job: Callable[[], Awaitable[T]], items: int = 0) -> T:
        """Run a job, about so many items, after all that was written to the memory before."""
        tree, counted = owner.tree, JOB_BYTES + ITEM_BYTES * items
        if self.is_full(tree):
            turn = PendingJob(owner, Wait())
            self.backlog.setdefault(tree, deque()).append(turn)
            try:
                await turn.end
            finally:
                self._leave(tree, turn)
        self.held[tree] += counted
        try:
            self.flush()
            return await job()
        finally:
            self._release(tree, counted)

    def _leave(self, tree: str, turn: PendingJob) -> None:
        """Take the turn of a call that was cancelled out of the backlog."""
        if turn in self.backlog.get(tree, ()):
            self.backlog[tree].remove(turn)
            self._release(tree, 0)

    def _release(self, tree: str, counted: int) -> None:
        """Let in as much of a tree's backlog as has room, when so much of it is written."""
        self.held[tree] -= counted
        while self.backlog.get(tree) and self.held[tree] < MAX_TREE_BYTES:
            entry = self.backlog[tree].popleft()
            if isinstance(entry, PendingPut):
                self._admit(entry)
            else:
                entry.end.done(None)
        if tree in self.backlog and not self.backlog[tree]:
            del self.backlog[tree]
        if not self.held[tree]:
            del self.held[tree]

    def drop(self, owner: MemoryOwner) -> None:
        """Fail what is in the backlog for memory that is going. No put of it was acknowledged."""
        tree, gone = owner.tree, NotFound("the memory is gone with its process")
        for entry in [each for each in self.backlog.get(tree, ()) if each.owner is owner]:
            self.backlog[tree].remove(entry)
            if isinstance(entry, PendingPut):
                _settle(entry, gone)
            else:
                entry.end.fail(gone)
        self._release(tree, 0)

    def flush(self) -> None:
        """Write the puts that wait, so that later writes come after them."""
        if self.waiting:
            puts, size = self.waiting, self.size
            self.waiting, self.size = [], 0
            self.batches += 1
            background(self._write(puts, size), partial(self._end, puts))

    async def _write(self, puts: list[PendingPut], size: int) -> None:
        tried: list[bool] = []
        await self.store.write(partial(self._do, puts, tried), size=size)
        self._end(puts)

    def _end(self, puts: list[PendingPut], error: AiosError | None = None) -> None:
        self.batches -= 1
        written: Counter[str] = Counter()
        for put in puts:
            _settle(put, error or put.error)
            written[put.owner.tree] += put.counted
        for tree, counted in written.items():
            self._release(tree, counted)
        if not self.batches:
            self.flush()

    # --- in the writer's thread -------------------------------------------------------------------

    def _do(self, puts: list[PendingPut], tried: list[bool], txn: Txn) -> None:
        if not tried:
            tried.append(True)
            self._do_all(puts, txn)
            return
        for put in puts:
            put.error = txn.attempt(partial(self._do_all, [put])) or put.error

    def _do_all(self, puts: list[PendingPut], txn: Txn) -> None:
        rows: dict[int, OwnerRow] = {}
        for put in puts:
            put.error = None
            try:
                row = rows.get(put.owner.id)
                if row is None:
                    row = rows[put.owner.id] = self.owners.row(txn, put.owner)
                    self.owners.count(put.owner, row)
                self._put(txn, put, row)
            except AiosError as error:
                put.error = error
        for put in puts:
            changed = rows.pop(put.owner.id, None)
            if changed is not None:
                self.owners.put_row(txn, put.owner, changed)

    def _put(self, txn: Txn, put: PendingPut, row: OwnerRow) -> None:
        """Put the items of one put. Raises LimitReached before anything is changed."""
        space = row.space(put.space)
        head = item_key(put.owner.key, space, "")
        count = grown = 0
        items = []
        for name, value in put.data.items():
            key = name.encode()
            old = txn.size("memory", head + key)
            count += old is None
            grown += len(value) + (len(key) if old is None else -old)
            items.append((head + key, value))
        if grown > 0:
            self.owners.check_limits(put.owner, grown)
        for full, value in items:
            txn.put("memory", full, value)
        row.spaces[put.space] = space
        row.last_space = max(row.last_space, space.number)
        space.count += count
        space.bytes += grown
        self.owners.grow(put.owner, grown)


def _settle(put: PendingPut, error: AiosError | None) -> None:
    """Tell the caller that its put is on disk, or has failed."""
    owner = put.owner
    owner.accepted -= put.early
    for key, value in put.data.items():
        owner.end_write((put.space, key))
        if error is None and not owner.ended:
            owner.cache.put((put.space, key), value)
    if error is not None:
        owner.failed += put.early
        put.end.fail(error)
    else:
        put.end.done(Done())
