"""Is this all that the log holds about one request?

Rules
-----
* Inclusion proves that an entry is there, never that none is missing. A closing entry states how many entries a request
  has and one hash over them; it is an entry itself, so a signed head covers it, and what is left out afterwards shows.
* It closes the record as far as it goes, not the request: it changes no state, and entries may follow it. The newest
  closing entry counts.
* The hash is over the leaf hashes, which stay when a body is pruned.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import select

from storage.models import Entry

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlmodel import Session

EVENT: Final = "request:close"
_E: Final[Any] = Entry  # its columns, in queries: SQLModel types them as the values


@dataclass(frozen=True, slots=True)
class Closing:
    """How many entries, which is the first and the last, and SHA-256 (hex) over their leaf hashes in order."""

    count: int
    first: int
    last: int
    sha256: str

    def data(self) -> dict[str, Any]:
        """Return it as the closing entry holds it."""
        return {"count": self.count, "first": self.first, "last": self.last, "sha256": self.sha256}


def over(leaves: Iterable[tuple[int, bytes]]) -> Closing | None:
    """Close the record of these entries (seq and leaf hash, in order); None when there are none."""
    count, first, last, hashed = 0, -1, -1, sha256()
    for seq, leaf in leaves:
        first, last, count = seq if count == 0 else first, seq, count + 1
        hashed.update(leaf)
    return Closing(count, first, last, hashed.hexdigest()) if count else None


def of_request(session: Session, request_id: str) -> Closing | None:
    """Close one request's record as it is now; None when it has no entry, or nothing was added since it was closed."""
    query = select(_E.seq, _E.leaf_hash, _E.event).where(_E.request_id == request_id).order_by(_E.seq)
    rows = session.execute(query).all()
    if not rows or rows[-1].event == EVENT:
        return None
    return over((row.seq, row.leaf_hash) for row in rows)


def holds(data: Mapping[str, Any], leaves: Iterable[tuple[int, bytes]]) -> bool:
    """Whether a closing entry's ``data`` is true of the entries that stand before it."""
    found = over(leaves)
    return found is not None and dict(data) == found.data()
