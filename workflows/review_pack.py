"""What should somebody know who reviews a use: what happened, under which rules, and is it like the uses before?

Rules
-----
* What happened is told from the request's entries (``storage/reports/story.py``); the rules are those that were in
  force when it was opened, from the text that the log has. Where the log does not lead to them, that is said.
* What it is compared with are uses: requests of the last :data:`BACK` whose credential was issued, and no drills.
* A finding is a sentence with its counts, by a rule that is written down here. It is a question to the reviewer, never
  a verdict. What the recorder of commands found is taken from its entry and not found again.
* Too little to compare with is said; it is never read as "as usual".

Pure but :func:`read`, which reads rows and entries.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from statistics import median_low
from typing import TYPE_CHECKING, Any, Final

from sqlmodel import col, select

from storage.audit import parse, read_entries
from storage.models import CaptureUse, Entry, Grant, Request, Review
from storage.reports.approvers import QUICK
from storage.reports.approvers import span as say_span
from storage.reports.executed import count
from storage.reports.story import OUTCOMES, Teller, in_force, say, who
from workflows import policy as rules
from workflows import policy_file
from workflows.digest import is_drill
from workflows.door import POLICY_LOAD, POLICY_TEXT
from workflows.errors import NotAllowed
from workflows.lifecycle import Role
from workflows.policy_file import PolicyInvalid

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from sqlmodel import Session

    from storage.audit import Actor
    from storage.reports.story import Names, Story
    from workflows.desk import Desk
    from workflows.door import Case
    from workflows.policy_file import Policy

ASK: Final = "review:pack"  # of a refusal
BACK: Final = timedelta(days=90)
FEWEST: Final = 3  # uses before this, else nothing is usual
_WEEK: Final = timedelta(days=7)
_OFTEN: Final = 3  # uses by one person in a week
_LONGER: Final = 2  # times the usual length
_NEAR: Final = 3  # hours of the day
_VERDICTS: Final = 3  # of the newest reviews
_PAGE: Final = 1000


@dataclass(frozen=True, slots=True)
class Use:
    """One use. ``seconds``: how long access was out, None while it is; ``commands``: None where nobody recorded."""

    id: str
    requester: str
    account: str
    level: str
    opened_at: datetime
    seconds: int | None = None
    commands: int | None = None
    outcome: str | None = None


@dataclass(frozen=True, slots=True)
class Habit:
    """What the uses before this one were like. None: nothing is known."""

    uses: int
    in_week: int  # of them, in the seven days before this one
    seconds: int | None
    commands: int | None
    level: str | None
    near: int  # of them begun within three hours of this one's time of day
    verdicts: tuple[tuple[str, str], ...]  # the newest: request, outcome


@dataclass(frozen=True, slots=True)
class Pack:
    """All that a reviewer is shown. ``policy``: what was in force at the opening; None: the log does not lead to it."""

    story: Story
    policy: Policy | None
    this: Use
    person: Habit
    account: Habit
    findings: tuple[str, ...]


# --- the rows ---------------------------------------------------------------------------------------------------------


def read(session: Session, request_id: str, names: Names) -> Pack:
    """Read a request's pack. It must exist. ``names``: of people, by user id, as far as they are known."""
    row = session.get_one(Request, request_id)
    before = select(Request.id).where(
        col(Request.opened_at) >= row.opened_at - BACK,
        col(Request.opened_at) < row.opened_at,
        (col(Request.requester) == row.requester) | (col(Request.account) == row.account),
    )
    *uses, this = _uses(session, before, row)
    teller = Teller(request_id, names)
    after = -1
    while True:
        records = read_entries(session, request_id=request_id, after=after, limit=_PAGE)
        for record in records:
            teller.add(record.seq, record.leaf_hash, None if record.is_pruned else record)
        if len(records) < _PAGE:
            break
        after = records[-1].seq
    story = teller.story
    person = habit([use for use in uses if use.requester == row.requester], this)
    account = habit([use for use in uses if use.account == row.account], this)
    found = tuple(findings(story, this, person, account, names))
    return Pack(story, _in_force(session, story), this, person, account, found)


def allow(desk: Desk, actor: Actor, request_id: str, *, now: datetime) -> Case:
    """Return the case to a reviewer of it, or to an auditor. Raises NotAllowed, on record, for anybody else."""
    with desk.attempt(actor, ASK, request_id, now=now):
        desk.may_read(actor)
        case = desk.case(request_id)
        row = case.request
        roster = rules.gather(desk.directory, desk.policy, row.account, (actor.person, row.requester))
        why = rules.explain(
            desk.policy,
            roster,
            row.account,
            actor.person,
            Role.REVIEWER,
            requester=row.requester,
            approvers=case.approvers,
        )
        if why is not None and not rules.is_auditor(desk.policy, roster, actor.person):
            raise NotAllowed(why)
        return case


def _uses(session: Session, before: Any, row: Request) -> list[Use]:  # noqa: ANN401 - a query
    """Return the uses before this one, the oldest first, and this one last."""
    rows = [*session.exec(select(Request).where(col(Request.id).in_(before)).order_by(col(Request.opened_at))), row]
    wanted = [one.id for one in rows]
    grants: dict[str, list[Grant]] = {}
    for grant in session.exec(select(Grant).where(col(Grant.request_id).in_(wanted))):
        grants.setdefault(grant.request_id, []).append(grant)
    recorded: Counter[str] = Counter()
    for use in session.exec(select(CaptureUse).where(col(CaptureUse.request_id).in_(wanted))):
        recorded[use.request_id] += use.commands
    reviews = {one.request_id: one for one in session.exec(select(Review).where(col(Review.request_id).in_(wanted)))}
    found = []
    for one in rows:
        review = reviews.get(one.id)
        issued = [grant.issued_at for grant in grants.get(one.id, ()) if grant.issued_at is not None]
        if one is not row and (not issued or is_drill(one, review)):
            continue
        ended = [grant.ended_at for grant in grants.get(one.id, ()) if grant.issued_at is not None]
        over = [at for at in ended if at is not None]
        found.append(
            Use(
                one.id,
                one.requester,
                one.account,
                one.level,
                one.opened_at,
                int((max(over) - min(issued)).total_seconds()) if issued and len(over) == len(ended) else None,
                recorded.get(one.id),
                review.outcome if review else None,
            )
        )
    return found


def _in_force(session: Session, story: Story) -> Policy | None:
    """Return the policy whose hash, with the custodians, is the one that the opening has."""
    if not story.policy or not story.is_whole:
        return None
    query = select(Entry.event, Entry.body).where(col(Entry.event).in_((POLICY_LOAD, POLICY_TEXT)))
    loads: dict[str, None] = {}
    texts: dict[str, dict[int, str]] = {}
    for _, body in session.exec(query.order_by(col(Entry.seq))):
        data = _data(body)
        name, text = data.get("hash"), data.get("text")
        if isinstance(name, str):
            loads[name] = None
            if isinstance(text, str):
                part = data.get("part")
                texts.setdefault(name, {})[part if isinstance(part, int) else 0] = text
    for name in loads:
        if in_force(name, story.custodians) == story.policy:
            whole = "".join(text for _, text in sorted(texts.get(name, {}).items()))
            try:
                policy = policy_file.parse(whole, name=name)
            except PolicyInvalid:
                return None  # of another version of this program, or not all of it is there
            return policy if policy.hash == name else None
    return None


def _data(body: bytes | None) -> Mapping[str, Any]:
    try:
        return parse(body or b"").data
    except ValueError:
        return {}


# --- comparing --------------------------------------------------------------------------------------------------------


def habit(before: Sequence[Use], this: Use) -> Habit:
    """Return what these uses, the oldest first, were like; none of them is this one."""
    seconds = [use.seconds for use in before if use.seconds is not None]
    commands = [use.commands for use in before if use.commands is not None]
    levels = Counter(use.level for use in before)
    judged = [(use.id, use.outcome) for use in reversed(before) if use.outcome is not None]
    return Habit(
        uses=len(before),
        in_week=sum(use.opened_at > this.opened_at - _WEEK for use in before),
        seconds=median_low(seconds) if seconds else None,
        commands=median_low(commands) if commands else None,
        level=levels.most_common(1)[0][0] if levels else None,
        near=sum(_hours_apart(use.opened_at, this.opened_at) <= _NEAR for use in before),
        verdicts=tuple(judged[:_VERDICTS]),
    )


def _hours_apart(one: datetime, other: datetime) -> float:
    """Return how far apart two times of day are: 23:00 and 01:00 are two hours."""
    apart = abs((one.hour + one.minute / 60) - (other.hour + other.minute / 60))
    return min(apart, 24 - apart)


def say_habit(habit: Habit, this: Use, of: str) -> list[str]:
    """Return a comparison in sentences. ``of``: whose uses these are, "this person"."""
    days = BACK.days
    if not habit.uses:
        return [f"No other use by {of} in the {days} days before: there is nothing to compare with."]
    lines = [f"{count(habit.uses, 'use')} by {of} in the {days} days before, {habit.in_week} of them in the last 7."]
    if habit.seconds is not None:
        now = f"; this one {say(this.seconds)}" if this.seconds is not None else ""
        lines.append(f"Usually out for {say(habit.seconds)}{now}.")
    if habit.commands is not None:
        now = f"; this one {this.commands}" if this.commands is not None else ""
        lines.append(f"Usually {count(habit.commands, 'command')}{now}.")
    same = "as here" if habit.level == this.level else f"here {this.level}"
    lines.append(
        f"Usual level {habit.level}, {same}; {habit.near} of {habit.uses} began within {_NEAR} hours of this time of "
        "day."
    )
    if habit.verdicts:
        told = ", ".join(f"{name} {OUTCOMES.get(outcome, outcome)}" for name, outcome in habit.verdicts)
        lines.append(f"Last verdicts: {told}.")
    return lines


# --- what stands out --------------------------------------------------------------------------------------------------


def findings(story: Story, this: Use, person: Habit, account: Habit, names: Names) -> Iterator[str]:
    """Give a sentence for each thing that a reviewer should look at, what is worst first."""
    use = story.use
    if use.strangers or use.stops:
        yield "The recording was switched off from within, or that was tried; what followed may not be on record."
    if use.dangerous:
        yield f"{count(use.dangerous, 'command')} marked as dangerous."
    told = list(dict.fromkeys(sentence for found in use.findings.values() for sentence in found if sentence))
    yield from told
    was_issued = any(one.issued_at is not None for one in story.credentials)
    if not use.findings:  # the recorder has not looked it through yet
        if use.late:
            yield f"{count(use.late, 'command')} after the end of the access, by the target's clock."
        if use.sources and was_issued and not use.runs and not (use.missing or use.holes or use.down):
            yield "The access was never used, as far as it was recorded."
    if use.missing or use.holes or use.down:
        parts = [f"{count(use.missing, 'line')} never came"] if use.missing else []
        parts += [*use.holes, *(f"nothing was heard of {name} for a time" for name in use.down)]
        yield f"The record has gaps: {'; '.join(parts)}."
    if was_issued and not use.sources:
        yield "Which commands were run is not on record."
    if story.opened_at is not None:
        for vote in story.votes:
            took = vote.at - story.opened_at
            if vote.approved and timedelta(0) <= took < QUICK:
                yield f"{who(vote.person, names)} approved {say_span(took)} after the opening."
    is_known = this.seconds is not None and account.seconds is not None and account.uses >= FEWEST
    if is_known and (this.seconds or 0) >= _LONGER * max(1, account.seconds or 0):
        yield f"Out for {say(this.seconds)}, where this account's uses usually take {say(account.seconds)}."
    if (times := person.in_week + 1) >= _OFTEN:
        yield f"Use number {times} by the same person within 7 days."
    if story.refusals:
        yield f"Refused on the way: {count(story.refusals, 'attempt')}."


def say_rules(pack: Pack) -> list[tuple[str, str]]:
    """Return the rules that were in force at the opening, as (name, words)."""
    story, policy = pack.story, pack.policy
    rows = [("Policy", story.policy or "not on record")]
    account = policy.accounts.get(story.account) if policy else None
    if policy is None or account is None:
        rows.append(("Text", "The log does not lead to the text that was in force: it was pruned, or it is not whole."))
        return rows
    rows.append(("Text", f"SHA-256 {policy.hash}"))
    for threshold in account.thresholds.values():
        chosen = " (chosen)" if threshold.id == story.threshold else ""
        rows.append((f"Threshold {threshold.id}{chosen}", threshold.text))
    rows.append(("Standard path", account.standard_path))
    if (level := account.levels.get(story.level)) is not None:
        words = f"{level.title}: {count(level.quorum, 'custodian')}, at most {say(level.longest)}"
        rows.append((f"Level {level.name}", f"{words}, unanswered for {say(level.answer_within)} it lapses"))
    return rows
