"""The memory manager: short-term memory of agents, spaces of keys and values (paper, section 3.5).

All items are in the store; those in use are cached in RAM as well, up to a budget (lru_k.py). So an
evicted item is simply dropped, and read again when it is asked for. A write becomes visible when it
is on disk; a write that is acknowledged earlier, to every read that comes after: reads of an item
that is being written wait in the store's queue behind the write.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import msgspec

from aios.syscalls import mem
from aios.syscalls.base import Done
from aios.syscalls.errors import AiosError, BadInput, Conflict, StoreDamaged

from ..entry.call import Call
from ..lib.coroutine import Wait
from ..process import Process
from ..store.transaction import Txn
from .owners import MemoryOwner, Owners
from .rows import OwnerRow, item_key
from .write_batch import PendingPut, WriteBatch

REPLY_BYTES = 256 << 10  # of values in one reply, about
MAX_ACCEPTED_PUTS = 64  # of one owner, acknowledged before they are written

_encode = msgspec.msgpack.Encoder().encode
Name = tuple[str, str]  # space and key
T = TypeVar("T")


class Memory:
    """Short-term memory: each method serves one system call."""

    def __init__(self, owners: Owners) -> None:
        self.store, self.owners = owners.store, owners
        self.batch = WriteBatch(owners)

    # --- writing ----------------------------------------------------------------------------------

    def put(self, call: Call, args: mem.PutItems) -> Done | Wait[Done]:
        """Put items. They wait as bytes, where a coroutine would hold them as objects.

        Raises:
            LimitReached: they exceed the agent's mem_bytes; then nothing has changed.
        """
        for key in args.items:
            if len(key.encode()) > mem.MAX_KEY_BYTES:
                raise BadInput(f"a key of over {mem.MAX_KEY_BYTES} bytes", "shorten it")
        owner = self.owners.find(call, args, make=True)
        data = {key: _encode(value) for key, value in args.items.items()}
        early = (
            args.ack == "accepted"
            and owner.accepted < MAX_ACCEPTED_PUTS
            and not self.batch.is_full(owner.tree)
        )
        put = PendingPut(owner, args.space, data, early)
        self.batch.add(put)
        return Done() if early and not put.end.is_over else put.end  # there may be no store

    async def delete(self, call: Call, args: mem.DeleteItems) -> mem.Deleted:
        owner = self.owners.find(call, args)
        names = [(args.space, key) for key in dict.fromkeys(args.keys)]

        def do(txn: Txn) -> int:
            row = self.owners.row(txn, owner)
            count = _delete(txn, owner, row, names)
            self.owners.put_row(txn, owner, row)
            return count

        count = await self._write(owner, names, do, once=call.once)
        for name in names:
            owner.cache.drop(name)
        return mem.Deleted(count=count)

    async def clear(self, call: Call, args: mem.Clear) -> Done:
        owner = self.owners.find(call, args)

        def do(txn: Txn) -> None:
            row = self.owners.row(txn, owner)
            names = list(row.spaces) if args.space is None else [args.space]
            self.owners.clear(txn, owner, row, names)
            self.owners.put_row(txn, owner, row)

        await self._write(owner, [], do)
        for name in list(owner.cache.items):
            if args.space in (None, name[0]):
                owner.cache.drop(name)
        self.owners.sweep()
        return Done()

    async def keep(self, call: Call, args: mem.Keep) -> Done:
        """Keep memory for its principal, or no more. Raises Conflict where other memory is kept
        under the same name."""
        owner = self.owners.find(call, args, make=args.keep)
        before = owner.keep
        self.owners.keep(owner, keep=args.keep)

        def do(txn: Txn) -> None:
            row = self.owners.row(txn, owner)
            row.keep = args.keep
            self.owners.put_row(txn, owner, row)

        owner.stored = True
        try:
            await self.store.write(do)
        except AiosError:
            with contextlib.suppress(Conflict):  # another has claimed the name meanwhile
                self.owners.keep(owner, keep=before)
            raise
        self.owners.let_go(owner)
        return Done()

    async def _write(
        self, owner: MemoryOwner, names: list[Name], do: Callable[[Txn], Any], **options: Any
    ) -> Any:
        """Write these items, or all of an owner's where none are named. Reads of them wait."""
        owner.stored = True
        owner.busy += not names
        for name in names:
            owner.begin_write(name)
        try:
            return await self.batch.run(
                owner, lambda: self.store.write(do, **options), items=len(names)
            )
        finally:
            owner.busy -= not names
            for name in names:
                owner.end_write(name)

    def ended(self, process: Process) -> None:
        """Write the puts that wait, then end the memory of a process."""
        owner = self.owners.by_pid.get(process.pid)
        if owner is not None and not owner.keep:
            self.batch.drop(owner)
        self.batch.flush()
        self.owners.ended(process)

    # --- reading ----------------------------------------------------------------------------------

    async def _read(self, owner: MemoryOwner, do: Callable[[Txn], T], *, settled: bool) -> T:
        """Read at once where `settled`, else behind the writes under way."""
        if settled:
            return self.store.read(do)
        return await self.batch.run(owner, lambda: self.store.write(do))

    async def get(self, call: Call, args: mem.GetItems) -> mem.Items:
        """Get items. Raises StoreDamaged where a value fails its checksum."""
        owner = self.owners.find(call, args)
        settled = owner.is_settled((args.space, key) for key in args.keys)
        found: dict[str, bytes] = {}
        if settled:
            for key in args.keys:
                data = owner.cache.get((args.space, key))
                if data is not None:
                    found[key] = data
        away = [key for key in args.keys if key not in found]
        read: dict[str, bytes | None] = {}
        if away:
            read = await self._read(
                owner, partial(self._fetch, owner, args.space, away), settled=settled
            )
        for key, data in read.items():
            if data is not None:
                owner.cache.put((args.space, key), data)
                owner.fetched += 1
        return _page(args.keys, found | read)

    def _fetch(
        self, owner: MemoryOwner, name: str, keys: list[str], txn: Txn
    ) -> dict[str, bytes | None]:
        """Read the values of as many keys as one reply holds; None where there is no such key."""
        space = self.owners.row(txn, owner).spaces.get(name)
        found: dict[str, bytes | None] = {}
        size = 0
        for key in keys:
            if size > REPLY_BYTES:
                break
            data = None if space is None else txn.get("memory", item_key(owner.key, space, key))
            found[key] = data
            size += len(data or b"")
        return found

    async def scan(self, call: Call, args: mem.Scan) -> mem.Scanned:
        owner = self.owners.find(call, args)
        return await self._read(owner, partial(self._scan, owner, args), settled=owner.is_settled())

    def _scan(self, owner: MemoryOwner, args: mem.Scan, txn: Txn) -> mem.Scanned:
        page = mem.Scanned(items=[], damaged=[], after=None)
        space = self.owners.row(txn, owner).spaces.get(args.space)
        if space is None:
            return page
        head, size, last = item_key(owner.key, space, ""), 0, None
        start = b"" if args.after is None else item_key(owner.key, space, args.after)
        start += b"" if args.back or not start else b"\0"  # the next possible key
        for at in txn.keys("memory", head + args.prefix.encode(), start, back=args.back):
            if len(page.items) + len(page.damaged) == args.limit or size >= REPLY_BYTES:
                page.after = last
                break
            last = at[len(head) :].decode()
            try:
                data = txn.get("memory", at) or b""
                page.items.append((last, msgspec.Raw(data)))
                size += len(data)
            except StoreDamaged:
                page.damaged.append(last)
        return page

    async def spaces(self, call: Call, args: mem.Spaces) -> list[mem.Memory]:
        everybody = args.pid is None and args.principal is None and call.process.kind == "client"
        some = self.owners.by_id.values() if everybody else [self.owners.find(call, args)]
        shown = [owner for owner in some if not owner.ended]

        def do(txn: Txn) -> list[mem.Memory]:
            return [self._info(owner, self.owners.row(txn, owner)) for owner in shown]

        if all(owner.is_settled() for owner in shown):
            return self.store.read(do)
        self.batch.flush()
        infos: list[mem.Memory] = await self.store.write(do)
        return infos

    def _info(self, owner: MemoryOwner, row: OwnerRow) -> mem.Memory:
        holder = self.owners.kept.get(owner.principal)
        return mem.Memory(
            pid=owner.pid,
            principal=owner.principal,
            keep=row.keep,
            held_by=None if holder in (None, owner) or not holder else holder.pid,
            spaces=[
                mem.Space(name=name, count=space.count, bytes=space.bytes)
                for name, space in sorted(row.spaces.items())
            ],
            bytes=row.bytes,
            limit=owner.limit,
            resident=len(owner.cache.items),
            resident_bytes=owner.cache.bytes,
            evicted=owner.cache.evicted,
            fetched=owner.fetched,
            failed=owner.failed,
        )


def _delete(txn: Txn, owner: MemoryOwner, row: OwnerRow, names: list[Name]) -> int:
    count = 0
    for name, key in names:
        space = row.spaces.get(name)
        old = None if space is None else txn.size("memory", item_key(owner.key, space, key))
        if space is None or old is None:
            continue
        txn.delete("memory", item_key(owner.key, space, key))
        count += 1
        space.count -= 1
        space.bytes -= old + len(key.encode())
        if not space.count:
            del row.spaces[name]
    return count


def _page(keys: list[str], found: Mapping[str, bytes | None]) -> mem.Items:
    """Return as many of the items read as a reply holds, at least one."""
    items: dict[str, Any] = {}
    rest, size = [], 0
    for key in dict.fromkeys(keys):
        if key not in found or size > REPLY_BYTES:
            rest.append(key)
        elif (data := found[key]) is not None:
            items[key] = msgspec.Raw(data)
            size += len(data)
    return mem.Items(items=items, rest=rest)
