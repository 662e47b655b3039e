"""Who is asked when, and do those who approved suffice?

Rules
-----
* Whom a request can be decided by, the steps of asking and the factors are resolved at its opening and stored with it.
  Everybody in any tier may decide from the beginning; they are *asked* (told, called, nudged) when their step comes.
* At the opening the first tier is asked, and as many more as are needed that those asked could suffice. After that each
  tier's time asks one more.
* A tier outside its hours is passed over: the next one is asked at that moment instead. Whoever was passed over comes
  when nobody else is left, so that no tier is ever left out: what nobody answers is worse than a call at night.
* One person fills one place. Places of factors are given out by a matching over the approvals, computed anew each time;
  an approval that fills no place of a factor counts only where the quorum leaves room beside them.
* What became stricter meanwhile wins, what became laxer does not: see :func:`in_force`.

Pure. The steps are made by ``nudging.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from workflows.asking_rules import FIRST_TIER, LEADERSHIP, Factor, Unanswered

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from storage.models import Request
    from workflows.policy import Roster
    from workflows.policy_file import Account, Level, Policy

NUMBERS: Final = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


# --- Whom -------------------------------------------------------------------------------------------------------------


def named(policy: Policy, account: Account, level: Level | None) -> tuple[str, ...]:
    """Return the names (user ids and groups) of those who may decide at a level; None: at any of the account."""
    levels = account.levels.values() if level is None else (level,)
    names = [*account.custodians]
    names += [name for tier in account.tiers for name in tier.people]
    names += [name for one in levels for factor in one.factors for name in factor.people]
    if any(one.unanswered is Unanswered.ESCALATE for one in levels):
        names += policy.leadership
    return tuple(dict.fromkeys(names))


def custodians(account: Account) -> tuple[str, ...]:
    """Return the names of those who may decide, leadership aside."""
    names = [*account.custodians, *(name for tier in account.tiers for name in tier.people)]
    names += [name for level in account.levels.values() for factor in level.factors for name in factor.people]
    return tuple(dict.fromkeys(names))


def reserve(policy: Policy, account: Account, level: Level, roster: Roster) -> frozenset[str]:
    """Return those who may decide only because leadership is asked last: nobody plans with them."""
    if level.unanswered is not Unanswered.ESCALATE:
        return frozenset()
    names = [*account.custodians, *(name for tier in account.tiers for name in tier.people)]
    names += [name for factor in level.factors for name in factor.people]
    return frozenset(roster.resolve(policy.leadership)) - frozenset(roster.resolve(names))


# --- Whether they suffice ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Seats:
    """A factor with the people who can fill it."""

    name: str
    need: int
    people: frozenset[str]


@dataclass(frozen=True, slots=True)
class Standing:
    """How far the approvals go. ``filled``: by factor, who fills its places, in the order of the policy."""

    have: int
    need: int
    filled: Mapping[str, tuple[str, ...]]
    factors: tuple[Seats, ...]

    def data(self) -> dict[str, Any]:
        """Return it as an approval's entry holds it."""
        people = {"factors": {name: list(filled) for name, filled in self.filled.items()}} if self.factors else {}
        return {"have": self.have, "need": self.need, **people, **({"missing": self.missing} if self.missing else {})}

    @property
    def suffices(self) -> bool:
        """Enough different people, and every factor filled."""
        return self.have >= self.need and not self.missing

    @property
    def missing(self) -> dict[str, int]:
        """How many places of which factor are empty."""
        left = {seats.name: seats.need - len(self.filled[seats.name]) for seats in self.factors}
        return {name: count for name, count in left.items() if count}


def seats_of(
    factors: Iterable[Factor],
    roster: Roster,
    among: Collection[str],
    stood_in: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> tuple[Seats, ...]:
    """Return the factors with the people behind their names, of those ``among`` whom it is decided.

    ``stood_in``: by deputy, in whose place: there they fill what those could. They are one person all the same.
    """
    found = []
    for one in factors:
        people = frozenset(roster.resolve(one.people)).intersection(among)
        deputies = (deputy for deputy, places in stood_in.items() if people.intersection(places))
        found.append(Seats(one.name, one.need, people.union(deputies)))
    return tuple(found)


def stored(row: Request) -> tuple[Seats, ...]:
    """Return the factors as they were at the opening."""
    return tuple(
        Seats(str(one["name"]), int(one["need"]), frozenset(map(str, one["people"])))
        for one in (row.asking or {}).get("factors", ())
    )


def in_force(row: Request, level: Level | None, roster: Roster, among: Collection[str]) -> tuple[Seats, ...]:
    """Return what must be filled now: the factors of the opening and those of the policy, the stricter of each."""
    then = {one.name: one for one in stored(row)}
    now = {one.name: one for one in seats_of(level.factors if level else (), roster, among, row.deputies or {})}
    return tuple(
        _stricter(then[name], now[name]) if name in then and name in now else (then.get(name) or now[name])
        for name in dict.fromkeys((*then, *now))
    )


def _stricter(one: Seats, other: Seats) -> Seats:
    return Seats(one.name, max(one.need, other.need), one.people & other.people)


def satisfied(people: Iterable[str], quorum: int, factors: Sequence[Seats]) -> Standing:
    """Say how far these different people go: a maximum matching of people and the places of factors.

    ``quorum`` is at least the places: what a policy made impossible meanwhile asks for more, never for less.
    """
    ordered = list(dict.fromkeys(people))
    places = [seats for seats in factors for _ in range(seats.need)]
    holds: dict[int, str] = {}  # by place

    def place(person: str, tried: set[int]) -> bool:
        """Give the person a place, moving others to another one of theirs if need be (Kuhn's algorithm)."""
        for number, seats in enumerate(places):
            if person in seats.people and number not in tried:
                tried.add(number)
                if number not in holds or place(holds[number], tried):
                    holds[number] = person
                    return True
        return False

    matched = sum(place(person, set()) for person in ordered)
    need = max(quorum, len(places))
    filled: dict[str, tuple[str, ...]] = {seats.name: () for seats in factors}
    for number, person in sorted(holds.items()):
        filled[places[number].name] += (person,)
    others = len(ordered) - matched
    have = matched + min(need - len(places), others) if places else others
    return Standing(have, need, filled, tuple(factors))


def standing(row: Request, people: Iterable[str], quorum: int) -> Standing:
    """Say how far these people go, by what was stored at the opening: for pictures, which ask no directory."""
    return satisfied([one for one in people if one != row.requester], quorum, stored(row))


def gap(level: Level, roster: Roster, people: Sequence[str]) -> str | None:
    """Return "security is missing" when not even all these people could fill the factors of a level; else None."""
    found = satisfied(people, level.quorum, seats_of(level.factors, roster, people))
    return say_missing(found) or None


def lack(account: Account, level: Level, roster: Roster) -> str | None:
    """Return what a level lacks whoever asks: "needs 2 custodians and 1 can act"; None: nothing."""
    names = [*account.custodians, *(name for tier in account.tiers for name in tier.people)]
    names += [name for factor in level.factors for name in factor.people]
    able = [person for person in roster.resolve(names) if roster.able(person)]
    if len(able) < level.quorum:
        return f"needs {level.quorum} custodians and {len(able)} can act"
    missing = gap(level, roster, able)
    return f"needs {say_factors(level.factors)}, and {missing}" if missing else None


def hangs_on_one(level: Level, roster: Roster, people: Sequence[str]) -> bool:
    """Say whether without some single person of these a factor could not be filled."""
    return bool(level.factors) and any(
        gap(level, roster, [other for other in people if other != person]) is not None for person in people
    )


def say_factors(factors: Iterable[Factor | Seats]) -> str:
    """Return "one of owners and one of security"; empty when there are none."""
    parts = [f"{_number(one.need)} of {one.name}" for one in factors]
    return " and ".join((", ".join(parts[:-1]), parts[-1])) if len(parts) > 1 else "".join(parts)


def say_missing(found: Standing) -> str:
    """Return "security is missing" or "two of security are missing"; empty when nothing is."""
    parts = [name if count == 1 else f"{_number(count)} of {name}" for name, count in found.missing.items()]
    is_one = len(parts) == 1 and sum(found.missing.values()) == 1
    return f"{' and '.join(parts)} {'is' if is_one else 'are'} missing" if parts else ""


def _number(count: int) -> str:
    return NUMBERS[count] if count < len(NUMBERS) else str(count)


# --- When -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Step:
    """Whom the clock asks at a moment. ``tier``: None calls those who were asked before once more."""

    at: datetime
    tier: str | None
    people: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything about the asking that is stored with a request."""

    steps: tuple[Step, ...]
    factors: tuple[Seats, ...]
    lapse_at: datetime
    is_plain: bool  # one tier, no factors, nobody after them: then nothing needs storing

    def made(self, now: datetime) -> int:
        """Return how many steps the opening itself makes."""
        return sum(step.at <= now for step in self.steps)

    def data(self) -> dict[str, Any] | None:
        """Return it as JSON, for the row and the log; None when it is plain."""
        if self.is_plain:
            return None
        return {
            "steps": [
                {"at": step.at.isoformat().replace("+00:00", "Z"), "tier": step.tier, "people": list(step.people)}
                for step in self.steps
            ],
            "factors": [
                {"name": seats.name, "need": seats.need, "people": sorted(seats.people)} for seats in self.factors
            ],
        }


def plan(
    policy: Policy,
    account: Account,
    level: Level,
    roster: Roster,
    custodians: Sequence[str],
    *,
    opened_at: datetime,
    stood_in: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> Plan:
    """Say who is asked when. ``custodians``: who can decide for this requester, which the requester never can.

    ``stood_in``: by deputy, in whose place; they are asked with the first of those.
    """
    leaders = reserve(policy, account, level, roster)
    base = [person for person in custodians if person not in leaders]
    factors = seats_of(level.factors, roster, base, stood_in)
    lapse_at = opened_at + level.answer_within
    names = (FIRST_TIER, *(tier.name for tier in account.tiers))
    hours = (account.hours, *(tier.hours for tier in account.tiers))
    people = _by_tier(account, roster, base)
    left = [number for number, members in enumerate(people) if members]
    steps: list[Step] = []
    asked: list[str] = []

    def with_deputies(members: tuple[str, ...]) -> tuple[str, ...]:
        already = {person for step in steps for person in step.people}
        deputies = (one for one, places in stood_in.items() if set(places) & set(members) and one not in already)
        return tuple(dict.fromkeys((*members, *deputies)))

    def ask(at: datetime) -> None:
        on_duty = [number for number in left if (duty := hours[number]) is None or duty.covers(at)]
        number = (on_duty or left)[0]
        left.remove(number)
        steps.append(Step(at, names[number], with_deputies(people[number])))
        asked.extend(people[number])

    if left:
        ask(opened_at)
    while left and not satisfied(asked, level.quorum, factors).suffices:
        ask(opened_at)
    for tier in account.tiers:
        if left:
            ask(opened_at + tier.after)
    if not account.tiers:
        steps.append(Step(opened_at + level.answer_within / 2, None, ()))
    resolved = frozenset(roster.resolve(policy.leadership))
    last = tuple(person for person in custodians if person in resolved)
    if level.unanswered is Unanswered.ESCALATE and last:
        steps.append(Step(lapse_at, LEADERSHIP, with_deputies(last)))
        lapse_at += level.answer_within
    is_plain = not account.tiers and not factors and level.unanswered is Unanswered.DENY
    return Plan(tuple(steps), factors, lapse_at, is_plain)


def _by_tier(account: Account, roster: Roster, base: Sequence[str]) -> list[tuple[str, ...]]:
    """Give everybody to the first tier that names them; whoever none names (a factor's people) is of the first."""
    found: list[tuple[str, ...]] = []
    later = {person for tier in account.tiers for person in roster.resolve(tier.people)}
    first = set(roster.resolve(account.custodians))
    taken = {person for person in base if person in first or person not in later}
    found.append(tuple(person for person in base if person in taken))
    for tier in account.tiers:
        members = set(roster.resolve(tier.people)) - taken
        found.append(tuple(person for person in base if person in members))
        taken |= members
    return found


def steps_of(row: Request) -> tuple[Step, ...]:
    """Return the steps of a request, as they were planned at its opening."""
    if row.asking is not None:
        return tuple(
            Step(datetime.fromisoformat(one["at"]), one["tier"], tuple(one["people"])) for one in row.asking["steps"]
        )
    half = row.opened_at + ((row.lapse_at or row.opened_at) - row.opened_at) / 2
    return (Step(row.opened_at, FIRST_TIER, tuple(row.custodians)), Step(half, None, ()))


def asked(row: Request) -> list[str]:
    """Return who was asked so far, in order; the rest may decide, and need not know of it yet."""
    if row.asking is None:
        return list(row.custodians)
    done = steps_of(row)[: row.asked_steps or 1]
    return list(dict.fromkeys(person for step in done for person in step.people))


def next_step(row: Request) -> Step | None:
    """Return whom the clock asks next; None: nobody new."""
    ahead = steps_of(row)[row.asked_steps or 1 :]
    return next((step for step in ahead if step.tier is not None), None)
