"""The memory manager: short-term memory of agents, spaces of keys and values (paper, section 3.5).

All of it is in the store; what an agent uses is in RAM as well, up to a budget (resident.py). So
what moves out is dropped, and read again when it is asked for. A write becomes visible when it is
on disk, or, where it was acknowledged before, at least to all who ask after that: reads of what is
being written wait in the store's queue behind it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec

from aios.syscalls import mem
from aios.syscalls.errors import AiosError, BadInput, Conflict, StoreDamaged
from aios.syscalls.messages import Done

from ..entry.trap import Call
from ..process import Process
from ..store.transaction import Txn
from .owners import Owner, Owners, Row, item_key
from .write_batch import Put, Puts

PAGE = 256 << 10  # bytes of values that one reply holds, about
ACCEPTED = 64  # puts of one owner that may be acknowledged before they are written

_encode = msgspec.msgpack.Encoder().encode
Name = tuple[str, str]  # space and key


class Memory:
    """All methods end the call, now or when the store has done its part."""

    def __init__(self, owners: Owners) -> None:
        self.store, self.owners = owners.store, owners
        self.puts = Puts(owners)

    # --- writing ----------------------------------------------------------------------------------

    def put(self, call: Call, args: mem.Put) -> None:
        """Fails with LimitReached past the agent's mem_bytes; then nothing has changed."""
        for key in args.items:
            if len(key.encode()) > mem.MAX_KEY:
                raise BadInput(f"a key of over {mem.MAX_KEY} bytes", "shorten it")
        owner = self.owners.find(call, args, make=True)
        data = {key: _encode(value) for key, value in args.items.items()}
        early = args.ack == "accepted" and owner.accepted < ACCEPTED
        self.puts.add(Put(call, owner, args.space, data, early))
        if early:
            call.done(Done())

    def delete(self, call: Call, args: mem.Delete) -> None:
        owner = self.owners.find(call, args)
        names = [(args.space, key) for key in dict.fromkeys(args.keys)]

        def do(txn: Txn) -> int:
            row = self.owners.row(txn, owner)
            count = _delete(txn, owner, row, names)
            self.owners.put_row(txn, owner, row)
            return count

        def done(count: int) -> mem.Deleted:
            for name in names:
                owner.resident.drop(name)
            return mem.Deleted(count=count)

        self._write(call, owner, names, do, done, once=(call.process.pid, call.id))

    def clear(self, call: Call, args: mem.Clear) -> None:
        owner = self.owners.find(call, args)

        def do(txn: Txn) -> None:
            row = self.owners.row(txn, owner)
            names = list(row.spaces) if args.space is None else [args.space]
            self.owners.clear(txn, owner, row, names)
            self.owners.put_row(txn, owner, row)

        def done(_: None) -> None:
            for name in list(owner.resident.items):
                if args.space in (None, name[0]):
                    owner.resident.drop(name)
            self.owners.sweep()

        self._write(call, owner, [], do, done)

    def keep(self, call: Call, args: mem.Keep) -> None:
        """Raises Conflict where other memory is kept under the same name."""
        owner = self.owners.find(call, args, make=args.keep)
        before = owner.keep
        self.owners.keep(owner, keep=args.keep)

        def do(txn: Txn) -> None:
            row = self.owners.row(txn, owner)
            row.keep = args.keep
            self.owners.put_row(txn, owner, row)

        def fail(error: AiosError) -> None:
            with contextlib.suppress(Conflict):  # another has claimed the name meanwhile
                self.owners.keep(owner, keep=before)
            call.fail(error)

        owner.stored = True

        def done(_: None) -> None:
            self.owners.let_go(owner)
            call.done(Done())

        self.store.write(do, done, fail)

    def _write(
        self, call: Call, owner: Owner, names: list[Name], do: Callable[[Txn], Any],
        then: Callable[[Any], Any], **options: Any,
    ) -> None:  # fmt: skip
        """`names` are being written until `then`, or without any all; what that returns is the
        reply."""
        self.puts.flush()
        owner.stored = True
        owner.busy += not names
        for name in names:
            owner.begin(name)

        def end() -> None:
            owner.busy -= not names
            for name in names:
                owner.settled(name)

        def done(result: Any) -> None:
            end()
            call.done(then(result) or Done())

        def fail(error: AiosError) -> None:
            end()
            call.fail(error)

        self.store.write(do, done, fail, **options)

    def ended(self, process: Process) -> None:
        self.puts.flush()
        self.owners.ended(process)

    # --- reading ----------------------------------------------------------------------------------

    def _read(
        self, call: Call, do: Callable[[Txn], Any], then: Callable[[Any], None], *, settled: bool
    ) -> None:
        """Now; or, where something that it reads is being written, behind that."""
        if settled:
            then(self.store.read(do))
        else:
            self.puts.flush()
            self.store.write(do, then, call.fail)

    def get(self, call: Call, args: mem.Get) -> None:
        """Fails with StoreDamaged where a value is not the one that was put."""
        owner = self.owners.find(call, args)
        settled = owner.is_settled((args.space, key) for key in args.keys)
        found: dict[str, bytes] = {}
        if settled:
            for key in args.keys:
                data = owner.resident.get((args.space, key))
                if data is not None:
                    found[key] = data
        away = [key for key in args.keys if key not in found]

        def done(read: dict[str, bytes | None]) -> None:
            for key, data in read.items():
                if data is not None:
                    owner.resident.put((args.space, key), data)
                    owner.fetched += 1
            call.done(_page(args.keys, found | read))

        if away:
            self._read(call, partial(self._fetch, owner, args.space, away), done, settled=settled)
        else:
            done({})

    def _fetch(self, owner: Owner, name: str, keys: list[str], txn: Txn) -> dict[str, bytes | None]:
        """Values of as many keys as one reply has room for; None: there is no such key."""
        space = self.owners.row(txn, owner).spaces.get(name)
        found: dict[str, bytes | None] = {}
        size = 0
        for key in keys:
            if size > PAGE:
                break
            data = None if space is None else txn.get("memory", item_key(owner, space, key))
            found[key] = data
            size += len(data or b"")
        return found

    def scan(self, call: Call, args: mem.Scan) -> None:
        owner = self.owners.find(call, args)
        do = partial(self._scan, owner, args)
        self._read(call, do, call.done, settled=owner.is_settled())

    def _scan(self, owner: Owner, args: mem.Scan, txn: Txn) -> mem.Scanned:
        page = mem.Scanned(items=[], damaged=[], after=None)
        space = self.owners.row(txn, owner).spaces.get(args.space)
        if space is None:
            return page
        head, size, last = item_key(owner, space, ""), 0, None
        start = b"" if args.after is None else item_key(owner, space, args.after)
        start += b"" if args.back or not start else b"\0"  # the next possible key
        for at in txn.keys("memory", head + args.prefix.encode(), start, back=args.back):
            if len(page.items) + len(page.damaged) == args.limit or size >= PAGE:
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

    def spaces(self, call: Call, args: mem.Spaces) -> None:
        everybody = args.pid is None and args.principal is None and call.process.kind == "client"
        some = self.owners.by_id.values() if everybody else [self.owners.find(call, args)]
        shown = [owner for owner in some if not owner.ended]

        def do(txn: Txn) -> list[mem.Memory]:
            return [self._info(owner, self.owners.row(txn, owner)) for owner in shown]

        settled = all(owner.is_settled() for owner in shown)
        self._read(call, do, call.done, settled=settled)

    def _info(self, owner: Owner, row: Row) -> mem.Memory:
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
            resident=len(owner.resident.items),
            resident_bytes=owner.resident.bytes,
            evicted=owner.resident.evicted,
            fetched=owner.fetched,
            failed=owner.failed,
        )


def _delete(txn: Txn, owner: Owner, row: Row, names: list[Name]) -> int:
    count = 0
    for name, key in names:
        space = row.spaces.get(name)
        old = None if space is None else txn.size("memory", item_key(owner, space, key))
        if space is None or old is None:
            continue
        txn.delete("memory", item_key(owner, space, key))
        count += 1
        space.count -= 1
        space.bytes -= old + len(key.encode())
        if not space.count:
            del row.spaces[name]
    return count


def _page(keys: list[str], found: Mapping[str, bytes | None]) -> mem.Items:
    """As many of those that were read as a reply holds, at least one."""
    items: dict[str, Any] = {}
    rest, size = [], 0
    for key in dict.fromkeys(keys):
        if key not in found or size > PAGE:
            rest.append(key)
        elif (data := found[key]) is not None:
            items[key] = msgspec.Raw(data)
            size += len(data)
    return mem.Items(items=items, rest=rest)
