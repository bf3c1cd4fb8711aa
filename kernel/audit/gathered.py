"""Records that anybody can cause without a right, counted where they would fill the log.

Equal ones within WINDOW_S become one record and a count. Of those that differ a tree of agents has
a share: SHARE at once, then one in EACH_S; what is more is counted without being told apart. So
nobody pushes out what the log has of others. Pure: what appends, and the clock, are passed in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aios.syscalls.wire import Receipt

Fields = tuple[int, str, str, int, str, str, bytes, str, str, int]  # of a Record, from `pid` on
WINDOW_S = 10.0
SHARE, EACH_S = 256, 2.0
MORE = "audit.gathered"


@dataclass
class Same:
    """Records that are counted, as the first says."""

    first: Receipt
    fields: Fields
    count: int = 0  # of those after it


class Gathered:
    def __init__(self, append: Callable[[Fields], Receipt], now: Callable[[], float]) -> None:
        self.append, self.now = append, now
        self.same: dict[tuple[object, ...], Same] = {}
        self.shares: dict[str, tuple[float, float]] = {}  # by tree: what is left, and when

    def add(self, fields: Fields) -> Receipt:
        """Where the record is, or the one that stands for it."""
        pid, principal, kind, _, call, about, _, rule, result, _ = fields
        key: tuple[object, ...] = (pid, kind, call, about, rule, result)
        tree = tree_of(pid, principal)
        if key not in self.same and not self._take_share(tree):
            key = (tree,)
            text = "more than are recorded one by one follow"
            fields = (pid, principal, "note", 0, MORE, text, b"", "", "", 0)
        if key in self.same:
            same = self.same[key]
            same.count += 1
        else:
            same = self.same[key] = Same(self.append(fields), fields)
        return same.first

    def _take_share(self, tree: str) -> bool:
        now = self.now()
        left, when = self.shares.get(tree, (float(SHARE), now))
        left = min(float(SHARE), left + (now - when) / EACH_S)
        self.shares[tree] = (left - 1 if left >= 1 else left, now)
        return left >= 1

    def tell(self) -> None:
        """Record how many there were; what comes now is told again."""
        same, self.same = self.same, {}
        for each in same.values():
            if each.count:
                sequence, _ = each.first
                pid, principal, kind, _, call, about, _, rule, result, _ = each.fields
                text = f"{each.count} more, as record {sequence}: {about}"
                self.append((pid, principal, kind, 0, call, text, b"", rule, result, sequence))
        now = self.now()
        full = SHARE * EACH_S
        self.shares = {tree: each for tree, each in self.shares.items() if now - each[1] < full}


def tree_of(pid: int, principal: str) -> str:
    """Who has one share: an agent with all below it, a person's process, or those who have not said
    hello."""
    return principal.split("/")[1] if principal else f"pid {pid}"
