"""Is there, at Vault and at the targets, exactly what the log says there is?

Once a minute both are compared with what is on record, both ways. :meth:`Reconciler.tick` is for a clock that calls it
more often; a row says whether a round is due, so that several bots on one database make it once.

Rules
-----
* A live lease under a level's prefix that no open grant explains is revoked and alarmed, once it is older than an
  opening may take: only our child tokens may read there, so it is ours, and a crash or somebody past the bot made it.
* A name with our mark at a target that no open grant explains is alarmed. Who has a lease for it loses it by that.
* A lease that Vault has given up revoking is revoked once more, synchronously, and alarmed in any case.
* An active grant whose lease (or token, where there is no lease) Vault no longer has is lost: its request is ended.
* Only what was shown counts. Vault or a target that does not answer proves nothing: nothing is revoked, ended or called
  gone by that, and when it lasts for minutes it is an alarm of its own.
* An alarm is one entry, repeated after an hour while it lasts; a row remembers since when, and that it was said.
* A trial of a level (``trial.py``) is on record, too, and lives a minute.
* What is on record is read before and after the look outside. What either explains is explained: no lease is taken for
  a stranger's because it was recorded, or ended, while we looked.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from sqlmodel import col, select

from storage.audit import SYSTEM, append, parse, read_entries
from storage.holder import is_held, new_holder
from storage.models import Alarm, Entry, Feed, Grant, Request, State
from workflows.door import database_errors
from workflows.engines import ENGINES
from workflows.engines.leases import CLOCK_SKEW
from workflows.engines.naming import mark_of
from workflows.errors import Unavailable, VaultRefused
from workflows.issuing import target_of
from workflows.lifecycle import Action, allowed_roles
from workflows.trial import LIFE, TRY

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from workflows.desk import Desk
    from workflows.door import Turn
    from workflows.vault import Lease

log = logging.getLogger(__name__)

ALARM: Final = "access:alarm"
CLEAR: Final = "access:clear"

_STUCK: Final = "sys/leases"  # where Vault lists what it has given up revoking
_VAULT: Final = "Vault"  # the place that is Vault itself
CLAIM: Final = ("reconcile", "*")  # the row that says who makes a round, and when the next one is due
_HOLD: Final = timedelta(minutes=5)  # for how long a round that vanished keeps others from making one
_AT_ONCE: Final = 500  # leases looked up, or revoked, in one round at one place; the rest has its turn in the next
_TOLD: Final = 20  # names in one entry
_SLACK: Final = timedelta(seconds=5)  # by which what ends by itself may end earlier: Vault counts whole seconds
_NO: Final = (Unavailable, VaultRefused)


class Kind(StrEnum):
    """What an alarm is about."""

    LEASE = "lease"
    IDENTITY = "identity"
    STUCK = "stuck"  # Vault has given up revoking it
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Found:
    """One thing that is not as it should be. ``place`` is a lease prefix, or a target's address.

    ``is_ripe``: it has lasted long enough to be told. ``revoked``: None where nothing can be revoked.
    """

    kind: Kind
    place: str
    name: str
    is_ripe: bool = True
    revoked: bool | None = None
    why: str = ""

    @property
    def key(self) -> str:
        """The row's key."""
        return f"{self.kind.value} {self.place} {self.name}"


@dataclass(slots=True)
class Round:
    """What one round found, and how many requests it ended because their credential is gone."""

    found: list[Found] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    seen: set[tuple[Kind, str]] = field(default_factory=set)  # what could be looked at, and where


@dataclass(frozen=True, slots=True)
class _Source:
    """Where credentials come from: an engine and a level's options."""

    engine: str
    options: Mapping[str, str]
    prefix: str
    target: str


class _Record:
    """What is on record: the grants that are not ended, with the states of their requests, and the trials under way.

    ``trials``: when each was begun, and its name. With thousands of grants, whatever is asked of it is looked up.
    """

    def __init__(self, grants: Sequence[tuple[Grant, str]], trials: Sequence[tuple[datetime, str]]) -> None:
        self.grants: Final = grants
        self.trials: Final = trials
        self.leases: Final = frozenset(grant.lease_id for grant, _ in grants if grant.lease_id is not None)
        self._names: Final = frozenset(grant.identity for grant, _ in grants if grant.identity is not None)
        # Of what is being opened, the name is not known yet; it will begin with the request's.
        opening = (mark_of(grant.request_id) for grant, _ in grants if grant.identity is None)
        self._begun: Final = (*opening, *(name for _, name in trials))

    def explains(self, name: str) -> bool:
        """Whether a name at a target is that of an open grant, or may be that of one being opened, or of a trial."""
        return name in self._names or name.startswith(self._begun)

    def may_explain(self, lease: Lease, prefix: str) -> bool:
        """Whether a lease may be that of a trial, or of a grant that was issued without its lease being known."""
        return any(began - CLOCK_SKEW <= lease.issue_time for began, _ in self.trials) or any(
            grant.intended_at - CLOCK_SKEW <= lease.issue_time <= grant.issued_at + CLOCK_SKEW
            for grant, _ in self.grants
            if grant.lease_id is None and grant.issued_at is not None and grant.lease_prefix.strip("/") == prefix
        )


class Reconciler:
    """Compares, once in ``every``.

    ``unreadable_after``: how long silence is no alarm. ``repeat``: after how long an alarm that lasts is said again.
    """

    def __init__(
        self,
        desk: Desk,
        *,
        every: timedelta = timedelta(minutes=1),
        unreadable_after: timedelta = timedelta(minutes=5),
        repeat: timedelta = timedelta(hours=1),
    ) -> None:
        self._desk = desk
        self._every = every
        self._unreadable_after = unreadable_after
        self._repeat = repeat
        self._holder = new_holder()
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Begin nothing further: the bot is being stopped. The next round is another bot's, or a later life's."""
        self._stopping.set()

    def tick(self, *, now: datetime) -> Round | None:
        """Make a round if one is due and nobody else makes it. Raises Unavailable when the database does not answer."""
        if not self._take(now):
            return None
        is_done = False
        try:
            made = self.round(now=now)
            is_done = True
        finally:
            self._give_back(is_done=is_done)
        return made

    def round(self, *, now: datetime) -> Round:
        """Look everywhere, once. Raises Unavailable when the database does not answer."""
        made = Round()
        since = self._since()
        # 1. What is on record, then what is there, then what is on record by now.
        before = self._record(now)
        sources = self._sources(before)
        there: dict[str, frozenset[str]] = {}
        made.seen.add((Kind.UNREADABLE, _VAULT))
        for prefix in sorted({source.prefix for source in sources if source.prefix}):
            try:
                there[prefix] = self._desk.vault.leases(prefix)
                made.seen |= {(Kind.LEASE, prefix), (Kind.UNREADABLE, prefix)}
            except VaultRefused as refused:
                self._unreadable(made, prefix, refused, since, now)
            except Unavailable as down:
                self._unreadable(made, _VAULT, down, since, now)  # all of it: nobody waits for its silence twice
                break
        # 2. Leases that nothing explains, and those on which Vault gave up.
        if strays := {prefix: left for prefix, ids in there.items() if (left := ids - before.leases)}:
            after = self._record(now)
            for prefix, left in strays.items():
                self._strays(made, prefix, sorted(left - after.leases), record=after, since=since, now=now)
        self._stuck(made, there, since, now)
        # 3. Grants whose credential is gone.
        for grant, state in before.grants:
            if allowed_roles(State(state), Action.LOSE):
                self._judge(made, grant, there, now)
        # 4. Names at the targets. Last: whoever lost a lease above is gone there by now.
        self._targets(made, sources, before, since, now)
        self._write_down(made, now)
        return made

    # ------------------------------------------------------------------------------------ what is on record

    def _record(self, now: datetime) -> _Record:
        query = (
            select(Grant, Request.state)
            .join(Request, col(Request.id) == Grant.request_id)
            .where(col(Grant.ended_at).is_(None))
        )
        trials = select(Entry).where(Entry.event == TRY, col(Entry.at) > now - LIFE - _SLACK)
        with database_errors(), self._desk.database.read() as session:
            return _Record(
                [(grant, state) for grant, state in session.exec(query)],
                [(entry.at, _name(entry)) for entry in session.exec(trials)],
            )

    def _sources(self, record: _Record) -> list[_Source]:
        """Return the levels in force, and what open grants still have of earlier ones, each once."""
        levels = [
            (level.settings.engine, level.settings.options)
            for account in self._desk.policy.accounts.values()
            for level in account.levels.values()
        ]
        found: dict[tuple[str, frozenset[tuple[str, str]]], _Source] = {}
        for engine, options in (*levels, *((grant.engine, grant.options) for grant, _ in record.grants)):
            key = (engine, frozenset(options.items()))
            if key not in found:
                source = ENGINES[engine]
                prefix, target = source.lease_prefix(options).strip("/"), target_of(options, source.path(options))
                found[key] = _Source(engine, options, prefix, target)
        return list(found.values())

    def _since(self) -> dict[str, datetime]:
        """Return since when each thing that was seen before is known."""
        with database_errors(), self._desk.database.read() as session:
            return {row.key: row.seen_at for row in session.exec(select(Alarm))}

    # ------------------------------------------------------------------------------------ looking

    def _unreadable(
        self, made: Round, place: str, error: Unavailable | VaultRefused, since: Mapping[str, datetime], now: datetime
    ) -> None:
        found = Found(Kind.UNREADABLE, place, "")
        lasted = now - since.get(found.key, now)
        made.seen.add((Kind.UNREADABLE, place))
        made.found.append(
            Found(Kind.UNREADABLE, place, "", is_ripe=lasted >= self._unreadable_after, why=error.sentence)
        )

    def _strays(
        self, made: Round, prefix: str, ids: list[str], *, record: _Record, since: Mapping[str, datetime], now: datetime
    ) -> None:
        """Revoke what nothing explains and is no opening any more."""
        longest = self._desk.longest_opening
        is_down = ""
        for lease_id in ids[:_AT_ONCE]:
            if self._stopping.is_set():
                made.seen.discard((Kind.LEASE, prefix))
                return
            found = Found(Kind.LEASE, prefix, lease_id)
            try:
                lease = self._desk.vault.lease(lease_id)
                if lease is None:
                    continue
            except _NO as error:
                made.seen.discard((Kind.LEASE, prefix))
                log.warning("%s could not be looked up: %s", lease_id, error.sentence)
                return
            # By our own clock, from when it was first seen; or by Vault's, whose may differ.
            is_old = now - since.get(found.key, now) >= longest or now - lease.issue_time >= longest + CLOCK_SKEW
            if not is_old or record.may_explain(lease, prefix):
                made.found.append(Found(Kind.LEASE, prefix, lease_id, is_ripe=False))
                continue
            is_down = is_down or self._revoke(lease_id)
            made.found.append(Found(Kind.LEASE, prefix, lease_id, revoked=not is_down, why=is_down))
        if len(ids) > _AT_ONCE:
            made.seen.discard((Kind.LEASE, prefix))  # not all was looked at: nothing is called gone

    def _stuck(
        self, made: Round, there: Mapping[str, frozenset[str]], since: Mapping[str, datetime], now: datetime
    ) -> None:
        if not there:
            return
        try:
            stuck = self._desk.vault.irrevocable()
        except _NO as error:
            self._unreadable(made, _STUCK, error, since, now)
            return
        made.seen.add((Kind.UNREADABLE, _STUCK))
        for prefix in there:
            made.seen.add((Kind.STUCK, prefix))
            is_down = ""
            for lease_id in sorted(one for one in stuck if one.startswith(f"{prefix}/"))[:_AT_ONCE]:
                is_down = is_down or self._revoke(lease_id)
                made.found.append(Found(Kind.STUCK, prefix, lease_id, revoked=not is_down, why=is_down))

    def _revoke(self, lease_id: str) -> str:
        """Revoke and see it gone; return why not, else nothing."""
        vault = self._desk.vault
        try:
            vault.revoke_lease(lease_id, sync=True)
            # Vault answers the same for a lease that it does not know.
            return "" if vault.lease(lease_id) is None else "Vault still has the lease."
        except _NO as error:
            why = error.sentence
        try:
            vault.revoke_lease(lease_id, sync=False)  # what failed is not queued by itself
        except _NO as error:
            log.warning("%s could not be put up for revocation: %s", lease_id, error.sentence)
        return why

    def _judge(self, made: Round, grant: Grant, there: Mapping[str, frozenset[str]], now: datetime) -> None:
        """End the request when Vault has shown that what it has out is gone before its time."""
        if grant.issued_at is None or grant.accessor is None or (grant.expires_at or now) <= now + _SLACK:
            return
        vault = self._desk.vault
        try:
            if grant.lease_id is not None:
                ids = there.get(grant.lease_prefix.strip("/"))
                if ids is None or grant.lease_id in ids or vault.lease(grant.lease_id) is not None:
                    return
            is_token_gone = vault.accessor_is_gone(grant.accessor)
        except _NO:
            return
        if grant.lease_id is None and not is_token_gone:
            return
        what = "lease" if not is_token_gone else "token and its lease" if grant.lease_id else "token"
        with self._desk.turn(grant.request_id, now=now) as turn:
            live = next((g for g in turn.grants() if g.ended_at is None), None)
            if live is None or live.number != grant.number or not allowed_roles(turn.state, Action.LOSE):
                return
            if _is_being_replaced(turn, grant.number) or live.unopened_at is not None:
                return  # it was taken back by ourselves, for a fresh one or unopened: nothing is lost
            data = {"credential": grant.number, "path": grant.path, "lease": grant.lease_id, "gone": what}
            turn.move(Action.LOSE, data=data, due_at=now, ended_by="lost")
        made.lost.append(grant.request_id)

    def _targets(
        self, made: Round, sources: Iterable[_Source], before: _Record, since: Mapping[str, datetime], now: datetime
    ) -> None:
        names: dict[str, set[str]] = defaultdict(set)
        failed: dict[str, Unavailable | VaultRefused] = {}
        for source in sources:
            if self._stopping.is_set():
                return
            if source.target in failed:
                continue  # the levels of one target: one long wait is enough
            try:
                names[source.target] |= ENGINES[source.engine].identities(self._desk.vault, source.options)
            except _NO as error:
                failed[source.target] = error
            except Exception:
                # The other targets must have their turn, and this one must not look as if nothing were there.
                log.exception("%s could not be looked at", source.target)
                failed[source.target] = Unavailable("An unexpected error; see the bot's log file.")
        for target, failure in failed.items():
            self._unreadable(made, target, failure, since, now)
        unexplained = {
            target: [name for name in sorted(marked) if not before.explains(name)]
            for target, marked in names.items()
            if target not in failed
        }
        after = self._record(now) if any(unexplained.values()) else before
        for target, marked in unexplained.items():
            made.seen |= {(Kind.IDENTITY, target), (Kind.UNREADABLE, target)}
            for name in marked:
                if after.explains(name):
                    continue
                found = Found(Kind.IDENTITY, target, name)
                # A self-test, or a revocation that is under way, is there for a moment.
                is_ripe = now - since.get(found.key, now) >= self._desk.longest_opening
                made.found.append(Found(Kind.IDENTITY, target, name, is_ripe=is_ripe))

    # ------------------------------------------------------------------------------------ saying

    def _write_down(self, made: Round, now: datetime) -> None:
        """Remember what was seen, and say what is to be said: judged by the rows as they are under the lock."""
        found = {one.key: one for one in made.found}
        with database_errors(), self._desk.database.write() as session:
            rows = {row.key: row for row in session.exec(select(Alarm))}
            if not found and not rows:
                return
            told: dict[tuple[Kind, str, bool | None, str], list[str]] = defaultdict(list)
            cleared: dict[tuple[Kind, str], list[str]] = defaultdict(list)
            for key, one in found.items():
                row = rows.get(key)
                if row is None:
                    row = Alarm(key=key, kind=one.kind, place=one.place, name=one.name, seen_at=now)
                is_due = one.is_ripe and (row.said_at is None or now - row.said_at >= self._repeat)
                if is_due:
                    told[one.kind, one.place, one.revoked, one.why].append(one.name)
                    row.said_at = now
                if not one.revoked:
                    session.add(row)
                elif key in rows:
                    session.delete(row)
                    if not is_due:  # said to be out by an earlier round
                        cleared[one.kind, one.place].append(one.name)
            for key, row in rows.items():
                if key in found or (Kind(row.kind), row.place) not in made.seen:
                    continue
                if row.said_at is not None:
                    cleared[Kind(row.kind), row.place].append(row.name)
                session.delete(row)
            seen_at = {key: row.seen_at for key, row in rows.items()}
            session.flush()
            for (kind, place, revoked, why), names in told.items():
                data = _told(kind, place, names)
                if revoked is not None:
                    data["revoked"] = revoked
                if why:
                    data["why"] = why
                if kind is Kind.UNREADABLE:
                    lasted = now - seen_at.get(Found(kind, place, "").key, now)
                    data["seconds"] = int(lasted.total_seconds())
                log.error("ALARM: %s", data)
                append(session, event=ALARM, at=now, actor=SYSTEM, data=data)
            for (kind, place), names in cleared.items():
                append(session, event=CLEAR, at=now, actor=SYSTEM, data=_told(kind, place, names))

    # ------------------------------------------------------------------------------------ whose turn it is

    def _take(self, now: datetime) -> bool:
        with database_errors(), self._desk.database.read() as session:
            if not _is_free(session.get(Feed, CLAIM), now):
                return False
        with database_errors(), self._desk.database.write() as session:
            row = session.get(Feed, CLAIM)
            if not _is_free(row, now):
                return False
            row = row or Feed(follower=CLAIM[0], request_id=CLAIM[1], seq=-1)
            row.holder, row.held_until, row.retry_at = self._holder, now + _HOLD, now + self._every
            row.failures += 1  # until it is done: a bot that dies in each round must show
            session.add(row)
        return True

    def _give_back(self, *, is_done: bool) -> None:
        with database_errors(), self._desk.database.write() as session:
            row = session.get(Feed, CLAIM)
            if row is not None and row.holder == self._holder:
                row.holder, row.held_until = None, None
                row.failures = 0 if is_done else row.failures
                session.add(row)


def _is_free(row: Feed | None, now: datetime) -> bool:
    """Whether a round is due and nobody makes it."""
    if row is None:
        return True
    return not is_held(row, now) and (row.retry_at is None or row.retry_at <= now)


def _name(entry: Entry) -> str:
    """Return the name of a trial, as its credential is named."""
    try:
        return str(parse(entry.body or b"").data["name"])
    except (ValueError, KeyError):
        return "check-"


def _is_being_replaced(turn: Turn, number: int) -> bool:
    """Whether the newest thing that was asked for is a fresh credential in place of this one."""
    asked = [
        record.data.get("replaces")
        for record in read_entries(turn.session, request_id=turn.row.id)
        if record.event == Action.REVEAL and record.refused is None
    ]
    return bool(asked) and asked[-1] == number


def _told(kind: Kind, place: str, names: list[str]) -> dict[str, Any]:
    data: dict[str, Any] = {"kind": kind.value, "place": place}
    if kind is not Kind.UNREADABLE:
        data |= {"count": len(names), "names": sorted(names)[:_TOLD]}
    return data
