"""The contents of objects: immutable chunks by their keys, in the store or in a backend.

LmdbBlobs keeps chunks in the store, and puts them in the transaction that refers to them.
ExternalBlobs keeps them in a `BlobBackend`, whose calls block and so are made in threads: chunks
are durable there before the transaction that refers to them begins, and are deleted after the one
that dropped them is committed. `aios sto compact` finds the chunks that the kernel's death has left
in between.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from aios.syscalls.errors import (
    AiosError,
    BackendDown,
    BadInput,
    StoreDamaged,
)

from ..lib.callbacks import Post
from ..lib.coroutine import Wait, background
from ..lib.encryption import AeadCodec
from ..store.done_calls import CallId
from ..store.store import NoStore, Store
from ..store.transaction import Txn
from .backends import BlobBackend, BucketBackend, FolderBackend, encrypted
from .catalog import is_used

PREFIX = b"sto/"  # of the keys in the store's table "blobs"
MAX_PAGE_KEYS = 500  # read at once
MAX_READER_THREADS = 4

Do = Callable[[Txn, Callable[[bytes], None]], Any]  # its second argument drops a chunk
T = TypeVar("T")


class Blobs(Protocol):
    """Chunks by their keys."""

    external: bool  # a copy of the store does not contain the chunks

    async def write(
        self, chunks: Mapping[bytes, bytes], do: Do, *,
        size: int = 0, once: CallId | None = None,
    ) -> Any:  # fmt: skip
        """Make the chunks durable, then commit `do`. Chunks that exist stay as they are. The rest
        is as with Store.write, where `size` is that of the rows."""

    async def read(self, keys: list[bytes]) -> list[bytes]:
        """Return the chunks of these keys. Raises StoreDamaged where one is missing or damaged."""

    def load(self, key: bytes) -> bytes:
        """Return one chunk. Blocks: call it from a worker thread."""

    def all(self) -> Iterator[bytes]:
        """Iterate over the keys of all stored chunks. Blocks: call it from a worker thread."""

    def hold(self) -> None:
        """Remove no chunk until `release` is called."""

    def release(self) -> None:
        """End one `hold`, and remove the chunks that were dropped meanwhile."""

    def close(self) -> None: ...


def missing(key: bytes) -> StoreDamaged:
    return StoreDamaged(f"the chunk {key.hex()} of a content is missing", "restore a backup")


class LmdbBlobs:
    """Chunks in the store's table "blobs"."""

    external = False

    def __init__(self, store: Store | NoStore) -> None:
        self.store = store

    async def write(
        self, chunks: Mapping[bytes, bytes], do: Do, *,
        size: int = 0, once: CallId | None = None,
    ) -> Any:  # fmt: skip
        def job(txn: Txn) -> Any:
            for key, data in chunks.items():
                txn.put("blobs", PREFIX + key, data)
            return do(txn, lambda key: _drop(txn, key))

        size += sum(map(len, chunks.values()))
        return await self.store.write(job, size=size, once=once)

    async def read(self, keys: list[bytes]) -> list[bytes]:
        return [self.load(key) for key in keys]

    def load(self, key: bytes) -> bytes:
        data = self.store.read(lambda txn: txn.get("blobs", PREFIX + key))
        if data is None:
            raise missing(key)
        return data

    def all(self) -> Iterator[bytes]:
        at = PREFIX
        while page := self.store.read(partial(_page, at)):
            yield from (key[len(PREFIX) :] for key in page)
            at = page[-1] + b"\0"

    def hold(self) -> None:
        pass  # a transaction that has begun still sees chunks that are dropped later

    def release(self) -> None:
        pass

    def close(self) -> None:
        pass


def _page(at: bytes, txn: Txn) -> list[bytes]:
    return list(islice(txn.keys("blobs", PREFIX, at), MAX_PAGE_KEYS))


def _drop(txn: Txn, key: bytes) -> None:
    txn.delete("blobs", PREFIX + key)


class ExternalBlobs:
    """Chunks in a backend, whose calls run in threads; `post` runs a function in the loop, where
    all the rest runs."""

    external = True

    def __init__(self, store: Store | NoStore, backend: BlobBackend, post: Post) -> None:
        self.store, self.backend, self.post = store, backend, post
        self.pins: Counter[bytes] = Counter()  # chunks of writes that are not committed yet
        self.holds = 0
        self.held: list[bytes] = []  # chunks to remove when there is no hold any more
        # One thread puts and deletes: a chunk that is dropped and put again is there afterwards.
        self.writer = ThreadPoolExecutor(1, "blobs")
        self.readers = ThreadPoolExecutor(MAX_READER_THREADS, "blobs")
        self.closed = False

    async def write(
        self, chunks: Mapping[bytes, bytes], do: Do, *,
        size: int = 0, once: CallId | None = None,
    ) -> Any:  # fmt: skip
        dropped: list[bytes] = []
        pinned = Counter(list(chunks))

        def job(txn: Txn) -> Any:
            dropped.clear()  # it may run twice
            return do(txn, dropped.append)

        self.pins += pinned
        try:
            if chunks:
                await self._run(self.writer, partial(self._put, chunks))
            return await self.store.write(job, size=size, once=once)
        finally:
            self.pins -= pinned
            self._forget([*chunks, *dropped])

    def _put(self, chunks: Mapping[bytes, bytes]) -> None:
        self.store.barrier()
        for key, data in chunks.items():
            self.backend.put(key.hex(), data)

    def _forget(self, keys: Iterable[bytes]) -> None:
        """Remove the chunks that nothing refers to, and that no write is about to refer to."""
        if self.holds:
            self.held += keys
            return
        try:
            unused = self.store.read(
                lambda txn: [key for key in keys if not self.pins[key] and not is_used(txn, key)]
            )
        except AiosError as error:
            _left_over(error)
            return
        if unused:
            background(self._run(self.writer, partial(self._delete, unused)), _left_over)

    def hold(self) -> None:
        self.holds += 1

    def release(self) -> None:
        self.holds -= 1
        held, self.held = self.held, []
        self._forget(held)

    def _delete(self, keys: list[bytes]) -> None:
        for key in keys:
            self.backend.delete(key.hex())

    async def read(self, keys: list[bytes]) -> list[bytes]:
        return await self._run(self.readers, partial(self._load_all, keys))

    def _load_all(self, keys: list[bytes]) -> list[bytes]:
        return [self.load(key) for key in keys]

    def load(self, key: bytes) -> bytes:
        data = self.backend.get(key.hex())
        if data is None:
            raise missing(key)
        return data

    def all(self) -> Iterator[bytes]:
        return map(bytes.fromhex, self.backend.names())

    def _run(self, threads: ThreadPoolExecutor, work: Callable[[], T]) -> Wait[T]:
        end = Wait[T](shielded=True)
        if self.closed:  # `aios sto compact` removes the chunks that the last commits drop
            end.fail(BackendDown("the system stops"))
            return end

        def run() -> None:
            try:
                result = work()
            except AiosError as error:
                self.post(partial(end.fail, error))
            else:
                self.post(partial(end.done, result))

        threads.submit(run)
        return end

    def close(self) -> None:
        self.closed = True
        self.writer.shutdown()
        self.readers.shutdown()


def _left_over(error: AiosError) -> None:
    print(f"storage: chunks are left for `aios sto compact` to remove: {error}", file=sys.stderr)


def open_blobs(
    url: str, options: Mapping[str, str], store: Store | NoStore, post: Post,
    seal: AeadCodec | None = None,
) -> Blobs:  # fmt: skip
    """Open the chunks that the setting `blobs` names: "lmdb", file:///a/folder, s3://bucket/prefix.

    Raises:
        BadInput: the setting is malformed, or not usable.
    """
    parts = urlsplit(url)
    if url == "lmdb":
        return LmdbBlobs(store)
    if parts.scheme == "file" and parts.path.startswith("/") and not parts.netloc:
        backend: BlobBackend = FolderBackend(Path(parts.path))
    elif parts.scheme == "s3" and parts.netloc:
        backend = BucketBackend(url, options)
    else:
        raise BadInput(f"blobs = {url!r}", 'use "lmdb", "file:///a/folder" or "s3://bucket/prefix"')
    return ExternalBlobs(store, encrypted(backend, seal), post)
