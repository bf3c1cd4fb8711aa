"""Quantized variants of a model in the cache, and what was measured of each.

    <XDG cache>/aios/models/<SHA-256 of the original>/fit.json    a FitRecord
                                                      q8_0.gguf   one file a format

A file gets its name when it is complete, so a process that dies while writing leaves none behind.
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

from .compare import Divergence, Speed
from .gguf import open_part, parts, requantize

REFIT_HINT = "`aios model fit` makes it anew"


class Conditions(Struct, frozen=True):
    """The conditions of a measurement; under other conditions its figures are of no use."""

    cpu: str
    engine: str
    slots: int
    threads: int


class Variant(Struct, frozen=True):
    """One quantized file of a model, and its figures."""

    measured: Conditions
    format: str
    size: int  # bytes
    sha256: str
    speed: Speed
    gain: Speed  # over the original's speed, round by round
    certified: int  # largest batch that is exact
    divergence: Divergence = field(name="apart")
    perplexity: float


class FitRecord(Struct):
    """The measurements of one original and of its variants in the cache."""

    path: str  # of the original, when it was last seen
    chosen: str = ""  # format to load where `fitted` is set
    original: Variant | None = None
    variants: list[Variant] = field(name="versions", default_factory=list)

    def variant(self, name: str) -> Variant | None:
        return next((variant for variant in self.variants if variant.format == name), None)


def cache_folder() -> Path:
    return Path(platformdirs.user_cache_dir("aios")) / "models"


def sha256(path: Path) -> str:
    """Return the hash of a model's files. Raises ModelError if one cannot be read."""
    whole = hashlib.sha256()
    try:
        for part in parts(path):
            with open_part(part) as file:
                hashlib.file_digest(file, lambda: whole)
    except OSError as error:
        raise ModelError(
            f"cannot read {path}: {error.strerror}", "name a GGUF file with --model"
        ) from error
    return whole.hexdigest()


class VariantStore:
    """The variants of one original, in its folder of the cache. Reads all of it, for its hash.

    Raises:
        ModelError: the original cannot be read.
    """

    def __init__(self, original: Path) -> None:
        self.original = original
        self.sha256 = sha256(original)
        self.folder = cache_folder() / self.sha256

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.gguf"

    def load(self) -> FitRecord:
        """Read the record; an empty one if nothing was measured.

        Raises:
            ModelError: the record is damaged.
        """
        path = self.folder / "fit.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=FitRecord)
        except FileNotFoundError:
            return FitRecord(str(self.original))
        except (OSError, msgspec.DecodeError) as error:
            hint = f"remove it: `aios model forget`, or rm -r {self.folder}"
            raise ModelError(f"cannot read {path}: {error}", hint) from error

    def save(self, record: FitRecord) -> None:
        record.path = str(self.original)
        with new_file(self.folder / "fit.json") as target:
            target.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=2))

    def make(self, name: str, threads: int) -> None:
        """Write the variant of the original in the format `name`.

        Raises:
            ModelError: it cannot be requantized, or the disk is full.
        """
        with new_file(self.path(name)) as target:
            requantize(self.original, target, name, threads)

    def check(self, variant: Variant) -> None:
        """Raise ModelError unless the variant's file is the one that was measured."""
        path = self.path(variant.format)
        try:
            size = path.stat().st_size
        except OSError as error:
            raise ModelError(f"cannot read {path}: {error.strerror}", REFIT_HINT) from error
        if size != variant.size:
            raise ModelError(f"{path} has {size} bytes instead of {variant.size}", REFIT_HINT)
        if sha256(path) != variant.sha256:
            raise ModelError(f"{path} is not the file that was measured: another hash", REFIT_HINT)

    def chosen(self) -> Variant:
        """Return the variant to load, after a check of its file.

        Raises:
            ModelError: none is chosen, or its file is not the one that was measured.
        """
        record = self.load()
        variant = record.variant(record.chosen)
        if variant is None:
            raise ModelError(f"no format is chosen for {self.original}", "`aios model fit` does it")
        self.check(variant)
        return variant

    def forget(self, names: tuple[str, ...]) -> None:
        """Remove variants; without names all of them, and the record.

        Raises:
            NotFound: there is no variant in such a format.
        """
        if not names:
            if self.folder.exists():
                shutil.rmtree(self.folder)
            return
        record = self.load()
        for name in names:
            variant = record.variant(name)
            if variant is None:
                raise NotFound(f"there is no {name} of {self.original} in the cache")
            record.variants.remove(variant)
            if record.chosen == name:
                record.chosen = ""
        self.save(record)  # first: a file that no record names does no harm
        for name in names:
            self.path(name).unlink(missing_ok=True)


class Choice(Struct, frozen=True):
    """The file that a core loads, and why that one."""

    path: Path
    fitted: Fitted | None = None
    refused: str = ""  # why it is the original although `fitted` is set
    measured: bool = False  # variants were measured


def choose(original: Path, fitted: bool) -> Choice:
    """Return the original, or with `fitted` the chosen variant, if its file is the measured one.

    Raises:
        ModelError: with `fitted`: the original cannot be read.
    """
    if not fitted:
        return Choice(original, measured=was_measured(original))
    store = VariantStore(original)
    try:
        variant = store.chosen()
    except ModelError as error:
        return Choice(original, refused=str(error), measured=was_measured(original))
    name, divergence = variant.format, variant.divergence
    told = Fitted(
        original=str(original), format=name, kl=divergence.kl, same_top=divergence.same_top
    )
    return Choice(store.path(name), told, measured=True)


def was_measured(original: Path) -> bool:
    """Look for a record by the original's path, since hashing takes a second per gigabyte."""
    for path in cache_folder().glob("*/fit.json"):
        with contextlib.suppress(msgspec.DecodeError, OSError):  # a damaged one counts as missing
            if msgspec.json.decode(path.read_bytes(), type=FitRecord).path == str(original):
                return True
    return False


@contextlib.contextmanager
def lock(on_wait: Callable[[], None]) -> Iterator[None]:
    """Lock the cache for one process at a time. `on_wait` is called if another has it locked.

    Raises:
        ModelError: the cache cannot be made.
    """
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        file = (cache_folder() / "lock").open("a")
    except OSError as error:
        raise _write_error(cache_folder(), error.strerror) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a path of a file without a name, which becomes `path` when the block ends well.

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
        raise _write_error(path, error.strerror) from error
    except ModelError as error:
        raise _write_error(path, error.message) from error


def _write_error(path: Path, why: object) -> ModelError:
    there = next(folder for folder in path.parents if folder.exists())
    free = shutil.disk_usage(there).free >> 20
    return ModelError(
        f"cannot write {path}: {why} ({free} MiB are free there)",
        "make room, or set XDG_CACHE_HOME to a folder on another disk of this machine",
    )


def _give_name(unnamed: Path, path: Path, folder: int) -> None:
    """Replace `path` by the file, atomically and durably; `folder` is open on its parent."""
    part = path.name + ".part"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(part, dir_fd=folder)  # of a process that died right here
    os.link(unnamed, part, dst_dir_fd=folder)  # by a folder: else Python would link the symlink
    os.replace(part, path.name, src_dir_fd=folder, dst_dir_fd=folder)
    os.fsync(folder)
