"""Who did what to a request, and is it written down?

This is the one door: every state is written by :meth:`Desk._move`, in one database transaction that checks the row of
``TRANSITIONS``, compares and sets the version, and appends the entry. No entry, no change; no change, no entry.

Rules
-----
* Facts about people are gathered before the transaction (they come over the network) and judged inside it.
* Every right is checked at the click: the policy in force now, the people as they are now.
* A refusal is an entry too, in a transaction of its own. Wrong words (:class:`Invalid`) are not: nothing was attempted.
* An outside effect is recorded before it is tried. The order for a credential is: intent, child token, its accessor, the
  credential, its lease. A child token that nobody knows of holds no credential, and one whose accessor is recorded can
  be ended by anybody; so a crash at any point leaves nothing alive that the next tick cannot find.
* The secret goes from Vault to the caller of :meth:`Desk.issue` and nowhere else.
* ``now`` is an argument; nothing here reads a clock.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlmodel import col, select, update

from storage.audit import SYSTEM, Actor, append
from storage.database import Clash, Database, DatabaseDown
from storage.models import Answer, Decision, Grant, Outcome, Request, Review, State
from workflows import policy as rules
from workflows.engines import ENGINES, Credential, LevelSettings
from workflows.errors import BreakGlassError, Conflict, Invalid, NotAllowed, Refused, Unavailable, VaultRefused
from workflows.lifecycle import Action, Role, now_is, step

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sqlmodel import Session

    from workflows.policy import Account, Directory, Level, Policy, Roster, Verdict
    from workflows.vault import ChildToken, Vault

log = logging.getLogger(__name__)

# No I, L, O, U, 0, 1: an id is read aloud on the telephone at night.
_ID_LETTERS: Final = "23456789ABCDEFGHJKMNPQRSTVWXYZ"
WARN_BEFORE: Final = timedelta(minutes=2)
SHORTEST_GRANT: Final = timedelta(seconds=10)
REMIND_EVERY: Final = timedelta(days=1)
_CONFIRM_TRIES: Final = 40
_CONFIRM_PAUSE: Final = 0.05  # seconds; Vault takes the lease back within about 0.1 s of the token's end
_BACK_OFF: Final = tuple(timedelta(seconds=s) for s in (2, 5, 10, 20, 40, 80, 160, 300))


@dataclass(frozen=True, slots=True)
class Ask:
    """What the request form says. ``form_id`` makes a doubled submission open nothing twice."""

    account: str
    level: str
    threshold: str
    reason: str
    standard_path: str
    incident: str
    duration: timedelta
    form_id: str | None = None


@dataclass(frozen=True, slots=True)
class FollowUp:
    """Something a review wants done, by whom and until when."""

    what: str
    owner: str
    due: date


@dataclass(frozen=True, slots=True)
class Findings:
    """What the review form says."""

    threshold_met: bool
    standard_path_enough: bool
    used_as_stated: bool
    outcome: Outcome
    findings: str
    follow_ups: tuple[FollowUp, ...] = ()


@dataclass(frozen=True, slots=True)
class Intent:
    """A recorded decision to issue credential ``number`` of a request; :meth:`Desk.issue` carries it out."""

    request_id: str
    number: int
    replaces: int | None
    ttl: timedelta


@dataclass(frozen=True, slots=True)
class Case:
    """A request with everything that was said and done about it, detached from the database."""

    request: Request
    decisions: tuple[Decision, ...]
    grants: tuple[Grant, ...]
    review: Review | None

    @property
    def approvers(self) -> tuple[str, ...]:
        """User ids of the custodians who approved, in order."""
        return tuple(d.person for d in self.decisions if d.answer == Answer.APPROVE)


class Desk:
    """The door to every request. Safe to use from many threads and from several processes on one database.

    ``patience`` is how long an issue that was begun may take before anybody may clean up after it.
    """

    def __init__(
        self,
        database: Database,
        policy: Policy,
        directory: Directory,
        vault: Vault,
        *,
        team: str,
        patience: timedelta = timedelta(seconds=30),
    ) -> None:
        self.database = database
        self.policy = policy
        self.directory = directory
        self.vault = vault
        self.team = team
        self.patience = patience

    # ------------------------------------------------------------------------------------ reading

    def case(self, request_id: str) -> Case:
        """Return the request and its records; raises :class:`Invalid` when there is none of that name."""
        with self._database_errors(), self.database.read() as session:
            return self._case(session, request_id)

    def open_cases(self, person: str | None = None) -> list[Case]:
        """Return what is not over yet, oldest first: of everybody, or what ``person`` asked for or was asked about."""
        query = select(Request).where(col(Request.due_at).is_not(None)).order_by(col(Request.opened_at))
        with self._database_errors(), self.database.read() as session:
            rows = [r for r in session.exec(query) if person is None or person in (r.requester, *r.custodians)]
            return [self._case(session, row.id) for row in rows]

    def accounts_for(self, person: str) -> tuple[Account, ...]:
        """Return the accounts that the person may request."""
        return rules.accounts_for(self.policy, rules.gather(self.directory, self.policy, None, (person,)), person)

    def preview(self, person: str, account: str | None, level: str | None, asked: timedelta | None = None) -> Verdict:
        """Return the verdict that the gate would give, for the form to show."""
        roster = rules.gather(self.directory, self.policy, account, (person,))
        return rules.evaluate(self.policy, roster, account=account, level=level, requester=person, asked=asked)

    def names(self, case: Case) -> tuple[Account | None, Level | None]:
        """Return the account and level of a case as the policy has them now; None for what it no longer has."""
        account = self.policy.accounts.get(case.request.account)
        return account, account.levels.get(case.request.level) if account else None

    # ------------------------------------------------------------------------------------ asking

    def open(self, actor: Actor, ask: Ask, *, now: datetime) -> Request:
        """Open a request. Raises :class:`Invalid` with the fields at fault, or :class:`NotAllowed`."""
        with self._attempt(actor, Action.OPEN, None, now, {"account": ask.account, "level": ask.level}):
            self._own_team(actor)
            roster = rules.gather(self.directory, self.policy, ask.account, (actor.person,))
            verdict = rules.evaluate(
                self.policy,
                roster,
                account=ask.account,
                level=ask.level,
                requester=actor.person,
                threshold=ask.threshold,
                asked=ask.duration,
                reason=ask.reason,
                standard_path=ask.standard_path,
                incident=ask.incident,
                preview=False,
            )
            account, level = verdict.require()
            in_force = rules.in_force(self.policy, verdict.custodians)
            with self._write() as session:
                if ask.form_id and (
                    known := session.exec(select(Request).where(Request.form_id == ask.form_id)).first()
                ):
                    return known
                row = Request(
                    id=self._new_id(session),
                    state=State.PENDING,
                    version=1,
                    state_version=1,
                    last_seq=-1,
                    form_id=ask.form_id,
                    team=actor.team,
                    requester=actor.person,
                    account=account.name,
                    level=level.name,
                    threshold=ask.threshold,
                    reason=ask.reason.strip(),
                    standard_path=ask.standard_path.strip(),
                    incident=ask.incident.strip(),
                    policy_hash=in_force,
                    quorum=level.quorum,
                    custodians=list(verdict.custodians),
                    channel=self.policy.incident_channel,
                    asked_seconds=int(ask.duration.total_seconds()),
                    opened_at=now,
                    state_at=now,
                    lapse_at=now + level.answer_within,
                    due_at=now + level.answer_within / 2,
                )
                session.add(row)
                session.flush()
                self._move(
                    session,
                    row,
                    Action.OPEN,
                    actor,
                    {Role.RESPONDER},
                    now,
                    data={
                        "account": row.account,
                        "level": row.level,
                        "threshold": {"id": ask.threshold, "text": account.thresholds[ask.threshold].text},
                        "reason": row.reason,
                        "standard_path": row.standard_path,
                        "incident": row.incident,
                        "asked_seconds": row.asked_seconds,
                        "quorum": row.quorum,
                        "custodians": row.custodians,
                        "lapse_at": row.lapse_at,
                    },
                )
                return row

    def withdraw(self, actor: Actor, request_id: str, version: int, *, now: datetime) -> Request:
        """Take a request back before it is decided (requester)."""
        return self._simple(actor, Action.WITHDRAW, request_id, version, now)

    # ------------------------------------------------------------------------------------ deciding

    def approve(
        self, actor: Actor, request_id: str, version: int, *, within: timedelta | None = None, now: datetime
    ) -> Request:
        """Approve, possibly for a shorter time (``within``); at quorum the request becomes approved.

        The quorum is recomputed from the stored decisions over distinct people who are custodians now and were asked.
        """
        with self._attempt(actor, Action.APPROVE, request_id, now):
            _case, roster = self._gather(actor, request_id)
            with self._write() as session:
                row = self._row(session, request_id)
                self._not_stale(row, version)
                held = self._roles(roster, row, actor)
                step(State(row.state), Action.APPROVE, {Role.CUSTODIAN}, request=row.id)
                self._need(roster, row, actor, Role.CUSTODIAN)
                _, level = self._verdict(roster, row).require()
                asked = timedelta(seconds=row.asked_seconds)
                granted = asked if within is None else within
                if not timedelta(minutes=1) <= granted <= asked:
                    raise Invalid(
                        "The time must be between one minute and what was asked for.",
                        fields={"duration": f"Give between 1 minute and {rules.say_duration(asked)}."},
                    )
                if any(
                    d.person == actor.person and d.team == actor.team and d.answer == Answer.APPROVE
                    for d in self._decisions(session, row)
                ):
                    raise Conflict(f"You have already approved {row.id}; your approval counts once.", code="doubled")
                in_force = rules.in_force(self.policy, self._custodians(roster, row))
                session.add(
                    Decision(
                        request_id=row.id,
                        team=actor.team,
                        person=actor.person,
                        answer=Answer.APPROVE,
                        granted_seconds=int(granted.total_seconds()),
                        policy_hash=in_force,
                        at=now,
                    )
                )
                session.flush()
                approvals = [d for d in self._decisions(session, row) if d.answer == Answer.APPROVE]
                counted = rules.counted((d.person for d in approvals), self._custodians(roster, row), row.requester)
                # A policy that became stricter meanwhile wins; one that became laxer does not.
                quorum = max(row.quorum, level.quorum)
                self._move(
                    session,
                    row,
                    Action.APPROVE,
                    actor,
                    held,
                    now,
                    policy=in_force,
                    data={"granted_seconds": int(granted.total_seconds()), "have": len(counted), "need": quorum},
                )
                if len(counted) >= quorum:
                    seconds = min(d.granted_seconds or row.asked_seconds for d in approvals if d.person in counted)
                    self._move(
                        session,
                        row,
                        Action.QUORUM,
                        SYSTEM,
                        {Role.SYSTEM},
                        now,
                        policy=in_force,
                        data={"approvers": sorted(counted), "granted_seconds": seconds},
                        granted_seconds=seconds,
                        lapse_at=now + level.open_within,
                        due_at=now + level.open_within,
                    )
                return row

    def deny(self, actor: Actor, request_id: str, version: int, reason: str, *, now: datetime) -> Request:
        """Deny with a reason (custodian); one denial ends the request."""
        reason = reason.strip()
        if not reason:
            raise Invalid("Say why you deny it.", fields={"reason": "Say why: the requester and the review need it."})
        with self._attempt(actor, Action.DENY, request_id, now):
            _case, roster = self._gather(actor, request_id)
            with self._write() as session:
                row = self._row(session, request_id)
                self._not_stale(row, version)
                step(State(row.state), Action.DENY, {Role.CUSTODIAN}, request=row.id)
                self._need(roster, row, actor, Role.CUSTODIAN)
                in_force = rules.in_force(self.policy, self._custodians(roster, row))
                session.add(
                    Decision(
                        request_id=row.id,
                        team=actor.team,
                        person=actor.person,
                        answer=Answer.DENY,
                        reason=reason,
                        policy_hash=in_force,
                        at=now,
                    )
                )
                self._move(
                    session,
                    row,
                    Action.DENY,
                    actor,
                    self._roles(roster, row, actor),
                    now,
                    policy=in_force,
                    data={"reason": reason},
                )
                return row

    # ------------------------------------------------------------------------------------ the credential

    def reveal(self, actor: Actor, request_id: str, version: int, *, now: datetime) -> Intent:
        """Record that the requester opens the credential, before Vault is asked for anything.

        In ``approved`` this begins the first credential, in ``active`` it replaces a lost one. The version must be
        exact, so that a double click opens one.
        """
        with self._attempt(actor, Action.REVEAL, request_id, now):
            _case, roster = self._gather(actor, request_id)
            with self._write() as session:
                row = self._row(session, request_id)
                step(State(row.state), Action.REVEAL, {Role.REQUESTER}, request=row.id)
                self._need(roster, row, actor, Role.REQUESTER)
                self._not_stale(row, version, exact=True)
                self._verdict(roster, row).require()
                grants = self._grants(session, row)
                begun = next((g for g in grants if g.ended_at is None and g.issued_at is None), None)
                if begun is not None:
                    raise Conflict(
                        f"The credential of {row.id} is being opened right now. If nothing appears within "
                        f"{rules.say_duration(self.patience)}, press the button again.",
                        code="in_progress",
                    )
                number = len(grants) + 1
                live = next((g for g in grants if g.ended_at is None), None)
                ttl = timedelta(seconds=row.granted_seconds or 0)
                if row.expires_at is not None:
                    ttl = row.expires_at - now
                if ttl < SHORTEST_GRANT:
                    raise Conflict(
                        f"The time of {row.id} is over; ask again if you still need access.", code="too_late"
                    )
                if live is None:
                    session.add(self._new_grant(row, number, now))
                self._move(
                    session,
                    row,
                    Action.REVEAL,
                    actor,
                    self._roles(roster, row, actor),
                    now,
                    data={"credential": number, "replaces": live.number if live else None},
                    due_at=_earliest(row.due_at, now + self.patience),
                )
                return Intent(row.id, number, live.number if live else None, ttl)

    def issue(self, intent: Intent, *, now: datetime) -> Credential:
        """Carry out an intent and return the credential: the only place where the secret passes.

        Raises :class:`Unavailable` when Vault does not answer (press again), :class:`VaultRefused` when it says no for
        good (the request is then ``failed``), and :class:`Conflict` when the request ended meanwhile. In each case
        whatever had been made is ended, now or by the tick.
        """
        request_id = intent.request_id
        child: ChildToken | None = None
        try:
            # 1. "Show again" ends the old credential first: never two at once.
            if intent.replaces is not None:
                self._replace(intent, now)
            case = self.case(request_id)
            _, level = self.names(case)
            if level is None:
                raise VaultRefused(f"The policy no longer has the level of {request_id}.")
            # 2. A child token of its own. It holds nothing yet, and lives as long as the grant at the most.
            row = case.request
            child = self.vault.open_child(
                level.settings.token_role,
                intent.ttl,
                display_name=row.id,
                metadata={"request": row.id, "requester": row.requester, "account": row.account, "level": row.level},
            )
            # 3. Its accessor is on record before anything is read with it.
            with self._write() as session:
                row = self._row(session, request_id)
                grant = self._grant(session, intent)
                grant.accessor, grant.accessor_at = child.accessor, now
                session.add(grant)
                self._move(
                    session, row, Action.OPENED, SYSTEM, {Role.SYSTEM}, now, data=_told(grant, accessor=child.accessor)
                )
            # 4. The credential itself.
            credential = ENGINES[level.settings.engine].issue(self.vault, child, level.settings)
            # 5. Only a credential that is on record is shown.
            with self._write() as session:
                row = self._row(session, request_id)
                grant = self._grant(session, intent)
                expires = now + intent.ttl if row.expires_at is None else row.expires_at
                grant.lease_id, grant.identity = credential.lease_id, credential.username
                grant.issued_at, grant.expires_at = now, expires
                session.add(grant)
                self._move(
                    session,
                    row,
                    Action.REISSUE if intent.replaces is not None else Action.ISSUE,
                    SYSTEM,
                    {Role.SYSTEM},
                    now,
                    data=_told(
                        grant,
                        accessor=grant.accessor,
                        lease=grant.lease_id,
                        identity=grant.identity,
                        expires_at=expires,
                    ),
                    expires_at=expires,
                    lapse_at=None,
                    attempts=0,
                    due_at=max(now, expires - WARN_BEFORE) if row.warned_at is None else expires,
                )
        except BreakGlassError as error:
            self._undo(intent, child, error, now)
            raise
        return credential

    def release(self, actor: Actor, request_id: str, version: int, *, now: datetime) -> Request:
        """Hand the access back (requester). The request is ``ending`` until :meth:`finish` confirms."""
        return self._simple(actor, Action.RELEASE, request_id, version, now, ended_by="release")

    def revoke(self, actor: Actor, request_id: str, version: int, *, now: datetime) -> Request:
        """Take the access away (any custodian of the account, asked or not)."""
        return self._simple(actor, Action.REVOKE, request_id, version, now, ended_by="revoke")

    def finish(self, request_id: str, *, now: datetime) -> bool:
        """End what a request in ``ending`` has out, and say whether it has ended. Harmless in any other state.

        A Vault or target that is down leaves the state, and pages with back-off; the tick tries again.
        """
        case = self.case(request_id)
        if case.request.state != State.ENDING:
            return case.request.state in (State.ENDED, State.REVIEWED)
        open_grants = [g for g in case.grants if g.ended_at is None]
        why = ""
        try:
            gone = all(self._take_back(grant) for grant in open_grants)
        except (Unavailable, VaultRefused) as error:
            gone, why = False, error.sentence
        with self._write() as session:
            row = self._row(session, request_id)
            if row.version != case.request.version:
                return row.state in (State.ENDED, State.REVIEWED)  # another bot was quicker
            if not gone:
                self._page(session, row, why, now)
                return False
            self._close(session, row, open_grants, now)
            self._move(
                session,
                row,
                Action.END,
                SYSTEM,
                {Role.SYSTEM},
                now,
                data={
                    "ended_by": row.ended_by,
                    "leases": [g.lease_id for g in case.grants if g.lease_id],
                    "accessors_sha256": [_sha256(g.accessor) for g in case.grants if g.accessor],
                    "decided_at": row.state_at,
                    "used_seconds": _seconds_out(case, now),
                },
                review_due_at=now + self.policy.review_within,
                due_at=now + self.policy.review_within,
                attempts=0,
            )
            return True

    def abandon(self, request_id: str, *, now: datetime) -> None:
        """End a credential whose issue was begun and not finished within ``patience`` (a crash, a hang)."""
        case = self.case(request_id)
        for grant in case.grants:
            if grant.ended_at is None and grant.issued_at is None and grant.intended_at + self.patience <= now:
                self._abandon(case, grant, "the bot stopped while it was being opened", now)

    # ------------------------------------------------------------------------------------ afterwards

    def review(self, actor: Actor, request_id: str, version: int, form: Findings, *, now: datetime) -> Request:
        """File the review (reviewer: neither the requester nor one who approved)."""
        fields = {}
        if not form.findings.strip():
            fields["findings"] = "Say what you found, also when all was in order."
        if any(not f.what.strip() or not f.owner for f in form.follow_ups):
            fields["follow_ups"] = "Each follow-up needs what is to be done and an owner."
        if fields:
            raise Invalid("The review is not complete.", fields=fields)
        with self._attempt(actor, Action.REVIEW, request_id, now):
            case, roster = self._gather(actor, request_id)
            with self._write() as session:
                row = self._row(session, request_id)
                self._not_stale(row, version)
                step(State(row.state), Action.REVIEW, {Role.REVIEWER}, request=row.id)
                self._need(roster, row, actor, Role.REVIEWER, approvers=case.approvers)
                follow_ups = [
                    {"what": f.what.strip(), "owner": f.owner, "due": f.due.isoformat()} for f in form.follow_ups
                ]
                session.add(
                    Review(
                        request_id=row.id,
                        team=actor.team,
                        reviewer=actor.person,
                        threshold_met=form.threshold_met,
                        standard_path_enough=form.standard_path_enough,
                        used_as_stated=form.used_as_stated,
                        outcome=form.outcome,
                        findings=form.findings.strip(),
                        follow_ups=follow_ups,
                        filed_at=now,
                    )
                )
                self._move(
                    session,
                    row,
                    Action.REVIEW,
                    actor,
                    self._roles(roster, row, actor, approvers=case.approvers),
                    now,
                    data={
                        "threshold_met": form.threshold_met,
                        "standard_path_enough": form.standard_path_enough,
                        "used_as_stated": form.used_as_stated,
                        "outcome": form.outcome.value,
                        "findings": form.findings.strip(),
                        "follow_ups": follow_ups,
                    },
                    due_at=None,
                )
                return row

    def may_export(self, actor: Actor, *, now: datetime) -> None:
        """Refuse, on record, anybody whom the policy does not call an auditor."""
        with self._attempt(actor, "log:export", None, now):
            self._own_team(actor)
            roster = rules.gather(self.directory, self.policy, None, (actor.person,))
            if not rules.is_auditor(self.policy, roster, actor.person):
                raise NotAllowed("Only the auditors named in the policy may export the log.")

    def record(
        self, event: str, actor: Actor, data: Mapping[str, Any], *, now: datetime, request_id: str | None = None
    ) -> None:
        """Append an entry that changes no state (an export, say)."""
        with self._write() as session:
            self._append(session, request_id, event=event, actor=actor, at=now, data=data)

    # ------------------------------------------------------------------------------------ the clock's side

    def clock(self, request_id: str, *, now: datetime) -> None:
        """Do what is due on one request: called by the tick, safe late, twice and in parallel."""
        case = self.case(request_id)
        match State(case.request.state):
            case State.APPROVED | State.ACTIVE:
                self.abandon(request_id, now=now)
            case State.ENDING:
                self.finish(request_id, now=now)
                return
            case _:
                pass
        with self._write() as session:
            row = self._row(session, request_id)
            if row.due_at is not None and row.due_at <= now:
                self._due(session, row, now)
            ending = row.state == State.ENDING
        if ending:
            self.finish(request_id, now=now)

    def _due(self, session: Session, row: Request, now: datetime) -> None:
        def move(action: Action, **changes: Any) -> None:  # noqa: ANN401 - columns have many types
            self._move(session, row, action, SYSTEM, {Role.SYSTEM}, now, **changes)

        begun = [g for g in self._grants(session, row) if g.ended_at is None and g.issued_at is None]
        lapsed = row.lapse_at is not None and row.lapse_at <= now
        match State(row.state):
            case State.PENDING if lapsed:
                move(Action.LAPSE, data={"waited_seconds": int((now - row.opened_at).total_seconds())}, due_at=None)
            case State.PENDING:
                move(Action.ESCALATE, data={"lapse_at": row.lapse_at}, due_at=row.lapse_at)
            case State.APPROVED | State.ACTIVE if begun:
                # Still within its patience, or its end is not confirmed yet: look again soon, decide nothing.
                row.due_at = now + _BACK_OFF[0]
                session.add(row)
            case State.APPROVED if lapsed:
                move(Action.LAPSE, data={"waited_seconds": int((now - row.state_at).total_seconds())}, due_at=None)
            case State.APPROVED:
                row.due_at = row.lapse_at
                session.add(row)
            case State.ACTIVE if row.expires_at is not None and row.expires_at <= now:
                move(Action.EXPIRE, ended_by="expire", due_at=now)
            case State.ACTIVE if row.warned_at is None:
                move(Action.WARN, data={"expires_at": row.expires_at}, warned_at=now, due_at=row.expires_at)
            case State.ACTIVE:
                row.due_at = row.expires_at
                session.add(row)
            case State.ENDED:
                move(Action.REMIND, data={"review_due_at": row.review_due_at}, due_at=now + REMIND_EVERY)
            case _:
                row.due_at = None
                session.add(row)

    # ------------------------------------------------------------------------------------ the door

    def _move(
        self,
        session: Session,
        row: Request,
        action: Action,
        actor: Actor,
        held: set[Role] | frozenset[Role],
        now: datetime,
        *,
        policy: str | None = None,
        data: Mapping[str, Any] | None = None,
        **changes: Any,  # noqa: ANN401 - columns have many types
    ) -> None:
        """Write one move: the table's row, compare-and-set, the entry. The only place that writes a state."""
        opening = action is Action.OPEN
        move = step(None if opening else State(row.state), action, held, request=row.id)
        version = row.version if opening else row.version + 1
        entry = append(
            session,
            event=action.value,
            at=now,
            actor=actor,
            request_id=row.id,
            source=move.source.value if move.source else None,
            target=move.target.value,
            version=version,
            policy=policy or row.policy_hash,
            data=_plain(data or {}),
        )
        values: dict[str, Any] = {"state": move.target.value, "version": version, "last_seq": entry.seq, **changes}
        if not move.is_self:
            values |= {"state_version": version, "state_at": now}
        done = session.exec(
            update(Request).where(col(Request.id) == row.id, col(Request.version) == row.version).values(**values)
        )
        if done.rowcount != 1:
            raise Conflict(f"{row.id} was changed by somebody else at the same moment. Look at it again.", code="raced")
        session.refresh(row)

    def _append(self, session: Session, request_id: str | None, **entry: Any) -> None:  # noqa: ANN401 - see append
        """Append an entry that moves nothing, and let the request's followers see it."""
        data = _plain(entry.pop("data", {}))
        appended = append(session, request_id=request_id, data=data, **entry)
        if request_id is not None:
            session.exec(update(Request).where(col(Request.id) == request_id).values(last_seq=appended.seq))

    @contextmanager
    def _attempt(
        self,
        actor: Actor,
        action: Action | str,
        request_id: str | None,
        now: datetime,
        about: Mapping[str, Any] | None = None,
    ) -> Iterator[None]:
        """Put a refusal on record and let it pass on to the person."""
        try:
            yield
        except Invalid:
            raise
        except Refused as refused:
            event = action.value if isinstance(action, Action) else action
            with self._write() as session:
                known = request_id is not None and session.get(Request, request_id) is not None
                self._append(
                    session,
                    request_id if known else None,
                    event=event,
                    actor=actor,
                    at=now,
                    refused=refused.reason,
                    data={"said": refused.sentence, **(about or {})} | ({} if known else {"asked_for": request_id}),
                )
            raise

    def _simple(
        self,
        actor: Actor,
        action: Action,
        request_id: str,
        version: int,
        now: datetime,
        **changes: Any,  # noqa: ANN401
    ) -> Request:
        """Make a move of one person that needs nothing but the right to make it."""
        role = Role.CUSTODIAN if action is Action.REVOKE else Role.REQUESTER
        with self._attempt(actor, action, request_id, now):
            _case, roster = self._gather(actor, request_id)
            with self._write() as session:
                row = self._row(session, request_id)
                step(State(row.state), action, {role}, request=row.id)
                self._need(roster, row, actor, role, asked=action is not Action.REVOKE)
                self._not_stale(row, version)
                if changes:
                    changes |= {"ended_by_user": actor.person, "due_at": now}
                else:
                    changes = {"due_at": None}
                self._move(session, row, action, actor, {role}, now, **changes)
                return row

    # ------------------------------------------------------------------------------------ who may

    def _gather(self, actor: Actor, request_id: str) -> tuple[Case, Roster]:
        self._own_team(actor)
        try:
            case = self.case(request_id)
        except Invalid as missing:
            raise Conflict(missing.sentence, code="unknown_request") from None
        return case, rules.gather(
            self.directory, self.policy, case.request.account, (actor.person, case.request.requester)
        )

    def _own_team(self, actor: Actor) -> None:
        # A shared channel shows our buttons to people of other workspaces.
        if actor.team != self.team:
            raise NotAllowed("Only people of this workspace may use break-glass access here.", code="other_workspace")

    def _need(
        self,
        roster: Roster,
        row: Request,
        actor: Actor,
        role: Role,
        *,
        approvers: Sequence[str] = (),
        asked: bool = True,
    ) -> None:
        why = rules.explain(
            self.policy,
            roster,
            row.account,
            actor.person,
            role,
            requester=row.requester,
            approvers=approvers,
            asked=row.custodians if asked else None,
        )
        if why is not None:
            raise NotAllowed(why)

    def _roles(self, roster: Roster, row: Request, actor: Actor, *, approvers: Sequence[str] = ()) -> frozenset[Role]:
        return rules.roles(
            self.policy,
            roster,
            row.account,
            actor.person,
            requester=row.requester,
            approvers=approvers,
            asked=row.custodians,
        )

    def _custodians(self, roster: Roster, row: Request) -> tuple[str, ...]:
        """Who may approve this request now: those asked who are still able custodians of the account."""
        return tuple(
            person
            for person in row.custodians
            if rules.explain(
                self.policy, roster, row.account, person, Role.CUSTODIAN, requester=row.requester, asked=row.custodians
            )
            is None
        )

    def _verdict(self, roster: Roster, row: Request) -> Verdict:
        return rules.evaluate(
            self.policy,
            roster,
            account=row.account,
            level=row.level,
            requester=row.requester,
            threshold=row.threshold,
            asked=timedelta(seconds=row.asked_seconds),
        )

    @staticmethod
    def _not_stale(row: Request, version: int, *, exact: bool = False) -> None:
        oldest = row.version if exact else row.state_version
        if not oldest <= version <= row.version:
            raise Conflict(
                f"That button is out of date: {row.id} {now_is(State(row.state))}. Nothing was changed.", code="stale"
            )

    # ------------------------------------------------------------------------------------ taking back

    def _replace(self, intent: Intent, now: datetime) -> None:
        case = self.case(intent.request_id)
        old = next(g for g in case.grants if g.number == intent.replaces)
        if not self._take_back(old):
            raise Unavailable(
                "The earlier credential is still being taken back, and there is never more than one. Try again soon."
            )
        with self._write() as session:
            row = self._row(session, intent.request_id)
            grants = self._grants(session, row)
            if any(g.number >= intent.number for g in grants):
                raise Conflict(
                    f"A fresh credential of {row.id} was opened meanwhile. Look at the newest message.", code="raced"
                )
            self._close(session, row, [old], now)
            session.add(self._new_grant(row, intent.number, now))
            self._move(
                session,
                row,
                Action.ABANDON,
                SYSTEM,
                {Role.SYSTEM},
                now,
                data=_told(old, why="replaced", accessor=old.accessor, lease=old.lease_id),
            )

    def _take_back(self, grant: Grant) -> bool:
        """Revoke at Vault and say whether nothing is left. Raises :class:`Unavailable` when Vault does not answer."""
        if grant.accessor is None:
            return True  # no token was ever made on record, so nothing was read with one: see step 3 of issue()
        engine = ENGINES[grant.engine]
        self.vault.revoke_accessor(grant.accessor)
        known = self._known_leases(grant)
        for attempt in range(_CONFIRM_TRIES):
            if engine.is_gone(self.vault, grant, known):
                return True
            if attempt == 1:
                engine.hurry(self.vault, grant)
            time.sleep(_CONFIRM_PAUSE)
        return False

    def _undo(self, intent: Intent, child: ChildToken | None, error: BreakGlassError, now: datetime) -> None:
        """After a failed issue, end what was made; whatever cannot be ended now is left to the tick, on record."""
        try:
            if child is not None:
                # Also when its accessor could not be recorded: then nobody else can find it.
                self.vault.revoke_accessor(child.accessor)
            case = self.case(intent.request_id)
            grant = next((g for g in case.grants if g.number == intent.number and g.ended_at is None), None)
            if grant is not None:
                self._abandon(case, grant, error.sentence, now, failed=isinstance(error, VaultRefused))
        except BreakGlassError as second:
            log.warning("%s: cleaning up is left to the tick: %s", intent.request_id, second.reason)

    def _abandon(self, case: Case, grant: Grant, why: str, now: datetime, *, failed: bool = False) -> None:
        if not self._take_back(grant):
            return
        with self._write() as session:
            row = self._row(session, case.request.id)
            fresh = session.get(Grant, grant.id)
            if fresh is None or fresh.ended_at is not None or fresh.issued_at is not None:
                return
            if row.state not in (State.APPROVED, State.ACTIVE):
                return  # finish() closes it
            if fresh.accessor != grant.accessor:
                return  # its token was recorded after we looked: the next tick ends that one
            self._close(session, row, [fresh], now)
            data = _told(grant, why=why, accessor=grant.accessor)
            if failed and row.state == State.APPROVED:
                self._move(
                    session, row, Action.FAIL, SYSTEM, {Role.SYSTEM}, now, data=data, ended_by="fail", due_at=None
                )
            else:
                self._move(session, row, Action.ABANDON, SYSTEM, {Role.SYSTEM}, now, data=data)

    def _page(self, session: Session, row: Request, why: str, now: datetime) -> None:
        """Note a failed try at the end; custodians are paged at the first and then at each longer wait."""
        wait = _BACK_OFF[min(row.attempts, len(_BACK_OFF) - 1)]
        self._move(
            session,
            row,
            Action.ESCALATE,
            SYSTEM,
            {Role.SYSTEM},
            now,
            data={
                "attempt": row.attempts + 1,
                "why": why or "Vault has not confirmed yet that the lease is gone.",
                "next_try_at": now + wait,
                "decided_at": row.state_at,
            },
            attempts=row.attempts + 1,
            due_at=now + wait,
        )

    def _known_leases(self, grant: Grant) -> frozenset[str]:
        with self._database_errors(), self.database.read() as session:
            found = session.exec(
                select(Grant.lease_id).where(Grant.lease_prefix == grant.lease_prefix, col(Grant.lease_id).is_not(None))
            )
            return frozenset(lease for lease in found if lease is not None and lease != grant.lease_id)

    @staticmethod
    def _close(session: Session, row: Request, grants: Sequence[Grant], now: datetime) -> None:
        for grant in grants:
            session.exec(
                update(Grant)
                .where(col(Grant.request_id) == row.id, col(Grant.number) == grant.number)
                .values(ended_at=now)
            )
        session.flush()
        session.expire_all()
        session.refresh(row)

    # ------------------------------------------------------------------------------------ rows

    def _case(self, session: Session, request_id: str) -> Case:
        row = session.get(Request, request_id)
        if row is None:
            raise Invalid(f"There is no request {request_id}. Check the number; it looks like BG-7KQ2.")
        return Case(
            row, tuple(self._decisions(session, row)), tuple(self._grants(session, row)), session.get(Review, row.id)
        )

    @staticmethod
    def _row(session: Session, request_id: str) -> Request:
        row = session.get(Request, request_id)
        if row is None:
            raise Conflict(f"There is no request {request_id}.", code="unknown_request")
        return row

    @staticmethod
    def _decisions(session: Session, row: Request) -> list[Decision]:
        return list(session.exec(select(Decision).where(Decision.request_id == row.id).order_by(col(Decision.id))))

    @staticmethod
    def _grants(session: Session, row: Request) -> list[Grant]:
        return list(session.exec(select(Grant).where(Grant.request_id == row.id).order_by(col(Grant.number))))

    @staticmethod
    def _grant(session: Session, intent: Intent) -> Grant:
        """Return the grant of an intent, or refuse: somebody cleaned up after us because we took too long."""
        grant = session.exec(
            select(Grant).where(Grant.request_id == intent.request_id, Grant.number == intent.number)
        ).first()
        if grant is None or grant.ended_at is not None:
            raise Conflict(
                f"Opening the credential of {intent.request_id} took too long. Press the button again.", code="too_slow"
            )
        return grant

    def _new_grant(self, row: Request, number: int, now: datetime) -> Grant:
        account = self.policy.accounts[row.account]
        settings: LevelSettings = account.levels[row.level].settings
        engine = ENGINES[settings.engine]
        return Grant(
            request_id=row.id,
            number=number,
            engine=settings.engine,
            path=engine.path(settings),
            lease_prefix=engine.lease_prefix(settings),
            intended_at=now,
        )

    @staticmethod
    def _new_id(session: Session) -> str:
        for length in (4, 4, 4, 5, 6, 7, 8):
            name = "BG-" + "".join(secrets.choice(_ID_LETTERS) for _ in range(length))
            if session.get(Request, name) is None:
                return name
        raise Unavailable("No free request number was found. Try again.")

    # ------------------------------------------------------------------------------------ the database's errors

    @contextmanager
    def _write(self) -> Iterator[Session]:
        with self._database_errors(), self.database.write() as session:
            yield session

    @contextmanager
    def _database_errors(self) -> Iterator[None]:
        try:
            yield
        except DatabaseDown as down:
            raise Unavailable(f"The database does not answer, so nothing was changed. Try again. ({down})") from None
        except Clash:
            raise Conflict(
                "Somebody else did this at the same moment. Look at the newest card.", code="raced"
            ) from None


def _plain(data: Mapping[str, Any]) -> dict[str, Any]:
    """Turn times into text and leave out what is not known: the log holds plain JSON."""
    return {
        key: value.isoformat().replace("+00:00", "Z") if isinstance(value, datetime) else value
        for key, value in data.items()
        if value is not None
    }


def _told(grant: Grant, **facts: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON values
    """Return what can be told of a credential; of the accessor, by which it can be ended, only the hash."""
    accessor = facts.pop("accessor", None)
    if accessor:
        facts["accessor_sha256"] = _sha256(accessor)
    return {"credential": grant.number, "path": grant.path, **facts}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _seconds_out(case: Case, now: datetime) -> int:
    """For how long a credential of this request existed."""
    issued = [g.issued_at for g in case.grants if g.issued_at is not None]
    return int((now - min(issued)).total_seconds()) if issued else 0


def _earliest(first: datetime | None, second: datetime) -> datetime:
    return second if first is None else min(first, second)
