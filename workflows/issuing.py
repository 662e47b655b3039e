"""How does a credential come to be, and how is it known to be gone?

Rules
-----
* The order is: intent, child token, its accessor, the credential, its lease; each is on record before the next call.
  A child token that nobody knows of holds no credential, and one whose accessor is on record can be ended by anybody,
  so a crash at any point leaves nothing alive that the next tick does not find.
* One request has one credential at the most: "show again" sees the old one gone before it makes the new one.
* The secret goes from Vault to the caller of :meth:`Issuer.issue` and nowhere else.
* ``ended`` is written only after Vault says that the lease is gone; until then the state is ``ending``.
* All of it is safe twice, late and in parallel: revoking is idempotent, and the record of it is a compare-and-set.
"""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlmodel import col, select

from storage.models import Grant, Request, State
from workflows.door import Case, Door, Turn
from workflows.engines import ENGINES, Credential
from workflows.errors import BreakGlassError, Conflict, Unavailable, VaultRefused
from workflows.lifecycle import Action, allowed_roles

if TYPE_CHECKING:
    from storage.database import Database
    from workflows.policy import Level, Policy
    from workflows.vault import ChildToken, Vault

log = logging.getLogger(__name__)

WARN_BEFORE: Final = timedelta(minutes=2)
BACK_OFF: Final = tuple(timedelta(seconds=s) for s in (2, 5, 10, 20, 40, 80, 160, 300))
_CONFIRM_TRIES: Final = 40
_CONFIRM_PAUSE: Final = 0.05  # seconds; Vault takes a lease back within about 0.1 s of its token's end
_OUT: Final = (State.APPROVED, State.ACTIVE)


@dataclass(frozen=True, slots=True)
class Intent:
    """A recorded decision to issue credential ``number`` of a request; :meth:`Issuer.issue` carries it out."""

    request_id: str
    number: int
    replaces: int | None
    ttl: timedelta


class Issuer(Door):
    """The outside effects. ``patience`` is how long an issue may take before anybody may clean up after it."""

    def __init__(self, database: Database, policy: Policy, vault: Vault, *, patience: timedelta) -> None:
        super().__init__(database)
        self.policy = policy
        self.vault = vault
        self.patience = patience

    def issue(self, intent: Intent, *, now: datetime) -> Credential:
        """Carry out an intent and return the credential: the only place where the secret passes.

        Raises :class:`Unavailable` when Vault does not answer (press again), :class:`VaultRefused` when it says no for
        good (a first credential's request is then ``failed``), :class:`Conflict` when the request ended meanwhile. In
        each case whatever had been made is ended, now or by the tick.
        """
        child: ChildToken | None = None
        try:
            # 1. "Show again" ends the old credential first: never two at once.
            if intent.replaces is not None:
                self._replace(intent, now)
            row = self.case(intent.request_id).request
            settings = self._level(row).settings
            # 2. A child token of its own. It holds nothing yet, and lives as long as the grant at the most.
            child = self.vault.open_child(
                settings.token_role,
                intent.ttl,
                display_name=row.id,
                metadata={"request": row.id, "requester": row.requester, "account": row.account, "level": row.level},
            )
            # 3. Its accessor is on record before anything is read with it.
            with self.turn(intent.request_id, now=now) as turn:
                grant = _intended(turn, intent)
                grant.accessor, grant.accessor_at = child.accessor, now
                turn.session.add(grant)
                turn.move(Action.OPENED, data=_told(grant))
            # 4. The credential itself.
            credential = ENGINES[settings.engine].issue(self.vault, child, settings)
            # 5. Only a credential that is on record is shown.
            with self.turn(intent.request_id, now=now) as turn:
                grant = _intended(turn, intent)
                expires = turn.row.expires_at or now + intent.ttl
                grant.lease_id, grant.identity = credential.lease_id, credential.username
                grant.issued_at, grant.expires_at = now, expires
                turn.session.add(grant)
                turn.move(
                    # Not by ``replaces``: the one before may have ended in a "show again" that came to nothing.
                    Action.ISSUE if allowed_roles(turn.state, Action.ISSUE) else Action.REISSUE,
                    data=_told(grant, lease=grant.lease_id, identity=grant.identity, expires_at=expires),
                    expires_at=expires,
                    lapse_at=None,
                    due_at=expires if turn.row.warned_at else max(now, expires - WARN_BEFORE),
                )
        except BreakGlassError as error:
            self._undo(intent, child, error, now)
            raise
        return credential

    def finish(self, request_id: str, *, now: datetime) -> bool:
        """End what a request in ``ending`` has out, and say whether it has ended. Harmless in any other state.

        While Vault or the target is down the state stays, custodians are paged with back-off, and the tick tries again.
        """
        case = self.case(request_id)
        if case.state is not State.ENDING:
            return case.state in (State.ENDED, State.REVIEWED)
        why = "Vault has not confirmed yet that the lease is gone."
        try:
            gone = all(self._take_back(grant) for grant in case.grants if grant.ended_at is None)
        except (Unavailable, VaultRefused) as error:
            gone, why = False, error.sentence
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
                    "review_due_at": review_due_at,
                },
                review_due_at=review_due_at,
                due_at=review_due_at,
                attempts=0,
            )
            return True

    def abandon(self, request_id: str, *, now: datetime) -> None:
        """End a credential whose issue was begun and not finished within ``patience`` (a crash, a hang)."""
        for grant in self.case(request_id).grants:
            if grant.ended_at is None and grant.issued_at is None and grant.intended_at + self.patience <= now:
                self._abandon(grant, "the bot stopped while it was being opened", now)

    def new_grant(self, row: Request, number: int, now: datetime) -> Grant:
        """Return the row of a credential that is about to be made."""
        settings = self._level(row).settings
        engine = ENGINES[settings.engine]
        return Grant(
            request_id=row.id,
            number=number,
            engine=settings.engine,
            path=engine.path(settings),
            lease_prefix=engine.lease_prefix(settings),
            intended_at=now,
        )

    def _level(self, row: Request) -> Level:
        account = self.policy.accounts.get(row.account)
        level = account.levels.get(row.level) if account else None
        if level is None:
            raise VaultRefused(f"The policy no longer has the account and level of {row.id}; ask its owner.")
        return level

    def _replace(self, intent: Intent, now: datetime) -> None:
        old = next(g for g in self.case(intent.request_id).grants if g.number == intent.replaces)
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
            turn.move(Action.ABANDON, data=_told(old, why="replaced by a fresh one", lease=old.lease_id))

    def _take_back(self, grant: Grant, *, unread: bool = False) -> bool:
        """Revoke at Vault and say whether nothing is left. ``unread``: Vault refused to give the credential.

        Raises :class:`Unavailable` when Vault does not answer.
        """
        if grant.accessor is None:
            return True  # nothing is ever read with a token whose accessor is not on record: step 3 of issue()
        engine = ENGINES[grant.engine]
        self.vault.revoke_accessor(grant.accessor)
        if unread and self.vault.accessor_is_gone(grant.accessor):
            return True
        known = self._leases_of_others(grant)
        for attempt in range(_CONFIRM_TRIES):
            if engine.is_gone(self.vault, grant, known):
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
            if grant.ended_at or grant.issued_at or turn.state not in _OUT:
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


def _intended(turn: Turn, intent: Intent) -> Grant:
    """Return the grant of an intent, or refuse: somebody cleaned up after us because we took too long."""
    grant = next((g for g in turn.grants() if g.number == intent.number), None)
    if grant is None or grant.ended_at is not None:
        raise Conflict(f"Opening {intent.request_id} took too long. Press the button again.", code="too_slow")
    return grant


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
