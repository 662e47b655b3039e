"""Who is asked next, or again?

The steps of a request (``asking.py``) are made when their time comes. Whoever was asked and has not answered is nudged
2, 4, 8 … minutes after the opening, until it is settled.

Rules
-----
* A step of asking is made once: the row counts those that were made.
* A step of nudging is made once: it is a move through the door, and its number is the count of those before it in
  the log.
* Steps that went by while the bot was down are one step: nobody gets four nudges at once.
* Who has answered is left in peace, and so is the requester.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlmodel import col, select

from storage.audit import parse
from storage.models import Entry
from workflows import asking
from workflows import policy as rules
from workflows.errors import Unavailable
from workflows.lifecycle import Action

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from sqlmodel import Session

    from storage.models import Decision, Request
    from workflows.door import Turn
    from workflows.policy import Directory, Policy

FIRST: Final = timedelta(minutes=2)  # after the opening; each next one takes twice as long


def step_after(row: Request, at: datetime) -> datetime | None:
    """Return when those who have not answered are nudged next after ``at``; None: not before it lapses."""
    span = FIRST
    while row.opened_at + span <= at:
        span *= 2
    due = row.opened_at + span
    return due if row.lapse_at is None or due < row.lapse_at else None


def earliest(row: Request, other: datetime | None, now: datetime) -> datetime | None:
    """Return when the clock must look next: for the next nudge, or for what else is due at ``other``."""
    return min((due for due in (step_after(row, now), other) if due is not None), default=None)


def silent(row: Request, decisions: Iterable[Decision]) -> list[str]:
    """Return who was asked and has said nothing, in the order in which they were asked."""
    done = {decision.person for decision in decisions} | {row.requester}
    return [person for person in asking.asked(row) if person not in done]


def nudge(turn: Turn) -> None:
    """Make the step that is due, if one is."""
    row, now = turn.row, turn.now
    last = made(turn.session, row.id)
    since = last[-1][0] if last else row.opened_at
    due = step_after(row, since)
    if due is None or due > now:
        return
    people = silent(row, turn.decisions())
    if people:
        turn.move(Action.NUDGE, data={"number": len(last) + 1, "people": people, "lapse_at": row.lapse_at})


def gone(row: Request, policy: Policy, directory: Directory) -> frozenset[str]:
    """Return who of those who could decide cannot act any more; nobody where that is not known, or of no use."""
    if row.asking is None or asking.next_step(row) is None:
        return frozenset()
    try:
        roster = rules.gather(directory, policy, row.account, row.custodians)
    except Unavailable:
        return frozenset()  # the steps come in their time all the same
    return frozenset(person for person in row.custodians if not roster.able(person))


def ask_next(turn: Turn, gone: frozenset[str] = frozenset()) -> datetime | None:
    """Make the steps that are due on a request that waits; return when the clock must look for the next thing.

    ``gone``: of :func:`gone`. Nobody waits for them: when the rest of those asked could not suffice, the next step is
    due at once.
    """
    row = turn.row
    steps = asking.steps_of(row)
    made = row.asked_steps
    if made is None:  # of a version that did not count them
        made = 1 + has_been(turn.session, row.id, Action.ESCALATE)
    for number in range(made, len(steps)):
        step = steps[number]
        if step.at > turn.now and not _is_short(row, gone):
            return step.at
        told: dict[str, Any] = {"lapse_at": row.lapse_at, "step": number + 1}
        if step.tier is not None:
            told |= {"tier": step.tier, "people": list(step.people)}
        turn.move(Action.ESCALATE, data=told, asked_steps=number + 1)
    return row.lapse_at


def _is_short(row: Request, gone: frozenset[str]) -> bool:
    left = [person for person in asking.asked(row) if person not in gone]
    return bool(gone) and not asking.satisfied(left, row.quorum, asking.stored(row)).suffices


def made(session: Session, request_id: str) -> list[tuple[datetime, list[str]]]:
    """Return the steps that were made: when, and who was nudged."""
    query = select(Entry).where(Entry.request_id == request_id, Entry.event == Action.NUDGE).order_by(col(Entry.seq))
    return [(entry.at, _people(entry.body)) for entry in session.exec(query)]


def has_been(session: Session, request_id: str, action: Action) -> bool:
    """Whether the bot has made a move of its own on this request before."""
    query = select(Entry.seq).where(Entry.request_id == request_id, Entry.event == action).limit(1)
    return session.exec(query).first() is not None


def _people(body: bytes | None) -> list[str]:
    """Return who stands in an entry; of one that cannot be read, nobody: it is found by other means."""
    try:
        listed: Any = parse(body or b"").data.get("people")
    except ValueError:
        return []
    return [str(person) for person in listed] if isinstance(listed, list) else []
