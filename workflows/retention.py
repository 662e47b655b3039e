"""What of the log may go, who must agree, and what must stay?

Rules
-----
* Bodies go, entries stay: number, event, time, request and all hashes (``storage/pruning.py``).
* An entry may go only when its time in the policy is over, its request is final and under no legal hold, its body is
  what was written, and every copy outside that keeps entries has it. An entry counts as no older than any before it:
  one that was written while the clock was wrong is not pruned early.
* Two different people confirm a plan in Slack, auditors or security, each with the right to at the second click as
  well. Proposing is not confirming. One of them can reject it; after a week, or with a newer plan, it is void.
* What is pruned is worked out anew at that click: only what stood in the plan *and* may go now, by the longer of the
  times in force at the proposal and now. A hold that came in between wins, up to the last moment.
* The clock is not believed alone. A click carries the time of Slack's servers, and nothing is pruned when the bot's
  clock is not near it. Where heads are signed, nothing is planned when the clock is a day past the newest sign of life.
* ``retention:apply`` is written first, names every entry, and the bodies go in the same transaction.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import and_, func, not_, or_
from sqlalchemy import select as choose
from sqlmodel import col, update

from storage import audit, pruning
from storage.audit import SYSTEM, Actor, Damaged, Record, append
from storage.followers import FOLLOWERS
from storage.models import FINAL, Entry, Feed, Request, SignedHead
from storage.pruning import Ranges, numbers_of, ranges_of
from workflows import policy as rules
from workflows import retention_rules
from workflows.door import Door, case_of
from workflows.errors import Conflict, Invalid, NotAllowed

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from sqlmodel import Session

    from storage.database import Database, Write
    from workflows.policy import Directory, Policy, Roster
    from workflows.retention_rules import RetentionRules

HOLD: Final = "retention:hold"
RELEASE: Final = "retention:release"
PROPOSE: Final = "retention:propose"
CONFIRM: Final = "retention:confirm"
REJECT: Final = "retention:reject"
APPLY: Final = pruning.APPLY

CONFIRMATIONS: Final = 2  # different people
LASTS: Final = timedelta(days=7)  # after which a proposal is void
NEAR: Final = timedelta(minutes=10)  # by which the bot's clock and Slack's may differ
SILENCE: Final = timedelta(days=1)  # of a log whose heads are signed: longer, and the clock is not believed
MOST_RANGES: Final = 2000  # of one plan, so that they fit into one entry
MOST_ENTRIES: Final = 50_000  # of one plan, so that nobody waits for the writer's lock; the rest is the next plan's
MOST_REASON: Final = 2000

_SOME: Final = 500  # entries read at once
_E: Final[Any] = Entry  # columns, in queries: SQLModel types them as the values
_R: Final[Any] = Request
_H: Final[Any] = SignedHead


@dataclass(frozen=True, slots=True)
class Part:
    """What would go of one class and request (None: of no request)."""

    noun: str
    request_id: str | None
    count: int
    oldest: datetime
    newest: datetime


@dataclass(frozen=True, slots=True)
class Plan:
    """What would go now. ``is_cut``: there is more, for a next plan. ``leaves``: SHA-256 over the leaf hashes, hex."""

    ranges: Ranges
    parts: tuple[Part, ...]
    keep: RetentionRules
    leaves: str
    is_cut: bool

    @property
    def count(self) -> int:
        """How many entries."""
        return pruning.count_of(self.ranges)

    @property
    def hash(self) -> str:
        """SHA-256 (hex) over the ranges, the leaf hashes and the times: two equal hashes are the same plan."""
        ranges = [list(pair) for pair in self.ranges]
        members: audit.JSON = {"keep": self.keep.data(), "leaves": self.leaves, "ranges": ranges}
        return sha256(audit.canonical(members)).hexdigest()


@dataclass(frozen=True, slots=True)
class Proposal:
    """A plan that waits for people; ``confirmed`` are user ids in order."""

    seq: int
    plan: str  # its hash
    at: datetime
    by: Actor
    ranges: Ranges
    keep: RetentionRules
    confirmed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Confirmed:
    """What a confirmation came to. ``pruned``: how many bodies went; None: another person must confirm first."""

    have: int
    need: int
    pruned: int | None = None
    left: int = 0  # of the plan, because of a hold or a longer time


class Outcome(StrEnum):
    """What became of a proposal."""

    APPLIED = "applied"
    REJECTED = "rejected"
    REPLACED = "replaced"  # by a newer one
    LAPSED = "lapsed"


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of a proposal, when, and the entry that says so (None: it lapsed, which follows from its time)."""

    outcome: Outcome
    at: datetime
    record: Record | None = None


# --- reading -------------------------------------------------------------------------------------------------------


def holds(session: Session) -> dict[str, Record]:
    """Return the requests under legal hold, with the entry that put each there. Raises :class:`Damaged`."""
    held: dict[str, Record] = {}
    for record in audit.read_entries(session, events=(HOLD, RELEASE)):
        if record.refused is not None or record.request_id is None:
            continue
        if record.event == HOLD:
            held[record.request_id] = record
        else:
            held.pop(record.request_id, None)
    return held


def open_proposal(session: Session, *, now: datetime) -> Proposal | None:
    """Return the newest proposal, unless it was applied, rejected, or is void. Raises :class:`Damaged`."""
    newest: Record | None = None
    confirmed: dict[str, None] = {}
    for record in audit.read_entries(session, events=(PROPOSE, CONFIRM, REJECT, APPLY)):
        if record.refused is not None:
            continue
        if record.event == PROPOSE:
            newest, confirmed = record, {}
        elif newest is not None and record.data.get("proposal") == newest.seq:
            if record.event == CONFIRM:
                confirmed[record.actor.person] = None
            else:
                newest = None
    if newest is None or not newest.at - NEAR <= now < newest.at + LASTS:
        return None
    try:
        ranges = pruning.read_ranges(newest.data.get("ranges"))
        keep = retention_rules.from_data(newest.data.get("keep"))
    except ValueError as error:
        raise Damaged(newest.seq, f"It proposes what should be pruned, but {error}.") from None
    return Proposal(newest.seq, str(newest.data.get("plan")), newest.at, newest.actor, ranges, keep, tuple(confirmed))


def fate(session: Session, proposal: Record, *, now: datetime) -> Fate | None:
    """Return what became of a proposal (its entry); None while it is open. Raises :class:`Damaged`."""
    for record in audit.read_entries(session, after=proposal.seq, events=(PROPOSE, REJECT, APPLY)):
        if record.refused is not None:
            continue
        if record.event == PROPOSE:
            return Fate(Outcome.REPLACED, record.at, record)
        if record.data.get("proposal") == proposal.seq:
            return Fate(Outcome.APPLIED if record.event == APPLY else Outcome.REJECTED, record.at, record)
    end = proposal.at + LASTS
    return Fate(Outcome.LAPSED, end) if now >= end else None


def plan(session: Session, policy: Policy, *, now: datetime) -> Plan:
    """Work out what would go now.

    Raises :class:`Conflict` (the policy keeps everything; the clock cannot be right), :class:`Damaged`.
    """
    if policy.retention is None:
        raise Conflict(
            "The policy has no section “retention”, so everything is kept: see workflows/POLICY.md.",
            code="no_retention",
        )
    _not_ahead(session, now)
    return _plan(session, policy, policy.retention, None, now)


def _not_ahead(session: Session, now: datetime) -> None:
    """Refuse a clock that is far past the newest sign of life, where there are heartbeats."""
    signed = session.execute(choose(_H.at).order_by(_H.id.desc()).limit(1)).scalar()
    if signed is None:
        return
    written = session.execute(choose(_E.at).order_by(_E.seq.desc()).limit(1)).scalar()
    newest = max(signed, written) if written else signed
    if now - newest > SILENCE:
        # Attack: an administrator sets this machine's clock years ahead, so that nothing is inside its time.
        raise Conflict(
            f"This machine's clock says {_day(now)}, and the log's newest sign of life is of {_day(newest)}: either "
            "the clock is wrong, or the bot has been off. Set the clock, or start the bot first.",
            code="clock",
        )


def _plan(
    session: Session, policy: Policy, keep: RetentionRules, within: Collection[int] | None, now: datetime
) -> Plan:
    """Work out what may go by these times, of the entries ``within`` (None: of all)."""
    chosen: list[Any] = []
    is_cut = False
    pairs = 0
    rows = session.execute(_eligible(session, policy, keep, now))
    for row in rows:
        if within is not None and row.seq not in within:
            continue
        pairs += not chosen or chosen[-1].seq != row.seq - 1
        if pairs > MOST_RANGES or len(chosen) == MOST_ENTRIES:
            is_cut = True
            break
        chosen.append(row)
    rows.close()
    ranges = ranges_of(row.seq for row in chosen)
    leaves = sha256()
    for record in _sound(session, ranges):
        leaves.update(record.leaf_hash)
    return Plan(ranges, _parts(chosen), keep, leaves.hexdigest(), is_cut)


def _eligible(session: Session, policy: Policy, keep: RetentionRules, now: datetime) -> Any:  # noqa: ANN401 - a query
    # An entry is as young as the youngest before it.
    # Attack: the clock is set back for an hour, so that what is written then looks as if its time were over.
    inner = choose(
        _E.seq,
        _E.event,
        _E.request_id,
        _E.at,
        _E.body.is_not(None).label("is_whole"),
        func.max(_E.at).over(order_by=_E.seq).label("since"),
    ).subquery()
    found = inner.c

    def is_of(noun: str) -> Any:  # noqa: ANN401 - a condition
        return found.event.startswith(f"{noun}:", autoescape=True)

    named = [is_of(noun) for noun in keep.classes]
    over = [and_(is_of(noun), found.since < now - span) for noun, span in keep.classes.items()]
    over.append(and_(*(not_(one) for one in named), found.since < now - keep.default))
    query = (
        choose(found.seq, found.event, found.request_id, found.at)
        .join_from(inner, Request, _R.id == found.request_id, isouter=True)
        .where(
            found.is_whole,
            or_(*over),
            or_(found.request_id.is_(None), _R.state.in_([state.value for state in FINAL])),
            found.event.not_in(pruning.KEPT_EVENTS),
            *(not_(is_of(noun)) for noun in pruning.KEPT_NOUNS),
        )
        .order_by(found.seq)
    )
    held = holds(session)
    if held:
        query = query.where(or_(found.request_id.is_(None), found.request_id.not_in(held)))
    acknowledged = _acknowledged(session, policy)
    if acknowledged is not None:
        query = query.where(found.seq <= acknowledged)
    return query.execution_options(yield_per=_SOME)


def _acknowledged(session: Session, policy: Policy) -> int | None:
    """Return the last entry that every copy of entries has; None: there is no copy."""
    copies = policy.log.copies.values() if policy.log else ()
    names = [copy.name for copy in copies if not FOLLOWERS[copy.kind].is_notary]
    if not names:
        return None
    feeds = (session.get(Feed, (name, "*")) for name in names)
    return min(-1 if feed is None else feed.seq for feed in feeds)


def _sound(session: Session, ranges: Ranges) -> Iterable[Record]:
    """Read each entry strictly. Raises :class:`Damaged`."""
    # Attack: an entry is changed, and then pruned, so that nobody can find the change any more; or its columns are
    # changed, so that it looks old, or of another request than the one under hold.
    for first, last in ranges:
        for start in range(first, last + 1, _SOME):
            end = min(start + _SOME - 1, last)
            yield from audit.read_entries(session, after=start - 1, until_seq=end)


def _parts(rows: Sequence[Any]) -> tuple[Part, ...]:
    found: dict[tuple[str, str | None], list[datetime]] = {}
    for row in rows:
        found.setdefault((pruning.noun(row.event), row.request_id), []).append(row.at)
    return tuple(
        Part(noun, request_id, len(times), min(times), max(times))
        for (noun, request_id), times in sorted(found.items(), key=lambda one: (one[0][0], one[0][1] or ""))
    )


def _day(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


# --- doing ---------------------------------------------------------------------------------------------------------


class Retention(Door):
    """What can be done at the machine itself: whoever may read the database there may do it, and the entry says who."""

    def __init__(self, database: Database, policy: Callable[[], Policy]) -> None:
        super().__init__(database)
        self._policy = policy

    def plan(self, *, now: datetime) -> Plan:
        """Return what would go now. Raises :class:`Conflict`, :class:`Damaged`."""
        with self._read() as session:
            return plan(session, self._policy(), now=now)

    def hold(self, actor: Actor, request_id: str, reason: str, *, now: datetime) -> None:
        """Put a request under legal hold: nothing of it is pruned until it is released."""
        reason = reason.strip()
        if not 0 < len(reason) <= MOST_REASON:
            raise Invalid(f"Say why {request_id[:40]} is put under legal hold, in at most {MOST_REASON} characters.")
        with self.attempt(actor, HOLD, request_id, now=now), self._write() as session:
            self._known(session, request_id)
            if request_id in holds(session):
                raise Conflict(f"{request_id} is under legal hold already.", code="doubled")
            _note(session, HOLD, actor, request_id, data={"reason": reason}, now=now)

    def release(self, actor: Actor, request_id: str, reason: str = "", *, now: datetime) -> None:
        """End a request's legal hold."""
        with self.attempt(actor, RELEASE, request_id, now=now), self._write() as session:
            self._known(session, request_id)
            held = holds(session).get(request_id)
            if held is None:
                raise Conflict(f"{request_id} is under no legal hold.", code="not_held")
            data = {"hold": held.seq} | ({"reason": reason.strip()[:MOST_REASON]} if reason.strip() else {})
            _note(session, RELEASE, actor, request_id, data=data, now=now)

    def propose(self, actor: Actor, *, now: datetime) -> tuple[int, Plan]:
        """Put what would go now before two people; return the entry's number, and the plan.

        An earlier proposal is void from then on. Raises :class:`Conflict`, :class:`Damaged`.
        """
        with self.attempt(actor, PROPOSE, now=now):
            policy = self._policy()
            with self._read() as session:
                found = plan(session, policy, now=now)
            if not found.ranges:
                raise Conflict("There is nothing that may be pruned now.", code="nothing")
            parts = found.parts
            data: dict[str, Any] = {
                "plan": found.hash,
                "count": found.count,
                "ranges": [list(pair) for pair in found.ranges],
                "classes": _classes(parts),
                "requests": len({part.request_id for part in parts} - {None}),
                "oldest": audit.write_time(min(part.oldest for part in parts)),
                "newest": audit.write_time(max(part.newest for part in parts)),
                "keep": found.keep.data(),
            }
            with self._write() as session:
                entry = append(session, event=PROPOSE, at=now, actor=actor, policy=policy.hash, data=data)
                return entry.seq, found

    @staticmethod
    def _known(session: Session, request_id: str) -> None:
        try:
            case_of(session, request_id)
        except Invalid as unknown:
            raise Conflict(unknown.sentence, code="unknown_request") from None


class RetentionDesk(Retention):
    """What people do in Slack: each right is checked, against the policy and the people as they are at the click."""

    def __init__(self, database: Database, policy: Callable[[], Policy], directory: Directory, *, team: str) -> None:
        super().__init__(database, policy)
        self._directory = directory
        self._team = team

    def hold(self, actor: Actor, request_id: str, reason: str, *, now: datetime) -> None:
        """As :meth:`Retention.hold`; :class:`NotAllowed` for all but auditors and security."""
        with self.attempt(actor, HOLD, request_id, now=now):
            self._need(actor)
        super().hold(actor, request_id, reason, now=now)

    def release(self, actor: Actor, request_id: str, reason: str = "", *, now: datetime) -> None:
        """As :meth:`Retention.release`; :class:`NotAllowed` for all but auditors and security."""
        with self.attempt(actor, RELEASE, request_id, now=now):
            self._need(actor)
        super().release(actor, request_id, reason, now=now)

    def reject(self, actor: Actor, proposal: int, plan_hash: str, *, now: datetime) -> None:
        """Reject a proposal: nothing of it is pruned."""
        with self.attempt(actor, REJECT, about={"proposal": proposal}, now=now):
            self._need(actor)
            with self._write() as session:
                found = self._proposal(session, proposal, plan_hash, now)
                data: dict[str, Any] = {"proposal": found.seq, "plan": found.plan}
                append(session, event=REJECT, at=now, actor=actor, data=data)

    def confirm(
        self, actor: Actor, proposal: int, plan_hash: str, *, seen_at: datetime | None, now: datetime
    ) -> Confirmed:
        """Confirm a proposal; with the second person's the bodies go.

        ``seen_at``: when the click was made, by Slack's clock. Raises :class:`NotAllowed`, :class:`Conflict`.
        """
        with self.attempt(actor, CONFIRM, about={"proposal": proposal}, now=now):
            if seen_at is None or abs(now - seen_at) > NEAR:
                # Attack: the clock of the bot's machine is set years ahead.
                raise Conflict(
                    "The clocks of the bot and of Slack do not agree, so nothing is pruned. Have the bot's clock set.",
                    code="clock",
                )
            try:
                while (done := self._confirm(actor, proposal, plan_hash, now)) is None:
                    pass  # somebody else confirmed in the same moment: judged again, with them
            except Damaged as damage:
                raise Conflict(
                    f"Entry {damage.seq} of the log is not as it was written, so nothing is pruned. Call security. "
                    f"{damage.sentence}",
                    code="damaged",
                ) from None
            return done

    def _confirm(self, actor: Actor, proposal: int, plan_hash: str, now: datetime) -> Confirmed | None:
        policy = self._policy()
        # 1. What is proposed, and who has confirmed it.
        with self._read() as session:
            before = self._proposal(session, proposal, plan_hash, now)
        # 2. May they, as things are now? (Over the network.)
        people = dict.fromkeys((*before.confirmed, actor.person))
        roster = self._roster(actor, people)
        able = [person for person in people if rules.may_prune(policy, roster, person)]
        if actor.person not in able:
            raise NotAllowed("Only auditors and security, as the policy names them, may confirm what is pruned.")
        if actor.person in before.confirmed:
            raise Conflict("You have confirmed this already; somebody else must be the second.", code="doubled")
        # 3. What of it may go now. This takes a while, and nothing that it finds can become false later but for holds.
        if policy.retention is None:
            raise Conflict("The policy keeps everything now, so nothing is pruned.", code="no_retention")
        with self._read() as session:
            keep = policy.retention.longer(before.keep)
            found = _plan(session, policy, keep, frozenset(numbers_of(before.ranges)), now)
        # 4. The entries and the effect.
        with self._write() as session:
            current = self._proposal(session, proposal, plan_hash, now)
            if current.confirmed != before.confirmed:
                return None
            have = len(able)
            data: dict[str, Any] = {"proposal": current.seq, "plan": current.plan, "have": have, "need": CONFIRMATIONS}
            append(session, event=CONFIRM, at=now, actor=actor, data=data)
            if have < CONFIRMATIONS:
                return Confirmed(have, CONFIRMATIONS)
            return _apply(session, current, found, able, now)

    def _proposal(self, session: Session, seq: int, plan_hash: str, now: datetime) -> Proposal:
        found = open_proposal(session, now=now)
        if found is None or (found.seq, found.plan) != (seq, plan_hash):
            ended = _say_fate(session, seq, now)
            raise Conflict(f"That proposal is not open any more{ended}. Nothing was changed.", code="stale")
        return found

    def _need(self, actor: Actor) -> None:
        if not rules.may_prune(self._policy(), self._roster(actor, (actor.person,)), actor.person):
            raise NotAllowed("Only auditors and security, as the policy names them, may do this.")

    def _roster(self, actor: Actor, people: Iterable[str]) -> Roster:
        # A shared channel shows our buttons to people of other workspaces.
        if actor.team != self._team:
            raise NotAllowed("Only people of this workspace may do this.", code="other_workspace")
        return rules.gather(self._directory, self._policy(), None, people)


def _say_fate(session: Session, seq: int, now: datetime) -> str:
    """Say what became of the proposal with this number, which a button carries and so anybody can name."""
    found = audit.read_entries(session, after=seq - 1, until_seq=seq, events=(PROPOSE,))
    ended = fate(session, found[0], now=now) if found and found[0].refused is None else None
    return f": {_ENDED[ended.outcome]}" if ended is not None else ""


_ENDED: Final = {
    Outcome.APPLIED: "two people have confirmed it",
    Outcome.REJECTED: "it was rejected",
    Outcome.REPLACED: "a newer one has taken its place",
    Outcome.LAPSED: "two people did not confirm it within a week",
}


def _apply(session: Write, proposal: Proposal, found: Plan, people: Sequence[str], now: datetime) -> Confirmed:
    """Write what is pruned, then prune it."""
    held = holds(session)
    classes: Counter[str] = Counter()
    query = choose(_E.seq, _E.request_id).where(_E.body.is_not(None)).order_by(_E.seq)
    numbers: list[int] = []
    for first, last in found.ranges:
        rows = session.execute(query.where(_E.seq.between(first, last)))
        numbers.extend(row.seq for row in rows if row.request_id not in held)
    ranges = ranges_of(numbers)[:MOST_RANGES]  # a hold may have made more of them
    claimed = pruning.claim(session, ranges)
    for first, last in ranges:
        counted = choose(_E.event, func.count()).where(_E.seq.between(first, last)).group_by(_E.event)
        for event, count in session.execute(counted):
            classes[pruning.noun(event)] += count
    data = claimed.data()
    left = pruning.count_of(proposal.ranges) - data["count"]
    data |= {
        "proposal": proposal.seq,
        "plan": proposal.plan,
        "confirmed_by": list(people),
        "classes": dict(sorted(classes.items())),
        "keep": found.keep.data(),
        "left": left,
    }
    entry = append(session, event=APPLY, at=now, actor=SYSTEM, data=data)
    pruning.prune(session, entry.seq, claimed.ranges)
    return Confirmed(len(people), CONFIRMATIONS, pruned=data["count"], left=left)


def _classes(parts: Iterable[Part]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for part in parts:
        counts[part.noun] += part.count
    return dict(sorted(counts.items()))


def _note(session: Write, event: str, actor: Actor, request_id: str, *, data: Mapping[str, Any], now: datetime) -> None:
    """Append an entry about a request that moves nothing, and let its followers see it."""
    appended = append(session, event=event, at=now, actor=actor, request_id=request_id, data=data)
    session.exec(update(Request).where(col(Request.id) == request_id).values(last_seq=appended.seq))
