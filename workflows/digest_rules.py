"""When does the policy want the weekly digest?

Rules
-----
* The section is optional, and so is each of its keys: without them it is Monday, 09:00, UTC.
* A week is an ISO week in the section's time zone; a digest is about the newest one that is over.
* The time is what a clock on that wall shows: it does not move when summer time begins.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

if TYPE_CHECKING:
    from workflows.log_rules import Reader

DAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_DAY: Final = re.compile("|".join(DAYS))
_TIME: Final = re.compile(r"(?:[01][0-9]|2[0-3]):[0-5][0-9]")
_ZONE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_+-]{0,31}(?:/[A-Za-z0-9_+-]{1,32}){0,2}")
_WEEK: Final = re.compile(r"([0-9]{4})-W([0-9]{2})")


@dataclass(frozen=True, slots=True)
class Week:
    """An ISO week of some time zone."""

    year: int
    number: int
    zone: tzinfo = UTC

    @property
    def name(self) -> str:
        """Return ``2026-W47``."""
        return f"{self.year}-W{self.number:02}"

    @property
    def first(self) -> date:
        """Return its Monday."""
        return date.fromisocalendar(self.year, self.number, 1)

    @property
    def start(self) -> datetime:
        """Return when it begins (UTC)."""
        return self.back(0)

    @property
    def end(self) -> datetime:
        """Return when the next one begins (UTC)."""
        return self.back(-1)

    def back(self, weeks: int) -> datetime:
        """Return when the week so many before this one begins (UTC)."""
        return datetime.combine(self.first - timedelta(weeks=weeks), time.min, self.zone).astimezone(UTC)


def week_before(now: datetime, zone: tzinfo = UTC) -> Week:
    """Return the newest week that is over."""
    year, number, _ = (now.astimezone(zone).date() - timedelta(weeks=1)).isocalendar()
    return Week(year, number, zone)


def parse_week(text: str, zone: tzinfo = UTC) -> Week:
    """Read ``2026-W47``. ValueError."""
    match = _WEEK.fullmatch(text.strip().upper())
    if match is None:
        raise ValueError("Write a week as 2026-W47.")
    week = Week(int(match[1]), int(match[2]), zone)
    try:
        _ = week.start, week.end
    except (ValueError, OverflowError):
        raise ValueError(f"There is no week {text}; write one as 2026-W47.") from None
    return week


@dataclass(frozen=True, slots=True)
class DigestRules:
    """When it is posted: ``day`` counts from 0, Monday."""

    day: int = 0
    at: time = time(9)
    timezone: str = "UTC"

    @property
    def zone(self) -> tzinfo:
        """Return the time zone."""
        return UTC if self.timezone == "UTC" else ZoneInfo(self.timezone)

    def next(self, now: datetime) -> datetime:
        """Return when it is due next, after ``now`` (UTC)."""
        today = now.astimezone(self.zone).date()
        first = today + timedelta(days=(self.day - today.weekday()) % 7)
        for days in (0, 7):
            due = datetime.combine(first + timedelta(days=days), self.at, self.zone).astimezone(UTC)
            if due > now:
                break
        return due


def read(reader: Reader, at: Any) -> DigestRules:  # noqa: ANN401
    """Read the section ``digest``; what it returns counts only when the reader has recorded no problem."""
    found = reader.mapping(at, (), ("day", "at", "timezone"))
    day = reader.match(found.get("day"), _DAY, "Write the day in English, in small letters: monday.") or DAYS[0]
    clock = reader.match(found.get("at"), _TIME, 'Write the time as "09:00", from "00:00" to "23:59".') or "09:00"
    zone = reader.match(found.get("timezone"), _ZONE, "Write a time zone as Europe/Madrid or UTC.") or "UTC"
    try:
        DigestRules(timezone=zone).zone  # noqa: B018 - whether this machine knows it
    except (ZoneInfoNotFoundError, ValueError, OSError):
        reader.fail(found["timezone"], f"This machine knows no time zone {zone}; write one as Europe/Madrid or UTC.")
        zone = "UTC"
    return DigestRules(DAYS.index(day), time.fromisoformat(clock), zone)
