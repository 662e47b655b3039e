"""Does the tree do what RFC 6962 says? Compared with the RFC's own recursion, written out below."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import merkle

BODIES = st.lists(st.binary(max_size=40), max_size=70)


def naive_root(bodies: list[bytes]) -> bytes:
    """MTH of RFC 6962, 2.1, to the letter."""
    if not bodies:
        return sha256(b"").digest()
    if len(bodies) == 1:
        return sha256(b"\x00" + bodies[0]).digest()
    k = naive_k(len(bodies))
    return sha256(b"\x01" + naive_root(bodies[:k]) + naive_root(bodies[k:])).digest()


def naive_k(n: int) -> int:
    """The largest power of two smaller than n."""
    k = 1
    while k * 2 < n:
        k *= 2
    return k


def naive_path(m: int, bodies: list[bytes]) -> list[bytes]:
    """PATH of RFC 6962, 2.1.1."""
    if len(bodies) == 1:
        return []
    k = naive_k(len(bodies))
    if m < k:
        return [*naive_path(m, bodies[:k]), naive_root(bodies[k:])]
    return [*naive_path(m - k, bodies[k:]), naive_root(bodies[:k])]


def naive_subproof(m: int, bodies: list[bytes], is_whole: bool) -> list[bytes]:  # noqa: FBT001 - the RFC's b
    """SUBPROOF of RFC 6962, 2.1.2."""
    if m == len(bodies):
        return [] if is_whole else [naive_root(bodies)]
    k = naive_k(len(bodies))
    if m <= k:
        return [*naive_subproof(m, bodies[:k], is_whole), naive_root(bodies[k:])]
    return [*naive_subproof(m - k, bodies[k:], False), naive_root(bodies[:k])]


def leaves_of(bodies: list[bytes]) -> list[bytes]:
    """Leaf hashes of the bodies."""
    return [merkle.leaf_hash(body) for body in bodies]


@given(BODIES)
def test_peaks_and_tree_give_the_rfcs_root(bodies: list[bytes]) -> None:
    """Appending one by one keeps, at every size, the root that the RFC's recursion gives."""
    peaks = b""
    for size, leaf in enumerate(leaves_of(bodies)):
        assert merkle.root(peaks) == naive_root(bodies[:size])
        peaks = merkle.push(peaks, size, leaf)
    assert merkle.root(peaks) == naive_root(bodies) == merkle.Tree(leaves_of(bodies)).root


@given(st.integers(1, 300))
def test_every_inclusion_proof_is_the_rfcs_and_verifies(size: int) -> None:
    """The audit path of each leaf is the RFC's, verifies at its index, and at no other."""
    bodies = [b"%d" % number for number in range(size)]
    leaves = leaves_of(bodies)
    tree = merkle.Tree(leaves)
    index = size * 7 // 11
    proof = tree.inclusion(index)
    assert list(proof) == naive_path(index, bodies)
    assert merkle.inclusion_proof(leaves, index) == proof
    assert merkle.verify_inclusion(leaves[index], index, size, proof, tree.root)
    for other in {index - 1, index + 1, size, -1} - {index}:
        assert not merkle.verify_inclusion(leaves[index], other, size, proof, tree.root)


def test_all_leaves_of_small_trees_prove() -> None:
    """Exhaustively to 40 leaves: every proof is the RFC's and verifies."""
    for size in range(1, 41):
        bodies = [b"%d" % number for number in range(size)]
        tree = merkle.Tree(leaves_of(bodies))
        for index in range(size):
            proof = tree.inclusion(index)
            assert list(proof) == naive_path(index, bodies)
            assert merkle.verify_inclusion(merkle.leaf_hash(bodies[index]), index, size, proof, naive_root(bodies))


@given(st.integers(1, 60), st.data())
def test_a_damaged_inclusion_proof_is_refused(size: int, data: st.DataObject) -> None:
    """A proof with a bit flipped, a step missing or a step too many verifies nothing."""
    leaves = leaves_of([b"%d" % number for number in range(size)])
    tree = merkle.Tree(leaves)
    index = data.draw(st.integers(0, size - 1))
    proof = list(tree.inclusion(index))
    assert not merkle.verify_inclusion(leaves[index], index, size, [*proof, b"\0" * 32], tree.root)
    assert not merkle.verify_inclusion(leaves[index], index, size, [*proof, b""], tree.root)
    assert not merkle.verify_inclusion(b"\0" * 32, index, size, proof, tree.root)
    if proof:
        at = data.draw(st.integers(0, len(proof) - 1))
        assert not merkle.verify_inclusion(leaves[index], index, size, proof[:at] + proof[at + 1 :], tree.root)
        proof[at] = bytes([proof[at][0] ^ 1]) + proof[at][1:]
        assert not merkle.verify_inclusion(leaves[index], index, size, proof, tree.root)


def test_every_consistency_proof_is_the_rfcs_and_verifies() -> None:
    """Exhaustively to 33 leaves: each earlier tree is proved a prefix, by the RFC's proof, and a forked one is not."""
    for size in range(34):
        bodies = [b"%d" % number for number in range(size)]
        tree = merkle.Tree(leaves_of(bodies))
        for old in range(size + 1):
            proof = tree.consistency(old)
            if 0 < old < size:
                assert list(proof) == naive_subproof(old, bodies, True)
            old_root = naive_root(bodies[:old])
            assert merkle.verify_consistency(old, old_root, size, tree.root, proof)
            assert merkle.consistency_proof(leaves_of(bodies), old) == proof
            assert not merkle.verify_consistency(old, b"\1" * 32, size, tree.root, proof)
            assert not merkle.verify_consistency(old, old_root, size, tree.root, [*proof, b"\0" * 32])
            if proof:
                assert not merkle.verify_consistency(old, old_root, size, b"\1" * 32, proof)
                assert not merkle.verify_consistency(old, old_root, size, tree.root, proof[:-1])


@given(
    st.binary(max_size=33),
    st.integers(-2, 2**70),
    st.integers(-2, 2**70),
    st.lists(st.binary(max_size=33), max_size=5),
    st.binary(max_size=33),
)
def test_a_verifier_never_crashes(leaf: bytes, index: int, size: int, proof: list[bytes], root: bytes) -> None:
    """Whatever a hostile file holds, the verifiers answer no instead of raising."""
    assert not merkle.verify_inclusion(leaf, index, size, proof, root) or (size == 1 and leaf == root)
    assert merkle.verify_consistency(index, leaf, size, root, proof) in {True, False}


def test_what_cannot_be_asked_is_an_error() -> None:
    """Peaks of another size, hashes of another width and leaves beyond the tree raise, and give no wrong hash."""
    tree = merkle.Tree([b"\0" * 32])
    for wrong in (
        lambda: merkle.push(b"", 1, b"\0" * 32),
        lambda: merkle.push(b"", 0, b"\0"),
        lambda: merkle.push(b"", -1, b"\0" * 32),
        lambda: merkle.root(b"\0"),
        lambda: merkle.Tree([b"\0"]),
    ):
        with pytest.raises(ValueError):
            wrong()
    for index in (-1, 1):
        with pytest.raises(IndexError):
            tree.inclusion(index)
    for size in (-1, 2):
        with pytest.raises(IndexError):
            tree.consistency(size)


def test_the_empty_tree_is_the_hash_of_nothing() -> None:
    """RFC 6962: the hash of an empty list is the hash of an empty string."""
    assert merkle.root(b"") == merkle.Tree([]).root == sha256(b"").digest()
