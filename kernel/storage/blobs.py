"""Where contents are: immutable chunks by their keys, in one of three places behind one interface.

LmdbBlobs keeps them in the store, in the transaction that refers to them. Elsewhere keeps them in
a `Place`, a folder or a bucket, whose calls block and so are made in threads: chunks are durable
there before the transaction that refers to them begins, and go after the one that dropped them is
committed. What the kernel's death leaves in between is found by `aios sto compact`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from aios.syscalls.errors import (
    AiosError,
    BackendDown,
    BadInput,
    DiskFull,
    StoreDamaged,
)

from ..lib.coroutine import Wait, background
from ..lib.encryption import AeadCodec, Damaged
from ..lib.files import sync_folder
from ..store.store import NoStore, Store
from ..store.transaction import Txn
from .catalog import is_used

PREFIX = b"sto/"  # of the keys in the store's table "blobs"
PAGE = 500  # keys that are read at once
READERS = 4  # threads
PATIENCE = timedelta(seconds=10)  # of all tries together; then the backend is said to be down

Do = Callable[[Txn, Callable[[bytes], None]], Any]  # its second argument drops a chunk
T = TypeVar("T")


class Blobs(Protocol):
    apart: bool  # whether a copy of the store is without them

    async def write(
        self, chunks: Mapping[bytes, bytes], do: Do, *,
        size: int = 0, once: tuple[int, int] | None = None,
    ) -> Any:  # fmt: skip
        """Have the chunks durable, then `do` committed; the rest is as with Store.write, `size`
        being that of the rows. Chunks that were there stay as they are."""

    async def read(self, keys: list[bytes]) -> list[bytes]:
        """Return the chunks of these keys. Raises StoreDamaged where one is missing or damaged."""

    def load(self, key: bytes) -> bytes:
        """One chunk, for another thread than the loop's: it blocks."""

    def all(self) -> Iterator[bytes]:
        """Of all chunks that are there; likewise."""

    def hold(self) -> None:
        """Remove none from now on."""

    def release(self) -> None:
        """Remove again, also what was to be removed meanwhile; once for each `hold`."""

    def close(self) -> None: ...


def missing(key: bytes) -> StoreDamaged:
    return StoreDamaged(f"the chunk {key.hex()} of a content is missing", "restore a backup")


class LmdbBlobs:
    apart = False

    def __init__(self, store: Store | NoStore) -> None:
        self.store = store

    async def write(
        self, chunks: Mapping[bytes, bytes], do: Do, *,
        size: int = 0, once: tuple[int, int] | None = None,
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
        data: bytes | None = self.store.read(lambda txn: txn.get("blobs", PREFIX + key))
        if data is None:
            raise missing(key)
        return data

    def all(self) -> Iterator[bytes]:
        at = PREFIX
        while page := self.store.read(partial(_page, at)):
            yield from (key[len(PREFIX) :] for key in page)
            at = page[-1] + b"\0"

    def hold(self) -> None:
        pass  # a transaction that has begun sees what is dropped after it

    def release(self) -> None:
        pass

    def close(self) -> None:
        pass


def _page(at: bytes, txn: Txn) -> list[bytes]:
    return list(islice(txn.keys("blobs", PREFIX, at), PAGE))


def _drop(txn: Txn, key: bytes) -> None:
    txn.delete("blobs", PREFIX + key)


class Place(Protocol):
    """Blocks. Raises BackendDown or DiskFull where it cannot do what it is asked for."""

    def put(self, name: str, data: bytes) -> None:
        """Durable when it returns; in place of what has that name."""

    def get(self, name: str) -> bytes | None: ...

    def delete(self, name: str) -> None:
        """What is not there is no error."""

    def names(self) -> Iterator[str]: ...


class Elsewhere:
    """`post` runs a function in the loop, where all of this runs but what `place` does."""

    apart = True

    def __init__(
        self, store: Store | NoStore, place: Place, post: Callable[[Callable[[], None]], None]
    ) -> None:
        self.store, self.place, self.post = store, place, post
        self.pins: Counter[bytes] = Counter()  # chunks of writes that are not committed yet
        self.holds = 0
        self.held: list[bytes] = []  # to be looked at when there is no hold any more
        # One thread puts and deletes: a chunk that is dropped and put again is there afterwards.
        self.writer = ThreadPoolExecutor(1, "blobs")
        self.readers = ThreadPoolExecutor(READERS, "blobs")
        self.closed = False

    async def write(
        self, chunks: Mapping[bytes, bytes], do: Do, *,
        size: int = 0, once: tuple[int, int] | None = None,
    ) -> Any:  # fmt: skip
        dropped: list[bytes] = []
        pinned = Counter(list(chunks))

        def job(txn: Txn) -> Any:
            dropped.clear()  # it may run twice
            return do(txn, dropped.append)

        self.pins += pinned
        try:
            if chunks:
                await self._run(self.writer, lambda: self._put(chunks))
            return await self.store.write(job, size=size, once=once)
        finally:
            self.pins -= pinned
            self._forget([*chunks, *dropped])

    def _put(self, chunks: Mapping[bytes, bytes]) -> None:
        self.store.barrier()
        for key, data in chunks.items():
            self.place.put(key.hex(), data)

    def _forget(self, keys: Iterable[bytes]) -> None:
        """Remove those of these that nobody refers to, and nobody is about to."""
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
            background(self._run(self.writer, lambda: self._delete(unused)), _left_over)

    def hold(self) -> None:
        self.holds += 1

    def release(self) -> None:
        self.holds -= 1
        held, self.held = self.held, []
        self._forget(held)

    def _delete(self, keys: list[bytes]) -> None:
        for key in keys:
            self.place.delete(key.hex())

    async def read(self, keys: list[bytes]) -> list[bytes]:
        return await self._run(self.readers, lambda: [self.load(key) for key in keys])

    def load(self, key: bytes) -> bytes:
        data = self.place.get(key.hex())
        if data is None:
            raise missing(key)
        return data

    def all(self) -> Iterator[bytes]:
        return map(bytes.fromhex, self.place.names())

    def _run(self, threads: ThreadPoolExecutor, work: Callable[[], T]) -> Wait[T]:
        end = Wait[T](shielded=True)
        if self.closed:  # what the last commits drop is left over
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


# --- places ---------------------------------------------------------------------------------------


class Folder:
    """A file a chunk, 256 folders of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.new = path / "new"
        try:
            self.new.mkdir(mode=0o700, parents=True, exist_ok=True)
            for left in self.new.iterdir():
                left.unlink()
            for number in range(256):
                (path / f"{number:02x}").mkdir(mode=0o700, exist_ok=True)
            sync_folder(path)
        except OSError as error:
            raise BadInput(f"cannot keep blobs in {path}: {error.strerror}") from error

    def put(self, name: str, data: bytes) -> None:
        temp = self.new / name
        with _translated(f"cannot write to {self.path}"):
            try:
                with temp.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                temp.rename(self._file(name))
            except OSError:
                temp.unlink(missing_ok=True)
                raise
            sync_folder(self._file(name).parent)

    def get(self, name: str) -> bytes | None:
        with _translated(f"cannot read {self.path}"):
            try:
                return self._file(name).read_bytes()
            except FileNotFoundError:
                return None

    def delete(self, name: str) -> None:
        with _translated(f"cannot delete from {self.path}"):
            self._file(name).unlink(missing_ok=True)

    def names(self) -> Iterator[str]:
        for number in range(256):
            with _translated(f"cannot read {self.path}"):
                yield from (file.name for file in (self.path / f"{number:02x}").iterdir())

    def _file(self, name: str) -> Path:
        return self.path / name[:2] / name


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        text = f"{what}: {error.strerror}"
        raise DiskFull(text, "make room on that disk") if full else BackendDown(text) from error


class Bucket:
    """An object a chunk, in a bucket of whatever speaks S3. Keys and secrets are those of the
    environment (AWS_ACCESS_KEY_ID, ...); `options` has the rest: endpoint, region."""

    def __init__(self, url: str, options: Mapping[str, str]) -> None:
        try:
            import obstore  # noqa: PLC0415 (an extra)
            from obstore.exceptions import BaseError  # noqa: PLC0415
            from obstore.store import S3Store  # noqa: PLC0415
        except ImportError as error:
            raise BadInput(
                "blobs in a bucket need obstore", "pip install 'aios-system[s3]'"
            ) from error
        self.api, self.error, self.url = obstore, BaseError, url
        plain = options.get("endpoint", "").startswith("http://")
        try:
            self.store = S3Store.from_url(
                url, config=dict(options),  # type: ignore[arg-type]
                client_options={"allow_http": plain, "timeout": PATIENCE},
                retry_config={"max_retries": 3, "retry_timeout": PATIENCE},
            )  # fmt: skip
        except BaseError as error:
            raise BadInput(f"blobs in {url}: {error}", "see docs/storage.md") from error

    def put(self, name: str, data: bytes) -> None:
        with self._translated():
            self.api.put(self.store, name, data)

    def get(self, name: str) -> bytes | None:
        with self._translated():
            try:
                return bytes(self.api.get(self.store, name).bytes())
            except FileNotFoundError:
                return None

    def delete(self, name: str) -> None:
        with self._translated(), contextlib.suppress(FileNotFoundError):
            self.api.delete(self.store, name)

    def names(self) -> Iterator[str]:
        with self._translated():
            for page in self.api.list(self.store):
                yield from (str(each["path"]) for each in page)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except (self.error, OSError) as error:
            first = str(error).strip().partition("\n")[0]
            raise BackendDown(f"{self.url} does not serve: {first}") from error


class Sealed:
    """A place that gets nothing in clear, but the names."""

    def __init__(self, place: Place, seal: AeadCodec) -> None:
        self.place, self.seal = place, seal
        self.delete, self.names = place.delete, place.names

    def put(self, name: str, data: bytes) -> None:
        self.place.put(name, self.seal.encode("chunk", name.encode(), data))

    def get(self, name: str) -> bytes | None:
        """Raises StoreDamaged as well."""
        data = self.place.get(name)
        try:
            return None if data is None else self.seal.decode("chunk", name.encode(), data)
        except Damaged as error:
            raise StoreDamaged(f"the chunk {name} of a content is damaged: {error}") from None


def sealed(place: Place, seal: AeadCodec | None) -> Place:
    return place if seal is None else Sealed(place, seal)


def open_blobs(
    url: str, options: Mapping[str, str], store: Store | NoStore,
    post: Callable[[Callable[[], None]], None], seal: AeadCodec | None = None,
) -> Blobs:  # fmt: skip
    """By the setting `blobs`: "lmdb", file:///a/folder, or s3://bucket/prefix.

    Raises:
        BadInput: it is none of them, or not usable.
    """
    parts = urlsplit(url)
    if url == "lmdb":
        return LmdbBlobs(store)
    if parts.scheme == "file" and parts.path.startswith("/") and not parts.netloc:
        place: Place = Folder(Path(parts.path))
    elif parts.scheme == "s3" and parts.netloc:
        place = Bucket(url, options)
    else:
        raise BadInput(f"blobs = {url!r}", 'use "lmdb", "file:///a/folder" or "s3://bucket/prefix"')
    return Elsewhere(store, sealed(place, seal), post)
