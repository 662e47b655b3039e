"""Where does each thing stand in the picture of a request's life?

Rules
-----
* Each phase is wide enough to be read, and wider the longer it lasted; the picture is not to scale and says so. The
  lengths are written out.
* Nothing is told by colour alone: phases have names, refusals another shape.

Pure layout in a picture 1000 wide, for the page (SVG) and the paper (PDF) alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from storage.reports.story import say

if TYPE_CHECKING:
    from datetime import datetime

    from storage.reports.story import Phase, Story

WIDTH: Final = 1000.0
_GAP: Final = 6.0
_LEAST: Final = 174.0  # the longest name of a phase, in the picture's small print
_CLOSE: Final = 14.0  # marks nearer than this stand on another row
_ROWS: Final = 3


@dataclass(frozen=True, slots=True)
class Bar:
    """A phase: where it stands, and what is written on it."""

    x: float
    width: float
    name: str
    length: str
    start: datetime
    kind: int  # 0..4, for its colour
    is_open: bool


@dataclass(frozen=True, slots=True)
class Mark:
    """An entry: where it stands, on which row (0 is the lowest), and its number in the table below."""

    x: float
    row: int
    number: int
    is_refusal: bool


@dataclass(frozen=True, slots=True)
class Picture:
    """The whole. ``end`` is the time at the right edge."""

    bars: tuple[Bar, ...]
    marks: tuple[Mark, ...]
    end: datetime | None
    told: str  # the same in words


_KINDS: Final = ("Waiting for approval", "Approved, not opened", "Credential out", "Being taken back")


def draw(story: Story) -> Picture:
    """Lay out a request's life; a story without an opening gives an empty picture that says so."""
    phases = story.phases()
    if not phases:
        return Picture((), (), None, "The entries here do not begin with the opening, so there is no timeline.")
    room = WIDTH - _GAP * (len(phases) - 1)
    least = min(_LEAST, room / len(phases))
    weights = [math.sqrt(max(0.0, (phase.end - phase.start).total_seconds())) for phase in phases]
    spare, total = room - least * len(phases), sum(weights)
    bars, at = [], 0.0
    for phase, weight in zip(phases, weights, strict=True):
        width = least + spare * (weight / total if total else 1 / len(phases))
        kind = _KINDS.index(phase.name) if phase.name in _KINDS else len(_KINDS)
        length = say(phase.end - phase.start)
        bars.append(Bar(at, width, phase.name, length, phase.start, kind, phase.is_open))
        at += width + _GAP
    return Picture(tuple(bars), _marks(story, phases, bars), phases[-1].end, _told(phases))


def _marks(story: Story, phases: list[Phase], bars: list[Bar]) -> tuple[Mark, ...]:
    marks: list[Mark] = []
    ends = [-_CLOSE] * _ROWS
    for number, step in enumerate(story.steps, start=1):
        if step.at is None:
            continue
        x = _place(step.at, phases, bars)
        row = next((row for row in range(_ROWS) if x - ends[row] >= _CLOSE), None)
        if row is None:
            row = min(range(_ROWS), key=lambda row: ends[row])
            x = min(ends[row] + _CLOSE, WIDTH)
        ends[row] = x
        marks.append(Mark(x, row, number, step.is_refusal))
    return tuple(marks)


def _place(at: datetime, phases: list[Phase], bars: list[Bar]) -> float:
    for phase, bar in zip(reversed(phases), reversed(bars), strict=True):
        if at >= phase.start:
            whole = (phase.end - phase.start).total_seconds()
            part = (at - phase.start).total_seconds() / whole if whole else 0.0
            return bar.x + bar.width * min(1.0, part)
    return 0.0


def _told(phases: list[Phase]) -> str:
    parts = [f"{phase.name.lower()} {say(phase.end - phase.start)}" for phase in phases]
    return f"Phases in order: {'; '.join(parts)}{' so far' if phases[-1].is_open else ''}."
