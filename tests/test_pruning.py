"""Does a body leave the log only as the log says, and does everything else still verify?"""

from __future__ import annotations

import io
import re
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text
from sqlmodel import select
from test_audit import CARL, fill, unguarded

from storage import audit, merkle, proofs, pruning
from storage.audit import Damaged
from storage.database import Clash, Database
from storage.export import export
from storage.models import Entry, Payload, Pruned
from storage.verify import Report, verify_file

if TYPE_CHECKING:
    from pathlib import Path

    from storage.database import Write

NOW = datetime(2026, 3, 1, 2, 0, tzinfo=UTC)
SECRET = "the name of a customer"


def say(session: Write, ranges: pruning.Ranges, changes: dict[str, Any] | None = None) -> int:
    """Append the entry that says what is pruned."""
    data = pruning.claim(session, ranges).data() | (changes or {})
    return audit.append(session, event=pruning.APPLY, at=NOW, actor=audit.SYSTEM, data=data).seq


def prune(database: Database, *ranges: tuple[int, int]) -> int:
    """Prune as it is meant, and return the entry that says so."""
    with database.write() as session:
        seq = say(session, ranges)
        pruning.prune(session, seq, ranges)
    return seq


def sql(database: Database, *statements: str) -> None:
    """Run statements in one transaction of the bot's own."""
    with database.write() as session:
        for statement in statements:
            session.connection().execute(text(statement))


# --- what stays ----------------------------------------------------------------------------------------------------


def test_only_the_body_goes(database: Database) -> None:
    """Number, time, event, request, leaf, root and peaks are as before; the body is gone, and the log checks."""
    fill(database, 6)
    with database.read() as session:
        before = {entry.seq: entry.model_dump() for entry in session.exec(select(Entry))}
    seq = prune(database, (1, 2), (4, 4))
    with database.read() as session:
        after = {entry.seq: entry.model_dump() for entry in session.exec(select(Entry))}
        assert {row.seq: row.apply_seq for row in session.exec(select(Pruned))} == {1: seq, 2: seq, 4: seq}
        assert audit.check(session) is None
    for number, row in before.items():
        gone = {"body": None} if number in {1, 2, 4} else {}
        assert after[number] == row | gone


def test_old_heads_and_proofs_hold_after_pruning(database: Database) -> None:
    """A head from before is extended by the log after, and pruned entries are still proved to be in it."""
    fill(database, 11)
    with database.read() as session:
        old = audit.head(session)
        leaves = [entry.leaf_hash for entry in session.exec(select(Entry).order_by(Entry.seq))]
    prune(database, (0, 6))
    fill(database, 3)
    with database.read() as session:
        new = audit.head(session)
        assert audit.check(session, trusted=old) is None
        proof = proofs.consistency(session, old.size, new.size)
        assert merkle.verify_consistency(old.size, old.root, new.size, new.root, proof)
        for number in range(7):
            path = proofs.inclusion(session, number, new.size)
            assert merkle.verify_inclusion(leaves[number], number, new.size, path, new.root)


def test_the_log_goes_on_from_a_pruned_end(database: Database) -> None:
    """Entries are appended and pruned again after a pruning; each is under the entry that pruned it."""
    fill(database, 4)
    first = prune(database, (0, 3))
    fill(database, 2)
    second = prune(database, (first + 1, first + 2))
    with database.read() as session:
        assert audit.check(session) is None
        assert {row.seq: row.apply_seq for row in session.exec(select(Pruned))} == {
            **dict.fromkeys(range(4), first),
            first + 1: second,
            first + 2: second,
        }


def test_a_pruned_entry_reads_as_what_is_left_of_it(database: Database) -> None:
    """Time, event and request come from its columns; who did it and what it said are not known any more."""
    fill(database, 3)
    with database.read() as session:
        whole = audit.read_entries(session)
    prune(database, (1, 1))
    with database.read() as session:
        found = audit.read_entries(session)
    assert found[0] == whole[0]
    pruned = found[1]
    assert pruned.is_pruned
    assert not whole[1].is_pruned
    assert (pruned.seq, pruned.at, pruned.event, pruned.request_id) == (1, whole[1].at, "request:approve", "BG-2")
    assert (pruned.leaf_hash, pruned.root) == (whole[1].leaf_hash, whole[1].root)
    assert (pruned.actor, dict(pruned.data), pruned.body) == (audit.NOBODY, {}, b"")


def test_the_words_are_gone_from_the_file(tmp_path: Path) -> None:
    """SQLite overwrites what it frees, so that a pruned body cannot be read from the file's free pages."""
    file = tmp_path / "breakglass.db"
    database = Database(f"sqlite:///{file}")
    database.setup()
    with database.write() as session:
        for number in range(50):
            audit.append(session, event="command:run", at=NOW, actor=CARL, data={"n": number, "words": SECRET * 400})
    prune(database, (0, 49))
    database.close()
    with closing(sqlite3.connect(file)) as raw:
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert SECRET.encode() not in file.read_bytes()


def test_a_transaction_that_fails_prunes_nothing(database: Database) -> None:
    """The entry and its effect are one: a crash in between leaves neither."""
    fill(database, 4)

    def crash() -> None:
        with database.write() as session:
            pruning.prune(session, say(session, ((0, 1),)), ((0, 1),))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        crash()
    with database.read() as session:
        assert audit.head(session).size == 4
        assert not any(record.is_pruned for record in audit.read_entries(session))


# --- the guards: what the bot's own connection cannot do -------------------------------------------------------------

APPLY = pruning.APPLY


@pytest.mark.parametrize(
    "statements",
    [
        pytest.param(("UPDATE entry SET body = NULL WHERE seq = 1",), id="prune_without_a_row"),
        pytest.param(
            (
                f"INSERT INTO pruned (seq, apply_seq) SELECT 1, seq FROM entry WHERE event = '{APPLY}' AND seq = 4",
                "UPDATE entry SET body = NULL WHERE seq = 1",
            ),
            id="prune_with_a_word_of_long_ago",
        ),
        pytest.param(
            ("INSERT INTO pruned (seq, apply_seq) VALUES (1, 6)",), id="prune_by_an_entry_about_something_else"
        ),
        pytest.param(("INSERT INTO pruned (seq, apply_seq) VALUES (1, 99)",), id="prune_by_an_entry_that_is_not_there"),
        pytest.param(("UPDATE entry SET body = 'x' WHERE seq = 1",), id="change_a_body"),
        pytest.param(("UPDATE entry SET body = 'x' WHERE seq = 0",), id="restore_another_body"),
        pytest.param(("UPDATE entry SET body = NULL WHERE seq = 0",), id="prune_twice"),
        pytest.param(("UPDATE pruned SET apply_seq = 6 WHERE seq = 0",), id="change_who_pruned_it"),
        pytest.param(("DELETE FROM pruned WHERE seq = 0",), id="forget_that_it_was_pruned"),
        pytest.param(("DELETE FROM entry WHERE seq = 0",), id="delete_a_pruned_entry"),
    ],
)
def test_attack_on_the_guards_is_refused(database: Database, statements: tuple[str, ...]) -> None:
    """No statement of the bot's own connection takes, changes or restores a body outside of a pruning."""
    fill(database, 4)
    assert prune(database, (0, 0)) == 4
    fill(database, 2)
    with pytest.raises(Clash, match=r"the log only grows|stays on record"):
        sql(database, *statements)
    with database.read() as session:
        assert audit.check(session) is None
        assert [record.seq for record in audit.read_entries(session) if record.is_pruned] == [0]


@pytest.mark.parametrize(
    "change",
    [
        "leaf_hash = root",
        "root = leaf_hash",
        "peaks = leaf_hash",
        "event = 'request:deny'",
        "request_id = 'BG-9'",
        "request_id = NULL",
        "at = '2001-01-01 00:00:00.000000'",
        "seq = 77",
    ],
)
def test_attack_change_something_else_while_pruning(database: Database, change: str) -> None:
    """In a pruning, too, the body is the only column that may change."""
    fill(database, 4)

    def attack() -> None:
        with database.write() as session:
            seq = say(session, ((1, 1),))
            session.connection().execute(text(f"INSERT INTO pruned (seq, apply_seq) VALUES (1, {seq})"))
            session.connection().execute(text(f"UPDATE entry SET body = NULL, {change} WHERE seq = 1"))

    with pytest.raises(Clash, match="update is refused"):
        attack()


@pytest.mark.parametrize(
    "event", ["retention:hold", "retention:apply", "retention:propose", "policy:load", "log:rotate"]
)
def test_attack_prune_what_the_rest_is_judged_by(database: Database, event: str) -> None:
    """Holds, confirmations, policies and rotations of the key cannot be pruned, whatever an entry says."""
    with database.write() as session:
        audit.append(session, event=event, at=NOW, actor=CARL, data={"count": 0, "ranges": [], "sha256": ""})
    with pytest.raises(Clash, match="cannot be pruned now"):
        prune(database, (0, 0))


def test_attack_prune_the_entry_that_says_so(database: Database) -> None:
    """An entry cannot prune itself."""
    fill(database, 2)

    def attack() -> None:
        with database.write() as session:
            seq = say(session, ((0, 1),))
            pruning.prune(session, seq, ((seq, seq),))

    with pytest.raises(Clash, match="cannot be pruned now"):
        attack()


def test_attack_by_insert_or_replace(tmp_path: Path) -> None:
    """SQLite's INSERT OR REPLACE moves no pruned entry under another word, in whichever mode the connection is."""
    database = Database(f"sqlite:///{tmp_path / 'breakglass.db'}")
    database.setup()
    fill(database, 2)
    seq = prune(database, (0, 0))
    with closing(sqlite3.connect(tmp_path / "breakglass.db")) as raw:
        for recursive in (0, 1):
            raw.execute(f"PRAGMA recursive_triggers = {recursive}")
            with pytest.raises(sqlite3.IntegrityError, match="cannot be pruned"):
                raw.execute(f"INSERT OR REPLACE INTO pruned (seq, apply_seq) VALUES (0, {seq})")
    database.close()


def test_attack_truncate_what_was_pruned(fresh_postgresql: str) -> None:
    """TRUNCATE is refused for the table of pruned entries, also as a replica."""
    database = Database(fresh_postgresql)
    for statement in ("TRUNCATE pruned", "SET LOCAL session_replication_role = replica; TRUNCATE pruned"):
        with pytest.raises(Clash, match="truncate is refused"):
            sql(database, *statement.split("; "))
    database.close()


# --- the check: what the owner of the database does is found --------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "seq", "words"),
    [
        ("UPDATE entry SET body = NULL WHERE seq = 2", 2, "Its body is gone"),
        ("UPDATE entry SET at = '2001-01-01 00:00:00.000000' WHERE seq = 1", 6, "other columns"),
        ("UPDATE entry SET event = 'request:deny' WHERE seq = 1", 6, "other columns"),
        ("UPDATE entry SET request_id = NULL WHERE seq = 0", 6, "other columns"),
        ("UPDATE entry SET leaf_hash = root WHERE seq = 1", 1, "peaks"),
    ],
)
def test_attack_by_the_owner_is_found(
    database: Database, database_url: str, statement: str, seq: int, words: str
) -> None:
    """A body that nobody pruned, and a column of a pruned entry that was changed since, are findings."""
    fill(database, 6)
    assert prune(database, (0, 1)) == 6
    with unguarded(database_url) as execute:
        execute(statement)
    with database.read() as session:
        found = audit.check(session)
    assert found is not None
    assert found.seq == seq
    assert words in found.sentence


def test_attack_a_body_taken_by_the_owner_is_not_read_as_pruned(database: Database, database_url: str) -> None:
    """A body that is gone, and is not in the table of pruned entries, is damage for every reader."""
    fill(database, 3)
    with unguarded(database_url) as execute:
        execute("UPDATE entry SET body = NULL WHERE seq = 1")
    with database.read() as session, pytest.raises(Damaged, match="Its body is gone") as caught:
        audit.read_entries(session)
    assert caught.value.seq == 1


@pytest.mark.parametrize(
    "change",
    [
        {"ranges": [[1, 0]]},
        {"ranges": [[0, 1], [2, 3]]},
        {"ranges": [[0, 9]], "count": 10},
        {"ranges": "all"},
        {"ranges": [[0]]},
        {"ranges": [[-1, 0]]},
        {"count": 7},
        {"sha256": None},
        {"sha256": "0" * 64},
    ],
)
def test_attack_a_claim_that_is_none(database: Database, change: dict[str, Any]) -> None:
    """An entry that claims what cannot be, or something else than it pruned, is a finding of its own."""
    fill(database, 4)
    with database.write() as session:
        seq = say(session, ((0, 1),), change)
        pruning.prune(session, seq, ((0, 1),))
    with database.read() as session:
        found = audit.check(session)
    assert found is not None
    assert found.seq == seq


def test_attack_a_refused_pruning_covers_nothing(database: Database, database_url: str) -> None:
    """An entry about a pruning that was refused does not make a missing body right."""
    fill(database, 3)
    with database.write() as session:
        data = pruning.claim(session, ((0, 0),)).data()
        audit.append(session, event=APPLY, at=NOW, actor=CARL, refused="not_allowed", data=data)
    with unguarded(database_url) as execute:
        execute("UPDATE entry SET body = NULL WHERE seq = 0")
    with database.read() as session:
        found = audit.check(session)
    assert found is not None
    assert found.seq == 0


# --- ranges --------------------------------------------------------------------------------------------------------


@given(st.sets(st.integers(0, 60)))
def test_ranges_hold_exactly_their_numbers(numbers: set[int]) -> None:
    """Joining numbers into ranges and back loses and adds none, and what was written is read the same."""
    ranges = pruning.ranges_of(sorted(numbers))
    assert list(pruning.numbers_of(ranges)) == sorted(numbers)
    assert pruning.count_of(ranges) == len(numbers)
    assert pruning.read_ranges([list(pair) for pair in ranges]) == ranges


@given(st.lists(st.sets(st.integers(0, 40)), max_size=4), st.sets(st.integers(0, 40)))
def test_what_no_claim_names_is_missing(claimed: list[set[int]], numbers: set[int]) -> None:
    """The first number that none of the claims names is found, whatever their order and overlap."""
    claims = [pruning.Claim(pruning.ranges_of(sorted(one)), "") for one in claimed]
    expected = min(numbers - set().union(*claimed), default=None)
    assert pruning.missing_from(sorted(numbers), claims) == expected


# --- exports -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_an_export_proves_pruned_entries_without_their_words(
    database: Database, tmp_path: Path, form: Literal["jsonl", "csv"]
) -> None:
    """A pruned entry is exported as its leaf hash and proof, and verifies because an entry says that it was pruned."""
    fill(database, 5)
    prune(database, (1, 3))
    with database.read() as session, (tmp_path / form).open("wb") as out:
        summary = export(session, out, exported_at=NOW, format=form)
    assert summary.count == 6
    assert verify_file(tmp_path / form) == Report(6, (), audit.Head(summary.size, summary.root))
    # (A spreadsheet's row says it twice: for people, and as it is hashed.)
    assert (tmp_path / form).read_bytes().count(b"checkout is down") == 2 * (2 if form == "csv" else 1)


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_attack_an_export_whose_body_nobody_pruned(
    database: Database, database_url: str, tmp_path: Path, form: Literal["jsonl", "csv"]
) -> None:
    """A body that is gone without an entry that says so is named by the verifier of the export."""
    fill(database, 5)
    prune(database, (1, 1))
    with unguarded(database_url) as execute:
        execute("UPDATE entry SET body = NULL WHERE seq = 3")
    with database.read() as session, (tmp_path / form).open("wb") as out:
        export(session, out, exported_at=NOW, format=form)
    (finding,) = verify_file(tmp_path / form).findings
    assert finding.seq == 3
    assert "nothing in the log says that it was pruned" in finding.sentence


def test_attack_words_in_the_row_of_a_pruned_entry(database: Database, tmp_path: Path) -> None:
    """A spreadsheet's row of a pruned entry says nothing that its body could not contradict any more."""
    fill(database, 3)
    prune(database, (1, 1))
    out = io.BytesIO()
    with database.read() as session:
        export(session, out, exported_at=NOW, format="csv")
    assert b"\r\n1,,,,,,,,,,pruned,," in out.getvalue()
    forged = out.getvalue().replace(b"\r\n1,,,,,,,,,,pruned,,", b"\r\n1,,,,,,U0EVIL,,,,pruned,,")
    lines = forged.splitlines(keepends=True)
    digest = sha256(b"".join(lines[:-1])).hexdigest()
    lines[-1] = re.sub(rb"[0-9a-f]{64}", digest.encode(), lines[-1])
    (tmp_path / "forged.csv").write_bytes(b"".join(lines))
    (finding,) = verify_file(tmp_path / "forged.csv").findings
    assert finding == (1, "Its body was pruned, and its readable columns say something.")


def test_what_stands_beside_the_log_goes_with_the_last_entry_that_names_it(database: Database) -> None:
    """A statement that is too long for an entry is pruned with it, and not while another entry still has it."""
    fill(database, 4)
    with database.write() as session:
        session.add(Payload(sha256="a" * 64, body=b"SELECT 1", last_seq=1))
        session.add(Payload(sha256="b" * 64, body=b"SELECT 2", last_seq=3))
    prune(database, (0, 1))
    with database.read() as session:
        assert [payload.sha256 for payload in session.execute(select(Payload)).scalars()] == ["b" * 64]


def test_a_claim_is_what_the_written_format_says(database: Database) -> None:
    """The hash over the columns of pruned entries can be computed from the words of FORMAT.md alone."""
    with database.write() as session:
        audit.append(session, event="command:run", at=NOW, actor=CARL, request_id="BG-1")
        audit.append(session, event="log:export", at=NOW, actor=CARL)
    with database.read() as session:
        one, two = (record.leaf_hash.hex() for record in audit.read_entries(session))
        claimed = pruning.claim(session, ((0, 1),))
    lines = f"0 2026-03-01T02:00:00.000000Z command:run BG-1 {one}\n1 2026-03-01T02:00:00.000000Z log:export - {two}\n"
    assert claimed.data() == {"count": 2, "ranges": [[0, 1]], "sha256": sha256(lines.encode()).hexdigest()}
