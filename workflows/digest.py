"""What was a week of emergency access like, and where do the rules need work?

Rules
-----
* A week's requests are those that were opened in it. Its reviews are those that were filed in it.
* Drills are counted apart and are part of no other figure: a rehearsal that went well makes no night better.
* A time runs from the opening: to the first answer of a custodian, and to the quorum as the log says it. What has no
  answer has no time, and is counted as lapsed or waiting instead.
* What is not known is None and is said; it is never read as nothing.
* The figures are plain JSON, so that the log holds them and whoever shows them needs nothing else.

Pure but :func:`gather`, which reads rows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta
from statistics import mean, median_low
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import func
from sqlmodel import col, select

from storage.models import Decision, Entry, FollowUp, Grant, Outcome, Request, Review, State
from workflows.lifecycle import Action

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlmodel import Session

    from workflows.digest_rules import Week
    from workflows.policy import Policy

POST: Final = "digest:post"
BEFORE: Final = 4  # weeks that a week is compared with
UNUSED: Final = timedelta(days=180)
_MOST_OPEN: Final = 10
_MOST_THRESHOLDS: Final = 6
_MOST_NAMES: Final = 20


def is_drill(request: Request, review: Review | None = None) -> bool:
    """Whether it was a rehearsal: it was opened as one, or its reviewer says so."""
    return request.drill is not None or (review is not None and review.outcome == Outcome.DRILL)


# --- the rows ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Facts:
    """What the rows say. ``last_used``: when a level's credential was last issued, by (account, level)."""

    requests: Sequence[Request]
    decisions: Sequence[Decision]
    grants: Sequence[Grant]
    reviews: Mapping[str, Review]
    quorum_at: Mapping[str, datetime]
    last_used: Mapping[tuple[str, str], datetime]
    began_at: datetime | None  # when the log's first entry was written
    follow_ups: Sequence[FollowUp] = ()  # open, or closed not long ago


def gather(session: Session, week: Week) -> Facts:
    """Read what the figures of a week need: its requests, those of the weeks before, and what is not reviewed."""
    first, end = week.back(BEFORE), week.end
    opened = select(Request.id).where(col(Request.opened_at) >= first, col(Request.opened_at) < end)
    filed = select(Review.request_id).where(col(Review.filed_at) >= first)
    waiting = select(Request.id).where(col(Request.state) == State.ENDED)

    def wanted(column: Any) -> Any:  # noqa: ANN401 - a column, and a condition on it
        return column.in_(opened) | column.in_(filed) | column.in_(waiting)

    reached = select(Entry.request_id, Entry.at).where(Entry.event == Action.QUORUM, col(Entry.at) >= first)
    used = (
        select(Request.account, Request.level, func.max(Grant.issued_at))
        .join(Grant, col(Grant.request_id) == col(Request.id))
        .where(col(Grant.issued_at).is_not(None), col(Grant.issued_at) < end, col(Request.drill).is_(None))
        .group_by(col(Request.account), col(Request.level))
    )
    return Facts(
        session.exec(select(Request).where(wanted(col(Request.id))).order_by(col(Request.opened_at))).all(),
        session.exec(select(Decision).where(wanted(col(Decision.request_id)))).all(),
        session.exec(select(Grant).where(wanted(col(Grant.request_id)))).all(),
        {row.request_id: row for row in session.exec(select(Review).where(wanted(col(Review.request_id))))},
        {name: at for name, at in session.exec(reached) if name is not None},
        {(account, level): at for account, level, at in session.exec(used) if at is not None},
        session.exec(select(Entry.at).order_by(col(Entry.seq)).limit(1)).first(),
        session.exec(
            select(FollowUp).where(col(FollowUp.closed_at).is_(None) | (col(FollowUp.closed_at) >= first))
        ).all(),
    )


# --- the figures ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Counts:
    """One week. Times are seconds; None: there was none to be measured."""

    week: str = ""
    asked: int = 0
    used: int = 0  # a credential was issued
    denied: int = 0
    lapsed: int = 0
    withdrawn: int = 0
    failed: int = 0
    answer_median: int | None = None
    answer_p90: int | None = None
    approve_median: int | None = None
    approve_p90: int | None = None
    reviewed: int = 0
    unnecessary: int = 0  # of the reviewed: not justified, misuse, threshold not met, or the usual way would have done
    drills: int = 0


@dataclass(frozen=True, slots=True)
class OpenReview:
    """A use that nobody has reviewed. ``age``: seconds since it ended."""

    request: str = ""
    account: str = ""
    owner: str = ""  # whose it is to file, else the account's; empty: the policy has that no more
    age: int = 0
    is_overdue: bool = False


@dataclass(frozen=True, slots=True)
class Chosen:
    """How often a threshold was chosen, and what reviewers said of it."""

    account: str = ""
    threshold: str = ""
    times: int = 0
    judged: int = 0
    not_met: int = 0
    usual_way: int = 0  # the standard path would have done


@dataclass(frozen=True, slots=True)
class Figures:
    """All that a digest says. ``before`` are the weeks before it, the oldest first."""

    since: str
    until: str
    zone: str
    counts: Counts
    before: tuple[Counts, ...]
    outcomes: Mapping[str, int]
    unnecessary: tuple[str, ...]  # requests, the first of them
    open_reviews: int
    overdue_reviews: int
    reviews: tuple[OpenReview, ...]  # the oldest of them
    thresholds: tuple[Chosen, ...]  # over this week and those before it
    unused_accounts: tuple[str, ...]
    unused_levels: tuple[str, ...]  # "account/level", of accounts that were used
    unused_since: str  # the day since which they are unused
    is_young: bool  # that day is the log's first
    follow_ups: int | None = None  # open; None: nobody keeps count
    overdue_follow_ups: int | None = None

    def usual(self, name: str) -> float | None:
        """Return what a count, or a time, was on average in the weeks before; None when nothing is known."""
        known = [getattr(one, name) for one in self.before]
        known = [value for value in known if value is not None]
        return mean(known) if known else None

    def data(self) -> dict[str, Any]:
        """Return it as an entry of the log holds it."""
        return asdict(self)


def of_data(data: Mapping[str, Any]) -> Figures:
    """Read what :meth:`Figures.data` gave. Whatever is not as it was written reads as not there: it is shown, only."""
    return Figures(
        since=_text(data, "since"),
        until=_text(data, "until"),
        zone=_text(data, "zone"),
        counts=_made(Counts, data.get("counts")),
        before=tuple(_made(Counts, one) for one in _list(data, "before")[:BEFORE]),
        outcomes={str(name): value for name, value in _map(data, "outcomes").items() if type(value) is int},
        unnecessary=tuple(map(str, _list(data, "unnecessary"))),
        open_reviews=_whole(data, "open_reviews") or 0,
        overdue_reviews=_whole(data, "overdue_reviews") or 0,
        reviews=tuple(_made(OpenReview, one) for one in _list(data, "reviews")[:_MOST_OPEN]),
        thresholds=tuple(_made(Chosen, one) for one in _list(data, "thresholds")[:_MOST_THRESHOLDS]),
        unused_accounts=tuple(map(str, _list(data, "unused_accounts"))),
        unused_levels=tuple(map(str, _list(data, "unused_levels"))),
        unused_since=_text(data, "unused_since"),
        is_young=data.get("is_young") is True,
        follow_ups=_whole(data, "follow_ups"),
        overdue_follow_ups=_whole(data, "overdue_follow_ups"),
    )


def measure(facts: Facts, policy: Policy, week: Week, *, now: datetime) -> Figures:
    """Count. ``now``: as of when reviews are open or overdue."""
    drills = {row.id for row in facts.requests if is_drill(row, facts.reviews.get(row.id))}
    filed = [
        review
        for review in facts.reviews.values()
        if week.start <= review.filed_at < week.end and review.request_id not in drills
    ]
    waiting = sorted(_open(facts, drills, policy, now), key=lambda one: -one.age)
    earliest = week.end - UNUSED
    follow_ups = [
        one for one in facts.follow_ups if one.opened_at <= now and (one.closed_at is None or one.closed_at > now)
    ]
    today = now.astimezone(week.zone).date().isoformat()
    since = max(earliest, facts.began_at or week.end)
    accounts, levels = _unused(facts, policy, earliest)
    return Figures(
        since=week.first.isoformat(),
        until=(week.first + timedelta(days=6)).isoformat(),
        zone=str(week.zone),
        counts=_count(facts, drills, week, 0),
        before=tuple(_count(facts, drills, week, back) for back in range(BEFORE, 0, -1)),
        outcomes=dict(Counter(row.outcome for row in filed)),
        unnecessary=tuple(sorted(row.request_id for row in filed if is_unnecessary(row))[:_MOST_OPEN]),
        open_reviews=len(waiting),
        overdue_reviews=sum(one.is_overdue for one in waiting),
        reviews=tuple(waiting[:_MOST_OPEN]),
        thresholds=_chosen(facts, drills, week),
        unused_accounts=accounts[:_MOST_NAMES],
        unused_levels=levels[:_MOST_NAMES],
        unused_since=since.astimezone(week.zone).date().isoformat(),
        is_young=since > earliest,
        follow_ups=len(follow_ups),
        overdue_follow_ups=sum(one.due < today for one in follow_ups),
    )


def is_unnecessary(review: Review) -> bool:
    """Whether a reviewer said that it need not, or should not, have been."""
    if review.outcome == Outcome.DRILL:
        return False
    return review.outcome != Outcome.JUSTIFIED or not review.threshold_met or review.standard_path_enough


def _count(facts: Facts, drills: set[str], week: Week, back: int) -> Counts:
    start, end = week.back(back), week.back(back - 1)
    rows = [row for row in facts.requests if start <= row.opened_at < end]
    real = [row for row in rows if row.id not in drills]
    issued = {grant.request_id for grant in facts.grants if grant.issued_at is not None}
    first: dict[str, datetime] = {}
    for decision in facts.decisions:
        first[decision.request_id] = min(decision.at, first.get(decision.request_id, decision.at))
    answers = _times(real, first)
    quorums = _times(real, facts.quorum_at)
    filed = [one for one in facts.reviews.values() if start <= one.filed_at < end and one.request_id not in drills]
    states = Counter(row.state for row in real)
    return Counts(
        week="{}-W{:02}".format(*start.astimezone(week.zone).isocalendar()[:2]),
        asked=len(real),
        used=sum(row.id in issued for row in real),
        denied=states[State.DENIED],
        lapsed=states[State.LAPSED],
        withdrawn=states[State.WITHDRAWN],
        failed=states[State.FAILED],
        answer_median=median_low(answers) if answers else None,
        answer_p90=_p90(answers),
        approve_median=median_low(quorums) if quorums else None,
        approve_p90=_p90(quorums),
        reviewed=len(filed),
        unnecessary=sum(map(is_unnecessary, filed)),
        drills=len(rows) - len(real),
    )


def _times(rows: Iterable[Request], at: Mapping[str, datetime]) -> list[int]:
    """Return the seconds from the opening, shortest first. A clock that went back gives no time."""
    spans = [(at[row.id] - row.opened_at).total_seconds() for row in rows if row.id in at]
    return sorted(int(span) for span in spans if span >= 0)


def _p90(times: Sequence[int]) -> int | None:
    """Return the time within which nine of ten were: the nearest rank, so it is one that was measured."""
    return times[math.ceil(0.9 * len(times)) - 1] if times else None


def _open(facts: Facts, drills: set[str], policy: Policy, now: datetime) -> Iterable[OpenReview]:
    ended: dict[str, datetime] = {}
    for grant in facts.grants:
        if grant.ended_at is not None:
            ended[grant.request_id] = max(grant.ended_at, ended.get(grant.request_id, grant.ended_at))
    for row in facts.requests:
        review = facts.reviews.get(row.id)
        if row.id in drills or row.state not in {State.ENDED, State.REVIEWED}:
            continue
        at = ended.get(row.id, row.state_at)
        # (A review that found misuse waits for a second one: its request has still only ended.)
        if at > now or (row.state == State.REVIEWED and review is not None and review.filed_at <= now):
            continue
        account = policy.accounts.get(row.account)
        is_overdue = row.review_due_at is not None and row.review_due_at < now
        yield OpenReview(
            row.id,
            row.account,
            row.review_owner or (account.owner if account else ""),
            int((now - at).total_seconds()),
            is_overdue,
        )


def _chosen(facts: Facts, drills: set[str], week: Week) -> tuple[Chosen, ...]:
    rows = [row for row in facts.requests if week.back(BEFORE) <= row.opened_at < week.end and row.id not in drills]
    found = []
    for account, threshold in sorted({(row.account, row.threshold) for row in rows}):
        of = [row.id for row in rows if (row.account, row.threshold) == (account, threshold)]
        judged = [facts.reviews[name] for name in of if name in facts.reviews]
        not_met = sum(not one.threshold_met for one in judged)
        usual = sum(one.standard_path_enough for one in judged)
        found.append(Chosen(account, threshold, len(of), len(judged), not_met, usual))
    return tuple(sorted(found, key=lambda one: (-one.times, -one.not_met))[:_MOST_THRESHOLDS])


def _unused(facts: Facts, policy: Policy, earliest: datetime) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the accounts of the policy that nobody used since then, and the levels of those that somebody did."""
    accounts, levels = [], []
    for name, account in policy.accounts.items():
        unused = [level for level in account.real_levels if facts.last_used.get((name, level), earliest) <= earliest]
        if len(unused) == len(account.real_levels):
            accounts.append(name)
        else:
            levels += [f"{name}/{level}" for level in unused]
    return tuple(accounts), tuple(levels)


# --- reading what was written ---------------------------------------------------------------------------------------


def _made(kind: type[Any], found: object) -> Any:  # noqa: ANN401 - one of the classes above
    """Build a value of flat fields; a field whose value is of another type than its default's is left at that."""
    data = found if isinstance(found, Mapping) else {}
    values = {}
    for one in fields(kind):
        value = data.get(one.name)
        if type(value) is (int if one.default is None else type(one.default)):
            values[one.name] = value
    return kind(**values)


def _text(data: Mapping[str, Any], key: str) -> str:
    found = data.get(key)
    return found if isinstance(found, str) else ""


def _whole(data: Mapping[str, Any], key: str) -> int | None:
    found = data.get(key)
    return found if type(found) is int else None


def _list(data: Mapping[str, Any], key: str) -> list[Any]:
    found = data.get(key)
    return list(found) if isinstance(found, list | tuple) else []


def _map(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = data.get(key)
    return found if isinstance(found, Mapping) else {}
