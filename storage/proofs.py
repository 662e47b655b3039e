"""How is one entry proved out of a million, without reading the million?

Rules
-----
* Each stored entry has the peaks of the log through it. The root of every perfect subtree follows from at most two of
  them, so a proof takes O(log size) rows, which are read by their primary key in one query.
* Nothing leaves here that does not verify: a proof is followed to the stored root first, and where it does not lead
  there the log is :class:`Damaged`.

The proofs are those of ``merkle.Tree``, hash for hash; that one is for many proofs to one head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import select

from storage import merkle
from storage.audit import Damaged, Head
from storage.models import Entry

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlmodel import Session

_E: Final[Any] = Entry  # its columns, in queries: SQLModel types them as the values
_PARTS: Final = 500  # parameters of a query: SQLite's old limit is 999


class _Range(NamedTuple):
    """Leaves low..high-1, as RFC 6962's recursion splits: perfect, or at the right edge of the tree."""

    low: int
    high: int

    @property
    def is_perfect(self) -> bool:
        width = self.high - self.low
        return width & (width - 1) == 0


class _Row(NamedTuple):
    leaf_hash: bytes
    root: bytes
    peaks: bytes


def root_at(session: Session, size: int) -> bytes:
    """Return the stored root of the first ``size`` entries. IndexError beyond the log."""
    if size == 0:
        return merkle.EMPTY_ROOT
    return _rows(session, [size - 1])[size - 1].root


def inclusion(session: Session, index: int, size: int) -> tuple[bytes, ...]:
    """Prove that entry ``index`` stands in the log of the first ``size`` entries: from the leaf upwards.

    IndexError beyond the log, :class:`Damaged` where the stored hashes do not fit each other.
    """
    if not 0 <= index < size:
        raise IndexError(f"no entry {index} in a log of {size}")
    path = []
    low, high = 0, size
    while high - low > 1:
        middle = low + _split(high - low)
        if index < middle:
            path.append(_Range(middle, high))
            high = middle
        else:
            path.append(_Range(low, middle))
            low = middle
    rows = _rows(session, {index, size - 1} | _needed(path))
    proof = tuple(_root(part, rows) for part in reversed(path))
    if not merkle.verify_inclusion(rows[index].leaf_hash, index, size, proof, rows[size - 1].root):
        raise Damaged(index, f"Its proof does not lead to the root of the first {size} entries.")
    return proof


def consistency(session: Session, old: int, new: int) -> tuple[bytes, ...]:
    """Prove that the log of ``old`` entries became that of ``new``. Errors are :func:`inclusion`'s."""
    if not 0 <= old <= new:
        raise IndexError(f"no log of {old} in a log of {new}")
    if old in {0, new}:
        if new:
            _rows(session, [new - 1])  # or it is not there
        return ()
    parts = []
    low, high, is_whole, rest = 0, new, True, old
    while rest != high:
        middle = low + _split(high - low)
        if rest <= middle:
            parts.append(_Range(middle, high))
            high = middle
        else:
            parts.append(_Range(low, middle))
            low, is_whole = middle, False
    if not is_whole:
        parts.append(_Range(low, high))
    rows = _rows(session, {old - 1, new - 1} | _needed(parts))
    proof = tuple(_root(part, rows) for part in reversed(parts))
    if not merkle.verify_consistency(old, rows[old - 1].root, new, rows[new - 1].root, proof):
        raise Damaged(old - 1, f"The log of the first {new} entries does not begin with that of the first {old}.")
    return proof


def head_at(session: Session, size: int) -> Head:
    """Return the head of the first ``size`` entries, as stored. IndexError beyond the log."""
    return Head(size, root_at(session, size))


def _split(width: int) -> int:
    """Largest power of two below ``width`` (RFC 6962's k)."""
    return 1 << ((width - 1).bit_length() - 1)


def _needed(parts: Iterable[_Range]) -> set[int]:
    """Return the entries whose rows give the roots of these ranges."""
    needed = set()
    for part in parts:
        needed.add(part.high - 1)
        if _is_merged(part):
            needed.add(part.high - 2)
    return needed


def _is_merged(part: _Range) -> bool:
    """Whether the row at its end holds it only inside a larger subtree: it is the right half of that."""
    width = part.high - part.low
    return part.is_perfect and width > 1 and bool(part.low // width & 1)


def _root(part: _Range, rows: Mapping[int, _Row]) -> bytes:
    """Return the root of a range out of the rows at its end."""
    width, last = part.high - part.low, rows[part.high - 1]
    if width == 1:
        return last.leaf_hash
    if not _is_merged(part):
        # The last peaks of the log through it are its own: one when it is perfect, else one for each 1 in its width.
        return merkle.root(last.peaks[-merkle.WIDTH * width.bit_count() :])
    # One entry earlier its peaks stand apart, one for each 1 in width - 1; the last leaf makes it whole.
    before = rows[part.high - 2].peaks[-merkle.WIDTH * (width - 1).bit_count() :]
    return merkle.root(before + last.leaf_hash)


def _rows(session: Session, wanted: Iterable[int]) -> dict[int, _Row]:
    numbers = sorted(set(wanted))
    found: dict[int, _Row] = {}
    for at in range(0, len(numbers), _PARTS):
        query = select(_E.seq, _E.leaf_hash, _E.root, _E.peaks).where(_E.seq.in_(numbers[at : at + _PARTS]))
        for seq, leaf_hash, root, peaks in session.execute(query):
            if not all(isinstance(value, bytes) for value in (leaf_hash, root, peaks)):
                raise Damaged(seq, "Its row cannot be read: it holds values of another kind.")
            found[seq] = _Row(leaf_hash, root, peaks)
    if len(found) != len(numbers):
        missing = next(number for number in numbers if number not in found)
        newest = session.execute(select(_E.seq).order_by(_E.seq.desc()).limit(1)).scalar()
        if newest is None or newest < missing:
            raise IndexError(f"the log has no entry {missing}")
        raise Damaged(missing, "It is missing.")
    return found
