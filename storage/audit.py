"""What happened, in what order, and is the record still what was written?

Rules
-----
* An entry is appended in the transaction that changes the state it tells of (:meth:`Database.write`), or not at all.
* Its body is canonical JSON, stored verbatim as bytes. It is hashed as stored and never serialised again to verify.
* The sequence begins at 0 and has no gap. Each entry carries its RFC 6962 leaf hash and the root of the log through it.
* The columns beside the body repeat it for queries; where they differ from it, the log was tampered with.
* Reading is strict: what the canonical writer would not have written is not an entry.
* A body that was pruned is gone for good (``pruning.py``): such an entry is read from its columns, as a
  :class:`Record` that is pruned. It counts only where the log says that it was pruned.

The format is described for other implementers in ``FORMAT.md``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, TypeAlias

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from storage import merkle, pruning
from storage.models import Entry, Pruned

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from sqlmodel import Session

    from storage.database import Write

# SQLite keeps any value in any column: a text where bytes or a time belong makes the row itself unreadable.
_UNREADABLE: Final = (TypeError, ValueError, DBAPIError)
_UNREADABLE_SENTENCE: Final = "Its row cannot be read: it holds values of another kind."

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"

FORMAT: Final = 1
# Entries above 65,535 bytes cannot stand in tlog-tiles bundles; what is longer is kept beside the log, by its hash.
MAX_BODY: Final = 60_000
MAX_DEPTH: Final = 16

_EVENT: Final = re.compile(r"[a-z][a-z0-9_-]*:[a-z][a-z0-9_-]*", re.ASCII)
_NAME: Final = re.compile(r"[!-~]{1,64}", re.ASCII)  # printable, no space: ids, states, codes
_AT: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", re.ASCII)
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_NO_ZONE: Final = -len("+00:00")
_PAGE: Final = 1000
_GONE: Final = "Its body is gone, and nothing in the log says that it was pruned."
_E: Final[Any] = Entry  # its columns, in queries: SQLModel types them as the values
_P: Final[Any] = Pruned
_HEAD: Final = select(_E.seq, _E.root).order_by(_E.seq.desc()).limit(1)
# PostgreSQL's type of each column that an append fills.
_TYPES: Final = {"seq": "bigint", "request_id": "text", "event": "text", "at": "timestamptz"} | dict.fromkeys(
    ("body", "leaf_hash", "root", "peaks"), "bytea"
)
_INTO: Final = f"INSERT INTO entry ({', '.join(_TYPES)}) VALUES"
_INSERT_SQLITE: Final = f"{_INTO} (?, ?, ?, ?, ?, ?, ?, ?)"
_INSERT_POSTGRESQL: Final = f"{_INTO} (%s, %s, %s, %s, %s, %s, %s, %s)"
_CANONICAL: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
_COLUMNS: Final = (_E.seq, _E.request_id, _E.event, _E.at, _E.body, _E.leaf_hash, _E.root, _E.peaks)


@dataclass(frozen=True, slots=True)
class Actor:
    """Who did it: Slack team and user id. The bot itself is :data:`SYSTEM`."""

    team: str
    person: str


SYSTEM: Final = Actor(team="", person="system")
NOBODY: Final = Actor(team="", person="")  # of a pruned entry: who did it is not known any more


@dataclass(frozen=True, slots=True)
class Record:
    """One entry as read: the parsed body, the body itself and its two hashes (32 bytes each).

    Of a pruned one only number, time, event and request are known, from its columns; its actor is :data:`NOBODY`.
    """

    seq: int
    at: datetime
    event: str
    request_id: str | None
    actor: Actor
    source: str | None  # state before
    target: str | None  # state after
    version: int | None
    policy: str | None
    refused: str | None
    data: Mapping[str, Any]
    body: bytes = field(repr=False)
    leaf_hash: bytes = field(repr=False)
    root: bytes = field(repr=False)

    @property
    def is_pruned(self) -> bool:
        """Whether only its hashes and columns are left. (An entry that has its body has somebody who did it.)"""
        return self.actor == NOBODY


@dataclass(frozen=True, slots=True)
class Head:
    """The log at one moment: how many entries, and the root over them."""

    size: int
    root: bytes


class Draft(NamedTuple):
    """An entry that is to be appended with others: what differs between them."""

    event: str
    actor: Actor
    request_id: str | None
    data: Mapping[str, JSON]


class Appended(NamedTuple):
    """What was appended: the row, as it was written."""

    seq: int
    request_id: str | None
    event: str
    at: datetime
    body: bytes
    leaf_hash: bytes
    root: bytes
    peaks: bytes


class Finding(NamedTuple):
    """What is wrong, and at which entry (None: with the whole)."""

    seq: int | None
    sentence: str


class Damaged(Exception):
    """The stored log is not what was written. ``seq`` names the entry."""

    def __init__(self, seq: int, sentence: str) -> None:
        super().__init__(f"Entry {seq}: {sentence}")
        self.seq = seq
        self.sentence = sentence


# --- writing -------------------------------------------------------------------------------------------------------


def append(
    session: Write,
    *,
    event: str,
    at: datetime,
    actor: Actor,
    request_id: str | None = None,
    source: str | None = None,
    target: str | None = None,
    version: int | None = None,
    policy: str | None = None,
    refused: str | None = None,
    data: Mapping[str, JSON] | None = None,
) -> Appended:
    """Append the next entry, inside :meth:`Database.write`.

    ``event`` is ``noun:verb``; ``source`` and ``target`` are the states before and after; ``refused`` is the error's
    code; ``data`` is anything JSON. ``at`` is kept as given, also when it is before the last entry's: order is ``seq``.

    Raises ValueError (naive time, malformed event or id, NaN, body above 60,000 bytes), TypeError (not JSON).
    """
    last = session.newest()
    seq, peaks = (last[0] + 1, last[1]) if last else (0, b"")
    body = encode(
        seq=seq,
        event=event,
        at=at,
        actor=actor,
        request_id=request_id,
        source=source,
        target=target,
        version=version,
        policy=policy,
        refused=refused,
        data=data,
    )
    leaf = merkle.leaf_hash(body)
    peaks = merkle.push(peaks, seq, leaf)
    entry = Appended(seq, request_id, event, at, body, leaf, merkle.root(peaks), peaks)
    # Past the object mapper, which took three quarters of the time.
    if session.kind == "sqlite":
        session.run(_INSERT_SQLITE, (*entry[:3], _sqlite_time(at), *entry[4:]))
    else:
        session.run(_INSERT_POSTGRESQL, entry)
    session.appended.add(request_id or "")
    return entry


def append_all(session: Write, drafts: Sequence[Draft], *, at: datetime) -> list[Appended]:
    """Append entries that move nothing, one after the other, in one go; otherwise as :func:`append`."""
    last = session.newest()
    seq, peaks = (last[0] + 1, last[1]) if last else (0, b"")
    entries = []
    for draft in drafts:
        body = encode(
            seq=seq, event=draft.event, at=at, actor=draft.actor, request_id=draft.request_id, data=draft.data
        )
        leaf = merkle.leaf_hash(body)
        peaks = merkle.push(peaks, seq, leaf)
        entries.append(Appended(seq, draft.request_id, draft.event, at, body, leaf, merkle.root(peaks), peaks))
        seq += 1
    rows: Sequence[tuple[Any, ...]] = entries
    if session.kind == "sqlite":
        stored_at = _sqlite_time(at)
        rows = [(*entry[:3], stored_at, *entry[4:]) for entry in entries]
    session.insert_many("entry", _TYPES, rows)
    session.appended.update(draft.request_id or "" for draft in drafts)
    return entries


def _sqlite_time(at: datetime) -> str:
    """Write a time as the object mapper stores it in SQLite: UTC, without saying so."""
    return at.astimezone(UTC).isoformat(" ", "microseconds")[:_NO_ZONE]


def encode(
    *,
    seq: int,
    event: str,
    at: datetime,
    actor: Actor,
    request_id: str | None = None,
    source: str | None = None,
    target: str | None = None,
    version: int | None = None,
    policy: str | None = None,
    refused: str | None = None,
    data: Mapping[str, JSON] | None = None,
) -> bytes:
    """Give the canonical body of an entry; arguments and errors are :func:`append`'s."""
    if at.tzinfo is None:
        raise ValueError(f"a time without a zone cannot be logged: {at!r}")
    if not _EVENT.fullmatch(event):
        raise ValueError(f"an event is noun:verb, not {event!r}")
    words = {"request": request_id, "from": source, "to": target, "policy": policy, "refused": refused}
    for name, word in words.items():
        if word is not None and not _NAME.fullmatch(word):
            raise ValueError(f"{name} must be 1 to 64 printable ASCII characters without spaces, not {word!r}")
    # Slack's ids are ASCII too, but whoever exports at a shell has the name that the machine knows.
    for name, word in (("person", actor.person), ("team", actor.team or "-")):
        if not 0 < len(word) <= 64 or not word.isprintable() or " " in word:
            raise ValueError(f"{name} must be 1 to 64 printable characters without spaces, not {word!r}")
    members: dict[str, JSON] = {
        "v": FORMAT,
        "seq": seq,
        "at": write_time(at),
        "event": event,
        "actor": {"team": actor.team, "person": actor.person},
        "version": version,
        "data": _clean(data, 1) or None if data is not None else None,
        **words,
    }
    body = canonical({name: value for name, value in members.items() if value is not None})
    if len(body) > MAX_BODY:
        raise ValueError(f"an entry has at most {MAX_BODY:,} bytes, not {len(body):,}: keep the rest beside the log")
    return body


def canonical(value: JSON) -> bytes:
    """Give the one form in which a JSON value is hashed: keys sorted by code point, no spaces, UTF-8, no NaN."""
    return _CANONICAL.encode(value).encode()


def write_time(at: datetime) -> str:
    """RFC 3339 in UTC, always with six decimals and ``Z``, so that text order is time order."""
    return at.astimezone(UTC).isoformat(timespec="microseconds")[:_NO_ZONE] + "Z"


def read_time(words: str) -> datetime:
    """Read what :func:`write_time` wrote, and nothing else. ValueError."""
    if not _AT.fullmatch(words):
        raise ValueError(f"not a time of the log: {words[:40]!r}")
    return datetime.fromisoformat(words)


def _clean(value: object, depth: int) -> Any:  # noqa: ANN401 - JSON in, JSON out
    """Copy a JSON value into what can be stored: half a surrogate pair has no UTF-8, so it becomes U+FFFD."""
    if depth > MAX_DEPTH:
        raise ValueError(f"data is nested deeper than {MAX_DEPTH}")
    if isinstance(value, str):
        return value if value.isascii() else _SURROGATE.sub("\ufffd", value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise TypeError("data has a name that is not text")
        copied = {
            # Most of it is plain text, and a burst of commands has much of it.
            name if name.isascii() else _clean(name, depth): item
            if type(item) is str and item.isascii()
            else _clean(item, depth + 1)
            for name, item in value.items()
        }
        if len(copied) != len(value):
            raise ValueError("two names in data become the same")
        return copied
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [_clean(item, depth + 1) for item in value]
    raise TypeError(f"data can hold only JSON, not {type(value).__name__}")


# --- reading -------------------------------------------------------------------------------------------------------

_REQUIRED: Final[Mapping[str, type]] = {"v": int, "seq": int, "at": str, "event": str, "actor": dict}
_OPTIONAL: Final[Mapping[str, type]] = {
    "request": str,
    "from": str,
    "to": str,
    "version": int,
    "policy": str,
    "refused": str,
    "data": dict,
}


def parse(body: bytes, *, leaf_hash: bytes = b"", root: bytes = b"") -> Record:
    """Read a body strictly: a ValueError says what :func:`encode` would not have written so."""
    if len(body) > MAX_BODY:
        raise ValueError("it is longer than an entry can be")
    members = parse_object(body)
    for name, kind in _REQUIRED.items():
        if type(members.get(name)) is not kind:
            raise ValueError(f"{name!r} is missing or of the wrong kind")
    for name, value in members.items():
        if name not in _REQUIRED and (name not in _OPTIONAL or type(value) is not _OPTIONAL[name]):
            raise ValueError(f"{name[:40]!r} is unknown or of the wrong kind")
    actor = members["actor"]
    if set(actor) != {"team", "person"} or not all(isinstance(word, str) for word in actor.values()):
        raise ValueError("'actor' must hold team and person")
    if members["v"] != FORMAT:
        raise ValueError(f"it is of format {members['v']}, which this version does not know")
    record = Record(
        seq=members["seq"],
        at=read_time(members["at"]),
        event=members["event"],
        request_id=members.get("request"),
        actor=Actor(team=actor["team"], person=actor["person"]),
        source=members.get("from"),
        target=members.get("to"),
        version=members.get("version"),
        policy=members.get("policy"),
        refused=members.get("refused"),
        data=members.get("data", {}),
        body=body,
        leaf_hash=leaf_hash,
        root=root,
    )
    if record.seq < 0 or body != _encode_again(record):
        raise ValueError("it is not written as the log writes")
    return record


def parse_object(body: bytes) -> dict[str, Any]:
    """Read one canonical JSON object. ValueError: not UTF-8, not JSON, not an object, or not canonical.

    Doubled names, NaN, spare spaces and other spellings of the same value all end here: they do not round-trip.
    """
    try:
        members = json.loads(body.decode(), parse_constant=_refuse_constant)
        is_canonical = canonical(members) == body
    except (ValueError, RecursionError):
        raise ValueError("it is not canonical JSON") from None
    if type(members) is not dict or not is_canonical:
        raise ValueError("it is not a canonical JSON object")
    return members


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(word)


def _encode_again(record: Record) -> bytes:
    """Whether the parsed view would have been written like this: the round trip that makes parsing strict."""
    return encode(
        seq=record.seq,
        event=record.event,
        at=record.at,
        actor=record.actor,
        request_id=record.request_id,
        source=record.source,
        target=record.target,
        version=record.version,
        policy=record.policy,
        refused=record.refused,
        data=record.data,
    )


def read_entries(
    session: Session,
    *,
    request_id: str | None = None,
    events: Collection[str] | None = None,
    after: int = -1,
    until_seq: int | None = None,
    limit: int | None = None,
) -> list[Record]:
    """Entries after seq ``after`` through ``until_seq``, in order.

    ``request_id``: those of one request; ``""``: those about no request; None: all. ``events``: those of these events.
    Raises :class:`Damaged`.
    """
    query = select(*_COLUMNS).where(_E.seq > after).order_by(_E.seq)
    if request_id is not None:
        query = query.where(_E.request_id == request_id if request_id else _E.request_id.is_(None))
    if events is not None:
        query = query.where(_E.event.in_(events))
    if until_seq is not None:
        query = query.where(_E.seq <= until_seq)
    if limit is not None:
        query = query.limit(limit)
    try:
        entries = session.execute(query).all()
    except _UNREADABLE as error:
        found = check(session)
        raise Damaged(found.seq if found and found.seq is not None else 0, _UNREADABLE_SENTENCE) from error
    records = [_read_row(entry, entry.seq) for entry in entries]
    pruned = [record.seq for record in records if record.is_pruned]
    if pruned:
        # What the log itself says of them is for check(): here the table stands in, which its guards keep.
        query = select(_P.seq).where(_P.seq.between(pruned[0], pruned[-1]))
        known = set(session.execute(query).scalars())
        unknown = next((seq for seq in pruned if seq not in known), None)
        if unknown is not None:
            raise Damaged(unknown, _GONE)
    return records


def _read_row(row: Any, seq: int) -> Record:  # noqa: ANN401 - an Entry, or a row with its columns
    """Parse the row that stands where entry ``seq`` belongs. Raises :class:`Damaged`."""
    if row.seq != seq:
        raise Damaged(seq, f"It is missing: the next stored entry is {row.seq}.")
    if row.body is None:
        return _read_pruned(row, seq)
    if not isinstance(row.body, bytes):
        raise Damaged(seq, _UNREADABLE_SENTENCE)
    if row.leaf_hash != merkle.leaf_hash(row.body):
        raise Damaged(seq, "Its body or its leaf hash was changed: they do not belong together.")
    try:
        record = parse(row.body, leaf_hash=row.leaf_hash, root=row.root)
    except ValueError as error:
        raise Damaged(seq, f"Its body was not written by the log: {error}.") from error
    if record.seq != seq:
        raise Damaged(seq, f"Its body says that it is entry {record.seq}.")
    # A changed column would hide the entry from its request's thread and export while every hash holds.
    if (row.request_id, row.event, row.at) != (record.request_id, record.event, record.at):
        raise Damaged(seq, "Its columns say something else than its body.")
    return record


def _read_pruned(row: Any, seq: int) -> Record:  # noqa: ANN401 - an Entry, or a row with its columns
    """Read what is left of a pruned entry. Raises :class:`Damaged`."""
    known = (row.leaf_hash, bytes), (row.root, bytes), (row.event, str), (row.at, datetime)
    if not all(isinstance(value, kind) for value, kind in known) or len(row.leaf_hash) != merkle.WIDTH:
        raise Damaged(seq, _UNREADABLE_SENTENCE)
    return Record(
        seq=seq,
        at=row.at,
        event=row.event,
        request_id=row.request_id,
        actor=NOBODY,
        source=None,
        target=None,
        version=None,
        policy=None,
        refused=None,
        data={},
        body=b"",
        leaf_hash=row.leaf_hash,
        root=row.root,
    )


def head(session: Session) -> Head:
    """Give the log's size and root now; of an empty log 0 and the empty tree's root."""
    last = session.execute(_HEAD).first()
    return Head(size=last.seq + 1, root=last.root) if last else Head(size=0, root=merkle.EMPTY_ROOT)


def check(session: Session, *, trusted: Head | None = None) -> Finding | None:
    """Recompute the whole stored log and name the first entry that is not as it was written; None: all is well.

    ``trusted``: a head that was kept elsewhere (an export's). Without one a cut tail, or a whole rewrite by whoever
    owns the database, cannot be seen from the table alone.
    """
    if trusted is not None and trusted.size == 0 and trusted.root != merkle.EMPTY_ROOT:
        return Finding(None, "The trusted head is not that of an empty log.")
    return _check(session, trusted, _PAGE)


def _check(session: Session, trusted: Head | None, page: int) -> Finding | None:
    peaks = b""
    size = 0
    pruned: list[int] = []
    claims: dict[int, pruning.Claim] = {}
    rows = _rows(session, page)
    while True:
        try:
            row = next(rows, None)
            if row is None:
                break
            record = _read_row(row, size)
            if record.is_pruned:
                pruned.append(size)
            elif record.event == pruning.APPLY and record.refused is None:
                claims[size] = _read_claim(record)
        except Damaged as damaged:
            return Finding(damaged.seq, damaged.sentence)
        except _UNREADABLE:  # a whole page fails for one row of it: go row by row to name that one
            return Finding(size, _UNREADABLE_SENTENCE) if page == 1 else _check(session, trusted, 1)
        peaks = merkle.push(peaks, size, row.leaf_hash)
        if row.peaks != peaks:
            return Finding(size, "Its peaks are not those of the entries up to here.")
        if row.root != merkle.root(peaks):
            return Finding(size, "Its root is not that of the entries up to here.")
        size += 1
        if trusted is not None and trusted.size == size and trusted.root != row.root:
            return Finding(size - 1, "The log up to here is not the one whose head is trusted: it was rewritten.")
    if trusted is not None and trusted.size > size:
        return Finding(size, f"It is missing: the trusted head is over {trusted.size} entries.")
    return _check_pruned(session, pruned, claims)


def _read_claim(record: Record) -> pruning.Claim:
    try:
        return pruning.read_claim(record.seq, record.data)
    except ValueError as error:
        raise Damaged(record.seq, f"It says that entries were pruned, but {error}.") from None


def _check_pruned(session: Session, pruned: Sequence[int], claims: Mapping[int, pruning.Claim]) -> Finding | None:
    """Check that each body that is gone was pruned by an entry, and that its columns are as they were then."""
    unsaid = pruning.missing_from(pruned, claims.values())
    if unsaid is not None:
        return Finding(unsaid, _GONE)
    for seq, claimed in claims.items():
        if pruning.claim(session, claimed.ranges) != claimed:
            return Finding(seq, "An entry that it pruned has other columns now, or it names other entries.")
    return None


def _rows(session: Session, page: int) -> Iterator[Any]:
    return iter(session.execute(select(*_COLUMNS).order_by(_E.seq).execution_options(yield_per=page)))
