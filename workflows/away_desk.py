"""How does somebody say that they are away, and that they are back?

Rules
-----
* Everybody says it of themselves; there is no way to say it of somebody else.
* A typed name is looked for among those who could be named, and nowhere else, so that nobody gets a right by taking a
  name. What two people are called names neither.
* It is on record from when until when and who stands in; why, is nobody's business.
* The answer repeats what was understood, says where the deputy is asked and where not, and which account nobody could
  open meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlmodel import col, select

from storage.audit import append, write_time
from storage.models import Absence
from workflows import absence, asking
from workflows import policy as rules
from workflows.absence import AWAY, BACK, Absent
from workflows.door import Door
from workflows.errors import Conflict, Invalid, NotAllowed

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from sqlmodel import Session

    from storage.audit import Actor
    from storage.database import Database
    from workflows.policy import Account, Directory, Policy, Roster


@dataclass(frozen=True, slots=True)
class Declared:
    """What somebody's absence comes to.

    ``asked``: the accounts in which the deputy is asked. ``unasked``: those in which nobody is, and why. ``shut``: what
    could not be opened meanwhile, a sentence each.
    """

    absent: Absent
    asked: tuple[Account, ...] = ()
    unasked: tuple[tuple[Account, str], ...] = ()
    shut: tuple[str, ...] = ()


class AwayDesk(Door):
    """Where people say that they are away."""

    def __init__(self, database: Database, policy: Callable[[], Policy], directory: Directory, *, team: str) -> None:
        super().__init__(database)
        self._policy = policy
        self._directory = directory
        self._team = team

    def away(self, actor: Actor, until: datetime, deputy: str | None, *, now: datetime) -> Declared:
        """Mark the actor as away until then; what was said before no longer counts. Raises :class:`NotAllowed`."""
        about = {"until": write_time(until), **({"deputy": deputy} if deputy else {})}
        with self.attempt(actor, AWAY, about=about, now=now):
            roster = self._roster(actor, deputy, now=now)
            if deputy is not None:
                self._may_stand_in(roster, actor.person, deputy)
            with self._write() as session:
                open_one = _open_one(session, actor)
                if open_one is not None:
                    open_one.ended_at = now
                    session.add(open_one)
                    session.flush()
                session.add(
                    Absence(team=actor.team, person=actor.person, since=now, until=until, deputy=deputy, ended_at=None)
                )
                session.flush()
                append(session, event=AWAY, actor=actor, at=now, data=about)
        return self._declared(roster.with_absences({actor.person: Absent(now, until, deputy)}), actor.person)

    def back(self, actor: Actor, *, now: datetime) -> None:
        """End the actor's absence. Raises :class:`Conflict` when there is none."""
        with self.attempt(actor, BACK, now=now):
            self._roster(actor, None, now=now)
            with self._write() as session:
                open_one = _open_one(session, actor)
                if open_one is None or open_one.until <= now:
                    raise Conflict("You are not marked as away.", code="not_away")
                open_one.ended_at = now
                session.add(open_one)
                session.flush()
                append(session, event=BACK, actor=actor, at=now, data={"until": write_time(open_one.until)})

    def shown(self, actor: Actor, *, now: datetime) -> Declared | None:
        """Return how the actor's absence stands; None: they are not away."""
        roster = self._roster(actor, None, now=now)
        return self._declared(roster, actor.person) if actor.person in roster.absences else None

    def stands_in_for(self, person: str, *, now: datetime) -> dict[str, Absent]:
        """Return who is away and named this person."""
        with self._read() as session:
            gone = absence.in_force(session, self._team, now=now)
        return {one: absent for one, absent in gone.items() if absent.deputy == person}

    def marked(self, person: str, *, now: datetime) -> Absent | None:
        """Return the absence of somebody who acts all the same; None: they are not away."""
        with self._read() as session:
            return absence.in_force(session, self._team, now=now).get(person)

    def find(self, actor: Actor, name: str, *, now: datetime) -> str:
        """Return the user id of the deputy who is called this. Raises :class:`NotAllowed`, :class:`Invalid`."""
        wanted = name.removeprefix("@").strip().casefold()
        with self.attempt(actor, AWAY, about={"deputy_named": name[:80]}, now=now):
            roster = self._roster(actor, None, now=now)
            accounts = self._held(roster, actor.person)
            listed = dict.fromkeys(one for account in accounts for one in roster.resolve(account.deputies))
            known = [roster.people[one] for one in (*listed, actor.person) if one in roster.people]
            found = {one.id for one in known if wanted in _names(one)}
            if len(found) == 1:
                return found.pop()
            if found:
                raise Invalid("Two people are called that. Write the id instead: <@U0123ABCD>. Nothing was changed.")
            able = [f"<@{one}>" for one in listed if roster.able(one) and one != actor.person]
            raise NotAllowed(
                "Nobody of that name may stand in for you: it must be one of those whom the policy lists under "
                f"“deputies” of an account of yours. Those are: {', '.join(able) or 'nobody'}. Nothing was changed.",
                code="not_listed",
            )

    # ------------------------------------------------------------------------------------

    def _roster(self, actor: Actor, deputy: str | None, *, now: datetime) -> Roster:
        if actor.team != self._team:
            raise NotAllowed("Only people of this workspace may use break-glass access here.", code="other_workspace")
        with self._read() as session:
            gone = absence.in_force(session, self._team, now=now)
        also = (actor.person, *((deputy,) if deputy else ()))
        roster = rules.gather(self._directory, self._policy(), None, also, absences=gone)
        person = roster.people.get(actor.person)
        if person is None or person.inability() is not None:
            raise NotAllowed("Only full members of this workspace take part in break-glass access.")
        return roster

    def _held(self, roster: Roster, person: str) -> tuple[Account, ...]:
        return tuple(
            one for one in self._policy().accounts.values() if person in roster.resolve(asking.custodians(one))
        )

    def _may_stand_in(self, roster: Roster, person: str, deputy: str) -> None:
        if deputy == person:
            raise NotAllowed("You cannot stand in for yourself. Name somebody else, or nobody.", code="own_deputy")
        known = roster.people.get(deputy)
        why = "is nobody whom Slack knows" if known is None else known.inability()
        if why is not None:
            raise NotAllowed(f"<@{deputy}> {why}, so they cannot stand in for you.", code="unfit_deputy")
        accounts = self._held(roster, person)
        if not accounts:
            raise NotAllowed("You are a custodian of no account, so there is nothing to stand in for.", code="no_place")
        if not any(deputy in roster.resolve(one.deputies) for one in accounts):
            listed = dict.fromkeys(d for one in accounts for d in roster.resolve(one.deputies) if d != person)
            names = ", ".join(f"<@{one}>" for one in listed) or "nobody"
            raise NotAllowed(
                f"<@{deputy}> is not listed under “deputies” of any account of yours, so they cannot stand in for you. "
                f"Listed there: {names}.",
                code="not_listed",
            )

    def _declared(self, roster: Roster, person: str) -> Declared:
        absent = roster.absences[person]
        asked, unasked, shut = [], [], []
        for account in self._held(roster, person):
            if absent.deputy is not None:
                if (why := _why_not(self._policy(), roster, account, person, absent.deputy)) is None:
                    asked.append(account)
                else:
                    unasked.append((account, why))
            there = rules.present(self._policy(), roster, account)
            for level in account.real_levels.values():
                if len(there) < level.quorum:
                    have = "nobody is" if not there else f"only {len(there)} {'is' if len(there) == 1 else 'are'}"
                    shut.append(
                        f"{account.title}, “{level.title}”, needs {level.quorum} of its custodians, and {have} there."
                    )
        return Declared(absent, tuple(asked), tuple(unasked), tuple(shut))


def _names(person: rules.Person) -> set[str]:
    return {one.casefold() for one in (*person.handles, person.name, person.id) if one}


def _open_one(session: Session, actor: Actor) -> Absence | None:
    query = select(Absence).where(
        Absence.team == actor.team, Absence.person == actor.person, col(Absence.ended_at).is_(None)
    )
    return session.exec(query).first()


def _why_not(policy: Policy, roster: Roster, account: Account, person: str, deputy: str) -> str | None:
    if (places := rules.stand_ins(policy, roster, account, None).get(deputy)) is not None:
        return None if person in places else "somebody else is asked there"
    if deputy in roster.resolve(asking.custodians(account)):
        return "they are its custodian already, and count once"
    if deputy not in roster.resolve(account.deputies):
        return "it does not list them under “deputies”"
    if deputy in roster.absences:
        return "they are marked as away themselves"
    return "they can hold no role at this moment"
