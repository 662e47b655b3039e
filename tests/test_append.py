"""Is an entry, which goes past the object mapper, stored as the mapper stores it, and gone when its transaction is?"""

from __future__ import annotations

import sqlite3
import threading
import time
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.orm import object_session
from sqlmodel import select

from storage import audit
from storage.database import Clash, Database
from storage.models import Entry, Post

if TYPE_CHECKING:
    from storage.database import Write

NOW = datetime(2026, 3, 1, 2, 0, tzinfo=UTC)
COLUMNS = "event, at, body, leaf_hash, root, peaks"
WRONG = f"INSERT INTO entry (seq, {COLUMNS}) SELECT 99, {COLUMNS} FROM entry"


def append(session: Write, at: datetime = NOW, request_id: str | None = "BG-1") -> audit.Appended:
    """Append one entry."""
    return audit.append(session, event="test:step", at=at, actor=audit.SYSTEM, request_id=request_id)


def append_alone(database: Database) -> None:
    """Append one entry in a transaction of its own."""
    with database.write() as session:
        append(session)


def posts(database: Database) -> int:
    """Count what was written beside the log."""
    with database.read() as session:
        return len(session.exec(select(Post)).all())


def size(database: Database) -> int:
    """Count the entries."""
    with database.read() as session:
        return audit.head(session).size


@pytest.mark.parametrize(
    "at", [NOW, NOW + timedelta(microseconds=1), NOW.replace(microsecond=120000, tzinfo=timezone(timedelta(hours=5.5)))]
)
def test_an_entry_is_stored_as_the_mapper_would(database: Database, at: datetime) -> None:
    """Each column holds the very value, of the same kind, that the mapper writes; times too, whatever their zone."""
    with database.write() as session:
        entry = append(session, at)
        kept = session.exec(select(Entry)).one()
        assert tuple(entry) == tuple(getattr(kept, name) for name in entry._fields)
        assert session.exec(select(Entry.seq).where(Entry.at == at)).all() == [0]
        if session.kind == "sqlite":  # which compares times as texts
            dialect = session.connection().dialect
            written = Entry.__table__.c.at.type.dialect_impl(dialect).bind_processor(dialect)
            assert session.run("SELECT at FROM entry") == (written(at),)


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_entries_that_are_appended_together_are_those_of_one_by_one(database: Database, count: int) -> None:
    """The same bodies, hashes and columns, as if each had come alone; what comes afterwards goes on from them."""
    drafts = [
        audit.Draft("test:step", audit.Actor("T0HOME", "U0RITA"), f"BG-{n}" if n % 2 else None, {"n": n, "words": "é"})
        for n in range(count)
    ]
    at = NOW.replace(tzinfo=timezone(timedelta(hours=5.5)))
    with database.write() as session:
        append(session)
        together = audit.append_all(session, drafts, at=at)
        assert session.appended == {"BG-1", *(draft.request_id or "" for draft in drafts)}
        append(session)
    with database.read() as session:
        assert audit.check(session) is None
        records = audit.read_entries(session)
        rows = session.exec(select(Entry).order_by(Entry.seq)).all()
    assert [record.seq for record in records] == list(range(count + 2))
    for draft, entry, row in zip(drafts, together, rows[1:], strict=False):
        alone = audit.encode(
            seq=entry.seq, event=draft.event, at=at, actor=draft.actor, request_id=draft.request_id, data=draft.data
        )
        assert (row.body, row.at, row.request_id, row.leaf_hash) == (alone, at, draft.request_id, entry.leaf_hash)


def test_many_rows_of_which_one_is_refused_leave_nothing(database: Database) -> None:
    """Whoever swallows the refusal cannot commit the rows before it."""
    with pytest.raises(Clash), database.write() as session:  # noqa: PT012 - the end of the block raises, too
        append(session)
        with pytest.raises(Clash):
            session.insert_many("capture_line", {"key": "bytea"}, [(b"a",), (b"b",), (b"a",)])
    assert size(database) == 0
    append_alone(database)


def test_after_a_refusal_the_transaction_is_gone_even_when_nobody_says_so(database: Database) -> None:
    """A Clash that a caller swallows commits nothing of its transaction, and is raised again at its end."""
    with database.write() as session:
        append(session)
    with pytest.raises(Clash), database.write() as session:  # noqa: PT012 - the end of the block is what raises
        session.add(Post(request_id="BG-1", key="card", target="C1"))
        with pytest.raises(Clash, match="not the next entry"):
            session.run(WRONG)
    assert (size(database), posts(database)) == (1, 0)
    with database.write() as session:
        append(session)
    assert size(database) == 2


def test_nothing_is_appended_to_a_transaction_that_is_gone(database: Database) -> None:
    """After a refusal or a rollback an append is refused; it must not be committed alone, outside the writer's lock."""
    with database.write() as session:
        append(session)
    with pytest.raises(Clash), database.write() as session:  # noqa: PT012 - as above
        with pytest.raises(Clash):
            session.run(WRONG)
        append(session)
    with pytest.raises(Clash), database.write() as session:  # noqa: PT012 - as above
        session.add(Post(request_id="BG-1", key="card", target="C1"))
        session.flush()
        session.rollback()
        append(session)
    assert (size(database), posts(database)) == (1, 0)


def test_nothing_is_appended_after_a_flush_that_failed(database: Database) -> None:
    """What the session held broke a constraint: an append in the same transaction is refused, and nothing is left."""
    with database.write() as session:
        session.add(Post(request_id="BG-1", key="card", target="C1"))
    with pytest.raises(Clash), database.write() as session:  # noqa: PT012 - as above
        session.add(Post(request_id="BG-1", key="card", target="C1"))
        with pytest.raises(Clash):
            session.flush()
        append(session)
    assert (size(database), posts(database)) == (0, 1)


def test_what_the_session_holds_is_written_before_the_entry(database: Database) -> None:
    """A row that was only added breaks its constraint at the append, before the entry is there."""
    with database.write() as session:
        session.add(Post(request_id="BG-1", key="card", target="C1"))
    with pytest.raises(Clash), database.write() as session:  # noqa: PT012 - the second line is what raises
        session.add(Post(request_id="BG-1", key="card", target="C1"))
        append(session)
    assert (size(database), posts(database)) == (0, 1)


# --- the connection that the writer keeps -----------------------------------------------------------------------------


def test_what_was_read_with_the_lock_is_what_the_writer_before_left(database: Database, database_url: str) -> None:
    """A bot that waits for another one's transaction appends after its entry: it sees the log after the wait."""
    other = Database(database_url)
    append_alone(other)
    waiting = threading.Thread(target=append_alone, args=(other,))
    with database.write() as session:
        append(session)
        waiting.start()
        if session.kind == "postgresql":
            while session.run("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted") is None:
                time.sleep(0.01)
        append(session)
    waiting.join()
    other.close()
    with database.read() as session:
        assert audit.check(session) is None
        assert audit.head(session).size == 4


def test_crash_of_the_kept_connection_costs_no_error(database: Database, database_url: str) -> None:
    """The server cuts the connection between two transactions: the next one is written once, on a new connection."""
    append_alone(database)
    if database.kind == "postgresql":
        with psycopg.connect(make_url(database_url).set(drivername="postgresql").render_as_string(False)) as server:
            server.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = 'breakglass'"
            )
    for _ in range(2):
        append_alone(database)
    with database.read() as session:
        assert audit.check(session) is None
        assert audit.head(session).size == 3


def test_a_session_that_outlived_its_transaction_can_write_nothing(database: Database) -> None:
    """Whoever keeps the session gets neither into the next transaction on the same connection nor past the lock."""
    with database.write() as kept:
        append(kept)
    with pytest.raises(Clash):
        append(kept)
    with database.write() as session:
        append(session)
        with pytest.raises(Clash):
            append(kept)
        with pytest.raises(UnboundExecutionError):
            kept.execute(text("DELETE FROM post"))
    with pytest.raises(UnboundExecutionError):
        kept.execute(text("DELETE FROM post"))
    assert size(database) == 2


def test_rows_of_one_transaction_are_not_those_of_the_next(database: Database) -> None:
    """The kept connection keeps no rows: the next transaction reads them anew, and an old one is detached."""
    with database.write() as session:
        old = Post(request_id="BG-1", key="card", target="C1")
        session.add(old)
    with database.write() as session:
        new = session.get_one(Post, ("BG-1", "card"))
        new.target = "C2"
        assert new is not old
    assert (old.target, new.target) == ("C1", "C2")
    assert object_session(old) is None


def test_closing_in_the_middle_of_a_transaction_keeps_no_connection(database: Database) -> None:
    """The transaction ends as it would have; its connection is closed after it, and the next one has its own."""
    with database.write() as session:
        append(session)
        driver = session.connection().connection.driver_connection
        database.close()
        append(session)
    with pytest.raises((sqlite3.ProgrammingError, psycopg.OperationalError), match="closed"):
        driver.execute("SELECT 1")
    append_alone(database)
    assert size(database) == 3
