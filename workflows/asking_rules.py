"""What does the policy say of who is asked when, and who must be among those who approve?

Rules
-----
* All of it is optional: without it the custodians are asked at once, any of them count, and what is not answered
  lapses.
* A tier that could never be asked, hours that mean nothing and a factor that the quorum has no room for refuse to load.
* Time zones are those of the machine (``zoneinfo``). That it has none is said, so that nobody looks for a slip of the
  pen in the policy.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from workflows.policy_file import Level

FIRST_TIER: Final = "custodians"
LEADERSHIP: Final = "leadership"
MOST_TIERS: Final = 5  # besides the first
MOST_FACTORS: Final = 5

_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_HOURS: Final = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])-(?:([01][0-9]|2[0-3]):([0-5][0-9])|24:00)", re.ASCII)
_ZONE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,2}", re.ASCII)


class Unanswered(StrEnum):
    """What becomes of a request that nobody answered in ``answer_within``."""

    DENY = "deny"  # it lapses, for all to see
    ESCALATE = "escalate"  # leadership is asked, for as long again; then it lapses


@dataclass(frozen=True, slots=True)
class Hours:
    """When somebody is on duty: minutes of the day, and the days (0 is Monday) on which they begin.

    What ends before it begins passes midnight.
    """

    begin: int
    end: int
    days: frozenset[int]
    zone: str

    def covers(self, at: datetime) -> bool:
        """Say whether ``at`` (aware) is within the hours, by the clock on the wall there."""
        local = at.astimezone(ZoneInfo(self.zone))
        minute, day = local.hour * 60 + local.minute, local.weekday()
        if self.begin < self.end:
            return day in self.days and self.begin <= minute < self.end
        return (day in self.days and minute >= self.begin) or ((day - 1) % 7 in self.days and minute < self.end)


@dataclass(frozen=True, slots=True)
class Tier:
    """Custodians who are asked later. ``people``: user ids and groups; ``hours``: None means at all times."""

    name: str
    people: tuple[str, ...]
    after: timedelta  # since the opening
    hours: Hours | None = None


@dataclass(frozen=True, slots=True)
class Factor:
    """Whose approval must be among the others: ``need`` different people of ``people`` (user ids and groups)."""

    name: str
    people: tuple[str, ...]
    need: int = 1


class Reader(Protocol):
    """Who reads the file (``policy_file``): each method records what is wrong and returns a falsy value."""

    def fail(self, at: Any, sentence: str) -> None:  # noqa: ANN401
        """Record a problem."""

    def mapping(self, at: Any, required: Iterable[str], optional: Iterable[str] = ()) -> Mapping[str, Any]:  # noqa: ANN401
        """Return the values of known keys."""

    def entries(self, at: Any, *, names: bool = False) -> Mapping[str, Any]:  # noqa: ANN401
        """Return the values of a mapping by key."""

    def items(self, at: Any) -> Iterable[Any]:  # noqa: ANN401
        """Return the values of a list."""

    def names(self, at: Any) -> tuple[str, ...]:  # noqa: ANN401
        """Read a list of user ids and groups."""

    def number(self, at: Any, least: int, most: int) -> int:  # noqa: ANN401
        """Read a whole number."""

    def span(self, at: Any, least: timedelta, most: timedelta) -> timedelta:  # noqa: ANN401
        """Read a duration."""

    def match(self, at: Any, pattern: re.Pattern[str], sentence: str) -> str:  # noqa: ANN401
        """Read a word of a fixed form."""

    def word(self, at: Any) -> str:  # noqa: ANN401
        """Read one line of text."""


_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,39}", re.ASCII)


def read_tiers(reader: Reader, at: Any) -> tuple[Tier, ...]:  # noqa: ANN401
    """Read the key ``tiers`` of an account; what it returns counts only when no problem was recorded."""
    found: list[Tier] = []
    listed = list(reader.items(at))
    if not 1 <= len(listed) <= MOST_TIERS:
        reader.fail(at, f"Give 1 to {MOST_TIERS} tiers, or remove the key; the custodians are the first without it.")
    for one in listed:
        keys = reader.mapping(one, ("name", "people", "after"), ("hours", "days", "timezone"))
        name = reader.match(keys.get("name"), _NAME, "A name is 1 to 40 of a-z, 0-9 and -; rename it.")
        after = reader.span(keys.get("after"), timedelta(seconds=1), timedelta(days=1))
        if name in {FIRST_TIER, LEADERSHIP, *(tier.name for tier in found)}:
            reader.fail(keys["name"], f"There is a tier {name} already; give each a name of its own.")
        if found and after and after <= found[-1].after:
            reader.fail(
                keys["after"], "A tier is asked later than the one before it: the times count from the opening."
            )
        found.append(Tier(name, reader.names(keys.get("people")), after, read_hours(reader, one, keys)))
    return tuple(found)


def check_tiers(reader: Reader, at: Any, tiers: Iterable[Tier], levels: Iterable[Level]) -> None:  # noqa: ANN401
    """Refuse a tier that would be asked of a level only when its requests have lapsed."""
    spans = [level.answer_within for level in levels if level.answer_within]
    for tier in tiers:
        if spans and tier.after >= min(spans):
            reader.fail(
                at, f"The tier {tier.name} would be asked too late: answer_within of some level is over by then."
            )


def read_hours(reader: Reader, at: Any, keys: Mapping[str, Any]) -> Hours | None:  # noqa: ANN401
    """Read ``hours``, ``days`` and ``timezone`` of a tier, or of an account for its first; None: at all times."""
    if "hours" not in keys:
        for key in ("days", "timezone"):
            if key in keys:
                reader.fail(keys[key], "This says when the hours are; add “hours”, or remove this.")
        return None
    if "timezone" not in keys:
        reader.fail(at, "The key “timezone” is missing; add it: whose clock do the hours go by?")
        return None
    words = reader.match(keys["hours"], _HOURS, "Write the hours as 08:00-18:00; 22:00-06:00 passes midnight.")
    days = _read_days(reader, keys["days"]) if "days" in keys else frozenset(range(len(_DAYS)))
    zone = reader.match(keys["timezone"], _ZONE, "Write a time zone by its place, as Europe/Madrid.")
    if not words or not days or not zone:
        return None
    try:
        ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        there = "write it by its place, as Europe/Madrid."
        if not available_timezones():
            there = "this machine has no time zones at all; install tzdata."
        reader.fail(keys["timezone"], f"There is no time zone {zone}; {there}")
        return None
    begin, end = (int(part[:2]) * 60 + int(part[3:]) for part in words.split("-"))
    if begin == end:
        reader.fail(keys["hours"], "These hours are none; remove them for all day, or write 00:00-24:00.")
        return None
    return Hours(begin, end, days, zone)


def _read_days(reader: Reader, at: Any) -> frozenset[int]:  # noqa: ANN401
    """Read ``mon-fri`` or ``mon,wed,sat-sun``."""
    words = reader.word(at)
    found: set[int] = set()
    for part in words.split(","):
        first, _, last = part.strip().partition("-")
        if first not in _DAYS or (last or first) not in _DAYS:
            if words:
                reader.fail(at, "Write the days as mon-fri, or as mon,wed,fri.")
            return frozenset()
        begin, span = _DAYS.index(first), (_DAYS.index(last or first) - _DAYS.index(first)) % len(_DAYS)
        found.update((begin + step) % len(_DAYS) for step in range(span + 1))
    return frozenset(found)


def read_factors(reader: Reader, at: Any, quorum: int) -> tuple[Factor, ...]:  # noqa: ANN401
    """Read the key ``factors`` of a level, which must fit into its quorum (0: that is wrong already)."""
    entries = reader.entries(at, names=True)
    if isinstance(at.node, yaml.MappingNode) and not 1 <= len(at.node.value) <= MOST_FACTORS:
        reader.fail(at, f"Give 1 to {MOST_FACTORS} factors, or remove the key.")
    found: list[Factor] = []
    for name, value in entries.items():
        keys = reader.mapping(value, ("from",), ("need",))
        need = reader.number(keys["need"], 1, 100) if "need" in keys else 1
        found.append(Factor(name, reader.names(keys.get("from")), need))
    needed = sum(factor.need for factor in found)
    if quorum and needed > quorum:
        reader.fail(
            at, f"The factors need {needed} different people, and the quorum is {quorum}; raise the quorum to {needed}."
        )
    return tuple(found)


def read_unanswered(reader: Reader, at: Any) -> Unanswered:  # noqa: ANN401
    """Read the key ``unanswered`` of a level; without it, a request lapses."""
    word = reader.word(at) if at is not None else Unanswered.DENY.value
    found = next((one for one in Unanswered if one.value == word), None)
    if found is None and word:
        reader.fail(at, f"This can be: {', '.join(Unanswered)}.")
    return found or Unanswered.DENY
