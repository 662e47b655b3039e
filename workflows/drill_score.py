"""How did a drill go? Line by line, from its entries alone.

Rules
-----
* A line is passed, failed, not reached, or still waited for. What is not reached depends on a line that failed: so one
  broken part makes one line fail, and the owner knows which part it is.
* Nothing passes by being absent. What has not happened by its pass mark has failed.
* A score is given when nothing is waited for any more, once.

Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from storage import commands
from storage.models import FINAL, State
from workflows.lifecycle import Action
from workflows.policy_file import say_duration

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from storage.audit import JSON, Record
    from workflows.drill_rules import PassMarks

START: Final = "drill:start"
LOGIN: Final = "drill:login"
SCORE: Final = "drill:score"
PLAN: Final = "drill:plan"

_WORDS: Final = 300  # characters of a reason
_OVER: Final = frozenset({*FINAL, State.ENDED})


class Leg(StrEnum):
    """What a drill tries, in the order in which it comes to it."""

    FIRST_ANSWER = "first_answer"
    QUORUM = "quorum"
    CREDENTIAL = "credential"  # Vault gives it
    LOGIN = "login"  # it opens the target
    REVOCATION = "revocation"  # and is gone afterwards
    ALERTS = "alerts"  # everybody who is told was told
    CAPTURE = "capture"  # what was done came back from the target's own record
    REVIEW = "review"


class Came(StrEnum):
    """What came of it."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_REACHED = "not reached"
    WAITING = "waiting"


class Blame(StrEnum):
    """Which part kept the bot from logging in."""

    CREDENTIAL = "credential"
    TARGET = "target"
    CAPTURE = "capture"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a scorecard. ``took``: the figure; None: it did not happen. ``mark``: the longest that passes."""

    leg: Leg
    came: Came
    took: timedelta | None
    mark: timedelta | None
    why: str = ""

    def data(self) -> dict[str, JSON]:
        """Return it as an entry of the log holds it; times in milliseconds."""
        found: dict[str, JSON] = {"leg": self.leg.value, "came": self.came.value}
        if self.took is not None:
            found["took_ms"] = self.took // timedelta(milliseconds=1)
        if self.mark is not None:
            found["mark_ms"] = self.mark // timedelta(milliseconds=1)
        if self.why:
            found["why"] = self.why[:_WORDS]
        return found


@dataclass(frozen=True, slots=True)
class Told:
    """Whether those who are told of a request have been: how late the latest was, and what is not there."""

    latest: timedelta
    missing: tuple[str, ...] = ()


def is_passed(lines: Iterable[Line]) -> bool:
    """Say whether every line is passed; no line at all is nothing passed."""
    found = [line.came for line in lines]
    return bool(found) and all(came is Came.PASSED for came in found)


def from_data(data: Mapping[str, Any]) -> list[Line]:
    """Return the lines of a score as the log has it; what cannot be read is left out."""
    listed = data.get("lines")
    return [line for one in (listed if isinstance(listed, list) else ()) if (line := _read(one)) is not None]


def _read(one: object) -> Line | None:
    if not isinstance(one, dict):
        return None
    try:
        leg, came = Leg(str(one.get("leg"))), Came(str(one.get("came")))
    except ValueError:
        return None
    return Line(leg, came, _span(one.get("took_ms")), _span(one.get("mark_ms")), str(one.get("why") or "")[:_WORDS])


def _span(value: object) -> timedelta | None:
    return timedelta(milliseconds=value) if type(value) is int and 0 <= value < 1 << 45 else None


# --- judging ----------------------------------------------------------------------------------------------------------


class Facts:
    """What the entries of a drill's request say."""

    def __init__(self, records: Sequence[Record]) -> None:
        done = [record for record in records if record.refused is None and not record.is_pruned]
        self.state = next((State(r.target) for r in reversed(done) if r.target is not None), State.PENDING)
        self.opened = _at(done, Action.OPEN)
        self.answered = _at(done, Action.APPROVE, Action.DENY)
        self.quorum = _at(done, Action.QUORUM)
        self.issued = _at(done, Action.ISSUE)
        self.failed = _last(done, Action.FAIL)
        self.login = _last(done, LOGIN)
        self.decided = _at(done, Action.DRILL_DONE, Action.REVOKE, Action.EXPIRE, Action.LOSE)
        self.end = _last(done, Action.END)
        self.reviewed = _at(done, Action.REVIEW)
        self.recorded = _at(done, commands.RUN)
        self.denial = _last(done, Action.DENY)

    @property
    def is_logged_in(self) -> bool:
        """Whether the bot has logged in at the target."""
        return self.login is not None and self.login.data.get("ok") is True

    @property
    def blame(self) -> Blame | None:
        """Which part kept the bot from it; None: nothing did, or it has not tried."""
        if self.login is not None and not self.is_logged_in:
            said = str(self.login.data.get("blame"))
            return Blame(said) if said in {one.value for one in Blame} else Blame.CREDENTIAL
        return Blame.CREDENTIAL if self.failed is not None else None

    @property
    def why(self) -> str:
        """What was said when it did not log in."""
        said = self.login or self.failed
        return "" if said is None else str(said.data.get("why") or "")


def judge(
    records: Sequence[Record], marks: PassMarks, *, told: Told, is_captured: bool, give_up: timedelta, now: datetime
) -> list[Line]:
    """Return the lines as they stand at ``now``. ``give_up``: how long an attempt may take that was begun in time."""
    facts = Facts(records)
    if facts.opened is None:
        return []
    lines = [
        _answered(facts, marks, now),
        _agreed(facts, marks, now),
        _given(facts, marks, give_up, now),
        _opened(facts, marks, give_up, now),
        _taken_back(facts, marks, now),
    ]
    waits = any(line.came is Came.WAITING for line in lines)
    lines.append(_told(facts, marks, told, now, is_early=waits))
    if is_captured:
        lines.append(_recorded(facts, marks, now))
    lines.append(_reviewed(facts, marks, now))
    return lines


def _timed(leg: Leg, since: datetime, at: datetime, mark: timedelta, why: str = "") -> Line:
    took = max(at - since, timedelta(0))
    is_late = took > mark
    words = f"It took longer than {say_duration(mark)}." if is_late else why
    return Line(leg, Came.FAILED if is_late else Came.PASSED, took, mark, words)


def _answered(facts: Facts, marks: PassMarks, now: datetime) -> Line:
    leg, mark = Leg.FIRST_ANSWER, marks.first_answer
    opened = facts.opened or now
    if facts.answered is not None:
        return _timed(leg, opened, facts.answered, mark)
    if facts.state in _OVER or now > opened + mark:
        return Line(leg, Came.FAILED, None, mark, "No custodian answered.")
    return Line(leg, Came.WAITING, None, mark)


def _agreed(facts: Facts, marks: PassMarks, now: datetime) -> Line:
    leg, mark = Leg.QUORUM, marks.quorum
    opened = facts.opened or now
    if facts.quorum is not None:
        return _timed(leg, opened, facts.quorum, mark)
    if facts.denial is not None:
        return Line(leg, Came.FAILED, None, mark, "A custodian denied it.")
    if facts.state not in _OVER and now <= opened + mark:
        return Line(leg, Came.WAITING, None, mark)
    if facts.answered is None:
        return Line(leg, Came.NOT_REACHED, None, mark)
    return Line(leg, Came.FAILED, None, mark, "Not enough custodians approved.")


def _given(facts: Facts, marks: PassMarks, give_up: timedelta, now: datetime) -> Line:
    leg, mark = Leg.CREDENTIAL, marks.credential
    if facts.quorum is None:
        return _after(leg, mark, facts, marks, now)
    if facts.issued is not None:
        return _timed(leg, facts.quorum, facts.issued, mark)
    if facts.blame is Blame.CREDENTIAL:
        return Line(leg, Came.FAILED, None, mark, facts.why)
    if facts.blame is not None:
        return Line(leg, Came.NOT_REACHED, None, mark)
    if facts.state in _OVER or now > facts.quorum + mark + give_up:
        return Line(leg, Came.FAILED, None, mark, "No credential came.")
    return Line(leg, Came.WAITING, None, mark)


def _opened(facts: Facts, marks: PassMarks, give_up: timedelta, now: datetime) -> Line:
    leg, mark = Leg.LOGIN, marks.credential
    if facts.quorum is None:
        return _after(leg, mark, facts, marks, now)
    if facts.is_logged_in and facts.login is not None:
        return _timed(leg, facts.quorum, facts.login.at, mark, _seen(facts.login.data.get("seen")))
    if facts.blame is Blame.TARGET:
        return Line(leg, Came.FAILED, None, mark, facts.why)
    if facts.blame is not None:
        return Line(leg, Came.NOT_REACHED, None, mark)
    late = now > facts.quorum + mark + give_up
    if facts.issued is not None and (facts.state in _OVER or late):
        return Line(leg, Came.FAILED, None, mark, "The bot did not log in.")
    if facts.state in _OVER or late:
        return Line(leg, Came.NOT_REACHED, None, mark)
    return Line(leg, Came.WAITING, None, mark)


def _taken_back(facts: Facts, marks: PassMarks, now: datetime) -> Line:
    leg, mark = Leg.REVOCATION, marks.revocation
    if facts.issued is None:
        given = facts.blame is not None or facts.state in _OVER
        return Line(leg, Came.NOT_REACHED, None, mark) if given else _after(leg, mark, facts, marks, now)
    if facts.end is not None:
        since = _moment(facts.end.data.get("decided_at")) or facts.decided or facts.end.at
        after = facts.end.data.get("shown_after_ms")
        at = facts.end.at
        if isinstance(after, int) and not isinstance(after, bool):
            at = max(at, since + timedelta(milliseconds=after))
        return _timed(leg, since, at, mark, _seen(facts.end.data.get("shown")) or "Vault says that it is gone.")
    if facts.decided is not None and now > facts.decided + mark:
        return Line(leg, Came.FAILED, None, mark, "It is not shown to be gone yet.")
    return Line(leg, Came.WAITING, None, mark)


def _told(facts: Facts, marks: PassMarks, told: Told, now: datetime, *, is_early: bool) -> Line:
    leg, mark = Leg.ALERTS, marks.alerts
    if is_early:
        return Line(leg, Came.WAITING, None, mark)
    if told.missing:
        last = facts.end.at if facts.end is not None else facts.quorum or facts.opened or now
        if now <= last + mark:
            return Line(leg, Came.WAITING, None, mark)
        listed = ", ".join(told.missing[:5])
        return Line(leg, Came.FAILED, None, mark, f"It did not arrive: {listed}.")
    is_late = told.latest > mark
    why = f"One came later than {say_duration(mark)}." if is_late else ""
    return Line(leg, Came.FAILED if is_late else Came.PASSED, told.latest, mark, why)


def _recorded(facts: Facts, marks: PassMarks, now: datetime) -> Line:
    leg, mark = Leg.CAPTURE, marks.capture
    if facts.blame is Blame.CAPTURE:
        return Line(leg, Came.FAILED, None, mark, facts.why)
    if facts.recorded is not None and facts.login is not None:
        return _timed(leg, facts.login.at, facts.recorded, mark)
    if not facts.is_logged_in:
        is_over = facts.blame is not None or facts.state in _OVER
        return Line(leg, Came.NOT_REACHED, None, mark) if is_over else _after(leg, mark, facts, marks, now)
    since = facts.end.at if facts.end is not None else facts.decided or now
    if now > since + mark:
        return Line(leg, Came.FAILED, None, mark, "What was done did not come back from the target's record.")
    return Line(leg, Came.WAITING, None, mark)


def _reviewed(facts: Facts, marks: PassMarks, now: datetime) -> Line:
    leg, mark = Leg.REVIEW, marks.review
    if facts.end is None:
        back = _taken_back(facts, marks, now)
        came = Came.WAITING if back.came is Came.WAITING else Came.NOT_REACHED
        return Line(leg, came, None, mark)
    if facts.reviewed is not None:
        return _timed(leg, facts.end.at, facts.reviewed, mark)
    if now > facts.end.at + mark:
        return Line(leg, Came.FAILED, None, mark, "No review was filed.")
    return Line(leg, Came.WAITING, None, mark)


def _after(leg: Leg, mark: timedelta, facts: Facts, marks: PassMarks, now: datetime) -> Line:
    """Return a line that comes after the quorum: not reached when there will be none in time."""
    if facts.quorum is not None:
        return Line(leg, Came.WAITING, None, mark)
    came = Came.WAITING if _agreed(facts, marks, now).came is Came.WAITING else Came.NOT_REACHED
    return Line(leg, came, None, mark)


def _at(records: Iterable[Record], *events: str) -> datetime | None:
    return next((record.at for record in records if record.event in events), None)


def _last(records: Sequence[Record], event: str) -> Record | None:
    return next((record for record in reversed(records) if record.event == event), None)


def _seen(value: object) -> str:
    listed = value if isinstance(value, list) else []
    return "; ".join(str(one)[:120] for one in listed[:6])


def _moment(value: object) -> datetime | None:
    try:
        return datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
