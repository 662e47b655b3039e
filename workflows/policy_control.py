"""Which policy is in force, and who puts another one there?

Rules
-----
* What is in force is what the log says, the newest ``policy:load``, and its text is the one on record. A changed file
  is only a proposal: ``policy:propose``, with the new text on record before anybody can agree to it.
* Different people confirm it, as many as the policy **in force** says, and with a right by the policy in force; each
  must have that right at the last click as well. What the proposed policy says about people counts for nothing yet.
* What they confirm is a text by its hash, never "the file": a file that changes meanwhile changes nothing but that a
  newer proposal takes the place of the older one.
* A proposal is over when a policy comes into force, when a newer one is made, when it is rejected, when the file says
  again what is in force, and after a week.
* A text that is signed by somebody whom the machine trusts comes into force at once, if the policy in force allows it,
  and if that text was never in force before: an old signature must not bring old rules back.
* Whoever is no custodian any more loses the vote that they gave on what is still pending, and that is an entry there.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sqlmodel import col, select

from storage import audit
from storage.audit import SYSTEM, Actor, Damaged, Record, append
from storage.models import Entry, Request, State
from workflows import policy as rules
from workflows import policy_changes
from workflows.control_rules import ControlRules
from workflows.door import POLICY_LOAD, POLICY_TEXT, Door, append_entry, case_of, database_errors, tell_policy
from workflows.errors import Conflict, NotAllowed, Unavailable
from workflows.lifecycle import Role
from workflows.policy_file import USER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from sqlmodel import Session

    from storage.database import Database, Write
    from workflows.policy import Directory, Policy, Roster
    from workflows.policy_file import Problem

T = TypeVar("T")

PROPOSE: Final = "policy:propose"
CONFIRM: Final = "policy:confirm"
REJECT: Final = "policy:reject"
DROP: Final = "policy:drop"  # the file says again what is in force
REFUSED: Final = "policy:refused"  # the file does not load
RECOUNT: Final = "policy:recount"  # of a request: an approval counts no more

LASTS: Final = timedelta(days=7)
NEAR: Final = timedelta(minutes=10)  # by which the clocks of two bots may differ
MOST_CHANGES: Final = 60  # told in one entry
MOST_DIFFERENCE: Final = 12_000  # characters of it in one entry; the texts are on record whole
MOST_PROBLEMS: Final = 10

_ABOUT: Final = (POLICY_LOAD, PROPOSE, CONFIRM, REJECT, DROP)


@dataclass(frozen=True, slots=True)
class Standing:
    """Which policy is in force, by the log."""

    seq: int
    hash: str


@dataclass(frozen=True, slots=True)
class Proposal:
    """A text that waits for people. ``before`` is what is in force; ``confirmed`` are user ids in order."""

    seq: int
    hash: str
    before: str
    at: datetime
    confirmed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Confirmed:
    """What a confirmation came to; ``is_in_force``: it was the last that was needed."""

    have: int
    need: int
    is_in_force: bool


class Outcome(StrEnum):
    """What became of a proposal."""

    LOADED = "loaded"
    REJECTED = "rejected"
    REPLACED = "replaced"  # by a newer one, or by another policy that came into force
    DROPPED = "dropped"
    LAPSED = "lapsed"


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of a proposal, when, and the entry that says so (None: it lapsed, which follows from its time)."""

    outcome: Outcome
    at: datetime
    record: Record | None = None


# --- reading --------------------------------------------------------------------------------------------------------


def in_force(session: Session) -> Standing | None:
    """Return which policy the log says is in force; None when it names none yet. Raises :class:`Damaged`."""
    query = select(Entry.seq).where(Entry.event == POLICY_LOAD).order_by(col(Entry.seq).desc()).limit(1)
    seq = session.exec(query).first()
    if seq is None:
        return None
    (record,) = audit.read_entries(session, after=seq - 1, until_seq=seq)
    return Standing(seq, str(record.data.get("hash")))


def text_of(session: Session, policy_hash: str) -> str | None:
    """Return the text on record that has this hash; None when there is none. Raises :class:`Damaged`."""
    parts: dict[int, str] = {}
    for record in audit.read_entries(session, events=(POLICY_LOAD, POLICY_TEXT)):
        data = record.data
        part, text = data.get("part", 1), data.get("text")
        if data.get("hash") == policy_hash and isinstance(part, int) and isinstance(text, str):
            parts.setdefault(part, text)
    text = "".join(text for _, text in sorted(parts.items()))
    return text if parts and hashlib.sha256(text.encode()).hexdigest() == policy_hash else None


def open_proposal(session: Session, *, now: datetime) -> Proposal | None:
    """Return the newest proposal, unless it is over. Raises :class:`Damaged`."""
    newest: Record | None = None
    confirmed: dict[str, None] = {}
    for record in _told(session):
        if record.event == PROPOSE:
            newest, confirmed = record, {}
        elif record.event == CONFIRM:
            if newest is not None and record.data.get("proposal") == newest.seq:
                confirmed[record.actor.person] = None
        elif record.event == POLICY_LOAD or (newest is not None and record.data.get("proposal") == newest.seq):
            newest = None
    if newest is None or not newest.at - NEAR <= now < newest.at + LASTS:
        return None
    data = newest.data
    return Proposal(newest.seq, str(data.get("hash")), str(data.get("before")), newest.at, tuple(confirmed))


def fate(session: Session, proposal: Record, *, now: datetime) -> Fate | None:
    """Return what became of a proposal (its entry); None while it is open. Raises :class:`Damaged`."""
    for record in _told(session, after=proposal.seq):
        is_own = record.data.get("proposal") == proposal.seq
        if record.event == POLICY_LOAD:
            return Fate(Outcome.LOADED if is_own else Outcome.REPLACED, record.at, record)
        if record.event == PROPOSE:
            return Fate(Outcome.REPLACED, record.at, record)
        if is_own and record.event in (REJECT, DROP):
            return Fate(Outcome.REJECTED if record.event == REJECT else Outcome.DROPPED, record.at, record)
    end = proposal.at + LASTS
    return Fate(Outcome.LAPSED, end) if now >= end else None


def _told(session: Session, *, after: int = -1) -> list[Record]:
    return [record for record in audit.read_entries(session, events=_ABOUT, after=after) if record.refused is None]


def control_of(policy: Policy) -> ControlRules:
    """Return who must agree to a change of this policy."""
    return policy.control or ControlRules()


def confirmers(current: Policy, proposed: Policy) -> tuple[str, ...]:
    """Return the user ids and groups who may confirm the change: by what is in force, never by what is proposed."""
    if people := control_of(current).people:
        return people
    owners = [current.accounts[name].owner for name in policy_changes.touched(current, proposed)]
    return tuple(dict.fromkeys((*owners, *current.security)))


# --- doing ----------------------------------------------------------------------------------------------------------


class PolicyControl(Door):
    """The one who puts policies into force. ``switch`` is told which one is from now on, before anybody else is.

    Safe from many threads and from several bots on one database.
    """

    def __init__(
        self, database: Database, directory: Directory, *, team: str, switch: Callable[[Policy], None]
    ) -> None:
        super().__init__(database)
        self._directory = directory
        self._team = team
        self.switch = switch
        self._known: dict[str, Policy] = {}

    # What the log says.

    def current(self, also: Policy | None = None) -> Policy:
        """Return the policy in force. ``also``: one at hand, which is taken if it is the one, and not read anew.

        Raises :class:`Unavailable` when the log does not say, or its text cannot be read by this version.
        """
        with self._read() as session:
            standing = _sound(lambda: in_force(session))
            if standing is None:
                raise Unavailable("The log names no policy that is in force.")
            if also is not None and also.hash == standing.hash:
                return also
            return self._policy(session, standing.hash)

    def _policy(self, session: Session, policy_hash: str) -> Policy:
        if (known := self._known.get(policy_hash)) is None:
            text = _sound(lambda: text_of(session, policy_hash))
            if text is None:
                raise Unavailable(f"The text of the policy {policy_hash[:12]}… is not on record.")
            known = rules.parse(text, name=f"policy {policy_hash[:12]}…")
            self._known = {**dict(list(self._known.items())[-4:]), policy_hash: known}
        return known

    # What the file says.

    def propose(self, policy: Policy, *, is_new: bool, signed_by: str | None = None, now: datetime) -> bool:
        """Put a changed file before people, or into force if it is signed; say whether anything was written.

        ``is_new``: the file was seen to change to this just now; else it may have been there when the bot started,
        and what people rejected is not put before them again.
        """
        current = self.current(policy)
        if current.hash == policy.hash:
            return False
        if signed_by is not None and control_of(current).signed and not self._was_in_force(policy.hash):
            return self._load(current, policy, {"signed_by": signed_by[:200]}, now=now)
        changes = policy_changes.compare(current, policy)
        difference = policy_changes.difference(current, policy)
        data: dict[str, Any] = {
            "hash": policy.hash,
            "before": current.hash,
            "need": control_of(current).confirm,
            "people": list(confirmers(current, policy))[:50],
            "changes": [
                {"sentence": one.sentence, "is_weaker": one.is_weaker}
                | ({"account": one.account} if one.account else {})
                for one in sorted(changes, key=lambda one: not one.is_weaker)[:MOST_CHANGES]
            ],
            "count": len(changes),
            "difference": difference[:MOST_DIFFERENCE],
            "is_cut": len(difference) > MOST_DIFFERENCE,
            "restart": policy_changes.needs_restart(current, policy),
        }
        with self._write() as session:
            # Judged under the writer's lock: of several bots that see the same file, one proposes.
            if not self._is_wanted(session, policy.hash, current.hash, is_new=is_new, now=now):
                return False
            tell_policy(session, policy, now=now, is_apart=True)
            append(session, event=PROPOSE, at=now, actor=SYSTEM, policy=current.hash, data=data)
        return True

    @staticmethod
    def _is_wanted(session: Session, policy_hash: str, before: str, *, is_new: bool, now: datetime) -> bool:
        def judge() -> bool:
            standing, waiting = in_force(session), open_proposal(session, now=now)
            if standing is None or standing.hash != before or (waiting is not None and waiting.hash == policy_hash):
                return False
            since = [one for one in _told(session, after=standing.seq) if one.event == PROPOSE]
            own = next((one for one in reversed(since) if one.data.get("hash") == policy_hash), None)
            if own is None or is_new:
                return True
            ended = fate(session, own, now=now)
            return ended is None or ended.outcome is not Outcome.REJECTED

        return _sound(judge)

    def _was_in_force(self, policy_hash: str) -> bool:
        with self._read() as session:
            loads = _sound(lambda: audit.read_entries(session, events=(POLICY_LOAD,)))
        return any(one.data.get("hash") == policy_hash for one in loads)

    def drop(self, policy_hash: str, *, now: datetime) -> bool:
        """Take back the proposal of this text: the file that said it says again what is in force."""
        with self._write() as session:
            waiting = _sound(lambda: open_proposal(session, now=now))
            if waiting is None or waiting.hash != policy_hash:
                return False
            data: dict[str, Any] = {"proposal": waiting.seq, "hash": waiting.hash}
            append(session, event=DROP, at=now, actor=SYSTEM, data=data)
        return True

    def refuse(self, file_hash: str, problems: Sequence[Problem], *, now: datetime) -> bool:
        """Put on record, once for each text, that the file does not load; what is in force stays."""
        with self._write() as session:
            standing = _sound(lambda: in_force(session))
            if standing is None:
                return False
            told = _sound(lambda: audit.read_entries(session, events=(REFUSED,), after=standing.seq))
            if any(one.data.get("hash") == file_hash for one in told):
                return False
            said = [f"line {one.line}: {one.where}: {one.sentence}"[:300] for one in problems[:MOST_PROBLEMS]]
            data: dict[str, Any] = {"hash": file_hash, "problems": said, "count": len(problems)}
            append(session, event=REFUSED, at=now, actor=SYSTEM, policy=standing.hash, data=data)
        return True

    # What people say.

    def difference(self, actor: Actor, proposal: int, policy_hash: str) -> str:
        """Return the whole difference that a proposal makes, for a member of the workspace."""
        self._own_team(actor)
        person = self._directory.person(actor.person)
        if person is None or person.inability() is not None:
            raise NotAllowed("Only full members of this workspace may read the policy.")
        with self._read() as session:
            found = _sound(
                lambda: audit.read_entries(session, after=proposal - 1, until_seq=proposal, events=(PROPOSE,))
            )
            if not found or found[0].data.get("hash") != policy_hash:
                raise Conflict("There is no such proposal.", code="stale")
            before = self._policy(session, str(found[0].data.get("before")))
            return policy_changes.difference(before, self._policy(session, policy_hash))

    def reject(self, actor: Actor, proposal: int, policy_hash: str, *, now: datetime) -> None:
        """Reject a proposal: what is in force stays."""
        with self.attempt(actor, REJECT, about={"proposal": proposal}, now=now):
            self._own_team(actor)
            current, found, proposed = self._judged(proposal, policy_hash, now)
            if actor.person not in self._able(current, proposed, (actor.person,)):
                raise NotAllowed(_sentence(current, proposed))
            with self._write() as session:
                found = self._open(session, proposal, policy_hash, now)
                data: dict[str, Any] = {"proposal": found.seq, "hash": found.hash}
                append(session, event=REJECT, at=now, actor=actor, data=data)

    def confirm(self, actor: Actor, proposal: int, policy_hash: str, *, now: datetime) -> Confirmed:
        """Confirm a proposal; with the last one that is needed it is in force.

        Raises :class:`NotAllowed`, :class:`Conflict`.
        """
        with self.attempt(actor, CONFIRM, about={"proposal": proposal}, now=now):
            self._own_team(actor)
            while (done := self._confirm(actor, proposal, policy_hash, now)) is None:
                pass  # somebody else confirmed in the same moment: judged again, with them
            return done

    def _confirm(self, actor: Actor, proposal: int, policy_hash: str, now: datetime) -> Confirmed | None:
        # 1. What is proposed, and who has confirmed it.
        current, before, proposed = self._judged(proposal, policy_hash, now)
        need = control_of(current).confirm
        # 2. May they, by the policy in force and as people are now? (Over the network.)
        # Attack: whoever can write the file names themselves in it; only the old policy's people count.
        able = self._able(current, proposed, (*before.confirmed, actor.person))
        if actor.person not in able:
            raise NotAllowed(_sentence(current, proposed))
        if actor.person in before.confirmed:
            raise Conflict("You have confirmed this already; somebody else must be the next.", code="doubled")
        is_last = len(able) >= need
        lost = self._lost(proposed) if is_last else {}
        # 3. The entries and the effect.
        with self._write() as session:
            now_open = self._open(session, proposal, policy_hash, now)
            if now_open.confirmed != before.confirmed:
                return None
            data: dict[str, Any] = {"proposal": before.seq, "hash": before.hash, "have": len(able), "need": need}
            append(session, event=CONFIRM, at=now, actor=actor, policy=current.hash, data=data)
            if not is_last:
                return Confirmed(len(able), need, is_in_force=False)
            told = {"proposal": before.seq, "confirmed_by": list(able), "need": need}
            _put_in_force(session, proposed, told, lost, now)
        self.switch(proposed)
        return Confirmed(len(able), need, is_in_force=True)

    def _judged(self, proposal: int, policy_hash: str, now: datetime) -> tuple[Policy, Proposal, Policy]:
        """Return what is in force, the open proposal, and what it proposes."""
        with self._read() as session:
            found = self._open(session, proposal, policy_hash, now)
            standing = _sound(lambda: in_force(session))
            if standing is None or standing.hash != found.before:
                raise Conflict("Another policy is in force by now. Nothing was changed.", code="stale")
            return self._policy(session, standing.hash), found, self._policy(session, found.hash)

    @staticmethod
    def _open(session: Session, proposal: int, policy_hash: str, now: datetime) -> Proposal:
        found = _sound(lambda: open_proposal(session, now=now))
        if found is None or (found.seq, found.hash) != (proposal, policy_hash):
            ended = _say_fate(session, proposal, now)
            raise Conflict(f"That proposal is not open any more{ended}. Nothing was changed.", code="stale")
        return found

    def _able(self, current: Policy, proposed: Policy, people: Iterable[str]) -> tuple[str, ...]:
        """Return which of these people may confirm now, each once, in order."""
        people = tuple(dict.fromkeys(people))
        names = confirmers(current, proposed)
        # A list of its own in the section may name groups that nothing else of the policy does.
        groups = [name for name in names if not USER.fullmatch(name)]
        members = {person for group in groups for person in self._directory.members(group) or ()}
        roster = rules.gather(self._directory, current, None, people)
        return tuple(p for p in people if roster.able(p) and (p in names or p in members))

    def _own_team(self, actor: Actor) -> None:
        # A shared channel shows our buttons to people of other workspaces.
        if actor.team != self._team:
            raise NotAllowed("Only people of this workspace may do this.", code="other_workspace")

    # The effect.

    def _load(self, current: Policy, policy: Policy, told: Mapping[str, Any], *, now: datetime) -> bool:
        lost = self._lost(policy)
        with self._write() as session:
            standing = _sound(lambda: in_force(session))
            if standing is None or standing.hash != current.hash:
                return False  # another bot was first
            _put_in_force(session, policy, told, lost, now)
        self.switch(policy)
        return True

    def _lost(self, policy: Policy) -> dict[str, tuple[list[str], int, int]]:
        """Return, by pending request, whose approval no longer counts under a policy, what is left, and the quorum."""
        with self._read() as session:
            ids = session.exec(select(Request.id).where(Request.state == State.PENDING.value)).all()
            cases = [case_of(session, request_id) for request_id in ids]
        found: dict[str, tuple[list[str], int, int]] = {}
        for case in cases:
            row = case.request
            if not case.approvers:
                continue
            roster = rules.gather(self._directory, policy, row.account, (*row.custodians, row.requester))
            still = (person for person in row.custodians if _may_decide(policy, roster, row, person))
            counted = rules.counted(case.approvers, tuple(still), row.requester)
            gone = [person for person in dict.fromkeys(case.approvers) if person not in counted]
            if gone:
                account = policy.accounts.get(row.account)
                level = account.levels.get(row.level) if account else None
                found[row.id] = (gone, len(counted), max(row.quorum, level.quorum if level else 0))
        return found


def _may_decide(policy: Policy, roster: Roster, row: Request, person: str) -> bool:
    why = rules.explain(
        policy,
        roster,
        row.account,
        person,
        Role.CUSTODIAN,
        requester=row.requester,
        asked=row.custodians,
        stood_in=row.deputies or {},
        level=row.level,
    )
    return why is None


def _put_in_force(
    session: Write,
    policy: Policy,
    told: Mapping[str, Any],
    lost: Mapping[str, tuple[list[str], int, int]],
    now: datetime,
) -> None:
    data = tell_policy(session, policy, now=now) | dict(told)
    append(session, event=POLICY_LOAD, at=now, actor=SYSTEM, data=data)
    for request_id, (gone, have, need) in lost.items():
        said: dict[str, Any] = {"hash": policy.hash, "people": gone, "have": have, "need": need}
        append_entry(session, request_id, event=RECOUNT, actor=SYSTEM, at=now, data=said)


def begin(database: Database, policy: Policy | None, *, now: datetime) -> str | None:
    """Return the hash of the policy in force; on a log that names none, put ``policy`` (the file's) in force first.

    None when there is neither.
    """
    with database_errors(), database.write() as session:
        standing = _sound(lambda: in_force(session))
        if standing is not None:
            return standing.hash
        if policy is None:
            return None
        append(session, event=POLICY_LOAD, at=now, actor=SYSTEM, data=tell_policy(session, policy, now=now))
        return policy.hash


def _sound(read: Callable[[], T]) -> T:
    """Read from the log; what is damaged there must put nothing into force."""
    try:
        return read()
    except Damaged as damage:
        raise Unavailable(
            f"Entry {damage.seq} of the log is not as it was written, so no policy is put in force. Call security. "
            f"{damage.sentence}"
        ) from None


def _sentence(current: Policy, proposed: Policy) -> str:
    names = [f"<@{name}>" if USER.fullmatch(name) else name for name in confirmers(current, proposed)[:10]]
    return f"Only {', '.join(names)} may decide about this change, by the policy that is in force."


_ENDED: Final = {
    Outcome.LOADED: "it was confirmed and is in force",
    Outcome.REJECTED: "it was rejected",
    Outcome.REPLACED: "a newer one has taken its place",
    Outcome.DROPPED: "the file says again what is in force",
    Outcome.LAPSED: "it was not confirmed within a week",
}


def _say_fate(session: Session, seq: int, now: datetime) -> str:
    """Say what became of the proposal with this number, which a button carries and so anybody can name."""

    def judge() -> Fate | None:
        found = audit.read_entries(session, after=seq - 1, until_seq=seq, events=(PROPOSE,))
        return fate(session, found[0], now=now) if found and found[0].refused is None else None

    ended = _sound(judge)
    return f": {_ENDED[ended.outcome]}" if ended is not None else ""
