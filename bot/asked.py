"""What are those who were asked told besides the question, and what is whoever waits for them told about them?

Rules
-----
* A nudge says how it stood when it was made, so that it stays true and is never drawn again. Only the newest is sent,
  and only to those who have not answered since.
* Everybody who was asked is told once when it is settled, and by whom; but not whoever settled it.
* The requester sees who was asked, who of them is active in Slack or away, and what happens next and when. What Slack
  says of it is as old as the message; ``/breakglass status`` asks anew.
* Which messages there are is read from the log and the rows; nothing is kept here.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Final

from bot import views
from bot.blockkit import escape, mention, people, plural, section, utc, when
from bot.cursors import GONE
from storage.models import Answer, State
from workflows import asking, nudging

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlmodel import Session

    from bot.views import Message
    from storage.models import Post, Request
    from workflows.absence import Absent
    from workflows.door import Case
    from workflows.policy import Policy

NUDGE: Final = "nudge"
SETTLED: Final = "settled"


def letters(session: Session, case: Case, posts: Mapping[str, Post]) -> Iterator[tuple[str, str, dict[str, str], bool]]:
    """Yield the key, the person, what the picture needs and whether it is wanted now, of each of these messages.

    One that was tried and has no answer is among them, wanted or not: the follower must look for it first.
    """
    waiting = nudging.silent(case.request, case.decisions) if case.state is State.PENDING else []
    steps = nudging.made(session, case.request.id)
    for number, (at, nudged) in enumerate(steps, start=1):
        for person in nudged:
            key = f"{NUDGE}:{number}:{person}"
            known = posts.get(key)
            is_wanted = number == len(steps) and person in waiting
            if (known is None and is_wanted) or (known is not None and known.ts is None):
                yield key, person, {"at": at.isoformat()}, is_wanted
    for person in _told_the_end(case):
        question = posts.get(f"ask:{person}")
        if question is None or not (question.picture or "").startswith(GONE):  # nobody can write to them
            yield f"{SETTLED}:{person}", person, {}, True


def _told_the_end(case: Case) -> list[str]:
    if case.state is State.PENDING:
        return []
    last = case.decisions[-1].person if case.decisions else None
    by = last if case.request.granted_seconds is not None or _denied_by(case) else None
    return [person for person in asking.asked(case.request) if person != by]


def nudge(case: Case, policy: Policy, *, now: datetime, at: str) -> Message:
    """Return a nudge that was made at ``at``."""
    del now
    made, row = datetime.fromisoformat(at), case.request
    until = f" It lapses {when(row.lapse_at)}." if row.lapse_at else ""
    line = (
        f"⏰ *{row.id} still waits for your answer.* Asked {when(row.opened_at, '{time}')}, and again "
        f"{when(made, '{time}')}: {mention(row.requester)}, {views.what(case, policy)}.{until} "
        "The message above has the buttons and always says how it stands."
    )
    return views.Message(f"{row.id} still waits for your answer (asked {utc(row.opened_at)}).", [section(line)])


def settled(case: Case, policy: Policy, *, now: datetime) -> Message:
    """Return what those who were asked are told when nothing is left to decide. It never changes afterwards."""
    del now
    row = case.request
    if row.granted_seconds is not None:
        how = f"approved by {people(case.approvers)}"
    elif (denier := _denied_by(case)) is not None:
        how = f"denied by {people([denier])}"
    elif case.state is State.WITHDRAWN:
        how = f"withdrawn by {people([row.requester])}"
    else:
        how = "it lapsed, because not enough custodians answered in time"
    line = f"*{row.id} is settled:* {how}. {views.what(case, policy)}. You need not do anything."
    return views.Message(f"{row.id} is settled: {how}. You need not do anything.", [section(line)])


def _denied_by(case: Case) -> str | None:
    return next((one.person for one in case.decisions if one.answer == Answer.DENY), None)


def waiting_lines(
    case: Case, *, now: datetime, away: Mapping[str, Absent], active: Mapping[str, bool | None]
) -> list[str]:
    """Return, as lines of ``mrkdwn``, who of those asked is there, and what happens next; nothing once it is settled.

    ``away``: who says to be away. ``active``: what Slack says of whom; None: it does not.
    """
    if case.state is not State.PENDING:
        return []
    row, lines = case.request, []
    silent = nudging.silent(row, case.decisions)
    if known := [person for person in silent if active.get(person) is not None]:
        there = [person for person in known if active[person]]
        unknown = len(silent) - len(known)
        rest = f" ({plural(unknown, 'other')} not known)" if unknown else ""
        lines.append(f"*Active in Slack*: {people(there)} of {plural(len(known), 'custodian')}{rest}.")
    elif active and silent:
        lines.append("*Active in Slack*: not known; Slack does not say.")
    for person in silent:
        if (gone := away.get(person)) is not None:
            standing = [one for one, places in (row.deputies or {}).items() if person in places]
            deputy = f"; {people(standing)} stands in" if standing else ""
            lines.append(f"*Away*: {mention(person)} until {when(gone.until)}{deputy}.")
    if (words := next_words(row, now=now)) is not None:
        lines.append(f"*Next*: {words}")
    return lines


def next_words(row: Request, *, now: datetime) -> str | None:
    """Return what happens and when, if nobody does anything; None: nothing does."""
    if row.lapse_at is None:
        return None
    steps = [
        (step.at, f"{escape(step.tier, 40)} is asked" if step.tier else "all of them are called in the thread")
        for step in asking.steps_of(row)[row.asked_steps or 1 :]
        if step.at > now
    ]
    if (nudge_at := nudging.step_after(row, now)) is not None:
        steps.append((nudge_at, "those who have not answered are asked again"))
    told = [f"{what} {when(at, '{time}')}" for at, what in sorted(steps)]
    return "; ".join([*told, f"it lapses {when(row.lapse_at, '{time}')} if too few answer."])
