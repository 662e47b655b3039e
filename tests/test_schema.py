"""Is a database of another version completed, or named and refused, on both kinds, and never half changed?"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from sqlalchemy.engine import make_url
from test_database import append, raw

from bot import cli
from storage import audit
from storage.database import Database, DatabaseDown, OtherVersion

if TYPE_CHECKING:
    from bot.demo.parts import Postgres

OPERATIONS = Path(__file__).parent.parent / "bot" / "OPERATIONS.md"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database of one's own that is set up, with one entry."""
    if request.param == "postgresql":
        url = str(request.getfixturevalue("fresh_postgresql"))
    else:
        url = f"sqlite:///{tmp_path / 'breakglass.db'}"
    database = Database(url)
    database.setup()
    append(database)
    database.close()
    return url


def columns(url: str, table: str) -> set[str]:
    """The columns that a table has."""
    if url.startswith("sqlite"):
        return {row[1] for row in raw(url, f'PRAGMA table_info("{table}")')}
    query = f"SELECT column_name FROM information_schema.columns WHERE table_name = '{table}'"
    return {row[0] for row in raw(url, query)}


def set_up(url: str) -> None:
    """Start on it."""
    database = Database(url)
    try:
        database.setup()
        append(database)
        with database.read() as session:
            assert audit.check(session) is None
    finally:
        database.close()


def test_a_column_that_may_be_empty_is_added(url: str) -> None:
    """The older database gets it, of the right kind, and runs; a second start changes nothing."""
    before = columns(url, "request")
    raw(url, "ALTER TABLE request DROP COLUMN warned_at", "ALTER TABLE request DROP COLUMN ended_by")
    set_up(url)
    set_up(url)
    assert columns(url, "request") == before


def test_a_table_that_is_missing_is_created(url: str) -> None:
    """As at the first start."""
    raw(url, "DROP TABLE post")
    set_up(url)
    assert "tried_at" in columns(url, "post")


def test_a_column_that_needs_a_value_is_named_and_nothing_is_changed(url: str) -> None:
    """It is refused in a sentence, and what could have been added is not added either."""
    raw(url, 'ALTER TABLE "grant" DROP COLUMN options', "ALTER TABLE request DROP COLUMN warned_at")
    with pytest.raises(OtherVersion, match=r"another version.*: grant\.options\."):
        set_up(url)
    assert "warned_at" not in columns(url, "request")


def test_each_statement_of_the_operations_helps(url: str) -> None:
    """What the document says to run is run: then the bot starts."""
    rows = re.findall(r"^\| `(\w+)\.(\w+)` \| `(ALTER TABLE [^`]+)` \|$", OPERATIONS.read_text("utf-8"), re.MULTILINE)
    assert rows
    for table, column, _ in rows:
        raw(url, f'ALTER TABLE "{table}" DROP COLUMN {column}')
    with pytest.raises(OtherVersion):
        set_up(url)
    raw(url, *(statement for _, _, statement in rows))
    set_up(url)


def test_a_database_of_a_newer_version_is_named(url: str) -> None:
    """A column that this version would have to leave empty, and may not, is refused before anything is written."""
    raw(url, "ALTER TABLE request ADD COLUMN mood TEXT NOT NULL DEFAULT 'calm'")
    set_up(url)
    if url.startswith("sqlite"):
        raw(url, "DROP TABLE post", "CREATE TABLE post (request_id TEXT, mood TEXT NOT NULL)")
    else:
        raw(url, "ALTER TABLE post ADD COLUMN mood TEXT NOT NULL")
    with pytest.raises(OtherVersion, match=r"post\.mood"):
        set_up(url)


def test_a_role_that_owns_nothing_is_told_who_must_do_it(postgres: Postgres, fresh_postgresql: str) -> None:
    """Neither a table nor a column can be made by it: that is a sentence, not the library's error."""
    with psycopg.connect(postgres.dsn, autocommit=True) as connection:
        connection.execute("CREATE ROLE lodger LOGIN PASSWORD 'lodger'")
    raw(fresh_postgresql, "GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA public TO lodger")
    poor = make_url(fresh_postgresql).set(username="lodger", password="lodger").render_as_string(hide_password=False)
    set_up(poor)
    for change in ("ALTER TABLE request DROP COLUMN warned_at", "DROP TABLE post"):
        raw(fresh_postgresql, change)
        with pytest.raises(DatabaseDown, match="its owner has to create what is missing"):
            set_up(poor)


@pytest.mark.parametrize(
    "words", [("verify",), ("export", "--account", "orders-db", "--format", "bundle", "--no-pdf", "-o", "out.zip")]
)
def test_a_command_on_an_older_database_ends_in_a_sentence(
    url: str,
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What does not set the database up says the same, with exit code 3 and without a traceback."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BREAKGLASS_DATABASE_URL", url)
    monkeypatch.setenv("BREAKGLASS_POLICY", str(OPERATIONS.parent / "demo" / "breakglass.yml"))
    raw(url, "DROP INDEX ix_request_account", "ALTER TABLE request DROP COLUMN account")
    assert cli.main(list(words)) == cli.UNAVAILABLE
    said = capsys.readouterr().err
    assert "made by an older version: it has no column account yet. Read “An older database”" in said


def test_serve_on_a_database_of_another_version_ends_in_a_sentence(url: str) -> None:
    """The real program stops before it listens to anything: exit code 3, one line, no traceback."""
    raw(url, 'ALTER TABLE "grant" DROP COLUMN options')
    environment = {
        "SLACK_BOT_TOKEN": "xoxb-none",
        "SLACK_APP_TOKEN": "xapp-none",
        "SLACK_API_URL": "http://127.0.0.1:9/api/",
        "VAULT_ADDR": "http://127.0.0.1:9",
        "VAULT_TOKEN": "none",
        "BREAKGLASS_DATABASE_URL": url,
        "BREAKGLASS_POLICY": str(OPERATIONS.parent / "demo" / "breakglass.yml"),
    }
    words = [sys.executable, "-m", "bot.cli", "serve"]
    done = subprocess.run(words, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == cli.UNAVAILABLE
    assert done.stderr.splitlines() == [
        (
            "The database was made by another version; to be seen to before it runs: grant.options. "
            "Read “An older database” in bot/OPERATIONS.md."
        )
    ]
