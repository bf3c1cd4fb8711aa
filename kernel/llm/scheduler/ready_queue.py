"""The queue of ready tasks, below the shares that they count for."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from itertools import islice
from typing import NamedTuple

from .policy import Path, Policy, parts
from .task import Task


class Place(NamedTuple):
    """An item in a heap. Among equal keys the first that was put is first."""

    key: float
    number: int
    item: str | int


class Heap:
    """Items by keys that can change, the smallest first. Each operation costs the logarithm of the
    number of items at most."""

    def __init__(self) -> None:
        self.entries: dict[str | int, Place] = {}
        self._number = 0
        self._heap: list[Place] = []  # with outdated ones, which `entries` has not

    def put(self, item: str | int, key: float) -> None:
        known = self.entries.get(item)
        if known is None or known.key != key:
            self._number += 1
            self.put_back(Place(key, self._number, item))

    def put_back(self, entry: Place) -> None:
        self.entries[entry.item] = entry
        heappush(self._heap, entry)
        if len(self._heap) > 2 * len(self.entries) + 64:
            self._heap = list(self.entries.values())
            heapify(self._heap)

    def drop(self, item: str | int) -> None:
        self.entries.pop(item, None)

    def first(self) -> Place:
        while self.entries.get(self._heap[0].item) is not self._heap[0]:
            heappop(self._heap)
        return self._heap[0]

    def take(self) -> Place:
        entry = self.first()
        heappop(self._heap)
        del self.entries[entry.item]
        return entry


class ReadyQueue:
    """Ready tasks in the order of a policy. Each operation costs the logarithm of their number."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.shares: dict[Path, Heap] = {(): Heap()}  # of names of shares, or of tasks
        self.paths: dict[int, Path] = {}  # of all tasks

    def __len__(self) -> int:
        return len(self.paths)

    def put(self, task: Task) -> None:
        path = self.paths[task.id] = self.policy.path(task)
        for part in parts(path):
            self.shares.setdefault(part, Heap())
        self.shares[path].put(task.id, self.policy.key(task))
        self.refresh(path)

    def drop(self, task_id: int) -> None:
        path = self.paths.pop(task_id, None)
        if path is None:
            return
        self.shares[path].drop(task_id)
        while path and not self.shares[path].entries:
            del self.shares[path]
            self.shares[path[:-1]].drop(path[-1])
            path = path[:-1]

    def refresh(self, path: Path) -> None:
        """Move the shares of a path to their places, those of them that have tasks here."""
        for part in parts(path):
            if part in self.shares:
                self.shares[part[:-1]].put(part[-1], self.policy.share(part))

    def next(self) -> int:
        """Return the task that is next. There is one."""
        path: Path = ()
        while isinstance(item := self.shares[path].first().item, str):
            path = (*path, item)
        return item

    def first(self, count: int) -> list[int]:
        """Return the tasks that are next, in order, as if each had its turn at once."""
        if count == 1:  # at most steps: nothing has to be taken out for it
            return [self.next()] if self.paths else []
        taken: list[tuple[Heap, Place]] = []
        found = list(islice(self._in_order((), taken), count))
        for heap, entry in taken:
            heap.put_back(entry)
        return found

    def _in_order(self, path: Path, taken: list[tuple[Heap, Place]]) -> Iterator[int]:
        """Iterate over the tasks of a share. Entries taken out of heaps are to be put back."""
        heap = self.shares[path]
        again: list[tuple[Place, Iterator[int]]] = []  # shares that have had turns here
        while heap.entries or again:
            if heap.entries and (not again or heap.first() < again[0][0]):
                entry = heap.take()
                taken.append((heap, entry))
                if isinstance(entry.item, int):
                    yield entry.item
                    continue
                below = self._in_order((*path, entry.item), taken)
            else:
                entry, below = heappop(again)
            for task_id in islice(below, 1):
                yield task_id
                heappush(again, (entry._replace(key=entry.key + self.policy.turn), below))
