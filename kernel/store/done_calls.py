"""Calls that are done exactly once: their first results, in the store's table "done", should they
come again.

Nobody's quota counts them, so they are limited as the replies that are kept (entry/replies.py): by
number and bytes, for one caller and for all. Beyond that the oldest goes; over all callers, one of
who has most. All but `callers` runs in the writer's thread.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from aios.syscalls.errors import OutOfOrder

from .transaction import Txn

MAX_RESULTS, MAX_BYTES = 1024, 2 << 20  # of one caller
MAX_ALL_BYTES = 16 << 20
ROW_BYTES = 64  # of a key, about
TABLE = "done"
KEY = struct.Struct(">QQ")  # the caller's pid, and the call's number

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[str, Any]).decode


class CallId(NamedTuple):
    """A call that may come again: its caller's pid, its number, its name in the table."""

    pid: int
    number: int
    name: str

    @property
    def key(self) -> bytes:
        return KEY.pack(self.pid, self.number)


def is_done(txn: Txn, call: CallId) -> bool:
    return txn.get(TABLE, call.key) is not None


class DoneCalls:
    """The results that are kept, and their counts. Call `settle` after each commit, or `undo` after
    one that failed."""

    def __init__(self) -> None:
        self.callers: set[int] = set()  # whose results are kept, by pid
        self.counts: Counter[int] = Counter()  # results, by pid
        self.bytes: Counter[int] = Counter()
        self.counted: list[tuple[int, int, int]] = []  # pid, results, bytes: not committed yet

    def load(self, txn: Txn) -> None:
        """Count what another kernel has left."""
        for key in txn.keys(TABLE, b""):
            self._count(txn, key, 1)
        self.callers = set(self.counts)
        self.settle()

    def once(self, txn: Txn, call: CallId, do: Callable[[Txn], Any]) -> Any:
        """Return what the call has had, or run `do` and keep its result.

        Raises:
            OutOfOrder: the caller has had another call of that number.
        """
        known = txn.get(TABLE, call.key)
        if known is not None:
            name, result = _decode(known)
            if name != call.name:
                raise OutOfOrder(f"call {call.number} was {name}", "choose another id")
            return result
        result = do(txn)
        txn.put(TABLE, call.key, _encode((call.name, result)))
        self._count(txn, call.key, 1)
        self._limit(txn, call)
        return result

    def forget(self, txn: Txn, pid: int) -> None:
        """Drop all of a caller that has ended."""
        while self.counts[pid]:
            self._drop(txn, self._oldest(txn, pid))

    def settle(self) -> None:
        self.counted.clear()

    def undo(self) -> None:
        for pid, results, size in self.counted:
            self._add(pid, -results, -size)
        self.counted.clear()

    def _limit(self, txn: Txn, call: CallId) -> None:
        pid, most = call.pid, KEY.pack(call.pid, max(0, call.number - MAX_RESULTS))
        while (oldest := self._oldest(txn, pid)) <= most or self._has_too_much(pid):
            self._drop(txn, oldest)
        while self.bytes.total() > MAX_ALL_BYTES:
            self._drop(txn, self._oldest(txn, max(self.bytes, key=self.bytes.__getitem__)))

    def _has_too_much(self, pid: int) -> bool:
        count, size = self.counts[pid], self.bytes[pid]
        return count > MAX_RESULTS or (size > MAX_BYTES and count > 1)

    def _oldest(self, txn: Txn, pid: int) -> bytes:
        return next(txn.keys(TABLE, KEY.pack(pid, 0)[:8]))

    def _drop(self, txn: Txn, key: bytes) -> None:
        self._count(txn, key, -1)
        txn.delete(TABLE, key)

    def _count(self, txn: Txn, key: bytes, results: int) -> None:
        pid, _ = KEY.unpack(key)
        size = results * (ROW_BYTES + (txn.size(TABLE, key) or 0))
        self._add(pid, results, size)
        self.counted.append((pid, results, size))

    def _add(self, pid: int, results: int, size: int) -> None:
        self.counts[pid] += results
        self.bytes[pid] += size
        if not self.counts[pid]:
            del self.counts[pid], self.bytes[pid]
