"""Is everything found that can be done to a finished log and its tables, and is each called by its name?

Each mutation is made by raw SQLite on a copy of a log that the real desk, the real Vault and the real signer wrote. It
says which class of finding must name it, and at which entry. Untouched logs give no finding at all.
"""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from forging import HEARTBEAT, ORIGIN, Log, Night, copy_of, desk_at, hands_on, key_in, policy_for

from storage import audit, checkpoint, merkle
from storage.audit import read_time, write_time
from storage.database import Database
from storage.signers import KeySigner, read_key_file
from storage.standalone import Findings, Kind
from storage.verify import compare_with_copy
from workflows.replay import check_database

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable
    from datetime import datetime
    from pathlib import Path

    from storage.followers.file import FileCopy
    from storage.standalone import Key, Report

SEEDS: Final = 7  # of each kind of mutation


@dataclass
class Finished:
    """A log that was lived, and everything around it."""

    file: Path
    now: datetime
    keys: tuple[Key, ...]
    private: Ed25519PrivateKey
    copy: FileCopy
    kept: bytes  # the newest signed head, kept elsewhere


@pytest.fixture(scope="module")
def finished(real, sqlite_template, tmp_path_factory) -> Finished:
    """One night through the real desk with the real Vault, signed, and copied outside."""
    folder = tmp_path_factory.mktemp("finished")
    key_file, key = key_in(folder)
    file = folder / "log.db"
    shutil.copyfile(sqlite_template, file)
    database = Database(f"sqlite:///{file}")
    night = Night(desk_at(real, database, policy_for(real)), key_file)
    night.live()
    copy = copy_of(database, folder / "copy")
    with database.read() as session:
        kept = session.connection().exec_driver_sql("SELECT note FROM signed_head ORDER BY id DESC").scalar()
    database.close()
    real.bao.call("PUT", "sys/leases/revoke-prefix/database/creds", {"sync": True})
    with hands_on(file):
        pass  # the guards are off, for all copies of it
    return Finished(file, night.desk.now, (key,), read_key_file(ORIGIN, key_file).private, copy, kept)


@dataclass
class Mutant:
    """One copy of the log in an attacker's hands."""

    raw: sqlite3.Connection
    log: Log
    rng: random.Random
    private: Ed25519PrivateKey
    now: datetime

    @property
    def size(self) -> int:
        """How many entries there were."""
        return len(self.log.entries)

    def some(self, seqs: list[int]) -> int:
        """One of these entries."""
        return self.rng.choice(seqs)

    def row(self, seq: int) -> tuple[Any, ...]:
        """The hashes of a row."""
        return self.raw.execute("SELECT body, leaf_hash, root, peaks FROM entry WHERE seq = ?", (seq,)).fetchone()

    def request_of(self, seq: int) -> str:
        """The request that an entry is about."""
        return str(self.log.entries[seq]["request"])

    def first(self, name: str, event: str) -> int:
        """The first entry of an event of a request that was not refused."""
        return next(seq for seq in self.log.of_request(name) if seq in self.log.where(event))

    def forge(self) -> None:
        """Write the log anew with the stolen key."""
        self.log.write(self.private)


@dataclass(frozen=True)
class Expected:
    """One of these classes, at one of these entries (None: any)."""

    kinds: tuple[Kind, ...]
    seqs: tuple[int | None, ...] | None = None
    request: str | None = None
    later: timedelta = timedelta(0)  # how long after the log's end it shows

    def is_met_by(self, report: Report) -> bool:
        """Whether a finding names it."""
        return any(
            found.kind in self.kinds
            and (self.seqs is None or found.seq in self.seqs)
            and (self.request is None or found.request == self.request)
            for found in report.findings
        )


def expect(kind: Kind, *seqs: int | None, request: str | None = None, or_: tuple[Kind, ...] = ()) -> Expected:
    """Say what must be found."""
    return Expected((kind, *or_), seqs or None, request)


# --- bytes, rows and order -----------------------------------------------------------------------------------------


def body_byte(m: Mutant) -> Expected:
    """One bit of a body."""
    seq = m.rng.randrange(m.size)
    body = bytearray(m.row(seq)[0])
    body[m.rng.randrange(len(body))] ^= 1 << m.rng.randrange(8)
    m.raw.execute("UPDATE entry SET body = ? WHERE seq = ?", (bytes(body), seq))
    return expect(Kind.ALTERED, seq)


def body_and_leaf(m: Mutant) -> Expected:
    """A body with its leaf hash computed anew."""
    seq = m.rng.randrange(m.size)
    entry = m.log.entries[seq] | {"actor": {"person": "U0EVIL", "team": "T0SANDBOX"}}
    body = audit.canonical(entry)
    m.raw.execute("UPDATE entry SET body = ?, leaf_hash = ? WHERE seq = ?", (body, merkle.leaf_hash(body), seq))
    return expect(Kind.ALTERED, seq)


def whole_row(m: Mutant) -> Expected:
    """A row with all of its own hashes computed anew: what follows no longer fits to it."""
    seq = m.rng.randrange(m.size - 1)
    body = audit.canonical(m.log.entries[seq] | {"actor": {"person": "U0EVIL", "team": "T0SANDBOX"}})
    leaf = merkle.leaf_hash(body)
    before = m.row(seq - 1)[3] if seq else b""
    peaks = merkle.push(before, seq, leaf)
    m.raw.execute(
        "UPDATE entry SET body = ?, leaf_hash = ?, root = ?, peaks = ? WHERE seq = ?",
        (body, leaf, merkle.root(peaks), peaks, seq),
    )
    return expect(Kind.ALTERED, seq, seq + 1, or_=(Kind.FORKED,))


def hash_column(m: Mutant) -> Expected:
    """A byte of a stored hash."""
    seq, column = m.rng.randrange(m.size), m.rng.randrange(1, 4)
    value = bytearray(m.row(seq)[column])
    value[m.rng.randrange(len(value))] ^= 1
    name = ("body", "leaf_hash", "root", "peaks")[column]
    m.raw.execute(f"UPDATE entry SET {name} = ? WHERE seq = ?", (bytes(value), seq))
    return expect(Kind.ALTERED, seq)


def query_column(m: Mutant) -> Expected:
    """A column beside the body, by which the entry is found."""
    seq = m.rng.randrange(m.size)
    column, value = m.rng.choice(
        (("request_id", "BG-EVIL"), ("event", "test:other"), ("at", "2020-01-01 00:00:00.000000"), ("at", "never"))
    )
    m.raw.execute(f"UPDATE entry SET {column} = ? WHERE seq = ?", (value, seq))
    return expect(Kind.ALTERED, seq)


def wrong_kind(m: Mutant) -> Expected:
    """A value of another type, which SQLite keeps in any column."""
    seq = m.rng.randrange(m.size)
    column = m.rng.choice(("body", "leaf_hash", "root", "peaks"))
    value = m.rng.choice((7, "words", 1.5, b"", "a\ud800".encode("utf-8", "surrogatepass")))
    m.raw.execute(f"UPDATE entry SET {column} = ? WHERE seq = ?", (value, seq))
    return expect(Kind.ALTERED, seq)


def other_spelling(m: Mutant) -> Expected:
    """The same JSON, written otherwise, in a log written anew around it."""
    seq = m.rng.randrange(m.size)
    m.log.entries[seq]["data"] = m.log.entries[seq].get("data", {}) | {"é": 1.0}
    m.forge()
    body = m.row(seq)[0].replace(b"1.0", b"1.00")
    m.raw.execute("UPDATE entry SET body = ?, leaf_hash = ? WHERE seq = ?", (body, merkle.leaf_hash(body), seq))
    return expect(Kind.ALTERED, seq)


def body_gone(m: Mutant) -> Expected:
    """A body taken away as if it had been pruned, with the row that the guards ask for."""
    seq = m.rng.randrange(m.size)
    m.raw.execute("UPDATE entry SET body = NULL WHERE seq = ?", (seq,))
    m.raw.execute("INSERT INTO pruned (seq, apply_seq) VALUES (?, ?)", (seq, m.size - 1))
    return expect(Kind.MISSING, seq)


def deleted(m: Mutant) -> Expected:
    """A row, or some in a row, gone."""
    first = m.rng.randrange(m.size - 4)
    m.raw.execute("DELETE FROM entry WHERE seq BETWEEN ? AND ?", (first, first + m.rng.randrange(3)))
    return expect(Kind.MISSING, first)


def deleted_and_moved_up(m: Mutant) -> Expected:
    """A row gone, and all after it moved up."""
    seq = m.rng.randrange(m.size - 1)
    m.raw.execute("DELETE FROM entry WHERE seq = ?", (seq,))
    m.raw.execute("UPDATE entry SET seq = -seq WHERE seq > ?", (seq,))
    m.raw.execute("UPDATE entry SET seq = -seq - 1 WHERE seq < 0")
    return expect(Kind.MISSING, seq)


def deleted_and_written_anew(m: Mutant) -> Expected:
    """A change of a request left out, in a log written and signed anew."""
    moves = [seq for seq, entry in enumerate(m.log.entries) if entry.get("version", 0) > 1]
    # Of the last change of a request nothing after it tells; the table does.
    seq = m.some(moves)
    name = m.request_of(seq)
    after = [later for later in m.log.of_request(name) if later > seq and "version" in m.log.entries[later]]
    del m.log.entries[seq]
    m.forge()
    if after:
        return expect(Kind.MISSING, after[0] - 1, request=name)
    return expect(Kind.STATE_WITHOUT_ENTRY, request=name)


def swapped(m: Mutant) -> Expected:
    """Two rows in each other's place."""
    one, two = sorted(m.rng.sample(range(m.size), 2))
    columns = "request_id, event, at, body, leaf_hash"
    rows = {seq: m.raw.execute(f"SELECT {columns} FROM entry WHERE seq = ?", (seq,)).fetchone() for seq in (one, two)}
    for seq, other in ((one, two), (two, one)):
        m.raw.execute(f"UPDATE entry SET ({columns}) = (?,?,?,?,?) WHERE seq = ?", (*rows[other], seq))
    # Of two neighbours nobody can tell whether they were swapped or one was moved past the other.
    return expect(Kind.REORDERED, one, two)


def swapped_and_written_anew(m: Mutant) -> Expected:
    """Two changes of one request in each other's place, in a log written and signed anew."""
    name = m.request_of(m.some(m.log.where("request:quorum")))
    seqs = [seq for seq in m.log.of_request(name) if "version" in m.log.entries[seq]]
    at = m.rng.randrange(1, len(seqs) - 1)
    entries = m.log.entries
    entries[seqs[at]], entries[seqs[at + 1]] = entries[seqs[at + 1]], entries[seqs[at]]
    m.forge()
    return expect(Kind.MISSING, seqs[at], request=name)


def doubled(m: Mutant) -> Expected:
    """A row that stands again in the place of another."""
    one, two = m.rng.sample(range(m.size), 2)
    columns = "request_id, event, at, body, leaf_hash"
    row = m.raw.execute(f"SELECT {columns} FROM entry WHERE seq = ?", (one,)).fetchone()
    m.raw.execute(f"UPDATE entry SET ({columns}) = (?,?,?,?,?) WHERE seq = ?", (*row, two))
    return expect(Kind.DOUBLED, two)


def doubled_and_written_anew(m: Mutant) -> Expected:
    """A change of a request that stands twice, in a log written and signed anew."""
    seq = m.some([seq for seq, entry in enumerate(m.log.entries) if "version" in entry])
    m.log.entries.insert(seq + 1, dict(m.log.entries[seq]))
    m.forge()
    return expect(Kind.DOUBLED, seq + 1, request=m.request_of(seq))


def put_in(m: Mutant) -> Expected:
    """A row put in, and all after it moved down."""
    seq = m.rng.randrange(1, m.size - 1)
    m.raw.execute("UPDATE entry SET seq = -seq WHERE seq >= ?", (seq,))
    m.raw.execute("UPDATE entry SET seq = -seq + 1 WHERE seq < 0")
    m.raw.execute(
        "INSERT INTO entry SELECT ?, request_id, event, at, body, leaf_hash, root, peaks FROM entry WHERE seq = ?",
        (seq, seq - 1),
    )
    return expect(Kind.DOUBLED, seq, seq + 1)


# --- the tail ------------------------------------------------------------------------------------------------------


def cut(m: Mutant) -> Expected:
    """The end cut off."""
    size = m.size - 1 - m.rng.randrange(20)
    m.raw.execute("DELETE FROM entry WHERE seq >= ?", (size,))
    return expect(Kind.TRUNCATED, size)


def cut_with_heads(m: Mutant) -> Expected:
    """The end cut off, with the heads over it: the tables remember."""
    size = m.size - 1 - m.rng.randrange(20)
    m.raw.execute("DELETE FROM entry WHERE seq >= ?", (size,))
    m.raw.execute("DELETE FROM signed_head WHERE size > ?", (size,))
    return expect(Kind.TRUNCATED, size)


def cut_and_tables_set_back(m: Mutant) -> Expected:
    """The end cut off, with heads and requests, but a follower had been told of it."""
    size = m.size - 1 - m.rng.randrange(20)
    m.raw.execute("DELETE FROM entry WHERE seq >= ?", (size,))
    m.raw.execute("DELETE FROM signed_head WHERE size > ?", (size,))
    m.raw.execute("UPDATE request SET last_seq = MIN(last_seq, ?)", (size - 1,))
    m.raw.execute("INSERT INTO feed (follower, request_id, seq, failures) VALUES ('archive', '*', ?, 0)", (m.size - 1,))
    return expect(Kind.TRUNCATED, size)


# --- heads ---------------------------------------------------------------------------------------------------------


def _heads(m: Mutant) -> list[tuple[int, int, bytes]]:
    return m.raw.execute("SELECT id, size, note FROM signed_head ORDER BY id").fetchall()


def _set_note(m: Mutant, number: int, note: bytes) -> None:
    m.raw.execute("UPDATE signed_head SET note = ? WHERE id = ?", (note, number))


def signature_bit(m: Mutant) -> Expected:
    """A bit of a signature."""
    number, size, note = m.rng.choice(_heads(m))
    head = checkpoint.parse(note)
    data = bytearray(head.signatures[0].data)
    data[m.rng.randrange(64)] ^= 1 << m.rng.randrange(8)
    line = checkpoint.Signature(head.signatures[0].name, head.signatures[0].key_id, bytes(data))
    _set_note(m, number, checkpoint.compose(head.checkpoint, [line]))
    return expect(Kind.BAD_SIGNATURE, size - 1)


def other_root_without_key(m: Mutant) -> Expected:
    """A head with another root and the old signature."""
    number, size, note = m.rng.choice(_heads(m))
    head = checkpoint.parse(note)
    other = checkpoint.Checkpoint(ORIGIN, size, m.rng.randbytes(32), head.checkpoint.extensions)
    _set_note(m, number, checkpoint.compose(other, head.signatures))
    return expect(Kind.BAD_SIGNATURE, size - 1)


def strangers_head(m: Mutant) -> Expected:
    """A head that somebody else signed."""
    number, size, note = m.rng.choice(_heads(m))
    signer = KeySigner.of(ORIGIN, Ed25519PrivateKey.generate())
    _set_note(m, number, checkpoint.sign(checkpoint.parse(note).checkpoint, [signer]))
    return expect(Kind.UNKNOWN_SIGNATURE, size - 1)


def forked_head(m: Mutant) -> Expected:
    """A head with the stolen key over a history that is not this log's."""
    number, size, note = m.rng.choice(_heads(m))
    other = checkpoint.Checkpoint(ORIGIN, size, m.rng.randbytes(32), checkpoint.parse(note).checkpoint.extensions)
    m.raw.execute(
        "UPDATE signed_head SET note = ?, root = ? WHERE id = ?",
        (checkpoint.sign(other, [KeySigner.of(ORIGIN, m.private)]), other.root, number),
    )
    return expect(Kind.FORKED, *range(size))


def second_head_of_a_size(m: Mutant) -> Expected:
    """Two heads of one size, both with the log's key."""
    _, size, _ = m.rng.choice(_heads(m))
    other = checkpoint.sign(checkpoint.Checkpoint(ORIGIN, size, m.rng.randbytes(32)), [KeySigner.of(ORIGIN, m.private)])
    m.raw.execute(
        "INSERT INTO signed_head (size, root, note, at, reason) SELECT size, ?, ?, at, reason FROM signed_head "
        "WHERE size = ? LIMIT 1",
        (checkpoint.parse(other).checkpoint.root, other, size),
    )
    return expect(Kind.FORKED, *range(size))


def another_logs_head(m: Mutant) -> Expected:
    """A head of another log, in this one's place."""
    number, size, note = m.rng.choice(_heads(m)[1:])
    head = checkpoint.parse(note).checkpoint
    signer = KeySigner.of("log.example/other", m.private)
    other = checkpoint.Checkpoint("log.example/other", size, head.root, head.extensions)
    _set_note(m, number, checkpoint.sign(other, [signer]))
    return expect(Kind.FORKED, size - 1)


def heads_in_another_order(m: Mutant) -> Expected:
    """A head set back behind a newer one."""
    heads = _heads(m)
    (early, _, _), (late, _, _) = heads[m.rng.randrange(5)], heads[-1 - m.rng.randrange(5)]
    m.raw.execute("UPDATE signed_head SET id = 99999 WHERE id = ?", (early,))
    m.raw.execute("UPDATE signed_head SET id = ? WHERE id = ?", (early, late))
    return expect(Kind.ROLLED_BACK, *(size - 1 for _, size, _ in heads))


def head_column(m: Mutant) -> Expected:
    """A column beside a head's note."""
    number, size, _ = m.rng.choice(_heads(m))
    m.raw.execute("UPDATE signed_head SET root = ? WHERE id = ?", (m.rng.randbytes(32), number))
    return expect(Kind.ALTERED, size - 1)


def no_head(m: Mutant) -> Expected:
    """Something else in a head's place."""
    number, _, note = m.rng.choice(_heads(m))
    _set_note(
        m, number, m.rng.choice((b"", b"head", note[: len(note) // 2], note + b"\n", note.replace(b"\n\n", b"\n")))
    )
    return expect(Kind.UNREADABLE, None)


def late_head(m: Mutant) -> Expected:
    """Entries that nobody signed for an hour: the heads in between are gone."""
    heads = m.raw.execute("SELECT id, size FROM signed_head ORDER BY id").fetchall()
    at = m.rng.randrange(5, len(heads) - 2)
    first = heads[at - 1][1]
    while heads[at][1] == first:
        at -= 1
        first = heads[at - 1][1]
    m.raw.execute("DELETE FROM signed_head WHERE size > ?", (first,))
    return Expected((Kind.LATE_ANCHOR,), (first,), later=timedelta(hours=1))


def no_heads_at_all(m: Mutant) -> Expected:
    """All heads thrown away, so that none can tell of another history."""
    m.raw.execute("DELETE FROM signed_head")
    return expect(Kind.UNKNOWN_SIGNATURE, m.size - 1)


def late_time(m: Mutant) -> Expected:
    """A head that was stored much later than what it covers was written."""
    heads = m.raw.execute("SELECT id, size, at FROM signed_head WHERE reason = 'entry' ORDER BY id").fetchall()
    at = m.rng.randrange(2, len(heads))
    later = write_time(m.now + timedelta(hours=5))
    m.raw.execute("UPDATE signed_head SET at = ? WHERE size >= ?", (f"{later[:10]} {later[11:-1]}", heads[at][1]))
    return expect(Kind.LATE_ANCHOR, heads[at - 1][1], *range(heads[at - 1][1], heads[at][1]))


def a_key_that_vouches_for_itself(m: Mutant) -> Expected:
    """A rotation to the attacker's key in a log written anew, signed with that key alone."""
    old = KeySigner.of(ORIGIN, m.private)
    mine = KeySigner.of(ORIGIN, Ed25519PrivateKey.generate())
    at = m.rng.randrange(1, m.size)
    entry = {
        "actor": {"person": "shell:root", "team": ""},
        "at": m.log.entries[at]["at"],
        "data": {"lost": False, "new": str(mine.key), "old": str(old.key)},
        "event": "log:rotate",
        "v": 1,
    }
    m.log.entries.insert(at, entry)
    m.log.write(mine.private)
    return expect(Kind.UNKNOWN_SIGNATURE)


# --- the tables ----------------------------------------------------------------------------------------------------

_REQUEST_COLUMNS: Final[dict[str, tuple[object, ...]]] = {
    "state": ("reviewed", "lapsed", "active"),
    "requester": ("U0EVIL",),
    "team": ("T0EVIL",),
    "account": ("payroll",),
    "level": ("admin",),
    "threshold": ("data-loss",),
    "reason": ("Something nicer",),
    "standard_path": ("Something nicer",),
    "incident": ("INC-1",),
    "policy_hash": ("0" * 64,),
    "quorum": (5, 9),
    "custodians": ('["U0CARL"]', '["U0EVIL", "U0CARL"]', "not JSON"),
    "asked_seconds": (9999,),
    "granted_seconds": (9999,),
    "opened_at": ("2026-01-01 00:00:00.000000", "whenever"),
    "state_at": ("2026-01-01 00:00:00.000000",),
    "lapse_at": ("2099-01-01 00:00:00.000000",),
    "expires_at": ("2099-01-01 00:00:00.000000",),
    "warned_at": ("2026-01-01 00:00:00.000000",),
    "review_due_at": ("2099-01-01 00:00:00.000000",),
    "due_at": ("2099-01-01 00:00:00.000000",),
    "attempts": (7,),
    "ended_by": ("nobody",),
    "ended_by_user": ("U0EVIL",),
}


def request_column(m: Mutant) -> Expected:
    """One column of a request."""
    column = m.rng.choice(list(_REQUEST_COLUMNS))
    value = m.rng.choice(_REQUEST_COLUMNS[column])
    names = m.raw.execute(f"SELECT id FROM request WHERE {column} IS NOT ?", (value,)).fetchall()
    (name,) = m.rng.choice(names)
    m.raw.execute(f"UPDATE request SET {column} = ? WHERE id = ?", (value, name))
    return expect(Kind.STATE_WITHOUT_ENTRY, request=name)


def request_version(m: Mutant) -> Expected:
    """A request's count of changes."""
    (name,) = m.rng.choice(m.raw.execute("SELECT id FROM request").fetchall())
    column = m.rng.choice(("version", "version, state_version"))
    for one in column.split(", "):
        m.raw.execute(f"UPDATE request SET {one} = {one} + 1 WHERE id = ?", (name,))
    return expect(Kind.STATE_WITHOUT_ENTRY, request=name)


def never_due(m: Mutant) -> Expected:
    """A request that the clock never looks at again: it would never end."""
    rows = m.raw.execute("SELECT id FROM request WHERE due_at IS NOT NULL").fetchall()
    (name,) = m.rng.choice(rows)
    m.raw.execute("UPDATE request SET due_at = NULL WHERE id = ?", (name,))
    return expect(Kind.STATE_WITHOUT_ENTRY, request=name)


def request_row_gone(m: Mutant) -> Expected:
    """A request's row gone."""
    (name,) = m.rng.choice(m.raw.execute("SELECT id FROM request").fetchall())
    m.raw.execute("DELETE FROM request WHERE id = ?", (name,))
    return expect(Kind.ENTRY_WITHOUT_STATE, request=name)


def request_row_more(m: Mutant) -> Expected:
    """A request that was never opened."""
    columns = [row[1] for row in m.raw.execute("PRAGMA table_info(request)")]
    chosen = ", ".join(
        f"'BG-EVIL' AS {name}" if name == "id" else "NULL" if name == "form_id" else name for name in columns
    )
    m.raw.execute(f"INSERT INTO request SELECT {chosen} FROM request LIMIT 1")
    return expect(Kind.STATE_WITHOUT_ENTRY, request="BG-EVIL")


_OTHER_COLUMNS: Final[dict[str, dict[str, object]]] = {
    "decision": {
        "person": "U0EVIL",
        "team": "T0EVIL",
        "answer": "deny",
        "granted_seconds": 9999,
        "reason": "Other words",
        "policy_hash": "0" * 64,
        "at": "2026-01-01 00:00:00.000000",
    },
    "grant": {
        "number": 9,
        "accessor": "another",
        "lease_id": "another",
        "identity": "somebody",
        "path": "elsewhere/creds/x",
        "intended_at": "2026-01-01 00:00:00.000000",
        "accessor_at": "2026-01-01 00:00:00.000000",
        "issued_at": "2026-01-01 00:00:00.000000",
        "expires_at": "2099-01-01 00:00:00.000000",
        "ended_at": "2026-01-01 00:00:00.000000",
    },
    "review": {
        "reviewer": "U0EVIL",
        "team": "T0EVIL",
        "threshold_met": 0,
        "standard_path_enough": 1,
        "used_as_stated": 0,
        "outcome": "misuse",
        "findings": "All was well.",
        "follow_ups": "[]",
        "filed_at": "2026-01-01 00:00:00.000000",
    },
}


def other_column(m: Mutant) -> Expected:
    """One column of a decision, a credential or a review."""
    table = m.rng.choice(list(_OTHER_COLUMNS))
    column, value = m.rng.choice(list(_OTHER_COLUMNS[table].items()))
    rows = m.raw.execute(f'SELECT rowid, request_id FROM "{table}" WHERE {column} IS NOT ?', (value,)).fetchall()
    if column == "answer":
        rows = m.raw.execute("SELECT rowid, request_id FROM decision WHERE answer = 'approve'").fetchall()
    rowid, name = m.rng.choice(rows)
    m.raw.execute(f'UPDATE "{table}" SET {column} = ? WHERE rowid = ?', (value, rowid))
    return expect(Kind.STATE_WITHOUT_ENTRY, request=name)


def other_row_gone(m: Mutant) -> Expected:
    """A decision, a credential or a review gone."""
    table = m.rng.choice(list(_OTHER_COLUMNS))
    rowid, name = m.rng.choice(m.raw.execute(f'SELECT rowid, request_id FROM "{table}"').fetchall())
    m.raw.execute(f'DELETE FROM "{table}" WHERE rowid = ?', (rowid,))
    return expect(Kind.ENTRY_WITHOUT_STATE, request=name)


def other_row_more(m: Mutant) -> Expected:
    """A decision or a credential that never was."""
    (name,) = m.rng.choice(m.raw.execute("SELECT id FROM request").fetchall())
    at = "2026-01-01 00:00:00.000000"
    if m.rng.random() < 0.5:
        m.raw.execute(
            "INSERT INTO decision (request_id, team, person, answer, policy_hash, at) "
            "VALUES (?, 'T', 'U0EVIL', 'approve', '', ?)",
            (name, at),
        )
    else:
        m.raw.execute(
            'INSERT INTO "grant" (request_id, number, engine, path, lease_prefix, options, intended_at, ended_at) '
            "VALUES (?, 99, 'database', 'p', 'p', '{}', ?, ?)",
            (name, at, at),
        )
    return expect(Kind.STATE_WITHOUT_ENTRY, request=name)


def review_out_of_nothing(m: Mutant) -> Expected:
    """A review that nobody filed."""
    names = m.raw.execute("SELECT id FROM request WHERE id NOT IN (SELECT request_id FROM review)").fetchall()
    (name,) = m.rng.choice(names)
    m.raw.execute(
        "INSERT INTO review (request_id, team, reviewer, threshold_met, standard_path_enough, used_as_stated, outcome, "
        "findings, follow_ups, filed_at) VALUES (?, 'T', 'U0SAM', 1, 0, 1, 'justified', 'Well.', '[]', ?)",
        (name, "2026-01-01 00:00:00.000000"),
    )
    return expect(Kind.STATE_WITHOUT_ENTRY, request=name)


# --- the rules: a log written anew with the stolen key, which holds together ---------------------------------------


def self_approval(m: Mutant) -> Expected:
    """The requester approved."""
    seq = m.some(m.log.where("request:approve"))
    opened = m.log.entries[m.log.of_request(m.request_of(seq))[0]]
    m.log.entries[seq]["actor"] = opened["actor"]
    m.forge()
    return expect(Kind.SELF_APPROVAL, seq)


def strangers_approval(m: Mutant) -> Expected:
    """Somebody approved who was not asked."""
    seq = m.some(m.log.where("request:approve"))
    m.log.entries[seq]["actor"] = {"person": m.rng.choice(("U0OLGA", "U0EVIL")), "team": "T0SANDBOX"}
    m.forge()
    return expect(Kind.NOT_ASKED, seq)


def approved_twice(m: Mutant) -> Expected:
    """One custodian approved twice where two were needed."""
    seq = m.some([seq for seq in m.log.where("request:approve") if m.log.entries[seq]["data"]["have"] == 2])
    first = m.first(m.request_of(seq), "request:approve")
    m.log.entries[seq]["actor"] = m.log.entries[first]["actor"]
    m.forge()
    return expect(Kind.APPROVED_TWICE, seq)


def quorum_raised(m: Mutant) -> Expected:
    """More custodians were needed than approved."""
    seq = m.some(m.log.where("request:quorum"))
    m.log.entries[m.log.of_request(m.request_of(seq))[0]]["data"]["quorum"] = 3
    m.forge()
    return expect(Kind.NO_QUORUM, seq)


def approval_left_out(m: Mutant) -> Expected:
    """An approval left out, and the changes counted anew."""
    seq = m.some(m.log.where("request:quorum"))
    name = m.request_of(seq)
    approval = m.first(name, "request:approve")
    del m.log.entries[approval]
    m.log.count_again(name)
    m.forge()
    return expect(Kind.NO_QUORUM, seq - 1)


def approvers_listed(m: Mutant) -> Expected:
    """Somebody counted who did not approve."""
    seq = m.some(m.log.where("request:quorum"))
    m.log.entries[seq]["data"]["approvers"] = ["U0CORA", "U0EVIL"]
    m.forge()
    return expect(Kind.NO_QUORUM, seq)


def longer_than_approved(m: Mutant) -> Expected:
    """More time granted than approved, or a credential that lasts longer than granted."""
    if m.rng.random() < 0.5:
        seq = m.some(m.log.where("request:quorum"))
        m.log.entries[seq]["data"]["granted_seconds"] += 3600
    else:
        seq = m.some([*m.log.where("credential:issue"), *m.log.where("credential:reissue")])
        m.log.entries[seq]["data"]["expires_at"] = "2099-01-01T00:00:00Z"
    m.forge()
    return expect(Kind.TOO_LONG, seq)


def reviewer_involved(m: Mutant) -> Expected:
    """The requester, or one who approved, reviewed."""
    seq = m.some(m.log.where("review:file"))
    m.log.entries[seq]["actor"] = {"person": m.rng.choice(("U0RITA", "U0CARL", "U0CHEN")), "team": "T0SANDBOX"}
    m.forge()
    return expect(Kind.NOT_INDEPENDENT, seq)


def review_left_out(m: Mutant) -> Expected:
    """A review left out of the log and of the tables, and its day is over."""
    seq = m.some(m.log.where("review:file"))
    name = m.request_of(seq)
    end = m.first(name, "credential:end")
    del m.log.entries[seq]
    m.forge()
    m.raw.execute("DELETE FROM review WHERE request_id = ?", (name,))
    return Expected((Kind.REVIEW_MISSING,), (end,), name, later=timedelta(days=4))


def issued_before_approval(m: Mutant) -> Expected:
    """A credential came out before anybody approved."""
    name = m.request_of(m.some(m.log.where("credential:issue")))
    seqs = m.log.of_request(name)
    shown = m.first(name, m.rng.choice(("credential:reveal", "credential:issue")))
    entry = m.log.entries.pop(shown)
    entry["at"] = m.log.entries[seqs[0]]["at"]
    m.log.entries.insert(seqs[0] + 1, entry)
    m.log.count_again(name)
    m.forge()
    return expect(Kind.BEFORE_APPROVAL, seqs[0] + 1)


def issued_after_end(m: Mutant) -> Expected:
    """A credential came out after the request had ended."""
    end = m.some(m.log.where("credential:end"))
    name = m.request_of(end)
    event = m.rng.choice(("credential:reveal", "credential:token", "credential:issue", "credential:reissue"))
    known = next((s for s in m.log.of_request(name) if m.log.entries[s]["event"] == event), None)
    if known is None:
        known = next(s for s in m.log.of_request(name) if m.log.entries[s]["event"] == "credential:issue")
    m.log.entries.insert(end + 1, dict(m.log.entries[known]) | {"at": m.log.entries[end]["at"]})
    m.log.count_again(name)
    m.forge()
    return expect(Kind.AFTER_END, end + 1)


def used_after_end(m: Mutant) -> Expected:
    """A command was run with a credential that was gone."""
    end = m.some(m.log.where("credential:end"))
    at = write_time(read_time(m.log.entries[end]["at"]) + timedelta(seconds=m.rng.randrange(6, 60)))
    m.log.entries.insert(end + 1, _recorded(m, end, at, "command:run", {"at": at, "text": "SELECT 1"}))
    m.forge()
    return expect(Kind.AFTER_END, end + 1)


def record_with_holes(m: Mutant) -> Expected:
    """The record of a session that says itself that commands are missing, or that it was stopped."""
    end = m.some(m.log.where("credential:end"))
    event, data = m.rng.choice(
        (
            ("command:close", {"gaps": [{"after": m.rng.randrange(1, 9), "missing": 2}], "stopped": False}),
            ("command:close", {"gaps": [], "stopped": True}),
            ("command:stop", {"text": "SET log_statement = 'none'"}),
            ("capture:gap", {"why": "truncated"}),
            ("capture:down", {}),
        )
    )
    entry = _recorded(m, end, m.log.entries[end]["at"], event, {"source": "orders-pg"} | data)
    m.log.entries.insert(end + 1, entry)
    m.forge()
    return expect(Kind.CAPTURE_GAP, end + 1)


def _recorded(m: Mutant, near: int, at: str, event: str, data: dict[str, Any]) -> dict[str, Any]:
    return {
        "actor": {"person": "U0RITA", "team": "T0SANDBOX"},
        "at": at,
        "data": data,
        "event": event,
        "request": m.request_of(near),
        "v": 1,
    }


def two_at_once(m: Mutant) -> Expected:
    """The end of the first credential left out before the second."""
    seq = m.some(m.log.where("credential:token", credential=2))
    name = m.request_of(seq)
    gone = next(s for s in reversed(m.log.of_request(name)) if m.log.entries[s]["event"] == "credential:abandon")
    entry = m.log.entries.pop(gone)
    m.log.entries.insert(seq, entry)  # only after the second one's token
    m.log.count_again(name)
    m.forge()
    return expect(Kind.TWO_LIVE, seq - 1, or_=(Kind.MALFORMED,))


def lease_not_taken_back(m: Mutant) -> Expected:
    """A credential of which nothing says that it was taken back."""
    seq = m.some(m.log.where("credential:end"))
    m.log.entries[seq]["data"]["leases"].pop()
    m.forge()
    return expect(Kind.STILL_OUT, seq)


def wrong_person(m: Mutant) -> Expected:
    """Somebody did what was another's, or the bot's, to do."""
    event = m.rng.choice(
        ("credential:release", "request:quorum", "credential:end", "request:lapse", "request:withdraw")
    )
    seq = m.some(m.log.where(event))
    m.log.entries[seq]["actor"] = {"person": "U0EVIL", "team": "T0SANDBOX"}
    m.forge()
    return expect(Kind.WRONG_PERSON, seq)


def other_workspace(m: Mutant) -> Expected:
    """Somebody of another workspace did it."""
    seq = m.some([*m.log.where("request:approve"), *m.log.where("request:deny"), *m.log.where("credential:revoke")])
    m.log.entries[seq]["actor"] = m.log.entries[seq]["actor"] | {"team": "T0EVIL"}
    m.forge()
    return expect(Kind.WRONG_PERSON, seq)


def illegal_move(m: Mutant) -> Expected:
    """A move that no rule has."""
    moves = [s for s, e in enumerate(m.log.entries) if "version" in e and not e["event"].startswith("credential")]
    seq = m.some(moves)
    m.log.entries[seq]["event"] = "request:reopen"
    m.forge()
    return expect(Kind.ILLEGAL_MOVE, seq)


def state_in_a_refusal(m: Mutant) -> Expected:
    """A refusal that changes the state all the same."""
    seq = m.some([s for s, e in enumerate(m.log.entries) if "refused" in e and "request" in e])
    m.log.entries[seq] |= {"from": "pending", "to": "approved"}
    m.forge()
    return expect(Kind.ILLEGAL_MOVE, seq)


def clock_set_back(m: Mutant) -> Expected:
    """The clock goes backwards."""
    seq = m.rng.randrange(1, m.size)
    at = read_time(m.log.entries[seq - 1]["at"]) - timedelta(minutes=m.rng.randrange(3, 500))
    m.log.entries[seq]["at"] = write_time(at)
    m.forge()
    return expect(Kind.CLOCK, seq)


def less_in_a_closing_entry(m: Mutant) -> Expected:
    """A refusal left out; the entry that closes its request counts one more."""
    closing = m.some(m.log.where("request:close"))
    name = m.request_of(closing)
    seq = m.some([s for s in m.log.of_request(name) if s < closing and "refused" in m.log.entries[s]] or [closing])
    stated = dict(m.log.entries[closing]["data"])
    if seq == closing:
        stated["sha256"] = "0" * 64
    else:
        del m.log.entries[seq]
        closing -= 1
    m.forge()
    m.log.entries[closing]["data"] = stated
    # The closing entry says what it said; all after it is written anew around that.
    _write_as_is(m)
    return expect(Kind.MISSING, closing, request=name, or_=(Kind.ALTERED,))


def _write_as_is(m: Mutant) -> None:
    """Write the log anew, closing entries as they are."""
    kept = {seq: entry for seq, entry in enumerate(m.log.entries) if entry["event"] == "request:close"}
    for seq, closing in kept.items():
        m.log.entries[seq] = dict(closing) | {"event": "request:closx"}
    m.log.write()
    peaks = b""
    roots = {0: merkle.EMPTY_ROOT}
    for seq, entry in enumerate(m.log.entries):
        body = audit.canonical(entry | {"event": "request:close"} if seq in kept else entry)
        leaf = merkle.leaf_hash(body)
        peaks = merkle.push(peaks, seq, leaf)
        roots[seq + 1] = merkle.root(peaks)
        m.raw.execute(
            "UPDATE entry SET body = ?, leaf_hash = ?, root = ?, peaks = ?, event = ? WHERE seq = ?",
            (body, leaf, roots[seq + 1], peaks, "request:close" if seq in kept else entry["event"], seq),
        )
    m.log.sign(KeySigner.of(ORIGIN, m.private), roots)


def unknown_policy(m: Mutant) -> Expected:
    """A request opened under a policy that nobody has seen."""
    seq = m.some(m.log.where("request:open"))
    m.log.entries[seq]["policy"] = "0" * 64
    m.forge()
    return expect(Kind.UNKNOWN_POLICY, seq)


def pruned_by_one(m: Mutant) -> Expected:
    """Entries pruned, and nobody confirmed it."""
    entry = {
        "actor": {"person": "system", "team": ""},
        "at": m.log.entries[-1]["at"],
        "data": {"count": 0, "proposal": 3, "ranges": [], "sha256": "0" * 64},
        "event": "retention:apply",
        "v": 1,
    }
    m.log.entries.append(entry)
    m.forge()
    return expect(Kind.NO_QUORUM, m.size - 1)


MUTATIONS: Final[tuple[Callable[[Mutant], Expected], ...]] = (
    *(body_byte, body_and_leaf, whole_row, hash_column, query_column, wrong_kind, other_spelling, body_gone),
    *(deleted, deleted_and_moved_up, deleted_and_written_anew, swapped, swapped_and_written_anew),
    *(doubled, doubled_and_written_anew, put_in, cut, cut_with_heads, cut_and_tables_set_back),
    *(signature_bit, other_root_without_key, strangers_head, forked_head, second_head_of_a_size, another_logs_head),
    *(
        heads_in_another_order,
        head_column,
        no_head,
        no_heads_at_all,
        late_head,
        late_time,
        a_key_that_vouches_for_itself,
    ),
    *(request_column, request_column, request_column, request_column, request_version, never_due),
    *(request_row_gone, request_row_more, other_column, other_column, other_column, other_row_gone, other_row_more),
    *(review_out_of_nothing, self_approval, strangers_approval, approved_twice, quorum_raised, approval_left_out),
    *(approvers_listed, longer_than_approved, reviewer_involved, review_left_out, issued_before_approval),
    *(
        issued_after_end,
        used_after_end,
        record_with_holes,
        two_at_once,
        lease_not_taken_back,
        wrong_person,
        other_workspace,
    ),
    *(illegal_move, state_in_a_refusal, clock_set_back, less_in_a_closing_entry, unknown_policy, pruned_by_one),
)


@pytest.fixture
def mutate(finished: Finished, tmp_path: Path) -> Callable[[Callable[[Mutant], Any], int], tuple[Any, Database]]:
    """Give a mutated copy of the finished log."""

    def make(mutation: Callable[[Mutant], Any], seed: int) -> tuple[Any, Database]:
        file = tmp_path / "log.db"
        for path in tmp_path.glob("log.db*"):
            path.unlink()
        shutil.copyfile(finished.file, file)
        with hands_on(file) as raw:
            rng = random.Random(seed)  # noqa: S311 - seeded, so that a failure can be had again
            expected = mutation(Mutant(raw, Log.of(raw), rng, finished.private, finished.now))
        return expected, Database(f"sqlite:///{file}")

    return make


def look(database: Database, finished: Finished, **more: Any) -> Report:
    """Check a database, with the log's public key."""
    try:
        with database.read() as session:
            return check_database(
                session, **{"now": finished.now, "keys": finished.keys, "heartbeat": HEARTBEAT, **more}
            )
    finally:
        database.close()


def test_the_finished_log_has_every_kind_of_entry_and_no_finding(finished: Finished, mutate) -> None:
    """What is mutated below is without a finding, and has every ending in it."""
    events, database = mutate(lambda m: [entry["event"] for entry in m.log.entries], 0)
    assert {"request:deny", "request:withdraw", "request:lapse", "credential:reissue", "review:file"} < set(events)
    assert {"credential:release", "credential:expire", "credential:revoke", "request:close", "policy:load"} < set(
        events
    )
    report = look(database, finished, kept=[("kept", finished.kept)])
    assert (report.findings, report.unchecked, report.entries) == ([], (), len(events))


@pytest.mark.parametrize(
    ("number", "mutation"),
    list(enumerate(MUTATIONS)),
    ids=[f"{n}-{mutation.__name__}" for n, mutation in enumerate(MUTATIONS)],
)
def test_every_mutation_is_found_and_named(finished: Finished, mutate, number: int, mutation) -> None:
    """Each seeded mutation of this kind is named by its class and its entry."""
    for seed in range(SEEDS):
        expected, database = mutate(mutation, number * 1000 + seed)
        report = look(database, finished, now=finished.now + expected.later)
        assert expected.is_met_by(report), (seed, expected, report.findings[:12])


# --- what only somebody outside can show ---------------------------------------------------------------------------


def rewritten(m: Mutant) -> Expected:
    """Some words in one entry, in a log that holds together, signed with the stolen key."""
    seq = m.some(m.log.where("request:open"))
    m.log.entries[seq]["data"]["reason"] = "Words that look better afterwards"
    m.raw.execute(
        "UPDATE request SET reason = ? WHERE id = ?", ("Words that look better afterwards", m.request_of(seq))
    )
    m.forge()
    # The closing entries of the request, which are over its leaf hashes, are different as well.
    return expect(Kind.ALTERED, seq)


def rewritten_from_somewhere(m: Mutant) -> Expected:
    """Everything from an entry on."""
    seq = m.rng.randrange(1, m.size - 2)
    for entry in m.log.entries[seq:]:
        entry["at"] = write_time(read_time(entry["at"]) + timedelta(seconds=1))
    m.forge()
    return expect(Kind.FORKED, seq)


def end_cut_everywhere(m: Mutant) -> Expected:
    """The end cut off, and every trace of it in heads and tables."""
    size = m.size - 1 - m.rng.randrange(10)
    del m.log.entries[size:]
    m.forge()
    return expect(Kind.TRUNCATED, size)


def left_out(m: Mutant) -> Expected:
    """A refusal left out, which no state remembers."""
    seq = m.some([s for s, e in enumerate(m.log.entries[:-3]) if "refused" in e])
    del m.log.entries[seq]
    m.forge()
    return expect(Kind.FORKED, seq)


@pytest.mark.parametrize("mutation", [rewritten, rewritten_from_somewhere, end_cut_everywhere, left_out])
def test_a_rewrite_with_the_stolen_key_is_found_by_the_copy_outside(finished: Finished, mutate, mutation) -> None:
    """What holds together and is signed by the log's own key differs from the copy, at the entry where it begins."""
    for seed in range(SEEDS * 3):
        expected, database = mutate(mutation, seed)
        findings = Findings(1000)
        compare_with_copy(database, finished.copy, findings)
        database.close()
        assert any(f.kind in expected.kinds and f.seq in expected.seqs for f in findings), (
            seed,
            expected,
            findings[:9],
        )


@pytest.mark.parametrize("mutation", [rewritten, rewritten_from_somewhere, end_cut_everywhere, left_out])
def test_a_rewrite_with_the_stolen_key_is_found_by_one_head_kept_elsewhere(
    finished: Finished, mutate, mutation
) -> None:
    """A single signed head in other hands is enough to see that the log is another."""
    for seed in range(SEEDS):
        expected, database = mutate(mutation, seed)
        report = look(database, finished, kept=[("the auditor's head", finished.kept)])
        wanted = {Kind.FORKED, Kind.TRUNCATED} if mutation in (end_cut_everywhere, left_out) else {Kind.FORKED}
        assert {found.kind for found in report.findings if "auditor" in found.sentence} & wanted, (seed, expected)


def test_an_untouched_log_equals_its_copy(finished: Finished, mutate) -> None:
    """The copy outside and the database hold the same."""
    _, database = mutate(lambda m: None, 0)
    findings = Findings(1000)
    assert compare_with_copy(database, finished.copy, findings).lacking == 0
    database.close()
    assert findings == []


def test_there_are_at_least_five_hundred_mutations() -> None:
    """The issue's number is kept, whatever is added or taken away."""
    assert len(MUTATIONS) * SEEDS + 4 * SEEDS * 3 + 4 * SEEDS >= 500


# --- no false alarm ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", range(8))
def test_untouched_logs_give_no_finding(real, sqlite_template, tmp_path, part: int) -> None:
    """Random walks through the desk by anybody, legal or refused, leave logs in which nothing is found."""
    key_file, key = key_in(tmp_path)
    policy = policy_for(real)
    for seed in range(25):
        rng = random.Random(part * 100 + seed)  # noqa: S311 - seeded, so that a failure can be had again
        file = tmp_path / f"walk-{seed}.db"
        shutil.copyfile(sqlite_template, file)
        database = Database(f"sqlite:///{file}")
        night = Night(desk_at(real, database, policy), key_file)
        night.walk(rng, rng.randrange(4, 20), with_vault=seed % 5 == 0)
        with database.read() as session:
            report = check_database(session, now=night.desk.now, keys=[key], heartbeat=HEARTBEAT)
        database.close()
        # A walk that goes on for days may leave a review overdue, and that is then the truth.
        assert report.findings == [], (seed, report.findings)
    real.bao.call("PUT", "sys/leases/revoke-prefix/database/creds", {"sync": True})
