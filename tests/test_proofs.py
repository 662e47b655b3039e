"""Are the proofs out of a few rows those of the whole tree?"""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from sqlalchemy import event, insert

from storage import audit, merkle, proofs
from storage.audit import Damaged
from storage.database import Database
from storage.models import Entry

SIZE = 70  # beyond 64, so that every shape of the right edge occurs
NOW = datetime(2026, 3, 1, 2, 0, tzinfo=UTC)


def grow(database: Database, count: int) -> list[bytes]:
    """Append entries as the log does, and return their leaf hashes."""
    leaves = []
    with database.write() as session:
        for number in range(count):
            entry = audit.append(session, event="test:event", at=NOW, actor=audit.SYSTEM, data={"n": number})
            leaves.append(entry.leaf_hash)
    return leaves


def test_every_proof_is_the_trees(database):
    """For every entry of every size, and from every size to every later one, the hashes are those of the whole tree."""
    leaves = grow(database, SIZE)
    with database.read() as session:
        for size in range(1, SIZE + 1):
            tree = merkle.Tree(leaves[:size])
            assert proofs.root_at(session, size) == tree.root
            for index in range(size) if size in {1, 2, 7, 8, 64, SIZE} else (0, size // 2, size - 1):
                assert proofs.inclusion(session, index, size) == tree.inclusion(index)
            for old in range(size + 1) if size in {1, 2, 7, 8, 64, SIZE} else (0, size // 2, size - 1):
                assert proofs.consistency(session, old, size) == tree.consistency(old)


def test_the_empty_log_has_its_root(database):
    """The root before the first entry is that of the empty tree, and it is consistent with itself."""
    with database.read() as session:
        assert proofs.root_at(session, 0) == merkle.EMPTY_ROOT
        assert proofs.consistency(session, 0, 0) == ()


@pytest.mark.parametrize(
    ("ask", "numbers"),
    [
        (proofs.inclusion, (3, 3)),
        (proofs.inclusion, (-1, 3)),
        (proofs.inclusion, (0, 9)),
        (proofs.inclusion, (8, 9)),
        (proofs.consistency, (3, 2)),
        (proofs.consistency, (-1, 2)),
        (proofs.consistency, (1, 9)),
        (proofs.consistency, (0, 9)),
    ],
)
def test_what_is_beyond_the_log_cannot_be_proved(database, ask, numbers):
    """An entry or a size that the log does not have is an IndexError, never a proof."""
    grow(database, 3)
    with database.read() as session, pytest.raises(IndexError):
        ask(session, *numbers)


@pytest.mark.parametrize("column", ["leaf_hash", "peaks", "root"])
def test_a_changed_hash_never_becomes_a_proof(tmp_path, sqlite_template, column):
    """Whichever stored hash is flipped, each proof is either the true one or none at all: the log is damaged."""
    file = tmp_path / "log.db"
    file.write_bytes(sqlite_template.read_bytes())
    database = Database(f"sqlite:///{file}")
    leaves = grow(database, 21)
    tree = merkle.Tree(leaves)
    refused = 0
    for seq in range(21):
        with database.write() as session:
            connection = session.connection()
            connection.exec_driver_sql("DROP TRIGGER IF EXISTS entry_no_update")
            whole = connection.exec_driver_sql(f"SELECT {column} FROM entry WHERE seq = ?", (seq,)).scalar()
            bad = whole[:-1] + bytes([whole[-1] ^ 1])
            connection.exec_driver_sql(f"UPDATE entry SET {column} = ? WHERE seq = ?", (bad, seq))
        with database.read() as session:
            for index in range(21):
                try:
                    proof = proofs.inclusion(session, index, 21)
                except Damaged:
                    refused += 1
                else:
                    assert proof == tree.inclusion(index)
        with database.write() as session:
            session.connection().exec_driver_sql(f"UPDATE entry SET {column} = ? WHERE seq = ?", (whole, seq))
    assert refused
    database.close()


def test_a_missing_entry_is_damage(tmp_path, sqlite_template):
    """A row that is gone from the middle is named, also when the guards of the log were lifted for it."""
    file = tmp_path / "log.db"
    file.write_bytes(sqlite_template.read_bytes())
    database = Database(f"sqlite:///{file}")
    grow(database, 8)
    with database.write() as session:
        session.connection().exec_driver_sql("DROP TRIGGER entry_no_delete")
        session.connection().exec_driver_sql("DELETE FROM entry WHERE seq = 3")
    with database.read() as session, pytest.raises(Damaged) as found:
        proofs.inclusion(session, 1, 8)
    assert found.value.seq == 3
    database.close()


def test_a_proof_in_a_long_log_reads_few_rows(tmp_path, sqlite_template):
    """Among 50,000 entries one proof takes one query, and at most three rows for each level of the tree."""
    file = tmp_path / "log.db"
    file.write_bytes(sqlite_template.read_bytes())
    database = Database(f"sqlite:///{file}")
    size, peaks, leaves, rows = 50_000, b"", [], []
    for seq in range(size):
        leaf = merkle.leaf_hash(seq.to_bytes(4))
        leaves.append(leaf)
        peaks = merkle.push(peaks, seq, leaf)
        rows.append(
            {
                "seq": seq,
                "event": "test:event",
                "at": NOW,
                "body": seq.to_bytes(4),
                "leaf_hash": leaf,
                "root": merkle.root(peaks),
                "peaks": peaks,
            }
        )
    with database.write() as session:
        session.execute(insert(Entry), rows)
    tree = merkle.Tree(leaves)
    asked: list[int] = []
    with database.read() as session:

        def count(_connection, _cursor, _statement, parameters, *_more) -> None:
            asked.append(len(parameters))

        event.listen(session.connection(), "before_cursor_execute", count)
        for index in range(0, size, 997):
            asked.clear()
            assert proofs.inclusion(session, index, size) == tree.inclusion(index)
            assert len(asked) == 1
            assert asked[0] <= 3 * size.bit_length()
            assert proofs.consistency(session, index, size) == tree.consistency(index)
    database.close()
