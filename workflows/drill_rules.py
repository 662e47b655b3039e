"""What does the policy say of an account's drills: at which level, how often, and what passes?

Rules
-----
* The section ``drill`` of an account is optional; without it there are none.
* A drill goes to a level that is marked ``rehearsal: true``, which no real request can choose, and which opens nothing
  that another level opens: a token role, a path in Vault or a group of its own. Else a drill would be real access.
* There is one at least every 90 days. A time of day (``cron``) may be added, never take its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from workflows.delivery import Delivery
from workflows.engines import ENGINES
from workflows.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from workflows.log_rules import Reader
    from workflows.policy_file import Account, Level

EVERY: Final = timedelta(days=90)
_LEAST: Final = timedelta(days=1)
_MOST_MARK: Final = timedelta(days=90)
_SECOND: Final = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class PassMarks:
    """How long each step may take: from the opening, the quorum, the end that was decided, the end that was proved."""

    first_answer: timedelta = timedelta(minutes=5)
    quorum: timedelta = timedelta(minutes=10)
    credential: timedelta = timedelta(minutes=1)
    revocation: timedelta = timedelta(minutes=1)
    alerts: timedelta = timedelta(minutes=1)
    capture: timedelta = timedelta(minutes=1)
    review: timedelta = timedelta(days=3)


MARKS: Final = ("first_answer", "quorum", "credential", "revocation", "alerts", "capture", "review")


@dataclass(frozen=True, slots=True)
class DrillRules:
    """An account's drills. ``is_announced``: people are told the day before."""

    level: str
    every: timedelta
    cron: Cron | None
    is_announced: bool
    marks: PassMarks


# --- a time of day ----------------------------------------------------------------------------------------------------

_FIELDS: Final = (("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("day of the week", 0, 7))
_LOOK_BACK: Final = timedelta(days=366 * 5)  # the 29th of February comes in this time


@dataclass(frozen=True, slots=True)
class Cron:
    """Minutes at which something is due, in UTC: the five fields of cron, in numbers.

    As in cron, when both days are given either is enough.
    """

    text: str
    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int] | None  # None: every one
    months: frozenset[int]
    weekdays: frozenset[int] | None  # 0 is Sunday

    def last(self, now: datetime) -> datetime | None:
        """Return the newest such minute that is not after ``now`` (aware UTC); None: there was none in five years."""
        day = now.replace(second=0, microsecond=0)
        oldest = now - _LOOK_BACK
        while day > oldest:
            if self._is_day(day):
                for hour in sorted(self.hours, reverse=True):
                    for minute in sorted(self.minutes, reverse=True):
                        at = day.replace(hour=hour, minute=minute)
                        if at <= now:
                            return at
            day = day.replace(hour=23, minute=59) - timedelta(days=1)
        return None

    def _is_day(self, at: datetime) -> bool:
        if at.month not in self.months:
            return False
        of_month = self.days is None or at.day in self.days
        of_week = self.weekdays is None or at.isoweekday() % 7 in self.weekdays
        if self.days is not None and self.weekdays is not None:
            return of_month or of_week
        return of_month and of_week


def read_cron(text: str) -> Cron:
    """Read five fields, each ``*``, a number, ``a-b``, ``*/n`` or several of these with commas. ValueError."""
    fields = text.split()
    if len(fields) != len(_FIELDS):
        raise ValueError("Write five fields, in UTC: minute hour day month weekday, such as 0 10 1 * *.")
    minutes, hours, days, months, weekdays = (
        _field(words, *about) for words, about in zip(fields, _FIELDS, strict=True)
    )
    return Cron(
        text=" ".join(fields),
        minutes=minutes,
        hours=hours,
        days=None if fields[2] == "*" else days,
        months=months,
        weekdays=None if fields[4] == "*" else frozenset(day % 7 for day in weekdays),
    )


def _field(words: str, name: str, least: int, most: int) -> frozenset[int]:
    found: set[int] = set()
    for part in words.split(","):
        span, _, step = part.partition("/")
        low, is_range, high = span.partition("-")
        numbers = [low, high] if is_range else [low]
        if span == "*":
            first, last = least, most
        elif all(number.isascii() and number.isdigit() and len(number) <= 2 for number in numbers):
            first, last = int(low), int(high if is_range else low)
        else:
            raise ValueError(f"The {name} “{part[:20]}” is not a number from {least} to {most}, nor *, a-b or */n.")
        every = step if "/" in part else "1"
        if not (every.isascii() and every.isdigit() and len(every) <= 2 and int(every) > 0):
            raise ValueError(f"The {name} “{part[:20]}” has no step that can be counted by.")
        if not least <= first <= last <= most:
            raise ValueError(f"The {name} “{part[:20]}” is not from {least} to {most}.")
        found.update(range(first, last + 1, int(every)))
    return frozenset(found)


# --- reading ----------------------------------------------------------------------------------------------------------


def read(reader: Reader, at: Any, levels: Mapping[str, Level | None]) -> DrillRules | None:  # noqa: ANN401
    """Read the section ``drill`` of an account; None when it cannot be. ``levels``: None where one is wrong itself."""
    found = reader.mapping(at, ("level",), ("every", "cron", "announced", "pass"))
    if (below := found.get("level")) is None:
        return None
    name = reader.word(below)
    level = levels.get(name)
    if name and name not in levels:
        reader.fail(below, "The account has no such level; name one with “rehearsal: true”.")
    elif level is not None and not level.is_rehearsal:
        reader.fail(below, "A drill must not open what is real: name a level with “rehearsal: true”.")
    every = reader.span(found["every"], _LEAST, EVERY) if "every" in found else EVERY
    cron = None
    if (below := found.get("cron")) is not None and (words := reader.word(below)):
        try:
            cron = read_cron(words)
        except ValueError as error:
            reader.fail(below, str(error))
    is_announced = reader.flag(found["announced"]) if "announced" in found else False
    marks = {}
    if (below := found.get("pass")) is not None:
        given = reader.mapping(below, (), MARKS)
        marks = {mark: reader.span(value, _SECOND, _MOST_MARK) for mark, value in given.items() if mark in MARKS}
    if level is None:
        return None
    return DrillRules(level.name, every, cron, is_announced, PassMarks(**marks))


def check_level(reader: Reader, found: Mapping[str, Any], way: Delivery) -> bool:
    """Read ``rehearsal`` of a level: whether it is for drills alone."""
    if (at := found.get("rehearsal")) is None or not reader.flag(at):
        return False
    if way is not Delivery.MODAL:
        reader.fail(at, "In a drill the bot itself logs in, so this level's delivery can only be modal.")
    return True


def overlaps(accounts: Mapping[str, Account]) -> Iterator[tuple[str, str, str]]:
    """Yield (account, level, why) for each rehearsal level that opens something that a real level opens, too.

    Attack: a level is called a rehearsal, and gives the rights of production without anybody asking for a reason.
    """
    real = [(f"{owner.name}/{one.name}", one) for owner in accounts.values() for one in owner.real_levels.values()]
    for account in accounts.values():
        for level in account.levels.values():
            if not level.is_rehearsal:
                continue
            for name, other in real:
                if (why := _same(level, other)) is not None:
                    yield account.name, level.name, f"It has the {why} of {name}: a drill would open what that opens."
                    break


def _same(level: Level, other: Level) -> str | None:
    ours, theirs = level.settings, other.settings
    if ours.token_role == theirs.token_role:
        return "token_role"
    if ours.engine != theirs.engine:
        return None
    engine = ENGINES[ours.engine]
    try:
        if engine.path(ours.options) == engine.path(theirs.options):
            return "path in Vault"
    except (Invalid, KeyError):
        return None  # reported already
    if "group" in ours.options and _place(ours.options) == _place(theirs.options):
        return "group"
    return None


def _place(options: Mapping[str, str]) -> tuple[str | None, ...]:
    return tuple(options.get(key) for key in ("host", "port", "group"))
