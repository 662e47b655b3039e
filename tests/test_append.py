"""Is an entry, which goes past the object mapper, stored as the mapper stores it, and gone when its transaction is?"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING

import pytest
from sqlmodel import select

from storage import audit
from storage.database import Clash
from storage.models import Entry, Post

if TYPE_CHECKING:
    from storage.database import Database, Write

NOW = datetime(2026, 3, 1, 2, 0, tzinfo=UTC)
COLUMNS = "event, at, body, leaf_hash, root, peaks"
WRONG = f"INSERT INTO entry (seq, {COLUMNS}) SELECT 99, {COLUMNS} FROM entry"


def append(session: Write, at: datetime = NOW, request_id: str | None = "BG-1") -> audit.Appended:
    """Append one entry."""
    return audit.append(session, event="test:step", at=at, actor=audit.SYSTEM, request_id=request_id)


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
