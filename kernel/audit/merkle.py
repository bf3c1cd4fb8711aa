"""The Merkle tree of RFC 6962 and RFC 9162, with SHA-256. Pure.

A range of leaves is half-open. Proofs are made with a function that knows the root of any range
that the tree is split into, so nobody has to hold all leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256

EMPTY = sha256(b"").digest()  # the root of an empty tree

Root = Callable[[int, int], bytes]  # the root of a range of leaves


def leaf_hash(data: bytes) -> bytes:
    return sha256(b"\0" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return sha256(b"\1" + left + right).digest()


class Peaks:
    """The roots of the perfect trees that a tree of `size` leaves consists of, the largest first.

    They are all it takes to append (a compact range).
    """

    def __init__(self, size: int = 0, roots: Sequence[bytes] = ()) -> None:
        if size.bit_count() != len(roots):
            raise ValueError(f"{size} leaves have {size.bit_count()} peaks, not {len(roots)}")
        self.size, self.roots = size, list(roots)

    def push(self, leaf: bytes) -> None:
        """Append a leaf by its hash."""
        size, roots = self.size, self.roots
        while size & 1:
            leaf = sha256(b"\1" + roots.pop() + leaf).digest()
            size >>= 1
        roots.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        if not self.roots:
            return EMPTY
        *rest, root = self.roots
        for left in reversed(rest):
            root = node_hash(left, root)
        return root

    def copy(self) -> Peaks:
        return Peaks(self.size, self.roots)


def blank(size: int) -> Peaks:
    """Return the peaks of lost leaves: all zeros."""
    roots, root = [], bytes(32)
    for level in range(size.bit_length()):
        if size >> level & 1:
            roots.append(root)
        root = node_hash(root, root)
    return Peaks(size, roots[::-1])


def split(count: int) -> int:
    """Return how many of `count` > 1 leaves are in the left one of the two trees below their
    root.
    """
    return 1 << (count - 1).bit_length() - 1


# --- proofs --------------------------------------------------------------------------------------


def inclusion(index: int, size: int, root: Root) -> list[bytes]:
    """Prove that leaf `index` is in the tree of `size` leaves (RFC 9162, 2.1.3.1)."""
    return _path(index, 0, size, root)


def _path(index: int, first: int, end: int, root: Root) -> list[bytes]:
    if end - first == 1:
        return []
    middle = first + split(end - first)
    if index < middle:
        return [*_path(index, first, middle, root), root(middle, end)]
    return [*_path(index, middle, end, root), root(first, middle)]


def consistency(old: int, new: int, root: Root) -> list[bytes]:
    """Prove that the tree of `new` leaves begins with the tree of `old` (2.1.4.1)."""
    return _common(old, 0, new, root, whole=True) if 0 < old < new else []


def _common(old: int, first: int, end: int, root: Root, *, whole: bool) -> list[bytes]:
    if old == end:
        return [] if whole else [root(first, end)]
    middle = first + split(end - first)
    if old <= middle:
        return [*_common(old, first, middle, root, whole=whole), root(middle, end)]
    return [*_common(old, middle, end, root, whole=False), root(first, middle)]


def is_included(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Verify that a proof leads from the hash of leaf `index` to the root (2.1.3.2)."""
    if not 0 <= index < size:
        return False
    at, last, found = index, size - 1, leaf
    for other in proof:
        if not last:
            return False
        if at & 1 or at == last:
            found = node_hash(other, found)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            found = node_hash(found, other)
        at, last = at >> 1, last >> 1
    return not last and found == root


def is_consistent(
    old: int, new: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes
) -> bool:
    """Verify that a proof leads to both roots (2.1.4.2)."""
    if not 0 < old < new:
        return not proof and old_root == (new_root if old == new else EMPTY if old == 0 else None)
    path = [old_root, *proof] if old.bit_count() == 1 else list(proof)
    if not path:
        return False
    at, last = old - 1, new - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    before = after = path[0]
    for other in path[1:]:
        if not last:
            return False
        if at & 1 or at == last:
            before, after = node_hash(other, before), node_hash(other, after)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            after = node_hash(after, other)
        at, last = at >> 1, last >> 1
    return not last and before == old_root and after == new_root
