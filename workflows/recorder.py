"""How does a line of a target's log become an entry of ours?

Rules
-----
* A line is attributed by the identity that the grant carries, and by nothing that the responder could write. One that
  carries our mark, and that no grant explains, is a stranger: an alarm.
* What is stored is redacted; of the raw line only its hash and its place stay.
* A line counts once: its key is written in the transaction that appends its entry. A batch may come twice, in parts,
  or to two bots at once.
* A line that cannot be read stops nothing: it is counted, and the entry says where the first one stands.
* Lines about nobody leave no trace. That they came is the source's heartbeat, and so is an empty batch.
* All reading and judging happens before the writer's lock is taken, and the lock is given back between two portions:
  a flood of statements does not hold up who presses Revoke.
* While a portion is written, the next one is read: of a flood the database's time and ours pass side by side. They are
  written one after the other, in their order.
"""

from __future__ import annotations

import hashlib
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from storage.audit import SYSTEM, Draft, append_all, write_time
from storage.commands import GAP, OTHER_CLOCK, RUN, STOP, STRANGER
from storage.models import CaptureSession, CaptureSource, CaptureUse, Payload
from workflows.attribution import Owner, Owners
from workflows.capture_watch import UP, close, new_use, say_of_source, tell_findings, touch
from workflows.captures import CAPTURES
from workflows.captures.classify import classify
from workflows.captures.redaction import redact
from workflows.captures.seam import Kind, Line, Unreadable
from workflows.door import database_errors
from workflows.errors import Invalid
from workflows.trial import SEEN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Future
    from datetime import datetime

    from sqlmodel import Session

    from storage.audit import JSON, Actor
    from storage.database import Database, Write
    from workflows.capture_rules import SourceRules
    from workflows.captures.seam import Capture
    from workflows.policy import Policy

log = logging.getLogger(__name__)

UNREADABLE: Final = "capture:unreadable"

MOST_TEXT: Final = 32_768  # bytes of a statement, as JSON writes it, in an entry; the rest stands beside the log
_MOST_ARGV: Final = 8_192
_MOST_ALARM: Final = 1_000
_MOST_WORD: Final = 200  # characters of a name
_AT_ONCE: Final = 500  # lines in one transaction
_MOST_LISTED: Final = 100  # gaps of a session, holes of it, other databases of a request
_COUNTED: Final = frozenset({Kind.OPENED, Kind.CLOSED, Kind.HOLE, Kind.NOTE})  # they are no entries of their own
_HEARTBEAT: Final = timedelta(seconds=1)  # is not written down more often
_DIALECTS: Final = {"mariadb": "mysql"}  # of sqlglot, where it is not PostgreSQL's


@dataclass(frozen=True, slots=True)
class Raw:
    """A line as it stands in a file of the source: without its end, and where it begins."""

    file: str
    offset: int
    line: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Gap:
    """Lines that were destroyed before they could be read; ``first`` and ``last`` are offsets, as far as known."""

    file: str
    why: str
    first: int | None = None
    last: int | None = None


@dataclass(frozen=True, slots=True)
class Taken:
    """How many lines and gaps were new, and how many were known already."""

    taken: int
    known: int


@dataclass(frozen=True, slots=True)
class _Read:
    """A raw line with what it says; ``lines`` is None when it cannot be read."""

    raw: Raw
    key: bytes
    lines: tuple[Line, ...] | None


@dataclass(slots=True)
class _Told:
    """A line that is somebody's, ready to be an entry. ``draft`` is None for one that only counts."""

    read: _Read
    line: Line
    owner: Owner | None
    draft: Draft | None
    whole: bytes | None = None  # the text, redacted, when the entry holds only its beginning
    trial: str | None = None  # the rehearsal of a level that did it


@dataclass(frozen=True, slots=True)
class _Portion:
    """Some lines of a batch that were read and judged, each by its key."""

    reads: dict[bytes, _Read]
    told: list[_Told]
    unread: list[_Read]
    ours: set[bytes]
    gaps: dict[bytes, Gap]
    known: set[bytes]
    doubled: int  # lines that stand in it twice
    is_wanted: bool  # there is something to write down, if only that the source was heard of


class Recorder:
    """Takes in what the sources send. Safe to share by threads, and by several bots on one database."""

    def __init__(self, database: Database, policy: Callable[[], Policy]) -> None:
        self.database = database
        self._policy = policy

    def take(self, source: str, lines: Sequence[Raw | Gap], now: datetime) -> Taken:
        """Record what is ours of a batch, in its order. Nothing in it may be lost afterwards: it is on the disk.

        Raises :class:`Invalid` for a source that the policy does not name, :class:`Unavailable` when the database does
        not answer: then a part of the batch may be recorded already, and the same batch is to be sent again.
        """
        policy = self._policy()
        rules = policy.captures.get(source)
        if rules is None:
            raise Invalid("The policy names no such source of commands.", code="unknown_source")
        portions = [lines[at : at + _AT_ONCE] for at in range(0, max(len(lines), 1), _AT_ONCE)]
        if len(portions) == 1:
            known = self._write(rules, self._read(policy, rules, lines, now), now)
        else:
            known = 0
            with ThreadPoolExecutor(1, thread_name_prefix="recorder") as writer:
                written: Future[int] | None = None
                for portion in portions:
                    read = self._read(policy, rules, portion, now)
                    known += written.result() if written else 0
                    written = writer.submit(self._write, rules, read, now)
                known += written.result() if written else 0
        return Taken(len(lines) - known, known)

    def _read(self, policy: Policy, rules: SourceRules, portion: Sequence[Raw | Gap], now: datetime) -> _Portion:
        """Read and judge a portion."""
        capture = CAPTURES[rules.kind]
        gaps = {_key(rules.name, gap.file, f"{gap.first} {gap.last}", gap.why.encode()): gap for gap in _gaps(portion)}
        reads: dict[bytes, _Read] = {}
        for raw in portion:
            if isinstance(raw, Raw):
                key = _key(rules.name, raw.file, str(raw.offset), raw.line)
                reads.setdefault(key, _Read(raw, key, _lines(capture, raw)))
        # A line about nobody needs no further look.
        telling = {key: read for key, read in reads.items() if read.lines is None or read.lines}
        with database_errors(), self.database.read() as session:
            heard = session.get(CaptureSource, rules.name)
            known = _known(session, (*telling, *gaps))
            owners = Owners(session, policy, (line for read in telling.values() for line in read.lines or ()))
        fresh = [read for key, read in telling.items() if key not in known]
        told = [one for read in fresh for one in _tell(rules, capture, read, owners)]
        unread = [read for read in fresh if read.lines is None]
        ours = {one.read.key for one in told} | {read.key for read in unread}
        gaps = {key: gap for key, gap in gaps.items() if key not in known}
        doubled = len(portion) - len(reads) - len(gaps)
        is_fresh = heard is not None and heard.seen_at is not None and now - heard.seen_at < _HEARTBEAT
        is_wanted = bool(ours or gaps) or not is_fresh or (heard is not None and heard.down_since is not None)
        return _Portion(reads, told, unread, ours, gaps, known, doubled, is_wanted)

    def _write(self, rules: SourceRules, portion: _Portion, now: datetime) -> int:
        """Record a portion that was read; return how many of it were known."""
        known = portion.known
        if portion.is_wanted:
            with database_errors(), self.database.write() as session:
                batch = _Batch(session, rules, now)
                batch.hear()
                # Another bot may have been quicker, with the same lines; or the portion before, with a doubled one.
                raced = _known(session, (*portion.ours, *portion.gaps))
                batch.record([one for one in portion.told if one.read.key not in raced])
                batch.record_unreadable([read for read in portion.unread if read.key not in raced])
                batch.record_gaps({key: gap for key, gap in portion.gaps.items() if key not in raced})
                known |= raced
        return portion.doubled + sum(key in known for key in portion.reads)


# --- reading -------------------------------------------------------------------------------------------------------


def _gaps(portion: Iterable[Raw | Gap]) -> Iterator[Gap]:
    return (one for one in portion if isinstance(one, Gap))


def _key(source: str, file: str, place: str, line: bytes) -> bytes:
    # Lengths first, or a file's name could end like another one's place begins.
    head = f"{len(source)}:{source}{len(file)}:{file}{len(place)}:{place}"
    return hashlib.sha256(head.encode("utf-8", "surrogatepass") + line).digest()


def _lines(capture: Capture, raw: Raw) -> tuple[Line, ...] | None:
    try:
        return capture.read(raw.line)
    except Unreadable:
        return None
    except Exception:
        # Attack: a line that a reader stumbles over would stop the source, for it is sent again until it is taken.
        log.exception("a line of a source could not be read: %s at %d", raw.file, raw.offset)
        return None


def _known(session: Session, keys: Sequence[bytes]) -> set[bytes]:
    """Return which of the keys are kept already. Past SQLAlchemy, which takes longer over the list than the query."""
    if not keys:
        return set()
    connection = session.connection()
    values: tuple[Any, ...]
    if connection.dialect.name == "sqlite":
        places, values = f"IN ({','.join('?' * len(keys))})", tuple(keys)
    else:
        places, values = "= ANY(%s)", (list(keys),)
    return set(connection.exec_driver_sql(f"SELECT key FROM capture_line WHERE key {places}", values).scalars())


# --- telling -------------------------------------------------------------------------------------------------------


def _tell(rules: SourceRules, capture: Capture, read: _Read, owners: Owners) -> Iterator[_Told]:
    """Give what is ours of a raw line."""
    for line in read.lines or ():
        owner = owners.of(line)
        if owner is not None:
            yield _told(rules, capture, read, line, owner)
        elif (trial := owners.trial(line)) is not None:
            # That a rehearsal is seen is all that is said of it: its statements are the bot's own.
            data: dict[str, JSON] = {"name": trial, "source": rules.name, "kind": line.kind.value}
            is_use = line.kind not in _COUNTED
            yield _Told(read, line, None, Draft(SEEN, SYSTEM, None, data) if is_use else None, trial=trial)
        elif owners.is_stranger(line):
            yield _told(rules, capture, read, line, None)


def _told(rules: SourceRules, capture: Capture, read: _Read, line: Line, owner: Owner | None) -> _Told:
    if line.kind in _COUNTED:
        return _Told(read, line, owner, None)
    clean = redact(line.text, line.argv)
    judged = classify(line.kind, line.text, line.argv, _DIALECTS.get(rules.kind, "postgres"))
    whole_text = _storable(clean.text)
    text, argv = _cut(whole_text, MOST_TEXT), _cut_argv(clean.argv)
    whole = whole_text.encode() if len(text) < len(whole_text) or len(argv) < len(clean.argv) else None
    data: dict[str, JSON] = {
        "source": rules.name,
        "kind": line.kind.value,
        "trust": capture.trust.value,
        "at": write_time(line.at),
        "identity": _word(owner.name if owner else line.identity),
        "session": _word(line.session),
        "number": line.number,
        "text": text,
        "argv": list(argv) or None,
        "database": _word(line.database),
        "result": _word(line.result),
        "rows": line.rows,
        "redacted": clean.count or None,
        "class": judged.cls.value,
        "danger": judged.danger,
        "line_hash": hashlib.sha256(read.raw.line).hexdigest(),
        "position": _position(read.raw),
        "payload": {"sha256": hashlib.sha256(whole).hexdigest(), "bytes": len(whole)} if whole is not None else None,
    }
    data = {name: value for name, value in data.items() if value is not None}
    event = STOP if line.kind is Kind.STOPPED else RUN
    draft = Draft(event, owner.actor, owner.request_id, data) if owner else Draft(STRANGER, SYSTEM, None, data)
    return _Told(read, line, owner, draft, whole)


@lru_cache(4096)
def _word(name: str | None) -> str | None:
    """Return a name of the target's as it may stand in a table and in an entry."""
    if name is None:
        return None
    return _storable(name[:_MOST_WORD]).replace("\x00", "\ufffd")


def _position(raw: Raw) -> str:
    return f"{_word(raw.file)}:{raw.offset}"


def _storable(text: str) -> str:
    """Return a text that has a UTF-8: half a surrogate pair has none."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _cut(text: str, most: int) -> str:
    """Return the beginning of a text that takes at most ``most`` bytes where JSON writes it."""
    if len(text) * 6 <= most:  # a control character takes six
        return text
    text = text[:most]
    while (size := len(json.dumps(text, ensure_ascii=False).encode("utf-8", "replace"))) > most:
        text = text[: min(len(text) - 1, len(text) * most // size)]
    return text


def _cut_argv(argv: Sequence[str]) -> tuple[str, ...]:
    kept: list[str] = []
    left = _MOST_ARGV
    for word in map(_storable, argv):
        left -= 6 * len(word) + 3
        if left < 0:
            break
        kept.append(word)
    return tuple(kept)


# --- writing -------------------------------------------------------------------------------------------------------


class _Batch:
    """One portion, in its transaction."""

    def __init__(self, session: Write, rules: SourceRules, now: datetime) -> None:
        self._session = session
        self._rules = rules
        self._now = now

    def hear(self) -> None:
        """Note that the source was heard of; one that was down is up again."""
        heard = self._session.get(CaptureSource, self._rules.name)
        if heard is None:
            heard = CaptureSource(name=self._rules.name, known_at=self._now)
        if heard.seen_at is None or heard.seen_at < self._now:
            heard.seen_at = self._now
        since, heard.down_since = heard.down_since, None
        self._session.add(heard)
        if since is not None:
            say_of_source(self._session, UP, self._rules.name, {"since": write_time(since)}, now=self._now)

    def record(self, told: Sequence[_Told]) -> None:
        """Append the entries of these lines, count them, and keep their keys."""
        if not told:
            return
        ours = [(one, one.draft) for one in told if one.owner is not None and one.draft is not None]
        alarms = self._alarms([one for one in told if one.owner is None and one.trial is None])
        # One for each rehearsal and batch, under the name that it has at the target.
        alarms |= {one.line.identity: one.draft for one in told if one.trial is not None and one.draft is not None}
        entries = append_all(self._session, [*(draft for _, draft in ours), *alarms.values()], at=self._now)
        touch(self._session, entries)
        seqs: dict[bytes, int | None] = {}
        for (one, _), entry in zip(ours, entries, strict=False):
            seqs[one.read.key] = entry.seq
            if one.whole is not None:
                self._keep(one.whole, entry.seq)
        said = dict(zip(alarms, (entry.seq for entry in entries[len(ours) :]), strict=True))
        for one in told:
            if one.owner is None:
                seqs[one.read.key] = said.get(one.line.identity)
        self._keep_keys({one.read.key: seqs.get(one.read.key) for one in told})
        self._count_sessions([(one, one.owner) for one in told if one.owner is not None])
        self._count_uses([(one, one.owner) for one in told if one.owner is not None])

    def record_unreadable(self, reads: Sequence[_Read]) -> None:
        """Say how many lines could not be read, and where the first one stands."""
        if not reads:
            return
        first = reads[0].raw
        data: dict[str, JSON] = {
            "source": self._rules.name,
            "count": len(reads),
            "position": _position(first),
            "line_hash": hashlib.sha256(first.line).hexdigest(),
        }
        (entry,) = append_all(self._session, [Draft(UNREADABLE, SYSTEM, None, data)], at=self._now)
        self._keep_keys({read.key: entry.seq for read in reads})

    def record_gaps(self, gaps: Mapping[bytes, Gap]) -> None:
        """Say which lines were lost."""
        for key, gap in gaps.items():
            data: dict[str, JSON] = {"file": _word(gap.file), "why": _word(gap.why), "from": gap.first, "to": gap.last}
            data = {name: value for name, value in data.items() if value is not None}
            first, *_ = say_of_source(self._session, GAP, self._rules.name, data, now=self._now)
            self._keep_keys({key: first.seq})

    # Parts of it.

    def _alarms(self, told: Sequence[_Told]) -> dict[str, Draft]:
        """Give one alarm for each stranger, by its name: with what it did first, and how much it did."""
        groups: dict[str, list[_Told]] = {}
        for one in told:
            groups.setdefault(one.line.identity, []).append(one)
        drafts = {}
        for identity, group in groups.items():
            first = next((one for one in group if one.draft is not None), group[0])
            data: dict[str, JSON] = (
                dict(first.draft.data)
                if first.draft is not None
                else {
                    "source": self._rules.name,
                    "kind": first.line.kind.value,
                    "at": write_time(first.line.at),
                    "identity": _word(identity),
                    "position": _position(first.read.raw),
                    "line_hash": hashlib.sha256(first.read.raw.line).hexdigest(),
                }
            )
            data["count"] = len(group)
            data["text"] = _cut(str(data.get("text", "")), _MOST_ALARM)
            data.pop("argv", None)
            data.pop("payload", None)
            key = (self._rules.name, "", _word(identity) or "")
            if self._session.get(CaptureSession, key) is not None:
                data["again"] = True
            else:
                self._session.add(_new_session(*key, None))
            drafts[identity] = Draft(STRANGER, SYSTEM, None, data)
        return drafts

    def _keep(self, body: bytes, seq: int) -> None:
        """Keep a text that is too long for its entry."""
        name = hashlib.sha256(body).hexdigest()
        kept = self._session.get(Payload, name)
        if kept is None:
            kept = Payload(sha256=name, body=body, last_seq=seq)
        kept.last_seq = seq
        self._session.add(kept)

    def _keep_keys(self, keys: Mapping[bytes, int | None]) -> None:
        self._session.insert_many("capture_line", {"key": "bytea", "seq": "bigint"}, list(keys.items()))

    def _count_sessions(self, told: Sequence[tuple[_Told, Owner]]) -> None:
        tallies: dict[tuple[str, str], tuple[CaptureSession, _Tally, Actor]] = {}
        for one, owner in told:
            key = (_word(one.line.session) or "", _word(owner.name) or "")
            found = tallies.get(key)
            if found is None:
                row = self._session.get(CaptureSession, (self._rules.name, *key))
                row = row or _new_session(self._rules.name, *key, owner.request_id)
                found = tallies[key] = (row, _Tally(row), owner.actor)
            found[1].count(one.line)
        for row, tally, _ in tallies.values():
            tally.write(row)
            row.told = False
            self._session.add(row)
        self._session.flush()
        ended = [(row, actor) for row, _, actor in tallies.values() if row.closed_at is not None]
        if ended:
            close(self._session, ended, now=self._now)

    def _count_uses(self, told: Sequence[tuple[_Told, Owner]]) -> None:
        groups: dict[str, list[tuple[_Told, Owner]]] = {}
        for one, owner in told:
            groups.setdefault(owner.request_id, []).append((one, owner))
        for request_id, group in groups.items():
            use = self._session.get(CaptureUse, (request_id, self._rules.name))
            if use is None and all(one.draft is None for one, _ in group):
                continue  # it is not the level's own source: of its silence nothing follows
            use = use or new_use(request_id, self._rules.name, self._now)
            before = (use.late > 0, len(use.elsewhere))
            _count_use(use, group)
            use.touched_at, use.settled_at = self._now, None
            self._session.add(use)
            self._session.flush()
            if before != (use.late > 0, len(use.elsewhere)):
                tell_findings(self._session, use, group[0][1].actor, now=self._now)


def _count_use(use: CaptureUse, group: Sequence[tuple[_Told, Owner]]) -> None:
    runs = [(one.line, owner) for one, owner in group if one.draft is not None and one.draft.event == RUN]
    if runs:
        use.commands += len(runs)
        first, last = min(line.at for line, _ in runs), max(line.at for line, _ in runs)
        use.first_at, use.last_at = min(use.first_at or first, first), max(use.last_at or last, last)
        use.late += sum(owner.ended_at is not None and line.at > owner.ended_at + OTHER_CLOCK for line, owner in runs)
    use.stopped = use.stopped or any(one.line.kind is Kind.STOPPED for one, _ in group)
    elsewhere = {
        _word(one.line.database) or ""
        for one, owner in group
        if one.line.database and owner.database and one.line.database != owner.database
    }
    if fresh := sorted(elsewhere.difference(use.elsewhere)):
        use.elsewhere = [*use.elsewhere, *fresh][:_MOST_LISTED]


def _new_session(source: str, session: str, identity: str, request_id: str | None) -> CaptureSession:
    return CaptureSession(
        source=source, session=session, identity=identity, request_id=request_id, missing=[], holes=[]
    )


class _Tally:
    """A session's row while a portion is counted into it: past the object mapper, which takes its time."""

    _COLUMNS: Final = (
        *("commands", "opened_at", "closed_at", "first_at", "last_at", "first_number", "last_number"),
        *("missing", "holes", "stopped"),
    )

    def __init__(self, row: CaptureSession) -> None:
        self.commands, self.stopped = row.commands, row.stopped
        self.opened_at, self.closed_at, self.first_at, self.last_at = (
            row.opened_at,
            row.closed_at,
            row.first_at,
            row.last_at,
        )
        self.first_number, self.last_number = row.first_number, row.last_number
        self.missing, self.holes = list(row.missing), list(row.holes)

    def write(self, row: CaptureSession) -> None:
        """Put it back."""
        for name in self._COLUMNS:
            setattr(row, name, getattr(self, name))

    def count(self, line: Line) -> None:
        """Count a line. Lines may come late, and in any order."""
        if line.kind is Kind.OPENED:
            self.opened_at = min(self.opened_at or line.at, line.at)
            if line.number is not None:
                # A session's count begins here, whatever was said of it before.
                self.first_number, self.last_number = line.number, max(self.last_number or 0, line.number)
                self.missing = [part for part in self.missing if part[0] > line.number]
        elif line.kind is Kind.CLOSED:
            self.closed_at = max(self.closed_at or line.at, line.at)
        elif line.kind is Kind.HOLE:
            hole = _word(line.text) or ""
            if hole not in self.holes and len(self.holes) < _MOST_LISTED:
                self.holes.append(hole)
        elif line.kind is Kind.STOPPED:
            self.stopped = True
        elif line.kind is not Kind.NOTE:
            self.commands += 1
            self.first_at = min(self.first_at or line.at, line.at)
            self.last_at = max(self.last_at or line.at, line.at)
        if line.number is not None:
            self._number(line.number)

    def _number(self, number: int) -> None:
        """Note a line's number: what was skipped is missing until it comes."""
        if self.first_number is None or self.last_number is None:
            self.first_number = self.last_number = number
        elif number > self.last_number:
            if number > self.last_number + 1 and len(self.missing) < _MOST_LISTED:
                self.missing.append([self.last_number + 1, number - 1])
            self.last_number = number
        elif number < self.first_number:
            if self.opened_at is not None:
                return
            if number < self.first_number - 1 and len(self.missing) < _MOST_LISTED:
                self.missing.insert(0, [number + 1, self.first_number - 1])
            self.first_number = number
        elif self.missing:
            parts = []
            for first, last in self.missing:
                if not first <= number <= last:
                    parts.append([first, last])
                    continue
                parts += [part for part in ([first, number - 1], [number + 1, last]) if part[0] <= part[1]]
            self.missing = parts
