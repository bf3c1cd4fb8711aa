"""The numbers that ranking needs of each passage, in memory: its vector and its length, by id."""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray


class PassageArrays:
    """Vectors of `dim` numbers and lengths, by the id of the passage. Freed ids are used again, the
    lowest first, so the arrays stay as small as they can."""

    def __init__(self, dim: int) -> None:
        self._vectors = np.zeros((1024, dim), np.float32)
        self._lengths = np.zeros(1024, np.float32)
        self.end = 0  # behind the highest id
        self.free: list[int] = []  # a heap

    @property
    def vectors(self) -> NDArray[np.float32]:
        """A view, shape (end, dim)."""
        return self._vectors[: self.end]

    @property
    def lengths(self) -> NDArray[np.float32]:
        """A view, shape (end,): words of each passage."""
        return self._lengths[: self.end]

    def unused(self, count: int) -> list[int]:
        """Return ids that could be used next; they are not taken yet."""
        again = heapq.nsmallest(count, self.free)
        return [*again, *range(self.end, self.end + count - len(again))]

    def put(self, ids: list[int], vectors: NDArray[np.float32], lengths: list[int]) -> None:
        """Take `ids`; `vectors` has the shape (len(ids), dim)."""
        if not ids:
            return
        if max(ids) >= len(self._lengths):
            size = max(max(ids) + 1, 2 * len(self._lengths))
            self._vectors = _grown(self._vectors, size)
            self._lengths = _grown(self._lengths, size)
        self._vectors[ids], self._lengths[ids] = vectors, lengths
        taken = set(ids)
        self.free = [id for id in self.free if id not in taken]
        self.free += [id for id in range(self.end, max(ids)) if id not in taken]
        heapq.heapify(self.free)
        self.end = max(self.end, max(ids) + 1)

    def remove(self, ids: list[int]) -> None:
        for id in ids:
            heapq.heappush(self.free, id)


def _grown(array: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    grown = np.zeros((size, *array.shape[1:]), np.float32)
    grown[: len(array)] = array
    return grown
