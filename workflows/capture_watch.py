"""Is each source of commands heard of, and what did it record of a request that is over?

:func:`tick` is called with every tick of the clock (``sweep.py``), and carries no truth of its own.

Rules
-----
* A source that was not heard of for the time in the policy is down. That is an entry, and one for each request whose
  access is out and relies on it: silence there says nothing.
* Some time after a request's end its record is settled: each session that is open is closed, and an entry says what
  was found. Lines that come later are recorded all the same, and it is settled once more.
* "Nothing was done" is said only of a source that was heard of all the while.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from sqlmodel import and_, col, or_, select, update

from storage.audit import SYSTEM, Actor, Draft, append_all, write_time
from storage.commands import CLOSE, DOWN, FIND, GAP
from storage.models import CaptureSession, CaptureSource, CaptureUse, Grant, Request, State
from workflows.door import database_errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from sqlmodel import Session
    from sqlmodel.sql.expression import SelectOfScalar

    from storage.audit import JSON, Appended
    from storage.database import Database, Write
    from workflows.capture_rules import SourceRules

UP: Final = "capture:up"

SETTLE_AFTER: Final = timedelta(seconds=60)  # after the end, and after the last line: late ones are on their way
_PATIENCE: Final = timedelta(minutes=15)  # after the end, with a source that is down
_OUT: Final = (State.ACTIVE, State.ENDING)
_OVER: Final = (State.ENDED, State.REVIEWED)
_AT_ONCE: Final = 50  # requests settled in one transaction


# --- who is heard of -----------------------------------------------------------------------------------------------


def silent_since(session: Session, rules: SourceRules, now: datetime) -> datetime | None:
    """Return since when nothing was heard of a source; None: it is there."""
    row = session.get(CaptureSource, rules.name)
    if row is None:
        return now
    if row.seen_at is None:
        return row.known_at
    return row.seen_at if now - row.seen_at > rules.silent_after else None


def say_of_source(
    session: Write, event: str, source: str, data: Mapping[str, JSON], *, now: datetime
) -> list[Appended]:
    """Append an entry about a source, and one for each request whose access is out and relies on it."""
    query = (
        select(CaptureUse)
        .join(Request, col(Request.id) == CaptureUse.request_id)
        .where(CaptureUse.source == source, col(Request.state).in_(_OUT))
        .order_by(CaptureUse.request_id)
    )
    uses = list(session.exec(query))
    if event in {DOWN, GAP}:
        for use in uses:
            use.blind = True
            session.add(use)
    told = {"source": source, **data}
    drafts = [Draft(event, SYSTEM, request_id, told) for request_id in (None, *(use.request_id for use in uses))]
    entries = append_all(session, drafts, at=now)
    touch(session, entries)
    return entries


def new_use(request_id: str, source: str, now: datetime) -> CaptureUse:
    """Return the row of a request that a source is to record, or was found to have recorded."""
    return CaptureUse(request_id=request_id, source=source, elsewhere=[], touched_at=now)


def tell_down(session: Write, use: CaptureUse, since: datetime, *, now: datetime) -> None:
    """Say of one request that nothing is heard of the source that is to record it."""
    data = {"source": use.source, "since": write_time(since)}
    touch(session, append_all(session, [Draft(DOWN, SYSTEM, use.request_id, data)], at=now))


def touch(session: Write, entries: Iterable[Appended]) -> None:
    """Let the requests' rows know their newest entries: what followers compare with."""
    newest = {entry.request_id: entry.seq for entry in entries if entry.request_id is not None}
    for request_id, seq in newest.items():
        session.exec(update(Request).where(col(Request.id) == request_id).values(last_seq=seq))


# --- the clock -----------------------------------------------------------------------------------------------------


def tick(database: Database, sources: Mapping[str, SourceRules], *, now: datetime) -> None:
    """Say which sources are down, and settle the records of requests that are over. Raises :class:`Unavailable`."""
    if not sources:
        return
    with database_errors():
        with database.read() as session:
            rows = {row.name: row for row in session.exec(select(CaptureSource))}
            due = list(session.exec(_unsettled(now)))
        unheard = [rules for name, rules in sources.items() if name not in rows or _is_down(rows[name], rules, now)]
        if unheard or due:
            with database.write() as session:
                for rules in unheard:
                    _look_for(session, rules, now)
                for use in session.exec(_unsettled(now)):
                    _settle(session, use, now)


def _is_down(row: CaptureSource, rules: SourceRules, now: datetime) -> bool:
    return row.down_since is None and now - (row.seen_at or row.known_at) > rules.silent_after


def _look_for(session: Write, rules: SourceRules, now: datetime) -> None:
    row = session.get(CaptureSource, rules.name, populate_existing=True)
    if row is None:
        session.add(CaptureSource(name=rules.name, known_at=now))
    elif _is_down(row, rules, now):
        row.down_since = row.seen_at or row.known_at
        session.add(row)
        say_of_source(session, DOWN, rules.name, {"since": write_time(row.down_since)}, now=now)


# --- settling ------------------------------------------------------------------------------------------------------


def _unsettled(now: datetime) -> SelectOfScalar[CaptureUse]:
    """Ask for what is to be settled: of requests that are over, and of which nothing came for a while."""
    heard = select(CaptureSource.name).where(
        CaptureSource.name == CaptureUse.source, col(CaptureSource.seen_at) > Request.state_at
    )
    return (
        select(CaptureUse)
        .join(Request, col(Request.id) == CaptureUse.request_id)
        .where(
            col(CaptureUse.settled_at).is_(None),
            col(CaptureUse.touched_at) <= now - SETTLE_AFTER,
            col(Request.state).in_(_OVER),
            or_(
                col(Request.state) == State.REVIEWED.value,  # whoever reviewed it has not waited, so neither do we
                and_(col(Request.state_at) <= now - SETTLE_AFTER, heard.exists()),
                col(Request.state_at) <= now - _PATIENCE,
            ),
        )
        .order_by(col(CaptureUse.request_id), col(CaptureUse.source))
        .limit(_AT_ONCE)
    )


def _settle(session: Write, use: CaptureUse, now: datetime) -> None:
    request = session.get(Request, use.request_id)
    if request is None:
        return
    actor = Actor(request.team, request.requester)
    close_sessions(session, use, actor, now=now)
    source = session.get(CaptureSource, use.source)
    grants = list(session.exec(select(Grant).where(Grant.request_id == use.request_id)))
    ended = max((grant.ended_at for grant in grants if grant.ended_at is not None), default=request.state_at)
    if source is None or source.seen_at is None or source.seen_at < ended:
        use.blind = True
    tell_findings(session, use, actor, now=now)
    use.settled_at = now
    session.add(use)


def close_sessions(session: Write, use: CaptureUse, actor: Actor, *, now: datetime) -> None:
    """Append the closing entry of each session that is not closed yet."""
    query = select(CaptureSession).where(
        CaptureSession.source == use.source,
        CaptureSession.request_id == use.request_id,
        col(CaptureSession.told).is_(False),
    )
    rows = list(session.exec(query.order_by(CaptureSession.session, CaptureSession.identity)))
    close(session, [(row, actor) for row in rows], now=now)


def close(session: Write, rows: Iterable[tuple[CaptureSession, Actor]], *, now: datetime) -> None:
    """Append closing entries: how much there was of a session, and what is missing of it."""
    drafts = []
    for row, actor in rows:
        row.told = True
        session.add(row)
        drafts.append(Draft(CLOSE, actor, row.request_id, _closing(row)))
    touch(session, append_all(session, drafts, at=now))


def _closing(row: CaptureSession) -> dict[str, JSON]:
    holes = list(row.holes)
    if row.first_number is not None and row.opened_at is None:
        holes.append("its beginning was not recorded")
    data: dict[str, JSON] = {
        "source": row.source,
        "session": row.session or None,
        "identity": row.identity,
        "opened_at": _time(row.opened_at),
        "closed_at": _time(row.closed_at),
        "commands": row.commands,
        "first_at": _time(row.first_at),
        "last_at": _time(row.last_at),
        "gaps": [{"after": first - 1, "missing": last - first + 1} for first, last in row.missing],
        "stopped": row.stopped,
        "holes": holes,
    }
    return {name: value for name, value in data.items() if value is not None}


def tell_findings(session: Write, use: CaptureUse, actor: Actor, *, now: datetime) -> None:
    """Append what is to be said of a request's record as it is now; also that there is nothing to be said."""
    data: dict[str, JSON] = {
        "source": use.source,
        "commands": use.commands,
        "first_at": _time(use.first_at),
        "last_at": _time(use.last_at),
        "findings": [{"kind": kind, "sentence": sentence} for kind, sentence in _findings(use)],
    }
    data = {name: value for name, value in data.items() if value is not None}
    touch(session, append_all(session, [Draft(FIND, actor, use.request_id, data)], at=now))


def _findings(use: CaptureUse) -> Iterable[tuple[str, str]]:
    if not use.commands and not use.blind:
        yield "unused", "The access was never used."
    if not use.commands and use.blind:
        yield "unknown", "No command was recorded, but the recording was not there all the while."
    elif use.blind:
        yield "blind", "The recording was not there all the while; it may have come late, or not at all."
    if use.late:
        times = "once" if use.late == 1 else f"{use.late} times"
        yield "after_end", f"The access was used after its end, {times}."
    if use.elsewhere:
        yield "out_of_scope", f"It was used in a database that it is not for: {', '.join(use.elsewhere[:10])}."
    if use.stopped:
        yield "stopped", "The recording was stopped from within, or was tried to be."


def _time(at: datetime | None) -> str | None:
    return write_time(at) if at is not None else None
