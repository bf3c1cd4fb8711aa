"""What is done to storage as a whole, in a thread beside the loop: verify, compact, back up."""

from __future__ import annotations

import queue
import sys
import threading
import time
import traceback
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
    Internal,
    LimitReached,
    StoreDamaged,
)

from ..entry.call import Call
from ..lib.coroutine import Driver, Wait
from ..lib.encryption import AeadCodec
from ..store.store import NoStore, Store
from ..store.transaction import Txn
from .blobs import Folder, Place, sealed
from .catalog import IN_BACKUP, TABLE, Catalog, is_used
from .fsck import Verification
from .manager import Storage

SLICE, BREATH = 0.002, 0.001  # seconds of work, and of leaving the interpreter to the loop
REPORT = 0.25  # seconds between two words of progress
BATCH = 100  # versions or chunks that one transaction drops

T = TypeVar("T")


class Errand:
    """A work in its thread. `step` is called between any two small parts of it."""

    def __init__(self, call: Call, post: Callable[[Callable[[], None]], None]) -> None:
        self.call, self.post = call, post
        self.stop = threading.Event()
        self.began = self.told = time.monotonic()
        self.done = 0
        self.end = Wait[Any](cancel=self.stop.set)

    def step(self, what: str) -> None:
        """Raises Cancelled where it is to end."""
        if self.stop.is_set():
            raise Cancelled(f"{self.call.row.name} was cancelled")
        self.done += 1
        now = time.monotonic()
        if now - self.told > REPORT:
            self.told = now
            piece = sto.Progress(done=self.done, what=what)
            self.post(lambda: self.call.piece(piece))
        if now - self.began > SLICE:
            time.sleep(BREATH)
            self.began = time.monotonic()

    def run(self, work: Callable[[Errand], Any]) -> None:
        answer: Callable[[], None]
        try:
            result = work(self)
            answer = partial(self.end.done, result)
        except AiosError as error:
            answer = partial(self.end.fail, error)
        except Exception:  # noqa: BLE001 (a defect: its caller is told, the kernel goes on)
            traceback.print_exc(file=sys.stderr)
            answer = partial(self.end.fail, Internal("the kernel failed to serve this call"))
        self.post(answer)


class Upkeep:
    def __init__(
        self, storage: Storage, store: Store | NoStore,
        post: Callable[[Callable[[], None]], None], seal: AeadCodec | None = None,
    ) -> None:  # fmt: skip
        self.storage, self.store, self.post, self.seal = storage, store, post, seal
        self.errand: Errand | None = None
        self.thread = threading.Thread()

    async def verify(self, call: Call) -> sto.Verified:
        return await self._run(call, lambda errand: Verification(self.storage, errand.step).run())

    async def compact(self, call: Call, keep: int | None) -> sto.Compacted:
        return await self._run(call, lambda errand: self._compact(errand, keep))

    async def backup(self, call: Call, target: Path) -> sto.BackedUp:
        if not target.is_absolute():
            raise BadInput(f"{target} is a relative path", "name a folder from the root on")
        return await self._run(
            call, lambda errand: self._backup(errand, target), self.storage.blobs.hold
        )

    def close(self) -> None:
        """End what runs; before the store is closed."""
        if self.errand is not None:
            self.errand.stop.set()
            self.thread.join()

    async def _run(
        self, call: Call, work: Callable[[Errand], T], before: Callable[[], None] = lambda: None
    ) -> T:
        """Have the work done in its thread; `before` is done here, if the work is."""
        if self.errand is not None and not self.errand.end.is_over:
            raise LimitReached(f"{self.errand.call.row.name} runs already", "wait for its end")
        before()
        self.errand = errand = Errand(call, self.post)
        self.thread = threading.Thread(target=errand.run, args=(work,), name="upkeep")
        self.thread.start()
        try:
            result: T = await errand.end
            return result
        finally:
            errand.stop.set()

    # --- back up ----------------------------------------------------------------------------------

    def _backup(self, errand: Errand, target: Path) -> sto.BackedUp:
        try:
            with self.store.backup(target) as copy:
                if not self.storage.blobs.apart:
                    return sto.BackedUp(chunks=0, missing=0)
                copy.put(TABLE, b"b", IN_BACKUP.encode())
                place = sealed(Folder(target / "blobs"), self.seal)
                return self._copy_contents(errand, copy, place)
        finally:
            self.post(self.storage.blobs.release)

    def _copy_contents(self, errand: Errand, copy: Txn, place: Place) -> sto.BackedUp:
        """The chunks that the copied catalogue refers to, which are not removed meanwhile."""
        copied = missing = 0
        for key in copy.keys(TABLE, b"c"):
            errand.step("contents")
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

    def _compact(self, errand: Errand, keep: int | None) -> sto.Compacted:
        old = 0
        for batch in _batches(self._old(errand, keep) if keep else iter(())):
            self._commit(errand, partial(_forget, batch))
            old += len(batch)
        unused = 0
        for batch in _batches(self._unused(errand)):
            self._commit(errand, partial(_drop, batch))
            unused += len(batch)
        return sto.Compacted(versions=old, chunks=unused)

    def _old(self, errand: Errand, keep: int) -> Iterator[tuple[str, str, int]]:
        """The versions behind the newest `keep` of each object."""
        for owner in self.store.read(lambda txn: list(Catalog(txn).owners())):
            for path in self._paths(owner.name):
                errand.step("versions")
                versions = self.store.read(partial(_versions, owner.name, path))
                yield from ((owner.name, path, version) for version in versions[keep:])

    def _paths(self, owner: str) -> Iterator[str]:
        at = ""
        while page := self.store.read(partial(_page, owner, at)):
            yield from page
            at = page[-1]

    def _unused(self, errand: Errand) -> Iterator[bytes]:
        for chunk in self.storage.blobs.all():
            errand.step("chunks")
            if not self.store.read(partial(is_used, chunk=chunk)):
                yield chunk

    def _commit(self, errand: Errand, do: Callable[[Catalog], None]) -> None:
        answers: queue.SimpleQueue[AiosError | None] = queue.SimpleQueue()
        driver = Driver(self.storage.write({}, do), answers.put, answers.put)
        self.post(driver.go_on)
        while True:
            errand.step("removed")
            try:
                answer = answers.get(timeout=0.1)
            except queue.Empty:
                continue
            if answer is not None:
                raise answer
            return


def _batches(items: Iterator[Any]) -> Iterator[list[Any]]:
    while batch := list(islice(items, BATCH)):
        yield batch


def _page(owner: str, after: str, txn: Txn) -> list[str]:
    return [path for path, _ in islice(Catalog(txn).paths(owner, "", after), BATCH)]


def _versions(owner: str, path: str, txn: Txn) -> list[int]:
    return [row.version for row in Catalog(txn).versions(owner, path)]


def _forget(batch: list[tuple[str, str, int]], cat: Catalog) -> None:
    for owner, path, version in batch:
        cat.forget(owner, path, version)


def _drop(batch: list[bytes], cat: Catalog) -> None:
    for chunk in batch:
        if not is_used(cat.txn, chunk):
            cat.drop(chunk)
