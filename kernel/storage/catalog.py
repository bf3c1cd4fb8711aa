"""The catalogue of storage: the objects, their versions, and the chunks of each.

A catalogue works within one transaction of the store, in its table "catalog". The first byte of a
key is the kind of its row; O stands for 16 bytes, a hash of the owner's name.

    o O                  the owner's name, and the bytes that count against its quota
    h O path             the newest version, and the number of the last change
    v O path NUL version a version
    c chunk              the number of versions and uploads that have it; its size
    u upload index       a chunk that an upload holds until it is put
    s number             the object whose last change has this number
    g O prefix NUL to    a share (shares.py); `t`: the same, by whom it is to
    b                    the setting `blobs` that the chunks were written with
    n                    the number of the last change
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Literal

import msgspec
from msgspec import Struct

from aios.syscalls import sto
from aios.syscalls.errors import BadInput, Conflict, LimitReached, NotFound, StoreDamaged

from ..lib.callbacks import ignore
from ..lib.trees import Trees, root
from ..store.transaction import Txn

TABLE = "catalog"
IN_BACKUP = "the folder `blobs` of a backup"  # instead of the setting, in a backup's catalogue
LISTED = "`aios sto list` lists what there is"
KEY_BYTES = 16  # of a chunk's key, and of the hash of an owner's name
MAX_DROPPED_ROWS = 1024  # of versions and their chunks, in one transaction
ENTRY_BYTES = 256  # charged for an object and each version at least, beside the content
NUMBER, INDEX = struct.Struct(">Q"), struct.Struct(">QI")

encode = msgspec.msgpack.Encoder().encode


class OwnerUsage(Struct, array_like=True):
    """An owner's name, and the bytes that count against its quota."""

    name: str
    used: int = 0


class Head(Struct, array_like=True):
    """The newest version of an object, and the number of its last change."""

    version: int = 0
    number: int = 0
    state: Literal["live", "deleted", "purged"] = "purged"


class VersionRow(Struct, array_like=True):
    """A version of an object."""

    version: int
    what: sto.What
    size: int
    time: float
    by: str
    tags: list[str]
    media: str
    chunks: bytes  # keys, one after the other; all chunks but the last have the full size
    labels: list[str] = []  # taint labels of the process that wrote it

    def pieces(self) -> Iterator[tuple[bytes, int]]:
        """Iterate over the keys and sizes of the chunks."""
        yield from pieces(self.chunks, self.size)

    def labels_for(self, owner: str, reader: str) -> set[str]:
        """Return the taint labels of a process, by its principal, that reads this version."""
        own = owner in ("", reader)
        return set(self.labels) | (set() if own else {f"sto:{owner}"})

    def told(self, owner: str, path: str) -> sto.Version:
        """Return this version as a reply has it."""
        return sto.Version(
            owner=owner, path=path, version=self.version, what=self.what, size=self.size,
            time=self.time, by=self.by, tags=self.tags, media=self.media,
            labels=self.labels,
        )  # fmt: skip


class UploadChunk(Struct, array_like=True):
    """A chunk that an upload holds until it is put."""

    owner: str
    chunk: bytes
    size: int


owned = msgspec.msgpack.Decoder(OwnerUsage).decode
head_of = msgspec.msgpack.Decoder(Head).decode
row_of = msgspec.msgpack.Decoder(VersionRow).decode
held_of = msgspec.msgpack.Decoder(UploadChunk).decode
count_of = msgspec.msgpack.Decoder(tuple[int, int]).decode
changed_of = msgspec.msgpack.Decoder(tuple[str, str]).decode


def pieces(chunks: bytes, size: int) -> Iterator[tuple[bytes, int]]:
    for at in range(0, len(chunks), KEY_BYTES):
        yield (
            chunks[at : at + KEY_BYTES],
            min(sto.CHUNK_BYTES, size - at // KEY_BYTES * sto.CHUNK_BYTES),
        )


def short(name: str) -> bytes:
    """Return the hash that stands for an owner's name, which may be longer than a key."""
    return hashlib.blake2b(name.encode(), digest_size=KEY_BYTES).digest()


def key(kind: bytes, owner: str, rest: bytes = b"") -> bytes:
    return kind + short(owner) + rest


def version_key(owner: str, path: str, version: int | None = None) -> bytes:
    """Return the key of a version; without one, the prefix of the keys of all versions."""
    number = b"" if version is None else NUMBER.pack(version)
    return key(b"v", owner, path.encode() + b"\0" + number)


def check_path(path: str) -> None:
    """Raise BadInput for a malformed path."""
    if len(path.encode()) > sto.MAX_PATH_BYTES:
        raise BadInput(f"a path of more than {sto.MAX_PATH_BYTES} bytes", "choose a shorter one")
    if any(segment in ("", ".", "..") for segment in path.split("/")):
        raise BadInput(f"no path: {path!r}", 'names with "/" between them, none empty, "." or ".."')
    if any(char < " " or "\x7f" <= char <= "\x9f" for char in path):
        raise BadInput(f"control characters in the path {path!r}", "leave them out")


def charged(row: bytes) -> int:
    """Return the bytes charged for a version beside its content: its tags may be long."""
    return max(ENTRY_BYTES, len(row))


def is_used(txn: Txn, chunk: bytes) -> bool:
    return txn.get(TABLE, b"c" + chunk) is not None


def has_chunks(txn: Txn) -> bool:
    return next(txn.keys(TABLE, b"c"), None) is not None


def missing(owner: str, path: str, hint: str = LISTED) -> NotFound:
    return NotFound(f"no object {path!r} of {owner or 'a person'}", hint)


def all_owners(txn: Txn) -> list[OwnerUsage]:
    return list(Catalog(txn).owners())


class Catalog:
    """The catalogue in one transaction. `drop` is called with each chunk that nothing refers to any
    more."""

    def __init__(self, txn: Txn, drop: Callable[[bytes], None] = ignore) -> None:
        self.txn, self.drop = txn, drop
        self.grown: dict[str, int] = {}  # bytes by owner, in this transaction

    # --- objects ----------------------------------------------------------------------------------

    def head(self, owner: str, path: str) -> Head:
        data = self.txn.get(TABLE, key(b"h", owner, path.encode()))
        return Head() if data is None else head_of(data)

    def find(self, owner: str, path: str, version: int | None = None) -> VersionRow:
        """Return a version, by default the newest.

        Raises:
            NotFound: there is no such version.
        """
        head = self.head(owner, path)
        if version is None and head.state != "live":
            deleted = head.state == "deleted"
            raise missing(owner, path, "its history has earlier versions" if deleted else LISTED)
        data = self.txn.get(TABLE, version_key(owner, path, version or head.version))
        if data is None:
            raise NotFound(f"no version {version} of {path!r}", "its history lists them")
        return row_of(data)

    def check_version(self, owner: str, path: str, wanted: int | None) -> None:
        """Raise Conflict unless the newest version is the wanted one; 0 stands for no object."""
        head = self.head(owner, path)
        held = 0 if head.state == "purged" else head.version
        if wanted is not None and wanted != held and (wanted or head.state == "live"):
            now = f"it has version {head.version}" if head.state == "live" else "there is none"
            raise Conflict(f"version {wanted} of {path!r} was expected: {now}")

    def add(
        self, owner: str, path: str, row: VersionRow, *, upload: int | None = None
    ) -> sto.Version:  # fmt: skip
        """Add a version, numbered here. An upload may have held its chunks until now."""
        head = self.head(owner, path)
        row.version = head.version + 1
        for chunk, size in row.pieces():
            self._refer(owner, chunk, size)
        if upload is not None:
            self.release(upload)
        data = encode(row)
        self.txn.put(TABLE, version_key(owner, path, row.version), data)
        self._grow(owner, charged(data) + (0 if head.version else ENTRY_BYTES))
        self._note(owner, path, head, row.version, "deleted" if row.what == "delete" else "live")
        return row.told(owner, path)

    def purge(self, owner: str, path: str, by: str, time: float) -> sto.Version:
        """Forget all versions of an object. Raises NotFound where it has none."""
        head = self.head(owner, path)
        if head.state == "purged":
            raise missing(owner, path)
        for row in list(self.versions(owner, path)):
            self.forget(owner, path, row.version)
        self._note(owner, path, head, head.version + 1, "purged")
        return VersionRow(head.version + 1, "purge", 0, time, by, [], "", b"").told(owner, path)

    def drop_oldest(self, owner: str, path: str) -> bool:
        """Drop as many of the oldest versions as one transaction may, where there are more than
        that. Tell whether there were."""
        rows = 0
        found: list[int] = []
        for _, data in self.txn.scan(TABLE, version_key(owner, path)):
            row = row_of(data)
            rows += 1 + len(row.chunks) // KEY_BYTES
            if rows > MAX_DROPPED_ROWS and found:
                break
            found.append(row.version)
        else:
            return False
        for version in found:
            self.forget(owner, path, version)
        return True

    def forget(self, owner: str, path: str, version: int) -> None:
        """Drop one version, if it exists."""
        place = version_key(owner, path, version)
        data = self.txn.get(TABLE, place)
        if data is not None:
            for chunk, size in row_of(data).pieces():
                self._unrefer(owner, chunk, size)
            self.txn.delete(TABLE, place)
            self._grow(owner, -charged(data))

    def versions(self, owner: str, path: str, before: int | None = None) -> Iterator[VersionRow]:
        """Iterate over the versions of an object, the newest first."""
        prefix = version_key(owner, path)
        start = b"" if before is None else prefix + NUMBER.pack(before)
        for _, data in self.txn.scan(TABLE, prefix, start, back=True):
            yield row_of(data)

    def paths(self, owner: str, prefix: str, after: str) -> Iterator[tuple[str, Head]]:
        """Iterate over the objects after `after`, including deleted and purged ones."""
        begin = key(b"h", owner)
        start = begin + after.encode() + b"\0" if after else b""
        for found, data in self.txn.scan(TABLE, begin + prefix.encode(), start):
            yield found[len(begin) :].decode(), head_of(data)

    def _note(
        self, owner: str, path: str, head: Head, version: int,
        state: Literal["live", "deleted", "purged"],
    ) -> None:  # fmt: skip
        number = self.last() + 1
        self.txn.put(TABLE, b"n", NUMBER.pack(number))
        if head.number:
            self.txn.delete(TABLE, b"s" + NUMBER.pack(head.number))
        self.txn.put(TABLE, b"s" + NUMBER.pack(number), encode((owner, path)))
        now = Head(version, number, state)
        self.txn.put(TABLE, key(b"h", owner, path.encode()), encode(now))

    def last(self) -> int:
        """Return the number of the last change."""
        return int.from_bytes(self.txn.get(TABLE, b"n") or b"")

    def changes(self, since: int, limit: int) -> list[tuple[int, str, str]]:
        """Return (number, owner, path) of the objects whose last change came after `since`. Where
        that row is damaged, owner and path are ""."""
        found = []
        for place in islice(self.txn.keys(TABLE, b"s", b"s" + NUMBER.pack(since + 1)), limit):
            try:
                owner, path = changed_of(self.txn.get(TABLE, place) or b"")
            except StoreDamaged:
                owner, path = "", ""
            found.append((int.from_bytes(place[1:]), owner, path))
        return found

    # --- chunks -----------------------------------------------------------------------------------

    def _refer(self, owner: str, chunk: bytes, size: int) -> None:
        data = self.txn.get(TABLE, b"c" + chunk)
        if data is None:
            self._grow(owner, size)
        count = 0 if data is None else count_of(data)[0]
        self.txn.put(TABLE, b"c" + chunk, encode((count + 1, size)))

    def _unrefer(self, owner: str, chunk: bytes, size: int) -> None:
        count, _ = count_of(self.txn.get(TABLE, b"c" + chunk) or encode((0, 0)))
        if count > 1:
            self.txn.put(TABLE, b"c" + chunk, encode((count - 1, size)))
            return
        self.txn.delete(TABLE, b"c" + chunk)
        self._grow(owner, -size)
        self.drop(chunk)

    def hold(self, upload: int, index: int, held: UploadChunk) -> None:
        self._refer(held.owner, held.chunk, held.size)
        self.txn.put(TABLE, b"u" + INDEX.pack(upload, index), encode(held))

    def held(self, upload: int | None = None) -> Iterator[tuple[bytes, UploadChunk]]:
        """Iterate over the chunks that an upload holds, in order; by default, that all hold."""
        prefix = b"u" if upload is None else b"u" + NUMBER.pack(upload)
        for found, data in self.txn.scan(TABLE, prefix):
            yield found, held_of(data)

    def release(self, upload: int | None = None) -> None:
        """Release the chunks of an upload that has ended; by default, of all."""
        for found, held in list(self.held(upload)):
            self._unrefer(held.owner, held.chunk, held.size)
            self.txn.delete(TABLE, found)

    # --- owners -----------------------------------------------------------------------------------

    def owner(self, name: str) -> OwnerUsage:
        data = self.txn.get(TABLE, key(b"o", name))
        return OwnerUsage(name) if data is None else owned(data)

    def owners(self, after: str | None = None) -> Iterator[OwnerUsage]:
        """Iterate over the owners after `after`, in the order of their keys."""
        start = b"" if after is None else key(b"o", after) + b"\0"
        for _, data in self.txn.scan(TABLE, b"o", start):
            yield owned(data)

    def _grow(self, owner: str, size: int) -> None:
        self.grown[owner] = self.grown.get(owner, 0) + size

    def settle(self, quota: int | None, trees: Trees) -> None:
        """Charge the owners for what this transaction has changed; comes last. Raises LimitReached
        where a tree of agents has grown past the quota."""
        for name, size in self.grown.items():
            row, tree = self.owner(name), root(name)
            row.used += size
            total = trees.total(tree) - trees.held[name] + row.used
            if quota is not None and name and size > 0 and total > quota:
                raise LimitReached(
                    f"{tree!r}, with all below it, would have {total} bytes in storage: its quota "
                    f"is {quota}", "purge something, or raise storage_bytes in config.toml",
                )  # fmt: skip
            self.txn.put(TABLE, key(b"o", name), encode(row))
            trees.set(name, row.used)
