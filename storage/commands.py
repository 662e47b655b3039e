"""What do the entries say of the commands that were executed?

Rules
-----
* One way of reading them for all who show them: the thread, the review form, the pages, the terminal.
* A text is shown as it was stored, which is redacted. What is not known is empty; nothing is made up.
* An entry whose data are not as a recorder writes them is still a command: whoever reads the log must not fail over it.
* There may be thousands a second. What only counts reads the bodies without checking each one's hash again: it is for
  people to look at, and no proof. What is a proof is ``verify.py``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import select

from storage.models import Entry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlmodel import Session

    from storage.audit import Record

RUN: Final = "command:run"
CLOSE: Final = "command:close"
STOP: Final = "command:stop"
STRANGER: Final = "command:stranger"
FIND: Final = "command:find"
DOWN: Final = "capture:down"
GAP: Final = "capture:gap"

# What may come by the thousand, and is therefore told together.
MANY: Final = frozenset({RUN, CLOSE, STOP, STRANGER})
# By what a reader sees how far the record can be relied on.
TELLING: Final = frozenset({*MANY, FIND, DOWN, GAP})

# In the order in which they are told: the harmless first.
CLASSES: Final = ("read", "write", "definition", "privilege", "export", "session", "program", "call", "unknown")
TRUSTS: Final[Mapping[str, str]] = {
    "enforced": "recorded by the target itself",
    "host": "recorded by the host",
    "self-reported": "reported by the responder's own side",
}

_ALARMS: Final[Mapping[str, str]] = {
    STRANGER: "NO REQUEST EXPLAINS THIS LOGIN",
    STOP: "RECORDING SWITCHED OFF, OR TRIED TO",
}
OTHER_CLOCK: Final = timedelta(seconds=5)  # by which a target's clock may be away from ours
_MOST_DANGERS: Final = 5  # kept by a tally
_MOST_NAMES: Final = 20  # of sources, identities and holes kept by a tally
_PAGE: Final = 1000
_E: Final[Any] = Entry


@dataclass(frozen=True, slots=True)
class Command:
    """One entry about a command or a session, as it is shown. ``at`` is by the target's clock where it said so."""

    seq: int
    event: str
    at: datetime
    logged_at: datetime
    source: str = ""
    kind: str = ""
    trust: str = ""
    identity: str = ""
    session: str = ""
    database: str = ""
    text: str = ""
    result: str = ""
    rows: int | None = None
    redacted: int = 0
    cls: str = ""
    danger: str = ""
    whole: int | None = None  # bytes of the whole text, where ``text`` is only its beginning
    sha256: str = ""  # of the whole text, then
    count: int = 0  # of a closing entry: the session's commands
    missing: int = 0  # of a closing entry: the session's lines that never came
    holes: tuple[str, ...] = ()
    stopped: bool = False
    findings: tuple[str, ...] = ()  # sentences, of an entry that says what was found of a whole use

    @property
    def is_run(self) -> bool:
        """Whether something was executed."""
        return self.event in {RUN, STRANGER}

    @property
    def is_alarming(self) -> bool:
        """Whether security is to look at it at once."""
        return bool(self.danger) or self.event in {STOP, STRANGER} or self.stopped

    @property
    def alarm(self) -> str:
        """What the event alone says is wrong; empty: nothing."""
        return {STRANGER: "NO REQUEST EXPLAINS THIS LOGIN", STOP: "RECORDING SWITCHED OFF, OR TRIED TO"}.get(
            self.event, ""
        )

    @property
    def has_failed(self) -> bool:
        """Whether the target said that it did not work."""
        return self.is_run and self.result not in {"", "ok"}


def read(seq: int, event: str, logged_at: datetime, data: Mapping[str, Any]) -> Command:
    """Read one entry's data, whatever they are."""
    payload, gaps = data.get("payload"), data.get("gaps")
    whole = payload if isinstance(payload, Mapping) else {}
    missing = sum(_whole(gap, "missing") or 0 for gap in gaps) if isinstance(gaps, list) else 0
    holes = data.get("holes")
    argv = data.get("argv")
    text = _text(data, "text") or (" ".join(map(str, argv)) if isinstance(argv, list) else "")
    return Command(
        seq,
        event,
        _moment(data.get("at")) or _moment(data.get("closed_at")) or _moment(data.get("last_at")) or logged_at,
        logged_at,
        source=_text(data, "source"),
        kind=_text(data, "kind"),
        trust=_text(data, "trust"),
        identity=_text(data, "identity"),
        session=_text(data, "session"),
        database=_text(data, "database"),
        text=text,
        result=_text(data, "result"),
        rows=_whole(data, "rows"),
        redacted=_whole(data, "redacted") or 0,
        cls=_text(data, "class"),
        danger=_text(data, "danger"),
        whole=_whole(whole, "bytes"),
        sha256=_text(whole, "sha256"),
        count=_whole(data, "commands") or 0,
        missing=max(0, missing),
        holes=tuple(str(hole) for hole in holes[:_MOST_NAMES]) if isinstance(holes, list) else (),
        stopped=data.get("stopped") is True,
        findings=_findings(data.get("findings")),
    )


def of_record(record: Record) -> Command:
    """Read an entry."""
    return read(record.seq, record.event, record.at, record.data)


@dataclass(slots=True)
class Tally:
    """What many of these entries come to. ``ended`` gives when a login at the target had ended, if it had."""

    ended: Callable[[str], datetime | None] = field(default=lambda _identity: None, repr=False)
    runs: int = 0
    classes: Counter[str] = field(default_factory=Counter)
    dangerous: int = 0
    dangers: list[Command] = field(default_factory=list)  # the first of them, and of what else is alarming
    failed: int = 0
    redacted: int = 0
    first_at: datetime | None = None
    last_at: datetime | None = None
    sources: dict[str, str] = field(default_factory=dict)  # and how far each can be relied on
    identities: dict[str, None] = field(default_factory=dict)
    sessions: int = 0  # that have ended
    missing: int = 0
    holes: dict[str, None] = field(default_factory=dict)
    stops: int = 0
    strangers: int = 0
    late: int = 0  # after the end of the login that ran it, by the target's clock
    pruned: int = 0
    findings: dict[str, tuple[str, ...]] = field(default_factory=dict)  # the newest that was found, by source
    down: dict[str, None] = field(default_factory=dict)  # sources of which nothing was heard for a time

    @property
    def alarming(self) -> int:
        """How much security is to look at."""
        return self.dangerous + self.stops + self.strangers

    def add(self, one: Command) -> None:
        """Count one more."""
        if one.source and len(self.sources) < _MOST_NAMES:
            self.sources[one.source] = one.trust or self.sources.get(one.source, "")
        if one.event == DOWN:
            self.down.setdefault(one.source or "a source", None)
            return
        if one.event == FIND:
            self.findings[one.source] = one.findings
            return
        if one.event == GAP:
            self.holes.setdefault(f"lines of {one.source or 'a source'} were destroyed", None)
            return
        if one.event == CLOSE:
            self.sessions += 1
            self.missing += one.missing
            for hole in one.holes:
                if len(self.holes) < _MOST_NAMES:
                    self.holes.setdefault(hole, None)
        if one.event == STOP:
            self.stops += 1
        if one.is_alarming and len(self.dangers) < _MOST_DANGERS:
            self.dangers.append(one)
        if not one.is_run:
            return
        self.strangers += one.event == STRANGER
        self.runs += 1
        self.classes[one.cls if one.cls in CLASSES else "unknown"] += 1
        self.dangerous += bool(one.danger)
        self.failed += one.has_failed
        self.redacted += bool(one.redacted)
        if one.identity and len(self.identities) < _MOST_NAMES:
            self.identities.setdefault(one.identity, None)
        self.first_at = one.at if self.first_at is None else min(self.first_at, one.at)
        self.last_at = one.at if self.last_at is None else max(self.last_at, one.at)
        end = self.ended(one.identity)
        self.late += end is not None and one.at > end + OTHER_CLOCK

    def by_class(self) -> list[tuple[str, int]]:
        """Return how many there are of each class, in the order of :data:`CLASSES`."""
        return [(name, self.classes[name]) for name in CLASSES if self.classes[name]]


def tally(
    session: Session,
    request_id: str,
    *,
    first: int = 0,
    last: int | None = None,
    ended: Callable[[str], datetime | None] = lambda _identity: None,
) -> Tally:
    """Count what entries ``first`` to ``last`` of a request say (``""``: of none), page by page."""
    counted = Tally(ended)
    for one in each(session, request_id, first=first, last=last):
        if one is None:
            counted.pruned += 1
        else:
            counted.add(one)
    return counted


def each(
    session: Session,
    request_id: str,
    *,
    first: int = 0,
    last: int | None = None,
    skip: int = 0,
    limit: int | None = None,
) -> Iterator[Command | None]:
    """Give what entries ``first`` to ``last`` say, in order; None for one whose body was pruned."""
    query = select(_E.seq, _E.event, _E.at, _E.body).where(_E.seq >= first, _E.event.in_(sorted(TELLING)))
    query = query.where(_E.request_id == request_id if request_id else _E.request_id.is_(None)).order_by(_E.seq)
    if last is not None:
        query = query.where(_E.seq <= last)
    if skip:
        query = query.offset(skip)
    if limit is not None:
        query = query.limit(limit)
    for row in session.execute(query.execution_options(yield_per=_PAGE)):
        yield None if row.body is None else read(row.seq, row.event, row.at, _data(row.body))


def _findings(value: object) -> tuple[str, ...]:
    listed = value if isinstance(value, list) else []
    return tuple(_text(one, "sentence") for one in listed[:_MOST_NAMES] if isinstance(one, Mapping))


def _data(body: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    data = found.get("data") if isinstance(found, dict) else None
    return data if isinstance(data, dict) else {}


def _text(data: Mapping[str, Any], key: str) -> str:
    found = data.get(key)
    return found if isinstance(found, str) else ""


def _whole(data: object, key: str) -> int | None:
    found = data.get(key) if isinstance(data, Mapping) else None
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def _moment(value: object) -> datetime | None:
    try:
        at = datetime.fromisoformat(value) if isinstance(value, str) else None
        return at.astimezone(UTC) if at is not None and at.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None
