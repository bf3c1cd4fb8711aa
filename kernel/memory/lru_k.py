"""An LRU-K cache with K = 2 (the paper's K-LRU swap): the items of an agent's memory in RAM.

The cache evicts the item whose last access but one is the longest ago. Items that were accessed
once go before all others, so a scan of everything does not drive out the items in use. Pure: time
is a count of accesses.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, TypeVar

MAX_GHOSTS = 1024  # evicted items whose last access is still known

N = TypeVar("N")


@dataclass
class Item:
    """A cached value, and the times of its last two accesses."""

    data: bytes
    last: int
    before: int  # the access before the last one; 0: there was none


class LruKCache(Generic[N]):
    """A cache of at most `budget` bytes, by name. Each item is in the store as well."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.items: dict[N, Item] = {}
        self.bytes = self.evicted = 0
        self.clock = 0
        self.once: OrderedDict[N, None] = OrderedDict()  # accessed once, the oldest first
        self.twice: list[tuple[int, int, N]] = []  # a heap by `before`; entries may be outdated
        self.ghosts: OrderedDict[N, int] = OrderedDict()

    def get(self, name: N) -> bytes | None:
        """Return an item, if it is cached, and count the access."""
        item = self.items.get(name)
        if item is None:
            return None
        self._access(name, item)
        return item.data

    def put(self, name: N, data: bytes) -> None:
        """Cache an item that was written to the store, or read from it."""
        item = self.items.get(name)
        if item is None:
            item = self.items[name] = Item(b"", self.ghosts.pop(name, 0), 0)
        self.bytes += len(data) - len(item.data)
        item.data = data
        self._access(name, item)
        while self.bytes > self.budget:
            self._evict()

    def drop(self, name: N) -> None:
        """Drop an item that was deleted or has changed."""
        item = self.items.pop(name, None)
        if item is not None:
            self.bytes -= len(item.data)
            self.once.pop(name, None)

    def _access(self, name: N, item: Item) -> None:
        self.clock += 1
        item.before, item.last = item.last, self.clock
        if item.before == 0:
            self.once[name] = None
            return
        self.once.pop(name, None)
        heapq.heappush(self.twice, (item.before, item.last, name))
        if len(self.twice) > 2 * len(self.items) + MAX_GHOSTS:
            self.twice = [entry for entry in self.twice if self._is_current(entry)]
            heapq.heapify(self.twice)

    def _is_current(self, entry: tuple[int, int, N]) -> bool:
        item = self.items.get(entry[2])
        return item is not None and item.last == entry[1]

    def _evict(self) -> None:
        name = next(iter(self.once)) if self.once else self._longest_ago()
        item = self.items[name]
        self.drop(name)
        self.evicted += 1
        self.ghosts[name] = item.last
        if len(self.ghosts) > MAX_GHOSTS:
            self.ghosts.popitem(last=False)

    def _longest_ago(self) -> N:
        while not self._is_current(entry := heapq.heappop(self.twice)):
            pass
        return entry[2]
