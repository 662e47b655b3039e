"""Does the terminal tell the whole case, from the database and from what was exported, and nothing but words?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from bundling import Writer, take

from bot import cli
from storage import audit
from storage.database import Database

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STATEMENT = "SELECT 1 -- \x1b[31mred\x1b]0;title\x07 \u202e\nDROP TABLE orders"


@pytest.fixture
def log(tmp_path: Path, sqlite_template: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """A reviewed use with commands, and another request."""
    file = tmp_path / "log.db"
    file.write_bytes(sqlite_template.read_bytes())
    monkeypatch.setenv("BREAKGLASS_DATABASE_URL", f"sqlite:///{file}")
    database = Database(f"sqlite:///{file}")
    writer = Writer(database)
    writer.reviewed("BG-7KQ2")
    ran = {"source": "orders-pg", "trust": "enforced", "at": audit.write_time(writer.now), "class": "read"}
    writer.entry("BG-7KQ2", "command:run", "U0RITA", data={**ran, "text": STATEMENT, "rows": 3})
    writer.entry("BG-7KQ2", "command:run", "U0RITA", data={**ran, "text": "DELETE FROM t", "danger": "whole table"})
    writer.entry("BG-7KQ2", "command:close", data={"source": "orders-pg", "commands": 2, "gaps": [{"missing": 4}]})
    writer.open("BG-OTHER")
    writer.entry("BG-OTHER", "command:run", "U0RITA", data={**ran, "text": "SELECT 'of another'"})
    yield database
    database.close()


def test_a_case_and_its_commands_are_one_timeline(log: Database, capsys: pytest.CaptureFixture[str]) -> None:
    """Steps and commands stand in the log's order, with what is missing, and what it all comes to at the end."""
    assert cli.main(["show", "bg-7kq2"]) == cli.OK
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert any("Asked for orders-db" in line for line in lines)
    assert "DELETE FROM t  [read, DANGEROUS: whole table]" in said
    assert "(session ended: 2 commands, 4 lines missing)" in said
    assert "2 commands: 2 read." in said
    assert "State: reviewed." in said
    assert said.index("Filed the review") < said.index("DELETE FROM t")
    assert "of another" not in said


def test_the_terminal_gets_no_control_character(log: Database, capsys: pytest.CaptureFixture[str]) -> None:
    """Attack: escape sequences in a statement would retitle, paint or type into the reader's terminal."""
    cli.main(["show", "BG-7KQ2"])
    said = capsys.readouterr().out
    assert not {char for char in said if (ord(char) < 32 and char != "\n") or char in "\x7f\x9b\u202e"}
    assert "red]0;title  DROP TABLE orders  [read, 3 rows]" in said


@pytest.mark.parametrize("form", ["jsonl", "bundle"])
def test_an_export_tells_the_same(log: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    """What was exported is enough; the database may be gone."""
    out = tmp_path / f"out.{form}"
    if form == "bundle":
        out.write_bytes(take(log)[1])
    else:
        assert cli.main(["export", "-o", str(out)]) == cli.OK
    capsys.readouterr()
    cli.main(["show", "BG-7KQ2"])
    of_database = capsys.readouterr().out
    assert cli.main(["show", "BG-7KQ2", "--from", str(out)]) == cli.OK
    assert capsys.readouterr().out.splitlines()[:-1] == of_database.splitlines()[:-1]
    assert cli.main(["show", "BG-NONE", "--from", str(out)]) == cli.REFUSED


@pytest.mark.parametrize("content", [b"", b"seq,body\n1,2\n", b"PK\x03\x04 torn", None])
def test_what_is_no_export_is_a_sentence(log: Database, tmp_path: Path, content: bytes | None) -> None:
    """A table, a torn zip, an empty file and no file at all are said in words."""
    file = tmp_path / "given"
    if content is not None:
        file.write_bytes(content)
    assert cli.main(["show", "BG-7KQ2", "--from", str(file)]) == cli.UNAVAILABLE


def test_a_request_that_is_not_there_is_a_sentence(log: Database, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong number and a wrong word each say how it is written."""
    assert cli.main(["show", "BG-ZZZZ"]) == cli.REFUSED
    assert cli.main(["show", "nothing"]) == cli.REFUSED
    assert "breakglass show BG-7KQ2" in capsys.readouterr().err
