"""The write batch: puts of many agents, written together. While one batch is being committed the
next one gathers.

So hundreds of calls share one transaction and one sync, from which memory has its throughput. Each
put is all or nothing by itself: its owner's limit is checked before it changes anything; and where
the store has no room for all, each put is tried in a nested transaction, so that only the one which
is too large fails.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from aios.syscalls.base import Done
from aios.syscalls.errors import AiosError

from ..lib.coroutine import Wait, background
from ..store.transaction import Txn
from .owners import MemoryOwner, Owners
from .rows import OwnerRow, item_key

MAX_BATCH_BYTES = 1 << 20  # of values, about


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

    def __post_init__(self) -> None:
        self.size = sum(map(len, self.data.values()))


class WriteBatch:
    """The puts that gather while others are being written."""

    def __init__(self, owners: Owners) -> None:
        self.store, self.owners = owners.store, owners
        self.waiting: list[PendingPut] = []
        self.size = 0
        self.jobs = 0  # batches that are being written

    def add(self, put: PendingPut) -> None:
        """Add a put; write the batch if no other is being written, or if it is full."""
        owner = put.owner
        owner.stored = True
        for key in put.data:
            owner.begin_write((put.space, key))
        owner.accepted += put.early
        self.waiting.append(put)
        self.size += put.size
        if not self.jobs or self.size > MAX_BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the puts that wait, so that later writes come after them."""
        if self.waiting:
            puts, size = self.waiting, self.size
            self.waiting, self.size = [], 0
            self.jobs += 1
            background(self._write(puts, size), partial(self._end, puts))

    async def _write(self, puts: list[PendingPut], size: int) -> None:
        tried: list[bool] = []
        await self.store.write(partial(self._do, puts, tried), size=size)
        self._end(puts)

    def _end(self, puts: list[PendingPut], error: AiosError | None = None) -> None:
        self.jobs -= 1
        for put in puts:
            _settle(put, error or put.error)
        if not self.jobs:
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
