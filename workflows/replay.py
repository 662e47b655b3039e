"""Do the tables say what the log says, and did everything in it keep to the rules?

Rules
-----
* The log is played again from its entries alone (``standalone.Replay``): states, decisions, credentials, reviews. What
  it does not allow is a finding, and so is every column of the tables that it does not tell the same.
* The tables are never believed. A row that no entry tells of is a finding, and so is an entry that left no row.
* Where entries are missing or were changed, their request is not compared: that damage is named already.
* A few columns stand in no entry (``channel``, ``form_id``, the engine's own words). ``due_at`` is the clock's, and is
  held to the deadline of the state: a request that is never looked at again would never end.
"""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlmodel import SQLModel, col, select

from storage import standalone
from storage.audit import Damaged, read_entries
from storage.checkpoint import parse_signatures
from storage.database import DatabaseDown, OtherVersion
from storage.models import (
    FINAL,
    Absence,
    Anchor,
    Decision,
    FollowUp,
    Grant,
    Request,
    Review,
    SecondReview,
    SignedHead,
    State,
)
from storage.standalone import LIMIT, Findings, Kind, Replay, Report, read_time
from storage.verify import Walk, check_heads, head_times, trusted
from workflows import absence, ssh_keys
from workflows.asking import steps_of
from workflows.lifecycle import Action

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from sqlmodel import Session

    from storage.standalone import Case, Key
    from storage.standalone import SignedHead as ReadHead

_DEFAULT_HEARTBEAT: Final = timedelta(minutes=5)
_LATE: Final = timedelta(minutes=10)  # what due_at may be past its deadline: back-offs, and issues that take their time
_REMIND_EVERY: Final = timedelta(days=1)
_UNREADABLE: Final = (TypeError, ValueError, LookupError, DBAPIError, DatabaseDown)
_NOT_TOLD: Final = object()


def check_database(
    session: Session,
    *,
    now: datetime,
    keys: Sequence[Key] = (),
    kept: Sequence[tuple[str, bytes]] = (),
    heartbeat: timedelta = _DEFAULT_HEARTBEAT,
    limit: int = LIMIT,
) -> Report:
    """Check the whole live database, inside one :meth:`Database.read`: log, heads, rules, tables.

    ``keys`` are the log's and the witnesses'; ``kept`` are heads that were received elsewhere, each with a name for it;
    ``heartbeat`` is how long the log may be without a new head.
    """
    findings = Findings(limit)
    replay = Replay(findings, is_whole=True)
    wanted = [head.size for _, note in kept if (head := _read(note)) is not None]
    walk = Walk(
        session, findings, replay, heads=head_times(session), patience=heartbeat + standalone.SLACK, wanted=wanted
    )
    walk.run(now=now)
    replay.finish(now)
    unchecked = []
    keys = trusted(session, keys, replay)
    heads = check_heads(session, findings, keys, walk, replay)
    is_known = any(key.kind == standalone.LOG_KEY for key in keys)
    if not heads and is_known and walk.size:
        # Attack: the whole log written anew, and the heads that would show it thrown away.
        findings.add(Kind.UNKNOWN_SIGNATURE, walk.size - 1, "The log has a key, and no head of it is signed.")
    elif not heads:
        unchecked.append("The log has no signed heads.")
    elif not is_known:
        unchecked.append("The log's key is not known here (--vkey): who signed its heads was not checked.")
    for where, note in kept:
        standalone.compare_kept(findings, note, where, walk.roots.get, walk.size)
        if keys:
            standalone.check_note(findings, keys, replay.rotations, where, note)
    _Tables(session, findings, replay, walk.size).compare(keys)
    return Report(walk.size, findings, _head(session, walk.size), tuple(unchecked))


def _read(note: bytes) -> ReadHead | None:
    try:
        return standalone.read_note(note)
    except ValueError:
        return None


def _head(session: Session, size: int) -> tuple[int, bytes] | None:
    if not size:
        return 0, standalone.EMPTY_ROOT
    root = session.execute(text("SELECT root FROM entry WHERE seq = :seq"), {"seq": size - 1}).scalar()
    return (size, root) if isinstance(root, bytes) else None


class _Told(NamedTuple):
    """What the log says of one column."""

    column: str
    value: object


class _Tables:
    """Compares the tables with what the log tells."""

    def __init__(self, session: Session, findings: Findings, replay: Replay, size: int) -> None:
        self._session = session
        self._findings = findings
        self._cases = replay.cases
        self._told = replay.follow_ups
        self._has_holes = replay.has_holes
        self._size = size
        self._broken: set[str] = set()  # keys of rows that cannot be read

    def compare(self, keys: Sequence[Key]) -> None:
        """Compare all of them."""
        rows = {row.id: row for row in self._load(Request, "request")}
        for name in rows.keys() - self._cases.keys():
            self._find(Kind.STATE_WITHOUT_ENTRY, name, "It stands in the table, and no entry tells of it.")
        decisions, grants = self._group(Decision), self._group(Grant)
        reviews = {review.request_id: review for review in self._load(Review, "review")}
        seconds = {second.request_id: second for second in self._load(SecondReview, "second_review")}
        for name, case in self._cases.items():
            row = rows.get(name)
            if row is None:
                if name not in self._broken:
                    self._find(Kind.ENTRY_WITHOUT_STATE, name, "The log tells of it, and the table does not have it.")
            elif not case.is_partial:
                self._request(row, case)
            if not case.is_partial:
                self._decisions(decisions.pop(name, []), case)
                self._grants(grants.pop(name, []), case)
                self._review(reviews.pop(name, None), case)
                self._second(seconds.pop(name, None), case)
        for name in {*decisions, *grants, *reviews, *seconds} - self._cases.keys():
            self._find(Kind.STATE_WITHOUT_ENTRY, name, "A table has records of it, and no entry tells of it.")
        self._follow_ups()
        self._absences()
        self._payloads()
        self._tail(rows.values())
        self._anchors(keys)

    # Reading.

    def _load(self, model: Any, what: str) -> list[Any]:  # noqa: ANN401 - a table
        """Return a table's rows; those that cannot be read are findings."""
        try:
            return list(self._session.exec(select(model)))
        except OtherVersion:
            raise  # no row is at fault
        except _UNREADABLE:
            pass
        found = []
        table = SQLModel.metadata.tables[what]
        name = "id" if "id" in table.columns else "request_id"
        for (key,) in list(self._session.execute(text(f'SELECT "{name}" FROM "{what}"'))):
            try:
                found.append(self._session.exec(select(model).where(col(getattr(model, name)) == key)).one())
            except _UNREADABLE:
                about = str(key) if what in {"request", "review", "second_review"} else None
                self._broken.add(str(key))
                self._findings.add(
                    Kind.STATE_WITHOUT_ENTRY, None, f"A row of the table {what} cannot be read ({key}).", about
                )
        return found

    def _group(self, model: Any) -> dict[str, list[Any]]:  # noqa: ANN401 - a table
        groups: dict[str, list[Any]] = {}
        for row in self._load(model, str(model.__tablename__)):
            groups.setdefault(row.request_id, []).append(row)
        return groups

    # Saying.

    def _find(self, kind: Kind, about: Case | str, sentence: str, seq: int | None = None) -> None:
        if isinstance(about, str):
            case = self._cases.get(about)
            self._findings.add(kind, case.last_seq if case and seq is None else seq, sentence, about)
        else:
            self._findings.add(kind, about.last_seq if seq is None else seq, sentence, about.name)

    def _compare(self, what: str, row: object, told: Sequence[_Told], case: Case, seq: int | None = None) -> None:
        for column, value in told:
            stored = getattr(row, column)
            if value is not _NOT_TOLD and stored != value:
                self._find(
                    Kind.STATE_WITHOUT_ENTRY,
                    case,
                    f"{what}: the table says {column} = {_quote(stored)}, and the log tells {_quote(value)}.",
                    seq,
                )

    # Each table.

    def _request(self, row: Request, case: Case) -> None:
        opened = case.opened
        threshold = opened.get("threshold")
        told = [
            _Told("state", case.state),
            _Told("version", case.version),
            _Told("state_version", case.state_version),
            _Told("last_seq", case.last_seq),
            _Told("team", case.team),
            _Told("requester", case.requester),
            _Told("drill", case.drill),
            *(_Told(name, opened.get(name)) for name in ("account", "level", "reason", "standard_path", "incident")),
            _Told("threshold", threshold.get("id") if isinstance(threshold, dict) else None),
            _Told("policy_hash", case.policy),
            _Told("quorum", opened.get("quorum")),
            _Told("custodians", opened.get("custodians")),
            _Told("deputies", opened.get("deputies")),
            _Told("asking", opened.get("asking")),
            _Told("asked_steps", self._asked(row, case)),
            _Told("asked_seconds", case.asked_seconds),
            _Told("granted_seconds", case.granted_seconds),
            _Told("opened_at", _time(case.opened_at)),
            _Told("state_at", _time(case.state_at)),
            _Told("lapse_at", case.lapse if case.lapse_is_told else _NOT_TOLD),
            _Told("expires_at", case.expires),
            _Told("warned_at", _time(case.warned)),
            _Told("review_due_at", case.review_due),
            _Told("review_owner", case.review_owner),
            _Told("review_escalated_at", _time(case.review_escalated)),
            _Told("reviews_needed", opened.get("reviews_needed")),
            _Told("attempts", case.attempts),
            _Told("ended_by", case.ended_by),
            _Told("ended_by_user", case.ended_by_user),
        ]
        self._compare("Request", row, told, case)
        # Attack: somebody else's key put under an approved request. The log has the fingerprint of the one approved.
        if (ssh_keys.fingerprint(row.public_key) if row.public_key is not None else None) != opened.get(
            "key_fingerprint"
        ):
            self._find(Kind.STATE_WITHOUT_ENTRY, case, "Request: the table has another public key than the log.")
        self._due(row, case)

    def _asked(self, row: Request, case: Case) -> object:
        """Return how many steps of asking the log tells of, while it matters: who counts as asked is called no more."""
        if row.asked_steps is None or case.state != State.PENDING:
            return _NOT_TOLD
        made = sum(step.at <= row.opened_at for step in steps_of(row))
        query = text("SELECT COUNT(*) FROM entry WHERE request_id = :name AND event = :event")
        later = self._session.execute(query, {"name": row.id, "event": Action.ESCALATE.value}).scalar()
        return made + int(later or 0)

    def _due(self, row: Request, case: Case) -> None:
        """Hold ``due_at`` to the state's deadline: what is never due is never ended, lapsed or reminded of."""
        last = _time(case.at)
        deadline: datetime | None
        match case.state:
            case State.PENDING | State.APPROVED:
                deadline = row.lapse_at
            case State.ACTIVE:
                deadline = case.expires
            case State.ENDING:
                deadline = last
            case State.ENDED:
                deadline = max(filter(None, (case.review_due, last and last + _REMIND_EVERY)), default=None)
            case _:
                deadline = None
        if (case.state in FINAL) is not (row.due_at is None):
            what = "is over, and the clock still looks at it" if row.due_at else "is open, and the clock never looks"
            self._find(Kind.STATE_WITHOUT_ENTRY, case, f"Request: it {what}: due_at = {_quote(row.due_at)}.")
        elif row.due_at is not None and deadline is not None and row.due_at > deadline + _LATE:
            self._find(
                Kind.STATE_WITHOUT_ENTRY,
                case,
                f"Request: the clock looks at it at {_quote(row.due_at)}, and its deadline is {_quote(deadline)}.",
            )

    def _decisions(self, rows: list[Decision], case: Case) -> None:
        stored = {(row.team, row.person, row.answer): row for row in rows}
        for said in case.decisions:
            row = stored.pop((said.team, said.person, said.answer), None)
            if row is None:
                self._find(
                    Kind.ENTRY_WITHOUT_STATE,
                    case,
                    f"Decision: the table lacks {said.person}'s {said.answer}.",
                    said.seq,
                )
                continue
            told = (
                _Told("granted_seconds", said.seconds),
                _Told("reason", said.reason),
                _Told("step_up", said.step_up),
                _Told("policy_hash", said.policy),
                _Told("at", _time(said.at)),
            )
            self._compare("Decision", row, told, case, said.seq)
        for row in stored.values():
            self._find(
                Kind.STATE_WITHOUT_ENTRY,
                case,
                f"Decision: the table has {_quote(row.person)}'s {row.answer}, and no entry tells of it.",
            )

    def _grants(self, rows: list[Grant], case: Case) -> None:
        stored = {row.number: row for row in rows}
        for number, grant in case.grants.items():
            row = stored.pop(number, None)
            if row is None:
                self._find(Kind.ENTRY_WITHOUT_STATE, case, f"Grant: the table lacks credential {number}.")
                continue
            told = [
                _Told("intended_at", _time(grant.intended)),
                _Told("accessor_at", _time(grant.token)),
                _Told("issued_at", _time(grant.issued)),
                _Told("ended_at", _time(grant.ended)),
                _Told("expires_at", grant.expires),
                _Told("lease_id", grant.lease),
                _Told("identity", grant.identity),
                _Told("path", grant.path or _NOT_TOLD),
                _Told("capture_source", grant.capture if grant.issued else _NOT_TOLD),
                _Told("delivery", grant.delivery),
                _Told("open_until", grant.open_until),
                _Told("opened_at", _time(grant.opened)),
                _Told("unopened_at", _time(grant.unopened)),
            ]
            self._compare(f"Credential {number}", row, told, case)
            for accessor, told_hash in ((row.accessor, grant.accessor), (row.wrap_accessor, grant.wrapping)):
                hashed = hashlib.sha256(accessor.encode()).hexdigest() if isinstance(accessor, str) else None
                if hashed != told_hash:
                    self._find(
                        Kind.STATE_WITHOUT_ENTRY,
                        case,
                        f"Credential {number}: the table has another accessor than the log.",
                    )
        for number in stored:
            self._find(
                Kind.STATE_WITHOUT_ENTRY, case, f"Grant: the table has credential {number}, and no entry tells of it."
            )

    def _review(self, row: Review | None, case: Case) -> None:
        if case.review is None:
            if row is not None:
                self._find(Kind.STATE_WITHOUT_ENTRY, case, "Review: the table has one, and no entry tells of it.")
            return
        team, person, answers, at = case.review
        if row is None:
            self._find(Kind.ENTRY_WITHOUT_STATE, case, "Review: the table lacks it.")
            return
        names = [*("threshold_met", "standard_path_enough", "used_as_stated", "outcome", "findings", "follow_ups")]
        names += ["threshold_why", "standard_path_why"]
        told = [_Told("team", team), _Told("reviewer", person), _Told("filed_at", _time(at))]
        told += [_Told(name, answers.get(name)) for name in names]
        self._compare("Review", row, told, case)

    def _second(self, row: SecondReview | None, case: Case) -> None:
        if case.second is None or row is None:
            if row is not None:
                self._find(Kind.STATE_WITHOUT_ENTRY, case, "Second review: the table has one, and no entry tells.")
            elif case.second is not None:
                self._find(Kind.ENTRY_WITHOUT_STATE, case, "Second review: the table lacks it.")
            return
        team, person, answers, at = case.second
        told = [_Told("team", team), _Told("reviewer", person), _Told("filed_at", _time(at))]
        told += [_Told(name, answers.get(name)) for name in ("outcome", "findings")]
        self._compare("Second review", row, told, case)

    def _follow_ups(self) -> None:
        """Hold what is to be done to the entries that ask for it, and that say that it is done."""
        rows = {row.id: row for row in self._load(FollowUp, "follow_up")}
        for name, told in self._told.items():
            about = self._cases.get(told.request or "")
            row = rows.pop(name, None)
            if about is not None and about.is_partial:
                continue
            if row is None:
                self._findings.add(Kind.ENTRY_WITHOUT_STATE, None, f"Follow-up: the table lacks {name}.", told.request)
                continue
            said = [("what", told.what), ("owner", told.owner), ("due", told.due), ("note", told.note)]
            said += [("closed_at", _time(told.closed_at)), ("closed_by", told.closed_by)]
            for column, value in said:
                if getattr(row, column) != value:
                    self._findings.add(
                        Kind.STATE_WITHOUT_ENTRY,
                        None,
                        f"Follow-up {name}: the table says {column} = {_quote(getattr(row, column))}, and the log "
                        f"tells {_quote(value)}.",
                        told.request,
                    )
        for name, row in rows.items():
            case = self._cases.get(row.request_id or "")
            if (case is None or not case.is_partial) and not self._has_holes:
                self._findings.add(
                    Kind.STATE_WITHOUT_ENTRY,
                    None,
                    f"Follow-up: the table has {name}, and no entry tells of it.",
                    row.request_id,
                )

    def _absences(self) -> None:
        """Hold who is away, and who stands in, to what they said."""
        try:
            records = read_entries(self._session, events=(absence.AWAY, absence.BACK))
        except Damaged:
            return  # named already
        for row in absence.unexplained(self._load(Absence, "absence"), records):
            sentence = f"Absence: the table says that {_quote(row.person)} is away, and the log does not tell it so."
            self._findings.add(Kind.STATE_WITHOUT_ENTRY, None, sentence)

    def _payloads(self) -> None:
        """Check that what stands beside the log is what its hash in the log says."""
        query = text("SELECT sha256, body, last_seq FROM payload ORDER BY last_seq")
        for name, body, seq in self._session.execute(query.execution_options(yield_per=100)):
            if not isinstance(body, bytes | memoryview) or hashlib.sha256(body).hexdigest() != name:
                self._findings.add(Kind.ALTERED, seq, f"The statement beside it was changed ({str(name)[:12]}…).")

    # Who else has seen the log.

    def _tail(self, rows: Collection[Request]) -> None:
        """Whether something speaks of entries that are not there: then the end was cut off."""
        seen = [(row.last_seq, f"the request {row.id}") for row in rows if isinstance(row.last_seq, int)]
        for query, who in (
            ("SELECT MAX(seq) FROM feed", "a follower"),
            ("SELECT MAX(last_seq) FROM post", "a post in Slack"),
        ):
            newest = self._session.execute(text(query)).scalar()
            if isinstance(newest, int):
                seen.append((newest, who))
        beyond = [one for one in seen if one[0] >= self._size]
        if beyond:
            seq, who = max(beyond)
            self._findings.add(
                Kind.TRUNCATED,
                self._size,
                f"It is missing: {who} has seen entry {seq}, and the log ends with entry {self._size - 1}.",
            )

    def _anchors(self, keys: Sequence[Key]) -> None:
        """Check what came back from outside for a head: witnesses' lines, and the hash in time stamps."""
        known = {(key.name, key.key_id): key for key in keys}
        for anchor, head in self._anchored():
            where = f"What {anchor.follower} answered for signed head {anchor.head_id}"
            if head is None:
                self._findings.add(Kind.STATE_WITHOUT_ENTRY, None, f"{where} is about a head that is not there.")
                continue
            read = _read(head.note)
            if read is None:
                continue  # named already
            newest = read.size - 1 if read.size else None
            if anchor.kind == "timestamp":
                if hashlib.sha256(head.note).digest() not in anchor.data:
                    self._findings.add(Kind.FORKED, newest, f"{where} is a time stamp of something else.")
                continue
            try:
                lines = parse_signatures(anchor.data)
            except ValueError as error:
                self._findings.add(Kind.ALTERED, newest, f"{where} cannot be read: {error}.")
                continue
            for line in lines:
                key = known.get((line.name, line.key_id))
                signature = standalone.Signature(line.name, line.key_id, line.data)
                if key is not None and not standalone.check_signature(key, signature, read.text):
                    self._findings.add(Kind.BAD_SIGNATURE, newest, f"{where} is not {key.name}'s signature of it.")

    def _anchored(self) -> Iterator[tuple[Anchor, SignedHead | None]]:
        query = select(Anchor, SignedHead).join(SignedHead, col(SignedHead.id) == Anchor.head_id, isouter=True)
        yield from self._session.exec(query.order_by(col(Anchor.id))).all()


def _time(words: str | None) -> datetime | None:
    return read_time(words) if words is not None else None


def _quote(value: object) -> str:
    """Say a value in a finding; long ones are cut."""
    words = value.isoformat() if isinstance(value, datetime) else str(value)
    return words if len(words) <= 60 else f"{words[:60]}…"
