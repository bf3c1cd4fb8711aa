"""Fitted models: GGUF files in a format that this machine is quick with, and their figures.

    <XDG cache>/aios/models/<SHA-256 of the original>/fit.json    a Record
                                                      q8_0.gguf   one file a format

A file has no name until it is whole, so whoever dies while writing leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import platformdirs
from msgspec import Struct, field

from aios.syscalls.errors import ModelError, NotFound
from aios.syscalls.kernel import Fitted

from .compare import Distance, Speed
from .gguf import requantize

REFIT = "`aios model fit` makes it anew"


class Conditions(Struct, frozen=True):
    """What figures depend on. Those measured elsewhere are of no use here."""

    cpu: str
    engine: str
    slots: int
    threads: int


class Version(Struct, frozen=True):
    """One file of a model, and its figures."""

    measured: Conditions
    format: str
    size: int  # bytes
    sha256: str
    speed: Speed
    gain: Speed  # over the original's, each round by itself
    certified: int  # largest batch that is exact
    apart: Distance
    perplexity: float


class Record(Struct):
    """What is known of one original; `versions` are those in the cache."""

    path: str  # where it was last
    chosen: str = ""  # format to load where `fitted` is set
    original: Version | None = None
    versions: list[Version] = field(default_factory=list)

    def version(self, name: str) -> Version | None:
        return next((version for version in self.versions if version.format == name), None)


def cache() -> Path:
    return Path(platformdirs.user_cache_dir("aios")) / "models"


def sha256(path: Path) -> str:
    """Raises ModelError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(
            f"cannot read {path}: {error.strerror}", "name a GGUF file with --model"
        ) from error


class Shelf:
    """The folder of one original in the cache. Reads it whole, for its hash.

    Raises:
        ModelError: the original cannot be read.
    """

    def __init__(self, original: Path) -> None:
        self.original = original
        self.sha256 = sha256(original)
        self.folder = cache() / self.sha256

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.gguf"

    def load(self) -> Record:
        """What is known; an empty record when nothing is.

        Raises:
            ModelError: the record is damaged.
        """
        path = self.folder / "fit.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=Record)
        except FileNotFoundError:
            return Record(str(self.original))
        except (OSError, msgspec.DecodeError) as error:
            hint = f"remove it: `aios model forget`, or rm -r {self.folder}"
            raise ModelError(f"cannot read {path}: {error}", hint) from error

    def save(self, record: Record) -> None:
        record.path = str(self.original)
        with new_file(self.folder / "fit.json") as target:
            target.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=2))

    def make(self, name: str, threads: int) -> None:
        """Put the original in the format `name` on the shelf.

        Raises:
            ModelError: it cannot be requantized, or there is no room.
        """
        with new_file(self.path(name)) as target:
            requantize(self.original, target, name, threads)

    def check(self, version: Version) -> None:
        """Raises ModelError unless the file is there, and is the one that was measured."""
        path = self.path(version.format)
        try:
            size = path.stat().st_size
        except OSError as error:
            raise ModelError(f"cannot read {path}: {error.strerror}", REFIT) from error
        if size != version.size:
            raise ModelError(f"{path} has {size} bytes instead of {version.size}", REFIT)
        if sha256(path) != version.sha256:
            raise ModelError(f"{path} is not the file that was measured: another hash", REFIT)

    def chosen(self) -> Version:
        """The version to load, after a check of its file.

        Raises:
            ModelError: none is chosen, or it is not to be trusted.
        """
        record = self.load()
        version = record.version(record.chosen)
        if version is None:
            raise ModelError(f"no format is chosen for {self.original}", "`aios model fit` does it")
        self.check(version)
        return version

    def forget(self, names: tuple[str, ...]) -> None:
        """Remove these formats; without names all, and what is known of the original.

        Raises:
            NotFound: there is no such format.
        """
        if not names:
            if self.folder.exists():
                shutil.rmtree(self.folder)
            return
        record = self.load()
        for name in names:
            version = record.version(name)
            if version is None:
                raise NotFound(f"there is no {name} of {self.original} in the cache")
            record.versions.remove(version)
            if record.chosen == name:
                record.chosen = ""
        self.save(record)  # first: a file without figures is of no harm
        for name in names:
            self.path(name).unlink(missing_ok=True)


class Choice(Struct, frozen=True):
    """The file that a core loads, and why that one."""

    path: Path
    fitted: Fitted | None = None
    refused: str = ""  # why it is the original although `fitted` is set
    measured: bool = False  # other formats than the original's were


def choose(original: Path, fitted: bool) -> Choice:
    """The original, or with `fitted` the version of it that was chosen, if that one is whole.

    Raises:
        ModelError: with `fitted`: the original cannot be read.
    """
    if not fitted:
        return Choice(original, measured=was_measured(original))
    shelf = Shelf(original)
    try:
        version = shelf.chosen()
    except ModelError as error:
        return Choice(original, refused=str(error), measured=was_measured(original))
    name, apart = version.format, version.apart
    told = Fitted(original=str(original), format=name, kl=apart.kl, same_top=apart.same_top)
    return Choice(shelf.path(name), told, measured=True)


def was_measured(original: Path) -> bool:
    """By its path, since to hash it takes a second a gigabyte."""
    for path in cache().glob("*/fit.json"):
        with contextlib.suppress(msgspec.DecodeError, OSError):  # damaged: as if it were not there
            if msgspec.json.decode(path.read_bytes(), type=Record).path == str(original):
                return True
    return False


@contextlib.contextmanager
def lock(waits: Callable[[], None]) -> Iterator[None]:
    """One process at a time works on the cache; the next `waits`, and finds what that has made.

    Raises:
        ModelError: there can be no cache.
    """
    try:
        cache().mkdir(parents=True, exist_ok=True)
        file = (cache() / "lock").open("a")
    except OSError as error:
        raise _no_room(cache(), error.strerror) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waits()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """What to write to: a file without a name, which becomes `path` when the block ends well.

    Raises:
        ModelError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, folder)
            file = os.open(path.parent, os.O_TMPFILE | os.O_RDWR, 0o600)
            stack.callback(os.close, file)
            unnamed = Path(f"/proc/self/fd/{file}")
            yield unnamed
            os.fsync(file)
            _give_name(unnamed, path, folder)
    except OSError as error:
        raise _no_room(path, error.strerror) from error
    except ModelError as error:
        raise _no_room(path, error.message) from error


def _no_room(path: Path, why: object) -> ModelError:
    there = next(folder for folder in path.parents if folder.exists())
    free = shutil.disk_usage(there).free >> 20
    return ModelError(
        f"cannot write {path}: {why} ({free} MiB are free there)",
        "make room, or set XDG_CACHE_HOME to a folder on another disk of this machine",
    )


def _give_name(unnamed: Path, path: Path, folder: int) -> None:
    """Put the file in the place of `path` at once and for good; `folder` is open on its parent."""
    part = path.name + ".part"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(part, dir_fd=folder)  # of one that died right here
    os.link(unnamed, part, dst_dir_fd=folder)  # by a folder: else Python would link the symlink
    os.replace(part, path.name, src_dir_fd=folder, dst_dir_fd=folder)
    os.fsync(folder)
