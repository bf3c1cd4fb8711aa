"""What ranking needs of each passage, in memory: its vector and its length, by id."""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray


class Rows:
    """Ids are used again, the lowest first: so the arrays stay as small as they can."""

    def __init__(self, dim: int) -> None:
        self.vectors_room = np.zeros((1024, dim), np.float32)
        self.lengths_room = np.zeros(1024, np.float32)
        self.end = 0  # behind the highest id
        self.free: list[int] = []  # a heap

    @property
    def vectors(self) -> NDArray[np.float32]:
        """[ids, dim]"""
        return self.vectors_room[: self.end]

    @property
    def lengths(self) -> NDArray[np.float32]:
        """In words, [ids]"""
        return self.lengths_room[: self.end]

    def unused(self, count: int) -> list[int]:
        """Ids that could be used next; they are not taken yet."""
        again = heapq.nsmallest(count, self.free)
        return [*again, *range(self.end, self.end + count - len(again))]

    def put(self, ids: list[int], vectors: NDArray[np.float32], lengths: list[int]) -> None:
        if not ids:
            return
        if max(ids) >= len(self.lengths_room):
            room = max(max(ids) + 1, 2 * len(self.lengths_room))
            self.vectors_room = _grown(self.vectors_room, room)
            self.lengths_room = _grown(self.lengths_room, room)
        self.vectors_room[ids], self.lengths_room[ids] = vectors, lengths
        taken = set(ids)
        self.free = [id for id in self.free if id not in taken]
        self.free += [id for id in range(self.end, max(ids)) if id not in taken]
        heapq.heapify(self.free)
        self.end = max(self.end, max(ids) + 1)

    def remove(self, ids: list[int]) -> None:
        for id in ids:
            heapq.heappush(self.free, id)


def _grown(array: NDArray[np.float32], room: int) -> NDArray[np.float32]:
    grown = np.zeros((room, *array.shape[1:]), np.float32)
    grown[: len(array)] = array
    return grown
