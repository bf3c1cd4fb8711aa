"""The rows of memory in the store's table "memory". Numbers are big-endian:

"o" owner                     an OwnerRow
"k" owner space key           an item
"g" owner space               a space that was cleared; its items are removed in small steps
"g" owner                     a forgotten owner; its interaction log is removed in small steps
"""

from __future__ import annotations

from collections import Counter
from itertools import islice

import msgspec

from aios.syscalls.errors import LimitReached
from aios.syscalls.mem import MAX_SPACES

from ..store.transaction import Txn

MAX_REMOVED_ROWS = 500  # by one job


class Space(msgspec.Struct, array_like=True):
    """The number of a space in the keys of its items, and what it counts."""

    number: int
    count: int = 0
    bytes: int = 0  # of keys and values


class OwnerRow(msgspec.Struct, omit_defaults=True):
    """An owner of memory, as the store keeps it."""

    pid: int  # 0: no process has this memory
    system: str  # that the pid belongs to
    principal: str
    keep: bool = False
    ended: float = 0.0  # Unix time; of an owner of which only the log is left
    spaces: dict[str, Space] = {}
    last_space: int = 0
    first_turn: int = 1  # of the interaction log
    last_turn: int = 0
    log_bytes: int = 0
    labels: list[str] = []  # taint labels of the processes that had this memory

    @property
    def bytes(self) -> int:
        return sum(space.bytes for space in self.spaces.values())

    def space(self, name: str) -> Space:
        """Return a space, or a new one for its name. Raises LimitReached for one too many."""
        found = self.spaces.get(name)
        if found is None and len(self.spaces) >= MAX_SPACES:
            raise LimitReached(f"there are {MAX_SPACES} spaces: no more", "clear one first")
        return found or Space(self.last_space + 1)


decode_row = msgspec.msgpack.Decoder(OwnerRow).decode
encode_row = msgspec.msgpack.Encoder().encode


def item_key(owner: bytes, space: Space, key: str) -> bytes:
    return b"k%b%b%b" % (owner, space.number.to_bytes(4, "big"), key.encode())


def space_mark(owner: bytes, space: Space) -> bytes:
    """Return the key that marks a space as cleared."""
    return b"g%b%b" % (owner, space.number.to_bytes(4, "big"))


def remove_some(txn: Txn) -> bool:
    """Remove up to MAX_REMOVED_ROWS marked rows; tell whether there may be more."""
    mark = next(txn.keys("memory", b"g"), None)
    if mark is None:
        return False
    owner, space = mark[1:9], mark[9:]
    table, prefix = ("memory", b"k" + owner + space) if space else ("log", owner)
    keys = list(islice(txn.keys(table, prefix), MAX_REMOVED_ROWS))
    for key in keys:
        txn.delete(table, key)
    if len(keys) < MAX_REMOVED_ROWS:
        txn.delete("memory", mark)
        if not space:
            txn.delete("memory", b"o" + owner)
    return True


def miscounted(txn: Txn) -> list[str]:
    """Compare the items and bytes of each space with its owner's row; return the differences."""
    counted: Counter[tuple[bytes, int]] = Counter()
    for key in txn.keys("memory", b"k"):
        counted[key[1:13], 0] += 1
        counted[key[1:13], 1] += len(key) - 13 + (txn.size("memory", key) or 0)
    for mark in txn.keys("memory", b"g"):
        counted.pop((mark[1:], 0), None)
        counted.pop((mark[1:], 1), None)
    known: Counter[tuple[bytes, int]] = Counter()
    for key, data in txn.scan("memory", b"o"):
        for space in decode_row(data).spaces.values():
            at = key[1:] + space.number.to_bytes(4, "big")
            known[at, 0], known[at, 1] = space.count, space.bytes
    return [f"memory {at.hex()} is miscounted" for at, _ in (+counted - known) + (known - counted)]
