"""Could each account be opened right now? Asked by day, so that nobody finds out in the night.

``breakglass ready`` gathers the facts (``bot/ready_command.py``); :func:`judge` is pure.

Rules
-----
* The people are judged by the form's own verdict (``policy.evaluate``), for every responder: one who is a custodian
  counts for nobody's quorum but others'. Then once more without those who say of themselves that they are away.
* What was not learnt is UNKNOWN, and never green: no roster, a level that was not asked about, a source without a row.
* A level that is for drills opens nothing, so nobody misses it in the night: the drill itself finds out about it.
* RED: with this, somebody could not get in. WARN: one more thing, and somebody could not.
* Each sentence ends with what to do.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from workflows import asking
from workflows import policy as rules
from workflows.capture_rules import Need
from workflows.policy import Roster, evaluate, say_duration
from workflows.policy_file import USER

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from workflows.drill_history import Past
    from workflows.policy import Account, Directory, Level, Policy, Verdict

FAIL: Final = "ready:fail"  # an account could not be opened when it was looked at

MOST_RESPONDERS: Final = 50  # looked up one by one; a group of responders may be the whole company
DRILL_GRACE: Final = timedelta(days=7)  # a drill that is due may wait for a good moment
REVIEW_EVERY: Final = timedelta(days=365)
_MOST_NAMES: Final = 5


class Severity(StrEnum):
    """How bad it is; UNKNOWN: a part did not answer, so nothing can be said."""

    RED = "red"  # the worst stands first
    UNKNOWN = "unknown"
    WARN = "warn"


class Code(StrEnum):
    """What is wrong."""

    PERSON = "person"  # a custodian, owner or responder does not exist or can hold no role
    GROUP = "group"  # a group does not exist or is empty
    TOO_FEW = "too_few"  # custodians, for the quorum
    AWAY = "away"  # enough, but not of those who are there
    NO_SPARE = "no_spare"  # exactly the quorum
    NO_RESPONDER = "no_responder"
    NO_REVIEWER = "no_reviewer"
    FACTOR = "factor"  # a level takes codes, and too few custodians have an authenticator
    DRILL = "drill"  # it was never rehearsed, not for long, or the last rehearsal failed
    RULES = "rules"  # nobody has looked at them for a year
    VAULT = "vault"
    TARGET = "target"
    BLIND = "blind"  # nobody can look at the target
    CAPTURE = "capture"
    COPY = "copy"
    ALERT = "alert"
    CHANNEL = "channel"
    BOT = "bot"
    SLACK = "slack"
    DATABASE = "database"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be. ``level``: its name; None: it is about the whole account."""

    severity: Severity
    code: Code
    sentence: str
    level: str | None = None


@dataclass(frozen=True, slots=True)
class Probe:
    """What came of asking about a level: what Vault would not do, and why its target did not answer (None: fine).

    ``is_blind``: the level has no way to look at its target, and its engine knows one.
    """

    vault: str | None
    target: str | None
    is_blind: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """What was learnt. Of ``roster``, ``levels``, ``silent`` and ``copies`` None means: that part did not answer.

    ``levels``: by account and level. ``silent``: by source, since when nothing was heard of it (None: it is heard of).
    ``copies``: by copy, what is wrong with it (None: nothing). ``general``: what was found that concerns every account.
    ``enrolled``: of custodians of whom codes are taken, whether they can give one (None: Vault did not say).
    ``drills``: by account that has drills, the newest that has a score (None: there was none yet).
    """

    now: datetime
    roster: Roster | None
    levels: Mapping[tuple[str, str], Probe] | None
    silent: Mapping[str, datetime | None] | None
    copies: Mapping[str, str | None] | None
    general: tuple[Finding, ...] = ()
    enrolled: Mapping[str, bool] | None = None
    drills: Mapping[str, Past | None] | None = None


@dataclass(frozen=True, slots=True)
class Readiness:
    """An account, and everything that was found about it; the worst comes first."""

    account: Account
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> Severity | None:
        """RED when it could not be opened, UNKNOWN when that cannot be said, None when it could."""
        found = {finding.severity for finding in self.findings}
        return next((one for one in (Severity.RED, Severity.UNKNOWN) if one in found), None)


def look_up(directory: Directory, policy: Policy) -> Roster:
    """Return what the directory says of everybody who matters, also of responders. Raises Unavailable."""
    known = rules.gather(directory, policy, None)
    asked = [who for one in policy.accounts.values() for who in known.resolve(one.responders)[:MOST_RESPONDERS]]
    return rules.gather(directory, policy, None, also=dict.fromkeys(asked))


def judge(policy: Policy, facts: Facts) -> tuple[Readiness, ...]:
    """Return how each account stands, in the order of the policy."""
    return tuple(
        Readiness(account, tuple(sorted(dict.fromkeys(_judge(policy, account, facts)), key=_rank)))
        for account in policy.accounts.values()
    )


def _rank(finding: Finding) -> int:
    return list(Severity).index(finding.severity)


def _judge(policy: Policy, account: Account, facts: Facts) -> Iterator[Finding]:
    yield from facts.general
    if facts.roster is None:
        yield _unknown(facts, Code.SLACK, "Slack did not say who is there, so it is not known who could approve.")
    else:
        yield from _people(account, facts.roster)
        yield from _quorums(policy, account, facts.roster)
        yield from _factors(policy, account, facts.roster, facts)
    yield from _levels(account, facts)
    yield from _copies(policy, facts)
    yield from _drills(account, facts)
    yield from _rules(account, facts.now)


def _unknown(facts: Facts, code: Code, sentence: str) -> Finding:
    """Say that a part did not answer; where it was said why already, that once more (and then it is told once)."""
    why = {code, Code.DATABASE}
    said = [one for one in facts.general if one.code in why and one.severity is not Severity.WARN]
    return said[0] if said else Finding(Severity.UNKNOWN, code, sentence)


# --- people --------------------------------------------------------------------------------------------------------


def _people(account: Account, roster: Roster) -> Iterator[Finding]:
    """Say who of those who are named can do nothing."""
    parts = {"owner": (account.owner,), "custodians": account.custodians, "responders": account.responders}
    parts |= {f"the tier {tier.name}": tier.people for tier in account.tiers}
    parts |= {f"the factor {one.name}": one.people for level in account.levels.values() for one in level.factors}
    parts["deputies"] = account.deputies
    for part, names in parts.items():
        for name in names:
            if not USER.fullmatch(name) and not roster.groups.get(name):
                what = "is empty" if name in roster.groups else "does not exist"
                sentence = f"The group {name} of {part} {what}: mend it in Slack, or name another in the policy."
                yield Finding(Severity.WARN, Code.GROUP, sentence)
    # Of responders only those by name: a group of them may have guests in it, who just cannot ask.
    named = tuple(name for name in account.responders if USER.fullmatch(name))
    judged = {"owner": (account.owner,), "custodian": roster.resolve(asking.custodians(account)), "responder": named}
    judged["deputy"] = roster.resolve(account.deputies)
    told: dict[str, tuple[str, list[str]]] = {}
    for role, people in judged.items():
        for user_id in people:
            person = roster.people.get(user_id)
            why = "does not exist" if person is None else person.inability()
            if why is not None:
                told.setdefault(user_id, (why, []))[1].append(role)
    for user_id, (why, held) in told.items():
        sentence = f"{_name(roster, user_id)}, {' and '.join(held)}, {why}: take them out, and name somebody else."
        yield Finding(Severity.WARN, Code.PERSON, sentence)


@dataclass(frozen=True, slots=True)
class _Short:
    """What one responder would meet at one level."""

    severity: Severity
    code: Code
    sentence: str  # without who asks and what to do


def _quorums(policy: Policy, account: Account, roster: Roster) -> Iterator[Finding]:
    able = [who for who in roster.resolve(account.responders) if roster.able(who)]
    here = [who for who in able if not roster.is_away(who)]
    if not here:
        whom = "all who may ask are away" if able else "nobody who may ask exists and is active"
        sentence = f"Nobody could ask: {whom}. Name more responders in the policy."
        yield Finding(Severity.RED, Code.NO_RESPONDER, sentence)
    present = _without_the_away(roster)
    for level in account.real_levels.values():
        met: dict[_Short, list[str]] = {}
        for who in here:
            seen, left = (
                evaluate(policy, one, account=account.name, level=level.name, requester=who, preview=True)
                for one in (roster, present)
            )
            for short in _shortages(roster, level, seen, left):
                met.setdefault(short, []).append(who)
        for short, askers in met.items():
            whose = "whoever asks" if len(askers) == len(here) else f"when {_names(roster, askers)} asks"
            yield Finding(short.severity, short.code, f"{short.sentence}, {whose}. {_CURE[short.code]}", level.name)


def _factors(policy: Policy, account: Account, roster: Roster, facts: Facts) -> Iterator[Finding]:
    """Say whether enough custodians could give a code, where a level takes one."""
    levels = [level for level in account.real_levels.values() if level.step_up is not None]
    if not levels:
        return
    if facts.enrolled is None:
        yield _unknown(facts, Code.VAULT, "Vault did not say who has an authenticator enrolled.")
        return
    has = facts.enrolled
    able = [who for who in roster.resolve(account.custodians) if roster.able(who)]
    without = [who for who in able if not has.get(who)]
    there = _without_the_away(roster)
    for level in levels:
        seen = [
            evaluate(policy, there, account=account.name, level=level.name, requester=who, preview=True).custodians
            for who in roster.resolve(account.responders)
            if there.able(who)
        ]
        fewest = min((sum(bool(has.get(one)) for one in people) for people in seen), default=0)
        names = _names(roster, without).replace(" or ", ", ")
        cure = "Have breakglass enrol run with them."
        if fewest < level.quorum:
            sentence = f"it takes codes of {level.quorum} custodians, and only {fewest} who are there can give one"
            lack = f" (not enrolled: {names})" if without else ""
            yield Finding(Severity.RED, Code.FACTOR, f"{sentence}{lack}. {cure}", level.name)
        elif without:
            yield Finding(
                Severity.WARN, Code.FACTOR, f"it takes codes, and {names} cannot give one. {cure}", level.name
            )


_CURE: Final[Mapping[Code, str]] = MappingProxyType(
    {
        Code.TOO_FEW: "Name more custodians in the policy.",
        Code.AWAY: "Name more custodians, or have them name deputies (/breakglass away).",
        Code.NO_SPARE: "Name one more custodian.",
        Code.NO_REVIEWER: "Name more reviewers in the policy.",
    }
)


def _shortages(roster: Roster, level: Level, seen: Verdict, left: Verdict) -> Iterator[_Short]:
    """Say what a responder lacks: ``seen`` is what the form would tell them, ``left`` if it knew who is away."""
    # Who stands in for a custodian and is there fills what one of those could.
    places = [
        [one for one in of if one in seen.counting] for who, of in seen.deputies.items() if not roster.is_away(who)
    ]
    present = (*left.counting, *(of[0] for of in places if of))
    quorum, have, there = level.quorum, len(seen.counting), len(present)
    away = [user_id for user_id in seen.counting if user_id not in present]
    why = f" ({', '.join(_name(roster, one) for one in away[:_MOST_NAMES])} {'is' if len(away) == 1 else 'are'})"
    if have < quorum:
        sentence = f"it needs {quorum} custodians, and only {have} can act"
        yield _Short(Severity.RED, Code.TOO_FEW, sentence)
    elif (gap := asking.gap(level, roster, seen.counting)) is not None:
        yield _Short(Severity.RED, Code.TOO_FEW, f"it needs {asking.say_factors(level.factors)}, and {gap}")
    elif there < quorum:
        sentence = f"it needs {quorum} custodians, and of {have} only {there} are not away{why}"
        yield _Short(Severity.RED, Code.AWAY, sentence)
    elif (gap := asking.gap(level, roster, present)) is not None:
        sentence = f"it needs {asking.say_factors(level.factors)}, and of those who are not away{why} {gap}"
        yield _Short(Severity.RED, Code.AWAY, sentence)
    elif there == quorum or asking.hangs_on_one(level, roster, present):
        rest = f"of {have} only {there} are not away{why}" if away else f"there are {there}"
        whose = f", {asking.say_factors(level.factors)}" if level.factors else ""
        yield _Short(Severity.WARN, Code.NO_SPARE, f"it needs {quorum} custodians{whose}, and {rest}: none to spare")
    if any(one.code == "no_reviewer" for one in seen.unmet):
        yield _Short(Severity.RED, Code.NO_REVIEWER, "nobody could review it who neither asks nor must approve")


def _without_the_away(roster: Roster) -> Roster:
    people = {user_id: person for user_id, person in roster.people.items() if not roster.is_away(user_id)}
    return Roster(MappingProxyType(people), roster.groups)


def _names(roster: Roster, people: Sequence[str]) -> str:
    more = f" or {len(people) - _MOST_NAMES} more" if len(people) > _MOST_NAMES else ""
    return " or ".join(_name(roster, user_id) for user_id in people[:_MOST_NAMES]) + more


def _name(roster: Roster, user_id: str) -> str:
    person = roster.people.get(user_id)
    return user_id if person is None else f"{person.name} ({user_id})"


# --- Vault, targets, records, copies ---------------------------------------------------------------------------------


def _levels(account: Account, facts: Facts) -> Iterator[Finding]:
    for level in account.real_levels.values():
        probe = None if facts.levels is None else facts.levels.get((account.name, level.name))
        if probe is None:
            yield _unknown(facts, Code.VAULT, "Vault was not asked, so it is not known whether it would give anything.")
        else:
            yield from _probed(level, probe)
        if level.capture_source is not None:
            yield from _captured(level, level.capture_source, facts)


def _probed(level: Level, probe: Probe) -> Iterator[Finding]:
    if probe.vault is not None:
        yield Finding(Severity.RED, Code.VAULT, f"{probe.vault} Then run breakglass check.", level.name)
    elif probe.target is not None:
        sentence = f"The target does not answer: {probe.target} Have its administrator look."
        yield Finding(Severity.RED, Code.TARGET, sentence, level.name)
    elif probe.is_blind:
        sentence = "Nobody can see whether its target answers: give it a watch_role, or try it (check --levels)."
        yield Finding(Severity.WARN, Code.BLIND, sentence, level.name)


def _captured(level: Level, source: str, facts: Facts) -> Iterator[Finding]:
    is_required = level.capture is Need.REQUIRED
    if facts.silent is None or source not in facts.silent:
        sentence = f"It is not known whether {source} is heard of, which records what is done."
        yield _unknown(facts, Code.CAPTURE, sentence)
    elif (since := facts.silent[source]) is not None:
        means = "it gives no credential until it is" if is_required else "commands would not be recorded"
        span = facts.now - since
        heard = f"was not heard of for {say_duration(span)}" if span else "was never heard of"
        sentence = f"{source} {heard}: {means}. See whether its tailer runs."
        yield Finding(Severity.RED if is_required else Severity.WARN, Code.CAPTURE, sentence, level.name)


def _copies(policy: Policy, facts: Facts) -> Iterator[Finding]:
    if policy.log is None or not policy.log.copies:
        return
    for name, copy in policy.log.copies.items():
        if facts.copies is None or name not in facts.copies:
            yield _unknown(facts, Code.COPY, f"It is not known whether the copy {name} has what is logged.")
        elif (trouble := facts.copies[name]) is not None:
            means = f"{'a' if copy.required else 'no'} credential waits for it"
            sentence = f"The copy {name}: {trouble.removesuffix('.')}; {means}. Run breakglass check."
            yield Finding(Severity.RED if copy.required else Severity.WARN, Code.COPY, sentence)


def _drills(account: Account, facts: Facts) -> Iterator[Finding]:
    if account.drill is None:
        return
    if facts.drills is None or account.name not in facts.drills:
        yield _unknown(facts, Code.DRILL, "It is not known when it was last drilled.")
        return
    last, todo = facts.drills[account.name], f"Begin a drill: /breakglass drill {account.name}."
    if last is None:
        yield Finding(Severity.WARN, Code.DRILL, f"It was never drilled to the end. {todo}")
        return
    day = f"{last.at:%Y-%m-%d}"
    if not last.passed:
        failed = ", ".join(leg.value.replace("_", " ") for leg in last.failed) or "see its scorecard"
        sentence = f"Its last drill, {last.drill} of {day}, failed ({failed}): mend that. {todo}"
        yield Finding(Severity.WARN, Code.DRILL, sentence)
    if facts.now - last.at > account.drill.every + DRILL_GRACE:
        yield Finding(Severity.WARN, Code.DRILL, f"Its last drill, {last.drill}, was on {day}: too long ago. {todo}")


def _rules(account: Account, now: datetime) -> Iterator[Finding]:
    day, todo = account.rules_reviewed, "Read its people, thresholds and levels with its owner, and set rules_reviewed."
    if day is None:
        yield Finding(Severity.WARN, Code.RULES, f"Nobody is on record for having looked at its rules. {todo}")
    elif day > (now + timedelta(days=1)).date():  # somewhere it is tomorrow already
        yield Finding(Severity.WARN, Code.RULES, f"Its rules_reviewed, {day}, has not come yet. Correct it.")
    elif now.date() - day > REVIEW_EVERY:
        yield Finding(Severity.WARN, Code.RULES, f"Its rules were last looked at on {day}, over a year ago. {todo}")
