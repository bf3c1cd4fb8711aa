"""Blob backends: a folder or a bucket that keeps chunks by name, encrypted or not. Calls block, and
raise BackendDown or DiskFull where they cannot be served."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from aios.syscalls.errors import BackendDown, BadInput, DiskFull, StoreDamaged

from ..lib.encryption import AeadCodec, Damaged
from ..lib.files import replace, sync_folder

BUCKET_TIMEOUT = timedelta(seconds=10)  # of all tries of a request together


class BlobBackend(Protocol):
    """A place for chunks. Each call blocks, and raises BackendDown or DiskFull where it fails."""

    def put(self, name: str, data: bytes) -> None:
        """Put a chunk, replacing one of that name. It is durable when the call returns."""

    def get(self, name: str) -> bytes | None: ...

    def delete(self, name: str) -> None:
        """Delete a chunk, if there is one of that name."""

    def names(self) -> Iterator[str]: ...


class FolderBackend:
    """A file for each chunk, in 256 folders."""

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
        with _translated(f"cannot write to {self.path}"):
            replace(self._file(name), data, self.new / name)

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


class BucketBackend:
    """An object for each chunk, in a bucket of a server that speaks S3. Credentials come from the
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
                client_options={"allow_http": plain, "timeout": BUCKET_TIMEOUT},
                retry_config={"max_retries": 3, "retry_timeout": BUCKET_TIMEOUT},
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


class EncryptedBackend:
    """A backend that encrypts chunks for another one, which sees only their names in clear."""

    def __init__(self, backend: BlobBackend, seal: AeadCodec) -> None:
        self.backend, self.seal = backend, seal
        self.delete, self.names = backend.delete, backend.names

    def put(self, name: str, data: bytes) -> None:
        self.backend.put(name, self.seal.encode("chunk", name.encode(), data))

    def get(self, name: str) -> bytes | None:
        """Return a chunk. Raises StoreDamaged where it cannot be decrypted."""
        data = self.backend.get(name)
        try:
            return None if data is None else self.seal.decode("chunk", name.encode(), data)
        except Damaged as error:
            raise StoreDamaged(f"the chunk {name} of a content is damaged: {error}") from None


def encrypted(backend: BlobBackend, seal: AeadCodec | None) -> BlobBackend:
    return backend if seal is None else EncryptedBackend(backend, seal)
