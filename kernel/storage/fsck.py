"""The verification of storage: reads all of it, and reports what is inconsistent."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator

from aios.syscalls import sto
from aios.syscalls.errors import StoreDamaged

from ..store.transaction import Txn
from .catalog import (
    ENTRY_BYTES,
    KEY_BYTES,
    TABLE,
    changed_of,
    charged,
    count_of,
    head_of,
    held_of,
    is_used,
    owned,
    row_of,
    short,
)
from .manager import Storage

OWNER = slice(1, 1 + KEY_BYTES)  # the owner's hash in a key


class Verification:
    """Reads the catalogue as of one moment, then each chunk that it refers to. `step` is called
    between any two small parts of the work."""

    def __init__(self, storage: Storage, step: Callable[[str], None]) -> None:
        self.storage, self.step = storage, step
        self.problems: list[str] = []
        self.referred: Counter[bytes] = Counter()
        self.owner_of: dict[bytes, bytes] = {}  # chunk: the hash of its owner's name
        self.sizes: dict[bytes, int] = {}
        self.used: Counter[bytes] = Counter()  # bytes by the hash of an owner's name
        self.names: dict[bytes, str] = {}
        self.objects = self.versions = 0

    def run(self) -> sto.Verified:
        began = time.monotonic()
        self.storage.store.read(self._catalog)
        for chunk in self.sizes:
            self.step("chunks")
            self._chunk(chunk)
        return sto.Verified(
            objects=self.objects, versions=self.versions, chunks=len(self.sizes),
            bytes=sum(self.sizes.values()), problems=self.problems,
            seconds=time.monotonic() - began,
        )  # fmt: skip

    def _catalog(self, txn: Txn) -> None:
        for place, data in self._rows(txn, b"o"):
            self.names[place[OWNER]] = owned(data).name
        for place, data in self._rows(txn, b"v"):
            row = row_of(data)
            self.versions += 1
            self.used[place[OWNER]] += charged(data)
            for chunk, size in row.pieces():
                self._refer(place[OWNER], chunk, size)
        for _, data in self._rows(txn, b"u"):
            held = held_of(data)
            self._refer(short(held.owner), held.chunk, held.size)
        self._heads(txn)
        self._counts(txn)
        for place, data in self._rows(txn, b"o"):
            row_used = owned(data).used
            if row_used != self.used[place[OWNER]]:
                self._say(f"{owned(data).name!r} is charged {row_used} bytes, and has "
                          f"{self.used[place[OWNER]]}")  # fmt: skip

    def _heads(self, txn: Txn) -> None:
        for place, data in self._rows(txn, b"h"):
            head, path = head_of(data), place[1 + KEY_BYTES :]
            self.objects += head.state == "live"
            self.used[place[OWNER]] += ENTRY_BYTES
            newest = b"v" + place[OWNER] + path + b"\0" + head.version.to_bytes(8)
            if (txn.size(TABLE, newest) is None) != (head.state == "purged"):
                self._say(f"{self._named(place)}: its newest version {head.version} is missing")
            number = b"s" + head.number.to_bytes(8)
            if txn.size(TABLE, number) is None:
                self._say(f"{self._named(place)}: its change {head.number} is missing")
        changed = sum(1 for _, data in self._rows(txn, b"s") if changed_of(data))
        if changed != sum(1 for _ in txn.keys(TABLE, b"h")):
            self._say(f"{changed} changes are kept, not one an object")

    def _counts(self, txn: Txn) -> None:
        counted = {place[1:]: count_of(data) for place, data in self._rows(txn, b"c")}
        for chunk in counted.keys() | self.referred.keys():
            self.step("counts")
            count, size = counted.get(chunk, (0, 0))
            if (count, size) != (self.referred[chunk], self.sizes.get(chunk, 0)):
                self._say(f"the chunk {chunk.hex()} is counted {count} times, and referred to "
                          f"{self.referred[chunk]} times")  # fmt: skip

    def _rows(self, txn: Txn, kind: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Iterate over the rows of a kind that pass their checksums; report the others."""
        for place in txn.keys(TABLE, kind):
            self.step("rows")
            try:
                data = txn.get(TABLE, place)
            except StoreDamaged as error:
                self._say(error.message)
            else:
                yield place, data or b""

    def _refer(self, owner: bytes, chunk: bytes, size: int) -> None:
        if chunk not in self.referred:
            self.used[owner] += size
            self.owner_of[chunk], self.sizes[chunk] = owner, size
        self.referred[chunk] += 1

    def _chunk(self, chunk: bytes) -> None:
        name = self.names.get(self.owner_of[chunk])
        try:
            data = self.storage.blobs.load(chunk)
        except StoreDamaged as error:
            if self.storage.store.read(lambda txn: is_used(txn, chunk)):  # or dropped meanwhile
                self._say(error.message)
            return
        if name is None or self.storage.key(name, data) != chunk:
            self._say(f"the chunk {chunk.hex()} of {name!r} is damaged")

    def _named(self, place: bytes) -> str:
        owner = self.names.get(place[OWNER], place[OWNER].hex())
        return f"{place[1 + KEY_BYTES :].decode()!r} of {owner!r}"

    def _say(self, problem: str) -> None:
        self.problems.append(problem)
