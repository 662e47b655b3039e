"""How does evidence leave, so that whoever receives it can check it alone?

Rules
-----
* An export stands at one head: it is read in one transaction, and every entry carries its inclusion proof to that head.
* Bodies go out verbatim. What is for people's eyes stands beside them and is derived from them. Of a body that was
  pruned its leaf hash goes out, with the proof.
* A selection by time alone is a run of the log without a hole, so that a dropped entry shows. One by account or request
  holds, besides, who had bodies of it pruned: the proposal, its confirmations, and the entry that did it.
* The log is shown as it is stored: a changed body is exported, and does not verify. Only what has no place in the
  format (a log whose hashes do not lead to its own head) is refused, as :class:`storage.audit.Damaged`.
* A spreadsheet never runs what somebody typed: cells that could be a formula get a leading apostrophe.

The file is described in ``FORMAT.md``; ``verify.py`` reads it.
"""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, Literal

from sqlalchemy import and_, func, or_, select

from storage import audit, merkle
from storage.models import Entry, Pruned, Request
from storage.pruning import APPLY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime
    from typing import BinaryIO

    from sqlmodel import Session

FORMAT: Final = "breakglass-export/1"
COLUMNS: Final = (
    *("seq", "at", "event", "request", "account", "team", "who", "from", "to", "refused", "data"),
    *("body", "leaf", "proof"),
)
# Excel takes a file for UTF-8 only with this mark.
BOM: Final = b"\xef\xbb\xbf"
_FORMULA: Final = tuple("=+-@＝＋－＠")  # noqa: RUF001 - spreadsheets take the full-width forms, too
_ONE_LINE: Final = re.compile(r"[\r\n]")
_PAGE: Final = 500
_E: Final[Any] = Entry
_R: Final[Any] = Request
_P: Final[Any] = Pruned
_PROPOSE: Final = "retention:propose"
_CONFIRM: Final = "retention:confirm"


@dataclass(frozen=True, slots=True)
class Summary:
    """What was written: how many entries, the first and last seq (None: no entry), and the head they stand at."""

    count: int
    first: int | None
    last: int | None
    size: int
    root: bytes


def export(
    session: Session,
    out: BinaryIO,
    *,
    exported_at: datetime,
    since: datetime | None = None,
    until: datetime | None = None,
    account: str | None = None,
    request_id: str | None = None,
    size: int | None = None,
    format: Literal["jsonl", "csv"] = "jsonl",  # noqa: A002 - the word that people type
) -> Summary:
    """Write the selected entries to ``out``, inside one :meth:`Database.read`.

    ``since`` and ``until`` are aware and both included; None is open. ``account``: the entries of that account's
    requests; ``request_id``: those of one request. ``size``: stand at the log of the first ``size`` entries, not at
    all of it. Holds 64 bytes in memory for each entry of the log.

    Raises :class:`storage.audit.Damaged`; whatever ``out.write`` raises passes through.
    """
    try:
        selection = Selection(since, until, account, request_id)
        tree = tree_of(session, size)
        return write(session, out, exported_at, selection, tree, is_csv=format == "csv")
    except (TypeError, ValueError) as error:
        found = audit.check(session)
        if found is None:
            raise
        raise audit.Damaged(found.seq or 0, found.sentence) from error


@dataclass(frozen=True, slots=True)
class Selection:
    """Which entries; the arguments are :func:`export`'s."""

    since: datetime | None = None
    until: datetime | None = None
    account: str | None = None
    request_id: str | None = None

    def members(self) -> dict[str, str | None]:
        """Return it as a header states it."""
        return {
            "since": audit.write_time(self.since) if self.since else None,
            "until": audit.write_time(self.until) if self.until else None,
            "account": self.account,
            "request": self.request_id,
        }

    def conditions(self, session: Session, size: int) -> list[Any]:
        """Give the SQL conditions for it, in the log of the first ``size`` entries."""
        in_time = [_E.seq < size]
        if self.since is not None:
            in_time.append(_E.at >= self.since)
        if self.until is not None:
            in_time.append(_E.at <= self.until)
        if self.account is None and self.request_id is None:
            # Clocks go backwards now and then: all between the first and the last entry of that time, or there would
            # be holes that nobody can tell from dropped entries.
            low, high = session.execute(select(func.min(_E.seq), func.max(_E.seq)).where(*in_time)).one()
            if low is None:
                return [_E.seq < 0]
            return [_E.seq.between(low if self.since else 0, high if self.until else size - 1)]
        if self.request_id is not None:
            in_time.append(_E.request_id == self.request_id)
        if self.account is not None:
            in_time.append(_E.request_id.in_(select(_R.id).where(_R.account == self.account)))
        explaining = who_pruned(session, in_time, size)
        return [or_(and_(*in_time), _E.seq.in_(explaining))] if explaining else in_time


def who_pruned(session: Session, conditions: Sequence[Any], size: int) -> list[int]:
    """Return what explains the bodies that are gone under these conditions, in the log of the first ``size`` entries.

    Each ``retention:apply`` that took one of them, its proposal and the confirmations of that.
    """
    query = select(_P.apply_seq).distinct().join(Entry, _E.seq == _P.seq).where(_E.body.is_(None), *conditions)
    found = {seq for seq in session.execute(query).scalars() if seq < size}
    if not found:
        return []
    said = {}
    events = (APPLY, _PROPOSE, _CONFIRM)
    for seq, body in session.execute(select(_E.seq, _E.body).where(_E.event.in_(events), _E.seq < size)):
        try:
            said[seq] = audit.parse(body or b"")
        except ValueError:
            continue  # changed: it explains nothing
    proposals = {said[seq].data.get("proposal") for seq in found & said.keys()}
    for seq, record in said.items():
        is_of_it = seq in proposals or (record.event == _CONFIRM and record.data.get("proposal") in proposals)
        if is_of_it and record.refused is None and record.event != APPLY:
            found.add(seq)
    return sorted(found)


def tree_of(session: Session, size: int | None = None) -> merkle.Tree:
    """Return the tree over the first ``size`` entries (None: all): 64 bytes for each, and its root is the stored one.

    Raises :class:`storage.audit.Damaged`, also when there are not so many.
    """
    if size is None:
        size = audit.head(session).size
    tree = merkle.Tree(_leaves(session, size))
    stored = session.execute(select(_E.root).where(_E.seq == size - 1)).scalar() if size else merkle.EMPTY_ROOT
    if tree.size != size or tree.root != stored:
        found = audit.check(session)
        raise audit.Damaged(*(found if found and found.seq is not None else (size - 1, "It is not the head.")))
    return tree


def write(
    session: Session,
    out: BinaryIO,
    exported_at: datetime,
    selection: Selection,
    tree: merkle.Tree,
    *,
    is_csv: bool = False,
    on_entry: Callable[[], object] = lambda: None,
) -> Summary:
    """Write the export of a log whose tree is known. ``on_entry`` is called after each entry."""
    head = audit.Head(tree.size, tree.root)
    conditions = selection.conditions(session, head.size)
    count, first, last = session.execute(
        select(func.count(), func.min(_E.seq), func.max(_E.seq)).where(*conditions)
    ).one()
    header = {
        "format": FORMAT,
        "exported_at": audit.write_time(exported_at),
        "selection": selection.members(),
        "head": {"size": head.size, "root": head.root.hex()},
        "count": count,
    }
    to_line = _csv_entry if is_csv else _jsonl_entry
    written = sha256()

    def put(line: bytes) -> None:
        out.write(line)
        written.update(line)

    if is_csv:
        put(BOM + csv_line(COLUMNS))
    put(csv_fact("export", header) if is_csv else json_line(header))
    for row in rows(session, conditions):
        put(to_line(row, tree.inclusion(row.seq)))
        on_entry()
    closing = {"count": count, "sha256": written.hexdigest()}
    out.write(csv_fact("end", closing) if is_csv else json_line(closing))
    return Summary(count=count, first=first, last=last, size=head.size, root=head.root)


def _leaves(session: Session, size: int) -> Iterator[bytes]:
    """Leaf hashes in order. Raises :class:`Damaged` at a gap, which would shift all that follows."""
    query = select(_E.seq, _E.leaf_hash).where(_E.seq < size).order_by(_E.seq).execution_options(yield_per=_PAGE)
    for expected, (seq, leaf) in enumerate(session.execute(query)):
        if seq != expected:
            raise audit.Damaged(expected, f"It is missing: the next stored entry is {seq}.")
        yield leaf


def rows(session: Session, conditions: Sequence[Any]) -> Iterator[Any]:
    """Give the entries under these conditions, in order: seq, body, leaf_hash, account."""
    query = (
        select(_E.seq, _E.body, _E.leaf_hash, _R.account)
        .join_from(Entry, Request, _R.id == _E.request_id, isouter=True)
        .where(*conditions)
        .order_by(_E.seq)
    )
    return iter(session.execute(query.execution_options(yield_per=_PAGE)))


# --- lines, as verify.py compares them -----------------------------------------------------------------------------


def json_line(members: Mapping[str, Any]) -> bytes:
    """Give one line of a JSONL export: canonical, and pure ASCII, so that no program splits or redraws it."""
    return json.dumps(members, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def _jsonl_entry(row: Any, proof: Sequence[bytes]) -> bytes:  # noqa: ANN401 - a row of rows()
    return json_line(
        {
            "seq": row.seq,
            "body": None if row.body is None else str(row.body, "utf-8"),  # TypeError: SQLite was made to hold text
            "leaf": row.leaf_hash.hex(),
            "proof": [step.hex() for step in proof],
        }
    )


def csv_line(cells: Sequence[str]) -> bytes:
    """Give one line of a CSV export (RFC 4180), every cell made harmless."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow([_harmless(cell) for cell in cells])
    return line.getvalue().encode()


def csv_fact(name: str, members: Mapping[str, Any]) -> bytes:
    """Give the row that holds a fact about the whole file: its name in the first column, JSON under ``body``."""
    cells = dict.fromkeys(COLUMNS, "") | {"seq": name, "body": json_line(members).decode().rstrip("\n")}
    return csv_line(list(cells.values()))


def _csv_entry(row: Any, proof: Sequence[bytes]) -> bytes:  # noqa: ANN401 - a row of rows()
    # One that the log wrote has no line end.
    body = "" if row.body is None else _ONE_LINE.sub("\ufffd", str(row.body, "utf-8"))
    try:
        record = audit.parse(row.body or b"")
    except ValueError:
        # Changed: shown as it is, and found. Or pruned: of that nobody vouches for what the columns say.
        people = [str(row.seq), *[""] * (len(COLUMNS) - 5), "pruned" if row.body is None else ""]
    else:
        people = people_cells(record, row.account or "")
    return csv_line([*people, body, row.leaf_hash.hex(), " ".join(step.hex() for step in proof)])


def people_cells(record: audit.Record, account: str) -> list[str]:
    """Give the columns that people read. All but the account follow from the body, and are compared with it."""
    cells = [
        str(record.seq),
        audit.write_time(record.at),
        record.event,
        record.request_id or "",
        _ONE_LINE.sub("\ufffd", account),
        record.actor.team,
        record.actor.person,
        record.source or "",
        record.target or "",
        record.refused or "",
        audit.canonical(record.data).decode() if record.data else "",
    ]
    return [_harmless(cell) for cell in cells]


def _harmless(cell: str) -> str:
    """Disarm what a spreadsheet would take for a formula."""
    # Attack: an account named =HYPERLINK("http://…";"open") that runs on the auditor's machine.
    return f"'{cell}" if cell.lstrip().startswith(_FORMULA) or cell.startswith(("\t", "\r")) else cell
