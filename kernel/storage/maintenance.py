"""Maintenance of storage as a whole, in a thread beside the loop: verify, compact, back up."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from aios.syscalls import sto
from aios.syscalls.errors import (
    AiosError,
    BadInput,
    Cancelled,
    LimitReached,
    StoreDamaged,
)

from ..entry.call import Call
from ..lib import defects
from ..lib.callbacks import Post, ignore
from ..lib.coroutine import Driver, Wait
from ..lib.encryption import AeadCodec
from ..store.store import NoStore, Store
from ..store.transaction import Txn
from .backends import BlobBackend, FolderBackend, encrypted
from .catalog import IN_BACKUP, TABLE, Catalog, all_owners, is_used
from .fsck import Verification
from .manager import Storage

SLICE_S, PAUSE_S = 0.002, 0.001  # of work, and of leaving the interpreter to the loop
PROGRESS_INTERVAL_S = 0.25
MAX_BATCH_ITEMS = 100  # versions or chunks that one transaction drops

T = TypeVar("T")


class BackgroundTask:
    """A call that is served in a thread. The work calls `step` between any two small parts."""

    def __init__(self, call: Call, post: Post) -> None:
        self.call, self.post = call, post
        self.stop = threading.Event()
        self.began = self.told = time.monotonic()
        self.done = 0
        self.end = Wait[Any](cancel=self.stop.set)

    def step(self, what: str) -> None:
        """Report progress, and leave the interpreter to the loop. Raises Cancelled."""
        if self.stop.is_set():
            raise Cancelled(f"{self.call.syscall.name} was cancelled")
        self.done += 1
        now = time.monotonic()
        if now - self.told > PROGRESS_INTERVAL_S:
            self.told = now
            piece = sto.Progress(done=self.done, what=what)
            self.post(lambda: self.call.piece(piece))
        if now - self.began > SLICE_S:
            time.sleep(PAUSE_S)
            self.began = time.monotonic()

    def run(self, work: Callable[[BackgroundTask], Any]) -> None:
        answer: Callable[[], None]
        try:
            result = work(self)
            answer = partial(self.end.done, result)
        except AiosError as error:
            answer = partial(self.end.fail, error)
        except Exception:  # noqa: BLE001 (a defect: its caller is told, the kernel goes on)
            answer = partial(self.end.fail, defects.report())
        self.post(answer)


class Maintenance:
    def __init__(
        self, storage: Storage, store: Store | NoStore, post: Post, seal: AeadCodec | None = None
    ) -> None:
        self.storage, self.store, self.post, self.seal = storage, store, post, seal
        self.task: BackgroundTask | None = None
        self.thread = threading.Thread()

    async def verify(self, call: Call, args: sto.Verify) -> sto.Verified:
        return await self._run(call, lambda task: Verification(self.storage, task.step).run())

    async def compact(self, call: Call, args: sto.Compact) -> sto.Compacted:
        return await self._run(call, lambda task: self._compact(task, args.keep))

    async def backup(self, call: Call, args: sto.Backup) -> sto.BackedUp:
        target = Path(args.target)
        if not target.is_absolute():
            raise BadInput(f"{target} is a relative path", "name a folder from the root on")
        return await self._run(
            call, lambda task: self._backup(task, target), self.storage.blobs.hold
        )

    def close(self) -> None:
        """End the task that runs; to be called before the store is closed."""
        if self.task is not None:
            self.task.stop.set()
            self.thread.join()

    async def _run(
        self,
        call: Call,
        work: Callable[[BackgroundTask], T],
        before: Callable[[], None] = ignore,
    ) -> T:
        """Do the work in a thread, unless another task runs. `before` runs here, before that."""
        if self.task is not None and not self.task.end.is_over:
            raise LimitReached(f"{self.task.call.syscall.name} runs already", "wait for its end")
        before()
        self.task = task = BackgroundTask(call, self.post)
        self.thread = threading.Thread(target=task.run, args=(work,), name="maintenance")
        self.thread.start()
        try:
            result: T = await task.end
            return result
        finally:
            task.stop.set()

    # --- back up ----------------------------------------------------------------------------------

    def _backup(self, task: BackgroundTask, target: Path) -> sto.BackedUp:
        try:
            with self.store.backup(target) as copy:
                if not self.storage.blobs.external:
                    return sto.BackedUp(chunks=0, missing=0)
                copy.put(TABLE, b"b", IN_BACKUP.encode())
                place = encrypted(FolderBackend(target / "blobs"), self.seal)
                return self._copy_contents(task, copy, place)
        finally:
            self.post(self.storage.blobs.release)

    def _copy_contents(self, task: BackgroundTask, copy: Txn, place: BlobBackend) -> sto.BackedUp:
        """Copy the chunks that the copied catalogue refers to; `hold` keeps them meanwhile."""
        copied = missing = 0
        for key in copy.keys(TABLE, b"c"):
            task.step("contents")
            chunk = key[1:]
            try:
                data = self.storage.blobs.load(chunk)
            except StoreDamaged:
                missing += 1
            else:
                place.put(chunk.hex(), data)
                copied += 1
        return sto.BackedUp(chunks=copied, missing=missing)

    # --- compact ----------------------------------------------------------------------------------

    def _compact(self, task: BackgroundTask, keep: int | None) -> sto.Compacted:
        old = 0
        for batch in _batches(self._old(task, keep) if keep else iter(())):
            self._commit(task, partial(_forget, batch))
            old += len(batch)
        unused = 0
        for batch in _batches(self._unused(task)):
            self._commit(task, partial(_drop, batch))
            unused += len(batch)
        return sto.Compacted(versions=old, chunks=unused)

    def _old(self, task: BackgroundTask, keep: int) -> Iterator[tuple[str, str, int]]:
        """Iterate over the versions older than the newest `keep` of each object."""
        for owner in self.store.read(all_owners):
            for path in self._paths(owner.name):
                task.step("versions")
                versions = self.store.read(partial(_versions, owner.name, path))
                yield from ((owner.name, path, version) for version in versions[keep:])

    def _paths(self, owner: str) -> Iterator[str]:
        at = ""
        while page := self.store.read(partial(_page, owner, at)):
            yield from page
            at = page[-1]

    def _unused(self, task: BackgroundTask) -> Iterator[bytes]:
        for chunk in self.storage.blobs.all():
            task.step("chunks")
            if not self.store.read(partial(is_used, chunk=chunk)):
                yield chunk

    def _commit(self, task: BackgroundTask, do: Callable[[Catalog], None]) -> None:
        answers: queue.SimpleQueue[AiosError | None] = queue.SimpleQueue()
        driver = Driver(self.storage.write({}, do), answers.put, answers.put)
        self.post(driver.go_on)
        while True:
            task.step("removed")
            try:
                answer = answers.get(timeout=0.1)
            except queue.Empty:
                continue
            if answer is not None:
                raise answer
            return


def _batches(items: Iterator[Any]) -> Iterator[list[Any]]:
    while batch := list(islice(items, MAX_BATCH_ITEMS)):
        yield batch


def _page(owner: str, after: str, txn: Txn) -> list[str]:
    return [path for path, _ in islice(Catalog(txn).paths(owner, "", after), MAX_BATCH_ITEMS)]


def _versions(owner: str, path: str, txn: Txn) -> list[int]:
    return [row.version for row in Catalog(txn).versions(owner, path)]


def _forget(batch: list[tuple[str, str, int]], cat: Catalog) -> None:
    for owner, path, version in batch:
        cat.forget(owner, path, version)


def _drop(batch: list[bytes], cat: Catalog) -> None:
    for chunk in batch:
        if not is_used(cat.txn, chunk):
            cat.drop(chunk)
