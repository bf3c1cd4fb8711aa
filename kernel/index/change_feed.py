"""The changes of storage in the order of their numbers, as they are sent to the index."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

from aios.syscalls.errors import NotFound, StoreDamaged

from ..storage.blobs import Blobs
from ..storage.catalog import Catalog, VersionRow
from ..store.store import NoStore, Store
from .protocol import Change, PutDocument, RemoveDocument

MAX_TEXT_BYTES = 1 << 20  # of a text that are indexed; the rest is not
READ_CHANGES = 64  # at once


class ChangeFeed:
    """Reads changes out of the catalogue, with the texts to be indexed."""

    def __init__(self, store: Store | NoStore, blobs: Blobs) -> None:
        self.store, self.blobs = store, blobs

    @property
    def id(self) -> str:
        """An identity of the store, whose own is secret. Another store has other numbers."""
        return hashlib.blake2b(self.store.id, digest_size=16).hexdigest()

    def newest(self) -> int:
        """Return the number of the newest change; 0 if there was none."""
        return self.store.read(lambda txn: Catalog(txn).last())

    async def after(self, number: int, count: int, epoch: int) -> list[Change]:
        """Return up to `count` changes that follow `number`. An object whose row or content is
        damaged counts as removed."""
        found = self.store.read(lambda txn: _rows(Catalog(txn), number, min(count, READ_CHANGES)))
        keys = [key for _, _, _, row in found if row is not None for key in _indexed_chunks(row)]
        try:
            held = iter(await self.blobs.read(keys))
        except StoreDamaged:
            if len(found) > 1:
                return await self.after(number, 1, epoch)
            return [RemoveDocument(epoch, *found[0][:3])]
        return [_change(epoch, held, *each) for each in found]


def _rows(cat: Catalog, after: int, count: int) -> list[tuple[int, str, str, VersionRow | None]]:
    """Return (number, owner, path, newest version or None) of the changes after a number."""
    found = []
    for number, owner, path in cat.changes(after, count):
        row = None
        with contextlib.suppress(NotFound, StoreDamaged):
            row = cat.find(owner, path)
        found.append((number, owner, path, row))
    return found


def _indexed_chunks(row: VersionRow) -> list[bytes]:
    """Return the keys of the chunks that have the first MAX_TEXT_BYTES of an object."""
    sizes, keys = 0, []
    for key, size in row.pieces():
        if sizes < MAX_TEXT_BYTES:
            keys.append(key)
            sizes += size
    return keys


def _change(
    epoch: int, held: Iterator[bytes], number: int, owner: str, path: str, row: VersionRow | None
) -> Change:
    if row is None:
        return RemoveDocument(epoch, number, owner, path)
    data = b"".join(next(held) for _ in _indexed_chunks(row))
    text = as_text(data, whole=row.size <= MAX_TEXT_BYTES)
    if text is None:
        return RemoveDocument(epoch, number, owner, path)
    return PutDocument(epoch, number, owner, path, row.version, row.time, row.tags, text)


def as_text(data: bytes, *, whole: bool) -> str | None:
    """Decode UTF-8; unless `whole`, the data may end within a character. None: it is no text."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        cut = not whole and error.start > len(data) - 4
        return data[: error.start].decode() if cut else None
