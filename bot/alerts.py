"""Who brings the log to people beyond Slack, each step that concerns them, at least once and in order?

Rules
-----
* One more follower of the log, with a row of ``feed`` for each alert (``alert:NAME``), which begins at the newest
  entry. Several bots on one database send once: who sends holds the row.
* One thread for each alert and a limit for each message: a service that hangs holds up no other, nor Slack, nor the
  log.
* That a message was sent is an entry, ``alert:send``, in the transaction that moves the cursor. Whoever dies between
  the two sends it again; the entry's number in the title tells that it is the same. Nothing is ever sent about such an
  entry.
* What fails is tried again, later each time, up to an hour; news are tried after a minute. The first failure is an
  entry. What a day of trying did not bring is given up, which is an entry, too; what came later is not given up with
  it.
* What waits goes as one message. A rehearsal and the real thing never go as one.
* An entry that was damaged in the database is told as such: tampering must not silence what it wants to hide.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Final, Protocol

from sqlalchemy import func
from sqlmodel import col, select, update

from bot.alert_channel import AlertTrouble
from bot.alert_words import MOST_IN_ONE, Told, bare, concerns, damaged, hears_of_damage, message, severity_of, tell
from storage.audit import SYSTEM, Damaged, append, read_entries
from storage.database import DatabaseDown
from storage.holder import is_held, new_holder
from storage.models import Entry, Feed, Request
from workflows.alert_rules import SEND, Came, Severity
from workflows.errors import BreakGlassError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlmodel import Session

    from storage.audit import JSON, Record
    from storage.database import Database, Write
    from workflows.alert_rules import AlertRules
    from workflows.door import Case
    from workflows.policy import Person, Policy

log = logging.getLogger(__name__)

ALL: Final = "*"
OUTAGE: Final = "*outage"  # the entry that said that it does not get through; -1: it does

GIVE_UP: Final = timedelta(hours=24)
BACK_OFF: Final = (1, 2, 5, 10, 20, 40, 60)  # minutes
_NEWS: Final = timedelta(minutes=1)  # after a failure, until something new is reason to try again
_HOLD: Final = timedelta(seconds=60)  # longer than a message takes
_LOOK: Final = 5.0  # seconds: a thread looks by itself, should nobody wake it
_GATHER: Final = 0.5  # seconds: what comes at the same moment goes as one message
_PAGE: Final = 200
_STRIDE: Final = 1000  # entries that concern nobody, after which the cursor is written all the same
_RESTED: Final = timedelta(minutes=1)  # or this time
_STOP_SECONDS: Final = 10.0
_E: Final[Any] = Entry


class Sender(Protocol):
    """A service, as ``alert_channel.Channel``."""

    scheme: str

    def send(self, title: str, body: str, severity: Severity) -> None:
        """Send it, and return when it was taken. Raises :class:`AlertTrouble`, in time."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How an alert does: failed tries in a row, since when it does not get through, and when it is tried again."""

    name: str
    failures: int
    since: datetime | None
    retry_at: datetime | None


@dataclass(frozen=True, slots=True)
class _Batch:
    """What is to be sent, and through which entry this is all that there was; ``is_more``: the log goes on."""

    told: tuple[Told, ...]
    last: int
    is_more: bool


class AlertRunner:
    """Sends each alert in a thread of its own. ``wake`` goes into ``database.woken``.

    ``senders`` are the services by the alerts' names; ``policy`` and ``case`` give what is told, ``person`` who
    somebody is (it may raise Unavailable: then the id is told), ``now`` aware UTC.
    """

    def __init__(
        self,
        database: Database,
        senders: Mapping[str, Sender],
        *,
        policy: Callable[[], Policy],
        case: Callable[[str], Case],
        person: Callable[[str], Person | None],
        now: Callable[[], datetime],
        holder: str | None = None,
    ) -> None:
        self._database = database
        self._senders = dict(senders)
        self._policy = policy
        self._case = case
        self._person = person
        self._now = now
        self._holder = holder or new_holder()
        self._passed: dict[str, tuple[int, datetime]] = {}  # looked at through this entry, since the cursor was written
        self._failed_at: dict[str, tuple[int, datetime]] = {}  # the newest entry of the last failed try
        self._stopping = threading.Event()
        self._wake = {name: threading.Event() for name in senders}
        self._threads: list[threading.Thread] = []

    # ------------------------------------------------------------------------------------ running

    def start(self) -> None:
        """Start a thread for each alert. What is logged from now on is told, also by an alert that was just set up."""
        self._stopping.clear()
        for name in self._senders:
            try:
                self._begin(name)
            except DatabaseDown as down:
                log.warning("alert %s: it begins when the database answers: %s", name, down)
            thread = threading.Thread(target=self._run, args=(name,), name=f"alert-{name}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """Let each thread finish its message, for a moment; what was not finished is sent by the next bot."""
        self._stopping.set()
        for event in self._wake.values():
            event.set()
        for thread in self._threads:
            thread.join(_STOP_SECONDS)
        self._threads.clear()

    def wake(self, _requests: frozenset[str] = frozenset()) -> None:
        """Look at once: the log has new entries."""
        for event in self._wake.values():
            event.set()

    def _run(self, name: str) -> None:
        while not self._stopping.is_set():
            if self._wake[name].wait(_LOOK):
                self._stopping.wait(_GATHER)
            self._wake[name].clear()
            try:
                while not self._stopping.is_set() and self.step(name):
                    pass
            except DatabaseDown as down:
                log.warning("alert %s: tried again in seconds: %s", name, down)
            except Exception:
                log.exception("alert %s: it is looked at again in seconds", name)

    # ------------------------------------------------------------------------------------ one step

    def step(self, name: str) -> bool:
        """Do the next thing for one alert; False when there is nothing to do now. Raises DatabaseDown."""
        rules = self._policy().alerts.get(name)
        if rules is None:
            return False  # a policy that was changed under way has no such alert any more
        now = self._now()
        # 1. Is there anything? Most wakings end here, without a lock.
        with self._database.read() as session:
            feed = session.get(Feed, _key(name))
        if feed is None:
            self._begin(name)
            return False
        if feed.holder != self._holder and is_held(feed, now):
            return False
        batch = self._look(name, rules, feed.seq)
        if not batch.told:
            return self._pass_by(name, feed.seq, batch, now)
        if feed.retry_at is not None and feed.retry_at > now and not self._has_news(name, batch, now):
            return False
        # 2. Claim it, unless another bot was faster.
        if not self._take(name, feed.seq, now):
            return False
        # 3. Send it, with no transaction open.
        title, body, severity = message(rules, batch.told)
        try:
            self._senders[name].send(title, body, severity)
        except AlertTrouble as trouble:
            self._failed(rules, batch, str(trouble))
            return False
        # 4. Write down that it was sent.
        return self._sent(rules, batch)

    def _begin(self, name: str) -> None:
        """Begin at the newest entry: whoever sets up an alert does not want last year's."""
        with self._database.read() as session:
            if session.get(Feed, _key(name)) is not None:
                return
        with self._database.write() as session:
            if session.get(Feed, _key(name)) is None:
                newest = session.exec(select(func.max(Entry.seq))).first()
                session.add(Feed(follower=_key(name)[0], request_id=ALL, seq=-1 if newest is None else newest))

    def _look(self, name: str, rules: AlertRules, cursor: int) -> _Batch:
        """Return what stands after the cursor and concerns this alert."""
        start = max(cursor, self._passed.get(name, (cursor, None))[0])
        page = self._read(start)
        told: list[Told] = []
        last = start
        names: dict[str, str] = {}
        for one in page:
            found = self._tell(rules, one, names)
            if found is not None:
                if told and (len(told) == MOST_IN_ONE or found.is_drill != told[0].is_drill):
                    return _Batch(tuple(told), last, is_more=True)
                told.append(found)
            last = one.seq
        return _Batch(tuple(told), last, is_more=len(page) == _PAGE)

    def _read(self, after: int) -> list[Record | Damaged]:
        with self._database.read() as session:
            try:
                return list(read_entries(session, after=after, limit=_PAGE))
            except Damaged:
                pass
            # One by one: what is damaged must not hide what stands beside it.
            rows = session.exec(
                select(Entry.seq).where(col(Entry.seq) > after).order_by(col(Entry.seq)).limit(_PAGE)
            ).all()
            found: list[Record | Damaged] = []
            for seq in rows:
                try:
                    found += read_entries(session, after=seq - 1, until_seq=seq)
                except Damaged as wrong:
                    found.append(Damaged(seq, wrong.sentence))
            return found

    def _tell(self, rules: AlertRules, one: Record | Damaged, names: dict[str, str]) -> Told | None:
        if isinstance(one, Damaged):
            return damaged(one.seq, one.sentence, self._now()) if hears_of_damage(rules) else None
        severity = severity_of(one)
        if severity is None or severity.rank < rules.least.rank:
            return None  # before anything is asked of the database
        case = self._case_of(one)
        if not concerns(rules, one, case, severity):
            return None
        try:
            return tell(one, case, self._policy(), severity, lambda who: self._name(who, names))
        except DatabaseDown:
            raise
        except Exception:
            # One line that cannot be drawn must not silence what comes after it.
            log.exception("alert %s: entry %s", rules.name, one.seq)
            return bare(one, severity)

    def _case_of(self, record: Record) -> Case | None:
        if record.request_id is None:
            return None
        try:
            return self._case(record.request_id)
        except BreakGlassError:
            return None  # then it is told without its account's name

    def _name(self, user_id: str, names: dict[str, str]) -> str:
        if user_id not in names:
            person = None
            # When Slack does not answer once, it is not asked for every name: this is told when Slack is down, too.
            if names.get("") is None:
                try:
                    person = self._person(user_id)
                except BreakGlassError:
                    names[""] = "silent"
            names[user_id] = f"{person.name} ({user_id})" if person is not None and person.name else user_id
        return names[user_id]

    def _has_news(self, name: str, batch: _Batch, now: datetime) -> bool:
        tried = self._failed_at.get(name)
        return tried is not None and batch.told[-1].seq > tried[0] and now - tried[1] >= _NEWS

    # ------------------------------------------------------------------------------------ rows

    def _pass_by(self, name: str, cursor: int, batch: _Batch, now: datetime) -> bool:
        """Remember that nothing up to here concerns this alert; on disk only now and then. Return whether to go on."""
        if batch.last == cursor:
            return False
        since = self._passed.get(name, (cursor, now))[1]
        self._passed[name] = (batch.last, since)
        # Each alert's own entries would otherwise be a reason for the others to write.
        if batch.last - cursor >= _STRIDE or now - since >= _RESTED:
            with self._database.write() as session:
                feed = session.get(Feed, _key(name))
                if feed is not None and feed.seq == cursor and not is_held(feed, now):
                    feed.seq = batch.last
                    session.add(feed)
            self._passed.pop(name, None)
        return batch.is_more

    def _take(self, name: str, cursor: int, now: datetime) -> bool:
        with self._database.write() as session:
            feed = session.get(Feed, _key(name))
            if feed is None or feed.seq != cursor or (feed.holder != self._holder and is_held(feed, now)):
                return False
            feed.holder, feed.held_until = self._holder, now + _HOLD
            session.add(feed)
        return True

    def _sent(self, rules: AlertRules, batch: _Batch) -> bool:
        now = self._now()
        with self._database.write() as session:
            feed = self._mine(session, rules.name)
            if feed is None:
                return False  # it took too long; whoever holds it by now sends it once more
            waited = now - min(one.at for one in batch.told)
            more: dict[str, JSON] = {"seconds": max(0, int(waited.total_seconds())), "tries": feed.failures + 1}
            self._say(session, rules, batch.told, Came.SENT, facts=more, now=now)
            feed.seq, feed.failures, feed.retry_at = batch.last, 0, None
            feed.holder, feed.held_until = None, None
            session.add(feed)
            session.merge(Feed(follower=feed.follower, request_id=OUTAGE, seq=-1))
        self._passed.pop(rules.name, None)
        self._failed_at.pop(rules.name, None)
        return True

    def _failed(self, rules: AlertRules, batch: _Batch, why: str) -> None:
        now = self._now()
        log.warning("alert %s: %s", rules.name, why)
        with self._database.write() as session:
            feed = self._mine(session, rules.name)
            if feed is None:
                return
            wait = timedelta(minutes=BACK_OFF[min(feed.failures, len(BACK_OFF) - 1)])
            feed.failures += 1
            feed.retry_at = now + wait
            feed.holder, feed.held_until = None, None
            outage = session.get(Feed, (feed.follower, OUTAGE)) or Feed(
                follower=feed.follower, request_id=OUTAGE, seq=-1
            )
            facts: dict[str, JSON] = {"why": why, "tries": feed.failures}
            if outage.seq < 0:
                again: dict[str, JSON] = {"retry_seconds": int(wait.total_seconds())}
                outage.seq = self._say(session, rules, batch.told, Came.FAILED, facts=facts | again, now=now)
            elif now - self._written_at(session, outage.seq, now) >= GIVE_UP:
                old = list(takewhile(lambda one: now - one.at >= GIVE_UP, batch.told))
                if old:
                    self._say(session, rules, old, Came.GIVEN_UP, facts=facts, now=now)
                    feed.seq = old[-1].seq if len(old) < len(batch.told) else batch.last
            session.add(feed)
            session.add(outage)
        self._failed_at[rules.name] = (batch.told[-1].seq, now)

    def _mine(self, session: Write, name: str) -> Feed | None:
        feed = session.get(Feed, _key(name))
        return feed if feed is not None and feed.holder == self._holder else None

    @staticmethod
    def _written_at(session: Session, seq: int, now: datetime) -> datetime:
        found = session.exec(select(Entry.at).where(col(Entry.seq) == seq)).first()
        return now if found is None else found

    def _say(
        self,
        session: Write,
        rules: AlertRules,
        entries: Sequence[Told],
        came: Came,
        *,
        facts: Mapping[str, JSON],
        now: datetime,
    ) -> int:
        """Append an entry for each request that these are about; return the first one's number."""
        seqs: list[int] = []
        for request_id in dict.fromkeys(one.request_id for one in entries):
            numbers: list[JSON] = [one.seq for one in entries if one.request_id == request_id]
            data: dict[str, JSON] = {
                "alert": rules.name,
                "to": rules.to.value,
                "scheme": self._senders[rules.name].scheme,
                "came": came.value,
                "entries": numbers,
                **facts,
            }
            entry = append(session, event=SEND, at=now, actor=SYSTEM, request_id=request_id, data=data)
            if request_id is not None:
                session.exec(update(Request).where(col(Request.id) == request_id).values(last_seq=entry.seq))
            seqs.append(entry.seq)
        return seqs[0]


def _key(name: str) -> tuple[str, str]:
    return f"alert:{name}", ALL


def standings(database: Database, alerts: Mapping[str, AlertRules]) -> list[Standing]:
    """Return how each alert does, from the rows alone. Raises DatabaseDown."""
    found = []
    with database.read() as session:
        for name in alerts:
            feed, outage = session.get(Feed, _key(name)), session.get(Feed, (_key(name)[0], OUTAGE))
            since = None
            if outage is not None and outage.seq >= 0:
                since = session.exec(select(Entry.at).where(col(Entry.seq) == outage.seq)).first()
            found.append(
                Standing(name, 0 if feed is None else feed.failures, since, None if feed is None else feed.retry_at)
            )
    return found
