"""The storage manager: versioned objects that outlive their writers, under the paths of owners.

The catalogue (catalog.py) is in the store; contents are chunks (blobs.py). A change is one
transaction of the store: it is on disk before its caller hears of it, and a call that comes again
after the kernel's death is done once. Reads run in the kernel's loop.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from typing import Any

import msgspec

from aios.syscalls import sto
from aios.syscalls.base import Done
from aios.syscalls.errors import (
    AiosError,
    BadInput,
    Denied,
    NotFound,
    StoreDamaged,
)

from ..entry.call import Call
from ..lib.callbacks import ignore
from ..lib.coroutine import background
from ..lib.trees import Trees, root
from ..process import Process, check_principal
from ..rules import Mode
from ..store.done_calls import is_done
from ..store.store import NoStore, Store
from ..store.transaction import Txn
from .blobs import Blobs
from .catalog import (
    ENTRY_BYTES,
    IN_BACKUP,
    KEY_BYTES,
    TABLE,
    Catalog,
    OwnerUsage,
    VersionRow,
    all_owners,
    check_path,
    has_chunks,
    missing,
)
from .changes import Step, changed, purged, rolled_back
from .shares import SHARE_HINT, Shares, covers
from .turns import WriteTurns
from .uploads import Upload, Uploads
from .watches import Watches

MAX_SCANNED_ROWS = 500  # by a list, for one page


class Storage:
    """The objects of all owners. `quota` bounds the bytes of an agent with all below it; the
    setting `blobs` is `blobs_url`; `changed` hears of each commit."""

    def __init__(
        self, store: Store | NoStore, blobs: Blobs, shares: Shares, quota: int, blobs_url: str,
        changed: Callable[[], None] = ignore,
    ) -> None:  # fmt: skip
        self.store, self.blobs, self.shares, self.quota = store, blobs, shares, quota
        self.changed = changed
        self.uploads = Uploads(self)
        self.watches = Watches(self._reach)
        self.turns = WriteTurns()
        self.trees = Trees()  # bytes, in the writer's thread
        self.wrong: AiosError | None = None  # the error of every call, if none can be served
        try:
            self._begin(blobs_url)
        except AiosError as error:
            self.wrong = error

    def _begin(self, blobs_url: str) -> None:
        """Store the setting `blobs`, and end the uploads of the kernel before."""
        before = (self.store.read(lambda txn: txn.get(TABLE, b"b")) or blobs_url.encode()).decode()
        restored = before == IN_BACKUP and blobs_url != "lmdb"
        if before != blobs_url and not restored and self.store.read(has_chunks):
            raise BadInput(
                f"the contents of this store are in {before}, not in {blobs_url}",
                "set `blobs` to that; `aios sto export` and `import` move objects",
            )

        for held in self.store.read(all_owners):
            self.trees.set(held.name, held.used)
        self.store.read(self.shares.load)

        def begin(cat: Catalog) -> None:
            cat.txn.put(TABLE, b"b", blobs_url.encode())
            cat.release()

        background(self.write({}, begin), self._fail_all)

    def _fail_all(self, error: AiosError) -> None:
        self.wrong = error

    # --- changes ----------------------------------------------------------------------------------

    async def put(self, call: Call, args: sto.Put) -> sto.Version:
        change = sto.Change(
            path=args.path, data=args.data, upload=args.upload, tags=args.tags, media=args.media,
            if_version=args.if_version,
        )  # fmt: skip
        return (await self.batch(call, sto.Batch([change], args.owner)))[0]

    async def delete(self, call: Call, args: sto.Delete) -> sto.Version:
        change = sto.Change(args.path, delete=True, if_version=args.if_version)
        return (await self.batch(call, sto.Batch([change], args.owner)))[0]

    async def batch(self, call: Call, args: sto.Batch) -> list[sto.Version]:
        """Make all of the changes, or none."""
        at, by, now = self._owner(call, args.owner), call.process.principal, time.time()
        labels = sorted(call.process.labels)
        chunks: dict[bytes, bytes] = {}
        steps = []
        for change in args.changes:
            what: sto.What = "delete" if change.delete else "put"
            row = VersionRow(0, what, 0, now, by, change.tags, change.media, b"", labels)
            upload = self._fill(call, at, change, row, chunks)
            steps.append(changed(at, change, row, upload))

        paths = [change.path for change in args.changes]
        versions = await self._commit(call, at, paths, "write", steps, chunks)
        for change in args.changes:
            self.uploads.rows.pop(change.upload or 0, None)
        return versions

    def _fill(
        self, call: Call, owner: str, change: sto.Change, row: VersionRow,
        chunks: dict[bytes, bytes],
    ) -> Upload | None:  # fmt: skip
        """Put the content of a change into `row`: for an upload, the part that is not held yet."""
        if (change.data is not None) + (change.upload is not None) + change.delete != 1:
            raise BadInput("give exactly one of data, upload and delete")
        upload = self.uploads.find(call.process, owner, change.upload)
        data = change.data or (b"" if upload is None else bytes(upload.rest))
        row.size = len(data) if upload is None else upload.size
        if data:
            row.chunks = self.key(owner, data)
            chunks[row.chunks] = data
        return upload

    async def rollback(self, call: Call, args: sto.Restore) -> sto.Version:
        owner, by = self._owner(call, args.owner), call.process.principal
        step = rolled_back(owner, args, by)
        return (await self._commit(call, owner, [args.path], "write", [step]))[0]

    async def purge(self, call: Call, args: sto.Purge) -> sto.Version:
        """Drop a long history in several transactions, between which others write."""
        owner, by = self._owner(call, args.owner), call.process.principal

        def drop_some(cat: Catalog) -> bool:
            self.shares.check(cat.txn, call.process, owner, args.path, "own")
            return not is_done(cat.txn, call.once) and cat.drop_oldest(owner, args.path)

        while await self.write({}, drop_some, call, is_part=True):
            pass
        step = purged(owner, args, by)
        return (await self._commit(call, owner, [args.path], "own", [step]))[0]

    async def _commit(
        self, call: Call, owner: str, paths: list[str], mode: Mode, steps: list[Step],
        chunks: dict[bytes, bytes] | None = None,
    ) -> list[sto.Version]:  # fmt: skip
        """Run the steps in one transaction; tell the watching calls when it is on disk."""
        for path in paths:
            check_path(path)

        def check(txn: Txn) -> None:
            for path in paths:
                self.shares.check(txn, call.process, owner, path, mode)

        def run(cat: Catalog) -> list[sto.Version]:
            check(cat.txn)
            return [step(cat) for step in steps]

        self.store.read(check)  # before any chunk is written for a caller that may not
        size = 0 if mode == "own" else ENTRY_BYTES * len(steps)  # a purge makes room
        result = await self.write(chunks or {}, run, call, size)
        versions = msgspec.convert(result, list[sto.Version])  # plain, where the call came before
        is_new = bool(result) and isinstance(result[0], sto.Version)
        if is_new:  # else who watches has heard of it, or of a later one
            self._tell(versions)
        return versions

    async def write(
        self, chunks: dict[bytes, bytes], do: Callable[[Catalog], Any], call: Call | None = None,
        size: int = 0, *, is_part: bool = False,
    ) -> Any:  # fmt: skip
        """Make the chunks durable, then commit `do` in the turn of `call`, and once for it unless
        it is a part of more. `size`: bytes of the rows that `do` adds, 0 if it makes room."""
        quota = None if call is None or call.process.kind == "client" else self.quota

        def run(txn: Txn, drop: Callable[[bytes], None]) -> Any:
            result = do(cat := Catalog(txn, drop))
            cat.settle(quota, self.trees)
            return result

        if call is None:
            return await self.blobs.write(chunks, run, size=size)
        once = None if is_part else call.once
        write = partial(self.blobs.write, chunks, run, size=size, once=once)
        return await self.turns.take(root(call.process.principal), write)

    def _tell(self, versions: list[sto.Version]) -> None:
        """Tell the index and the watching calls of one commit, which is one owner's."""
        self.changed()
        self.watches.tell(versions)

    # --- reading ----------------------------------------------------------------------------------

    async def get(self, call: Call, args: sto.Get) -> sto.Content:
        owner = self._owner(call, args.owner)
        row = self._find(call, owner, args)
        end = min(row.size, args.offset + args.count)
        first, last = args.offset // sto.CHUNK_BYTES, -(-end // sto.CHUNK_BYTES)
        if end <= args.offset:
            last = first
        wanted = [row.chunks[i * KEY_BYTES : i * KEY_BYTES + KEY_BYTES] for i in range(first, last)]

        try:
            chunks = await self.blobs.read(wanted)
            if any(self.key(owner, data) != key for key, data in zip(wanted, chunks, strict=True)):
                raise StoreDamaged(f"the content of {args.path!r} is damaged")
        except AiosError:
            self._find(call, owner, args)  # or it was purged meanwhile
            raise
        call.process.taint(row.labels_for(owner, call.process.principal))
        start = args.offset - first * sto.CHUNK_BYTES
        data = b"".join(chunks)[start : start + max(0, end - args.offset)]
        return sto.Content(data=data, info=row.told(owner, args.path))

    def tell_read(self, process: Process, found: Iterable[tuple[str, str, int]]) -> None:
        """Taint a process that was told the text of these versions, as (owner, path, version)."""

        def look(txn: Txn) -> set[str]:
            labels: set[str] = set()
            for owner, path, version in found:
                try:
                    row = Catalog(txn).find(owner, path, version)
                except NotFound:  # purged meanwhile, and so nobody knows
                    labels.add(f"sto:{owner}")
                else:
                    labels |= row.labels_for(owner, process.principal)
            return labels

        process.taint(self.store.read(look))

    def _find(self, call: Call, owner: str, args: sto.Get) -> VersionRow:
        def find(txn: Txn) -> VersionRow:
            self.shares.check(txn, call.process, owner, args.path, "read")
            return Catalog(txn).find(owner, args.path, args.version)

        row = self.store.read(find)
        if row.what == "delete":
            raise NotFound(f"version {row.version} of {args.path!r} is a deletion")
        return row

    def scopes(self, call: Call, owner: str | None, path: str) -> list[tuple[str, str]]:
        """Return the scopes that a search of the caller may read. Raises as Shares.scopes does."""
        if owner:
            check_principal(owner)
        return self.store.read(
            partial(self.shares.scopes, process=call.process, owner=owner, path=path)
        )

    def objects(self, call: Call, args: sto.List) -> sto.Listed:
        owner, reach = self.reachable(call, args.owner, "read")

        def look(txn: Txn) -> sto.Listed:
            cat, found = Catalog(txn), []
            states = ("live", "deleted") if args.deleted else ("live",)
            for count, (path, head) in enumerate(cat.paths(owner, args.prefix, args.after), 1):
                if head.state in states and any(covers(each, path) for each in reach):
                    found.append(cat.find(owner, path, head.version).told(owner, path))
                if len(found) == args.limit or count == MAX_SCANNED_ROWS:
                    return sto.Listed(objects=found, after=path)
            return sto.Listed(objects=found, after=None)

        return self.store.read(look)

    def history(self, call: Call, args: sto.History) -> list[sto.Version]:
        owner = self._owner(call, args.owner)

        def look(txn: Txn) -> list[sto.Version]:
            self.shares.check(txn, call.process, owner, args.path, "read")
            rows = Catalog(txn).versions(owner, args.path, args.before)
            return [row.told(owner, args.path) for row in islice(rows, args.limit)]

        versions = self.store.read(look)
        if not versions and args.before is None:
            raise missing(owner, args.path)
        return versions

    async def watch(self, call: Call, args: sto.Watch) -> Any:
        owner, _ = self.reachable(call, args.owner, "read")
        await self.watches.follow(call, (owner, args.prefix))

    # --- owners -----------------------------------------------------------------------------------

    async def share(self, call: Call, args: sto.Share) -> Done:
        owner = self._owner(call, args.owner)
        if args.prefix:
            check_path(args.prefix)

        def do(cat: Catalog) -> None:
            self.shares.check(cat.txn, call.process, owner, args.prefix, "own")
            self.shares.give(cat.txn, owner, args)

        size = 0 if args.mode == "none" else ENTRY_BYTES
        await self.write({}, do, call, size)
        return Done()

    def list_shares(self, call: Call, args: sto.Shares) -> list[sto.SharedPrefix]:
        owner = self._owner(call, args.owner)

        def look(txn: Txn) -> list[sto.SharedPrefix]:
            self.shares.check(txn, call.process, owner, "", "own")
            given = self.shares.of(txn, owner)
            return given + [each for each in self.shares.to(txn, owner) if each.owner != owner]

        return self.store.read(look)

    def owners(self, call: Call, args: sto.Owners) -> sto.Holdings:
        """Return the owners and their bytes: all for a person, itself alone for an agent."""
        name = call.process.principal
        self._owner(call, None)

        def look(txn: Txn) -> list[OwnerUsage]:
            cat = Catalog(txn)
            return [cat.owner(name)] if name else [*islice(cat.owners(args.after), args.limit)]

        rows = self.store.read(look)
        held = [
            sto.Holding(owner=row.name, bytes=row.used, limit=self.quota if row.name else None)
            for row in rows
        ]
        more = not name and len(rows) == args.limit
        return sto.Holdings(owners=held, after=rows[-1].name if more else None)

    # --- parts ------------------------------------------------------------------------------------

    def check(self, live: list[Process]) -> list[str]:
        """Return broken invariants, in words."""
        pids = {process.pid for process in live}
        return [*self.watches.check()] + [
            f"an upload of process {upload.pid} is kept, which is gone"
            for upload in self.uploads.rows.values()
            if upload.pid not in pids
        ]

    def _owner(self, call: Call, owner: str | None) -> str:
        if self.wrong is not None:
            raise self.wrong
        if owner:  # "" is a person
            check_principal(owner)
        return call.process.principal if owner is None else owner

    def _reach(self, call: Call, owner: str, mode: Mode) -> list[str]:
        return self.store.read(
            partial(self.shares.reach, process=call.process, owner=owner, mode=mode)
        )

    def shared(self, principal: str, owner: str, path: str | None, mode: Mode) -> bool:
        """Tell whether an owner has shared a path with a principal; None stands for any path."""
        reach = self.store.read(
            partial(self.shares.shared, principal=principal, owner=owner, mode=mode)
        )
        return bool(reach) if path is None else any(covers(each, path) for each in reach)

    def reachable(self, call: Call, owner: str | None, mode: Mode) -> tuple[str, list[str]]:
        """Return the owner's name, and the prefixes that the caller may reach. Raises Denied where
        there are none."""
        at = self._owner(call, owner)
        reach = self._reach(call, at, mode)
        if not reach:
            raise Denied(
                f"{call.process.principal!r} may {mode} nothing of {at!r}",
                SHARE_HINT,
            )
        return at, reach

    def key(self, owner: str, data: bytes) -> bytes:
        """Return the key of a chunk. Equal contents have equal keys under one owner only, and
        nobody outside the store can tell a content from its key."""
        own = hashlib.blake2b(owner.encode(), key=self.store.id, digest_size=32).digest()
        return hashlib.blake2b(data, key=own, digest_size=KEY_BYTES).digest()
