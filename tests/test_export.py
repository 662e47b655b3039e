"""Does an export hold exactly what was asked for, at one head, with proofs, and safe to open?"""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.engine import make_url

from storage import audit, merkle
from storage.export import BOM, COLUMNS, Summary, export
from storage.models import Request
from storage.verify import verify_file

if TYPE_CHECKING:
    from pathlib import Path

    from storage.database import Database

NOW = datetime(2026, 3, 1, 2, 0, tzinfo=UTC)
RITA = audit.Actor(team="T0HOME", person="U0RITA")


def request_row(request_id: str, account: str) -> Request:
    """A request of that account."""
    return Request(
        id=request_id,
        state="pending",
        version=1,
        state_version=1,
        last_seq=0,
        team="T0HOME",
        requester="U0RITA",
        account=account,
        level="read",
        threshold="customer-impact",
        reason="checkout is down",
        standard_path="paged the database on-call",
        incident="INC-1",
        policy_hash="0" * 64,
        quorum=1,
        custodians=["U0CARL"],
        channel="C0INCIDENT",
        asked_seconds=900,
        opened_at=NOW,
        state_at=NOW,
    )


def fill(database: Database, *, evil: str = "checkout is down") -> None:
    """Twelve entries, an hour apart, about two requests of two accounts and about none."""
    with database.write() as session:
        session.add_all([request_row("BG-1", "orders-db"), request_row("BG-2", "=payments")])
        for number in range(12):
            audit.append(
                session,
                event="request:open",
                at=NOW + timedelta(hours=number),
                actor=RITA,
                request_id=("BG-1", "BG-2", None)[number % 3],
                target="pending",
                data={"reason": evil, "n": number},
            )


def take(database: Database, **selection: Any) -> tuple[Summary, bytes]:
    """Export into memory."""
    out = io.BytesIO()
    with database.read() as session:
        summary = export(session, out, exported_at=NOW + timedelta(days=1), **selection)
    return summary, out.getvalue()


def seqs(text: bytes) -> list[int]:
    """Numbers of the entries in a JSONL export."""
    return [json.loads(line)["seq"] for line in text.splitlines()[1:-1]]


def test_a_jsonl_export_is_header_entries_closing(database: Database) -> None:
    """The header states selection, head and count; each entry its verbatim body and proof; the end a hash over all."""
    fill(database)
    summary, text = take(database)
    with database.read() as session:
        records = audit.read_entries(session)
        head = audit.head(session)
    assert summary == Summary(count=12, first=0, last=11, size=12, root=head.root)
    header, *entries, closing = (json.loads(line) for line in text.splitlines())
    assert header == {
        "format": "breakglass-export/1",
        "exported_at": "2026-03-02T02:00:00.000000Z",
        "selection": {"since": None, "until": None, "account": None, "request": None},
        "head": {"size": 12, "root": head.root.hex()},
        "count": 12,
    }
    for record, entry in zip(records, entries, strict=True):
        assert set(entry) == {"seq", "body", "leaf", "proof"}
        assert (entry["seq"], entry["body"].encode()) == (record.seq, record.body)
        assert bytes.fromhex(entry["leaf"]) == merkle.leaf_hash(record.body)
        proof = [bytes.fromhex(step) for step in entry["proof"]]
        assert merkle.verify_inclusion(record.leaf_hash, record.seq, 12, proof, head.root)
    before = text[: text.rstrip(b"\n").rindex(b"\n") + 1]
    assert closing == {"count": 12, "sha256": sha256(before).hexdigest()}
    assert text.isascii()


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ({}, range(12)),
        ({"since": NOW + timedelta(hours=2)}, range(2, 12)),
        ({"until": NOW + timedelta(hours=2)}, range(3)),
        ({"since": NOW + timedelta(hours=2, microseconds=1), "until": NOW + timedelta(hours=5)}, range(3, 6)),
        ({"since": NOW + timedelta(days=9)}, ()),
        ({"until": NOW - timedelta(days=9)}, ()),
        ({"request_id": "BG-2"}, (1, 4, 7, 10)),
        ({"request_id": "BG-2", "until": NOW + timedelta(hours=4)}, (1, 4)),
        ({"request_id": "BG-9"}, ()),
        ({"account": "orders-db"}, (0, 3, 6, 9)),
        ({"account": "=payments", "since": NOW + timedelta(hours=9)}, (10,)),
        ({"account": "orders-db", "request_id": "BG-2"}, ()),
    ],
)
@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_selection_holds_exactly_what_was_asked_for(
    database: Database, tmp_path: Path, selection: dict[str, Any], expected: Any, form: str
) -> None:
    """By time (both ends included), request, account and their combinations; each verifies, the empty one too."""
    fill(database)
    summary, text = take(database, format=form, **selection)
    assert summary.count == len(expected)
    assert (summary.first, summary.last) == ((expected[0], expected[-1]) if expected else (None, None))
    if form == "jsonl":
        assert seqs(text) == list(expected)
    (tmp_path / "file").write_bytes(text)
    report = verify_file(tmp_path / "file")
    assert report.findings == ()
    assert report.ok
    assert report.entries == len(expected)
    assert report.head == audit.Head(size=12, root=summary.root)


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_an_empty_log_exports_and_verifies(database: Database, tmp_path: Path, form: str) -> None:
    """Nothing is a provable answer, too."""
    summary, text = take(database, format=form)
    assert summary == Summary(count=0, first=None, last=None, size=0, root=merkle.EMPTY_ROOT)
    (tmp_path / "file").write_bytes(text)
    assert verify_file(tmp_path / "file").ok


def test_a_run_by_time_has_no_hole_when_a_clock_went_back(database: Database, tmp_path: Path) -> None:
    """Entries between two selected ones are part of the run, whatever their clock said, so that holes mean loss."""
    with database.write() as session:
        for hours in (0, 5, 1, 6, 9):
            audit.append(session, event="a:b", at=NOW + timedelta(hours=hours), actor=RITA)
    _, text = take(database, since=NOW + timedelta(hours=5), until=NOW + timedelta(hours=6))
    assert seqs(text) == [1, 2, 3]
    (tmp_path / "file").write_bytes(text)
    assert verify_file(tmp_path / "file").ok


def test_an_export_stands_at_one_head_while_the_log_grows(database: Database, tmp_path: Path) -> None:
    """Entries that are appended during the export are not in it, and it verifies."""
    fill(database)

    class Growing(io.BytesIO):
        """A file whose every written line makes the log grow."""

        def write(self, line: Any) -> int:
            with database.write() as session:
                audit.append(session, event="a:b", at=NOW, actor=RITA)
            return super().write(line)

    out = Growing()
    with database.read() as session:
        summary = export(session, out, exported_at=NOW)
    assert summary.size == summary.count == 12
    (tmp_path / "file").write_bytes(out.getvalue())
    assert verify_file(tmp_path / "file").ok
    with database.read() as session:
        assert audit.head(session).size > 12
        assert audit.check(session, trusted=audit.Head(summary.size, summary.root)) is None


def test_a_csv_export_is_one_clean_table(database: Database) -> None:
    """UTF-8 with the mark that Excel needs, one row of names, a fact row, the entries, and a closing row."""
    fill(database, evil='naïve, "quoted"\nand broken')
    summary, text = take(database, format="csv")
    assert text.startswith(BOM)
    rows = list(csv.DictReader(io.StringIO(text.removeprefix(BOM).decode(), newline="")))
    assert tuple(rows[0]) == COLUMNS
    assert [row["seq"] for row in rows] == ["export", *map(str, range(12)), "end"]
    assert text.count(b"\r\n") == text.count(b"\n") == 15
    row = rows[1]
    assert (row["at"], row["event"], row["request"]) == ("2026-03-01T02:00:00.000000Z", "request:open", "BG-1")
    assert (row["account"], row["team"], row["who"]) == ("orders-db", "T0HOME", "U0RITA")
    assert (row["from"], row["to"], row["refused"]) == ("", "pending", "")
    assert json.loads(row["data"]) == {"reason": 'naïve, "quoted"\nand broken', "n": 0}
    proof = [bytes.fromhex(step) for step in row["proof"].split(" ")]
    assert merkle.verify_inclusion(merkle.leaf_hash(row["body"].encode()), 0, 12, proof, summary.root)
    assert json.loads(rows[0]["body"])["head"] == {"size": 12, "root": summary.root.hex()}
    before = text[: text.rstrip(b"\r\n").rindex(b"\n") + 1]
    assert json.loads(rows[-1]["body"]) == {"count": 12, "sha256": sha256(before).hexdigest()}


@pytest.mark.parametrize("evil", ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1", "＝1"])  # noqa: RUF001
def test_attack_a_formula_in_a_spreadsheet_is_disarmed(database: Database, tmp_path: Path, evil: str) -> None:
    """No cell of a CSV begins with what a spreadsheet runs, and the file verifies all the same."""
    with database.write() as session:
        session.add(request_row("BG-1", evil))
        audit.append(session, event="a:b", at=NOW, actor=RITA, request_id="BG-1", data={evil: evil})
        audit.append(session, event="a:b", at=NOW, actor=audit.Actor("", f"={evil.strip().split(' ')[0]}"))
    _, text = take(database, format="csv")
    for row in csv.reader(io.StringIO(text.removeprefix(BOM).decode(), newline="")):
        for cell in row:
            assert not cell.lstrip().startswith(tuple("=+-@＝"))  # noqa: RUF001
            assert not cell.startswith(("\t", "\r"))
    (tmp_path / "file").write_bytes(text)
    assert verify_file(tmp_path / "file").findings == ()


@pytest.mark.parametrize(
    "evil", ["\x7f\x85\u2028\u2029\x1b[2J", "\u202egnp.exe", "\0", "\u2066", "x" * 50_000, "é" * 25_000]
)
@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_whatever_people_type_exports_and_verifies(database: Database, tmp_path: Path, evil: str, form: str) -> None:
    """Line separators, escapes, text that turns direction and the longest entries survive both formats."""
    fill(database, evil=evil)
    _, text = take(database, format=form)
    (tmp_path / "file").write_bytes(text)
    assert verify_file(tmp_path / "file").findings == ()
    assert b"\x1b" not in text


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("form", ["jsonl", "csv"])
@pytest.mark.parametrize("body", [b"{}", b"=1", b"two\r\nlines"])
def test_a_body_changed_in_the_table_is_exported_and_named(
    database: Database, database_url: str, tmp_path: Path, form: str, body: bytes
) -> None:
    """An export shows the log as it is stored; its verification names the entry that was changed, and only that."""
    fill(database)
    tamper(database_url, "UPDATE entry SET body = ? WHERE seq = 7", body)
    _, text = take(database, format=form)
    (tmp_path / "file").write_bytes(text)
    report = verify_file(tmp_path / "file")
    assert not report.ok
    assert {finding.seq for finding in report.findings} == {7}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("change", "seq"),
    [
        ("UPDATE entry SET leaf_hash = zeroblob(32) WHERE seq = 7", 7),
        ("UPDATE entry SET leaf_hash = zeroblob(31) WHERE seq = 7", 7),
        ("UPDATE entry SET root = zeroblob(32) WHERE seq = 11", 11),
        ("DELETE FROM entry WHERE seq = 7", 7),
        ("UPDATE entry SET body = x'ff' WHERE seq = 7", 7),
        ("UPDATE entry SET body = 'text' WHERE seq = 7", 7),
    ],
)
def test_a_log_that_does_not_lead_to_its_head_is_not_exported(
    database: Database, database_url: str, change: str, seq: int
) -> None:
    """Where no honest file can be written, the export says which entry is to blame."""
    fill(database)
    tamper(database_url, change)
    for form in ("jsonl", "csv"):
        with pytest.raises(audit.Damaged) as damaged:
            take(database, format=form)
        assert damaged.value.seq == seq


def tamper(database_url: str, change: str, *values: Any) -> None:
    """Change the table as the owner of the file can."""
    with closing(sqlite3.connect(str(make_url(database_url).database))) as connection:
        for guard in ("entry_no_update", "entry_no_delete"):
            connection.execute(f"DROP TRIGGER {guard}")
        connection.execute(change, values)
        connection.commit()
