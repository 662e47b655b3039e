"""Is every change of an exported file found, the first bad entry named, and no hostile file a crash?"""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import audit, merkle
from storage.database import Database
from storage.export import BOM, COLUMNS, csv_fact, csv_line, export, json_line
from storage.verify import MAX_FINDINGS, verify_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NOW = datetime(2026, 3, 1, 2, 0, tzinfo=UTC)
CARL = audit.Actor(team="T0HOME", person="U0CARL")
FORMS: Final = ("jsonl", "csv")


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Whole-log exports of nine entries, in both formats, and those of one request."""
    database = Database(f"sqlite:///{tmp_path_factory.mktemp('verify') / 'log.db'}")
    database.setup()
    with database.write() as session:
        for number in range(9):
            audit.append(
                session,
                event="request:approve",
                at=NOW + timedelta(hours=number),
                actor=CARL,
                request_id=("BG-1", "BG-2", None)[number % 3],
                target="approved",
                data={"n": number, "reason": "naïve"},
            )
    made = {}
    for form in FORMS:
        for name, selection in (
            ("", {}),
            ("-one", {"request_id": "BG-2"}),
            ("-day", {"since": NOW + timedelta(hours=3)}),
        ):
            out = io.BytesIO()
            with database.read() as session:
                export(session, out, exported_at=NOW, format=form, **selection)  # type: ignore[arg-type]
            made[form + name] = out.getvalue()
    database.close()
    return made


@pytest.fixture
def verify(tmp_path: Path) -> Callable[[bytes], Any]:
    """Verify bytes as a file."""

    def run(text: bytes) -> Any:
        (tmp_path / "file").write_bytes(text)
        return verify_file(tmp_path / "file")

    return run


def close_again(lines: list[bytes], form: str, count: int | None = None) -> bytes:
    """Write the closing line anew, as an attacker does who knows the format."""
    *before, closing = lines
    members = json.loads(closing if form == "jsonl" else next(csv.reader([closing.decode()]))[-3])
    members = {"count": members["count"] if count is None else count, "sha256": sha256(b"".join(before)).hexdigest()}
    return b"".join(before) + (json_line(members) if form == "jsonl" else csv_fact("end", members))


def entry_line(form: str, body: bytes, leaf: bytes, proof: list[str]) -> bytes:
    """One entry's line, made by hand."""
    record = audit.parse(body)
    if form == "jsonl":
        return json_line({"seq": record.seq, "body": body.decode(), "leaf": leaf.hex(), "proof": proof})
    from storage.export import people_cells  # noqa: PLC0415 - only here

    return csv_line([*people_cells(record, ""), body.decode(), leaf.hex(), " ".join(proof)])


def first(form: str) -> int:
    """Index of the first entry's line."""
    return 1 if form == "jsonl" else 2


def test_untouched_exports_verify(exports: dict[str, bytes], verify: Callable[[bytes], Any]) -> None:
    """Each of the exports is without a finding, and tells the head that it stands at."""
    for name, text in exports.items():
        report = verify(text)
        assert report.findings == (), name
        assert report.ok
        assert report.head.size == 9
        assert report.entries == (3 if "one" in name else 6 if "day" in name else 9)


# --- what an attacker does to lines --------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["", "-one", "-day"])
def test_attack_cutting_the_file_off(
    exports: dict[str, bytes], verify: Callable[[bytes], Any], form: str, name: str
) -> None:
    """A file that ends anywhere before its end does not verify."""
    text = exports[form + name]
    for end in [*range(0, len(text), 97), *range(len(text) - 40, len(text))]:
        assert not verify(text[:end]).ok, end


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["", "-one"])
def test_attack_dropping_doubling_swapping_adding_lines(
    exports: dict[str, bytes], verify: Callable[[bytes], Any], form: str, name: str
) -> None:
    """Each operation on whole lines is found, wherever it is done."""
    lines = exports[form + name].splitlines(keepends=True)
    for at in range(len(lines)):
        assert not verify(b"".join(lines[:at] + lines[at + 1 :])).ok, f"dropped {at}"
        assert not verify(b"".join([*lines[:at], lines[at], *lines[at:]])).ok, f"doubled {at}"
        for foreign in (b"\n", b"foreign\n", b"{}\n", b"\0\n", lines[first(form)]):
            assert not verify(b"".join([*lines[:at], foreign, *lines[at:]])).ok, f"{foreign!r} before {at}"
        if at + 1 < len(lines):
            assert not verify(b"".join([*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :]])).ok, f"swapped {at}"
    assert not verify(b"".join(lines) + b"\n").ok
    assert not verify(b"".join(lines) + lines[-1]).ok


@pytest.mark.parametrize("form", FORMS)
def test_attack_dropping_an_entry_and_closing_again(
    exports: dict[str, bytes], verify: Callable[[bytes], Any], form: str
) -> None:
    """Whoever recomputes the closing line is found by the hole, and the hole's entry is named."""
    lines = exports[form].splitlines(keepends=True)
    for seq in range(9):
        rest = lines[: seq + first(form)] + lines[seq + first(form) + 1 :]
        report = verify(close_again(rest, form, count=8))
        assert not report.ok
        assert seq in {finding.seq for finding in report.findings}


@pytest.mark.parametrize("form", FORMS)
def test_attack_doubling_and_swapping_entries_and_closing_again(
    exports: dict[str, bytes], verify: Callable[[bytes], Any], form: str
) -> None:
    """An entry that stands twice, or before an earlier one, is named."""
    lines = exports[form].splitlines(keepends=True)
    at = first(form) + 4
    report = verify(close_again([*lines[:at], lines[at], *lines[at:]], form, count=10))
    assert (report.findings[0].seq, report.findings[0].sentence) == (4, "It stands in the file twice.")
    swapped = [*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :]]
    report = verify(close_again(swapped, form))
    assert report.findings == ((4, "It is missing from its place."), (4, "It stands after entry 5."))


@pytest.mark.parametrize("form", FORMS)
def test_attack_changing_a_body_names_the_entry(
    exports: dict[str, bytes], verify: Callable[[bytes], Any], form: str
) -> None:
    """A changed word is found by the leaf; with the leaf computed anew, by the proof; both name the entry."""
    lines = exports[form].splitlines(keepends=True)
    for seq in range(9):
        at = seq + first(form)
        row = lines[at]
        if form == "jsonl":
            members = json.loads(row)
            body, leaf, proof = members["body"], members["leaf"], members["proof"]
        else:
            body, leaf, steps = next(csv.reader([row.decode()]))[-3:]
            proof = steps.split(" ")
        changed = body.replace("U0CARL", "U0CORA").encode()
        for new_leaf in (bytes.fromhex(leaf), merkle.leaf_hash(changed)):
            forged = [*lines[:at], entry_line(form, changed, new_leaf, proof), *lines[at + 1 :]]
            report = verify(close_again(forged, form))
            assert {finding.seq for finding in report.findings} == {seq}
            report = verify(b"".join(forged))
            assert report.findings[0].seq == seq


def test_attack_changing_what_people_read_in_a_csv(exports: dict[str, bytes], verify: Callable[[bytes], Any]) -> None:
    """A row whose readable columns differ from its hashed body is named, though every hash is right."""
    lines = exports["csv"].splitlines(keepends=True)
    for column, word in (("who", "U0CORA"), ("at", "2026-03-01T00:00:00.000000Z"), ("to", ""), ("data", "{}")):
        cells = next(csv.reader([lines[6].decode()]))
        cells[COLUMNS.index(column)] = word
        report = verify(close_again([*lines[:6], csv_line(cells), *lines[7:]], "csv"))
        assert report.findings == ((4, "Its readable columns say something else than its body."),)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"count": 8}, "promises"),
        ({"selection": {"since": None, "until": None, "account": None, "request": "BG-1"}}, "does not belong"),
        ({"selection": {"since": None, "until": None, "account": "orders", "request": None}}, "does not belong"),
        (
            {"selection": {"since": "2026-03-01T03:00:00.000000Z", "until": None, "account": None, "request": None}},
            "from before",
        ),
        (
            {"selection": {"since": None, "until": "2026-03-01T03:00:00.000000Z", "account": None, "request": None}},
            "from after",
        ),
        ({"head": {"size": 10, "root": "0" * 64}}, "does not lead to the head"),
        ({"head": {"size": 0, "root": "0" * 64}}, "not an export"),
        ({"head": {"size": True, "root": "0" * 64}}, "not an export"),
        ({"head": {"size": 9, "root": "0" * 63}}, "not an export"),
        ({"head": {"size": 1 << 70, "root": "0" * 64}}, "not an export"),
        ({"head": []}, "not an export"),
        ({"format": "breakglass-export/2"}, "not an export"),
        ({"exported_at": "yesterday"}, "not an export"),
        ({"exported_at": None}, "not an export"),
        ({"selection": {}}, "not an export"),
        ({"selection": {"since": 1, "until": None, "account": None, "request": None}}, "not an export"),
        ({"count": -1}, "not an export"),
        ({"count": 9.0}, "not an export"),
        ({"more": 1}, "not an export"),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_attack_a_false_header(
    exports: dict[str, bytes], verify: Callable[[bytes], Any], form: str, change: dict[str, Any], words: str
) -> None:
    """A header that promises something else than the entries show, or is malformed, does not verify."""
    lines = exports[form].splitlines(keepends=True)
    at = first(form) - 1
    header = json.loads(lines[at] if form == "jsonl" else next(csv.reader([lines[at].decode()]))[-3]) | change
    lines[at] = json_line(header) if form == "jsonl" else csv_fact("export", header)
    report = verify(close_again(lines, form))
    assert not report.ok
    assert any(words in finding.sentence for finding in report.findings)


def test_a_head_of_another_log_is_told(exports: dict[str, bytes], verify: Callable[[bytes], Any]) -> None:
    """A whole log made up anew verifies by itself; its head differs from the true one, which is why heads are kept."""
    lines = exports["jsonl"].splitlines(keepends=True)
    bodies = [json.loads(line)["body"].replace("U0CARL", "U0CORA").encode() for line in lines[1:-1]]
    tree = merkle.Tree(map(merkle.leaf_hash, bodies))
    header = json.loads(lines[0]) | {"head": {"size": 9, "root": tree.root.hex()}}
    forged = [json_line(header)]
    for seq, body in enumerate(bodies):
        proof = [step.hex() for step in tree.inclusion(seq)]
        forged.append(entry_line("jsonl", body, merkle.leaf_hash(body), proof))
    report = verify(close_again([*forged, lines[-1]], "jsonl"))
    assert report.ok
    assert report.head != verify(exports["jsonl"]).head


# --- hostile files -------------------------------------------------------------------------------------------------


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(data=st.data())
def test_any_change_of_any_byte_is_found(
    exports: dict[str, bytes], verify: Callable[[bytes], Any], data: st.DataObject
) -> None:
    """Flipping, inserting, removing or replacing bytes anywhere gives findings, and never an exception."""
    text = exports[data.draw(st.sampled_from(sorted(exports)))]
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 40)))
    noise = data.draw(
        st.binary(max_size=8)
        | st.sampled_from([b"\n", b'"', b",", b"{", b"}", b"[" * 9000, b"9" * 5000, b"\\ud800", b"\0", b"NaN", BOM])
    )
    changed = text[:start] + noise + text[end:]
    assert verify(changed).ok == (changed == text)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_json_in_any_place_is_never_a_crash(
    exports: dict[str, bytes], verify: Callable[[bytes], Any], data: st.DataObject
) -> None:
    """Well-formed lines with values of the wrong kind anywhere, closed correctly, are findings."""
    lines = exports["jsonl"].splitlines(keepends=True)
    at = data.draw(st.integers(0, len(lines) - 1))
    members = json.loads(lines[at])
    name = data.draw(st.sampled_from(sorted(members)))
    value = data.draw(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("0" * 64),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
            max_leaves=5,
        )
    )
    changed = json.dumps(members | {name: value}, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    is_same = changed == lines[at]
    lines[at] = changed
    report = verify(close_again(lines, "jsonl") if at < len(lines) - 1 else b"".join(lines))
    assert report.ok == is_same


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\n",
        b"\0" * 5000,
        b"{}",
        b"{}\n",
        b"[" * 2_000_000,
        b'{"a":' * 200_000,
        BOM,
        BOM + csv_line(COLUMNS),
        BOM + csv_line(COLUMNS) + b'"' + b"x" * 300_000,
        BOM + csv_line(COLUMNS) + csv_fact("export", {}),
        "{}".encode("utf-16"),
        b"\xff\xfe\xff",
        b"x" * 5_000_000,
    ],
)
def test_a_file_that_is_no_export_is_a_finding(verify: Callable[[bytes], Any], text: bytes) -> None:
    """Empty, binary, nested, endless or foreign: one sentence, no entries."""
    report = verify(text)
    assert not report.ok
    assert report.entries == 0
    assert report.head is None
    assert "not an export" in report.findings[0].sentence


@pytest.mark.parametrize("form", FORMS)
def test_an_endless_line_is_cut_not_read(exports: dict[str, bytes], verify: Callable[[bytes], Any], form: str) -> None:
    """A line longer than any entry stops the reading: what would fill the memory is not held."""
    lines = exports[form].splitlines(keepends=True)
    report = verify(b"".join(lines[:4]) + b"x" * 3_000_000 + b"\n" + b"".join(lines[4:]))
    assert not report.ok
    assert len(report.findings) <= 4


def test_findings_are_bounded(exports: dict[str, bytes], verify: Callable[[bytes], Any]) -> None:
    """A file of rubbish lines does not give a report without end."""
    header = exports["jsonl"].splitlines(keepends=True)[0]
    report = verify(header + b"rubbish\n" * 10_000)
    assert len(report.findings) == MAX_FINDINGS + 1
    assert "more findings" in report.findings[-1].sentence


def test_a_file_that_cannot_be_read_is_a_finding(tmp_path: Path) -> None:
    """A missing file and a folder are sentences, too."""
    for path in (tmp_path / "missing", tmp_path):
        report = verify_file(str(path))
        assert not report.ok
        assert "cannot be read" in report.findings[0].sentence
