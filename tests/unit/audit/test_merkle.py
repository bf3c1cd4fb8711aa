"""The tree of the audit log against the definition in RFC 6962, and against itself with lies."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aios.kernel.audit.merkle import (
    EMPTY,
    Peaks,
    blank,
    consistency,
    inclusion,
    is_consistent,
    is_included,
    leaf_hash,
    node_hash,
)

LEAVES = [leaf_hash(b"%d" % number) for number in range(300)]
sizes = st.integers(1, len(LEAVES))


def naive(leaves: list[bytes]) -> bytes:
    """Compute MTH of RFC 6962, 2.1, word by word."""
    if not leaves:
        return EMPTY
    if len(leaves) == 1:
        return leaves[0]
    half = 1
    while half * 2 < len(leaves):
        half *= 2
    return node_hash(naive(leaves[:half]), naive(leaves[half:]))


def root(first: int, end: int) -> bytes:
    return naive(LEAVES[first:end])


def test_the_hashes_are_those_of_rfc_6962() -> None:
    """Compare with the test vectors of certificate-transparency."""
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert EMPTY.hex() == empty
    leaf = "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    assert leaf_hash(b"").hex() == leaf
    two = "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"
    assert node_hash(leaf_hash(b""), leaf_hash(b"\0")).hex() == two


def test_peaks_give_the_root_of_every_size() -> None:
    peaks = Peaks()
    for size in range(len(LEAVES)):
        assert peaks.root() == root(0, size)
        again = Peaks(peaks.size, peaks.roots)
        assert again.root() == peaks.root()
        peaks.push(LEAVES[size])


def test_blank_peaks_are_those_of_zeros() -> None:
    for size in (0, 1, 7, 64, 131):
        assert blank(size).root() == naive([bytes(32)] * size)


@given(st.data())
def test_an_inclusion_is_proved_and_nothing_else_is(data: st.DataObject) -> None:
    size = data.draw(sizes)
    index = data.draw(st.integers(0, size - 1))
    proof = inclusion(index, size, root)
    leaf, whole = LEAVES[index], root(0, size)
    assert len(proof) <= size.bit_length()
    assert is_included(leaf, index, size, proof, whole)
    assert not is_included(leaf_hash(b"another"), index, size, proof, whole)
    assert not is_included(leaf, index, size, proof, root(0, size - 1))
    assert not is_included(leaf, index, size, [*proof, whole], whole)
    other = data.draw(st.integers(0, size - 1))
    assert is_included(leaf, other, size, proof, whole) == (other == index)
    for at in range(len(proof)):
        assert not is_included(leaf, index, size, [*proof[:at], *proof[at + 1 :]], whole)
        lie = [*proof[:at], leaf_hash(proof[at]), *proof[at + 1 :]]
        assert not is_included(leaf, index, size, lie, whole)


@given(st.data())
def test_consistency_is_proved_and_nothing_else_is(data: st.DataObject) -> None:
    new = data.draw(sizes)
    old = data.draw(st.integers(1, new))
    proof = consistency(old, new, root)
    before, after = root(0, old), root(0, new)
    assert is_consistent(old, new, proof, before, after)
    lie = naive([leaf_hash(b"another"), *LEAVES[1:old]])
    assert not is_consistent(old, new, proof, lie, after)
    assert not is_consistent(old, new, proof, before, naive([*LEAVES[: new - 1], lie]))
    assert not is_consistent(old, new, [*proof, after], before, after)
    for at in range(len(proof)):
        assert not is_consistent(old, new, [*proof[:at], *proof[at + 1 :]], before, after)
        changed = [*proof[:at], leaf_hash(proof[at]), *proof[at + 1 :]]
        assert not is_consistent(old, new, changed, before, after)
    if old < new:
        assert not is_consistent(new, old, proof, after, before)


def test_the_empty_tree_is_the_beginning_of_every_other() -> None:
    assert consistency(0, 9, root) == []
    assert is_consistent(0, 9, [], EMPTY, root(0, 9))
    assert not is_consistent(0, 9, [], root(0, 1), root(0, 9))
    assert not is_included(LEAVES[0], 0, 0, [], EMPTY)
