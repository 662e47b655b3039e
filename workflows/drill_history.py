"""How did the drills of an account go so far, and does it get better?

Rules
-----
* Everything follows from entries: the score, and the times of the custodians' first answers.
* A custodian's time is counted in drills alone; how they answer when it is real is ``storage/reports/approvers.py``.
* Of few drills no trend is said.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median_low
from typing import TYPE_CHECKING, Final

from sqlmodel import col, select

from storage.audit import parse
from storage.models import Decision, Entry, Request
from workflows.drill_score import SCORE, Came, Leg, from_data

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlmodel import Session

    from workflows.drill_score import Line

MOST: Final = 20
TREND: Final = 5
_FEWEST: Final = 2  # of which something can be said to have become quicker


@dataclass(frozen=True, slots=True)
class Past:
    """A drill that was begun. ``passed`` None: it has no score yet. ``answers``: by custodian, how long it took."""

    drill: str
    request_id: str
    account: str
    at: datetime
    custodians: tuple[str, ...]
    passed: bool | None
    lines: tuple[Line, ...]
    answers: tuple[tuple[str, timedelta], ...]

    @property
    def failed(self) -> tuple[Leg, ...]:
        """The legs that failed."""
        return tuple(line.leg for line in self.lines if line.came is Came.FAILED)

    def took(self, leg: Leg) -> timedelta | None:
        """Return how long a leg took; None when it did not happen."""
        return next((line.took for line in self.lines if line.leg is leg), None)


@dataclass(frozen=True, slots=True)
class Answerer:
    """How a custodian answers drills: the middle time (None: never), and how often of how often."""

    person: str
    median: timedelta | None
    answered: int
    asked: int


def past(session: Session, account: str | None = None, most: int = MOST) -> list[Past]:
    """Return the newest drills, of one account or of all, the newest first."""
    query = select(Request).where(col(Request.drill).is_not(None))
    if account is not None:
        query = query.where(Request.account == account)
    return [_past(session, row) for row in session.exec(query.order_by(col(Request.opened_at).desc()).limit(most))]


def newest_scored(session: Session, account: str) -> Past | None:
    """Return the newest drill of an account that has a score; one that is under way says nothing yet."""
    query = select(Request).where(Request.account == account, col(Request.drill).is_not(None))
    for row in session.exec(query.order_by(col(Request.opened_at).desc()).limit(MOST)):
        found = _past(session, row)
        if found.passed is not None:
            return found
    return None


def _past(session: Session, row: Request) -> Past:
    body = session.exec(
        select(Entry.body).where(Entry.request_id == row.id, Entry.event == SCORE).order_by(col(Entry.seq)).limit(1)
    ).first()
    data = parse(body).data if body is not None else {}
    first: dict[str, timedelta] = {}
    for said in session.exec(select(Decision).where(Decision.request_id == row.id).order_by(col(Decision.id))):
        first.setdefault(said.person, max(said.at - row.opened_at, timedelta(0)))
    passed = data.get("passed")
    return Past(
        drill=row.drill or "",
        request_id=row.id,
        account=row.account,
        at=row.opened_at,
        custodians=tuple(row.custodians),
        passed=passed if isinstance(passed, bool) else None,
        lines=tuple(from_data(data)),
        answers=tuple(first.items()),
    )


def answerers(drills: Iterable[Past]) -> list[Answerer]:
    """Return how each custodian of these drills answered, the quickest first; who never did comes last."""
    times: dict[str, list[timedelta]] = defaultdict(list)
    asked: dict[str, int] = defaultdict(int)
    for one in drills:
        for person in one.custodians:
            asked[person] += 1
        for person, took in one.answers:
            times[person].append(took)
    found = [
        Answerer(person, median_low(times[person]) if times.get(person) else None, len(times.get(person, ())), count)
        for person, count in asked.items()
    ]
    return sorted(found, key=lambda one: (one.median is None, one.median or timedelta(0), one.person))


def trend(drills: Sequence[Past], leg: Leg) -> str:
    """Say whether a leg became quicker over the newest drills (the newest first); "" when nothing can be said."""
    known = [took for one in drills[:TREND] if (took := one.took(leg)) is not None]
    if len(known) < _FEWEST:
        return ""
    newest, before = known[0], median_low(known[1:])
    if newest * 10 > before * 11:
        return "slower than before"
    return "quicker than before" if newest * 11 < before * 10 else "as before"
