"""What may be asked for, by whom, and who decides?

Rules
-----
* Everything here is pure but :func:`load` (reads a file) and :func:`gather` (asks the directory).
* One verdict: :func:`evaluate` fills the form and is run again at the gate. :func:`explain` answers for one person and
  one role, at every click.
* Missing data never permits. An unknown account, an empty group, a person whom the directory does not know, a blank
  field: each can only turn a permission into a refusal.
* A right belongs to a Slack user id. The requester never counts as a custodian, nor the requester or an approver as a
  reviewer; a bot, a guest, a deactivated person and somebody of another workspace hold no role at all.
* A sentence never repeats words that somebody typed, unless they have the form of a name: a sentence ends in a Slack
  message, where ``<!channel>`` would ring everybody's telephone.

The values that the file holds and how it is read stand in ``policy_file.py`` and are imported from here.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from dataclasses import dataclass, field, replace
from datetime import timedelta, tzinfo
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol

from workflows import absence, asking
from workflows.errors import Invalid, NotAllowed
from workflows.lifecycle import Role
from workflows.log_rules import CopyRules, LogRules, SignerRules
from workflows.policy_file import (
    LONGEST,
    NAME,
    SHORTEST,
    USER,
    Account,
    Level,
    Policy,
    PolicyInvalid,
    Problem,
    Threshold,
    load,
    parse,
    parse_duration,
    say_duration,
)
from workflows.retention_rules import RetentionRules

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from workflows.absence import Absent

__all__ = [
    "LONGEST",
    "SHORTEST",
    "Account",
    "CopyRules",
    "Directory",
    "Level",
    "LogRules",
    "Overdue",
    "Person",
    "Policy",
    "PolicyInvalid",
    "Problem",
    "RetentionRules",
    "Roster",
    "SignerRules",
    "Threshold",
    "Unmet",
    "Verdict",
    "accounts_for",
    "counted",
    "evaluate",
    "explain",
    "gather",
    "in_force",
    "is_auditor",
    "load",
    "may_drill",
    "may_prune",
    "parse",
    "parse_duration",
    "present",
    "roles",
    "say_duration",
    "stand_ins",
    "voters",
]

# Characters of what the requester writes: (least, most).
WORDS: Final[Mapping[str, tuple[int, int]]] = MappingProxyType(
    {"reason": (10, 2000), "standard_path": (10, 2000), "incident": (1, 100)}
)


# --- People -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody as Slack describes them. No flag has a default: what is not known must not read as "no"."""

    team: str
    id: str
    name: str
    is_bot: bool
    is_guest: bool
    is_deleted: bool
    is_foreign: bool
    is_away: bool = False  # they say so themselves; no right hangs on it (``readiness.py``)
    handles: tuple[str, ...] = field(default=(), compare=False)  # after an @: to find, never to judge
    zone: tzinfo | None = field(default=None, compare=False)  # where they are; None: Slack does not say

    def inability(self) -> str | None:
        """Return why this person can hold no role ("is a guest"), or None."""
        if self.is_bot or self.id == "USLACKBOT":  # Slack says is_bot=false of its own bot
            return "is a bot"
        if self.is_deleted:
            return "is deactivated"
        if self.is_foreign:
            return "belongs to another workspace"
        if self.is_guest:
            return "is a guest"
        return None


class Directory(Protocol):
    """Where people and groups are looked up. Both methods raise Unavailable when it does not answer."""

    def person(self, user_id: str) -> Person | None:
        """Return the person; None when there is no such user."""

    def members(self, group: str) -> tuple[str, ...] | None:
        """Return the user ids of a group id (``S…``) or handle (``@name``); None when there is no such group."""


@dataclass(frozen=True, slots=True)
class Roster:
    """What the directory said: the facts about people that a verdict stands on. ``absences``: who says to be away."""

    people: Mapping[str, Person]
    groups: Mapping[str, tuple[str, ...]]
    absences: Mapping[str, Absent] = field(default_factory=lambda: MappingProxyType({}))

    def with_absences(self, more: Mapping[str, Absent]) -> Roster:
        """Return the same with these people away, too."""
        return replace(self, absences=MappingProxyType({**self.absences, **more}))

    def is_away(self, user_id: str) -> bool:
        """Say whether the person told us, or Slack, that they are away."""
        person = self.people.get(user_id)
        return user_id in self.absences or (person is not None and person.is_away)

    def resolve(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return the distinct user ids behind user ids and groups, in stated order; an unknown group gives nobody."""
        found: dict[str, None] = {}
        for name in names:
            found.update(dict.fromkeys((name,) if USER.fullmatch(name) else self.groups.get(name, ())))
        return tuple(found)

    def able(self, user_id: str) -> bool:
        """Say whether the person is known and may hold a role at all."""
        person = self.people.get(user_id)
        return person is not None and person.inability() is None


def gather(
    directory: Directory,
    policy: Policy,
    account_name: str | None,
    also: Iterable[str] = (),
    *,
    absences: Mapping[str, Absent] = MappingProxyType({}),
) -> Roster:
    """Look up what is needed to judge one account (None: every account) and the global groups.

    ``absences``: who is away now (:func:`workflows.absence.in_force`); without them nobody stands in for anybody.
    ``also``: the user ids of those who act; responders, leadership and security are resolved to ids but not looked up
    one by one, since such a group may be the whole company. Raises Unavailable; never fills in what it could not learn.
    """
    accounts = [a for name, a in policy.accounts.items() if account_name in (None, name)]
    judged = [*policy.reviewers, *policy.auditors]
    listed = [*policy.leadership, *policy.security]
    for account in accounts:
        judged += [account.owner, *asking.named(policy, account, None), *account.deputies]
        listed += account.responders
    groups: dict[str, tuple[str, ...]] = {}
    for name in dict.fromkeys(judged + listed):
        if not USER.fullmatch(name) and (members := directory.members(name)) is not None:
            groups[name] = tuple(members)
    people: dict[str, Person] = {}
    for user_id in dict.fromkeys((*Roster({}, groups).resolve(judged), *also)):
        if (person := directory.person(user_id)) is not None:
            people[user_id] = person
    return Roster(MappingProxyType(people), MappingProxyType(groups), MappingProxyType(dict(absences)))


# --- Who may --------------------------------------------------------------------------------------------------------


def explain(
    policy: Policy,
    roster: Roster,
    account: str,
    person: str,
    role: Role,
    *,
    requester: str | None = None,
    approvers: Collection[str] = (),
    asked: Collection[str] | None = None,
    stood_in: Mapping[str, Sequence[str]] = MappingProxyType({}),
    level: str | None = None,
) -> str | None:
    """Return None when ``person`` holds ``role``, else the sentence to that person that says why not.

    ``requester`` and ``approvers`` (user ids) are those of the request that is judged; without a requester nobody is a
    custodian or a reviewer, because whom to exclude is not known. ``asked``: the custodians when it was opened, with
    those who then stood in; ``stood_in``: for whom. Without ``asked`` whoever stands in now is a custodian, too.
    ``level``: whose custodians; None (or one that the policy no longer has): those of any level of the account.
    """
    if (sentence := _unfit(roster, person)) is not None:
        return sentence
    if role is Role.SYSTEM:
        return "Only the bot itself may do this."
    if role is Role.REQUESTER:
        return None if person == requester else "Only the person who asked for this access may do this."
    if role is Role.OVERSEER:
        if person in roster.resolve((*policy.leadership, *policy.security)):
            return None
        return "Only the owner of the review, leadership and security may give it to somebody else."
    if role is Role.REVIEWER:
        return _explain_reviewer(policy, roster, person, requester, approvers)
    entry = policy.accounts.get(account)
    if entry is None:
        return f"The policy has no account {_quoted(account)}. Ask the owner of the policy to put it (back) in."
    if role is Role.RESPONDER:
        if person in roster.resolve(entry.responders):
            return None
        return f"You are not one of those who may ask for {entry.title}. Its owner, <@{entry.owner}>, can add you."
    custodians = _custodians(policy, roster, entry, entry.levels.get(level or ""), requester)
    if requester is None:
        return "It is not known who asked for this access, so nobody can decide about it."
    if person == requester:
        return "You asked for this access yourself, so you cannot approve it."
    if person in stood_in or (asked is None and person not in custodians):
        return _explain_deputy(
            roster,
            entry,
            person,
            now=stand_ins(policy, roster, entry, requester, entry.levels.get(level or "")).get(person, ()),
            custodians=custodians,
            stood_in=stood_in.get(person),
            is_end=asked is None,
        )
    if person not in custodians:
        return f"You are not a custodian of {entry.title}; {_listing(custodians)}."
    if asked is not None and person not in asked:
        return (
            f"You became a custodian of {entry.title} after this request was opened, "
            "so only the custodians who were asked then can decide about it."
        )
    return None


def _explain_deputy(
    roster: Roster,
    account: Account,
    person: str,
    *,
    now: Sequence[str],
    custodians: Sequence[str],
    stood_in: Sequence[str] | None,
    is_end: bool,
) -> str | None:
    """Judge whoever is, or was, asked in somebody's place. ``stood_in``: in whose; None: they were not asked.

    ``now``: in whose they are now. ``is_end``: it is about taking access away, which who stood in may also when the
    custodian is back.
    """
    places = [one for one in stood_in or () if one in custodians]
    if set(now) & set(places) or (is_end and (now or (places and person in roster.resolve(account.deputies)))):
        return None
    if stood_in is None:
        return f"You are not a custodian of {account.title}; {_listing(custodians)}."
    if person in custodians:
        return (
            f"You became a custodian of {account.title} after this request was opened, "
            "so only the custodians who were asked then can decide about it."
        )
    if not places:
        return f"Those for whom you stood in are no custodians of {account.title} any more."
    if person not in roster.resolve(account.deputies):
        return f"The policy does not list you among the deputies of {account.title} any more."
    if person in roster.absences:
        return "You are marked as away yourself, so you stand in for nobody. “/breakglass back” ends that."
    names = " and ".join(f"<@{one}>" for one in places)
    return f"You do not stand in for {names} any more: they are back, or named somebody else."


def _unfit(roster: Roster, person: str) -> str | None:
    known = roster.people.get(person)
    if known is None:
        return "Slack does not say who you are, so you can take no part in break-glass access. Nothing was changed."
    if (inability := known.inability()) is not None:
        return f"Your Slack account {inability}, so it can take no part in break-glass access."
    return None


def _explain_reviewer(
    policy: Policy, roster: Roster, person: str, requester: str | None, approvers: Collection[str]
) -> str | None:
    if requester is None:
        return "It is not known who asked for this access, so nobody can review it."
    if person == requester:
        return "You asked for this access yourself, so you cannot review it."
    if person in approvers:
        return "You approved this access, so somebody else must review it."
    if person not in roster.resolve(policy.reviewers):
        able = [r for r in _able(roster, policy.reviewers) if r != requester and r not in approvers]
        return f"You are not a reviewer; {_listing(able, 'the reviewers are')}."
    return None


def roles(
    policy: Policy,
    roster: Roster,
    account: str,
    person: str,
    *,
    requester: str | None = None,
    approvers: Collection[str] = (),
    asked: Collection[str] | None = None,
    stood_in: Mapping[str, Sequence[str]] = MappingProxyType({}),
    level: str | None = None,
) -> frozenset[Role]:
    """Return every role that the person holds; the arguments are those of :func:`explain`."""
    about: dict[str, Any] = {"requester": requester, "approvers": approvers, "asked": asked, "stood_in": stood_in}
    about["level"] = level
    return frozenset(role for role in Role if explain(policy, roster, account, person, role, **about) is None)


def stand_ins(
    policy: Policy, roster: Roster, account: Account, requester: str | None, level: Level | None = None
) -> dict[str, tuple[str, ...]]:
    """Return by deputy for whom they stand in now, for this requester (``absence.py`` has the rules)."""
    custodians = _custodians(policy, roster, account, level, requester)
    return absence.standing_in(custodians, _able(roster, account.deputies), roster.absences, requester)


def voters(
    policy: Policy,
    roster: Roster,
    account: Account,
    requester: str,
    *,
    asked: Collection[str],
    stood_in: Mapping[str, Sequence[str]],
    level: Level | None,
) -> tuple[str, ...]:
    """Return whose approval counts now of those who were ``asked``.

    Who stood in counts, also when the custodian is back since, while the account lists them and that is one still.
    """
    custodians = _custodians(policy, roster, account, level, requester)
    listed = _able(roster, account.deputies)
    return tuple(
        one
        for one in asked
        if (
            one in custodians
            if one not in stood_in
            else one in listed and one != requester and any(place in custodians for place in stood_in[one])
        )
    )


def present(policy: Policy, roster: Roster, account: Account, requester: str | None = None) -> tuple[str, ...]:
    """Return those who could decide now and say nowhere that they are away: custodians, and who stands in for one."""
    there = (*_custodians(policy, roster, account, None, requester), *stand_ins(policy, roster, account, requester))
    return tuple(one for one in there if not roster.is_away(one))


def is_auditor(policy: Policy, roster: Roster, person: str) -> bool:
    """Say whether the person may export the log."""
    return roster.able(person) and person in roster.resolve(policy.auditors)


def may_prune(policy: Policy, roster: Roster, person: str) -> bool:
    """Say whether the person may put requests under legal hold and confirm what is pruned: auditors and security."""
    return roster.able(person) and person in roster.resolve((*policy.auditors, *policy.security))


def accounts_for(policy: Policy, roster: Roster, person: str) -> tuple[Account, ...]:
    """Return the accounts that the person may ask for, in the order of the file."""
    return tuple(
        account
        for name, account in policy.accounts.items()
        if explain(policy, roster, name, person, Role.RESPONDER) is None
    )


def may_drill(roster: Roster, account: Account, person: str) -> bool:
    """Say whether the person may begin a drill of the account: its responders, its custodians and its owner."""
    named = (account.owner, *asking.custodians(account), *account.responders)
    return roster.able(person) and person in roster.resolve(named)


def counted(approvals: Iterable[str], custodians: Collection[str], requester: str) -> frozenset[str]:
    """Return the distinct people whose approval counts; the quorum is compared with its size, never with a counter."""
    return frozenset(approvals).intersection(custodians) - {requester}


def in_force(policy: Policy, custodians: Collection[str]) -> str:
    """Return the SHA-256 (hex) of the policy and the custodians together, for the request and each decision."""
    together = json.dumps([policy.hash, sorted(set(custodians))], separators=(",", ":"))
    return hashlib.sha256(together.encode()).hexdigest()


def _able(roster: Roster, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(user_id for user_id in roster.resolve(names) if roster.able(user_id))


def _custodians(
    policy: Policy, roster: Roster, account: Account, level: Level | None, requester: str | None
) -> tuple[str, ...]:
    return tuple(one for one in _able(roster, asking.named(policy, account, level)) if one != requester)


def _listing(people: Collection[str], words: str = "its custodians are") -> str:
    if not people:
        return "at this moment there is nobody who could do it"
    shown = [f"<@{user_id}>" for user_id in people]
    more = f" and {len(shown) - 10} more" if len(shown) > 10 else ""  # a group may have hundreds
    return f"{words} {', '.join(shown[:10])}{more}"


def _quoted(word: str) -> str:
    return f"“{word}”" if NAME.fullmatch(word) else "of that name"


# --- The verdict ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Unmet:
    """One thing that stands against a request. ``field`` is a field of the form; None: the person is at fault."""

    field: str | None
    code: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Overdue:
    """A use of somebody's own whose review is late. ``owner``: whose it is to file, a user id; empty: nobody's yet."""

    request: str
    owner: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a request would take, or takes, and what stands against it.

    ``custodians``: who can approve for this requester now. ``blank``: what a preview found not filled in yet; it is not
    held against the form, but :meth:`require` never lets it pass. ``deputies``: who is asked besides, in whose place.
    ``reserve``: custodians who are leadership only, asked when nobody else answered.
    """

    account: Account | None
    level: Level | None
    custodians: tuple[str, ...]
    quorum: int
    longest: timedelta
    default: timedelta
    unmet: tuple[Unmet, ...]
    blank: tuple[Unmet, ...] = ()
    deputies: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    reserve: frozenset[str] = frozenset()

    @property
    def is_allowed(self) -> bool:
        """Account and level are chosen and nothing stands against the request (so far, in a preview)."""
        return self.account is not None and self.level is not None and not self.unmet

    @property
    def sentence(self) -> str:
        """What it takes, or the first things that stand against it."""
        if self.unmet:
            return " ".join(unmet.sentence for unmet in self.unmet[:3])
        if self.level is None:
            return "Choose an account." if self.account is None else "Choose a level."
        count = len(self.counting)
        factors = f": {asking.say_factors(self.level.factors)}" if self.level.factors else ""
        people = "custodian" if count == 1 else "custodians"
        return f"Needs {self.quorum} of {count} {people}{factors}; at most {say_duration(self.longest)}."

    @property
    def counting(self) -> tuple[str, ...]:
        """The custodians without those whom leadership alone makes one."""
        return tuple(person for person in self.custodians if person not in self.reserve)

    def require(self) -> None:
        """Refuse unless all is well and filled in.

        Raises :class:`NotAllowed` when the person is at fault, else :class:`Invalid` with a sentence for each field.
        """
        found = (*self.unmet, *self.blank)
        if personal := [unmet for unmet in found if unmet.field is None]:
            raise NotAllowed(" ".join(unmet.sentence for unmet in personal), code=personal[0].code)
        fields: dict[str, str] = {}
        for unmet in found:
            name = unmet.field or "account"
            fields[name] = f"{fields[name]} {unmet.sentence}" if name in fields else unmet.sentence
        if fields:
            raise Invalid(" ".join(fields.values()), fields=fields, code=found[0].code)
        if not self.is_allowed:  # a verdict that somebody built by hand
            raise Invalid("Choose an account and a level.", fields={"account": "Choose an account and a level."})


def evaluate(
    policy: Policy,
    roster: Roster,
    *,
    account: str | None,
    level: str | None,
    requester: str,
    threshold: str | None = None,
    asked: timedelta | None = None,
    reason: str | None = None,
    standard_path: str | None = None,
    incident: str | None = None,
    overdue: Sequence[Overdue] = (),
    preview: bool = False,
    is_drill: bool = False,
    with_leadership: bool = False,
) -> Verdict:
    """Judge a request: the same analysis fills the form (``preview``) and stands at the gate.

    None means "not filled in yet": a preview keeps it in ``blank``, the gate counts it as unmet. An empty string is
    filled in, and wrong. ``overdue``: the requester's own uses of the account whose reviews are late. ``is_drill``:
    custodians and the owner may ask as well, and it must be for a rehearsal level; else it must not be.
    ``with_leadership``: leadership that is asked last counts as well, as it does once it is open.
    """
    blank: list[Unmet] = []
    unmet: list[Unmet] = []

    def say(field_name: str | None, code: str, sentence: str) -> None:
        unmet.append(Unmet(field_name, code, sentence))

    def ask(field_name: str, sentence: str) -> None:
        (blank if preview else unmet).append(Unmet(field_name, "missing", sentence))

    # 1. The person.
    entry = policy.accounts.get(account) if account is not None else None
    if (sentence := _unfit(roster, requester)) is not None:
        say(None, "unfit_person", sentence)
    elif (
        entry is not None
        and not (is_drill and may_drill(roster, entry, requester))
        and (sentence := explain(policy, roster, entry.name, requester, Role.RESPONDER, requester=requester))
        is not None
    ):
        say(None, "not_responder", sentence)

    # 2. The account, its level, and whether there are people enough.
    chosen = entry.levels.get(level) if entry is not None and level is not None else None
    custodians = _custodians(policy, roster, entry, chosen, requester) if entry is not None else ()
    leaders = asking.reserve(policy, entry, chosen, roster) if entry is not None and chosen is not None else frozenset()
    if account is None:
        ask("account", "Choose an account.")
    elif entry is None:
        say("account", "unknown_account", f"The policy has no account {_quoted(account)}. Choose one of the list.")
    if entry is not None and level is not None and chosen is None:
        known = ", ".join(entry.real_levels)
        say("level", "unknown_level", f"{entry.title} has no level {_quoted(level)}; its levels are {known}.")
    elif chosen is not None and chosen.is_rehearsal is not is_drill:
        others = ", ".join(name for name, one in entry.levels.items() if one.is_rehearsal is is_drill) if entry else ""
        why = "opens what is real, and a drill must not" if is_drill else "is for drills and opens nothing real"
        say("level", "rehearsal", f"“{chosen.title}” {why}; choose one of: {others or 'none'}.")
    elif level is None:
        ask("level", "Choose a level.")
    if overdue and not is_drill and (chosen is None or chosen.block_overdue):
        say(None, OVERDUE, _overdue(overdue, entry))
    if entry is not None:
        counting = tuple(person for person in custodians if with_leadership or person not in leaders)
        unmet.extend(_shortages(policy, roster, entry, chosen, counting, requester=requester))

    # 3. The words and the time.
    if threshold is None:
        ask("threshold", "Choose the documented threshold that is met.")
    elif entry is not None and threshold not in entry.thresholds:
        say("threshold", "unknown_threshold", f"Choose one of the documented thresholds of {entry.title}.")
    for name, words in (("reason", reason), ("standard_path", standard_path), ("incident", incident)):
        if words is None:
            ask(name, _ASK[name])
        elif (problem := _words(name, words)) is not None:
            unmet.append(problem)
    if asked is None:
        ask("duration", "Say for how long.")
    elif asked < SHORTEST:
        say("duration", "too_short", f"Ask for at least {say_duration(SHORTEST)}.")
    elif chosen is not None and asked > chosen.longest:
        say("duration", "too_long", f"“{chosen.title}” is given for at most {say_duration(chosen.longest)}.")

    return Verdict(
        account=entry,
        level=chosen,
        custodians=custodians,
        quorum=chosen.quorum if chosen else 0,
        longest=chosen.longest if chosen else timedelta(0),
        default=chosen.default if chosen else timedelta(0),
        unmet=tuple(unmet),
        blank=tuple(blank),
        deputies=MappingProxyType(stand_ins(policy, roster, entry, requester, chosen) if entry is not None else {}),
        reserve=leaders,
    )


OVERDUE: Final = "overdue_review"


def _overdue(overdue: Sequence[Overdue], account: Account | None) -> str:
    """Say what must be filed first, and whom to ask for it."""
    first = overdue[0]
    more = f" (and {len(overdue) - 1} more)" if len(overdue) > 1 else ""
    title = account.title if account is not None else "this account"
    whom = f"Ask <@{first.owner}>, whose it is, to file it" if first.owner else "Ask a reviewer to file it"
    return f"The review of your use {first.request}{more} is overdue. {whom}; then {title} is open to you again."


_ASK: Final = {
    "reason": "Say why you need this access.",
    "standard_path": "Say what you tried on the standard path and why that is not enough.",
    "incident": "Give the incident's reference.",
}


def _shortages(
    policy: Policy,
    roster: Roster,
    account: Account,
    level: Level | None,
    custodians: tuple[str, ...],
    *,
    requester: str,
) -> Iterator[Unmet]:
    """Yield what makes an approval or a review impossible from the start, before anybody is woken."""
    owner = f"Its owner, <@{account.owner}>, can change that."
    if not custodians:
        yield Unmet("account", "no_custodians", f"Nobody can approve {account.title} for you at this moment. {owner}")
    elif level is not None and len(custodians) < level.quorum:
        yield Unmet(
            "level",
            "too_few_custodians",
            f"“{level.title}” needs {level.quorum} custodians, and only {len(custodians)} can approve for you. {owner}",
        )
    quorum = level.quorum if level is not None else 1
    factors = asking.seats_of(level.factors, roster, custodians) if level is not None else ()
    enough = len(custodians) >= quorum
    if enough and level is not None and not (found := asking.satisfied(custodians, quorum, factors)).suffices:
        enough = False
        yield Unmet(
            "level",
            "unfilled_factor",
            f"“{level.title}” needs {asking.say_factors(level.factors)}, all different people, and of those who can "
            f"approve for you {asking.say_missing(found)}. {owner}",
        )
    # A reviewer must be left over: neither the requester nor needed for the quorum.
    reviewers = [user_id for user_id in _able(roster, policy.reviewers) if user_id != requester]
    rest = ([person for person in custodians if person != reviewer] for reviewer in reviewers)
    if not any(asking.satisfied(people, quorum, factors).suffices for people in rest) and (
        not reviewers or enough  # else it is the custodians who are too few, which was said
    ):
        yield Unmet(
            "account",
            "no_reviewer",
            "Nobody could review this access afterwards: the reviewer must be neither you nor one who approves it.",
        )


def _words(name: str, words: str) -> Unmet | None:
    """Judge what the requester wrote; characters that nobody sees (zero-width, control) do not count as words."""
    least, most = WORDS[name]
    seen = "".join(c for c in words if c.isspace() or not unicodedata.category(c).startswith("C")).strip()
    if not seen:
        return Unmet(name, "empty", _ASK[name])
    if len(seen) < least:
        return Unmet(name, "too_few_words", f"{_ASK[name]} Write at least {least} characters.")
    if len(words) > most:
        return Unmet(name, "too_many_words", f"This is {len(words)} characters; at most {most} fit.")
    return None
