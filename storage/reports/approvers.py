"""Does a custodian decide, or only click?

Rules
-----
* Everything follows from the bodies of entries. A rewritten table, and the columns beside a body that was pruned,
  change nothing here.
* A custodian is asked by the opening, which lists the custodians, and answers once a request, at the first click. What
  was settled, lapsed, or still waits without the person's answer is counted apart: only one of them is an omission.
* A pattern is named by a rule that is written down (:data:`RULES`), in a sentence with its counts. It is a question to
  a person, never a verdict: the numbers cannot tell a quick reader from one who does not read.
* Too little to judge by, and entries that are not there, are said. Neither is ever read as nothing out of place.

Pure: entries in, values out. Memory: one small record a request, one an answer.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from statistics import median_low
from typing import TYPE_CHECKING, Final, NamedTuple

from storage.models import State
from storage.reports.story import say, who

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from datetime import datetime

    from storage.audit import Record
    from storage.reports.story import Names

# Under five answers one hurried night looks like a habit: four of four by chance is nothing to name a person for.
FEWEST: Final = 5
# To read who asks for what and why, and to ask back, takes longer than this even for the one who knows the incident.
# The custodian who denies now and then has shown to read, so the rule wants that everything was approved.
QUICK: Final = timedelta(seconds=10)
# Four of five: the pair that this looks for gives each other nearly all. In percent, compared as whole numbers.
FAVOUR_PERCENT: Final = 80
# Where custodians ask for access themselves, once or twice each way happens to everybody; three times is a custom.
EACH_WAY: Final = 3

RULES: Final = (
    f"Quick: at least {FEWEST} timed answers, nothing denied, half of them in under {int(QUICK.total_seconds())} s.",
    f"Favour: at least {FAVOUR_PERCENT} % of at least {FEWEST} approvals went to one requester, and others asked, too.",
    f"Each other: two people approved at least {EACH_WAY} requests of one another, and neither denied the other one.",
    f"Silent: asked at least {FEWEST} times about requests that are over, and answered none.",
)

_SETTLED: Final = frozenset({"request:quorum", "request:deny", "request:withdraw"})
_ANSWERS: Final = frozenset({"request:approve", "request:deny"})


class Denial(NamedTuple):
    """A denial, with what was typed."""

    seq: int
    at: datetime
    person: str
    request: str
    requester: str  # empty: the opening is not here
    reason: str


class Given(NamedTuple):
    """Approvals of one custodian for one requester (empty: not known), and how many there are of the custodian."""

    person: str
    requester: str
    number: int
    of: int

    @property
    def share(self) -> str:
        """Return the share in words."""
        return "-" if not self.requester else f"{self.number * 100 // self.of} %"


class Refusal(NamedTuple):
    """Attempts to decide that were refused, by code. ``own``: how many of them were about the person's own request."""

    person: str
    code: str
    number: int
    own: int


@dataclass(frozen=True, slots=True)
class Custodian:
    """What one custodian did. ``asked`` = ``answered`` + ``settled`` + ``lapsed`` + ``waiting``, less ``unasked``."""

    person: str
    asked: int
    answered: int
    approved: int
    denied: int
    settled: int  # by others, or withdrawn, before this person answered
    lapsed: int  # nobody's answer settled it in time
    waiting: int  # not over at the last entry here
    unasked: int  # answers about requests whose opening, with this person in it, is not here
    times: tuple[timedelta, ...]  # from the opening to the click, as far as both are here, shortest first
    signs: tuple[str, ...]  # what stands out, in sentences that begin with a verb

    @property
    def is_judged(self) -> bool:
        """Whether there is enough to say that nothing stands out. An answer without its time says too little."""
        return len(self.times) >= FEWEST

    @property
    def median(self) -> timedelta | None:
        """Return the middle time to the click, the lower one of two."""
        return median_low(self.times) if self.times else None

    @property
    def shortest(self) -> timedelta | None:
        """Return the shortest time to the click."""
        return self.times[0] if self.times else None


@dataclass(frozen=True, slots=True)
class Integrity:
    """All custodians of a selection. ``limits``: why less can be said than it seems, a sentence each."""

    custodians: tuple[Custodian, ...]
    given: tuple[Given, ...]
    denials: tuple[Denial, ...]
    refusals: tuple[Refusal, ...]
    limits: tuple[str, ...]
    is_one_request: bool = False

    def outliers(self, names: Names) -> list[str]:
        """Return a sentence for each thing that stands out, with whom it is about."""
        return [f"{who(one.person, names)} {sign}." for one in self.custodians for sign in one.signs]

    def standing(self, one: Custodian) -> str:
        """Return what can be said of a custodian, in words."""
        if one.signs:
            return " ".join(f"{sign[0].upper()}{sign[1:]}." for sign in one.signs)
        if self.is_one_request or not one.is_judged:
            return "Too few answers to say anything."
        return "Nothing stands out in what is here." if self.limits else "Nothing stands out."

    def conclusion(self) -> str:
        """Return what can be said when no rule named anybody; never more than that."""
        judged = sum(one.is_judged for one in self.custodians)
        if self.is_one_request or not judged:
            return (
                f"Nothing can be said: no custodian has {FEWEST} answers with a known time in this selection. That is "
                "no sign that all is well."
            )
        least = "" if judged == len(self.custodians) else " Of the others there are too few answers to say anything."
        here = ", as far as the entries are here" if self.limits else ""
        return f"By these rules nothing stands out{here}, for {judged} of {len(self.custodians)} custodians.{least}"


@dataclass(slots=True)
class _Case:
    requester: str = ""
    opened_at: datetime | None = None
    listed: frozenset[str] = frozenset()  # who could decide
    asked: dict[str, datetime] = field(default_factory=dict)  # person → when
    end: str = ""  # the event that ended the waiting
    first: dict[str, datetime] = field(default_factory=dict)  # person → first answer
    approved: set[str] = field(default_factory=set)
    denied: set[str] = field(default_factory=set)


def _asked_later(asking: object, opened_at: datetime) -> frozenset[str]:
    """Return who of a request's custodians was not asked at its opening (``asking`` of its entry)."""
    steps = asking.get("steps") if isinstance(asking, dict) else None
    now: set[str] = set()
    later: set[str] = set()
    for step in steps if isinstance(steps, list) else ():
        if isinstance(step, dict) and isinstance(step.get("people"), list):
            people = {person for person in step["people"] if isinstance(person, str)}
            is_now = step.get("at") == opened_at.isoformat().replace("+00:00", "Z")
            (now if is_now else later).update(people)
    return frozenset(later - now)


class Ledger:
    """Counts entry by entry, in the order of the log."""

    def __init__(self) -> None:
        self._cases: dict[str, _Case] = {}
        self._denials: list[tuple[int, datetime, str, str, str]] = []
        self._refused: Counter[tuple[str, str, str]] = Counter()  # person, code, request
        self._gone = 0
        self._drills: set[str] = set()

    def add(self, record: Record | None) -> None:
        """Add an entry; None (or a pruned one) is a body that is not there or cannot be read."""
        if record is None or record.is_pruned:
            self._gone += 1
            return
        if not record.event.startswith("request:"):
            return
        if record.refused is not None:
            if record.event in _ANSWERS:
                self._refused[record.actor.person, record.refused, record.request_id or ""] += 1
            return
        if record.request_id is None:
            return
        if record.event == "request:open" and record.data.get("drill") and record.request_id not in self._cases:
            # A drill is answered by those who were told of it: it would make a quick reader of a careful one.
            self._drills.add(record.request_id)
        if record.request_id in self._drills:
            return
        case = self._cases.setdefault(record.request_id, _Case())
        if record.event == "request:open":
            self._open(case, record)
        elif record.event == "request:escalate" and isinstance(called := record.data.get("people"), list):
            for person in case.listed.intersection(one for one in called if isinstance(one, str)):
                case.asked.setdefault(person, record.at)
        elif record.event in _ANSWERS:
            self._answer(case, record, record.request_id)
        if record.event in _SETTLED or (record.event == "request:lapse" and record.source == State.PENDING):
            case.end = case.end or record.event

    def _open(self, case: _Case, record: Record) -> None:
        if case.opened_at is not None:
            return  # a forged second opening asks nobody; what the log may not hold is the verifier's to find
        listed = record.data.get("custodians")
        people = listed if isinstance(listed, list) else []
        case.requester, case.opened_at = record.actor.person, record.at
        case.listed = frozenset(person for person in people if isinstance(person, str))
        later = _asked_later(record.data.get("asking"), record.at)
        case.asked = dict.fromkeys(case.listed - later, record.at)

    def _answer(self, case: _Case, record: Record, request: str) -> None:
        person = record.actor.person
        case.first.setdefault(person, record.at)
        (case.approved if record.event == "request:approve" else case.denied).add(person)
        if record.event == "request:deny":
            reason = record.data.get("reason")
            text = reason if isinstance(reason, str) else ""
            self._denials.append((record.seq, record.at, person, request, text))

    def finish(self, selection: Mapping[str, str | None], names: Names) -> Integrity:
        """Return what was counted. ``selection``: ``since``, ``until``, ``account``, ``request``, as in the header."""
        people = {person for case in self._cases.values() for person in (*case.asked, *case.first)}
        gave = {person: self._gave(person) for person in people}
        named = _each_other(self._cases.values(), names)
        custodians = tuple(
            self._custodian(person, gave[person], named.get(person, ()), names) for person in sorted(people)
        )
        given = tuple(
            Given(person, requester, count, sum(gave[person].values()))
            for person in sorted(people)
            for requester, count in sorted(gave[person].items(), key=lambda pair: (-pair[1], pair[0]))
        )
        denials = tuple(
            Denial(seq, at, person, request, self._cases[request].requester, reason)
            for seq, at, person, request, reason in self._denials
        )
        return Integrity(
            custodians,
            given,
            denials,
            tuple(self._refusals()),
            tuple(self._limits(selection)),
            is_one_request=selection.get("request") is not None,
        )

    def _gave(self, person: str) -> Counter[str]:
        """Return how many approvals went to whom."""
        return Counter(case.requester for case in self._cases.values() if person in case.approved)

    def _custodian(self, person: str, gave: Counter[str], each_other: Iterable[str], names: Names) -> Custodian:
        asked = [case for case in self._cases.values() if person in case.asked]
        answers = [case for case in self._cases.values() if person in case.first]
        silent = [case for case in asked if person not in case.first]
        lapsed = sum(case.end == "request:lapse" for case in silent)
        waiting = sum(not case.end for case in silent)
        times = sorted(
            case.first[person] - case.asked[person]
            for case in answers
            # A clock that went back, or an answer before the question, gives no time; it is not read as a quick answer.
            if person in case.asked and case.first[person] >= case.asked[person]
        )
        approved, denied = sum(gave.values()), sum(person in case.denied for case in answers)
        signs = [
            *_quick(len(answers), approved, denied, times),
            *_favour(gave, Counter(case.requester for case in asked), names),
            *each_other,
            *_silent(len(answers), len(silent) - waiting, lapsed),
        ]
        return Custodian(
            person,
            asked=len(asked),
            answered=len(answers),
            approved=approved,
            denied=denied,
            settled=len(silent) - lapsed - waiting,
            lapsed=lapsed,
            waiting=waiting,
            unasked=sum(person not in case.listed for case in answers),
            times=tuple(times),
            signs=tuple(signs),
        )

    def _refusals(self) -> Iterator[Refusal]:
        counts: Counter[tuple[str, str]] = Counter()
        own: Counter[tuple[str, str]] = Counter()
        for (person, code, request), count in self._refused.items():
            counts[person, code] += count
            case = self._cases.get(request)
            if case is not None and case.requester == person:
                own[person, code] += count
        for person, code in sorted(counts):
            yield Refusal(person, code, counts[person, code], own[person, code])

    def _limits(self, selection: Mapping[str, str | None]) -> Iterator[str]:
        if selection.get("request") is not None:
            yield "This selection is one request: nobody's habits can be read from it."
        if selection.get("account") is not None:
            yield (
                f"Only requests of the account {selection['account']} are here: what the same people decided about "
                "other accounts is not counted."
            )
        if selection.get("since") is not None or selection.get("until") is not None:
            yield "Only a period is here: what the same people decided before or after it is not counted."
        if self._gone:
            many = "1 entry has no body" if self._gone == 1 else f"{self._gone} entries have no body"
            yield (
                f"{many} here any more, or one that cannot be read: whoever was asked or answered in them is not "
                "counted, and a person whom nothing is said of may stand there."
            )
        headless = [case for case in self._cases.values() if case.opened_at is None]
        if headless:
            many = (
                "The opening of 1 request is" if len(headless) == 1 else f"The openings of {len(headless)} requests are"
            )
            yield f"{many} not here: who was asked, who asked and how long an answer took is not known of them."


# --- the rules -----------------------------------------------------------------------------------------------------


def _quick(answers: int, approved: int, denied: int, times: list[timedelta]) -> Iterator[str]:
    if len(times) < FEWEST or denied or approved != answers:
        return
    middle = median_low(times)
    if middle < QUICK:
        known = "" if len(times) == answers else f" whose time is known ({len(times)})"
        # Rounded up, so that the sentence is true.
        seconds = max(1, math.ceil(middle.total_seconds()))
        yield f"approved {approved} of {answers}, half of them{known} within {seconds} s"


def _favour(gave: Counter[str], asked: Counter[str], names: Names) -> Iterator[str]:
    """Whom most of the approvals went to; not when nobody else asked: then there was nobody to prefer them to."""
    known = {requester: count for requester, count in gave.items() if requester}
    total = sum(known.values())
    if total < FEWEST:
        return
    for requester, count in sorted(known.items()):
        if count * 100 >= FAVOUR_PERCENT * total and asked[requester] < sum(asked.values()):
            made = f"who made {asked[requester]} of the {sum(asked.values())} requests that were put to them"
            yield f"gave {count} of {total} approvals to {who(requester, names)}, {made}"


def _each_other(cases: Iterable[_Case], names: Names) -> dict[str, list[str]]:
    """Return for each person with whom approvals go both ways, in sentences."""
    went: Counter[tuple[str, str]] = Counter()
    denied: set[tuple[str, str]] = set()
    for case in cases:
        if case.requester:
            went.update((person, case.requester) for person in case.approved)
            denied.update((person, case.requester) for person in case.denied)
    found: dict[str, list[str]] = {}
    for (person, other), count in sorted(went.items()):
        back = went.get((other, person), 0)
        is_denied = (person, other) in denied or (other, person) in denied
        if person != other and min(count, back) >= EACH_WAY and not is_denied:
            found.setdefault(person, []).append(
                f"approved {count} requests of {who(other, names)}, who approved {back} of theirs; neither denied any"
            )
    return found


def _silent(answers: int, over: int, lapsed: int) -> Iterator[str]:
    if not answers and over >= FEWEST:
        yield f"answered none of {over}: {lapsed} of them lapsed, {over - lapsed} were settled without them"


# --- for the page and the paper ------------------------------------------------------------------------------------


def span(time: timedelta | None) -> str:
    """Return a time to the click: with tenths where seconds matter, else as anywhere."""
    if time is not None and time < timedelta(minutes=1):
        return f"{int(time.total_seconds() * 10) / 10:.1f} s"
    return say(time)


def more(count: int) -> str:
    """Return where the rest of a table is."""
    return f"{count} more follow from entries.jsonl, which has all of them."


def asker(requester: str, names: Names) -> str:
    """Return who asked, or that it is not known."""
    return who(requester, names) if requester else "not known"


def counts(one: Custodian) -> tuple[str, ...]:
    """Return a custodian's numbers: asked, answered, approved, denied, not answered, median, shortest."""
    silent = [
        f"{count} {word}"
        for count, word in ((one.settled, "settled first"), (one.lapsed, "lapsed"), (one.waiting, "waiting"))
        if count
    ]
    return (
        str(one.asked),
        str(one.answered) + (f" ({one.unasked} not put to them here)" if one.unasked else ""),
        str(one.approved),
        str(one.denied),
        ", ".join(silent) or "-",
        span(one.median),
        span(one.shortest),
    )


MOST_ROWS: Final = 1000  # of one table; more than a page is read for
GIVEN_HEADS: Final = ("Custodian", "Requester", "Approvals", "Share")
DENIAL_HEADS: Final = ("Custodian", "Request, requester", "Reason", "When (UTC)", "Entry")
REFUSAL_HEADS: Final = ("Who", "Code", "Attempts", "About an own request")
HEADS: Final = ("Asked", "Answered", "Approved", "Denied", "Not answered", "Median time", "Shortest")
HOW: Final = (
    "Counted from the entries alone. A custodian is asked when the request is opened, and the time runs from there to "
    "the first click. “Settled first” is by others, or by the requester who withdrew. A median of an even count is the "
    "lower of the two in the middle. A pattern is a question to a person and no verdict."
)
