"""The store: one LMDB environment, opened by the kernel alone. What is acknowledged is on disk.

Reads run in the kernel's loop. Writes are functions over a transaction; a thread runs all that
wait in one transaction (group commit), each in a transaction of its own below it, so one that
raises leaves nothing behind. Each value is checked, or sealed (encryption.py).
"""

from __future__ import annotations

import errno
import fcntl
import os
import queue
import secrets
import shutil
import struct
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import takewhile
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

from ..lib.coroutine import Wait, background
from ..lib.encryption import ChecksumCodec, ValueCodec
from .file_space import GROUP, Room
from .transaction import Txn

FORMAT = 1
TABLES = ("meta", "done", "memory", "log", "catalog", "blobs")
PAGES = 8192  # bytes that a job adds to a group, about: the pages that its keys are in
RESTORE = "restore a backup, or move the folder away to begin with an empty store"
DONE = 1024  # replies that are kept for one caller
CALL = struct.Struct(">QQ")  # who called, and its number

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


class Job(msgspec.Struct):
    do: Callable[[Txn], Any]
    end: Wait[Any]
    size: int
    once: bytes | None
    result: Any = None
    error: AiosError | None = None


class Store:
    """The store in `folder`. `post` runs a function in the kernel's loop, from another thread.
    `limit` is what the file may grow to, in bytes. `barrier` runs in the writer's thread before
    each commit: what it makes durable lasts if the commit does. `system` names what the callers
    belong to: what was kept of calls to another one is dropped. `id` is this store's for good, and
    secret.

    Raises:
        HomeBusy: another process has it open.
        StoreDamaged: the file is cut short, no store, or one of a later version.
        DiskFull: there is no room for it.
    """

    def __init__(
        self, folder: Path, post: Callable[[Callable[[], None]], None], *, limit: int = 8 << 30,
        system: str = "", barrier: Callable[[], None] = lambda: None,
        keeper: ValueCodec = ChecksumCodec(),  # noqa: B008 (it has no state)
    ) -> None:  # fmt: skip
        self.folder, self.post, self.limit, self.barrier = folder, post, limit, barrier
        self.keeper = keeper
        self.path = folder / "data.mdb"
        self.broken: AiosError | None = None
        self.tables: dict[str, Any] = {}
        self.callers: set[int] = set()  # of whom calls are remembered
        self.commits = self.written = 0
        self.freed = False  # there was a commit since the last put that had no room
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.lock = _lock(folder / "lock")
            try:
                self._open(system)
            except BaseException:
                os.close(self.lock)
                raise
        except (lmdb.Error, OSError) as error:
            raise _cannot_open(folder, error) from error
        self.jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._work, name="store", daemon=True)
        self.thread.start()

    def _open(self, system: str) -> None:
        self.env = lmdb.open(
            os.fspath(self.folder), map_size=self.limit, max_dbs=len(TABLES), max_readers=16,
            mode=0o600, meminit=False,
        )  # fmt: skip
        try:
            self.env.reader_check()
            self.room = Room(self.env, self.path, self.limit, self.tables)
            if self.room.behind() < 0:  # LMDB maps it: a page that is not there would be our SIGBUS
                raise StoreDamaged(f"{self.path} is cut short: {self.room.size} bytes", RESTORE)
            with self.env.begin(write=True) as txn:
                self._begin(txn, system)
            self.room.extend()
        except BaseException:
            self.env.close()
            raise

    def _begin(self, txn: lmdb.Transaction, system: str) -> None:
        self.tables.update((name, self.env.open_db(name.encode(), txn=txn)) for name in TABLES)
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
        self.callers = {CALL.unpack(key)[0] for key in new.keys("done", b"")}

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
        self, do: Callable[[Txn], Any], *, size: int = 0, once: tuple[int, int] | None = None
    ) -> Wait[Any]:
        """Have `do` run in the writer's thread; its result comes when all that it put is on disk.
        An error that it raises undoes it. It may run twice: when one of its group fails the
        commit, each is tried by itself.

        `size`: bytes of the values that it puts, 0 if it makes room. `once`: the pid and the id of
        the call that this is; should the same call come again, it gets the first result, which
        has to be plain.
        """
        if once is not None:
            self.callers.add(once[0])
        end = Wait[Any](shielded=True)
        self.jobs.put(Job(do, end, size, None if once is None else CALL.pack(*once)))
        return end

    def forget(self, pid: int) -> None:
        """That caller has ended, and sends no call again."""
        if pid in self.callers:
            self.callers.remove(pid)
            background(self.write(partial(_forget, pid)), _not_forgotten)

    @contextmanager
    def backup(self, target: Path) -> Iterator[Txn]:
        """Copy what is committed now to the folder `target`, compacted; from any thread. The block
        has a transaction over the copy; if it fails, nothing is left.

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
            with self._open_copy(target) as env:
                tables = {name: env.open_db(name.encode()) for name in TABLES}
                with env.begin(write=True) as txn:
                    yield Txn(env, txn, tables, self.keeper)
                env.sync(True)
        except BaseException as error:
            shutil.rmtree(target)
            if isinstance(error, lmdb.Error | OSError):
                hint = "look for room on its disk"
                raise BadInput(f"no backup in {target}: {error}", hint) from error
            raise

    def _open_copy(self, target: Path) -> lmdb.Environment:
        return lmdb.open(
            os.fspath(target), map_size=self.limit, max_dbs=len(TABLES), mode=0o600, lock=False,
            create=False,
        )  # fmt: skip

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
            self.room.extend()

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
                self.room.check_limit(txn)
            self.barrier()
        self.freed = True
        self.commits += 1
        self.written += sum(job.size for job in group)

    def _do(self, txn: lmdb.Transaction, job: Job) -> None:
        job.result, job.error = None, None
        try:
            if job.size:
                self.room.check_disk()
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
        makes no commit, so there has to be one more, or it would be refused for ever. Nor does it
        reuse what a reader might see, also one that was killed: which that is has to be asked."""
        if not self.env.reader_check() and not self.freed:
            return False
        self.freed = False
        try:
            with self.env.begin(write=True) as txn:
                txn.put(b"reclaim", b"", db=self.tables["meta"])
        except lmdb.MapFullError:
            return False
        return True

    def _once(self, txn: Txn, job: Job) -> Any:
        if job.once is None:
            return job.do(txn)
        known = txn.get("done", job.once)
        if known is not None:
            return _decode(known)
        result = job.do(txn)
        txn.put("done", job.once, _encode(result))
        pid, call = CALL.unpack(job.once)
        last = CALL.pack(pid, max(0, call - DONE))
        for key in list(takewhile(lambda key: key <= last, txn.keys("done", job.once[:8]))):
            txn.delete("done", key)
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


class NoStore:
    """In the place of a store that cannot be opened: everything else goes on."""

    commits = 0
    id = b""
    callers: frozenset[int] = frozenset()

    def barrier(self) -> None:
        pass

    def __init__(self, error: AiosError) -> None:
        self.error = error

    def read(self, do: Callable[[Txn], Any]) -> Any:
        raise self.error

    def write(self, do: Callable[[Txn], Any], **_options: Any) -> Wait[Any]:
        end = Wait[Any]()
        end.fail(self.error)
        return end

    def forget(self, pid: int) -> None:
        pass

    def backup(self, target: Path) -> AbstractContextManager[Txn]:
        raise self.error

    def close(self) -> None:
        pass


def _tell(group: list[Job]) -> None:
    for job in group:
        if job.error is not None:
            job.end.fail(job.error)
        else:
            job.end.done(job.result)


def _forget(pid: int, txn: Txn) -> None:
    for key in list(txn.keys("done", CALL.pack(pid, 0)[:8])):
        txn.delete("done", key)


def _not_forgotten(error: AiosError) -> None:
    print(f"store: calls are remembered until the next start: {error}", file=sys.stderr, flush=True)


def _cannot_open(folder: Path, error: Exception) -> AiosError:
    text = f"cannot open the store in {folder}: {error}"
    if isinstance(error, lmdb.DiskError) or getattr(error, "errno", 0) == errno.ENOSPC:
        return DiskFull(text)
    return StoreDamaged(text, RESTORE)


def _lock(path: Path) -> int:
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise HomeBusy(f"another kernel has {path.parent} open", "stop it first") from error
    return lock
