"""When is a drill due, and who begins it when nobody does?

Rules
-----
* Due: the account was never drilled, the last drill is older than the policy's ``every``, its ``cron`` has come by
  since, or the custodians are not those of the last drill any more. Any drill counts, also one that somebody typed.
* One a day at the most: what people make of a mistake in the policy, or in a group, must not page them all night.
* Several bots on one database are normal: a row holds the plan, and is the claim under which it is begun.
* An announced drill is on record, and so in the channel, a day before. Of any other nothing is seen until it begins.
* Its requester is a responder, in turn; nothing is asked of them.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from sqlmodel import col, select

from storage.audit import SYSTEM, append, write_time
from storage.holder import is_held, new_holder
from storage.models import Feed, Request
from workflows import policy as rules
from workflows.drill_score import PLAN
from workflows.errors import BreakGlassError, Unavailable

if TYPE_CHECKING:
    from datetime import datetime

    from sqlmodel import Session

    from workflows.desk import Desk
    from workflows.drill import Drills
    from workflows.drill_rules import DrillRules
    from workflows.policy import Account, Roster

log = logging.getLogger(__name__)

FOLLOWER: Final = "drill"
NOTICE: Final = timedelta(days=1)  # before an announced drill, before the very first one, and between two
_AGAIN: Final = timedelta(minutes=10)  # when it could not be begun since something did not answer
_HOLD: Final = timedelta(minutes=5)


class Schedule:
    """Begins what is due. ``tick`` is for a clock, every minute or so."""

    def __init__(self, desk: Desk, drills: Drills) -> None:
        self._desk = desk
        self._drills = drills
        self._holder = new_holder()

    def tick(self, *, now: datetime) -> list[Request]:
        """Plan what is due and begin what was planned; return what was begun. Raises DatabaseDown."""
        begun = []
        for account in self._desk.policy.accounts.values():
            if account.drill is None:
                continue
            try:
                row = self._one(account, account.drill, now)
            except BreakGlassError as error:
                log.warning("a drill of %s was not begun: %s", account.name, error.sentence)
            else:
                begun += [row] if row is not None else []
        return begun

    def _one(self, account: Account, about: DrillRules, now: datetime) -> Request | None:
        with self._desk.database.read() as session:
            last, plan = _last(session, account), session.get(Feed, _key(account))
        if plan is not None and (is_held(plan, now) or (plan.retry_at is not None and plan.retry_at > now)):
            return None
        roster = rules.gather(self._desk.directory, self._desk.policy, account.name)
        why = _why(account, about, last, roster, now)
        if why is None:
            if plan is not None and plan.retry_at is not None:
                self._plan(account, None, None, now)  # somebody was quicker
            return None
        if plan is None or plan.retry_at is None:
            wait = NOTICE if about.is_announced or last is None else timedelta(0)
            if not self._plan(account, now + wait, why if about.is_announced else None, now) or wait:
                return None
        if not self._take(account, now):
            return None
        return self._begin(account, why, last, roster, now)

    def _begin(self, account: Account, why: str, last: Request | None, roster: Roster, now: datetime) -> Request | None:
        retry_at: datetime | None = now + NOTICE  # who is refused today would be so in ten minutes
        try:
            requester = self._requester(account, last, roster)
            row = self._drills.begin(SYSTEM, account.name, requester, why=why, now=now)
            retry_at = None
        except Unavailable:
            retry_at = now + _AGAIN
            raise
        else:
            return row
        finally:
            with self._desk.database.write() as session:
                plan = session.get(Feed, _key(account))
                if plan is not None and plan.holder == self._holder:
                    plan.holder, plan.held_until, plan.retry_at = None, None, retry_at
                    session.add(plan)

    def _requester(self, account: Account, last: Request | None, roster: Roster) -> str:
        """Return the responder whose turn it is, of those who could ask; the last one comes last."""
        desk, about = self._desk, account.drill
        people = sorted(roster.resolve(account.responders))
        if last is not None and last.requester in people:
            turn = people.index(last.requester) + 1
            people = [*people[turn:], *people[:turn]]
        for person in people:
            known = rules.gather(desk.directory, desk.policy, account.name, (person,))
            verdict = rules.evaluate(
                desk.policy,
                known,
                account=account.name,
                level=about.level if about else None,
                requester=person,
                preview=True,
                is_drill=True,
            )
            if verdict.is_allowed:
                return person
        return people[0] if people else account.owner  # the gate says why not, on record

    def _plan(self, account: Account, at: datetime | None, why: str | None, now: datetime) -> bool:
        """Write down when it begins, and announce it if there is a reason to tell; False: another bot was quicker."""
        with self._desk.database.write() as session:
            plan = session.get(Feed, _key(account)) or Feed(follower=FOLLOWER, request_id=f"*{account.name}", seq=-1)
            if at is not None and plan.retry_at is not None:
                return False
            plan.retry_at = at
            if why is not None and at is not None:
                told = {"account": account.name, "owner": account.owner, "why": why, "begins_at": write_time(at)}
                plan.seq = append(session, event=PLAN, at=now, actor=SYSTEM, data=dict(told)).seq
            session.add(plan)
        return True

    def _take(self, account: Account, now: datetime) -> bool:
        with self._desk.database.write() as session:
            plan = session.get(Feed, _key(account))
            last = _last(session, account)
            if plan is None or plan.retry_at is None or plan.retry_at > now or is_held(plan, now):
                return False
            if last is not None and last.opened_at > now - NOTICE:
                return False  # another bot has begun it since this one looked
            plan.holder, plan.held_until = self._holder, now + _HOLD
            session.add(plan)
        return True


def due(account: Account, last: Request | None, roster: Roster, *, now: datetime) -> str | None:
    """Return why a drill of the account is due, in a few words; None: it is not."""
    return None if account.drill is None else _why(account, account.drill, last, roster, now)


def _why(account: Account, about: DrillRules, last: Request | None, roster: Roster, now: datetime) -> str | None:
    if last is None:
        return "there was none yet"
    if last.opened_at > now - NOTICE:
        return None
    if last.opened_at + about.every <= now:
        return f"the last one was over {rules.say_duration(about.every)} ago"
    came_by = about.cron.last(now) if about.cron is not None else None
    if came_by is not None and came_by > last.opened_at:
        return "its time of the policy has come"
    able = {person for person in roster.resolve(account.custodians) if roster.able(person)}
    if able - {last.requester} != set(last.custodians):
        return "the custodians have changed"
    return None


def _last(session: Session, account: Account) -> Request | None:
    query = select(Request).where(Request.account == account.name, col(Request.drill).is_not(None))
    return session.exec(query.order_by(col(Request.opened_at).desc()).limit(1)).first()


def _key(account: Account) -> tuple[str, str]:
    return FOLLOWER, f"*{account.name}"
