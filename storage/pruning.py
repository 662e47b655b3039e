"""How does a body leave the log so that all the rest still verifies?

Rules
-----
* A body goes only in the transaction whose newest entry, ``retention:apply``, names its number. The guards of the
  database (``database.py``) let nothing else through, and never bring a body back.
* Leaf hash, root and peaks stay: earlier heads and proofs hold as before.
* The columns of a pruned entry (event, time, request) are no longer vouched for by its body. So the entry that prunes
  it holds one hash over them, in the order of the log: :class:`Claim`.
* Never pruned: what was said about retention, the texts of policies, and the rotations of the log's key. Without them
  nobody could judge what is left.

Which entries may go is ``workflows/retention.py``'s to decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from sqlalchemy import select, text

from storage.models import Entry

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    from sqlmodel import Session

    from storage.database import Write

APPLY: Final = "retention:apply"
KEPT_NOUNS: Final = frozenset({"retention", "policy"})
KEPT_EVENTS: Final = frozenset({"log:rotate"})

Ranges: TypeAlias = "tuple[tuple[int, int], ...]"  # first and last, both included; in order, without overlap

_PAGE: Final = 1000
_E: Final[Any] = Entry  # its columns, in queries: SQLModel types them as the values


def noun(event: str) -> str:
    """Return an entry's class: what stands before the colon of its event."""
    return event.partition(":")[0]


def is_kept(event: str) -> bool:
    """Whether entries of this event are never pruned."""
    return noun(event) in KEPT_NOUNS or event in KEPT_EVENTS


# --- ranges --------------------------------------------------------------------------------------------------------


def ranges_of(numbers: Iterable[int]) -> Ranges:
    """Join rising numbers into ranges."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return tuple(found)


def numbers_of(ranges: Ranges) -> Iterator[int]:
    """Give the numbers of the ranges, rising."""
    for first, last in ranges:
        yield from range(first, last + 1)


def count_of(ranges: Ranges) -> int:
    """Count the numbers of the ranges."""
    return sum(last - first + 1 for first, last in ranges)


def read_ranges(value: object) -> Ranges:
    """Read ranges as an entry holds them. ValueError: not rising pairs that stand apart."""
    if not isinstance(value, list):
        raise ValueError("its ranges are of the wrong kind")  # noqa: TRY004 - all that is wrong is ValueError
    found: list[tuple[int, int]] = []
    for pair in value:
        if not isinstance(pair, list) or len(pair) != 2 or not all(type(number) is int for number in pair):
            raise ValueError("its ranges are of the wrong kind")
        first, last = pair
        if first > last or first < 0 or (found and first <= found[-1][1] + 1):
            raise ValueError("its ranges are not in order")
        found.append((first, last))
    return tuple(found)


# --- what an entry claims to have pruned ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Claim:
    """What one ``retention:apply`` says: which entries, and SHA-256 (hex) over their lines (:func:`line`)."""

    ranges: Ranges
    sha256: str

    def data(self) -> dict[str, Any]:
        """Return it as the entry holds it."""
        return {"count": count_of(self.ranges), "ranges": [list(pair) for pair in self.ranges], "sha256": self.sha256}


def line(seq: int, at: datetime, event: str, request_id: str | None, leaf_hash: bytes) -> bytes:
    """Return what is hashed of a pruned entry: number, time, event, request (or ``-``) and leaf, by single spaces."""
    when = at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return f"{seq} {when} {event} {request_id or '-'} {leaf_hash.hex()}\n".encode()


def claim(session: Session, ranges: Ranges) -> Claim:
    """State what the columns of these entries say now."""
    hashed = sha256()
    columns = (_E.seq, _E.at, _E.event, _E.request_id, _E.leaf_hash)
    for first, last in ranges:
        query = select(*columns).where(_E.seq.between(first, last)).order_by(_E.seq)
        for row in session.execute(query.execution_options(yield_per=_PAGE)):
            hashed.update(line(*row))
    return Claim(ranges, hashed.hexdigest())


def read_claim(seq: int, data: Mapping[str, Any]) -> Claim:
    """Read what entry ``seq`` claims. ValueError, also when it names entries that are not before it."""
    ranges = read_ranges(data.get("ranges"))
    if ranges and ranges[-1][1] >= seq:
        raise ValueError("it names entries that come after it")
    if data.get("count") != count_of(ranges) or not isinstance(data.get("sha256"), str):
        raise ValueError("its count or its hash is of the wrong kind")
    return Claim(ranges, data["sha256"])


def missing_from(numbers: Sequence[int], claims: Iterable[Claim]) -> int | None:
    """Return the first of these rising numbers that none of the claims names."""
    named = sorted(pair for one in claims for pair in one.ranges)
    at = 0
    for number in numbers:
        while at < len(named) and named[at][1] < number:
            at += 1
        if at == len(named) or number < named[at][0]:
            return number
    return None


# --- the effect ----------------------------------------------------------------------------------------------------


def prune(session: Write, apply_seq: int, ranges: Ranges) -> None:
    """Take the bodies of these entries, in the transaction that appended entry ``apply_seq``, the newest.

    Raises :class:`storage.database.Clash` when a guard refuses one of them: then nothing of it is done.
    """
    if not ranges:
        return
    session.flush()
    connection = session.connection()
    if connection.dialect.name == "sqlite":
        # Else the text would stay readable in the file's free pages.
        connection.exec_driver_sql("PRAGMA secure_delete = ON")
    parts = [{"first": first, "last": last, "apply": apply_seq} for first, last in ranges]
    connection.execute(
        text("INSERT INTO pruned (seq, apply_seq) SELECT seq, :apply FROM entry WHERE seq BETWEEN :first AND :last"),
        parts,
    )
    connection.execute(text("UPDATE entry SET body = NULL WHERE seq BETWEEN :first AND :last"), parts)
    # What stands beside the log goes with the last entry that names it.
    connection.execute(text("DELETE FROM payload WHERE last_seq BETWEEN :first AND :last"), parts)
    session.expire_all()
