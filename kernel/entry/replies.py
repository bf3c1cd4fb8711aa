"""Keep replies until their callers have acknowledged them.

They are replies to calls that are done exactly once: when such a call is sent again, it gets the
kept reply. The replies of callers that never acknowledge are limited by number and bytes, for one
caller and for all. Beyond that the oldest goes; over all callers, one of the tree of agents that
has most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from aios.syscalls.wire import Receipt

from ..journal import PutRow

MAX_REPLIES, MAX_BYTES = 1024, 2 << 20  # of one caller; those that acknowledge have far less
MAX_ALL_BYTES = 16 << 20

_encode = msgspec.msgpack.Encoder().encode


class KeptReply(msgspec.Struct, array_like=True):
    """The replies to one call."""

    kind: int
    body: msgspec.Raw
    pieces: list[msgspec.Raw]
    receipt: Receipt | None = None


_kept = msgspec.msgpack.Decoder(KeptReply).decode


@dataclass
class Unacknowledged:
    """The unacknowledged replies of one caller, the oldest first."""

    rows: dict[int, bytes] = field(default_factory=dict)  # each a KeptReply
    held_bytes: int = 0


class Replies:
    """The kept replies of all callers. `put_row` journals a reply, or its removal; `tree_of` tells
    the tree of agents that a pid is of."""

    def __init__(self, put_row: PutRow, tree_of: Callable[[int], str] = str) -> None:
        self.put_row, self.tree_of = put_row, tree_of
        self.callers: dict[int, Unacknowledged] = {}
        self.bytes = 0

    def keep(
        self, pid: int, call_id: int, kind: int, body: Any, pieces: list[Any],
        receipt: Receipt | None,
    ) -> None:  # fmt: skip
        data = _encode((kind, body, pieces, receipt))
        self.put_row(f"reply/{pid}/{call_id}", data)
        self.take(pid, call_id, data)
        unacknowledged = self.callers[pid]
        while len(unacknowledged.rows) > MAX_REPLIES or unacknowledged.held_bytes > MAX_BYTES:
            self._forget_oldest(pid)
        while self.bytes > MAX_ALL_BYTES:
            self._forget_oldest(self._greediest())

    def _greediest(self) -> int:
        """Return the caller that has most, of the tree that has most."""
        trees: Counter[str] = Counter()
        for pid, each in self.callers.items():
            trees[self.tree_of(pid)] += each.held_bytes
        return max(
            self.callers, key=lambda pid: (trees[self.tree_of(pid)], self.callers[pid].held_bytes)
        )

    def take(self, pid: int, call_id: int, data: bytes) -> None:
        """Add a reply as the journal has it."""
        unacknowledged = self.callers.setdefault(pid, Unacknowledged())
        unacknowledged.rows[call_id] = data
        unacknowledged.held_bytes += len(data)
        self.bytes += len(data)

    def get(self, pid: int, call_id: int) -> KeptReply | None:
        unacknowledged = self.callers.get(pid)
        found = unacknowledged.rows.get(call_id) if unacknowledged is not None else None
        return None if found is None else _kept(found)

    def heard(self, pid: int, upto: int) -> None:
        """Forget the replies to all calls up to an id, which the caller has acknowledged."""
        while (unacknowledged := self.callers.get(pid)) and next(iter(unacknowledged.rows)) <= upto:
            self._forget_oldest(pid)

    def ended(self, pid: int) -> None:
        """Forget the replies of a caller that has ended."""
        while pid in self.callers:
            self._forget_oldest(pid)

    def _forget_oldest(self, pid: int) -> None:
        unacknowledged = self.callers[pid]
        call_id = next(iter(unacknowledged.rows))
        size = len(unacknowledged.rows.pop(call_id))
        unacknowledged.held_bytes -= size
        self.bytes -= size
        if not unacknowledged.rows:
            del self.callers[pid]
        self.put_row(f"reply/{pid}/{call_id}", None)
