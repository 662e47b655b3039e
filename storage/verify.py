"""Is what is stored, exported or copied the log that was written, and if not, which entries are wrong?

Rules
-----
* What is judged of bytes, hashes, heads and rules is judged by ``standalone.py``, the very file that every bundle
  carries. Here is only where the entries come from: a file, the table, a copy outside.
* Everything is found, and each damage is named once, where it is: after a wrong hash the walk goes on from what the
  next row says of the tree, so that one changed row does not condemn all that follow.
* The table is read as it lies there, not through the models: what somebody put into a column by force is a finding,
  not an exception.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from storage import pruning, standalone
from storage.audit import Finding, Head
from storage.database import DatabaseDown
from storage.standalone import Kind, Peaks, Seen, read_time

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from sqlmodel import Session

    from storage.database import Database
    from storage.followers.seam import Copy, Item
    from storage.standalone import Findings, Key, Replay

MAX_FINDINGS: Final = 50
_PAGE: Final = 1000
_BATCH: Final = 400
_COLUMNS: Final = "seq, request_id, event, at, body, leaf_hash, root, peaks"
_UNREADABLE: Final = (TypeError, ValueError, DBAPIError, DatabaseDown)


@dataclass(frozen=True, slots=True)
class Report:
    """What was found: ``entries`` counts the entry lines; ``head`` is what they stand at (None: no readable header)."""

    entries: int
    findings: tuple[Finding, ...]
    head: Head | None = None

    @property
    def ok(self) -> bool:
        """Whether every claim of the file held."""
        return not self.findings


def verify_file(path: Path | str) -> Report:
    """Check an export's hashes, either format; whether it kept to the rules is the other half of standalone.verify.

    Findings come in the order of the file; a file that cannot be read is one.
    """
    found = standalone.verify(path, rules=False, limit=MAX_FINDINGS)
    return Report(
        entries=found.entries,
        findings=tuple(Finding(one.seq, one.sentence) for one in found.findings),
        head=Head(*found.head) if found.head else None,
    )


# --- the table -----------------------------------------------------------------------------------------------------


class _Misplaced(NamedTuple):
    """A row whose body says that it is another entry."""

    seq: int
    says: int


class Walk:
    """Goes through the stored log once, from its first entry to its last, inside one :meth:`Database.read`.

    ``replay`` gets each sound entry. ``heads`` (size, time; in the order of their signing) tell until when each entry
    was signed; one that waited longer than ``patience`` for its first head is a late anchor.
    """

    def __init__(
        self,
        session: Session,
        findings: Findings,
        replay: Replay,
        *,
        heads: Iterable[tuple[int, datetime | None]] = (),
        patience: timedelta,
        wanted: Iterable[int] = (),
    ) -> None:
        self.size = 0
        self.roots: dict[int, bytes] = {0: standalone.EMPTY_ROOT}
        self.doubtful: set[int] = set()  # rows whose root cannot be compared with a head
        self._session = session
        self._findings = findings
        self._replay = replay
        self._heads = iter(heads)
        self._head = next(self._heads, None)
        self._is_first_head = True
        self._signed_through = 0  # entries below have been looked at for their head
        self._unsigned_since: tuple[int, datetime] | None = None
        self._patience = patience
        self._wanted = frozenset(wanted)
        self._tree = Peaks()
        self._misplaced: list[_Misplaced] = []
        self._pruned: list[int] = []
        self._claims: dict[int, pruning.Claim] = {}
        self._has_heads = self._head is not None

    def run(self, *, now: datetime) -> None:
        """Go through it. Findings are in the order of the entries, but for those that show only at the end."""
        for row in _rows(self._session):
            if row.seq > self.size:
                self._gap(self.size, row.seq)
            self._row(row)
            self.size = row.seq + 1
        self._place()
        self._judge_pruned()
        if self._unsigned_since is not None and now - self._unsigned_since[1] > self._patience:
            seq, at = self._unsigned_since
            self._findings.add(
                Kind.LATE_ANCHOR, seq, f"It was written at {at:%Y-%m-%dT%H:%M:%SZ}, and no head was signed since."
            )

    def _gap(self, first: int, following: int) -> None:
        many = following - first
        others = f", and so are the others up to {following - 1}" if many > 1 else ""
        self._findings.add(Kind.MISSING, first, f"It is missing{others}: the next stored entry is {following}.")
        for seq in range(first, min(following, first + _PAGE)):
            self._replay.hole(seq)
        self._replay.hole(following - 1)

    def _row(self, row: Any) -> None:  # noqa: ANN401 - a row with _COLUMNS
        seq, body, leaf = row.seq, row.body, row.leaf_hash
        wrong = self._kinds(row)
        if wrong is None and body is not None and standalone.leaf_hash(body) != leaf:
            wrong = "Its body or its leaf hash was changed: they do not belong together."
        entry = None
        if wrong is None and body is not None:
            try:
                entry = standalone.read_body(str(body, "utf-8"))
            except ValueError as error:
                wrong = f"Its body was not written by the log: {error}."
        is_misplaced = entry is not None and entry["seq"] != seq
        if entry is not None and is_misplaced:
            self._misplaced.append(_Misplaced(seq, entry["seq"]))
        tree = self._grow(row)
        if wrong is None and not is_misplaced:
            wrong = tree
        if tree is not None:
            self.doubtful.add(seq)
        if wrong is not None:
            self._findings.add(Kind.ALTERED, seq, wrong)
        if entry is not None:
            self._anchor(seq, entry["at"])
        if wrong is not None or is_misplaced:
            self._replay.hole(seq)
        elif entry is None:
            self._pruned.append(seq)
            self._replay.pruned(seq, leaf, row.request_id, is_known=True)
        else:
            if not _is_repeated(row, entry):
                self._findings.add(Kind.ALTERED, seq, "Its columns say something else than its body.")
            self._claim(seq, entry)
            self._replay.take(seq, entry, leaf)

    def _claim(self, seq: int, entry: dict[str, Any]) -> None:
        """Remember what an entry says that it pruned."""
        if entry["event"] != pruning.APPLY or "refused" in entry:
            return
        try:
            self._claims[seq] = pruning.read_claim(seq, entry.get("data", {}))
        except ValueError as error:
            self._findings.add(Kind.MALFORMED, seq, f"It says that entries were pruned, but {error}.")

    def _judge_pruned(self) -> None:
        """Check that an entry says so of each body that is gone, and that its columns are as they were then."""
        named = [pair for claimed in self._claims.values() for pair in claimed.ranges]
        for seq in standalone.not_named(self._pruned, named):
            self._findings.add(Kind.MISSING, seq, "Its body is gone, and nothing in the log says that it was pruned.")
        for seq, claimed in self._claims.items():
            if pruning.claim(self._session, claimed.ranges) != claimed:
                self._findings.add(
                    Kind.ALTERED, seq, "An entry that it pruned has other columns now, or it names other entries."
                )

    @staticmethod
    def _kinds(row: Any) -> str | None:  # noqa: ANN401 - a row with _COLUMNS
        values = (row.leaf_hash, row.root, row.peaks, *(() if row.body is None else (row.body,)))
        if not all(type(value) is bytes for value in values):
            return "Its row cannot be read: it holds values of another kind."
        return None

    def _grow(self, row: Any) -> str | None:  # noqa: ANN401 - a row with _COLUMNS
        """Add the row to the tree, and compare; where it does not fit, go on from what the row says, if that is sound.

        Else one changed row would be found again in every row after it.
        """
        tree, wrong = self._tree, None
        if tree.size != row.seq:
            wrong = ""  # after a hole nothing can be compared
        elif type(row.leaf_hash) is not bytes or len(row.leaf_hash) != standalone.WIDTH:
            wrong = "Its leaf hash is none."
        else:
            tree.push(row.leaf_hash)
            if b"".join(tree.peaks) != row.peaks:
                wrong = "Its peaks are not those of the entries up to here: it was changed, or one before it."
            elif tree.root() != row.root:
                wrong = "Its root is not that of the entries up to here."
        if wrong is not None:
            stated = _peaks(row)
            if stated is not None:
                self._tree = stated
            elif wrong == "":
                self._tree = Peaks(row.seq + 1, [b""] * (row.seq + 1).bit_count())
        if row.seq + 1 in self._wanted:
            self.roots[row.seq + 1] = self._tree.root()
        return wrong or None

    def _anchor(self, seq: int, at: str) -> None:
        """Compare the entry's time with that of the first head over it."""
        if not self._has_heads or seq < self._signed_through:
            return
        is_new = self._signed_through == seq == 0
        while self._head is not None and self._head[0] <= seq:
            self._head, self._is_first_head, is_new = next(self._heads, None), False, True
        written = read_time(at)
        if self._head is None:
            self._unsigned_since = self._unsigned_since or (seq, written)
            return
        self._signed_through = self._head[0]
        signed = self._head[1]
        # What was written before the log was ever signed waited for no head.
        if is_new and not self._is_first_head and signed is not None and signed - written > self._patience:
            self._findings.add(
                Kind.LATE_ANCHOR,
                seq,
                f"It was written at {written:%Y-%m-%dT%H:%M:%SZ}, and its first head was signed at "
                f"{signed:%Y-%m-%dT%H:%M:%SZ} only.",
            )

    def _place(self) -> None:
        """Name what was done to rows whose bodies say that they are others."""
        moved = {one.seq: one.says for one in self._misplaced}
        before: int | None = None
        for seq, says in moved.items():
            offset = says - seq
            is_shifted = moved.get(seq - 1) == says - 1 or moved.get(seq + 1) == says + 1
            if is_shifted and before == offset and moved.get(seq - 1) == says - 1:
                continue  # named at the first of them
            before = offset
            if offset > 0 and (is_shifted or says >= self.size):
                self._findings.add(Kind.MISSING, seq, f"It is missing: what stands in its place is entry {says}.")
            elif offset < 0 and is_shifted:
                self._findings.add(Kind.DOUBLED, seq, f"An entry was put in: from here on entry {says} is moved.")
            elif says in moved:
                self._findings.add(Kind.REORDERED, seq, f"Its body says that it is entry {says}.")
            else:
                self._findings.add(Kind.DOUBLED, seq, f"Entry {says} stands here once more.")


def _is_repeated(row: Any, entry: dict[str, Any]) -> bool:  # noqa: ANN401 - a row with _COLUMNS
    """Whether the columns beside the body repeat it; changed ones would hide an entry from its request."""
    if (row.request_id, row.event) != (entry.get("request"), entry["event"]):
        return False
    at = entry["at"]
    return row.at == f"{at[:10]} {at[11:-1]}" or read_stored_time(row.at) == read_time(at)


def read_stored_time(value: object) -> datetime | None:
    """Read a time as a driver gives it: SQLite's text, PostgreSQL's datetime. None for anything else."""
    if isinstance(value, str):
        try:
            return datetime.fromisoformat(value).replace(tzinfo=UTC)
        except ValueError:
            return None
    return value if isinstance(value, datetime) and value.tzinfo is not None else None


def _peaks(row: Any) -> Peaks | None:  # noqa: ANN401 - a row with _COLUMNS
    """Return the tree as the row states it, if it is one."""
    size, width = row.seq + 1, standalone.WIDTH
    if type(row.peaks) is not bytes or len(row.peaks) != width * size.bit_count():
        return None
    stated = Peaks(size, (row.peaks[at : at + width] for at in range(0, len(row.peaks), width)))
    return stated if stated.root() == row.root else None


def _rows(session: Session) -> Iterator[Any]:
    """Give the rows in order; one that the driver cannot read comes with None in the columns that it cannot."""
    query = text(f"SELECT {_COLUMNS} FROM entry ORDER BY seq")
    last = -1
    try:
        for row in session.execute(query, execution_options={"yield_per": _PAGE}):
            yield row
            last = row.seq
    except _UNREADABLE:
        numbers = session.execute(text("SELECT seq FROM entry WHERE seq > :last ORDER BY seq"), {"last": last})
        for (seq,) in list(numbers):
            yield _one_row(session, seq)


def _one_row(session: Session, seq: int) -> Any:  # noqa: ANN401 - a row with _COLUMNS
    try:
        return session.execute(text(f"SELECT {_COLUMNS} FROM entry WHERE seq = :seq"), {"seq": seq}).one()
    except _UNREADABLE:
        return _Broken(seq)


class _Broken(NamedTuple):
    """A row of which only the number can be read."""

    seq: int
    request_id: None = None
    event: None = None
    at: None = None
    body: None = None
    leaf_hash: None = None
    root: None = None
    peaks: None = None


# --- signed heads --------------------------------------------------------------------------------------------------


def head_times(session: Session) -> Iterator[tuple[int, datetime | None]]:
    """Give size and time of the stored heads, in the order of their signing."""
    query = text("SELECT size, at FROM signed_head ORDER BY id")
    for size, at in session.execute(query, execution_options={"yield_per": _PAGE}):
        yield size, read_stored_time(at)


def trusted(session: Session, keys: Iterable[Key], replay: Replay) -> tuple[Key, ...]:
    """Return the keys with those that they vouch for in a rotation."""

    def notes_over(size: int) -> list[bytes]:
        found = session.execute(text("SELECT note FROM signed_head WHERE size = :size ORDER BY id"), {"size": size})
        return [bytes(note) for (note,) in found if isinstance(note, bytes)]

    return standalone.trusted(keys, replay.rotations, notes_over)


def check_heads(session: Session, findings: Findings, keys: Iterable[Key], walk: Walk, replay: Replay) -> int:
    """Check every stored head against the log and the keys of :func:`trusted`; return how many there are."""
    checker = standalone.Heads(findings, keys, replay.rotations, walk.size)
    query = text(
        "SELECT h.id, h.size, h.root, h.note, h.at, e.root AS log_root FROM signed_head h "
        "LEFT JOIN entry e ON e.seq = h.size - 1 ORDER BY h.id"
    )
    for row in session.execute(query, execution_options={"yield_per": _PAGE}):
        where = f"signed head {row.id}"
        if not isinstance(row.note, bytes):
            findings.add(Kind.ALTERED, None, f"{where} cannot be read.")
            continue
        root = row.log_root if isinstance(row.log_root, bytes) and row.size - 1 not in walk.doubtful else None
        head = checker.check(Seen(where, row.note, root))
        if head is None:
            continue
        if (head.size, head.root) != (row.size, row.root):
            findings.add(Kind.ALTERED, head.size - 1, f"The columns of {where} say something else than its note.")
        at = read_stored_time(row.at)
        if head.at is not None and (at is None or abs(at - head.at) > standalone.SLACK):
            findings.add(Kind.ALTERED, head.size - 1, f"{where} says that it was signed at another time than its note.")
    return checker.count


# --- a copy outside ------------------------------------------------------------------------------------------------


class Comparison(NamedTuple):
    """How far a comparison with a copy got: how many entries it holds, and how many it lacks."""

    entries: int
    lacking: int


def compare_with_copy(database: Database, copy: Copy, findings: Findings) -> Comparison:
    """Compare the stored log with a copy outside: entries that differ, are missing here, or make two logs of one.

    What stands in the copy was in the database before it, so that each batch of it is compared with what the database
    holds by then; the bot may go on writing. Raises what the copy raises (:class:`CopyTrouble`).
    """
    differing: list[int] = []
    missing: list[int] = []
    expected = 0
    for batch in _batches(copy.read()):
        for item in batch:
            if item.seq != expected:
                kind = Kind.MISSING if item.seq > expected else Kind.DOUBLED
                findings.add(kind, min(expected, item.seq), f"The copy {copy.name} does not have it in its place.")
            expected = item.seq + 1
            if not item.is_whole():
                findings.add(
                    Kind.ALTERED,
                    item.seq,
                    f"In the copy {copy.name} its body and its leaf hash do not belong together.",
                )
        here = _bodies(database, batch[0].seq, batch[-1].seq)
        for item in batch:
            stored = here.get(item.seq)
            if stored is None:
                missing.append(item.seq)
            elif stored[1] != item.leaf_hash or (item.body is not None and stored[0] not in (None, item.body)):
                differing.append(item.seq)
    size = _size(database)
    acknowledged = _acknowledged(database, copy.name)
    if acknowledged >= expected:
        findings.add(
            Kind.TRUNCATED,
            expected,
            f"The copy {copy.name} acknowledged entry {acknowledged}, and does not have this one any more.",
        )
    _name_missing(findings, copy.name, [seq for seq in missing if seq < size], [seq for seq in missing if seq >= size])
    _name_differing(findings, copy.name, differing, min(size, expected))
    return Comparison(expected, max(0, size - expected))


def _name_missing(findings: Findings, name: str, holes: list[int], tail: list[int]) -> None:
    for seq in holes:
        findings.add(Kind.MISSING, seq, f"It is missing here, and stands in the copy {name}.")
    if tail:
        findings.add(
            Kind.TRUNCATED,
            tail[0],
            f"It is missing here, and stands in the copy {name}, which goes on to entry {tail[-1]}: the end was cut.",
        )


def _name_differing(findings: Findings, name: str, differing: list[int], shared: int) -> None:
    """Tell entries that were rewritten from a log that goes another way from some entry on."""
    first = shared
    for seq in reversed(differing):
        if seq != first - 1:
            break
        first = seq
    if shared - first > 1:
        findings.add(
            Kind.FORKED, first, f"From here on the copy {name} holds another log: {shared - first} entries differ."
        )
        differing = [seq for seq in differing if seq < first]
    for seq in differing:
        findings.add(Kind.ALTERED, seq, f"The copy {name} holds another entry here: it was rewritten in one of them.")


def _batches(items: Iterator[Item]) -> Iterator[list[Item]]:
    batch: list[Item] = []
    for item in items:
        batch.append(item)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _bodies(database: Database, first: int, last: int) -> dict[int, tuple[object, object]]:
    query = text("SELECT seq, body, leaf_hash FROM entry WHERE seq >= :first AND seq <= :last")
    with database.read() as session:
        return {seq: (body, leaf) for seq, body, leaf in session.execute(query, {"first": first, "last": last})}


def _acknowledged(database: Database, name: str) -> int:
    query = text("SELECT seq FROM feed WHERE follower = :name AND request_id = '*'")
    with database.read() as session:
        found = session.execute(query, {"name": name}).scalar()
    return found if isinstance(found, int) else -1


def _size(database: Database) -> int:
    with database.read() as session:
        return int(session.execute(text("SELECT COALESCE(MAX(seq) + 1, 0) FROM entry")).scalar_one())
