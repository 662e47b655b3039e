"""Which of several bots does what comes round once a day or once a week?

Rules
-----
* A row says when it is due. Whoever claims the row does it; whoever dies while doing it has not done it, and the claim
  runs out.
* What was done, and when it is due next, are committed in one transaction: it is done once, also by two bots.
* A new installation is not late: what was never due before is due ``first`` after the first look.
"""

from __future__ import annotations

from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from storage.holder import is_held, new_holder
from storage.models import Feed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from storage.database import Database, Write

HOLD: Final = timedelta(minutes=10)  # for how long one who vanished keeps others from doing it


class Due:
    """One thing that comes round. ``claim``: the row's key; ``first``: when it is due for the first time."""

    def __init__(self, database: Database, claim: tuple[str, str], first: Callable[[datetime], datetime]) -> None:
        self._database = database
        self._claim = claim
        self._first = first
        self._holder = new_holder()

    def take(self, *, now: datetime) -> bool:
        """Claim it if it is due. Raises DatabaseDown."""
        with self._database.read() as session:
            row = session.get(Feed, self._claim)
            if row is not None and not _is_due(row, now):
                return False
        with self._database.write() as session:
            row = session.get(Feed, self._claim)
            is_new = row is None
            row = row or Feed(follower=self._claim[0], request_id=self._claim[1], seq=-1, retry_at=self._first(now))
            is_taken = not is_new and _is_due(row, now)
            if is_taken:
                row.holder, row.held_until = self._holder, now + HOLD
            session.add(row)
        return is_taken

    @contextmanager
    def finish(self) -> Iterator[tuple[Write, Feed | None]]:
        """Begin the transaction in which it is done: the caller says in the row when it is due next.

        The row is None when it took too long, and somebody else does it by now.
        """
        with self._database.write() as session:
            row = session.get(Feed, self._claim)
            if row is None or row.holder != self._holder:
                yield session, None
                return
            row.holder, row.held_until = None, None
            yield session, row
            session.add(row)


def _is_due(row: Feed, now: datetime) -> bool:
    return not is_held(row, now) and (row.retry_at is None or row.retry_at <= now)
