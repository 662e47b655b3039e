"""Who owes the review of a use, until when, and what becomes of what it asks for?

Rules
-----
* A review is somebody's: the clock gives it to an able reviewer as soon as the use has ended, and to somebody else when
  its owner can no longer file it. Whoever may review may file it all the same; the owner is told and reminded.
* Who asked or approved can never review. Whose own use the requester reviewed within a month, and who answers for the
  account, is chosen only where nobody else is left, and the entry says so.
* Late: reminded daily; a day later leadership is called, and each week again. Who owes the review of a use of their own
  is not let in again (``policy.evaluate``).
* Misuse, and what asks for two, is judged by two people: the first changes no state, the second says it in own words,
  and both stand also where they disagree.
* What a review wants done is a follow-up: its owner is reminded on its day and weekly until somebody says it is done.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlmodel import col, func, select, update

from storage.audit import SYSTEM
from storage.models import Entry, FollowUpWord, Outcome, Request, Review, SecondReview, State
from storage.models import FollowUp as FollowUpRow
from workflows import asking
from workflows import policy as rules
from workflows.door import Door, append_entry
from workflows.errors import Conflict, Invalid, NotAllowed, Unavailable
from workflows.lifecycle import Action, Role, allowed_roles

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlmodel import Session

    from storage.audit import Actor
    from storage.database import Write
    from workflows.door import Case, Turn
    from workflows.policy import Directory, Overdue, Policy, Roster

REMIND_EVERY: Final = timedelta(days=1)
ESCALATE_AFTER: Final = timedelta(days=1)  # the review was due
ESCALATE_EVERY: Final = timedelta(days=7)
FOLLOW_UP_EVERY: Final = timedelta(days=7)
FOLLOW_UP_AT: Final = time(9, tzinfo=UTC)  # of the day on which it is due
RECIPROCAL_WITHIN: Final = timedelta(days=30)
LEAST_WORDS: Final = 10  # characters of an answer that is evidence
_TRY_AGAIN: Final = timedelta(minutes=5)
_NOBODY: Final = timedelta(hours=1)
_AT_ONCE: Final = 100


@dataclass(frozen=True, slots=True)
class FollowUp:
    """Something a review wants done, by whom and until when."""

    what: str
    owner: str
    due: date


@dataclass(frozen=True, slots=True)
class Findings:
    """What the review form says. The two reasons are the evidence for the two answers above them."""

    threshold_met: bool
    standard_path_enough: bool
    used_as_stated: bool
    outcome: Outcome
    findings: str
    follow_ups: tuple[FollowUp, ...] = ()
    threshold_why: str = ""
    standard_path_why: str = ""


@dataclass(frozen=True, slots=True)
class Candidate:
    """Somebody who may file a review; the better choice sorts first.

    ``is_reciprocal``: the requester reviewed a use of theirs within a month. ``is_involved``: they answer for the
    account, as its owner or a custodian. ``open``: reviews that are theirs already.
    """

    person: str
    is_reciprocal: bool
    is_involved: bool
    is_away: bool
    open: int

    def rank(self) -> tuple[bool, bool, bool, int, str]:
        """Return what candidates are sorted by."""
        return self.is_reciprocal, self.is_involved, self.is_away, self.open, self.person


class Reviewing(Door):
    """The part of the desk at which reviews are owed, filed and followed up."""

    policy: Policy
    directory: Directory
    team: str

    def _gather(self, actor: Actor, request_id: str, now: datetime) -> Roster:
        raise NotImplementedError

    def _roster(self, account: str | None, people: Iterable[str], now: datetime) -> Roster:
        raise NotImplementedError

    def _own_team(self, actor: Actor) -> None:
        raise NotImplementedError

    def _need(
        self, case: Case, roster: Roster, actor: Actor, action: Action, role: Role, *, asked: bool = True
    ) -> None:
        raise NotImplementedError

    @staticmethod
    def _not_stale(row: Request, version: int, *, exact: bool = False) -> None:
        raise NotImplementedError

    # ------------------------------------------------------------------------------------ filing

    def review(self, actor: Actor, request_id: str, version: int, form: Findings, *, now: datetime) -> Request:
        """File the review (reviewer: neither the requester nor one who approved).

        Where two are needed, the request waits for the second. Raises :class:`Invalid` with the fields at fault.
        """
        _complete(form)
        with self.attempt(actor, Action.REVIEW, request_id, now=now):
            roster = self._gather(actor, request_id, now)
            with self.turn(request_id, now=now) as turn:
                row = turn.row
                self._not_stale(row, version)
                case = turn.case()
                self._need(case, roster, actor, Action.REVIEW, Role.REVIEWER)
                if case.review is not None:
                    raise Conflict(
                        f"<@{case.review.reviewer}> has filed the review of {row.id}, and it waits for a second "
                        "reviewer. Open it again to be that.",
                        code="filed",
                    )
                told: dict[str, Any] = {
                    "threshold_met": form.threshold_met,
                    "standard_path_enough": form.standard_path_enough,
                    "used_as_stated": form.used_as_stated,
                    "outcome": form.outcome.value,
                    "findings": form.findings.strip(),
                    "follow_ups": asked_for(turn.session, row.id, form.follow_ups, request_id=row.id, now=now),
                    "threshold_why": form.threshold_why.strip(),
                    "standard_path_why": form.standard_path_why.strip(),
                }
                turn.session.add(
                    Review(request_id=row.id, team=actor.team, reviewer=actor.person, filed_at=now, **told)
                )
                if form.outcome is Outcome.MISUSE or (row.reviews_needed or 1) > 1:
                    due = now + self.policy.review_within
                    turn.move(
                        Action.REVIEW_FIRST,
                        actor,
                        (Role.REVIEWER,),
                        data=told | {"review_due_at": due},
                        review_due_at=due,
                        due_at=now,
                    )
                else:
                    turn.move(Action.REVIEW, actor, (Role.REVIEWER,), data=told, due_at=None)
                return row

    def review_second(
        self, actor: Actor, request_id: str, version: int, outcome: Outcome, findings: str, *, now: datetime
    ) -> Request:
        """Confirm the first review, or disagree with it (a reviewer who did not file that one)."""
        if len(findings.strip()) < LEAST_WORDS:
            why = f"Say in your own words what you found, in at least {LEAST_WORDS} characters."
            raise Invalid("The second review is not complete.", fields={"findings": why})
        with self.attempt(actor, Action.REVIEW_SECOND, request_id, now=now):
            roster = self._gather(actor, request_id, now)
            with self.turn(request_id, now=now) as turn:
                self._not_stale(turn.row, version)
                case = turn.case()
                self._need(case, roster, actor, Action.REVIEW_SECOND, Role.REVIEWER)
                self._is_another(case, actor)
                if case.review is None:
                    raise Conflict(
                        f"{request_id} has no first review yet. Open it again to file that.", code="no_first"
                    )
                told = {"outcome": outcome.value, "findings": findings.strip()}
                turn.session.add(
                    SecondReview(request_id=request_id, team=actor.team, reviewer=actor.person, filed_at=now, **told)
                )
                turn.move(
                    Action.REVIEW_SECOND,
                    actor,
                    (Role.REVIEWER,),
                    data=told | {"agrees": outcome.value == case.review.outcome},
                    due_at=None,
                )
                return turn.row

    @staticmethod
    def _is_another(case: Case, actor: Actor) -> None:
        """Refuse whoever filed the first review: two reviews by one person are one."""
        if case.review is not None and case.review.reviewer == actor.person:
            raise NotAllowed(f"You filed the first review of {case.request.id}, so somebody else must file the second.")

    # ------------------------------------------------------------------------------------ whose it is

    def reassign(self, actor: Actor, request_id: str, owner: str, *, now: datetime) -> Request:
        """Give a review to somebody else (its owner, leadership, security), who must be free of conflicts."""
        with self.attempt(actor, Action.REASSIGN, request_id, about={"owner": owner}, now=now):
            roster = self._gather(actor, request_id, now)
            with self.turn(request_id, now=now) as turn:
                row, case = turn.row, turn.case()
                self._may_reassign(case, roster, actor)
                if owner == row.review_owner:
                    raise Conflict(f"The review of {row.id} is <@{owner}>'s already.", code="same_owner")
                if (why := self._conflict(case, roster, owner)) is not None:
                    raise NotAllowed(why, code="conflict_of_interest")
                able = self.candidates(turn.session, case, roster, now=now)
                chosen = next(one for one in able if one.person == owner)
                if chosen.is_reciprocal and not all(one.is_reciprocal for one in able):
                    raise NotAllowed(
                        f"<@{row.requester}> reviewed a use of <@{owner}>'s within {RECIPROCAL_WITHIN.days} days, so "
                        "somebody else should review this one.",
                        code="conflict_of_interest",
                    )
                turn.move(Action.REASSIGN, actor, (Role.OVERSEER,), data=_told(chosen, row, case), review_owner=owner)
                return row

    def may_reassign(self, actor: Actor, request_id: str, *, now: datetime) -> Case:
        """Return the case if the actor may give its review to somebody else: asked before the form is opened."""
        with self.attempt(actor, Action.REASSIGN, request_id, now=now):
            roster = self._gather(actor, request_id, now)
            case = self.case(request_id)
            self._may_reassign(case, roster, actor)
            return case

    def reviewer_named(self, words: str) -> str:
        """Return the user id of the reviewer whom somebody typed: ``<@U…>``, ``U…`` or ``@name``."""
        typed = words.strip().removeprefix("<").removesuffix(">").partition("|")[0].removeprefix("@")
        roster = rules.gather(self.directory, self.policy, None)
        known = {
            person: roster.people[person].name
            for person in roster.resolve(self.policy.reviewers)
            if person in roster.people
        }
        if typed in known:
            return typed
        found = [person for person, name in known.items() if name.lower() == typed.lower()]
        if len(found) != 1:
            raise Invalid("Name one of the reviewers, such as @sam.")
        return found[0]

    def _may_reassign(self, case: Case, roster: Roster, actor: Actor) -> None:
        if actor.person == case.request.review_owner and roster.able(actor.person):
            # The table is asked all the same: a review that is filed is nobody's to give away.
            if not allowed_roles(case.state, Action.REASSIGN):
                self._need(case, roster, actor, Action.REASSIGN, Role.OVERSEER)
            return
        self._need(case, roster, actor, Action.REASSIGN, Role.OVERSEER)

    def _conflict(self, case: Case, roster: Roster, person: str) -> str | None:
        """Return why somebody can never file this review, in the third person; None: they can."""
        row, who = case.request, f"<@{person}>"
        if person == row.requester:
            return f"{who} asked for this access, so somebody else must review it."
        if person in case.approvers:
            return f"{who} approved this access, so somebody else must review it."
        if case.review is not None and case.review.reviewer == person:
            return f"{who} filed the first review, so somebody else must file the second."
        if person not in roster.resolve(self.policy.reviewers):
            return f"{who} is not a reviewer. The policy names who is."
        if not roster.able(person):
            known = roster.people.get(person)
            return f"{who} {known.inability() if known else 'is not known to Slack'}, so the review cannot be theirs."
        return None

    def candidates(self, session: Session, case: Case, roster: Roster, *, now: datetime) -> list[Candidate]:
        """Return who may file this review, the best choice first."""
        row = case.request
        able = [p for p in roster.resolve(self.policy.reviewers) if self._conflict(case, roster, p) is None]
        # Attack: two who use the account review each other, and each is kind.
        since = now - RECIPROCAL_WITHIN
        theirs = (
            select(Request.requester)
            .join(Review, col(Review.request_id) == Request.id)
            .where(Review.reviewer == row.requester, Review.filed_at >= since)
        )
        reviewed = set(session.exec(theirs))
        counted = (
            select(Request.review_owner, func.count())
            .where(col(Request.state).in_(_OWED), col(Request.review_owner).is_not(None), Request.id != row.id)
            .group_by(col(Request.review_owner))
        )
        load = dict(session.exec(counted).all())
        account = self.policy.accounts.get(row.account)
        answers = {*roster.resolve((account.owner, *asking.custodians(account)))} if account is not None else set()
        found = [Candidate(p, p in reviewed, p in answers, roster.is_away(p), load.get(p, 0)) for p in able]
        return sorted(found, key=Candidate.rank)

    # ------------------------------------------------------------------------------------ the clock

    def owe(self, request_id: str, *, now: datetime) -> None:
        """Do what is due on a review: give it an owner, remind, call leadership. Safe late, twice and in parallel."""
        row = self.row(request_id)
        if row.state not in _OWED or row.due_at is None or row.due_at > now:
            return
        roster: Roster | None
        try:
            roster = self._roster(row.account, (), now)
        except Unavailable:
            roster = None  # reminders go all the same
        with self.turn(request_id, now=now) as turn:
            row = turn.row
            if row.state not in _OWED or row.due_at is None or row.due_at > now:
                return
            if roster is not None:
                self._settle_owner(turn, roster)
            reminded = _last(turn.session, row.id, Action.REMIND)
            due = row.review_due_at
            if due is not None and due <= now:
                if reminded is None or reminded + REMIND_EVERY <= now or reminded < due:
                    turn.move(Action.REMIND, data={"review_due_at": due, "owner": row.review_owner})
                    reminded = now
                last = row.review_escalated_at
                if due + ESCALATE_AFTER <= now and (last is None or last + ESCALATE_EVERY <= now):
                    turn.move(
                        Action.REVIEW_ESCALATE,
                        data={"review_due_at": due, "owner": row.review_owner, "days_late": (now - due).days},
                        review_escalated_at=now,
                    )
                look = min(now, reminded) + REMIND_EVERY
            else:
                look = now + REMIND_EVERY if due is None else min(due, now + REMIND_EVERY)
            again = _TRY_AGAIN if roster is None else _NOBODY if row.review_owner is None else REMIND_EVERY
            turn.look_again(min(look, now + again))

    def _settle_owner(self, turn: Turn, roster: Roster) -> None:
        """Give the review an owner where it has none, or one who can no longer file it."""
        row, case = turn.row, turn.case()
        owner = row.review_owner
        able = self.candidates(turn.session, case, roster, now=turn.now)
        mine = next((one for one in able if one.person == owner), None)
        if mine is not None and not (mine.is_away and not all(one.is_away for one in able)):
            return
        if not able:
            return
        chosen = next((one for one in able if not one.is_away), able[0]) if mine is not None else able[0]
        turn.move(Action.ASSIGN, data=_told(chosen, row, case), review_owner=chosen.person)

    # ------------------------------------------------------------------------------------ who is not let in

    def overdue(self, person: str, account: str, *, now: datetime) -> tuple[Overdue, ...]:
        """Return a person's own uses of an account whose reviews are late, the oldest first."""
        query = (
            select(Request)
            .where(
                Request.requester == person,
                Request.team == self.team,
                Request.account == account,
                col(Request.drill).is_(None),  # a rehearsal is no use
                col(Request.state).in_(_OWED),
                col(Request.review_due_at) < now,
            )
            .order_by(col(Request.review_due_at), col(Request.id))
        )
        with self._read() as session:
            return tuple(rules.Overdue(row.id, row.review_owner or "") for row in session.exec(query))

    # ------------------------------------------------------------------------------------ follow-ups

    def follow_up(
        self,
        about: str,
        asked: Sequence[FollowUp],
        *,
        request_id: str | None = None,
        actor: Actor = SYSTEM,
        now: datetime,
    ) -> list[str]:
        """Put on record what something other than a review wants done, such as a drill that failed; return the ids.

        ``about``: what it follows from, "DR-4F2K"; ids are made of it. ``request_id``: in whose thread it is told.
        """
        with self._write() as session:
            made = asked_for(session, about, asked, request_id=request_id, now=now)
            for one in made:
                append_entry(session, request_id, event=FollowUpWord.OPEN.value, actor=actor, at=now, data=one)
        return [one["id"] for one in made]

    def open_follow_ups(self, owner: str | None = None) -> list[FollowUpRow]:
        """Return what is still to be done, the most urgent first: by ``owner``, or by anybody."""
        query = select(FollowUpRow).where(col(FollowUpRow.closed_at).is_(None))
        if owner is not None:
            query = query.where(FollowUpRow.owner == owner)
        with self._read() as session:
            return list(session.exec(query.order_by(col(FollowUpRow.due), col(FollowUpRow.id))))

    def may_close(self, actor: Actor, follow_up_id: str, *, now: datetime) -> FollowUpRow:
        """Return the follow-up if the actor may say that it is done: its owner, or a reviewer."""
        with self._read() as session:
            row = session.get(FollowUpRow, follow_up_id)
        if row is None:
            raise Conflict("There is no such follow-up. Nothing was changed.", code="unknown_follow_up")
        about = {"id": row.id}
        with self.attempt(actor, FollowUpWord.CLOSE.value, row.request_id, about=about, now=now):
            self._own_team(actor)
            roster = rules.gather(self.directory, self.policy, None, (actor.person,))
            reviewers = roster.resolve(self.policy.reviewers)
            if not roster.able(actor.person) or actor.person not in {row.owner, *reviewers}:
                raise NotAllowed(f"Only its owner, <@{row.owner}>, and the reviewers may say that it is done.")
            if row.closed_at is not None:
                raise Conflict(f"<@{row.closed_by}> has said already that it is done.", code="closed")
        return row

    def close_follow_up(self, actor: Actor, follow_up_id: str, note: str, *, now: datetime) -> FollowUpRow:
        """Say that a follow-up is done, and what was done (its owner, or a reviewer)."""
        note = note.strip()
        if len(note) < LEAST_WORDS:
            why = f"Say what was done, in at least {LEAST_WORDS} characters."
            raise Invalid(why, fields={"note": why})
        row = self.may_close(actor, follow_up_id, now=now)
        with self._write() as session:
            done = session.exec(
                update(FollowUpRow)
                .where(col(FollowUpRow.id) == row.id, col(FollowUpRow.closed_at).is_(None))
                .values(closed_at=now, closed_by=actor.person, note=note, remind_at=None)
            )
            if done.rowcount != 1:
                raise Conflict("Somebody else said at the same moment that it is done.", code="closed")
            told = {"id": row.id, "what": row.what, "owner": row.owner, "note": note}
            append_entry(session, row.request_id, event=FollowUpWord.CLOSE.value, actor=actor, at=now, data=told)
        return row

    def remind_follow_ups(self, *, now: datetime) -> int:
        """Remind the owners of what is due and not done; return of how many. Safe late, twice and in parallel."""
        query = select(FollowUpRow).where(col(FollowUpRow.remind_at) <= now, col(FollowUpRow.closed_at).is_(None))
        with self._read() as session:
            due = list(session.exec(query.order_by(col(FollowUpRow.remind_at)).limit(_AT_ONCE)))
        reminded = 0
        for row in due:
            with self._write() as session:
                # The row is the claim: of two bots one moves its time on, and that one says so.
                done = session.exec(
                    update(FollowUpRow)
                    .where(
                        col(FollowUpRow.id) == row.id,
                        col(FollowUpRow.remind_at) == row.remind_at,
                        col(FollowUpRow.closed_at).is_(None),
                    )
                    .values(remind_at=now + FOLLOW_UP_EVERY)
                )
                if done.rowcount != 1:
                    continue
                told = {"id": row.id, "what": row.what, "owner": row.owner, "due": row.due}
                append_entry(session, row.request_id, event=FollowUpWord.REMIND.value, actor=SYSTEM, at=now, data=told)
                reminded += 1
        return reminded


# The states in which a review may be filed; the table says which.
_OWED: Final = frozenset(state.value for state in State if allowed_roles(state, Action.REVIEW))


def _complete(form: Findings) -> None:
    fields = {}
    if not form.findings.strip():
        fields["findings"] = "Say what you found, also when all was in order."
    for name, words in (("threshold_why", form.threshold_why), ("standard_path_why", form.standard_path_why)):
        if len(words.strip()) < LEAST_WORDS:
            fields[name] = f"Say how you know, in at least {LEAST_WORDS} characters."
    if any(not f.what.strip() or not f.owner for f in form.follow_ups):
        fields["follow_up_what"] = "Each follow-up needs what is to be done and an owner."
    if fields:
        raise Invalid("The review is not complete.", fields=fields)


def asked_for(
    session: Write, about: str, asked: Sequence[FollowUp], *, request_id: str | None, now: datetime
) -> list[dict[str, str]]:
    """Write the rows of what is to be done; return them as the entry holds them, which the caller appends."""
    known = session.exec(select(func.count()).where(col(FollowUpRow.id).startswith(f"{about}/", autoescape=True))).one()
    made = []
    for number, one in enumerate(asked, start=known + 1):
        told = {"id": f"{about}/{number}", "what": one.what.strip(), "owner": one.owner, "due": one.due.isoformat()}
        remind_at = datetime.combine(one.due, FOLLOW_UP_AT)
        row = FollowUpRow(**told, request_id=request_id, opened_at=now, remind_at=remind_at, closed_at=None)
        session.add(row)
        made.append(told)
    return made


def _told(chosen: Candidate, row: Request, case: Case) -> dict[str, Any]:
    """Return what an entry says of a review's new owner; what there is against them is named."""
    return {
        "owner": chosen.person,
        "instead_of": row.review_owner,
        "second": True if case.review is not None else None,
        "reciprocal": True if chosen.is_reciprocal else None,
        "involved": True if chosen.is_involved else None,
        "review_due_at": row.review_due_at,
    }


def _last(session: Session, request_id: str, action: Action) -> datetime | None:
    """Return when the bot last made this move. (Its own moves are never refused.)"""
    query = select(func.max(Entry.seq)).where(Entry.request_id == request_id, Entry.event == action.value)
    seq = session.exec(query).one()
    return session.exec(select(Entry.at).where(Entry.seq == seq)).one() if seq is not None else None
