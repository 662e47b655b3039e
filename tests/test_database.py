"""Is there one writer at a time, does a reader see one moment, and do the guards of the log hold?"""

from __future__ import annotations

import logging
import multiprocessing
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlmodel import select

from storage import audit
from storage.database import Clash, Database, DatabaseDown
from storage.models import Entry, Post

if TYPE_CHECKING:
    from collections.abc import Callable

    from bot.demo.parts import Postgres

NOW = datetime(2026, 3, 1, 2, 0, tzinfo=UTC)


def append(database: Database, request_id: str | None = "BG-1", **data: Any) -> None:
    """Append one entry in a transaction of its own."""
    with database.write() as session:
        audit.append(session, event="test:step", at=NOW, actor=audit.SYSTEM, request_id=request_id, data=data)


def raw(database_url: str, *statements: str) -> list[Any]:
    """Run statements as an attacker with his own connection would: no pragma, no lock, no library."""
    url = make_url(database_url)
    if url.get_backend_name() == "sqlite":
        with closing(sqlite3.connect(str(url.database))) as connection:
            for statement in statements:
                rows = connection.execute(statement).fetchall()
            connection.commit()
        return rows
    with psycopg.connect(url.set(drivername="postgresql").render_as_string(hide_password=False)) as connection:
        for statement in statements:
            cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


REFUSED = (sqlite3.IntegrityError, psycopg.errors.IntegrityConstraintViolation)
ROW = "at, event, body, leaf_hash, root, peaks"


only_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)

# --- attacks on the log --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param("UPDATE entry SET event = 'nothing:happened' WHERE seq = 1", id="rewrite_an_entry"),
        pytest.param("UPDATE entry SET seq = 7 WHERE seq = 2", id="move_an_entry"),
        pytest.param("DELETE FROM entry WHERE seq = 2", id="cut_the_tail"),
        pytest.param("DELETE FROM entry", id="empty_the_log"),
        pytest.param(
            f"INSERT INTO entry (seq, {ROW}) SELECT 5, {ROW} FROM entry WHERE seq = 2", id="leave_a_gap_for_later"
        ),
        pytest.param(
            f"INSERT INTO entry (seq, {ROW}) SELECT 1, {ROW} FROM entry WHERE seq = 2"
            " ON CONFLICT (seq) DO UPDATE SET body = excluded.body",
            id="upsert_over_an_entry",
        ),
        pytest.param(
            f"INSERT INTO entry (seq, {ROW}) SELECT -1, {ROW} FROM entry WHERE seq = 2", id="before_the_first"
        ),
    ],
)
def test_attack_by_statement_is_refused(database: Database, database_url: str, statement: str) -> None:
    """No statement changes, removes, moves or skips an entry, whoever sends it."""
    for number in range(3):
        append(database, n=number)
    with pytest.raises(REFUSED, match="the log only grows"):
        raw(database_url, statement)
    with pytest.raises(Clash, match="the log only grows"), database.write() as session:
        session.execute(text(statement))
    with database.read() as session:
        assert audit.head(session).size == 3
        assert audit.check(session) is None


@pytest.mark.parametrize("recursive", ["ON", "OFF"])
@pytest.mark.parametrize("seq", [0, 1, 2])
def test_attack_insert_or_replace_on_sqlite(tmp_path: Path, recursive: str, seq: int) -> None:
    """SQLite's INSERT OR REPLACE fires no DELETE trigger unless asked to, and is stopped all the same."""
    url = f"sqlite:///{tmp_path / 'log.db'}"
    database = Database(url)
    database.setup()
    for number in range(3):
        append(database, n=number)
    replace = f"INSERT OR REPLACE INTO entry (seq, {ROW}) SELECT {seq}, {ROW} FROM entry WHERE seq = 1"
    with pytest.raises(sqlite3.IntegrityError, match="the log only grows"):
        raw(url, f"PRAGMA recursive_triggers = {recursive}", replace)
    with pytest.raises(sqlite3.IntegrityError, match="the log only grows"):
        raw(url, f"PRAGMA recursive_triggers = {recursive}", "UPDATE OR REPLACE entry SET seq = 1 WHERE seq = 2")
    with database.read() as session:
        assert audit.check(session) is None


@only_postgresql
@pytest.mark.parametrize(
    "statements",
    [
        pytest.param(("TRUNCATE entry",), id="truncate"),
        pytest.param(("SET session_replication_role = replica", "DELETE FROM entry"), id="delete_as_replica"),
        pytest.param(("SET session_replication_role = replica", "TRUNCATE entry"), id="truncate_as_replica"),
        pytest.param(
            ("SET session_replication_role = replica", f"INSERT INTO entry (seq, {ROW}) SELECT 5, {ROW} FROM entry"),
            id="gap_as_replica",
        ),
        pytest.param(
            (
                "CREATE TEMPORARY TABLE entry AS SELECT * FROM public.entry",
                "UPDATE pg_temp.entry SET seq = 4",
                f"INSERT INTO public.entry (seq, {ROW}) SELECT 5, {ROW} FROM pg_temp.entry",
            ),
            id="gap_by_a_shadowing_table",
        ),
        pytest.param(
            ("MERGE INTO entry USING (VALUES (0)) AS v (n) ON seq = n WHEN MATCHED THEN UPDATE SET event = 'x:y'",),
            id="merge",
        ),
    ],
)
def test_attack_on_postgresql(database: Database, database_url: str, statements: tuple[str, ...]) -> None:
    """TRUNCATE, replica mode, MERGE and a shadowing temporary table do not get past the guards, even as superuser."""
    append(database)
    with pytest.raises(psycopg.errors.IntegrityConstraintViolation, match="the log only grows"):
        raw(database_url, *statements)
    with database.read() as session:
        assert audit.check(session) is None
        assert audit.head(session).size == 1


def test_a_role_that_owns_nothing_can_run_the_bot_but_not_lift_the_guards(
    postgres: Postgres, fresh_postgresql: str
) -> None:
    """With SELECT and INSERT only, setup and append work, and the role cannot drop or disable a trigger."""
    with psycopg.connect(postgres.dsn, autocommit=True) as connection:
        connection.execute("CREATE ROLE poor LOGIN PASSWORD 'poor'")
    raw(fresh_postgresql, "GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA public TO poor")
    url = make_url(fresh_postgresql).set(username="poor", password="poor")
    poor = url.render_as_string(hide_password=False)
    database = Database(poor)
    database.setup()
    append(database)
    for statement in (
        "ALTER TABLE entry DISABLE TRIGGER ALL",
        "DROP TRIGGER entry_no_change ON entry",
        "CREATE OR REPLACE FUNCTION entry_refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "TRUNCATE entry",
        "DELETE FROM entry",
        "SET session_replication_role = replica",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            raw(poor, statement)
    database.close()


def test_setup_puts_a_missing_guard_back(database: Database, database_url: str) -> None:
    """Setting up again restores a guard that was dropped, and changes nothing else."""
    append(database)
    on_table = "" if database.kind == "sqlite" else " ON entry"
    raw(database_url, f"DROP TRIGGER entry_only_next{on_table}")
    database.setup()
    with pytest.raises(REFUSED, match="the log only grows"):
        raw(database_url, f"INSERT INTO entry (seq, {ROW}) SELECT 5, {ROW} FROM entry")


def test_setup_renews_a_guard_that_names_another_schema(postgres: Postgres, fresh_postgresql: str) -> None:
    """The guard holds in a schema of any name; after the schema is renamed nothing is appended before a new setup."""
    name = make_url(fresh_postgresql).database
    raw(
        fresh_postgresql,
        "DROP SCHEMA public CASCADE",
        'CREATE SCHEMA "Log\'s ""own"""',
        f"ALTER DATABASE {name} SET search_path = 'Log''s \"own\"'",
    )
    database = Database(fresh_postgresql)
    database.setup()
    append(database)
    gap = f"INSERT INTO entry (seq, {ROW}) SELECT 5, {ROW} FROM entry"
    with pytest.raises(REFUSED, match="the log only grows"):
        raw(fresh_postgresql, gap)
    database.close()
    raw(fresh_postgresql, 'ALTER SCHEMA "Log\'s ""own""" RENAME TO public')
    raw(fresh_postgresql, f"ALTER DATABASE {name} RESET search_path")
    with pytest.raises(DatabaseDown):
        append(database)
    database.setup()
    append(database)
    with pytest.raises(REFUSED, match="the log only grows"):
        raw(fresh_postgresql, gap)
    with database.read() as session:
        assert audit.head(session).size == 2
    database.close()


# --- one writer ----------------------------------------------------------------------------------------------------


def test_160_writers_at_once_lose_nothing(database: Database) -> None:
    """160 threads that each read, decide and write never clash, and the log has every entry and no gap."""
    errors: list[BaseException] = []
    with database.write() as session:
        session.add(Post(request_id="BG-1", key="count", target="C1", last_seq=0))

    def count_up(number: int) -> None:
        try:
            with database.write() as session:
                row = session.get_one(Post, ("BG-1", "count"))
                row.last_seq = (row.last_seq or 0) + 1
                audit.append(session, event="test:count", at=NOW, actor=audit.SYSTEM, data={"thread": number})
        except BaseException as error:  # noqa: BLE001 - shown by the assertion
            errors.append(error)

    run_together([lambda number=number: count_up(number) for number in range(160)])
    assert errors == []
    with database.read() as session:
        assert session.get_one(Post, ("BG-1", "count")).last_seq == 160
        assert audit.check(session) is None
        records = audit.read_entries(session)
    assert {record.data["thread"] for record in records} == set(range(160))


def test_two_databases_on_one_store_exclude_each_other(database: Database, database_url: str) -> None:
    """Bots that share only the store queue at its own lock: the log of 4 times 25 entries has no gap."""
    others = [database, *(Database(database_url) for _ in range(3))]
    errors: list[BaseException] = []

    def work(other: Database) -> None:
        try:
            for number in range(25):
                append(other, n=number)
        except BaseException as error:  # noqa: BLE001 - shown by the assertion
            errors.append(error)

    run_together([lambda other=other: work(other) for other in others])
    for other in others[1:]:
        other.close()
    assert errors == []
    with database.read() as session:
        assert audit.check(session) is None
        assert audit.head(session).size == 100


def _set_up_in_a_process(url: str, go: Any, results: Any) -> None:
    go.wait()
    try:
        database = Database(url)
        database.setup()
        append(database)
        results.put(None)
    except Exception as error:  # noqa: BLE001 - shown by the assertion
        results.put(repr(error))


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_processes_that_set_up_at_once_do_not_meet(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Four processes set up the same new database in the same moment, and each can write afterwards."""
    url = f"sqlite:///{tmp_path / 'new.db'}"
    if kind == "postgresql":
        url = request.getfixturevalue("fresh_postgresql")
        raw(url, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    context = multiprocessing.get_context("fork")
    go, results = context.Event(), context.Queue()
    processes = [context.Process(target=_set_up_in_a_process, args=(url, go, results)) for _ in range(4)]
    for process in processes:
        process.start()
    go.set()
    assert [results.get(timeout=60) for _ in processes] == [None] * 4
    for process in processes:
        process.join()
    database = Database(url)
    with database.read() as session:
        assert audit.check(session) is None
        assert audit.head(session).size == 4
    database.close()


def test_a_second_setup_in_one_process_does_not_fork_the_log(sqlite_template: Path, tmp_path: Path) -> None:
    """Setting up again beside an open connection keeps its locks, so that another process's end takes nothing away."""
    file = tmp_path / "log.db"
    shutil.copyfile(sqlite_template, file)
    ours = Database(f"sqlite:///{file}")
    append(ours)
    again = Database(f"sqlite:///{file}")
    again.setup()
    again.close()
    other = (
        "import sys; sys.path[:0] = sys.argv[2:]; from storage.database import Database; from storage import audit;"
        "from datetime import UTC, datetime; d = Database(sys.argv[1])\n"
        "with d.write() as s: audit.append(s, event='test:other', at=datetime.now(UTC), actor=audit.SYSTEM)\n"
        "d.close()"
    )
    root = str(Path(audit.__file__).parent.parent)
    for _ in range(2):
        subprocess.run([sys.executable, "-c", other, f"sqlite:///{file}", root], check=True)
        append(ours)
    with ours.read() as session:
        assert [record.seq for record in audit.read_entries(session)] == list(range(5))
        assert audit.check(session) is None
    ours.close()


def test_write_inside_write_is_refused_at_once(database: Database) -> None:
    """A nested write would wait for itself for ever, so it raises; the outer one can still commit."""
    with database.write() as session:
        with pytest.raises(RuntimeError, match="inside"), database.write():
            pass
        audit.append(session, event="test:step", at=NOW, actor=audit.SYSTEM)
    with database.read() as session:
        assert audit.head(session).size == 1


# --- transactions --------------------------------------------------------------------------------------------------


class Stop(BaseException):
    """What is not even an Exception, as KeyboardInterrupt."""


@pytest.mark.parametrize("error", [ValueError, Stop])
def test_an_exception_in_the_block_leaves_nothing(database: Database, error: type[BaseException]) -> None:
    """State and entry go together: both are gone, no follower is woken, and the next writer is not held up."""
    woken: list[frozenset[str]] = []
    database.woken.append(woken.append)
    with pytest.raises(error), database.write() as session:  # noqa: PT012 - the block is what is tested
        session.add(Post(request_id="BG-1", key="card", target="C1"))
        audit.append(session, event="test:step", at=NOW, actor=audit.SYSTEM)
        raise error
    with database.read() as session:
        assert session.exec(select(Post)).all() == []
        assert session.exec(select(Entry)).all() == []
    assert woken == []
    append(database)
    assert woken == [frozenset({"BG-1"})]


def test_a_reader_sees_one_moment(database: Database) -> None:
    """What is committed while a reader is at work does not appear to it."""
    append(database)
    with database.read() as session:
        assert audit.head(session).size == 1
        append(database)
        assert audit.head(session).size == 1
        assert len(audit.read_entries(session)) == 1
    with database.read() as session:
        assert audit.head(session).size == 2


def test_a_reader_cannot_write(database: Database) -> None:
    """A write that forgot the writer's lock fails instead of slipping through, and the connection is fit again."""
    with pytest.raises(Exception, match=r"read-only"), database.read() as session:
        session.execute(text("DELETE FROM post"))
    append(database)


def test_rows_stay_readable_after_the_commit(database: Database) -> None:
    """A row that was written can be looked at after its transaction without asking the database again."""
    with database.write() as session:
        entry = audit.append(session, event="test:step", at=NOW, actor=audit.SYSTEM)
    database.close()
    assert (entry.seq, entry.event) == (0, "test:step")


# --- waking the followers ------------------------------------------------------------------------------------------


def test_followers_are_woken_after_the_commit_and_may_write(database: Database) -> None:
    """A listener sees the committed entries, by request, with the empty id for those about none."""
    woken: list[tuple[frozenset[str], int]] = []

    def listener(requests: frozenset[str]) -> None:
        with database.read() as session:
            woken.append((requests, audit.head(session).size))
        if len(woken) == 1:
            append(database, "BG-3")

    database.woken.append(listener)
    with database.write() as session:
        for request_id in ("BG-1", "BG-2", "BG-1", None):
            audit.append(session, event="test:step", at=NOW, actor=audit.SYSTEM, request_id=request_id)
    assert woken == [(frozenset({"BG-1", "BG-2", ""}), 4), (frozenset({"BG-3"}), 5)]


def test_a_broken_listener_stops_neither_the_commit_nor_the_others(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """A listener's exception is logged; the entry stays and the next listener is called."""
    woken: list[frozenset[str]] = []

    def broken(_requests: frozenset[str]) -> None:
        raise ValueError("broken listener")

    database.woken.extend([broken, woken.append])
    with caplog.at_level(logging.ERROR):
        append(database)
    assert woken == [frozenset({"BG-1"})]
    assert "broken listener" in caplog.text
    with database.read() as session:
        assert audit.head(session).size == 1


def test_a_transaction_without_entries_wakes_nobody(database: Database) -> None:
    """A follower that moves its own cursor does not wake itself."""
    woken: list[frozenset[str]] = []
    database.woken.append(woken.append)
    with database.write() as session:
        session.add(Post(request_id="BG-1", key="card", target="C1"))
    assert woken == []


# --- errors --------------------------------------------------------------------------------------------------------


def test_a_broken_constraint_is_a_clash_wherever_it_shows(database: Database) -> None:
    """A doubled key is a Clash at the flush and at the commit, without the row's contents in its words."""
    with database.write() as session:
        session.add(Post(request_id="BG-1", key="card", target="C-CONTENT"))
    with database.write() as session:
        session.add(Post(request_id="BG-1", key="card", target="C-CONTENT"))
        with pytest.raises(Clash) as at_flush:
            session.flush()
        session.rollback()
    with pytest.raises(Clash) as at_commit, database.write() as session:
        session.add(Post(request_id="BG-1", key="card", target="C-CONTENT"))
    for clash in (at_flush, at_commit):
        assert "C-CONTENT" not in str(clash.value)
        assert "BG-1" not in str(clash.value)


def test_a_locked_sqlite_file_is_down_not_a_surprise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A foreign process that keeps the file locked gives DatabaseDown after the patience, and then all is well."""
    monkeypatch.setattr("storage.database.LOCK_SECONDS", 0)
    database = Database(f"sqlite:///{tmp_path / 'log.db'}")
    database.setup()
    with closing(sqlite3.connect(tmp_path / "log.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DatabaseDown, match="busy"):
            append(database)
        with database.read() as session:  # readers are not held up
            assert audit.head(session).size == 0
    append(database)


def test_a_restarted_postgresql_costs_no_error_and_a_stopped_one_is_down(tmp_path: Path) -> None:
    """While the server is gone every use is DatabaseDown, without its address; afterwards the next use just works."""
    from bot.demo.parts import Postgres  # noqa: PLC0415 - a server of its own, to stop it

    with Postgres(tmp_path) as server:
        url = server.url_for("postgres")
        database = Database(url)
        database.setup()
        append(database)
        server.stop()
        for use in (database.ping, lambda: append(database), database.setup):
            with pytest.raises(DatabaseDown) as down:
                use()
            assert str(down.value) == "The database does not answer."
        server.start()
        append(database)
        with database.read() as session:
            assert audit.head(session).size == 2
        with pytest.raises(DatabaseDown), database.write() as session:  # noqa: PT012 - it dies before the commit
            audit.append(session, event="test:step", at=NOW, actor=audit.SYSTEM)
            server.kill()
        server.start()
        with database.read() as session:
            assert audit.head(session).size == 2
        database.close()


def test_a_database_without_tables_says_so(tmp_path: Path, fresh_postgresql: str) -> None:
    """A wrong file or database name is told apart from one that does not answer."""
    raw(fresh_postgresql, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    for url in (f"sqlite:///{tmp_path / 'none.db'}", fresh_postgresql):
        database = Database(url)
        with pytest.raises(DatabaseDown, match="no tables"), database.read() as session:
            audit.head(session)
        database.close()


def test_a_file_that_is_no_database_or_cannot_be_opened_is_down(tmp_path: Path) -> None:
    """Each of the ways in which a file is not usable is a plain sentence."""
    (tmp_path / "text.db").write_text("this is no database, but a long enough text to be mistaken for one " * 9)
    (tmp_path / "folder.db").mkdir()
    for name in ("text.db", "folder.db", "missing/log.db"):
        with pytest.raises(DatabaseDown) as down:
            Database(f"sqlite:///{tmp_path / name}").setup()
        assert str(tmp_path) not in str(down.value)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file:x?mode=memory&uri=true",
        "mysql://root:hunter2@localhost/x",
        "postgresql+psycopg2://root:hunter2@localhost/x",
        "postgresql://root:hunter2@localhost:port/x",
        "hunter2",
        "",
    ],
)
def test_an_unusable_url_is_refused_without_repeating_it(url: str) -> None:
    """A URL that cannot be used is a ValueError at once, and its password is in no part of the message."""
    with pytest.raises(ValueError, match="URL") as refused:
        Database(url)
    assert "hunter2" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_the_password_is_in_no_repr_and_no_error(postgres: Postgres, caplog: pytest.LogCaptureFixture) -> None:
    """Neither the object, nor an error with all its causes, nor the log tells the URL's password."""
    url = make_url(postgres.url_for("postgres")).set(password="hunter2")
    for spelling in ("postgres", "postgresql", "postgresql+psycopg"):
        database = Database(url.set(drivername=spelling).render_as_string(hide_password=False))
        assert "hunter2" not in repr(database)
        with caplog.at_level(logging.DEBUG), pytest.raises(DatabaseDown, match="let the bot in") as down:
            database.ping()
        error: BaseException | None = down.value
        while error is not None:
            assert "hunter2" not in f"{error!r} {error}"
            error = error.__cause__ or error.__context__
        assert "hunter2" not in caplog.text


def test_sqlite_is_durable_and_private(tmp_path: Path) -> None:
    """WAL, synchronous FULL and foreign keys are on in every connection, and only the owner can read the files."""
    database = Database(f"sqlite:///{tmp_path / 'log.db'}")
    database.setup()
    with database.write() as session:
        connection = session.connection()
        found = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "recursive_triggers", "busy_timeout")
        }
        audit.append(session, event="test:step", at=NOW, actor=audit.SYSTEM)
        modes = {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    assert found == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "recursive_triggers": 1,
        "busy_timeout": 5000,
    }
    assert modes == {0o600}


def run_together(jobs: list[Callable[[], None]]) -> None:
    """Start every job in a thread of its own at the same moment and wait for all."""
    gate = threading.Barrier(len(jobs))

    def start(job: Callable[[], None]) -> None:
        gate.wait()
        job()

    threads = [threading.Thread(target=start, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
