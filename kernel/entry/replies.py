"""Replies that are kept until their callers have heard them: of calls that had an effect, which are
not done again when they are sent again.

What callers that never say what they heard can have kept is bounded, by number and bytes, for one
and for all of them. Then the oldest goes; in all, that of whoever has most.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from aios.syscalls.wire import Receipt

MOST, MOST_BYTES = 1024, 2 << 20  # of one caller; one that says what it heard has far less
ALL_BYTES = 16 << 20

_encode = msgspec.msgpack.Encoder().encode


class Kept(msgspec.Struct, array_like=True):
    """The replies to one call."""

    kind: int
    body: msgspec.Raw
    pieces: list[msgspec.Raw]
    receipt: Receipt | None = None


_kept = msgspec.msgpack.Decoder(Kept).decode


@dataclass
class Unheard:
    """What one caller has not said it heard, the oldest first; with the bytes of each."""

    rows: dict[int, tuple[Kept, int]] = field(default_factory=dict)
    bytes: int = 0


class Replies:
    """`note` journals one, by pid and call id; with None, it has gone."""

    def __init__(self, note: Callable[[int, int, bytes | None], None]) -> None:
        self.note = note
        self.callers: dict[int, Unheard] = {}
        self.bytes = 0

    def keep(
        self, pid: int, call_id: int, kind: int, body: Any, pieces: list[Any],
        receipt: Receipt | None,
    ) -> None:  # fmt: skip
        data = _encode((kind, body, pieces, receipt))
        self.note(pid, call_id, data)
        self.take(pid, call_id, data)
        unheard = self.callers[pid]
        while len(unheard.rows) > MOST or unheard.bytes > MOST_BYTES:
            self._forget_oldest(pid)
        while self.bytes > ALL_BYTES:
            self._forget_oldest(max(self.callers, key=lambda other: self.callers[other].bytes))

    def take(self, pid: int, call_id: int, data: bytes) -> None:
        """As the journal has it."""
        unheard = self.callers.setdefault(pid, Unheard())
        unheard.rows[call_id] = (_kept(data), len(data))
        unheard.bytes += len(data)
        self.bytes += len(data)

    def get(self, pid: int, call_id: int) -> Kept | None:
        unheard = self.callers.get(pid)
        found = unheard.rows.get(call_id) if unheard is not None else None
        return found[0] if found is not None else None

    def heard(self, pid: int, upto: int) -> None:
        """The caller has had the replies to all calls up to that id."""
        while (unheard := self.callers.get(pid)) and next(iter(unheard.rows)) <= upto:
            self._forget_oldest(pid)

    def ended(self, pid: int) -> None:
        """Nobody will ask for what that caller has not heard."""
        while pid in self.callers:
            self._forget_oldest(pid)

    def _forget_oldest(self, pid: int) -> None:
        unheard = self.callers[pid]
        call_id = next(iter(unheard.rows))
        _, size = unheard.rows.pop(call_id)
        unheard.bytes -= size
        self.bytes -= size
        if not unheard.rows:
            del self.callers[pid]
        self.note(pid, call_id, None)
