"""Is this export what the log held, and if not, which entry is wrong?

Rules
-----
* Nothing is trusted but the file's own bytes; no database, no key and no network is used.
* Every hash is recomputed, every proof is followed, every line is read strictly: one spelling of each value.
* A hostile file gets findings, never an exception and never unbounded memory.
* What cannot be seen from a file alone is a whole log made up anew. Compare the head (size and root) with one that was
  received elsewhere or earlier; ``FORMAT.md`` says how.
"""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from storage import audit, merkle
from storage.audit import Finding, Head
from storage.export import BOM, COLUMNS, FORMAT, csv_fact, csv_line, json_line, people_cells

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from pathlib import Path
    from typing import BinaryIO

MAX_FINDINGS: Final = 50
# A body has at most 60,000 bytes; escaped for JSON in JSON each of them takes at most eleven.
_MAX_LINE: Final = 1 << 20
_HASH: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_NOT_AN_EXPORT: Final = "This is not an export that this version can read."


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
    """Check an export, either format. Findings come in the order of the file; a file that cannot be read is one."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - a str is a path here, too
            return _Verifier().run(file)
    except OSError as error:
        return Report(entries=0, findings=(Finding(None, f"The file cannot be read: {error.strerror}."),))


@dataclass(frozen=True, slots=True)
class _Header:
    head: Head
    count: int
    since: datetime | None
    until: datetime | None
    account: str | None
    request_id: str | None

    @property
    def is_run(self) -> bool:
        """Whether the entries must follow each other without a hole."""
        return self.account is None and self.request_id is None


@dataclass(frozen=True, slots=True)
class _EntryLine:
    seq: int
    body: bytes
    leaf: bytes
    proof: tuple[bytes, ...]
    cells: tuple[str, ...] | None = None  # of a CSV row


@dataclass(frozen=True, slots=True)
class _ClosingLine:
    count: int
    sha256: str


class _Verifier:
    """One pass over one file."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.entries = 0
        self.last: tuple[int, datetime | None] | None = None
        self.passed = sha256()  # over the lines before the present one

    def find(self, seq: int | None, sentence: str) -> None:
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(Finding(seq, sentence))
        elif len(self.findings) == MAX_FINDINGS:
            self.findings.append(Finding(None, "There are more findings than are listed."))

    def run(self, file: BinaryIO) -> Report:
        lines = _lines(file)
        first = next(lines, b"")
        is_csv = first == BOM + csv_line(COLUMNS)
        if is_csv:
            self.passed.update(first)
            first = next(lines, b"")
        try:
            header = _read_header(_read_csv_fact("export", first) if is_csv else _read_json(first))
        except ValueError:
            self.find(None, _NOT_AN_EXPORT)
            return Report(entries=0, findings=tuple(self.findings))
        self.passed.update(first)
        closing: _ClosingLine | None = None
        for number, line in enumerate(lines, start=3 if is_csv else 2):
            if closing is not None:
                self.find(None, f"Line {number} stands after the closing line.")
                break
            try:
                read = _read_csv(line) if is_csv else _read_jsonl(line)
            except ValueError as error:
                self.find(None, f"Line {number} is not a line of an export: {error}.")
                if len(line) > _MAX_LINE:
                    break
            else:
                if isinstance(read, _ClosingLine):
                    closing = read
                    self._close(closing)
                else:
                    self._enter(read, header)
            self.passed.update(line)
        if closing is None:
            self.find(None, "The file ends without its closing line: it was cut off.")
        self._finish(header)
        return Report(entries=self.entries, findings=tuple(self.findings), head=header.head)

    def _enter(self, line: _EntryLine, header: _Header) -> None:
        """Check one entry: its place, its body, its hash, its proof, its being selected."""
        self.entries += 1
        highest = self.last[0] if self.last else None
        if highest is not None and line.seq <= highest:
            again = "stands in the file twice" if line.seq == highest else f"stands after entry {highest}"
            self.find(line.seq, f"It {again}.")
        elif header.is_run and highest is not None and line.seq != highest + 1:
            self.find(highest + 1, "It is missing from its place.")
        if highest is None or line.seq > highest:
            self.last = (line.seq, None)
        if line.leaf != merkle.leaf_hash(line.body):
            self.find(line.seq, "Its body or its leaf hash was changed: they do not belong together.")
        elif not merkle.verify_inclusion(line.leaf, line.seq, header.head.size, line.proof, header.head.root):
            self.find(line.seq, "Its proof does not lead to the head: it is not this entry of this log.")
        try:
            record = audit.parse(line.body)
        except ValueError as error:
            self.find(line.seq, f"Its body was not written by the log: {error}.")
            return
        if record.seq != line.seq:
            self.find(line.seq, f"Its body says that it is entry {record.seq}.")
        if line.cells is not None and line.cells != tuple(people_cells(record, line.cells[4])):
            self.find(line.seq, "Its readable columns say something else than its body.")
        if highest is None:
            self._begin(record, header)
        if not header.is_run and not _is_selected(record, header):
            self.find(line.seq, "It does not belong to what the header says was selected.")
        if self.last == (line.seq, None):
            self.last = (line.seq, record.at)

    def _begin(self, record: audit.Record, header: _Header) -> None:
        """Check that a run begins where the selection says."""
        if not header.is_run:
            return
        if header.since is None and record.seq != 0:
            self.find(0, "It is missing: nothing says that the export should begin later.")
        elif header.since is not None and record.at < header.since:
            self.find(record.seq, "It is from before the time that the header says was selected.")

    def _finish(self, header: _Header) -> None:
        """Check that all of the selection is there."""
        if self.entries != header.count:
            self.find(None, f"The header promises {header.count} entries, and there are {self.entries}.")
        if not header.is_run:
            return
        if self.last is None:
            if header.since is None and header.until is None and header.head.size:
                self.find(0, "It is missing: the whole log was selected.")
            return
        seq, at = self.last
        if header.until is None and seq != header.head.size - 1:
            self.find(seq + 1, "It is missing: nothing says that the export should end earlier.")
        elif header.until is not None and at is not None and at > header.until:
            self.find(seq, "It is from after the time that the header says was selected.")

    def _close(self, closing: _ClosingLine) -> None:
        if closing.count != self.entries:
            self.find(None, f"The closing line counts {closing.count} entries, and there are {self.entries}.")
        if closing.sha256 != self.passed.hexdigest():
            self.find(None, "The closing hash does not match: a line was changed, dropped, added or moved.")


def _is_selected(record: audit.Record, header: _Header) -> bool:
    return (
        (header.since is None or record.at >= header.since)
        and (header.until is None or record.at <= header.until)
        and (header.request_id is None or record.request_id == header.request_id)
        and (header.account is None or record.request_id is not None)
    )


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines with their ends. One that is too long is cut, so that it is refused and nothing piles up."""
    return iter(lambda: file.readline(_MAX_LINE + 1), b"")


# --- reading lines: ValueError says what is wrong ------------------------------------------------------------------


def _read_json(line: bytes) -> dict[str, Any]:
    try:
        members = json.loads(line)
        is_canonical = type(members) is dict and json_line(members) == line
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    if not is_canonical:
        raise ValueError("it is not written as an export is")
    return dict(members)


def _read_row(line: bytes) -> list[str]:
    try:
        (cells,) = csv.reader([line.decode()], strict=True)
        is_canonical = len(cells) == len(COLUMNS) and csv_line(cells) == line
    except (ValueError, csv.Error):
        raise ValueError("it is not a row") from None
    if not is_canonical:
        raise ValueError("it is not written as an export is")
    return cells


def _read_csv_fact(name: str, line: bytes) -> dict[str, Any]:
    cells = _read_row(line)
    members = _read_json(cells[-3].encode() + b"\n")
    if csv_fact(name, members) != line:
        raise ValueError("it is not written as an export is")
    return members


def _read_jsonl(line: bytes) -> _EntryLine | _ClosingLine:
    members = _read_json(line)
    if set(members) == {"count", "sha256"}:
        return _read_closing(members)
    if set(members) != {"seq", "body", "leaf", "proof"}:
        raise ValueError("it is neither an entry nor the closing line")
    body, proof = members["body"], members["proof"]
    if not isinstance(body, str) or not isinstance(proof, list):
        raise ValueError("its body or its proof is of the wrong kind")  # noqa: TRY004 - all that is wrong is ValueError
    return _EntryLine(
        seq=_count(members["seq"]), body=_encode(body), leaf=_hash(members["leaf"]), proof=tuple(map(_hash, proof))
    )


def _read_csv(line: bytes) -> _EntryLine | _ClosingLine:
    cells = _read_row(line)
    if cells[0] == "end":
        return _read_closing(_read_csv_fact("end", line))
    *people, body, leaf, proof = cells
    if not re.fullmatch(r"0|[1-9][0-9]{0,18}", people[0], re.ASCII):
        raise ValueError("it is neither an entry nor the closing row")
    return _EntryLine(
        seq=_count(int(people[0])),
        body=_encode(body),
        leaf=_hash(leaf),
        proof=tuple(map(_hash, proof.split(" "))) if proof else (),
        cells=tuple(people),
    )


def _read_closing(members: dict[str, Any]) -> _ClosingLine:
    return _ClosingLine(count=_count(members["count"]), sha256=_hash(members["sha256"]).hex())


def _read_header(members: dict[str, Any]) -> _Header:
    head, selection = members.get("head"), members.get("selection")
    if (
        set(members) != {"format", "exported_at", "selection", "head", "count"}
        or members["format"] != FORMAT
        or not isinstance(head, dict)
        or set(head) != {"size", "root"}
        or not isinstance(selection, dict)
        or set(selection) != {"since", "until", "account", "request"}
        or not all(value is None or isinstance(value, str) for value in selection.values())
        or not isinstance(members["exported_at"], str)
    ):
        raise ValueError("it is not the header of an export")
    audit.read_time(members["exported_at"])
    header = _Header(
        head=Head(size=_count(head["size"]), root=_hash(head["root"])),
        count=_count(members["count"]),
        since=audit.read_time(selection["since"]) if selection["since"] is not None else None,
        until=audit.read_time(selection["until"]) if selection["until"] is not None else None,
        account=selection["account"],
        request_id=selection["request"],
    )
    if header.head.size == 0 and header.head.root != merkle.EMPTY_ROOT:
        raise ValueError("its head is not that of an empty log")
    return header


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError("a number is of the wrong kind")
    return value


def _hash(value: object) -> bytes:
    if not isinstance(value, str) or not _HASH.fullmatch(value):
        raise ValueError("a hash is of the wrong kind")
    return bytes.fromhex(value)


def _encode(body: str) -> bytes:
    try:
        return body.encode()
    except UnicodeEncodeError:
        raise ValueError("its body is not Unicode") from None
