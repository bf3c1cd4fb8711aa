"""The store: one LMDB environment, opened by the kernel alone. What is acknowledged is on disk.

Reads run in the kernel's loop. Writes are functions over a transaction; a thread runs all that
wait in one transaction (group commit), each in a transaction of its own below it, so one that
raises leaves nothing behind. LMDB checks no sums: each value is checked, or sealed (seal.py).

The file is extended ahead, with written zeros: a commit then has no metadata of the file to sync,
which makes it 30 times quicker (DESIGN.md section 2), and cannot run out of disk half way.
"""

from __future__ import annotations

import fcntl
import os
import queue
import secrets
import shutil
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import msgspec

from aios.syscalls.errors import (
    AiosError,
    BadInput,
    DiskFull,
    HomeBusy,
    Internal,
    StoreDamaged,
    StoreFull,
)

from .seal import Checked, Damaged, Keeper

FORMAT = 1
TABLES = ("meta", "done", "memory", "log", "catalog", "blobs")
MAX_KEY = 511  # bytes, LMDB's
AHEAD = 8 << 20  # bytes that the file is extended by, at least
GROUP = 4 << 20  # bytes of one commit, about
ROOM = 2 * GROUP  # bytes that the file is to have for the next
RESERVE = 256  # values of half a page that a store has room for when it counts as full
PAGES = 8192  # bytes that a job adds to that, about: the pages that its keys are in
RESTORE = "restore a backup, or move the folder away to begin with an empty store"
DONE = 1024  # replies that are kept for one caller

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


class Txn:
    """One transaction over the tables; keys and values are bytes."""

    def __init__(
        self, env: lmdb.Environment, txn: lmdb.Transaction, tables: dict[str, Any], keeper: Keeper
    ) -> None:
        self.env, self.txn, self.tables, self.keeper = env, txn, tables, keeper

    def attempt(self, do: Callable[[Txn], Any]) -> AiosError | None:
        """Run it in a transaction below this one; what it fails with, and has left nothing of."""
        try:
            with self.env.begin(write=True, parent=self.txn) as child:
                do(Txn(self.env, child, self.tables, self.keeper))
        except lmdb.MapFullError:
            return StoreFull("the store has reached the size that it may have")
        except AiosError as error:
            return error
        return None

    def get(self, table: str, key: bytes) -> bytes | None:
        """Raises StoreDamaged where the value is not the one that was put."""
        data = self.txn.get(key, db=self.tables[table])
        try:
            return None if data is None else self.keeper.open(table, key, data)
        except Damaged as error:
            raise StoreDamaged(
                f"the store's {table} holds a damaged value at {key[:64]!r}: {error}"
            ) from None

    def size(self, table: str, key: bytes) -> int | None:
        """Bytes of the value, damaged or not."""
        data = self.txn.get(key, db=self.tables[table])
        return None if data is None else len(data) - self.keeper.overhead

    def put(self, table: str, key: bytes, value: bytes) -> None:
        self.txn.put(key, self.keeper.close(table, key, value), db=self.tables[table])

    def delete(self, table: str, key: bytes) -> bool:
        return bool(self.txn.delete(key, db=self.tables[table]))

    def scan(
        self, table: str, prefix: bytes, start: bytes = b"", *, back: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Keys that begin with `prefix`, rising, from `start` on; or `back` from the last one
        before `start`, where there is one."""
        for key in self.keys(table, prefix, start, back=back):
            yield key, self.get(table, key) or b""

    def keys(
        self, table: str, prefix: bytes, start: bytes = b"", *, back: bool = False
    ) -> Iterator[bytes]:
        """Likewise, also those whose values are damaged."""
        with self.txn.cursor(db=self.tables[table]) as cursor:
            found = _before(cursor, prefix, start) if back else cursor.set_range(max(prefix, start))
            while found and (key := bytes(cursor.key())).startswith(prefix):
                yield key
                found = cursor.prev() if back else cursor.next()

    def drop(self, table: str) -> None:
        """All of it."""
        self.txn.drop(self.tables[table], delete=False)


def _before(cursor: lmdb.Cursor, prefix: bytes, start: bytes) -> bool:
    """Move to the last key with `prefix` that is below `start`."""
    end = start or prefix + b"\xff" * (MAX_KEY - len(prefix))
    return bool(cursor.prev() if cursor.set_range(end) else cursor.last())


class Job(msgspec.Struct):
    do: Callable[[Txn], Any]
    then: Callable[[Any], None]
    fail: Callable[[AiosError], None]
    size: int
    once: bytes | None
    result: Any = None
    error: AiosError | None = None


class Store:
    """The store in `folder`. `post` runs a function in the kernel's loop, from another thread.
    `limit` is what the file may grow to, in bytes. `system` names what the callers belong to: what
    was kept of calls to another one is dropped. `id` is this store's for good, and secret.

    Raises:
        HomeBusy: another process has it open.
        StoreDamaged: the file is cut short, no store, or one of a later version.
        DiskFull: there is no room for it.
    """

    def __init__(
        self, folder: Path, post: Callable[[Callable[[], None]], None], *, limit: int = 8 << 30,
        system: str = "", keeper: Keeper = Checked(),  # noqa: B008 (it has no state)
    ) -> None:  # fmt: skip
        self.keeper = keeper
        self.folder, self.post, self.limit = folder, post, limit
        self.path = folder / "data.mdb"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.lock = _lock(folder / "lock")
        self.broken: AiosError | None = None
        self.full: str | None = None  # why the file cannot be extended
        self.commits = self.written = 0
        self.freed = False  # there was a commit since the last put that had no room
        try:
            self._open(system)
        except (lmdb.Error, OSError) as error:
            os.close(self.lock)
            raise StoreDamaged(f"cannot open the store in {folder}: {error}", RESTORE) from error
        except AiosError:
            os.close(self.lock)
            raise
        self.jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._work, name="store", daemon=True)
        self.thread.start()

    def _open(self, system: str) -> None:
        self.env = lmdb.open(
            os.fspath(self.folder), map_size=self.limit, max_dbs=len(TABLES), max_readers=16,
            mode=0o600, meminit=False,
        )  # fmt: skip
        self.env.reader_check()
        self.size = self.path.stat().st_size
        if self._room() < 0:  # LMDB maps the file: a page that is not there would be our SIGBUS
            raise StoreDamaged(f"{self.path} is cut short: {self.size} bytes", RESTORE)
        self._extend()
        with self.env.begin(write=True) as txn:
            self.tables = {name: self.env.open_db(name.encode(), txn=txn) for name in TABLES}
            new = Txn(self.env, txn, self.tables, self.keeper)
            known = new.get("meta", b"format")
            if known is not None and _decode(known) > FORMAT:
                raise StoreDamaged(
                    f"the store in {self.folder} has format {_decode(known)}, this AIOS knows up "
                    f"to {FORMAT}",
                    "use the AIOS that wrote it, or a newer one",
                )
            if known is None:
                new.put("meta", b"format", _encode(FORMAT))
                new.put("meta", b"id", secrets.token_bytes(32))
            self.id = new.get("meta", b"id") or b""
            if new.get("meta", b"system") != system.encode():
                new.drop("done")
                new.put("meta", b"system", system.encode())

    # --- use --------------------------------------------------------------------------------------

    def read(self, do: Callable[[Txn], Any]) -> Any:
        """Run `do` over what is committed.

        Raises:
            StoreDamaged: what it read is damaged; and whatever `do` raises.
        """
        try:
            return self._read(do)
        except lmdb.Error as error:
            raise StoreDamaged(
                f"cannot read the store in {self.folder}: {error}", RESTORE
            ) from None
        except AiosError as error:
            # Whoever keeps it would keep the transaction alive, which has one of few slots.
            raise error.with_traceback(None) from None

    def _read(self, do: Callable[[Txn], Any]) -> Any:
        with self.env.begin() as txn:
            return do(Txn(self.env, txn, self.tables, self.keeper))

    def write(
        self, do: Callable[[Txn], Any], then: Callable[[Any], None],
        fail: Callable[[AiosError], None], *, size: int = 0, once: tuple[int, int] | None = None,
    ) -> None:  # fmt: skip
        """Have `do` run in the writer's thread; when what it put is on disk, `then` hears its
        result in the loop. What `do` raises undoes it, and `fail` hears of it. It may
        run twice: when one of its group fails the commit, each is tried by itself.

        `size`: bytes of the values that it puts, 0 if it makes room. `once`: the pid and the id of
        the call that this is; should the same call come again, `then` hears the first result, which
        has to be plain.
        """
        key = None if once is None else b"%d/%d" % once
        self.jobs.put(Job(do, then, fail, size, key))

    def backup(self, target: Path) -> None:
        """Copy what is committed now to the folder `target`, compacted; from any thread.

        Raises:
            BadInput: the folder cannot be made, or cannot hold the copy.
        """
        try:
            target.mkdir(mode=0o700, parents=True)
        except OSError as error:
            raise BadInput(
                f"cannot make {target}: {error.strerror}", "name a new folder"
            ) from error
        try:
            self.env.copy(os.fspath(target), compact=True)
        except (lmdb.Error, OSError) as error:
            shutil.rmtree(target)
            raise BadInput(
                f"no backup in {target}: {error}", "look for room on its disk"
            ) from error

    def close(self) -> None:
        """Have what was asked for committed, and stop."""
        self.jobs.put(None)
        self.thread.join()
        self.env.close()
        os.close(self.lock)

    # --- the writer's thread ----------------------------------------------------------------------

    def _work(self) -> None:
        while (job := self.jobs.get()) is not None:
            group, size = [job], job.size
            while size < GROUP and not self.jobs.empty():
                following = self.jobs.get()
                if following is None:
                    self._commit(group)
                    return
                group.append(following)
                size += following.size + PAGES
            self._commit(group)
            self._extend()

    def _commit(self, group: list[Job]) -> None:
        """All at once, or each by itself if that fails, so that it fails whom it must."""
        try:
            self._run(group)
        except (lmdb.Error, OSError) as error:
            if len(group) > 1 and self._recovers(error):
                for job in group:
                    self._commit([job])
                return
            if isinstance(error, lmdb.MapFullError) and self._reclaim():
                self._commit(group)
                return
            for job in group:
                job.error = self._error(error)
        self.post(lambda: _tell(group))

    def _run(self, group: list[Job]) -> None:
        if self.broken is not None:
            for job in group:
                job.error = self.broken
            return
        with self.env.begin(write=True) as txn:
            for job in group:
                self._do(txn, job)
            if any(job.size and job.error is None for job in group):
                self._check_reserve(txn)
        self.freed = True
        self.commits += 1
        self.written += sum(job.size for job in group)

    def _do(self, txn: lmdb.Transaction, job: Job) -> None:
        job.result, job.error = None, None
        if job.size and self.full is not None and self._room() < ROOM:
            job.error = DiskFull(f"the store cannot grow: {self.full}", "make room on that disk")
            return
        try:
            with self.env.begin(write=True, parent=txn) as child:
                job.result = self._once(Txn(self.env, child, self.tables, self.keeper), job)
        except AiosError as error:
            job.error = error
        except lmdb.BadValsizeError as error:
            job.error = BadInput(f"a key or value that the store cannot hold: {error}")
        except lmdb.Error:
            raise
        except Exception:  # noqa: BLE001 (a defect in `do`: its caller is told, the store goes on)
            traceback.print_exc(file=sys.stderr)
            job.error = Internal("the kernel failed to serve this call")

    def _reclaim(self) -> bool:
        """LMDB reuses pages from the second commit after they came free on. A put that is refused
        makes no commit, so there has to be one more, or it would be refused for ever."""
        if not self.freed:
            return False
        self.freed = False
        try:
            with self.env.begin(write=True) as txn:
                txn.put(b"reclaim", b"", db=self.tables["meta"])
        except lmdb.MapFullError:
            return False
        return True

    def _check_reserve(self, txn: lmdb.Transaction) -> None:
        """Raises MapFullError where too little would be left to delete in: that takes pages, too.
        Those that are free again LMDB counts nowhere, so it is tried, and undone."""
        if self.limit - self._used() > ROOM:
            return
        with self.env.begin(write=True, parent=txn) as child:
            for number in range(RESERVE):
                child.put(b"reserve%d" % number, bytes(2000), db=self.tables["meta"])
            child.abort()

    def _once(self, txn: Txn, job: Job) -> Any:
        if job.once is None:
            return job.do(txn)
        known = txn.get("done", job.once)
        if known is not None:
            return _decode(known)
        result = job.do(txn)
        txn.put("done", job.once, _encode(result))
        pid, _, call = job.once.partition(b"/")
        txn.delete("done", b"%b/%d" % (pid, int(call) - DONE))
        return result

    def _recovers(self, error: Exception) -> bool:
        """Whether one of a group may be what failed it."""
        return self.broken is None and isinstance(error, lmdb.MapFullError | lmdb.DiskError)

    def _error(self, error: Exception) -> AiosError:
        if isinstance(error, lmdb.MapFullError):
            return StoreFull(f"the store has reached its {self.limit} bytes")
        if isinstance(error, lmdb.DiskError):
            return DiskFull("the store cannot be written: its disk is full")
        # What a failed write or sync has left of the file's pages in memory is not known.
        self.broken = self.broken or StoreDamaged(
            f"the store failed: {error}", "see to the disk, then `aios stop` and `aios start`"
        )
        return self.broken

    # --- the file ---------------------------------------------------------------------------------

    def _room(self) -> int:
        """Bytes of the file behind all pages in use."""
        return self.size - self._used()

    def _used(self) -> int:
        return int(self.env.info()["last_pgno"] + 1) * int(self.env.stat()["psize"])

    def _extend(self) -> None:
        self.full = None
        self.size = self.path.stat().st_size  # LMDB has grown it, where one job was that large
        if self._room() >= ROOM or self.size >= self.limit:
            return
        grown = min(self.limit, self.size + max(AHEAD, self.size // 8))
        file = os.open(self.path, os.O_WRONLY)
        try:
            zeros = bytes(1 << 20)
            at = self.size
            while at < grown:
                at += os.pwrite(file, zeros[: grown - at], at)
            os.fsync(file)
            self.size = grown
        except OSError as error:
            os.ftruncate(file, self.size)
            self.full = error.strerror
        finally:
            os.close(file)


class NoStore:
    """In the place of a store that cannot be opened: everything else goes on."""

    commits = 0
    id = b""

    def __init__(self, error: AiosError) -> None:
        self.error = error

    def read(self, do: Callable[[Txn], Any]) -> Any:
        raise self.error

    def write(
        self, do: Callable[[Txn], Any], then: Callable[[Any], None],
        fail: Callable[[AiosError], None], **_options: Any,
    ) -> None:  # fmt: skip
        fail(self.error)

    def backup(self, target: Path) -> None:
        raise self.error

    def close(self) -> None:
        pass


def _tell(group: list[Job]) -> None:
    for job in group:
        if job.error is not None:
            job.fail(job.error)
        else:
            job.then(job.result)


def _lock(path: Path) -> int:
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise HomeBusy(f"another kernel has {path.parent} open", "stop it first") from error
    return lock
