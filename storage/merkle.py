"""How is a log proved: to hold an entry, and to have only grown?

Rules
-----
* The tree is RFC 6962's, section 2.1: SHA-256, ``0x00`` before a leaf, ``0x01`` before a node, split at the largest
  power of two below the size. Nothing is invented here, so that any other implementation can check it.
* Pure: bytes in, bytes out. Every hash is 32 bytes.
* A verifier says yes or no, whatever it is given. A prover raises on what cannot be asked.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

WIDTH: Final = 32
EMPTY_ROOT: Final = sha256(b"").digest()


def leaf_hash(body: bytes) -> bytes:
    """Hash of one entry's exact stored bytes. The prefix keeps a node from posing as an entry (RFC 6962, 2.1)."""
    return sha256(b"\x00" + body).digest()


def node_hash(left: bytes | bytearray, right: bytes | bytearray) -> bytes:
    """Hash over two subtrees' hashes."""
    return sha256(b"\x01" + left + right).digest()


# --- the growing edge: what must be kept to append -----------------------------------------------------------------


def push(peaks: bytes, size: int, leaf: bytes) -> bytes:
    """Append a leaf hash to a tree of ``size`` leaves and return the new peaks.

    Peaks are the roots of the perfect subtrees from left to right, 32 bytes each, one for every 1 in the binary form
    of the size; their heights follow from it. Raises ValueError when the peaks are not those of a tree of that size.
    """
    if size < 0 or len(peaks) != WIDTH * size.bit_count() or len(leaf) != WIDTH:
        raise ValueError(f"{len(peaks)} bytes of peaks do not belong to a tree of {size} leaves")
    grown = leaf
    while size & 1:
        peaks, left = peaks[:-WIDTH], peaks[-WIDTH:]
        grown = node_hash(left, grown)
        size >>= 1
    return peaks + grown


def root(peaks: bytes) -> bytes:
    """Root of the tree with these peaks; of the empty tree SHA-256 of nothing."""
    if len(peaks) % WIDTH:
        raise ValueError(f"{len(peaks)} bytes of peaks are no whole number of hashes")
    if not peaks:
        return EMPTY_ROOT
    folded = peaks[-WIDTH:]
    for start in range(len(peaks) - 2 * WIDTH, -1, -WIDTH):
        folded = node_hash(peaks[start : start + WIDTH], folded)
    return folded


# --- proving -------------------------------------------------------------------------------------------------------


class Tree:
    """A whole tree in memory, for many proofs to one head: 64 bytes a leaf, each proof O(log size).

    ``leaves`` are leaf hashes in order. The tree does not change afterwards.
    """

    __slots__ = ("_levels", "_ragged", "size")

    def __init__(self, leaves: Iterable[bytes]) -> None:
        row = bytearray().join(leaves)
        if len(row) % WIDTH:
            raise ValueError("a leaf hash has 32 bytes")
        self.size: Final = len(row) // WIDTH
        # _levels[h] holds the roots of the perfect subtrees of 2**h leaves. What is left over at the right edge is
        # folded on demand and kept in _ragged: there are at most log(size) such ranges.
        self._levels: Final = [row]
        self._ragged: Final[dict[int, bytes]] = {}
        while len(row) >= 2 * WIDTH:
            pairs = len(row) // (2 * WIDTH) * 2 * WIDTH
            row = bytearray().join(
                node_hash(row[at : at + WIDTH], row[at + WIDTH : at + 2 * WIDTH]) for at in range(0, pairs, 2 * WIDTH)
            )
            self._levels.append(row)

    @property
    def root(self) -> bytes:
        """Root of the tree."""
        return self._range(0, self.size) if self.size else EMPTY_ROOT

    def inclusion(self, index: int) -> tuple[bytes, ...]:
        """Give the audit path of a leaf, from the leaf upwards (RFC 6962, 2.1.1). IndexError beyond the tree."""
        if not 0 <= index < self.size:
            raise IndexError(f"no leaf {index} in a tree of {self.size}")
        path = []
        low, high = 0, self.size
        while high - low > 1:
            middle = low + _split(high - low)
            if index < middle:
                path.append(self._range(middle, high))
                high = middle
            else:
                path.append(self._range(low, middle))
                low = middle
        return tuple(reversed(path))

    def consistency(self, size: int) -> tuple[bytes, ...]:
        """Prove that the tree of the first ``size`` leaves is a prefix of this one (RFC 6962, 2.1.2).

        Empty for size 0 and for the whole tree. IndexError beyond the tree.
        """
        if not 0 <= size <= self.size:
            raise IndexError(f"no tree of {size} in a tree of {self.size}")
        if size in {0, self.size}:
            return ()
        proof = []
        low, high, is_whole = 0, self.size, True
        while size != high:
            middle = low + _split(high - low)
            if size <= middle:
                proof.append(self._range(middle, high))
                high = middle
            else:
                proof.append(self._range(low, middle))
                low, is_whole = middle, False
        if not is_whole:  # the old root itself is what the verifier holds
            proof.append(self._range(low, high))
        return tuple(reversed(proof))

    def _range(self, low: int, high: int) -> bytes:
        """Root of leaves low..high-1, a range that the RFC's recursion meets (so perfect, or at the right edge)."""
        width = high - low
        if width & (width - 1) == 0:
            height = width.bit_length() - 1
            at = (low >> height) * WIDTH
            return bytes(self._levels[height][at : at + WIDTH])
        if low not in self._ragged:
            middle = low + _split(width)
            self._ragged[low] = node_hash(self._range(low, middle), self._range(middle, high))
        return self._ragged[low]


def _split(width: int) -> int:
    """Largest power of two below ``width`` (RFC 6962's k)."""
    return 1 << ((width - 1).bit_length() - 1)


def inclusion_proof(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """One proof. For many to the same head build one :class:`Tree`."""
    return Tree(leaves).inclusion(index)


def consistency_proof(leaves: Sequence[bytes], size: int) -> tuple[bytes, ...]:
    """Prove that the log of the first ``size`` leaves became the log of all of them."""
    return Tree(leaves).consistency(size)


# --- verifying -----------------------------------------------------------------------------------------------------


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Tell whether the leaf stands at ``index`` in the tree of ``size`` leaves with that root (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size or len(leaf) != WIDTH or any(len(step) != WIDTH for step in proof):
        return False
    position, last = index, size - 1
    folded = leaf
    for step in proof:
        if last == 0:
            return False  # longer than the tree is high
        if position & 1 or position == last:
            folded = node_hash(step, folded)
            while position and not position & 1:
                position, last = position >> 1, last >> 1
        else:
            folded = node_hash(folded, step)
        position, last = position >> 1, last >> 1
    return last == 0 and folded == root


def verify_consistency(old_size: int, old_root: bytes, size: int, root: bytes, proof: Sequence[bytes]) -> bool:
    """Tell whether a tree of ``size`` begins with the tree of ``old_size`` (RFC 9162, 2.1.4.2)."""
    if not 0 <= old_size <= size or any(len(step) != WIDTH for step in proof):
        return False
    if old_size in {0, size}:
        return not proof and old_root == (root if old_size else EMPTY_ROOT)
    steps = list(proof)
    if old_size & (old_size - 1) == 0:
        steps.insert(0, old_root)  # a perfect old tree is a node of the new one; its root is not sent
    if not steps:
        return False
    position, last = old_size - 1, size - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    old_folded = folded = steps[0]
    for step in steps[1:]:
        if last == 0:
            return False
        if position & 1 or position == last:
            old_folded, folded = node_hash(step, old_folded), node_hash(step, folded)
            while position and not position & 1:
                position, last = position >> 1, last >> 1
        else:
            folded = node_hash(folded, step)
        position, last = position >> 1, last >> 1
    return last == 0 and old_folded == old_root and folded == root
