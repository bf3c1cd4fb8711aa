"""What changes in storage, in the order of its numbers, as the index is told of it."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

from aios.syscalls.errors import NotFound, StoreDamaged

from ..storage.blobs import Blobs
from ..storage.catalog import Catalog, Row
from ..store.store import NoStore, Store
from .protocol import Change, Put, Remove

LONGEST = 1 << 20  # bytes of a text that is indexed; of a longer one the beginning
BATCH = 64  # changes that are read at once


class Changes:
    def __init__(self, store: Store | NoStore, blobs: Blobs) -> None:
        self.store, self.blobs = store, blobs

    @property
    def id(self) -> str:
        """Of the store: another one has other numbers. That of the store itself is secret."""
        return hashlib.blake2b(self.store.id, digest_size=16).hexdigest()

    def newest(self) -> int:
        """The number of the newest change; 0 where there was none."""
        last: int = self.store.read(lambda txn: Catalog(txn).last())
        return last

    async def after(self, number: int, count: int, epoch: int) -> list[Change]:
        """Return the next ones after `number`, at most `count` of them. One that is damaged in the
        catalogue, or whose content is, is as if it were removed."""
        found = self.store.read(lambda txn: _rows(Catalog(txn), number, min(count, BATCH)))
        keys = [key for _, _, _, row in found if row is not None for key in _beginning(row)]
        try:
            held = iter(await self.blobs.read(keys))
        except StoreDamaged:
            if len(found) > 1:
                return await self.after(number, 1, epoch)
            return [Remove(epoch, *found[0][:3])]
        return [_change(epoch, held, *each) for each in found]


def _rows(cat: Catalog, after: int, count: int) -> list[tuple[int, str, str, Row | None]]:
    """The version of each that is to be found, if there is one."""
    found = []
    for number, owner, path in cat.changes(after, count):
        row = None
        with contextlib.suppress(NotFound, StoreDamaged):
            row = cat.find(owner, path)
        found.append((number, owner, path, row))
    return found


def _beginning(row: Row) -> list[bytes]:
    """The chunks of what is indexed."""
    sizes, keys = 0, []
    for key, size in row.pieces():
        if sizes < LONGEST:
            keys.append(key)
            sizes += size
    return keys


def _change(
    epoch: int, held: Iterator[bytes], number: int, owner: str, path: str, row: Row | None
) -> Change:
    if row is None:
        return Remove(epoch, number, owner, path)
    data = b"".join(next(held) for _ in _beginning(row))
    text = as_text(data, whole=row.size <= LONGEST)
    if text is None:
        return Remove(epoch, number, owner, path)
    return Put(epoch, number, owner, path, row.version, row.time, row.tags, text)


def as_text(data: bytes, *, whole: bool) -> str | None:
    """What is UTF-8, up to where a beginning was cut; None: it is no text."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        cut = not whole and error.start > len(data) - 4
        return data[: error.start].decode() if cut else None
