"""What happened in one request, told from its entries alone?

Rules
-----
* Nothing is asked of the tables: what a page says can be found in the entries that are handed over with it.
* What the entries do not hold is not made up. A selection may begin after the opening, and an entry may be unreadable:
  the story says so and goes on.
* Sentences are plain text. Whoever draws them escapes them for his format.

Pure: entries in, values out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from storage import closing, commands
from storage.audit import SYSTEM
from storage.models import FINAL, State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import timedelta

    from storage.audit import Record

MOST_COMMANDS: Final = 5000  # kept by a story; the entries have all of them

Names: TypeAlias = Mapping[str, str]  # user id → name, as far as it is known


@dataclass(frozen=True, slots=True)
class Step:
    """One entry as people read it. ``typed`` is what somebody wrote; ``is_readable`` is False for a damaged body."""

    seq: int
    leaf: str  # hex
    at: datetime | None
    event: str
    who: str
    text: str
    typed: str = ""
    is_refusal: bool = False
    is_readable: bool = True


@dataclass(frozen=True, slots=True)
class Vote:
    """One custodian's answer."""

    seq: int
    at: datetime
    person: str
    approved: bool
    seconds: int | None
    reason: str
    policy: str


@dataclass(slots=True)
class Credential:
    """One credential's life. Of its secret nothing is known; ``identity`` is the name that it had at the target."""

    number: int
    path: str = ""
    identity: str = ""
    lease: str = ""
    asked_at: datetime | None = None
    issued_at: datetime | None = None
    expires_at: str = ""
    ended_at: datetime | None = None
    end: str = ""


@dataclass(frozen=True, slots=True)
class FollowUp:
    """Something that the review wants done; ``closed_at`` None: nobody has said that it is."""

    what: str
    owner: str
    due: str
    id: str = ""
    closed_at: datetime | None = None
    closed_by: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class ReviewTold:
    """The review as it was filed."""

    seq: int
    at: datetime
    person: str
    outcome: str
    findings: str
    threshold_met: bool | None
    standard_path_enough: bool | None
    used_as_stated: bool | None
    follow_ups: tuple[FollowUp, ...]
    threshold_why: str = ""
    standard_path_why: str = ""


@dataclass(frozen=True, slots=True)
class SecondTold:
    """What a second reviewer said of it."""

    seq: int
    at: datetime
    person: str
    outcome: str
    findings: str


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of the story. ``is_open``: it had not ended at the last entry."""

    name: str
    start: datetime
    end: datetime
    is_open: bool = False


@dataclass(slots=True)
class Story:
    """A request as its entries tell it. Times are aware UTC; an empty text or None is what they do not say."""

    id: str
    account: str = ""
    level: str = ""
    team: str = ""
    requester: str = ""
    drill: str = ""  # its id; empty: it is real
    threshold: str = ""
    threshold_text: str = ""
    reason: str = ""
    standard_path: str = ""
    incident: str = ""
    asked_seconds: int | None = None
    granted_seconds: int | None = None
    quorum: int | None = None
    custodians: tuple[str, ...] = ()
    policy: str = ""  # the hash of policy and custodians in force at the opening
    policy_file: str = ""  # SHA-256 of the policy's text, where it is on record and leads to ``policy``
    opened_at: datetime | None = None
    approved_at: datetime | None = None
    active_at: datetime | None = None
    decided_at: datetime | None = None  # that it ends
    ended_at: datetime | None = None
    over_at: datetime | None = None  # denied, withdrawn, lapsed, failed
    ended_by: str = ""
    ended_by_person: str = ""
    seconds_out: int | None = None
    review_due_at: str = ""
    state: str = ""
    steps: list[Step] = field(default_factory=list)
    votes: list[Vote] = field(default_factory=list)
    credentials: list[Credential] = field(default_factory=list)
    review: ReviewTold | None = None
    second: SecondTold | None = None
    review_owner: str = ""
    refusals: int = 0
    closing: int | None = None  # the newest closing entry that is true of the entries before it
    people: set[str] = field(default_factory=set)
    entries: int = 0
    executed: list[commands.Command] = field(default_factory=list)  # the first of them; no steps of the request
    use: commands.Tally = field(default_factory=commands.Tally)

    @property
    def is_whole(self) -> bool:
        """Whether its opening is among the entries."""
        return self.opened_at is not None

    @property
    def approvers(self) -> tuple[str, ...]:
        """The custodians who approved, each once, in order."""
        return tuple(dict.fromkeys(vote.person for vote in self.votes if vote.approved))

    @property
    def to_approve(self) -> timedelta | None:
        """From the opening to the quorum."""
        return _between(self.opened_at, self.approved_at)

    @property
    def to_open(self) -> timedelta | None:
        """From the quorum to the first credential."""
        return _between(self.approved_at, self.active_at)

    @property
    def to_end(self) -> timedelta | None:
        """From the decision that it ends to Vault's word that the lease is gone."""
        return _between(self.decided_at, self.ended_at)

    @property
    def to_review(self) -> timedelta | None:
        """From the end to the review."""
        return _between(self.ended_at, self.review.at if self.review else None)

    def phases(self) -> list[Phase]:
        """Return the stretches of its life, in order, for the timeline."""
        last = next((step.at for step in reversed(self.steps) if step.at and step.event not in _ABOUT_THE_LOG), None)
        marks = [
            ("Waiting for approval", self.opened_at),
            ("Approved, not opened", self.approved_at),
            ("Credential out", self.active_at),
            ("Being taken back", self.decided_at),
            ("Ended, until its review", self.ended_at),
        ]
        stop = self.review.at if self.review else self.over_at
        begun = [(name, at) for name, at in marks if at is not None]
        found = []
        for place, (name, start) in enumerate(begun):
            following = begun[place + 1][1] if place + 1 < len(begun) else stop
            end = following or last or start
            found.append(Phase(name, start, max(start, end), is_open=following is None and self.state not in FINAL))
        return found


def _between(start: datetime | None, end: datetime | None) -> timedelta | None:
    return end - start if start is not None and end is not None else None


_ABOUT_THE_LOG: Final = frozenset({closing.EVENT, "log:export"})


def who(person: str, names: Names) -> str:
    """Return a person for reading: the name where it is known, and always the id that the entries have."""
    if person == "system":
        return "the bot"
    if person.startswith("shell:"):
        return f"{person[6:]}, at the bot's own shell"
    name = names.get(person, "")
    return f"{name} ({person})" if name and name != person else person


def say(span: timedelta | float | None) -> str:
    """Return a length of time in words: ``1 h 30 min``, ``42 s``; a dash when it is not known."""
    if span is None:
        return "-"
    rest = max(0, int(span if isinstance(span, int | float) else span.total_seconds()))
    words = []
    for unit, seconds in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, rest = divmod(rest, seconds)
        if count:
            words.append(f"{count} {unit}")
    return " ".join(words[:2]) or "less than 1 s"


def moment(at: datetime | str | None) -> str:
    """Return a time for reading, to the second, always in UTC; a dash when there is none."""
    if isinstance(at, str) and at:
        try:
            return moment(datetime.fromisoformat(at))
        except ValueError:
            return at
    return f"{at:%Y-%m-%d %H:%M:%S} UTC" if isinstance(at, datetime) else "-"


OUTCOMES: Final[Mapping[str, str]] = {
    "justified": "justified",
    "not_justified": "not justified",
    "misuse": "misuse",
    "drill": "a drill",
}
ENDINGS: Final[Mapping[str, str]] = {
    "release": "handed back by the requester",
    "revoke": "revoked by a custodian",
    "expire": "ended by the clock",
    "lost": "ended because Vault no longer had the credential",
    "intercept": "ended by the requester: somebody else had opened it",
    "fail": "no credential could be issued",
    "done": "handed back by the bot, after a drill",
}


# --- telling -------------------------------------------------------------------------------------------------------


class Teller:
    """Builds one story, entry by entry, in the order of the log."""

    def __init__(self, request_id: str, names: Names, policy_file: Callable[[int], str] = lambda _seq: "") -> None:
        self.story: Final = Story(request_id)
        self.story.use.ended = self._end_of
        self._names = names
        self._policy_file = policy_file
        self._leaves: list[tuple[int, bytes]] = []

    def add(self, seq: int, leaf: bytes, record: Record | None) -> None:
        """Add an entry; a record of None is a body that cannot be read, or was pruned."""
        story = self.story
        story.entries += 1
        if record is None:
            story.steps.append(
                Step(
                    seq,
                    leaf.hex(),
                    None,
                    "",
                    "",
                    "This entry's body is not there or cannot be read.",
                    is_readable=False,
                )
            )
            self._leaves.append((seq, leaf))
            return
        story.people.add(record.actor.person)
        if record.event in commands.TELLING and record.refused is None:
            one = commands.of_record(record)
            story.use.add(one)
            if record.event in commands.MANY:
                # Thousands of these would bury the steps of the request.
                if len(story.executed) < MOST_COMMANDS:
                    story.executed.append(one)
                self._leaves.append((seq, leaf))
                return
        text, typed = sentence(record, self._names)
        story.steps.append(
            Step(
                seq,
                leaf.hex(),
                record.at,
                record.event,
                who(record.actor.person, self._names),
                text,
                typed,
                is_refusal=record.refused is not None,
            )
        )
        if record.refused is not None:
            story.refusals += 1
        else:
            self._learn(record)
        self._leaves.append((seq, leaf))

    def _learn(self, record: Record) -> None:
        story, data = self.story, record.data
        if record.target is not None:
            if record.target in FINAL and record.target != State.REVIEWED:
                story.over_at = record.at
            if record.target == State.ENDING and story.decided_at is None:
                story.decided_at = record.at
                story.ended_by, story.ended_by_person = record.event.partition(":")[2], record.actor.person
            story.state = record.target
        match record.event:
            case "request:open":
                self._open(record)
            case "request:approve" | "request:deny":
                story.votes.append(
                    Vote(
                        record.seq,
                        record.at,
                        record.actor.person,
                        record.event == "request:approve",
                        _whole(data, "granted_seconds"),
                        _text(data, "reason"),
                        record.policy or "",
                    )
                )
            case "request:quorum":
                story.approved_at = record.at
                story.granted_seconds = _whole(data, "granted_seconds")
            case event if event.startswith("credential:"):
                self._credential(record)
            case "review:file" | "review:first":
                self._review(record)
            case "review:second":
                story.second = SecondTold(
                    record.seq, record.at, record.actor.person, _text(data, "outcome"), _text(data, "findings")
                )
            case "review:assign" | "review:reassign":
                story.review_owner = _text(data, "owner")
                story.people.add(story.review_owner)
            case "follow_up:open" | "follow_up:close":
                self._follow_up(record)
            case closing.EVENT if closing.holds(data, self._leaves):
                story.closing = record.seq

    def _end_of(self, identity: str) -> datetime | None:
        """Return when a login had ended, as far as the entries say so by now."""
        return next((one.ended_at for one in self.story.credentials if one.identity == identity), None)

    def _open(self, record: Record) -> None:
        story, data = self.story, record.data
        threshold = data.get("threshold")
        if isinstance(threshold, Mapping):
            story.threshold, story.threshold_text = _text(threshold, "id"), _text(threshold, "text")
        story.opened_at, story.requester, story.team = record.at, record.actor.person, record.actor.team
        story.drill = _text(data, "drill")
        if story.drill and record.actor.person == SYSTEM.person:  # it was due, and nobody typed it
            story.requester, story.team = _text(data, "requester"), _text(data, "team")
        for name in ("account", "level", "reason", "standard_path", "incident"):
            setattr(story, name, _text(data, name))
        story.asked_seconds, story.quorum = _whole(data, "asked_seconds"), _whole(data, "quorum")
        listed = data.get("custodians")
        story.custodians = tuple(map(str, listed)) if isinstance(listed, list) else ()
        story.people.update(story.custodians)
        story.policy = record.policy or ""
        file = self._policy_file(record.seq)
        if file and in_force(file, story.custodians) == story.policy:
            story.policy_file = file

    def _credential(self, record: Record) -> None:
        story, data = self.story, record.data
        number = _whole(data, "credential")
        if number is not None:
            found = next((c for c in story.credentials if c.number == number), None)
            if found is None:
                found = Credential(number)
                story.credentials.append(found)
            found.path = _text(data, "path") or found.path
            if record.event in {"credential:reveal", "drill:reveal"}:
                found.asked_at = record.at
            elif record.event in {"credential:issue", "credential:reissue"}:
                found.issued_at, found.identity = record.at, _text(data, "identity")
                found.lease, found.expires_at = _text(data, "lease"), _text(data, "expires_at")
                story.active_at = story.active_at or record.at
            elif record.event in {"credential:abandon", "credential:fail"}:
                found.ended_at, found.end = record.at, _text(data, "why")
        if record.event == "credential:end":
            story.ended_at, story.review_due_at = record.at, _text(data, "review_due_at")
            story.seconds_out = _whole(data, "seconds_out")
            for credential in story.credentials:
                if credential.ended_at is None:
                    credential.ended_at, credential.end = record.at, ENDINGS.get(story.ended_by, story.ended_by)
        elif record.event == "credential:fail":
            story.ended_by = "fail"

    def _review(self, record: Record) -> None:
        data = record.data
        listed = data.get("follow_ups")
        follow_ups = tuple(
            FollowUp(_text(item, "what"), _text(item, "owner"), _text(item, "due"), _text(item, "id"))
            for item in (listed if isinstance(listed, list) else ())
            if isinstance(item, Mapping)
        )
        self.story.people.update(item.owner for item in follow_ups if item.owner)
        self.story.review = ReviewTold(
            record.seq,
            record.at,
            record.actor.person,
            _text(data, "outcome"),
            _text(data, "findings"),
            _flag(data, "threshold_met"),
            _flag(data, "standard_path_enough"),
            _flag(data, "used_as_stated"),
            follow_ups,
            _text(data, "threshold_why"),
            _text(data, "standard_path_why"),
        )
        self.story.review_due_at = _text(data, "review_due_at") or self.story.review_due_at

    def _follow_up(self, record: Record) -> None:
        """Add what was asked for after the review, and note what is done."""
        review, data = self.story.review, record.data
        if review is None:
            return
        name = _text(data, "id")
        if record.event == "follow_up:open":
            one = FollowUp(_text(data, "what"), _text(data, "owner"), _text(data, "due"), name)
            self.story.people.add(one.owner)
            self.story.review = replace(review, follow_ups=(*review.follow_ups, one))
            return
        self.story.review = replace(
            review,
            follow_ups=tuple(
                replace(one, closed_at=record.at, closed_by=record.actor.person, note=_text(data, "note"))
                if one.id == name
                else one
                for one in review.follow_ups
            ),
        )


def tell(request_id: str, entries: Iterable[tuple[int, bytes, Record | None]], names: Names) -> Story:
    """Tell a story from (seq, leaf hash, record) in order."""
    teller = Teller(request_id, names)
    for seq, leaf, record in entries:
        teller.add(seq, leaf, record)
    return teller.story


def in_force(policy_file: str, custodians: Iterable[str]) -> str:
    """Return the hash of a policy (by its text's SHA-256, hex) and the custodians together, as entries have it."""
    together = json.dumps([policy_file, sorted(set(custodians))], separators=(",", ":"))
    return hashlib.sha256(together.encode()).hexdigest()


# --- one entry in a sentence ---------------------------------------------------------------------------------------


def sentence(record: Record, names: Names) -> tuple[str, str]:
    """Return what an entry says in words, and what a person typed with it."""
    data = record.data
    if record.refused is not None:
        return f"Tried “{record.event}” and was refused ({record.refused}).", _text(data, "said")
    told = _SENTENCES.get(record.event)
    if told is None:
        return f"{record.event}.", ""
    return told(record, data, names)


def _open_sentence(_record: Record, data: Mapping[str, Any], names: Names) -> tuple[str, str]:
    listed = data.get("custodians")
    asked = ", ".join(who(str(person), names) for person in listed) if isinstance(listed, list) else "nobody"
    what, span = f"{_text(data, 'account')}, level {_text(data, 'level')}", say(_whole(data, "asked_seconds"))
    drill = f"DRILL {_text(data, 'drill')}. " if data.get("drill") else ""
    return f"{drill}Asked for {what}, for {span}. Needs {_whole(data, 'quorum')} of: {asked}.", _text(data, "reason")


def _approve_sentence(_record: Record, data: Mapping[str, Any], names: Names) -> tuple[str, str]:
    have, need = _whole(data, "have"), _whole(data, "need")
    listed = data.get("for")
    places = " and ".join(who(str(person), names) for person in listed) if isinstance(listed, list) else ""
    standing = f", standing in for {places}" if places else ""
    return f"Approved for {say(_whole(data, 'granted_seconds'))} ({have} of {need}){standing}.", ""


def _quorum_sentence(_record: Record, data: Mapping[str, Any], names: Names) -> tuple[str, str]:
    listed = data.get("approvers")
    people = ", ".join(who(str(person), names) for person in listed) if isinstance(listed, list) else ""
    return f"The quorum is reached, for {say(_whole(data, 'granted_seconds'))}. Counted: {people}.", ""


def _escalate_sentence(record: Record, data: Mapping[str, Any], names: Names) -> tuple[str, str]:
    if record.source == State.ENDING:
        return f"Not taken back yet (try {_whole(data, 'attempt')}); it is tried again.", _text(data, "why")
    if tier := _text(data, "tier"):
        people = ", ".join(who(str(person), names) for person in data.get("people") or ())
        return f"Not enough answers: {tier} asked as well, {people or 'nobody'}.", ""
    return "Half of the waiting time was over without enough answers; the custodians were called again.", ""


def _lapse_sentence(record: Record, _data: Mapping[str, Any], _names: Names) -> tuple[str, str]:
    if record.source == State.APPROVED:
        return "Lapsed: it was approved and not opened in time. No credential was given out.", ""
    return "Lapsed: not enough custodians answered in time.", ""


def _reveal_sentence(_record: Record, data: Mapping[str, Any], _names: Names) -> tuple[str, str]:
    old = _whole(data, "replaces")
    number = _whole(data, "credential")
    if old is not None:
        return f"Asked for a fresh credential ({number}) in place of number {old}.", ""
    return f"Asked to be shown credential {number}.", ""


def _issue_sentence(record: Record, data: Mapping[str, Any], _names: Names) -> tuple[str, str]:
    fresh = "A fresh credential" if record.event == "credential:reissue" else "Credential"
    name = f" as {_text(data, 'identity')}" if _text(data, "identity") else ""
    return f"{fresh} {_whole(data, 'credential')} was issued{name}; it ends {moment(_text(data, 'expires_at'))}.", ""


def _lost_sentence(_record: Record, data: Mapping[str, Any], _names: Names) -> tuple[str, str]:
    gone = _text(data, "gone") or "lease"
    return f"Vault no longer had the {gone} of credential {_whole(data, 'credential')}; the access is being ended.", ""


_ALARMS: Final[Mapping[str, str]] = {
    "lease": "ALARM: credentials were live in Vault that no request explains",
    "identity": "ALARM: emergency logins were at the target that no request explains",
    "stuck": "ALARM: Vault had given up revoking credentials",
    "unreadable": "ALARM: nobody could look whether emergency access is live there",
}


def _alarm_sentence(_record: Record, data: Mapping[str, Any], _names: Names) -> tuple[str, str]:
    what = _ALARMS.get(_text(data, "kind"), "ALARM")
    revoked = _flag(data, "revoked")
    done = "" if revoked is None else "; they were revoked" if revoked else "; they could not be revoked"
    return f"{what}: {_text(data, 'place')}{done}.", _text(data, "why")


def _unwrap_sentence(_record: Record, data: Mapping[str, Any], _names: Names) -> tuple[str, str]:
    number = _whole(data, "credential")
    if _flag(data, "is_sure") is False:
        return f"Credential {number} was opened, or ran out unopened: the bot was not there to see which.", ""
    return f"Credential {number} was opened, the one time that it can be.", ""


def _end_sentence(_record: Record, data: Mapping[str, Any], _names: Names) -> tuple[str, str]:
    leases = data.get("leases")
    if not leases and not _whole(data, "seconds_out"):
        return "Ended: Vault confirmed that nothing of it is left. No credential had been given out.", ""
    what = "the lease" if leases else "its token"  # a certificate has no lease
    return f"Ended: Vault confirmed that {what} is gone, after {say(_whole(data, 'seconds_out'))}.", ""


def _review_sentence(_record: Record, data: Mapping[str, Any], _names: Names) -> tuple[str, str]:
    outcome = _text(data, "outcome")
    return f"Filed the review: {OUTCOMES.get(outcome, outcome)}.", _text(data, "findings")


def _first_sentence(_record: Record, data: Mapping[str, Any], _names: Names) -> tuple[str, str]:
    outcome = _text(data, "outcome")
    return f"Filed the first of two reviews: {OUTCOMES.get(outcome, outcome)}.", _text(data, "findings")


def _second_sentence(_record: Record, data: Mapping[str, Any], _names: Names) -> tuple[str, str]:
    outcome = _text(data, "outcome")
    agrees = "agreeing with the first" if _flag(data, "agrees") else "DISAGREEING with the first"
    return f"Filed the second review, {agrees}: {OUTCOMES.get(outcome, outcome)}.", _text(data, "findings")


def _assign_sentence(record: Record, data: Mapping[str, Any], names: Names) -> tuple[str, str]:
    owner = who(_text(data, "owner"), names)
    known = " They review each other: the requester reviewed a use of theirs." if _flag(data, "reciprocal") else ""
    if record.event == "review:reassign":
        return f"Gave the review to {owner}.{known}", ""
    return f"The review became {owner}'s to file.{known}", ""


def _close_sentence(_record: Record, data: Mapping[str, Any], _names: Names) -> tuple[str, str]:
    return f"The record up to here was closed for an export: {_whole(data, 'count')} entries, SHA-256 stated.", ""


def _found_sentence(record: Record, _data: Mapping[str, Any], _names: Names) -> tuple[str, str]:
    one = commands.of_record(record)
    found = " ".join(one.findings) or "Nothing is out of place."
    return f"The record of {one.source or 'the source'} was looked through, with {one.count} commands: {found}", ""


def _plain(text: str, key: str = "") -> Callable[[Record, Mapping[str, Any], Names], tuple[str, str]]:
    return lambda _record, data, _names: (text, _text(data, key) if key else "")


def _alert_sentence(_record: Record, data: Mapping[str, Any], _names: Names) -> tuple[str, str]:
    name, whom = _text(data, "alert"), _text(data, "to")
    match _text(data, "came"):
        case "sent":
            return f"Told {whom} beyond Slack, by the alert {name}.", ""
        case "given_up":
            return f"The alert {name} for {whom} was given up after a day of trying.", _text(data, "why")
    return f"The alert {name} for {whom} did not get through; it was tried again.", _text(data, "why")


_SENTENCES: Final[Mapping[str, Callable[[Record, Mapping[str, Any], Names], tuple[str, str]]]] = {
    "request:open": _open_sentence,
    "request:approve": _approve_sentence,
    "request:quorum": _quorum_sentence,
    "request:deny": _plain("Denied it.", "reason"),
    "request:withdraw": _plain("Withdrew the request."),
    "request:lapse": _lapse_sentence,
    "request:escalate": _escalate_sentence,
    "request:nudge": _plain("Those who had not answered were asked again."),
    closing.EVENT: _close_sentence,
    "credential:reveal": _reveal_sentence,
    "drill:reveal": _plain("The bot opened the credential of the drill; nobody sees it."),
    "drill:done": _plain("The drill was over; the bot handed the access back."),
    "credential:hold": _plain("The credential waits until the copies of the log outside have what led to it."),
    "credential:token": _plain("Vault made ready for the credential; it opens nothing yet."),
    "credential:abandon": _plain("The credential was put out of use.", "why"),
    "credential:issue": _issue_sentence,
    "credential:reissue": _issue_sentence,
    "credential:unwrap": _unwrap_sentence,
    "credential:unopened": _plain("Nobody opened the credential in its time; it was taken back."),
    "credential:intercept": _plain(
        "ALARM: said that somebody else had opened the credential; Vault confirmed it, and the access was taken back."
    ),
    "credential:warn": _plain("About two minutes were left; the requester was told."),
    "credential:release": _plain("Handed the access back; it is being taken back."),
    "credential:revoke": _plain("Revoked the access; it is being taken back."),
    "credential:expire": _plain("The time was over; the access is being taken back."),
    "credential:lost": _lost_sentence,
    "credential:end": _end_sentence,
    "credential:fail": _plain("No credential could be issued, and nothing is left of the try.", "why"),
    commands.FIND: _found_sentence,
    commands.GAP: _plain("Lines of a source of commands were destroyed before they were read.", "why"),
    commands.DOWN: _plain("Nothing was heard of a source of commands: what was run may not be on record.", "source"),
    "capture:up": _plain("A source of commands was heard of again.", "source"),
    "capture:unreadable": _plain("Lines of a source of commands could not be read.", "source"),
    "review:file": _review_sentence,
    "person:away": _plain("Said that they are away."),
    "person:back": _plain("Said that they are back."),
    "review:first": _first_sentence,
    "review:second": _second_sentence,
    "review:assign": _assign_sentence,
    "review:reassign": _assign_sentence,
    "review:remind": _plain("The review was overdue; its owner was reminded."),
    "review:escalate": _plain("The review was overdue by a day or more; leadership was told."),
    "follow_up:open": _plain("Something is to be done.", "what"),
    "follow_up:remind": _plain("What was to be done was not; its owner was reminded.", "what"),
    "follow_up:close": _plain("Said that what was to be done is done.", "note"),
    "log:export": _plain("The record, or a part of it, was exported."),
    "log:rotate": _plain("The log's signing key was changed."),
    "log:alarm": _plain("ALARM: the log was found not to extend what was signed.", "sentence"),
    "policy:load": _plain("A policy came into force."),
    "policy:text": _plain("A part of the policy's text was put on record."),
    "policy:propose": _plain("The policy file had changed; the change was put before people, and was not in force."),
    "policy:confirm": _plain("Confirmed the changed policy."),
    "policy:reject": _plain("Rejected the changed policy."),
    "policy:drop": _plain("The policy file said again what was in force; the proposal was void."),
    "policy:refused": _plain("The policy file had changed and did not load; what was in force stayed."),
    "policy:recount": _plain("The policy had changed: an approval that was given counted no more."),
    "access:alarm": _alarm_sentence,
    "access:clear": _plain("What was alarmed about emergency access is as it should be again."),
    "digest:post": _plain("The week's figures of emergency access were told."),
    "person:enrol": _plain("A custodian's second factor was enrolled.", "person"),
    "person:unenrol": _plain("A custodian's second factor was removed.", "person"),
    "person:lock": _plain("ALARM: too many wrong codes were typed in a custodian's name; none counts for 15 minutes."),
    "ready:fail": _plain("An account could not have been opened, had it been needed."),
    "copy:behind": _plain("A copy of the log outside was behind."),
    "copy:caught_up": _plain("A copy of the log outside had caught up."),
    "alert:send": _alert_sentence,
    "alert:test": _plain("An alert beyond Slack was tried.", "alert"),
}


def _text(data: Mapping[str, Any], key: str) -> str:
    found = data.get(key)
    return found if isinstance(found, str) else ""


def _whole(data: Mapping[str, Any], key: str) -> int | None:
    found = data.get(key)
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def _flag(data: Mapping[str, Any], key: str) -> bool | None:
    found = data.get(key)
    return found if isinstance(found, bool) else None


# --- many requests -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """One request in the list from which a sample is drawn."""

    id: str
    account: str
    level: str
    requester: str
    state: str
    opened_at: datetime | None
    approvers: tuple[str, ...]
    to_approve: timedelta | None
    seconds_out: int | None
    ended_by: str
    outcome: str
    follow_ups: int
    refusals: int
    entries: int
    is_whole: bool
    is_closed: bool
    drill: str = ""


def row_of(story: Story) -> Row:
    """Return a story's line in the list."""
    return Row(
        story.id,
        story.account,
        story.level,
        story.requester,
        story.state,
        story.opened_at,
        story.approvers,
        story.to_approve,
        story.seconds_out,
        story.ended_by,
        story.review.outcome if story.review else "",
        len(story.review.follow_ups) if story.review else 0,
        story.refusals,
        story.entries,
        story.is_whole,
        story.closing is not None,
        story.drill,
    )


@dataclass(frozen=True, slots=True)
class Period:
    """All requests of a selection, and what was counted over those that are no drills."""

    rows: Sequence[Row]
    entries: int

    @property
    def real(self) -> list[Row]:
        """The requests that are no drills."""
        return [row for row in self.rows if not row.drill]

    @property
    def drills(self) -> int:
        """How many drills there are."""
        return len(self.rows) - len(self.real)

    def states(self) -> dict[str, int]:
        """Count the requests by state, in the order of a request's life."""
        counted: dict[str, int] = {state.value: 0 for state in State}
        for row in self.real:
            counted[row.state or "unknown"] = counted.get(row.state or "unknown", 0) + 1
        return {state: count for state, count in counted.items() if count}

    def outcomes(self) -> dict[str, int]:
        """Count the reviews by outcome."""
        counted: dict[str, int] = {}
        for row in self.real:
            if row.outcome:
                counted[row.outcome] = counted.get(row.outcome, 0) + 1
        return counted

    def median_to_approve(self) -> timedelta | None:
        """Return the middle time from opening to quorum; None when nothing was approved."""
        known = sorted(row.to_approve for row in self.real if row.to_approve is not None)
        return known[len(known) // 2] if known else None


# --- the bundle around it ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class About:
    """What each page says of the bundle that it lies in."""

    origin: str | None  # the log's name; None: its heads are not signed
    at: datetime  # the time of the head that the bundle stands at
    size: int
    root: str  # hex
    selection: Mapping[str, str | None]  # since, until, account, request
    entries: int
    has_names: bool

    @property
    def is_one_request(self) -> bool:
        """Whether nothing but one request may be seen in it."""
        return self.selection.get("request") is not None

    def what(self) -> str:
        """Return the selection in words."""
        if self.selection.get("request"):
            told = f"request {self.selection['request']}"
        elif self.selection.get("account"):
            told = f"all requests of the account {self.selection['account']}"
        else:
            told = "the whole log"
        since, until = self.selection.get("since"), self.selection.get("until")
        if since or until:
            told += f", from {moment(since) if since else 'its beginning'} to {moment(until) if until else 'its end'}"
        return told
