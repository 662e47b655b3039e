"""How does a credential come to be, and how is it known to be gone?

Rules
-----
* Nothing is made before every required copy of the log has acknowledged what led to it (``holding.py``). An intent that
  is given up there never had anything at Vault. An end never waits.
* The order is: intent, child token, its accessor, the credential, its lease; each is on record before the next call.
  A child token that nobody knows of holds no credential, and one whose accessor is on record can be ended by anybody,
  so a crash at any point leaves nothing alive that the next tick does not find.
* Where custodians hold a level with keys of their own (``control_group.py``), the credential comes when Vault says, and
  the bot has counted, that enough of them authorised it. Its time runs from its token's making, so that waiting for
  them never makes it longer; they have half of it, and as long as an approval may wait to be opened, at the most.
* One request has one credential at the most: "show again" sees the old one gone before it makes the new one.
* The secret goes from Vault to the caller of :meth:`Issuer.issue` and nowhere else. Where the level's delivery is not
  ``modal`` not even there: what is passed on is a token that gives it out once (``delivery.py``).
* ``ended`` is written only after Vault says that the lease is gone; until then the state is ``ending``.
* All of it is safe twice, late and in parallel: revoking is idempotent, and the record of it is a compare-and-set.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlmodel import col, select

from storage.audit import parse
from storage.models import CaptureUse, Entry, Grant, Request, State
from workflows.capture_rules import Need
from workflows.capture_watch import new_use, silent_since, tell_down
from workflows.control_group import Keys, Question
from workflows.delivery import CERTAIN_FOR, LOOK_EVERY, OPEN_WITHIN, WRAP_TTL, Delivery, Parcel
from workflows.engines import ENGINES, Credential, Wish
from workflows.engines.naming import mark_of
from workflows.engines.seam import Exclusive
from workflows.errors import BreakGlassError, Conflict, Unavailable, VaultRefused
from workflows.holding import OUT, Holding
from workflows.lifecycle import Action, allowed_roles

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from storage.database import Database
    from workflows.door import Case, Turn
    from workflows.engines import LevelSettings
    from workflows.holding import Acknowledged, Intent
    from workflows.policy import Level, Policy
    from workflows.vault import ChildToken, Vault, Wrapped

log = logging.getLogger(__name__)

WARN_BEFORE: Final = timedelta(minutes=2)
BACK_OFF: Final = tuple(timedelta(seconds=s) for s in (2, 5, 10, 20, 40, 80, 160, 300))
_CONFIRM_TRIES: Final = 40
_CONFIRM_PAUSE: Final = 0.05  # seconds; Vault takes a lease back within about 0.1 s of its token's end
_FIND_TRIES: Final = 10
_FIND_PAUSE: Final = 0.05  # seconds, in which others who issue at the same moment put their leases on record


class Issuer(Holding):
    """The outside effects. ``patience`` is how long an issue may take before anybody may clean up after it.

    ``public_address`` is where responders reach Vault, when that is not where the bot does.
    """

    def __init__(
        self,
        database: Database,
        policy: Policy,
        vault: Vault,
        *,
        patience: timedelta,
        required: Acknowledged | None = None,
        public_address: str = "",
    ) -> None:
        super().__init__(database, required)
        self.policy = policy
        self.vault = vault
        self.patience = patience
        self._public_address = public_address
        self._wrapping = threading.Lock()

    @property
    def longest_opening(self) -> timedelta:
        """How long it may take until a credential appears or is given up."""
        return self.patience + self.required.within

    def issue(
        self,
        intent: Intent,
        *,
        now: datetime,
        held: Callable[[tuple[str, ...]], None] | None = None,
        asked: Callable[[Question], None] | None = None,
    ) -> Credential | Parcel:
        """Carry out an intent and return the credential: the only place where the secret passes.

        Where the level's delivery is not ``modal`` it does not pass here either: a parcel comes back.
        ``held`` is called, once, with the names of the required copies that are waited for, if it comes to that;
        ``asked`` with what custodians are asked to authorise with keys of their own, where a level needs that.
        Raises :class:`Unavailable` when Vault, a required copy or a custodian does not answer (press again),
        :class:`VaultRefused` when Vault says no for good (a first credential's request is then ``failed``),
        :class:`Conflict` when the request ended meanwhile. In each case whatever had been made is ended, now or by the
        tick.
        """
        # 1. What led here stands outside, out of the reach of whoever runs the bot.
        began = time.monotonic()
        try:
            now = self._hold(intent, held, now)
        except BreakGlassError as error:
            self._undo(intent, None, error, now + timedelta(seconds=time.monotonic() - began))
            raise
        child: ChildToken | None = None
        try:
            # 2. "Show again" ends the old credential first: never two at once.
            if intent.replaces is not None:
                self._replace(intent, now)
            row = self.row(intent.request_id)
            level = self._level(row)
            settings = level.settings
            # 3. A child token of its own. It holds nothing yet, and lives as long as the grant at the most.
            ttl = intent.ttl if row.expires_at is None else min(intent.ttl, row.expires_at - now)
            child = self.vault.open_child(
                settings.token_role,
                ttl,
                # With the number: what is ended by this name at the target must not end the next one.
                display_name=f"{row.id}-{intent.number}",
                metadata={"request": row.id, "requester": row.requester, "account": row.account, "level": row.level},
            )
            # 4. Its accessor is on record before anything is read with it.
            with self.turn(intent.request_id, now=now) as turn:
                grant = _intended(turn, intent)
                grant.accessor, grant.accessor_at = child.accessor, now
                turn.session.add(grant)
                turn.move(Action.OPENED, data=_told(grant))
            # 5. and 6. unseen by the bot.
            if level.delivery is not Delivery.MODAL:
                return self._wrap(intent, child, level, now)
            # 5. The credential itself.
            engine = ENGINES[settings.engine]
            ends, authorised_by = now + ttl, None
            wish = Wish(row.id, row.requester, row.public_key)
            if level.control is None:
                credential = engine.issue(self.vault, child, settings.options, wish)
            else:
                keys = Keys(self, intent, control=level.control, most=ttl / 2, asked=asked, now=now)
                try:
                    credential = engine.issue(self.vault, replace(child, release=keys.wait), settings.options, wish)
                finally:
                    now = keys.now()  # custodians took their time
                authorised_by = keys.authorised_by
            # 6. Only a credential that is on record is shown.
            with self.turn(intent.request_id, now=now) as turn:
                grant = _intended(turn, intent)
                grant.lease_id, grant.identity = credential.lease_id, credential.username
                _issued(turn, grant, turn.row.expires_at or ends, authorised_by)
                self._recorded(turn, grant)
        except BreakGlassError as error:
            self._undo(intent, child, error, now)
            raise
        return credential

    def _wrap(self, intent: Intent, child: ChildToken, level: Level, now: datetime) -> Parcel:
        """Have the credential made behind a token that gives it out once; its lease is on record all the same."""
        settings, row = level.settings, self.row(intent.request_id)
        engine = ENGINES[settings.engine]
        # One after the other, so that of the leases of this moment only one can be its own.
        with self._wrapping:
            wrapped = self.vault.wrap_as(child, engine.path(settings.options), WRAP_TTL)
            try:
                lease_id = self._lease_behind(wrapped, engine.lease_prefix(settings.options))
                identity = self._identity_behind(row.id, settings)
                with self.turn(intent.request_id, now=now) as turn:
                    grant = _intended(turn, intent)
                    grant.lease_id, grant.identity = lease_id, identity
                    grant.delivery, grant.wrap_accessor = level.delivery.value, wrapped.accessor
                    grant.open_until = now + OPEN_WITHIN
                    ends_at = turn.row.expires_at or now + intent.ttl
                    _issued(turn, grant, ends_at)
                    self._recorded(turn, grant)
            except BreakGlassError:
                self.vault.revoke_accessor(wrapped.accessor)
                raise
        return Parcel(
            request_id=row.id,
            way=level.delivery,
            address=self._public_address or self.vault.address,
            namespace=self.vault.namespace,
            token=wrapped.token,
            path=wrapped.creation_path,
            engine=settings.engine,
            options=settings.options,
            until=now + OPEN_WITHIN,
            ends_at=ends_at,
            username=identity,
        )

    def _lease_behind(self, wrapped: Wrapped, prefix: str) -> str:
        """Return the lease of what was just wrapped: the answer hides it.

        It is the one on nobody's record that was made, by Vault's clock, while Vault was asked. Without it the end
        could not be confirmed while others of the level are out. Raises :class:`Unavailable` when two may be it.
        """
        for attempt in range(_FIND_TRIES):
            if attempt:
                time.sleep(_FIND_PAUSE)
            with self._read() as session:
                recorded = select(Grant.lease_id).where(Grant.lease_prefix == prefix, col(Grant.lease_id).is_not(None))
                known = frozenset(session.exec(recorded))
            made = [self.vault.lease(lease_id) for lease_id in self.vault.leases(prefix) - known]
            began = wrapped.made_at - wrapped.took
            own = [one.lease_id for one in made if one is not None and began <= one.issue_time <= wrapped.made_at]
            if len(own) == 1:
                return own[0]
        raise Unavailable("Several credentials were made at the same moment. Press the button again.")

    def _identity_behind(self, request_id: str, settings: LevelSettings) -> str | None:
        """Return the name at the target, where the bot can look there and finds exactly one of the request's."""
        engine = ENGINES[settings.engine]
        try:
            names = engine.identities(self.vault, settings.options)
        except (Unavailable, VaultRefused) as error:
            log.warning("%s: the name at its target is not known: %s", request_id, error.reason)
            return None
        is_shared = isinstance(engine, Exclusive)  # and then not named after a request
        own = [name for name in names if is_shared or name.startswith(mark_of(request_id))]
        return own[0] if len(own) == 1 else None

    def watch(self, request_id: str, *, now: datetime) -> None:
        """See whether a credential that was handed out unseen was opened; take it back when nobody did in its time.

        Raises Unavailable, VaultRefused.
        """
        for grant in self.case(request_id).grants:
            if is_unopened(grant):
                self._look(grant, now)
            if grant.unopened_at is not None and grant.ended_at is None:
                self._take_back_unopened(grant, now)

    def _look(self, grant: Grant, now: datetime) -> None:
        accessor, until = grant.wrap_accessor or "", grant.open_until or now
        if now < until:
            if not self.vault.accessor_is_gone(accessor):
                return
            was_unused = False
        else:
            # In one step, so that nobody opens it in between.
            was_unused = self.vault.end_accessor(accessor)
        action = Action.UNOPENED if was_unused else Action.UNWRAP
        with self.turn(grant.request_id, now=now) as turn:
            seen = next(g for g in turn.grants() if g.number == grant.number)
            if not is_unopened(seen) or not allowed_roles(turn.state, action):
                return
            if was_unused:
                seen.unopened_at = grant.unopened_at = now
            else:
                seen.opened_at = now
            turn.session.add(seen)
            # After the bot was away for a while it may have run out by itself, and "gone" alone does not say.
            is_sure = None if was_unused else now <= until + CERTAIN_FOR
            turn.move(action, data=_told(seen, is_sure=is_sure))

    def _take_back_unopened(self, seen: Grant, now: datetime) -> None:
        if not self._take_back(seen):
            return
        with self.turn(seen.request_id, now=now) as turn:
            grant = next(g for g in turn.grants() if g.number == seen.number)
            if grant.ended_at is None and allowed_roles(turn.state, Action.ABANDON):
                turn.close(grant)
                turn.move(Action.ABANDON, data=_told(grant, why="nobody opened it in its time", lease=grant.lease_id))

    def finish(self, request_id: str, *, now: datetime) -> bool:
        """End what a request in ``ending`` has out, and say whether it has ended. Harmless in any other state.

        While Vault or the target is down the state stays, custodians are paged with back-off, and the tick tries again.
        """
        case = self.case(request_id)
        if case.state is not State.ENDING:
            return case.state in (State.ENDED, State.REVIEWED)
        why = "Vault has not confirmed yet that the lease is gone."
        began = time.monotonic()
        shown: list[str] = []
        try:
            gone = all(self._take_back(grant, shown) for grant in case.grants if grant.ended_at is None)
        except (Unavailable, VaultRefused) as error:
            gone, why = False, error.sentence
        lag = now - case.request.state_at + timedelta(seconds=time.monotonic() - began)
        with self.turn(request_id, now=now) as turn:
            row = turn.row
            if row.version != case.request.version:
                return turn.state in (State.ENDED, State.REVIEWED)  # another bot was quicker
            if not gone:
                wait = BACK_OFF[min(row.attempts, len(BACK_OFF) - 1)]
                turn.move(
                    Action.ESCALATE,
                    data={
                        "attempt": row.attempts + 1,
                        "why": why,
                        "at": sorted({target_of(g.options, g.path) for g in case.grants if g.ended_at is None}),
                        "next_try_at": now + wait,
                        "decided_at": row.state_at,
                    },
                    attempts=row.attempts + 1,
                    due_at=now + wait,
                )
                return False
            for grant in turn.grants():
                if grant.ended_at is None:
                    turn.close(grant)
            review_due_at = now + self.policy.review_within
            turn.move(
                Action.END,
                data={
                    "ended_by": row.ended_by,
                    "leases": [g.lease_id for g in case.grants if g.lease_id],
                    "accessors_sha256": [_sha256(g.accessor) for g in case.grants if g.accessor],
                    "decided_at": row.state_at,
                    "seconds_out": _seconds_out(case, now),
                    # For how long after the decision something of it may still have been there: at most so long.
                    "exposed_seconds": -(-lag // timedelta(seconds=1)) if any(g.issued_at for g in case.grants) else 0,
                    # What was seen at the target itself, and how long after the decision; nothing: nobody can look.
                    "shown": shown,
                    "shown_after_ms": lag // timedelta(milliseconds=1) if shown else None,
                    "review_due_at": review_due_at,
                },
                review_due_at=review_due_at,
                due_at=now,  # it gets an owner (``reviewing.py``): an end must not wait for Slack
                attempts=0,
            )
            return True

    def drop(self, intent: Intent, *, now: datetime) -> None:
        """Give an intent up that :meth:`issue` was not asked to carry out: there is nowhere to show it."""
        self._undo(intent, None, Conflict("no window could be opened to show it in"), now)

    def abandon(self, request_id: str, *, now: datetime) -> None:
        """End a credential whose issue was begun and not finished within ``patience`` (a crash, a hang)."""
        for grant in self.case(request_id).grants:
            if grant.ended_at is not None or grant.issued_at is not None or grant.intended_at + self.patience > now:
                continue
            if self._given_up_at(grant) <= now:
                self._abandon(grant, "the bot stopped while it was being opened", now)

    def _given_up_at(self, grant: Grant) -> datetime:
        """When whoever began to open it must be dead, or hangs."""
        query = select(Entry).where(
            Entry.request_id == grant.request_id, Entry.event == Action.HOLD.value, col(Entry.at) >= grant.intended_at
        )
        with self._read() as session:
            last = session.exec(query.order_by(col(Entry.seq).desc()).limit(1)).first()
        if last is None:
            return grant.intended_at + self.patience
        until = parse(last.body or b"").data.get("authorise_until")
        if isinstance(until, str):
            return datetime.fromisoformat(until) + self.patience
        return (grant.accessor_at or grant.intended_at + self.required.within) + self.patience

    def new_grant(self, row: Request, number: int, now: datetime) -> Grant:
        """Return the row of a credential that is about to be made."""
        level = self._level(row)
        settings = level.settings
        engine = ENGINES[settings.engine]
        return Grant(
            request_id=row.id,
            number=number,
            engine=settings.engine,
            path=engine.path(settings.options),
            lease_prefix=engine.lease_prefix(settings.options),
            options=dict(settings.options),
            intended_at=now,
            capture_source=level.capture_source,
        )

    def must_be_alone(self, turn: Turn) -> None:
        """Refuse a first credential of something that another request has, or may still have.

        Asked in the transaction that records the intent: of two clicks at once the second sees the first.
        """
        settings = self._level(turn.row).settings
        engine = ENGINES[settings.engine]
        if not isinstance(engine, Exclusive):
            return
        wanted = engine.alone(settings.options)
        out = turn.session.exec(
            select(Grant).where(Grant.engine == settings.engine, col(Grant.ended_at).is_(None)).order_by(col(Grant.id))
        )
        for grant in out:
            if grant.request_id != turn.row.id and engine.alone(grant.options) == wanted:
                raise Conflict(
                    f"{grant.request_id} has {wanted}, and only one request can have it at a time. Press the button "
                    f"again when {grant.request_id} has ended.",
                    code="in_use",
                )

    def must_be_recorded(self, turn: Turn) -> None:
        """Refuse a credential of a level that demands a record while nothing is heard of the source that keeps it."""
        level = self._level(turn.row)
        if level.capture is not Need.REQUIRED:
            return
        source = self.policy.captures.get(level.capture_source or "")
        if source is None or silent_since(turn.session, source, turn.now) is not None:
            raise Conflict(
                "What is done with this access must be recorded, and nothing is heard of "
                f"{level.capture_source}, which would record it. No credential was made. "
                "Have that mended, then press the button again.",
                code="not_recorded",
            )

    def _recorded(self, turn: Turn, grant: Grant) -> None:
        """From the issue on a source is expected to record it; if nothing is heard of it, say so."""
        source = self.policy.captures.get(grant.capture_source or "")
        if source is None:
            return
        use = turn.session.get(CaptureUse, (grant.request_id, source.name))
        since = silent_since(turn.session, source, turn.now)
        if use is None:
            use = new_use(grant.request_id, source.name, turn.now)
        use.blind = use.blind or since is not None
        turn.session.add(use)
        if since is not None:
            tell_down(turn.session, use, since, now=turn.now)

    def _level(self, row: Request) -> Level:
        account = self.policy.accounts.get(row.account)
        level = account.levels.get(row.level) if account else None
        if level is None:
            raise VaultRefused(f"The policy no longer has the account and level of {row.id}; ask its owner.")
        return level

    def _replace(self, intent: Intent, now: datetime) -> None:
        old = next(g for g in self.case(intent.request_id).grants if g.number == intent.replaces)
        if is_unopened(old):
            self._look(old, now)  # whether somebody had opened it cannot be seen afterwards
        if not self._take_back(old):
            raise Unavailable(
                "The earlier credential is still being taken back, and there is never more than one. Try again soon."
            )
        with self.turn(intent.request_id, now=now) as turn:
            grants = turn.grants()
            if any(g.number >= intent.number for g in grants):
                raise Conflict(
                    f"A fresh credential of {turn.row.id} was opened meanwhile. Look at the newest message.",
                    code="raced",
                )
            turn.close(next(g for g in grants if g.number == intent.replaces))
            turn.session.add(self.new_grant(turn.row, intent.number, now))
            turn.move(
                Action.ABANDON,
                data=_told(old, why="replaced by a fresh one", lease=old.lease_id),
                due_at=_earliest(turn.row.due_at, now + self.patience),
            )

    def _take_back(self, grant: Grant, shown: list[str] | None = None, *, unread: bool = False) -> bool:
        """Revoke at Vault and say whether nothing is left there, nor at the target, where that can be looked at.

        What was seen at the target is added to ``shown``. ``unread``: Vault refused to give the credential. Raises
        :class:`Unavailable` when Vault or the target does not answer, or when something is left at the target.
        """
        if grant.accessor is None:
            return True  # nothing is ever read with a token whose accessor is not on record: step 4 of issue()
        engine = ENGINES[grant.engine]
        self.vault.revoke_accessor(grant.accessor)
        if grant.wrap_accessor is not None:
            self.vault.revoke_accessor(grant.wrap_accessor)  # it would give out what opens nothing any more
        if unread and self.vault.accessor_is_gone(grant.accessor):
            return True
        known = self._leases_of_others(grant)
        for attempt in range(_CONFIRM_TRIES):
            if engine.is_gone(self.vault, grant, known):
                try:
                    seen = engine.prove(self.vault, grant)
                except Unavailable as error:
                    # What is left at the target may be on its way out.
                    if error.reason != "left" or attempt == _CONFIRM_TRIES - 1:
                        raise
                    time.sleep(_CONFIRM_PAUSE)
                    continue
                if shown is not None:
                    shown.extend(seen)
                return True
            if attempt == 1:
                engine.hurry(self.vault, grant)
            time.sleep(_CONFIRM_PAUSE)
        return False

    def _undo(self, intent: Intent, child: ChildToken | None, error: BreakGlassError, now: datetime) -> None:
        """After a failed issue, end what was made; what cannot be ended now is on record, for the tick."""
        try:
            if child is not None:
                # Also when its accessor could not be recorded: then nobody else can find it.
                self.vault.revoke_accessor(child.accessor)
            for grant in self.case(intent.request_id).grants:
                if grant.number == intent.number and grant.ended_at is None:
                    self._abandon(grant, error.sentence, now, failed=isinstance(error, VaultRefused))
        except BreakGlassError as second:
            log.warning("%s: cleaning up is left to the tick: %s", intent.request_id, second.reason)

    def _abandon(self, seen: Grant, why: str, now: datetime, *, failed: bool = False) -> None:
        if not self._take_back(seen, unread=failed):
            return
        with self.turn(seen.request_id, now=now) as turn:
            grant = next(g for g in turn.grants() if g.number == seen.number)
            if grant.ended_at or grant.issued_at or turn.state not in OUT:
                return  # finished, or finish() has it
            if grant.accessor != seen.accessor:
                return  # its token came on record after we looked: the next tick ends that one
            turn.close(grant)
            if failed and turn.state is State.APPROVED:
                turn.move(Action.FAIL, data=_told(grant, why=why), ended_by="fail", due_at=None)
            else:
                turn.move(Action.ABANDON, data=_told(grant, why=why))

    def _leases_of_others(self, grant: Grant) -> frozenset[str]:
        query = select(Grant.lease_id).where(
            Grant.lease_prefix == grant.lease_prefix, Grant.id != grant.id, col(Grant.lease_id).is_not(None)
        )
        with self._read() as session:
            return frozenset(lease for lease in session.exec(query) if lease is not None)


def target_of(options: Mapping[str, str], path: str) -> str:
    """Return how people call what a credential opens: its address, else its path in Vault."""
    host, port = options.get("host"), options.get("port")
    if host:
        return f"{host}:{port}" if port else host
    return options.get("server") or options.get("address") or path


def _intended(turn: Turn, intent: Intent) -> Grant:
    """Return the grant of an intent, or refuse: somebody cleaned up after us because we took too long."""
    grant = next((g for g in turn.grants() if g.number == intent.number), None)
    if grant is None or grant.ended_at is not None:
        raise Conflict(f"Opening {intent.request_id} took too long. Press the button again.", code="too_slow")
    return grant


def _issued(turn: Turn, grant: Grant, expires: datetime, authorised_by: list[str] | None = None) -> None:
    """Put on record that a credential is out. What is known of it stands in the row."""
    now = turn.now
    grant.issued_at, grant.expires_at = now, expires
    turn.session.add(grant)
    told = _told(
        grant,
        lease=grant.lease_id,
        identity=grant.identity,
        # Another request had, or will have, the same name: it says nothing without the time.
        identity_is_shared=isinstance(ENGINES[grant.engine], Exclusive) or None,
        expires_at=expires,
        authorised_by=authorised_by,
        delivery=grant.delivery,
        open_until=grant.open_until,
        capture_source=grant.capture_source,
        wrapping_accessor_sha256=_sha256(grant.wrap_accessor) if grant.wrap_accessor else None,
    )
    turn.move(
        # Not by ``replaces``: the one before may have ended in a "show again" that came to nothing.
        Action.ISSUE if allowed_roles(turn.state, Action.ISSUE) else Action.REISSUE,
        data=told,
        expires_at=expires,
        lapse_at=None,
        due_at=next_look(grant, expires if turn.row.warned_at else max(now, expires - WARN_BEFORE), now),
    )


def next_look(live: Grant | None, due: datetime | None, now: datetime) -> datetime | None:
    """Return when the tick must look at a request again: when it is due, or soon if a credential waits to be opened."""
    is_watched = live is not None and (is_unopened(live) or live.unopened_at is not None)
    return _earliest(due, now + LOOK_EVERY) if is_watched else due


def is_unopened(grant: Grant) -> bool:
    """Whether it is out, unseen, and nobody was seen to have opened it."""
    is_settled = grant.ended_at or grant.opened_at or grant.unopened_at
    return grant.wrap_accessor is not None and grant.issued_at is not None and not is_settled


def _earliest(first: datetime | None, second: datetime) -> datetime:
    return second if first is None else min(first, second)


def _told(grant: Grant, **facts: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON values
    """Return what can be told of a credential; of the accessor, by which it can be ended, only the hash."""
    if grant.accessor is not None:
        facts["accessor_sha256"] = _sha256(grant.accessor)
    return {"credential": grant.number, "path": grant.path, **facts}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _seconds_out(case: Case, now: datetime) -> int:
    """Return for how long a credential of this request existed."""
    issued = [g.issued_at for g in case.grants if g.issued_at is not None]
    return int((now - min(issued)).total_seconds()) if issued else 0
