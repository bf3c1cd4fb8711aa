"""Limits that a tree of agents shares: a principal, and all principals below it. Pure.

A tree is made of principals and not of processes, since its data outlives the processes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from aios.syscalls.errors import LimitReached


def above(principal: str) -> Iterator[str]:
    """Iterate over the principals strictly above one, the nearest first."""
    while principal := principal.rpartition("/")[0]:
        yield principal


def root(principal: str) -> str:
    """Return the topmost principal of the tree that one is in: an agent that a person started."""
    return "/" + principal.split("/")[1] if principal.startswith("/") else principal


def in_tree(principal: str, others: Iterable[str]) -> int:
    """Count those of `others` that are in the tree of a principal."""
    tree = root(principal)
    return sum(root(each) == tree for each in others)


def check_tree(principal: str, held: int, most: int, what: str, hint: str) -> None:
    """Refuse to add to a tree that holds as much as it may. Raises LimitReached."""
    if held >= most:
        tree = f"{root(principal)} and all below it"
        raise LimitReached(f"{tree} have {held} {what}: {most} is the limit", hint)


def leaves_room(held: int, of_all: int, most: int) -> bool:
    """Tell whether a tree that holds `held` of a room for `most` may take one more, where each has
    at most half of what the others leave: so there is always some for one that holds nothing."""
    return 2 * held < most - (of_all - held)


class Trees:
    """Amounts by principal: `held` by it alone, `below` by all strictly below it."""

    def __init__(self) -> None:
        self.held: Counter[str] = Counter()
        self.below: Counter[str] = Counter()

    def add(self, principal: str, amount: int) -> None:
        _add(self.held, principal, amount)
        for each in above(principal):
            _add(self.below, each, amount)

    def set(self, principal: str, amount: int) -> None:
        self.add(principal, amount - self.held[principal])

    def total(self, principal: str) -> int:
        return self.held[principal] + self.below[principal]


def _add(counter: Counter[str], name: str, amount: int) -> None:
    """Add to a count; drop names at zero, since agents choose names without end."""
    counter[name] += amount
    if not counter[name]:
        del counter[name]
