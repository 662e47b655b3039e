"""How far is Slack behind the log, and who is working on it?

Rules
-----
* Each part of a request has a cursor, a row of ``feed``: everything through that entry is in Slack.
* Who works on a part holds its row. Each transaction of the holder renews the claim and checks that it still stands;
  reading and writing inside ``Database.write`` is comparing and setting, since there is one writer at a time.
* A claim ends when it is given back, when it has run out, or when its holder is seen to be dead: a process of the same
  machine that is no longer there. A restarted bot need not wait for its own ghost.
* ``post`` remembers each message: when it was first tried, where it is, what was drawn last. ``picture`` also keeps why
  a message is not there yet ("error:…") or never will be ("gone:…"), and of lines with buttons, until when they have
  them ("until:…", a moment).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import and_, func, or_
from sqlmodel import col, delete, select, update

from storage.audit import write_time
from storage.holder import is_held
from storage.models import Entry, Feed, Post, Request

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlmodel import Session

    from storage.database import Database

CARD: Final = "card"
LINES: Final = "thread:"  # then the first and the last entry: "thread:12-14"
FILES: Final = "file:"  # the list that belongs to a batch of commands: "file:12-4711"
GONE: Final = "gone:"
ERROR: Final = "error:"
UNTIL: Final = "until:"


class Part(StrEnum):
    """What is written of a request; the value tells its cursor in ``feed`` from the others."""

    CARD = ":card"
    DIRECT = ":direct"
    LINES = ""


class Unit(NamedTuple):
    """One part of one request ("" for the entries about none)."""

    part: Part
    request_id: str


class LostError(Exception):
    """The claim ran out and another follower has it."""


@dataclass(frozen=True, slots=True)
class Look:
    """How a unit stands: its cursor, the newest entry of its request, and whether the card is in the channel.

    ``are_over``: buttons under lines about no request stand there past their time.
    """

    cursor: int
    newest: int
    has_card: bool
    are_over: bool


@dataclass(slots=True, eq=False)
class Claim:
    """A unit that is held, and what was found while working on it."""

    unit: Unit
    cursor: int
    failures: int
    until: datetime
    seen: int = -1  # the newest entry that was looked at
    blocked: set[tuple[str, ...]] = field(default_factory=set)  # the lanes of calls that could not go through
    failed: str | None = None
    retry: float | None = None  # seconds
    pending: list[Callable[[Session], None]] = field(default_factory=list)

    def later(self, change: Callable[[Session], None]) -> None:
        """Write this in the next transaction, at the latest when the claim is given back."""
        self.pending.append(change)

    def wait(self, seconds: float) -> None:
        """Note when it may be tried again; the earliest counts."""
        self.retry = seconds if self.retry is None else min(self.retry, seconds)


@dataclass(frozen=True, slots=True)
class Stuck:
    """What is not in Slack yet, or never will be (``is_given_up``), and why."""

    request_id: str
    what: str
    reason: str
    failures: int
    retry_at: datetime | None
    is_given_up: bool


class Cursors:
    """The cursors of one follower. All methods raise :class:`storage.database.DatabaseDown`."""

    def __init__(
        self, database: Database, name: str, holder: str, *, hold: timedelta, now: Callable[[], datetime]
    ) -> None:
        self._database = database
        self._name = name
        self._holder = holder
        self._hold = hold
        self._now = now

    def look(self, unit: Unit) -> Look:
        """Return how the unit stands; nothing is written."""
        with self._database.read() as session:
            feed = session.get(Feed, self._key(unit))
            card = session.get(Post, (unit.request_id, CARD)) if unit.request_id else None
            newest = _newest(session, unit.request_id)
            are_over = not unit.request_id and _are_over(session, self._now())
        return Look(-1 if feed is None else feed.seq, newest, card is not None and card.ts is not None, are_over)

    def take(self, unit: Unit) -> Claim | None:
        """Claim the unit; None when another follower holds it."""
        now = self._now()
        with self._database.write() as session:
            feed = session.get(Feed, self._key(unit))
            if feed is None:
                feed = Feed(follower=self._name + unit.part, request_id=unit.request_id, seq=-1)
            elif feed.holder != self._holder and is_held(feed, now):
                return None
            feed.holder, feed.held_until = self._holder, now + self._hold
            session.add(feed)
        return Claim(unit, feed.seq, feed.failures, now + self._hold)

    def write(self, claim: Claim, *changes: Callable[[Session], None], release: bool = False) -> int:
        """Commit what was found so far and what is about to be done, and renew the claim, or give it back.

        Returns the newest entry of the request. Raises :class:`LostError` when the claim is another's by now.
        """
        now = self._now()
        with self._database.write() as session:
            feed = session.get(Feed, self._key(claim.unit))
            if feed is None or feed.holder != self._holder:
                raise LostError
            for change in (*claim.pending, *changes):
                change(session)
            feed.seq = claim.cursor
            feed.held_until = now + self._hold
            if release:
                feed.holder, feed.held_until = None, None
                feed.retry_at = None if claim.retry is None else now + timedelta(seconds=claim.retry)
                if claim.failed is not None:
                    feed.failures += 1
                elif not claim.blocked:
                    feed.failures = 0
            session.add(feed)
            newest = _newest(session, claim.unit.request_id)
        claim.pending.clear()
        claim.until = now + self._hold
        return newest

    def posts(self, request_id: str) -> dict[str, Post]:
        """Return the stored messages of the request other than the lines, by key."""
        with self._database.read() as session:
            found = session.exec(
                select(Post).where(
                    Post.request_id == request_id,
                    ~col(Post.key).startswith(LINES, autoescape=True),
                    ~col(Post.key).startswith(FILES, autoescape=True),
                )
            )
            return {post.key: post for post in found}

    def offers(self) -> list[Post]:
        """Return the messages of lines about no request that have buttons in Slack."""
        with self._database.read() as session:
            return _offers(session)

    def events(self, request_id: str, wanted: tuple[str, ...]) -> dict[str, list[int]]:
        """Return the entries of these events, by event, oldest first."""
        found: dict[str, list[int]] = {}
        query = select(Entry.seq, Entry.event).where(Entry.request_id == request_id, col(Entry.event).in_(wanted))
        with self._database.read() as session:
            for seq, event in session.exec(query.order_by(col(Entry.seq))):
                found.setdefault(event, []).append(seq)
        return found

    def room(self, target: str) -> str | None:
        """Return the channel in which this person was written to before; None when there was none."""
        query = select(Post.channel).where(Post.target == target, col(Post.channel).is_not(None)).limit(1)
        with self._database.read() as session:
            return session.exec(query).first()

    def behind(self, now: datetime | None) -> list[Unit]:
        """Return the units whose cursor is behind the log; with ``now``, only those that may be tried again by then."""
        units: list[Unit] = []
        with self._database.read() as session:
            for part in Part:
                query = (
                    select(Request.id)
                    .outerjoin(Feed, and_(col(Feed.request_id) == Request.id, col(Feed.follower) == self._name + part))
                    .where(col(Request.last_seq) > func.coalesce(Feed.seq, -1))
                    .order_by(col(Request.opened_at))
                )
                if now is not None:
                    query = query.where(or_(col(Feed.retry_at).is_(None), col(Feed.retry_at) <= now))
                units += [Unit(part, request_id) for request_id in session.exec(query)]
            feed = session.get(Feed, (self._name + Part.LINES, ""))
            is_due = feed is None or now is None or feed.retry_at is None or feed.retry_at <= now
            is_behind = _newest(session, "") > (-1 if feed is None else feed.seq)
            if is_due and (is_behind or _are_over(session, now or self._now())):
                units.append(Unit(Part.LINES, ""))
        return units

    def _key(self, unit: Unit) -> tuple[str, str]:
        return self._name + unit.part, unit.request_id


# --- rows of post -----------------------------------------------------------------------------------------------------


def setting(request_id: str, key: str, **values: Any) -> Callable[[Session], None]:  # noqa: ANN401 - columns
    """Return a change that sets columns of a message's row, which is made if need be (then ``target`` is given)."""

    def change(session: Session) -> None:
        done = session.exec(
            update(Post).where(col(Post.request_id) == request_id, col(Post.key) == key).values(**values)
        )
        if done.rowcount == 0:
            session.add(Post(request_id=request_id, key=key, **values))
            session.flush()

    return change


def dropping_untried(request_id: str) -> Callable[[Session], None]:
    """Return a change that forgets the batches of lines which are certainly not in Slack."""

    def change(session: Session) -> None:
        session.exec(
            delete(Post).where(
                col(Post.request_id) == request_id,
                col(Post.key).startswith(LINES, autoescape=True),
                col(Post.ts).is_(None),
                col(Post.tried_at).is_(None),
            )
        )

    return change


def tried_batch(session: Session, request_id: str, cursor: int) -> Post | None:
    """Return the batch of lines that was tried and has no answer."""
    return session.exec(
        select(Post).where(
            Post.request_id == request_id,
            col(Post.key).startswith(LINES, autoescape=True),
            col(Post.ts).is_(None),
            col(Post.tried_at).is_not(None),
            col(Post.first_seq) > cursor,
        )
    ).first()


def _about(request_id: str) -> Any:  # noqa: ANN401 - a condition of SQLAlchemy's
    return Entry.request_id == request_id if request_id else col(Entry.request_id).is_(None)


def until(at: datetime) -> str:
    """Return the ``picture`` of lines that have buttons until then."""
    return UNTIL + write_time(at)


def _offers(session: Session) -> list[Post]:
    # (What could not be drawn has an error in the place of its time.)
    query = select(Post).where(
        Post.request_id == "",
        col(Post.key).startswith(LINES, autoescape=True),
        col(Post.ts).is_not(None),
        or_(col(Post.picture).startswith(UNTIL, autoescape=True), col(Post.picture).startswith(ERROR, autoescape=True)),
    )
    return list(session.exec(query))


def is_over(post: Post, now: datetime) -> bool:
    """Say whether the time of this message's buttons is over, or taking them away has failed."""
    picture = post.picture or ""
    return not picture.startswith(UNTIL) or datetime.fromisoformat(picture.removeprefix(UNTIL)) <= now


def _are_over(session: Session, now: datetime) -> bool:
    return any(is_over(post, now) for post in _offers(session))


def _newest(session: Session, request_id: str) -> int:
    if request_id:
        found = session.exec(select(Request.last_seq).where(Request.id == request_id)).first()
    else:
        found = session.exec(select(func.max(Entry.seq)).where(_about(""))).first()
    return -1 if found is None else found


# --- for whoever asks how it goes -------------------------------------------------------------------------------------


def seconds_behind(database: Database, *, now: datetime, name: str = "thread") -> float:
    """Return the age in seconds of the oldest entry that is not in its thread yet; 0 when all are."""
    oldest: list[datetime] = []
    with database.read() as session:
        cursors = session.exec(
            select(Request.id, func.coalesce(Feed.seq, -1))
            .outerjoin(Feed, and_(col(Feed.request_id) == Request.id, col(Feed.follower) == name))
            .where(col(Request.last_seq) > func.coalesce(Feed.seq, -1))
        ).all()
        feed = session.get(Feed, (name, ""))
        for request_id, seq in [*cursors, ("", -1 if feed is None else feed.seq)]:
            query = select(Entry.at).where(_about(request_id), col(Entry.seq) > seq)
            first = session.exec(query.order_by(col(Entry.seq)).limit(1)).first()
            if first is not None:
                oldest.append(first)
    return max(0.0, (now - min(oldest)).total_seconds()) if oldest else 0.0


def stuck(database: Database, *, name: str = "thread") -> list[Stuck]:
    """Return what fails now, and the messages of open requests that were given up."""
    found: list[Stuck] = []
    with database.read() as session:
        for feed in session.exec(select(Feed).where(col(Feed.failures) > 0).order_by(col(Feed.request_id))):
            part = next((p for p in Part if feed.follower == name + p), None)
            if part is None:
                continue  # another follower's
            failing = session.exec(
                select(Post).where(
                    Post.request_id == feed.request_id, col(Post.picture).startswith(ERROR, autoescape=True)
                )
            )
            reasons = {post.key: (post.picture or "").removeprefix(ERROR) for post in failing}
            reasons = {key: why for key, why in reasons.items() if part_of(key) is part}
            found.append(
                Stuck(
                    feed.request_id,
                    ", ".join(sorted(reasons)) or part.name.lower(),
                    ", ".join(sorted(set(reasons.values()))) or "could_not_be_drawn",
                    feed.failures,
                    feed.retry_at,
                    is_given_up=False,
                )
            )
        given_up = (
            select(Post)
            .join(Request, col(Request.id) == Post.request_id)
            .where(col(Post.picture).startswith(GONE, autoescape=True), col(Request.due_at).is_not(None))
        )
        for post in session.exec(given_up):
            why = (post.picture or "").removeprefix(GONE)
            found.append(Stuck(post.request_id, post.key, f"{post.target}: {why}", 0, None, is_given_up=True))
    return found


def part_of(key: str) -> Part:
    """Return the part to which the message of this key belongs."""
    if key == CARD:
        return Part.CARD
    return Part.LINES if key.startswith((LINES, FILES)) else Part.DIRECT
