"""What may a person, or the clock, do to a request? One method each.

Rules
-----
* Every right is checked at the click: the policy in force now, the people as they are now.
* A button carries the version that it was drawn at. One that was drawn before the last change of state is stale; the
  buttons that issue something must be exact, so that a double click opens one credential.
* The quorum is recomputed from the stored decisions, over distinct people who were asked and are custodians still.
* How a move is written is ``door.py``; how a credential comes and goes is ``issuing.py``.
"""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from sqlmodel import col, select

from storage import commands
from storage.audit import SYSTEM
from storage.models import Answer, Decision, Request, State
from workflows import absence, asking, nudging
from workflows import policy as rules
from workflows.door import Case, Turn, case_of
from workflows.engines import ENGINES
from workflows.errors import Conflict, Invalid, NotAllowed, Unavailable, VaultRefused
from workflows.holding import Intent
from workflows.issuing import BACK_OFF, WARN_BEFORE, Issuer, next_look
from workflows.lifecycle import Action, Role, allowed_roles, now_is, step
from workflows.reviewing import Findings, FollowUp, Reviewing
from workflows.ssh_keys import read_public_key
from workflows.step_up import SecondFactor, counting

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlmodel import Session

    from storage.audit import Actor
    from storage.database import Database
    from storage.models import FollowUp as FollowUpRow
    from workflows.holding import Acknowledged
    from workflows.policy import Account, Directory, Level, Policy, Roster, Verdict
    from workflows.ssh_keys import PublicKey
    from workflows.vault import Vault

__all__ = ["Agenda", "Ask", "Case", "Desk", "Findings", "FollowUp", "Intent", "Staged"]

log = logging.getLogger(__name__)

# No I, L, O, U, 0, 1: an id is read aloud on the telephone at night.
_ID_LETTERS: Final = "23456789ABCDEFGHJKMNPQRSTVWXYZ"
SHORTEST_GRANT: Final = timedelta(seconds=10)


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
    public_key: str = ""  # for a level whose engine signs one


@dataclass(frozen=True, slots=True)
class Staged:
    """What makes a request a drill: its id, and whose request it is when it was due and nobody typed it."""

    id: str
    requester: str


@dataclass(frozen=True, slots=True)
class Agenda:
    """What is open and concerns one person."""

    waiting: tuple[Case, ...]  # for their answer as a custodian
    mine: tuple[Case, ...]  # asked for by them
    reviews: tuple[Case, ...]  # owed, and theirs to file
    follow_ups: tuple[FollowUpRow, ...] = ()  # theirs to do


# Whose right it is that opens a form, before anything is submitted with it.
_FORM_ROLES: Final = {Action.APPROVE: Role.CUSTODIAN, Action.DENY: Role.CUSTODIAN, Action.REVIEW: Role.REVIEWER}
_FORM_ROLES[Action.REVIEW_SECOND] = Role.REVIEWER


class Desk(Reviewing, Issuer):
    """The counter at which everybody acts. Safe from many threads and from several processes on one database."""

    def __init__(
        self,
        database: Database,
        policy: Policy,
        directory: Directory,
        vault: Vault,
        *,
        team: str,
        patience: timedelta = timedelta(seconds=30),
        required: Acknowledged | None = None,
        public_address: str = "",
    ) -> None:
        super().__init__(database, policy, vault, patience=patience, required=required, public_address=public_address)
        self.directory = directory
        self.team = team
        self.factor = SecondFactor(database, vault, lambda: self.policy)

    # ------------------------------------------------------------------------------------ looking

    def open_cases(self, person: str | None = None) -> list[Case]:
        """Return what is not over yet, oldest first: of everybody, or what ``person`` asked for or was asked about."""
        query = select(Request).where(col(Request.due_at).is_not(None)).order_by(col(Request.opened_at))
        with self._read() as session:
            rows = [r for r in session.exec(query) if person is None or person in (r.requester, *r.custodians)]
            return [case_of(session, row.id) for row in rows]

    def agenda(self, actor: Actor, *, now: datetime) -> Agenda:
        """Return what is open and concerns the actor. Raises :class:`NotAllowed` for people of other workspaces."""
        self._own_team(actor)
        person, cases = actor.person, self.open_cases()
        roster = self._roster(None, (person,), now)

        def theirs(role: Role, action: Action) -> tuple[Case, ...]:
            return tuple(
                case
                for case in cases
                if role in allowed_roles(case.state, action)
                and person not in case.approvers
                and role
                in rules.roles(
                    self.policy,
                    roster,
                    case.request.account,
                    person,
                    requester=case.request.requester,
                    approvers=case.approvers,
                    asked=case.request.custodians,
                    stood_in=case.request.deputies or {},
                    level=case.request.level,
                )
            )

        return Agenda(
            waiting=theirs(Role.CUSTODIAN, Action.APPROVE),
            mine=tuple(case for case in cases if case.request.requester == person),
            reviews=tuple(
                case
                for case in theirs(Role.REVIEWER, Action.REVIEW)
                if case.review is None or case.review.reviewer != person
            ),
            follow_ups=tuple(self.open_follow_ups(person)),
        )

    def may(self, actor: Actor, action: Action, request_id: str, version: int | None = None, *, now: datetime) -> Case:
        """Return the case if the actor may take the action now: asked before a form is opened for it.

        A refusal is on record like any other; the right is checked again when the form comes back. Without a version
        (a command instead of a button) nothing can be stale.
        """
        with self.attempt(actor, action, request_id, now=now):
            roster = self._gather(actor, request_id, now)
            with self._read() as session:
                case = case_of(session, request_id)
            self._not_stale(case.request, case.request.version if version is None else version)
            self._need(case, roster, actor, action, _FORM_ROLES[action])
            if action is Action.REVIEW_SECOND:
                self._is_another(case, actor)
            return case

    def accounts_for(self, person: str) -> tuple[Account, ...]:
        """Return the accounts that the person may request."""
        roster = rules.gather(self.directory, self.policy, None, (person,))
        return rules.accounts_for(self.policy, roster, person)

    def preview(
        self, person: str, account: str | None, level: str | None, asked: timedelta | None = None, *, now: datetime
    ) -> Verdict:
        """Return the verdict that the gate would give, for the form to show."""
        roster = rules.gather(self.directory, self.policy, account, (person,))
        late = self.overdue(person, account, now=now) if account is not None else ()
        return rules.evaluate(
            self.policy, roster, account=account, level=level, requester=person, asked=asked, overdue=late, preview=True
        )

    def names(self, case: Case) -> tuple[Account | None, Level | None]:
        """Return the account and level of a case as the policy has them now; None for what it no longer has."""
        account = self.policy.accounts.get(case.request.account)
        return account, account.levels.get(case.request.level) if account else None

    def key_on_file(self, person: str) -> str:
        """Return the public key of the newest request of a person's that was approved; empty when there is none."""
        query = (
            select(Request.public_key)
            .where(
                Request.requester == person,
                Request.team == self.team,
                col(Request.public_key).is_not(None),
                col(Request.granted_seconds).is_not(None),
            )
            .order_by(col(Request.opened_at).desc(), col(Request.id))
        )
        with self._read() as session:
            return session.exec(query.limit(1)).first() or ""

    # ------------------------------------------------------------------------------------ asking

    def open(self, actor: Actor, ask: Ask, *, drill: Staged | None = None, now: datetime) -> Request:
        """Open a request. Raises :class:`Invalid` with the fields at fault, or :class:`NotAllowed`."""
        with self.attempt(actor, Action.OPEN, about={"account": ask.account, "level": ask.level}, now=now):
            if drill is None or actor != SYSTEM:
                self._own_team(actor)
            requester = actor.person if drill is None else drill.requester
            roster = self._roster(ask.account, (requester,), now)
            verdict = rules.evaluate(
                self.policy,
                roster,
                account=ask.account,
                level=ask.level,
                requester=requester,
                threshold=ask.threshold,
                asked=ask.duration,
                reason=ask.reason,
                standard_path=ask.standard_path,
                incident=ask.incident,
                overdue=self.overdue(actor.person, ask.account, now=now),
                preview=False,
                is_drill=drill is not None,
            )
            account, level = _granted(verdict)
            people = [*verdict.custodians, *verdict.deputies]
            key = _public_key(level, ask.public_key)
            plan = asking.plan(
                self.policy, account, level, roster, verdict.custodians, opened_at=now, stood_in=verdict.deputies
            )
            with self._write() as session:
                if ask.form_id is not None:
                    known = session.exec(select(Request).where(Request.form_id == ask.form_id)).first()
                    if known is not None:
                        return known
                row = Request(
                    id=_new_id(session),
                    state=State.PENDING,
                    version=1,
                    state_version=1,
                    last_seq=-1,
                    form_id=ask.form_id,
                    team=self.team,
                    requester=requester,
                    drill=drill.id if drill else None,
                    account=account.name,
                    level=level.name,
                    threshold=ask.threshold,
                    reason=ask.reason.strip(),
                    standard_path=ask.standard_path.strip(),
                    incident=ask.incident.strip(),
                    policy_hash=rules.in_force(self.policy, people),
                    quorum=level.quorum,
                    custodians=people,
                    deputies={one: list(places) for one, places in verdict.deputies.items()} or None,
                    channel=self.policy.incident_channel,
                    public_key=key.line if key else None,
                    asked_seconds=int(ask.duration.total_seconds()),
                    opened_at=now,
                    state_at=now,
                    lapse_at=plan.lapse_at,
                    due_at=min(plan.lapse_at, now + nudging.FIRST, *(step.at for step in plan.steps if step.at > now)),
                    asking=plan.data(),
                    asked_steps=plan.made(now),
                )
                session.add(row)
                session.flush()
                told = (
                    "account",
                    "level",
                    "reason",
                    "standard_path",
                    "incident",
                    "asked_seconds",
                    "quorum",
                    "custodians",
                    "asking",
                )
                threshold = account.thresholds[ask.threshold]
                Turn(session, row, now).move(
                    Action.OPEN,
                    actor,
                    (Role.RESPONDER,),
                    data={name: getattr(row, name) for name in told}
                    | {"threshold": {"id": threshold.id, "text": threshold.text}, "lapse_at": row.lapse_at}
                    | ({"key_fingerprint": key.fingerprint} if key else {})
                    | ({"deputies": row.deputies} if row.deputies else {})
                    | ({"drill": row.drill, "requester": requester, "team": row.team} if drill else {}),
                )
                return row

    def withdraw(self, actor: Actor, request_id: str, version: int, *, now: datetime) -> Request:
        """Take a request back before it is decided (requester)."""
        return self._simply(actor, Action.WITHDRAW, Role.REQUESTER, request_id, version=version, now=now)

    # ------------------------------------------------------------------------------------ deciding

    def approve(
        self,
        actor: Actor,
        request_id: str,
        version: int,
        *,
        within: timedelta | None = None,
        code: str | None = None,
        now: datetime,
    ) -> Request:
        """Approve, possibly for a shorter time (``within``); at quorum the request becomes approved.

        ``code``: of the actor's second factor, where the level takes one (``step_up.py`` says what else that raises).
        """
        with self.attempt(actor, Action.APPROVE, request_id, now=now):
            roster = self._gather(actor, request_id, now)
            approvable = partial(self._approvable, version=version, roster=roster, actor=actor, within=within)
            case = self.case(request_id)
            proved = self.factor.proved(actor, case, self.names(case)[1], code, approvable, now=now)
            with self.turn(request_id, now=now) as turn:
                row = turn.row
                said = turn.decisions()  # once: a burst of clicks waits for this turn, and nobody else can add one
                level, granted = approvable(Case(row, tuple(said), (), None), proved=proved)
                custodians, stood_in = self._custodians(roster, row), row.deputies or {}
                said.append(self._decide(turn, actor, Answer.APPROVE, custodians, granted=granted, step_up=proved))
                in_force = said[-1].policy_hash
                approvals = [d for d in said if d.answer == Answer.APPROVE]
                # A policy that became stricter meanwhile wins; one that became laxer does not.
                counted = rules.counted((d.person for d in counting(level, approvals)), custodians, row.requester)
                counted -= absence.doubled(counted, stood_in, custodians)
                factors = asking.in_force(row, level, roster, custodians)
                ordered = [d.person for d in approvals if d.person in counted]
                stands = asking.satisfied(ordered, max(row.quorum, level.quorum), factors)
                seconds = min(d.granted_seconds or row.asked_seconds for d in approvals)
                turn.move(
                    Action.APPROVE,
                    actor,
                    (Role.CUSTODIAN,),
                    policy=in_force,
                    data={
                        "granted_seconds": int(granted.total_seconds()),
                        **stands.data(),
                        "for": stood_in.get(actor.person),
                        "step_up": proved,
                    },
                )
                if stands.suffices:
                    turn.move(
                        Action.QUORUM,
                        policy=in_force,
                        data={
                            "approvers": sorted(counted),
                            "granted_seconds": seconds,
                            "lapse_at": now + level.open_within,
                        },
                        granted_seconds=seconds,
                        lapse_at=now + level.open_within,
                        due_at=now + level.open_within,
                    )
                return row

    def _approvable(
        self, case: Case, *, version: int, roster: Roster, actor: Actor, within: timedelta | None, proved: str | None
    ) -> tuple[Level, timedelta]:
        """Return the level and the time that an approval would grant, or refuse. ``proved``: the factor shown."""
        row = case.request
        self._not_stale(row, version)
        self._need(case, roster, actor, Action.APPROVE, Role.CUSTODIAN)
        level = self._still_allowed(roster, row)
        asked = timedelta(seconds=row.asked_seconds)
        granted = asked if within is None else within
        if not timedelta(minutes=1) <= granted <= asked:
            raise Invalid(
                "The time must be between one minute and what was asked for.",
                fields={"duration": f"Give between 1 minute and {rules.say_duration(asked)}."},
            )
        if actor.person in case.approvers:
            raise Conflict(f"You have already approved {row.id}; your approval counts once.", code="doubled")
        custodians = self._custodians(roster, row)
        before = [person for person in case.approvers if person in custodians]
        absence.refuse_doubled(actor.person, before, row.deputies or {}, custodians)
        if level.step_up != proved:  # the policy changed since the code was looked at
            raise Conflict("The policy changed at this moment. Press Approve once more.", code="policy_changed")
        return level, granted

    def deny(self, actor: Actor, request_id: str, version: int, reason: str, *, now: datetime) -> Request:
        """Deny with a reason (custodian); one denial ends the request."""
        reason = reason.strip()
        if not reason:
            raise Invalid("Say why you deny it.", fields={"reason": "Say why: the requester and the review need it."})
        with self.attempt(actor, Action.DENY, request_id, now=now):
            roster = self._gather(actor, request_id, now)
            with self.turn(request_id, now=now) as turn:
                self._not_stale(turn.row, version)
                self._need(turn.case(), roster, actor, Action.DENY, Role.CUSTODIAN)
                said = self._decide(turn, actor, Answer.DENY, self._custodians(roster, turn.row), reason=reason)
                place = (turn.row.deputies or {}).get(actor.person)
                data = {"reason": reason, "for": place}
                turn.move(Action.DENY, actor, (Role.CUSTODIAN,), policy=said.policy_hash, data=data, due_at=None)
                return turn.row

    def _decide(
        self,
        turn: Turn,
        actor: Actor,
        answer: Answer,
        custodians: Sequence[str],
        *,
        granted: timedelta | None = None,
        reason: str | None = None,
        step_up: str | None = None,
    ) -> Decision:
        """Store a decision, with the hash of the policy and custodians that it is made under."""
        decision = Decision(
            request_id=turn.row.id,
            team=actor.team,
            person=actor.person,
            answer=answer,
            granted_seconds=int(granted.total_seconds()) if granted else None,
            reason=reason,
            step_up=step_up,
            policy_hash=rules.in_force(self.policy, custodians),
            at=turn.now,
        )
        turn.session.add(decision)
        turn.session.flush()
        return decision

    # ------------------------------------------------------------------------------------ holding

    def reveal(self, actor: Actor, request_id: str, version: int, *, now: datetime) -> Intent:
        """Record that the requester opens the credential, before Vault is asked for anything.

        In ``approved`` this begins the first credential, in ``active`` it replaces a lost one. Hand the intent to
        :meth:`issue`.
        """
        with self.attempt(actor, Action.REVEAL, request_id, now=now):
            roster = self._gather(actor, request_id, now)
            with self.turn(request_id, now=now) as turn:
                self._need(turn.case(), roster, actor, Action.REVEAL, Role.REQUESTER)
                if turn.row.drill is not None:
                    raise NotAllowed(f"{request_id} is a drill: the bot opens its credential, and nobody sees it.")
                return self._begin(turn, roster, actor, version)

    def reveal_drill(self, request_id: str, *, now: datetime) -> Intent:
        """Record that the bot opens a drill's credential: as :meth:`reveal`, by the table's row for drills alone."""
        row = self.row(request_id)
        roster = self._roster(row.account, (row.requester, *row.custodians), now)
        with self.turn(request_id, now=now) as turn:
            if turn.row.drill is None:
                raise NotAllowed(f"{request_id} is no drill, so only its requester may open its credential.")
            step(turn.state, Action.DRILL_REVEAL, (Role.SYSTEM,), request=row.id)
            return self._begin(turn, roster, SYSTEM, turn.row.version)

    def _begin(self, turn: Turn, roster: Roster, actor: Actor, version: int) -> Intent:
        """Write the intent to make a credential down."""
        row, now, grants = turn.row, turn.now, turn.grants()
        live = next((g for g in grants if g.ended_at is None), None)
        if live is not None and live.issued_at is None:
            level = self.names(turn.case())[1]
            longest = self.longest_opening + (level.control.ttl if level and level.control else timedelta(0))
            raise Conflict(
                f"The credential of {row.id} is being opened right now. If nothing appears within "
                f"{rules.say_duration(longest)}, press the button again.",
                code="in_progress",
            )
        self._not_stale(row, version, exact=True)
        self._still_allowed(roster, row)
        ttl = row.expires_at - now if row.expires_at else timedelta(seconds=row.granted_seconds or 0)
        if ttl < SHORTEST_GRANT:
            raise Conflict(f"The time of {row.id} is over. Ask again if you still need access.", code="too_late")
        self.must_be_recorded(turn)
        intent = Intent(row.id, len(grants) + 1, live.number if live else None, ttl)
        if live is None:
            self.must_be_alone(turn)
            turn.session.add(self.new_grant(row, intent.number, now))
        look = now + self.patience
        turn.move(
            Action.REVEAL if row.drill is None else Action.DRILL_REVEAL,
            actor,
            (Role.REQUESTER,) if row.drill is None else (Role.SYSTEM,),
            data={"credential": intent.number, "replaces": intent.replaces},
            due_at=min(row.due_at, look) if row.due_at else look,
        )
        return intent

    def release(self, actor: Actor, request_id: str, version: int, *, now: datetime) -> Request:
        """Hand the access back (requester). The request is ``ending`` until :meth:`finish` confirms.

        A button drawn before the last change still does it: who wants an end wants it whatever happened meanwhile.
        """
        return self._simply(
            actor, Action.RELEASE, Role.REQUESTER, request_id, version=version, now=now, ended_by="release"
        )

    def revoke(self, actor: Actor, request_id: str, version: int, *, now: datetime) -> Request:
        """Take the access away (any custodian of the account, asked or not); as :meth:`release`, never too late."""
        return self._simply(
            actor, Action.REVOKE, Role.CUSTODIAN, request_id, version=version, now=now, ended_by="revoke"
        )

    def intercept(self, actor: Actor, request_id: str, *, now: datetime) -> Request:
        """End the access because somebody else opened the credential (requester): an alarm, and as :meth:`release`.

        Raises :class:`Conflict` while Vault still holds it unopened: then nothing has happened.
        """
        with self.attempt(actor, Action.INTERCEPT, request_id, now=now):
            roster = self._gather(actor, request_id, now)
            case = self.case(request_id)
            self._need(case, roster, actor, Action.INTERCEPT, Role.REQUESTER)
            live = next((g for g in case.grants if g.ended_at is None and g.wrap_accessor is not None), None)
            if live is None or live.wrap_accessor is None:
                raise Conflict(
                    f"No credential of {request_id} is out that somebody could have opened before you. "
                    "Press Show again for one.",
                    code="none_out",
                )
            if live.unopened_at is not None or (
                live.opened_at is None and not self.vault.accessor_is_gone(live.wrap_accessor)
            ):
                raise Conflict(
                    f"Nobody has opened the credential of {request_id}: Vault still holds it. Nothing was changed. "
                    "Try yours again; if its minute is over, press Show again.",
                    code="unused",
                )
            with self.turn(request_id, now=now) as turn:
                self._need(turn.case(), roster, actor, Action.INTERCEPT, Role.REQUESTER)
                turn.move(
                    Action.INTERCEPT,
                    actor,
                    (Role.REQUESTER,),
                    data={"credential": live.number, "opened_at": live.opened_at, "delivery": live.delivery},
                    due_at=now,
                    ended_by="intercept",
                    ended_by_user=actor.person,
                )
                return turn.row

    def _simply(
        self,
        actor: Actor,
        action: Action,
        role: Role,
        request_id: str,
        *,
        version: int,
        now: datetime,
        ended_by: str | None = None,
    ) -> Request:
        """Make a move of one person that needs nothing but the right to make it."""
        with self.attempt(actor, action, request_id, now=now):
            roster = self._gather(actor, request_id, now)
            with self.turn(request_id, now=now) as turn:
                if ended_by is None:
                    self._not_stale(turn.row, version)  # an end is never late: see release() and revoke()
                self._need(turn.case(), roster, actor, action, role, asked=action is not Action.REVOKE)
                changes: dict[str, Any] = {"due_at": None}
                if ended_by is not None:
                    changes = {"due_at": now, "ended_by": ended_by, "ended_by_user": actor.person}
                turn.move(action, actor, (role,), **changes)
                return turn.row

    # ------------------------------------------------------------------------------------ afterwards

    def may_export(self, actor: Actor, request_id: str | None = None, *, now: datetime) -> None:
        """Refuse, on record, anybody whom the policy does not call an auditor."""
        with self.attempt(actor, "log:export", request_id, now=now):
            self._own_team(actor)
            roster = rules.gather(self.directory, self.policy, None, (actor.person,))
            if not rules.is_auditor(self.policy, roster, actor.person):
                raise NotAllowed("Only the auditors named in the policy may export the log.")

    def may_read(self, actor: Actor) -> None:
        """Refuse whoever is no full member of this workspace: guests see the channel, and not all that was run."""
        self._own_team(actor)
        person = self.directory.person(actor.person)
        if person is None or person.inability() is not None:
            raise NotAllowed("Only full members of this workspace may read the commands.")

    def use(self, case: Case) -> commands.Tally:
        """Return what the log says was run under a request; of what was after the end of a login, how much."""
        ended = {grant.identity: grant.ended_at for grant in case.grants if grant.identity and grant.ended_at}
        with self._read() as session:
            return commands.tally(session, case.request.id, ended=ended.get)

    def executed(
        self, request_id: str, first: int, last: int, page: int, size: int
    ) -> tuple[list[commands.Command | None], bool]:
        """Return a page (from 0) of what entries ``first`` to ``last`` say was run, and whether another one follows."""
        with self._read() as session:
            listed = commands.each(session, request_id, first=first, last=last, skip=page * size, limit=size + 1)
            found = list(listed)
        return found[:size], len(found) > size

    # ------------------------------------------------------------------------------------ the clock

    def clock(self, request_id: str, *, now: datetime) -> None:
        """Do what is due on one request: called by the tick, safe late, twice and in parallel."""
        self.abandon(request_id, now=now)
        try:
            self.watch(request_id, now=now)
        except (Unavailable, VaultRefused) as error:
            log.warning("%s: not looked at this time: %s", request_id, error.reason)  # its end must not wait for that
        self.owe(request_id, now=now)
        gone = self._gone(request_id, now)
        with self.turn(request_id, now=now) as turn:
            if turn.row.due_at is not None and turn.row.due_at <= now:
                self._due(turn, gone)
        self.finish(request_id, now=now)

    def _gone(self, request_id: str, now: datetime) -> frozenset[str]:
        """Return who of those who could decide cannot act any more: Slack is asked before the turn, never within."""
        row = self.row(request_id)
        is_due = row.due_at is not None and row.due_at <= now and bool(allowed_roles(State(row.state), Action.NUDGE))
        return nudging.gone(row, self.policy, self.directory) if is_due else frozenset()

    def _due(self, turn: Turn, gone: frozenset[str]) -> None:
        row, now = turn.row, turn.now
        grants = turn.grants()
        begun = any(g.ended_at is None and g.issued_at is None for g in grants)
        live = next((g for g in grants if g.ended_at is None), None)
        lapsed = row.lapse_at is not None and row.lapse_at <= now
        expired = row.expires_at is not None and row.expires_at <= now
        waited = int((now - row.state_at).total_seconds())
        match turn.state:
            case State.PENDING if not lapsed:
                nudging.nudge(turn)
                then = nudging.ask_next(turn, gone)
                turn.look_again(nudging.earliest(row, then, now))
            case State.PENDING:
                turn.move(Action.LAPSE, data={"waited_seconds": waited}, due_at=None)
            case State.ACTIVE if expired:
                turn.move(Action.EXPIRE, due_at=now, ended_by="expire")
            case State.APPROVED | State.ACTIVE if begun:
                # Within its patience, or its end is not confirmed yet: decide nothing, look again soon.
                turn.look_again(now + BACK_OFF[0])
            case State.APPROVED if lapsed:
                turn.move(Action.LAPSE, data={"waited_seconds": waited}, due_at=None)
            case State.APPROVED:
                turn.look_again(row.lapse_at)
            case State.ACTIVE if row.warned_at is None and row.expires_at and now < row.expires_at - WARN_BEFORE:
                # Looked at for another reason: it was handed out unseen, or a fresh one was asked for, and the bot
                # stopped before making it.
                turn.look_again(next_look(live, row.expires_at - WARN_BEFORE, now))
            case State.ACTIVE if row.warned_at is None:
                due_at = next_look(live, row.expires_at, now)
                turn.move(Action.WARN, data={"expires_at": row.expires_at}, warned_at=now, due_at=due_at)
            case State.ACTIVE:
                turn.look_again(next_look(live, row.expires_at, now))
            case _:
                pass  # ending: finish() has it; ended: owe() has; the rest wait for nothing

    # ------------------------------------------------------------------------------------ who may

    def _gather(self, actor: Actor, request_id: str, now: datetime) -> Roster:
        self._own_team(actor)
        try:
            row = self.row(request_id)
        except Invalid as missing:
            raise Conflict(missing.sentence, code="unknown_request") from None
        return self._roster(row.account, (actor.person, row.requester, *row.custodians), now)

    def _roster(self, account: str | None, people: Iterable[str], now: datetime) -> Roster:
        with self._read() as session:
            away = absence.in_force(session, self.team, now=now)
        return rules.gather(self.directory, self.policy, account, people, absences=away)

    def _own_team(self, actor: Actor) -> None:
        # A shared channel shows our buttons to people of other workspaces.
        if actor.team != self.team:
            raise NotAllowed("Only people of this workspace may use break-glass access here.", code="other_workspace")

    def _need(
        self, case: Case, roster: Roster, actor: Actor, action: Action, role: Role, *, asked: bool = True
    ) -> None:
        """Refuse, with the precise reason, unless the state has the action and the actor has the role."""
        row = case.request
        step(case.state, action, (role,), request=row.id)
        why = rules.explain(
            self.policy,
            roster,
            row.account,
            actor.person,
            role,
            requester=row.requester,
            approvers=case.approvers,
            asked=row.custodians if asked else None,
            stood_in=row.deputies or {},
            level=row.level,
        )
        if why is not None:
            raise NotAllowed(why)

    def _custodians(self, roster: Roster, row: Request) -> tuple[str, ...]:
        """Return whose approval of this request counts now: asked then, and able custodians or deputies still."""
        account = self.policy.accounts.get(row.account)
        if account is None:
            return ()
        level = account.levels.get(row.level)
        stood_in = row.deputies or {}
        return rules.voters(
            self.policy, roster, account, row.requester, asked=row.custodians, stood_in=stood_in, level=level
        )

    def _still_allowed(self, roster: Roster, row: Request) -> Level:
        """Judge the request again by the policy and the people as they are now."""
        verdict = rules.evaluate(
            self.policy,
            roster,
            account=row.account,
            level=row.level,
            requester=row.requester,
            threshold=row.threshold,
            asked=timedelta(seconds=row.asked_seconds),
            reason=row.reason,
            standard_path=row.standard_path,
            incident=row.incident,
            is_drill=row.drill is not None,
            with_leadership=True,
        )
        try:
            return _granted(verdict)[1]
        except Invalid as changed:
            raise Conflict(f"The policy no longer allows {row.id}: {changed.sentence}", code="policy_changed") from None

    @staticmethod
    def _not_stale(row: Request, version: int, *, exact: bool = False) -> None:
        oldest = row.version if exact else row.state_version
        if not oldest <= version <= row.version:
            raise Conflict(
                f"That button is out of date: {row.id} {now_is(State(row.state))}. Nothing was changed.", code="stale"
            )


def _granted(verdict: Verdict) -> tuple[Account, Level]:
    verdict.require()
    if verdict.account is None or verdict.level is None:
        raise NotAllowed("The policy does not have this account and level.")
    return verdict.account, verdict.level


def _public_key(level: Level, text: str) -> PublicKey | None:
    """Read the key that a level needs; of what a level does not need nothing is kept. Raises :class:`Invalid`."""
    if not ENGINES[level.settings.engine].needs_public_key:
        return None
    try:
        return read_public_key(text)
    except ValueError as error:
        why = str(error)
    # Outside the handler, so that nothing of what was typed hangs on the error.
    raise Invalid(f"The public key cannot be used: {why}", fields={"public_key": why})


def _new_id(session: Session) -> str:
    for length in (4, 4, 4, 5, 6, 7, 8):
        name = "BG-" + "".join(secrets.choice(_ID_LETTERS) for _ in range(length))
        if session.get(Request, name) is None:
            return name
    raise Unavailable("No free request number was found. Try again.")
