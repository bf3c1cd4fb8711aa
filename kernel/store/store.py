"""The store: one LMDB environment, opened by the kernel alone. An acknowledged write is on disk.

Reads run in the kernel's loop. Writes are functions over a transaction; a thread runs all that
wait in one transaction (group commit), each in a nested transaction of its own, so one that raises
leaves nothing behind. Each value has a checksum, or is encrypted (kernel/lib/encryption.py).
"""

from __future__ import annotations

import errno
import fcntl
import os
import queue
import secrets
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import lmdb
import msgspec

from aios.syscalls.errors import (
    AiosError,
    BadInput,
    DiskFull,
    HomeBusy,
    StoreDamaged,
    StoreFull,
)

from ..lib import defects
from ..lib.callbacks import Post, ignore
from ..lib.coroutine import Wait, background
from ..lib.encryption import ChecksumCodec, ValueCodec
from .done_calls import CallId, DoneCalls
from .file_space import GROUP_BYTES, FileSpace
from .transaction import Txn

FORMAT = 1
TABLES = ("meta", "done", "memory", "log", "catalog", "blobs")
JOB_OVERHEAD_BYTES = 8192  # that a job adds to a group, about: the pages of its keys
RESTORE = "restore a backup, or move the folder away to begin with an empty store"
OF_ITS_HOME = "restore a backup, with `encrypt` and keys/data.json as its own home had them"

T = TypeVar("T")

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


class WriteJob(msgspec.Struct):
    """A write that waits for the writer's thread, and then its outcome."""

    do: Callable[[Txn], Any]
    end: Wait[Any]
    size: int
    once: CallId | None
    result: Any = None
    error: AiosError | None = None


class Store:
    """The store in `folder`. `post` runs a function in the kernel's loop, from another thread.
    `limit` is the size in bytes that the file may grow to. `barrier` runs in the writer's thread
    before each commit, and makes durable whatever must not be lost if the commit lasts. `system`
    names the system that the callers belong to: replies to calls of another one are dropped. `id`
    is secret, and never changes.

    Raises:
        HomeBusy: another process has it open.
        StoreDamaged: the file is cut short, no store, or one of a later version.
        DiskFull: there is no room for it.
    """

    def __init__(
        self, folder: Path, post: Post, *, limit: int = 8 << 30,
        system: str = "", barrier: Callable[[], None] = ignore,
        codec: ValueCodec = ChecksumCodec(),  # noqa: B008 (it has no state)
    ) -> None:  # fmt: skip
        self.folder, self.post, self.limit, self.barrier = folder, post, limit, barrier
        self.codec = codec
        self.path = folder / "data.mdb"
        self.broken: AiosError | None = None
        self.tables: dict[str, Any] = {}
        self.done = DoneCalls()
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
        self.jobs: queue.SimpleQueue[WriteJob | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._work, name="store", daemon=True)
        self.thread.start()

    def _open(self, system: str) -> None:
        self.env = lmdb.open(
            os.fspath(self.folder), map_size=self.limit, max_dbs=len(TABLES), max_readers=16,
            mode=0o600, meminit=False,
        )  # fmt: skip
        try:
            self.env.reader_check()
            self.space = FileSpace(self.env, self.path, self.limit, self.tables)
            if (
                self.space.unused() < 0
            ):  # LMDB maps it: a page that is not there would be our SIGBUS
                raise StoreDamaged(f"{self.path} is cut short: {self.space.size} bytes", RESTORE)
            with self.env.begin(write=True) as txn:
                self._begin(txn, system)
            self.space.extend()
        except BaseException:
            self.env.close()
            raise

    def _begin(self, txn: lmdb.Transaction, system: str) -> None:
        self.tables.update((name, self.env.open_db(name.encode(), txn=txn)) for name in TABLES)
        new = Txn(self.env, txn, self.tables, self.codec)
        try:
            known = new.get("meta", b"format")
        except StoreDamaged as error:  # or it is encrypted, or is not, as its new home is not
            raise StoreDamaged(error.message, OF_ITS_HOME) from None
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
        self.done.load(new)

    # --- use --------------------------------------------------------------------------------------

    def read(self, do: Callable[[Txn], T]) -> T:
        """Run `do` over the last commit.

        Raises:
            StoreDamaged: a value that `do` read is damaged; and whatever `do` raises.
        """
        try:
            return self._read(do)
        except lmdb.Error as error:
            raise StoreDamaged(
                f"cannot read the store in {self.folder}: {error}", RESTORE
            ) from None
        except AiosError as error:
            # A kept traceback would keep the transaction alive, which has one of few slots.
            raise error.with_traceback(None) from None

    def _read(self, do: Callable[[Txn], T]) -> T:
        with self.env.begin() as txn:
            return do(Txn(self.env, txn, self.tables, self.codec))

    def write(
        self, do: Callable[[Txn], Any], *, size: int = 0, once: CallId | None = None
    ) -> Wait[Any]:
        """Run `do` in the writer's thread; return its result once all that it put is on disk.
        An error that `do` raises undoes it. `do` may run twice: when one job of a group fails the
        commit, each job is tried by itself.

        `size`: bytes of the values that `do` puts, 0 if it makes room. `once`: the call that this
        write serves; if it comes again, it gets the first result, which has to be made of plain
        types.
        """
        if once is not None:
            self.done.callers.add(once.pid)
        end = Wait[Any](shielded=True)
        self.jobs.put(WriteJob(do, end, size, once))
        return end

    def forget(self, pid: int) -> None:
        """Drop the replies kept for a caller that has ended, and sends no call again."""
        if pid in self.done.callers:
            self.done.callers.remove(pid)
            background(self.write(lambda txn: self.done.forget(txn, pid)), _not_forgotten)

    @contextmanager
    def backup(self, target: Path) -> Iterator[Txn]:
        """Copy the last commit to the folder `target`, compacted; from any thread. The block gets a
        transaction over the copy; if it fails, nothing is left.

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
                    yield Txn(env, txn, tables, self.codec)
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
        """Commit the writes that were asked for, and stop."""
        self.jobs.put(None)
        self.thread.join()
        self.env.close()
        os.close(self.lock)

    # --- the writer's thread ----------------------------------------------------------------------

    def _work(self) -> None:
        while (job := self.jobs.get()) is not None:
            group, size = [job], job.size
            while size < GROUP_BYTES and not self.jobs.empty():
                following = self.jobs.get()
                if following is None:
                    self._commit(group)
                    return
                group.append(following)
                size += following.size + JOB_OVERHEAD_BYTES
            self._commit(group)
            self.space.extend()

    def _commit(self, group: list[WriteJob]) -> None:
        """Commit a group at once; if that fails, each job by itself, so that only one fails."""
        try:
            self._run(group)
            self.done.settle()
        except (lmdb.Error, OSError) as error:
            self.done.undo()
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

    def _run(self, group: list[WriteJob]) -> None:
        if self.broken is not None:
            for job in group:
                job.error = self.broken
            return
        with self.env.begin(write=True) as txn:
            for job in group:
                self._do(txn, job)
            if any(job.size and job.error is None for job in group):
                self.space.check_limit(txn)
            self.barrier()
        self.freed = True
        self.commits += 1
        self.written += sum(job.size for job in group)

    def _do(self, txn: lmdb.Transaction, job: WriteJob) -> None:
        job.result, job.error, once = None, None, job.once
        try:
            if job.size:
                self.space.check_disk()
            with self.env.begin(write=True, parent=txn) as child:
                mine = Txn(self.env, child, self.tables, self.codec)
                job.result = job.do(mine) if once is None else self.done.once(mine, once, job.do)
        except AiosError as error:
            job.error = error
        except lmdb.BadValsizeError as error:
            job.error = BadInput(f"a key or value that the store cannot hold: {error}")
        except lmdb.Error:
            raise
        except Exception:  # noqa: BLE001 (a defect in `do`: its caller hears, the store goes on)
            job.error = defects.report()

    def _reclaim(self) -> bool:
        """Make free pages usable, and tell whether some may be. LMDB reuses pages from the second
        commit after they came free on; a refused put makes no commit, so one is made here. Nor does
        LMDB reuse pages that a reader might see, even a killed one: `reader_check` drops those."""
        if not self.env.reader_check() and not self.freed:
            return False
        self.freed = False
        try:
            with self.env.begin(write=True) as txn:
                txn.put(b"reclaim", b"", db=self.tables["meta"])
        except lmdb.MapFullError:
            return False
        return True

    def _recovers(self, error: Exception) -> bool:
        """Tell whether a single job may have failed its group."""
        return self.broken is None and isinstance(error, lmdb.MapFullError | lmdb.DiskError)

    def _error(self, error: Exception) -> AiosError:
        if isinstance(error, lmdb.MapFullError):
            return StoreFull(f"the store has reached its {self.limit} bytes")
        if isinstance(error, lmdb.DiskError):
            return DiskFull("the store cannot be written: its disk is full")
        # After a failed write or sync nobody knows which of the file's pages in memory are good.
        self.broken = self.broken or StoreDamaged(
            f"the store failed: {error}", "see to the disk, then `aios stop` and `aios start`"
        )
        return self.broken


class NoStore:
    """A stand-in for a store that cannot be opened: each use raises `error`."""

    commits = 0
    id = b""
    done = DoneCalls()

    def barrier(self) -> None:
        pass

    def __init__(self, error: AiosError) -> None:
        self.error = error

    def read(self, do: Callable[[Txn], T]) -> T:
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


def _tell(group: list[WriteJob]) -> None:
    for job in group:
        if job.error is not None:
            job.end.fail(job.error)
        else:
            job.end.done(job.result)


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
