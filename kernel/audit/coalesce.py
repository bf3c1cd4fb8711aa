"""Coalesce records that anybody can cause without a right, so that they cannot fill the log.

Equal records within WINDOW_S become one record and a count. Different ones are limited by tree of
agents: BURST_RECORDS at once, then one in REFILL_S; the rest are only counted. So nobody can push
out the records of others. Pure: the clock and the log's append are passed in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aios.syscalls.wire import Receipt

Fields = tuple[
    int, str, str, int, str, str, bytes, str, str, int
]  # the fields of a Record from `pid` on
WINDOW_S = 10.0
BURST_RECORDS, REFILL_S = 256, 2.0
OVERFLOW = "audit.gathered"


@dataclass
class CoalescedRecord:
    """A record, and how many equal ones followed."""

    first: Receipt
    fields: Fields
    count: int = 0  # of equal records after it


class Coalescer:
    """The records of the present window, and what is left of each tree's limit."""

    def __init__(self, append: Callable[[Fields], Receipt], now: Callable[[], float]) -> None:
        self.append, self.now = append, now
        self.same: dict[tuple[object, ...], CoalescedRecord] = {}
        self.shares: dict[str, tuple[float, float]] = {}  # by tree: records left, and since when

    def add(self, fields: Fields) -> Receipt:
        """Add a record; return its receipt, or that of the record that stands for it."""
        pid, principal, kind, _, call, about, _, rule, result, _ = fields
        key: tuple[object, ...] = (pid, kind, call, about, rule, result)
        tree = tree_of(pid, principal)
        if key not in self.same and not self._take_share(tree):
            key = (tree,)
            text = "more than are recorded one by one follow"
            fields = (pid, principal, "note", 0, OVERFLOW, text, b"", "", "", 0)
        if key in self.same:
            same = self.same[key]
            same.count += 1
        else:
            same = self.same[key] = CoalescedRecord(self.append(fields), fields)
        return same.first

    def _take_share(self, tree: str) -> bool:
        now = self.now()
        left, when = self.shares.get(tree, (float(BURST_RECORDS), now))
        left = min(float(BURST_RECORDS), left + (now - when) / REFILL_S)
        self.shares[tree] = (left - 1 if left >= 1 else left, now)
        return left >= 1

    def flush(self) -> None:
        """Record the counts and begin another window."""
        same, self.same = self.same, {}
        for each in same.values():
            if each.count:
                sequence, _ = each.first
                pid, principal, kind, _, call, about, _, rule, result, _ = each.fields
                text = f"{each.count} more, as record {sequence}: {about}"
                self.append((pid, principal, kind, 0, call, text, b"", rule, result, sequence))
        now = self.now()
        full = BURST_RECORDS * REFILL_S
        self.shares = {tree: each for tree, each in self.shares.items() if now - each[1] < full}


def tree_of(pid: int, principal: str) -> str:
    """Name the tree that a record counts for.

    It is an agent's whole tree, a person's process, or all connections that have not said hello.
    """
    return principal.split("/")[1] if principal else f"pid {pid}"
