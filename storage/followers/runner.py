"""Who brings the log to the copies outside, and how far is each of them?

Rules
-----
* One thread for each copy, so that one that hangs holds up no other. A copy's cursor is a row of ``feed`` with the
  request ``*``; ``seq`` is the last entry that the outside has acknowledged as durable, and is written only then.
* Who delivers holds the row: several bots on one database deliver once. A claim runs out, or its holder is seen to be
  dead; should two deliver after all, the copies are idempotent, and the cursor is moved by the holder alone.
* The first delivery of a process, and the first after a trouble, sends the last acknowledged entry again to a copy that
  can compare: a place that was swapped, or lost what it had acknowledged, is found before anything is added to it.
* A witness gets no heartbeat: the line of the time in it is an extension, which a strict witness refuses. It has seen
  that head's size and root already; a time stamp of a heartbeat says something new, and so does one in a copy.
* No transaction is open while the outside is waited for. What fails is tried again, later each time, with jitter.
* A copy that is behind for too long is an entry, ``copy:behind``, once for an outage, and ``copy:caught_up`` when all
  of it is there; the row ``*alarm`` keeps which entry said so, and ``*heads`` the newest head that was brought.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import func, select

from storage import proofs
from storage.audit import SYSTEM, Damaged, append
from storage.database import DatabaseDown
from storage.followers.seam import Copy, CopyTrouble, Item, Notary
from storage.holder import is_held, new_holder
from storage.models import Anchor, Entry, Feed, SignedHead

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from sqlmodel import Session

    from storage.database import Database, Write

log = logging.getLogger(__name__)

ALL: Final = "*"
HEADS: Final = "*heads"
ALARM: Final = "*alarm"
BEHIND: Final = "copy:behind"
CAUGHT_UP: Final = "copy:caught_up"

_BATCH_ITEMS: Final = 500
_BATCH_BYTES: Final = 4 * 1024 * 1024
_HOLD: Final = timedelta(seconds=60)
_BACK_OFF: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)  # seconds
_REQUIRED_BACK_OFF: Final = 5.0  # somebody may be waiting for this one
_LOOK: Final = 5.0  # seconds: a thread looks by itself, should nobody wake it
_WARM_UP: Final = timedelta(seconds=30)
_STOP_SECONDS: Final = 10.0
_E: Final[Any] = Entry  # columns, in queries: SQLModel types them as the values
_H: Final[Any] = SignedHead
_A: Final[Any] = Anchor


@dataclass(frozen=True, slots=True)
class Lag:
    """How far a copy is behind: entries, the age of the oldest that it lacks, failed tries, and why if known."""

    name: str
    entries: int
    seconds: float
    failures: int
    retry_at: datetime | None
    why: str | None
    is_alarmed: bool


@dataclass(frozen=True, slots=True)
class Stuck:
    """A copy that does not take the log now, and why."""

    name: str
    why: str
    failures: int
    retry_at: datetime | None


@dataclass(frozen=True, slots=True)
class _Work:
    """What there is to bring: a copy's cursor, the newest entry, and the newest head if it was not brought yet."""

    cursor: int
    newest: int
    head: SignedHead | None


class CopyRunner:
    """Brings the log to each copy in a thread of its own.

    ``consistency`` proves to notaries that one head grew out of another. ``now`` gives the time; ``jitter`` a number
    from 0 to 1. ``hold`` is how long a claim stands without a sign of life; no delivery may take longer.
    """

    def __init__(
        self,
        database: Database,
        copies: Mapping[str, Copy | Notary],
        *,
        now: Callable[[], datetime],
        required: Collection[str] = (),
        alarm_after: timedelta = timedelta(minutes=5),
        hold: timedelta = _HOLD,
        holder: str | None = None,
        consistency: Callable[[Session, int, int], Sequence[bytes]] | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._database = database
        self._copies = dict(copies)
        self._required = frozenset(required)
        self._alarm_after = alarm_after
        self._hold = hold
        self._holder = holder or new_holder()
        self._now = now
        self._consistency = consistency or proofs.consistency
        self._jitter = jitter
        self._why: dict[str, str] = {}
        self._met: set[str] = set()  # copies whose last entry was compared since the last trouble
        self._began = now()
        self._stopping = threading.Event()
        self._wake = {name: threading.Event() for name in copies}
        self._moved = threading.Condition()
        self._threads: list[threading.Thread] = []

    # ------------------------------------------------------------------------------------ running

    def start(self) -> None:
        """Start a thread for each copy."""
        self._began = self._now()
        self._stopping.clear()
        for name in self._copies:
            # Daemons: a place that hangs past its own time-out must not keep a stopped bot alive. Its delivery was not
            # acknowledged, so that it is made again.
            thread = threading.Thread(target=self._run, args=(name,), name=f"copy-{name}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """Let each thread finish what it is at, for some seconds."""
        self._stopping.set()
        self.wake()
        deadline = time.monotonic() + _STOP_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._threads.clear()

    def wake(self, _requests: Collection[str] = ()) -> None:
        """Say that there may be something to bring: after a commit, after a head was signed."""
        for event in self._wake.values():
            event.set()

    def tick(self) -> None:
        """Wake the copies that have something to do by now, and say which are behind for too long, or no more."""
        with self._database.read() as session:
            due = [name for name in self._copies if self._is_due(session, name)]
        for name in due:
            self._wake[name].set()
        self._alarm()

    def drain(self, timeout: float) -> bool:
        """Wait until every copy has everything, for ``timeout`` seconds at the most, and say whether it has."""
        deadline = time.monotonic() + timeout
        try:
            while any(one.entries for one in self.lag(self._now())):
                self.wake()
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self.wait(min(left, 0.1))
        except DatabaseDown:
            return False
        return True

    def wait(self, seconds: float) -> None:
        """Wait until something was acknowledged here, or the seconds are over."""
        with self._moved:
            self._moved.wait(seconds)

    def work(self, name: str) -> bool:
        """Bring one copy what it lacks, as far as it can be done now; whether anything was brought."""
        worked = False
        while not self._stopping.is_set() and self._once(name):
            worked = True
        return worked

    def _run(self, name: str) -> None:
        while not self._stopping.is_set():
            self._wake[name].wait(_LOOK)
            self._wake[name].clear()
            try:
                self.work(name)
            except DatabaseDown as down:
                log.warning("copy %s: %s", name, down)
                self._stopping.wait(1.0)
            except Exception:
                log.exception("copy %s: the thread goes on", name)
                self._stopping.wait(1.0)

    # ------------------------------------------------------------------------------------ one delivery

    def _is_due(self, session: Session, name: str) -> bool:
        feed = session.get(Feed, (name, ALL))
        if feed is not None and feed.retry_at is not None and feed.retry_at > self._now():
            return False
        work = self._look(session, name)
        return work.head is not None or (work.newest > work.cursor and not self._is_notary(name))

    def _is_notary(self, name: str) -> bool:
        return isinstance(self._copies[name], Notary)

    def _look(self, session: Session, name: str) -> _Work:
        feed, heads = session.get(Feed, (name, ALL)), session.get(Feed, (name, HEADS))
        brought = -1 if heads is None else heads.seq
        query = select(SignedHead).order_by(_H.id.desc()).limit(1)
        if getattr(self._copies[name], "kind", None) == "cosignature":
            query = query.where(_H.reason != "heartbeat")
        head = session.execute(query).scalar()
        is_new = head is not None and (head.id or 0) > brought
        return _Work(-1 if feed is None else feed.seq, _newest(session), head if is_new else None)

    def _once(self, name: str) -> bool:
        """Make one delivery; False when there is nothing to do now, or it is another's to do, or it failed."""
        # 1. Is there anything? Most wakings end here, without a lock.
        with self._database.read() as session:
            if not self._is_due(session, name):
                return False
        # 2. Claim it.
        if not self._take(name):
            return False
        # 3. Bring it, with no transaction open.
        copy = self._copies[name]
        try:
            if isinstance(copy, Notary):
                return self._testify(name, copy)
            return self._deliver(name, copy)
        except CopyTrouble as trouble:
            self._failed(name, str(trouble))
        except DatabaseDown:
            raise
        except Damaged as damaged:
            self._failed(name, f"Entry {damaged.seq} of the log is damaged: {damaged.sentence}")
        except Exception as error:
            # A copy that breaks in an unforeseen way is in trouble like any other; the log file has the traceback.
            log.exception("copy %s", name)
            self._failed(name, f"It failed in an unforeseen way ({type(error).__name__}); see the bot's log file.")
        return False

    def _deliver(self, name: str, copy: Copy) -> bool:
        with self._database.read() as session:
            work = self._look(session, name)
            is_first = name not in self._met and copy.is_readable and work.cursor >= 0
            items = _items(session, work.cursor if is_first else work.cursor + 1)
            last = items[-1].seq if items else work.cursor
            head = _head_within(session, last + 1, self._brought(session, name))
        if last == work.cursor and head is None:
            self._advance(name, work.cursor, None)  # a head that is not of this log is nothing to bring
            return False
        damaged = next((item.seq for item in items if not item.is_whole()), None)
        if damaged is not None:
            raise CopyTrouble(f"Entry {damaged} of the log is damaged in the database, so that it is not copied.")
        seq = copy.deliver(items, None if head is None else head.note, now=self._now())
        if (items or copy.is_readable) and (seq < work.cursor or seq == work.cursor < last):
            raise CopyTrouble(f"It answers that it has entry {seq}; it was brought {work.cursor + 1} to {last}.")
        seq = min(seq, last) if items else work.cursor
        self._met.add(name)
        return self._advance(name, seq, None if head is None else head.id)

    def _testify(self, name: str, notary: Notary) -> bool:
        with self._database.read() as session:
            head = self._look(session, name).head
            feed = session.get(Feed, (name, ALL))
            before = 0 if feed is None else feed.seq + 1
        if head is None or head.id is None:
            return self._advance(name, before - 1, None)
        size = head.size

        def consistency(old: int) -> Sequence[bytes]:
            with self._database.read() as session:
                return self._consistency(session, old, size)

        data = notary.anchor(head.note, before=before, consistency=consistency, now=self._now())
        anchor = Anchor(head_id=head.id, follower=name, kind=notary.kind, data=data, at=self._now())
        return self._advance(name, max(size, before) - 1, head.id, anchor)

    def _brought(self, session: Session, name: str) -> int:
        heads = session.get(Feed, (name, HEADS))
        return -1 if heads is None else heads.seq

    # ------------------------------------------------------------------------------------ rows

    def _take(self, name: str) -> bool:
        now = self._now()
        with self._database.write() as session:
            feed = session.get(Feed, (name, ALL)) or Feed(follower=name, request_id=ALL, seq=-1)
            if feed.holder != self._holder and is_held(feed, now):
                self._met.discard(name)  # whoever holds it brings other entries; compare again when it is ours
                return False
            feed.holder, feed.held_until = self._holder, now + self._hold
            session.add(feed)
        return True

    def _mine(self, session: Write, name: str) -> Feed | None:
        feed = session.get(Feed, (name, ALL))
        return feed if feed is not None and feed.holder == self._holder else None

    def _advance(self, name: str, seq: int, head_id: int | None, anchor: Anchor | None = None) -> bool:
        """Write down what was acknowledged, and give the claim back; False when the claim was lost meanwhile."""
        with self._database.write() as session:
            feed = self._mine(session, name)
            if feed is None:
                return False
            feed.seq, feed.failures, feed.retry_at = max(seq, feed.seq), 0, None
            feed.holder, feed.held_until = None, None
            session.add(feed)
            if head_id is not None:
                session.merge(Feed(follower=name, request_id=HEADS, seq=head_id))
            if anchor is not None and not _is_anchored(session, anchor):
                session.add(anchor)
        self._why.pop(name, None)
        with self._moved:
            self._moved.notify_all()
        return True

    def _failed(self, name: str, why: str) -> None:
        if self._why.get(name) != why:
            log.warning("copy %s: %s", name, why)
        self._why[name] = why
        self._met.discard(name)
        with self._database.write() as session:
            feed = self._mine(session, name)
            if feed is None:
                return
            wait = _BACK_OFF[min(feed.failures, len(_BACK_OFF) - 1)]
            if name in self._required:
                wait = min(wait, _REQUIRED_BACK_OFF)
            feed.failures += 1
            feed.retry_at = self._now() + timedelta(seconds=wait * (0.75 + self._jitter() / 2))
            feed.holder, feed.held_until = None, None
            session.add(feed)

    # ------------------------------------------------------------------------------------ how it goes

    def lag(self, now: datetime) -> tuple[Lag, ...]:
        """Return how far each copy is behind."""
        notaries = {name for name in self._copies if self._is_notary(name)}
        found = lags(self._database, self._copies, notaries=notaries, now=now)
        return tuple(replace(one, why=self._why.get(one.name)) for one in found)

    def stuck(self) -> tuple[Stuck, ...]:
        """Return the copies whose last try failed."""
        return tuple(
            Stuck(one.name, one.why or "It did not take the log.", one.failures, one.retry_at)
            for one in self.lag(self._now())
            if one.failures
        )

    def _alarm(self) -> None:
        now = self._now()
        warm = now - self._began >= min(_WARM_UP, self._alarm_after)
        for one in self.lag(now):
            # A bot that was down finds old entries; they are late, but nobody has failed to take them yet.
            is_late = one.seconds >= self._alarm_after.total_seconds() and (one.failures or warm)
            if is_late != one.is_alarmed and (one.is_alarmed or is_late):
                self._say(one, now)

    def _say(self, seen: Lag, now: datetime) -> None:
        """Append the entry about an outage's begin or end, once over all bots: judged again under the lock."""
        with self._database.write() as session:
            alarm = session.get(Feed, (seen.name, ALARM)) or Feed(follower=seen.name, request_id=ALARM, seq=-1)
            feed = session.get(Feed, (seen.name, ALL))
            cursor = -1 if feed is None else feed.seq
            facts: dict[str, Any] = {"copy": seen.name, "required": seen.name in self._required}
            if alarm.seq < 0 and not seen.is_alarmed:
                newest_late = _oldest_missing(session, cursor, is_notary=self._is_notary(seen.name))
                if newest_late is None or now - newest_late < self._alarm_after:
                    return  # it came while we looked
                facts |= {"entries": seen.entries, "seconds": int(seen.seconds), "acknowledged": cursor}
                facts["why"] = seen.why or "It has not answered."
                alarm.seq = append(session, event=BEHIND, at=now, actor=SYSTEM, data=facts).seq
            elif seen.is_alarmed and alarm.seq >= 0 and self._is_over(session, seen.name, cursor, alarm.seq):
                append(session, event=CAUGHT_UP, at=now, actor=SYSTEM, data=facts | {"acknowledged": cursor})
                alarm.seq = -1
            else:
                return
            session.add(alarm)

    def _is_over(self, session: Session, name: str, cursor: int, said: int) -> bool:
        """Whether the copy has all that it lacked when its outage was said; a notary, whether it lacks no head."""
        if self._is_notary(name):
            return _oldest_missing(session, cursor, is_notary=True) is None
        return cursor >= said


class RequiredCopies:
    """Which of the required copies lack an entry: what stands before a credential.

    ``within`` is how long somebody waits for them. What is not known is missing: a copy without a row, a copy that is
    not running. Raises :class:`DatabaseDown`.
    """

    def __init__(
        self, database: Database, names: Collection[str], within: timedelta, runner: CopyRunner | None = None
    ) -> None:
        self._database = database
        self._names = tuple(sorted(names))
        self._runner = runner
        self.within = within

    def behind(self, seq: int) -> tuple[str, ...]:
        """Return the names of the required copies that have not acknowledged entry ``seq``."""
        if not self._names:
            return ()
        with self._database.read() as session:
            feeds = {name: session.get(Feed, (name, ALL)) for name in self._names}
        return tuple(name for name, feed in feeds.items() if feed is None or feed.seq < seq)

    def wait(self, seconds: float) -> None:
        """Wait until something may have been acknowledged, or the seconds are over."""
        if self._runner is None:
            time.sleep(seconds)
        else:
            self._runner.wait(seconds)


def lags(
    database: Database, names: Collection[str], *, notaries: Collection[str] = (), now: datetime
) -> tuple[Lag, ...]:
    """Return how far each copy is behind, from the rows alone: for whoever does not run them."""
    found = []
    with database.read() as session:
        newest = _newest(session)
        newest_head = session.execute(select(func.max(_H.size))).scalar() or 0
        for name in names:
            feed, alarm = session.get(Feed, (name, ALL)), session.get(Feed, (name, ALARM))
            cursor = -1 if feed is None else feed.seq
            is_notary = name in notaries
            since = _oldest_missing(session, cursor, is_notary=is_notary)
            found.append(
                Lag(
                    name,
                    max(0, (newest_head - 1 if is_notary else newest) - cursor),
                    0.0 if since is None else max(0.0, (now - since).total_seconds()),
                    0 if feed is None else feed.failures,
                    None if feed is None else feed.retry_at,
                    None,
                    alarm is not None and alarm.seq >= 0,
                )
            )
    return tuple(found)


def last_answered(database: Database, name: str) -> tuple[bytes | None, bool]:
    """Return the newest head that a notary has answered for, and True; else the newest head, if any, and False.

    Heartbeats are left out: a strict witness refuses them.
    """
    anchored = select(_H.note).join(Anchor, _A.head_id == _H.id).where(_A.follower == name)
    with database.read() as session:
        for query, is_known in ((anchored, True), (select(_H.note), False)):
            found = session.execute(query.where(_H.reason != "heartbeat").order_by(_H.id.desc()).limit(1)).scalar()
            if found is not None:
                return bytes(found), is_known
    return None, False


def newest_size(database: Database) -> int:
    """Return how many entries the newest signed head is over; 0 when there is none."""
    with database.read() as session:
        return int(session.execute(select(func.max(_H.size))).scalar() or 0)


def reset(session: Write, name: str) -> int:
    """Forget what a copy has acknowledged, so that it gets the whole log again; returns the old cursor, or -1."""
    feed = session.get(Feed, (name, ALL))
    if feed is None:
        return -1
    old, feed.seq, feed.failures, feed.retry_at = feed.seq, -1, 0, None
    session.add(feed)
    heads = session.get(Feed, (name, HEADS))
    if heads is not None:
        session.delete(heads)
    return old


def _newest(session: Session) -> int:
    found = session.execute(select(func.max(_E.seq))).scalar()
    return -1 if found is None else int(found)


def _oldest_missing(session: Session, cursor: int, *, is_notary: bool) -> datetime | None:
    """Return when the first entry (for a notary: the first head) after the cursor was written."""
    query = (
        select(_H.at).where(_H.size > cursor + 1).order_by(_H.id).limit(1)
        if is_notary
        else select(_E.at).where(_E.seq == cursor + 1)
    )
    found: datetime | None = session.execute(query).scalar()
    return found


def _items(session: Session, start: int) -> list[Item]:
    """Return the entries from seq ``start`` on, as many as one delivery takes."""
    rows = session.execute(
        select(_E.seq, _E.body, _E.leaf_hash).where(_E.seq >= start).order_by(_E.seq).limit(_BATCH_ITEMS)
    )
    items: list[Item] = []
    size = 0
    for row in rows:
        size += len(row.body or b"")
        if items and size > _BATCH_BYTES:
            break
        items.append(Item(row.seq, row.body, row.leaf_hash))
    return items


def _head_within(session: Session, size: int, brought: int) -> SignedHead | None:
    """Return the newest head over no more than ``size`` entries, if it was not brought yet."""
    query = select(SignedHead).where(_H.size <= size, _H.id > brought).order_by(_H.id.desc()).limit(1)
    found: SignedHead | None = session.execute(query).scalar()
    return found


def _is_anchored(session: Session, anchor: Anchor) -> bool:
    columns: Any = Anchor
    query = select(columns.id).where(columns.head_id == anchor.head_id, columns.follower == anchor.follower)
    return session.execute(query).first() is not None
