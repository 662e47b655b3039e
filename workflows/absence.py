"""Who is away, until when, and who stands in for them?

Rules
-----
* Only oneself can be marked as away, and until a stated time, after which one is back without anybody's doing.
* A deputy stands in only where the account lists them under ``deputies``, and only while the custodian is away. They
  count as themselves, one person, in the place of one custodian who has not answered.
* Nobody stands in for the requester, and no requester for anybody; a custodian of the account gains nothing by it; a
  deputy who is away stands in for nobody and hands nothing on.
* Who stands in for whom is settled when a request is opened, and stands in its row: whoever goes away later adds
  nobody. A vote that was given in somebody's place stays when they are back; a new one cannot be given then.

This module is pure but :func:`in_force`, which reads a table. How somebody says so is ``away_desk.py``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import TYPE_CHECKING, Final

from sqlmodel import col, select

from storage.audit import write_time
from storage.models import Absence
from workflows.errors import Conflict, Invalid
from workflows.policy_file import parse_duration

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from sqlmodel import Session

    from storage.audit import Record

AWAY: Final = "person:away"
BACK: Final = "person:back"

LONGEST: Final = timedelta(days=366)
MORNING: Final = 9  # o'clock, where the person is

_DAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_TIME: Final = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])")
_HOW: Final = (
    "Say until when: “away until friday”, “away until tomorrow 14:00”, “away until 2026-12-01” or “away 3d”; "
    "then, if somebody stands in for you, @them."
)


@dataclass(frozen=True, slots=True)
class Absent:
    """Somebody who is away now. ``deputy``: whom they named; whether that counts is each account's to say."""

    since: datetime
    until: datetime
    deputy: str | None


def in_force(session: Session, team: str | None = None, *, now: datetime) -> dict[str, Absent]:
    """Return who of a workspace (None: of the only one that there is) is away at ``now``, by user id."""
    query = select(Absence).where(col(Absence.ended_at).is_(None), col(Absence.since) <= now, col(Absence.until) > now)
    if team is not None:
        query = query.where(Absence.team == team)
    return {row.person: Absent(row.since, row.until, row.deputy) for row in session.exec(query)}


def unexplained(rows: Iterable[Absence], records: Iterable[Record]) -> list[Absence]:
    """Return the absences that are open in the table and that the log does not tell like that.

    Attack: a row put there, changed or opened again by hand would make somebody a deputy. ``records``: every entry of
    :data:`AWAY` and :data:`BACK`, in order; where one was pruned its words are not held against a row of its time.
    """
    newest: dict[tuple[str, str], Record] = {}
    pruned: set[datetime] = set()
    for record in records:
        if record.is_pruned:
            pruned.add(record.at)
        elif record.refused is None:
            newest[record.actor.team, record.actor.person] = record
    found = []
    for row in rows:
        said = newest.get((row.team, row.person))
        told = (
            None if said is None or said.event != AWAY else (said.at, said.data.get("until"), said.data.get("deputy"))
        )
        is_told = told == (row.since, write_time(row.until), row.deputy)
        if row.ended_at is None and not is_told and not (said is None and row.since in pruned):
            found.append(row)
    return found


# --- standing in ------------------------------------------------------------------------------------------------------


def standing_in(
    custodians: Sequence[str], listed: Collection[str], absences: Mapping[str, Absent], requester: str | None
) -> dict[str, tuple[str, ...]]:
    """Return by deputy for whom they stand in now.

    ``custodians``: those who can decide for this requester. ``listed``: who the account lets stand in, and is able to.
    """
    found: dict[str, tuple[str, ...]] = {}
    for custodian in custodians:
        gone = absences.get(custodian)
        deputy = None if gone is None else gone.deputy
        if deputy is None or deputy not in listed or deputy == requester or deputy in custodians or deputy in absences:
            continue
        found[deputy] = (*found.get(deputy, ()), custodian)
    return found


def doubled(
    approvers: Iterable[str], stood_in: Mapping[str, Sequence[str]], custodians: Collection[str]
) -> frozenset[str]:
    """Return the deputies among these whose approval counts for nobody: all for whom they stood in answered themselves.

    ``stood_in``: by deputy, as it was at the opening. ``custodians``: who is one still.
    """
    said = frozenset(approvers)
    return frozenset(
        deputy
        for deputy, places in stood_in.items()
        if deputy in said and not any(place in custodians and place not in said for place in places)
    )


def refuse_doubled(
    person: str, approvers: Sequence[str], stood_in: Mapping[str, Sequence[str]], custodians: Collection[str]
) -> None:
    """Refuse an approval by which a custodian and who stood in for them would count as two. Raises Conflict."""
    more = doubled((*approvers, person), stood_in, custodians) - doubled(approvers, stood_in, custodians)
    if not more:
        return
    if person in more:
        sentence = f"{_people(stood_in[person])}, for whom you stand in, approved it themselves: that counts once."
    else:
        sentence = (
            f"{_people(sorted(more))} approved it in your place already: that counts once. You can still deny it."
        )
    raise Conflict(sentence, code="place_taken")


def _people(ids: Iterable[str]) -> str:
    return " and ".join(f"<@{one}>" for one in ids)


# --- until when -------------------------------------------------------------------------------------------------------


def read_until(words: Sequence[str], *, zone: tzinfo, now: datetime) -> datetime:
    """Read ``until friday``, ``until tomorrow 14:00``, ``until 2026-12-01``, ``3d``: in the person's own time zone.

    A day without a time means its morning, 09:00. Raises :class:`Invalid` with how to write it, also for what is past
    or more than a year away.
    """
    rest = [word.lower() for word in words]
    if rest[:1] == ["until"]:
        until = _day(rest[1:], now.astimezone(zone)).astimezone(UTC)
    elif len(rest) == 1:
        try:
            until = now + parse_duration(rest[0])
        except (ValueError, OverflowError):
            raise Invalid(_HOW) from None
    else:
        raise Invalid(_HOW)
    if until <= now:
        raise Invalid(f"{say_time(until, zone)} is past. {_HOW}")
    if until > now + LONGEST:
        raise Invalid("You can be away for a year at most: for longer, the policy should name somebody else.")
    return until


def _day(words: Sequence[str], here: datetime) -> datetime:
    hour, minute = MORNING, 0
    if len(words) == 2 and (match := _TIME.fullmatch(words[1])):
        hour, minute = int(match[1]), int(match[2])
    elif len(words) != 1:
        raise Invalid(_HOW)
    word, today = words[0], here.date()
    if word == "tomorrow":
        day = today + timedelta(days=1)
    elif word == "today" and len(words) == 2:
        day = today
    elif word in _DAYS or word in {name[:3] for name in _DAYS}:
        ahead = next(n for n in range(1, 8) if _DAYS[(today.weekday() + n) % 7].startswith(word))
        day = today + timedelta(days=ahead)
    elif _DATE.fullmatch(word):
        try:
            day = datetime.strptime(word, "%Y-%m-%d").replace(tzinfo=here.tzinfo).date()
        except ValueError:
            raise Invalid(f"There is no day {word}. {_HOW}") from None
    else:
        raise Invalid(_HOW)
    return datetime(day.year, day.month, day.day, hour, minute, tzinfo=here.tzinfo)


def say_time(at: datetime, zone: tzinfo) -> str:
    """Return a time in words as its person knows it: "Friday 4 December 2026, 09:00 (UTC+01:00)"."""
    here = at.astimezone(zone)
    return f"{here:%A} {here.day} {here:%B %Y, %H:%M} ({_offset(here)})"


def _offset(here: datetime) -> str:
    found = f"{here:%z}"
    return "UTC" if found in {"+0000", ""} else f"UTC{found[:3]}:{found[3:5]}"
