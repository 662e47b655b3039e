"""Is every entry canonical, chained, strictly read, and is every change to a stored one found?"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.engine import make_url
from sqlmodel import select

from storage import audit, merkle
from storage.models import Entry

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from storage.database import Database

NOW = datetime(2026, 3, 1, 2, 0, 0, 125, tzinfo=UTC)
CARL = audit.Actor(team="T0HOME", person="U0CARL")

# Text as people can send it: control characters, half surrogate pairs, line separators, text that turns direction.
TEXT = st.text(st.characters(exclude_categories=()), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


def stored(value: Any) -> Any:
    """What is expected back: the same, but for halves of surrogate pairs."""
    if isinstance(value, str):
        return "".join("\ufffd" if "\ud800" <= letter <= "\udfff" else letter for letter in value)
    if isinstance(value, dict):
        return {stored(name): stored(item) for name, item in value.items()}
    return [stored(item) for item in value] if isinstance(value, list) else value


def fill(database: Database, count: int = 6) -> None:
    """Append entries about two requests and about none."""
    with database.write() as session:
        for number in range(count):
            audit.append(
                session,
                event="request:approve",
                at=NOW + timedelta(seconds=number),
                actor=CARL,
                request_id=("BG-1", "BG-2", None)[number % 3],
                source="pending",
                target="approved",
                version=number + 1,
                policy="0" * 64,
                data={"n": number, "reason": "checkout is down"},
            )


@contextmanager
def unguarded(database_url: str) -> Iterator[Any]:
    """The owner of the database, who can lift the guards, change what he likes and put them back."""
    url = make_url(database_url)
    if url.get_backend_name() == "sqlite":
        with closing(sqlite3.connect(str(url.database))) as connection:
            found = connection.execute("SELECT sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'entry'")
            guards = [row[0] for row in found]
            for name in ("entry_no_update", "entry_no_delete", "entry_only_next"):
                connection.execute(f"DROP TRIGGER {name}")
            yield lambda sql, *args: connection.execute(sql.replace("%s", "?"), args)
            for guard in guards:
                connection.execute(guard)
            connection.commit()
        return
    with psycopg.connect(url.set(drivername="postgresql").render_as_string(hide_password=False)) as connection:
        connection.execute("ALTER TABLE entry DISABLE TRIGGER ALL")
        yield lambda sql, *args: connection.execute(sql, args)


# --- what is written -----------------------------------------------------------------------------------------------


def test_an_entry_is_the_canonical_json_that_format_says() -> None:
    """All keys, in code point order, without spaces, non-ASCII as it is, and absent ones left out."""
    full = audit.encode(
        seq=7,
        event="request:approve",
        at=datetime(2026, 3, 1, 3, 0, tzinfo=timezone(timedelta(hours=1))),
        actor=CARL,
        request_id="BG-7KQ2",
        source="pending",
        target="approved",
        version=3,
        policy="abc",
        refused="not_allowed",
        data={"reason": "naïve\n", "a": [1, None, True]},
    )
    assert full.decode() == (
        '{"actor":{"person":"U0CARL","team":"T0HOME"},"at":"2026-03-01T02:00:00.000000Z",'
        '"data":{"a":[1,null,true],"reason":"naïve\\n"},"event":"request:approve","from":"pending","policy":"abc",'
        '"refused":"not_allowed","request":"BG-7KQ2","seq":7,"to":"approved","v":1,"version":3}'
    )
    assert audit.encode(seq=0, event="a:b", at=NOW, actor=audit.SYSTEM, data={}) == (
        b'{"actor":{"person":"system","team":""},"at":"2026-03-01T02:00:00.000125Z","event":"a:b","seq":0,"v":1}'
    )


@given(st.dictionaries(TEXT, VALUES, max_size=4))
def test_whatever_can_be_written_reads_back_the_same(data: dict[str, Any]) -> None:
    """A body is UTF-8 on one line, parses, and what was parsed would be written the same; broken text is replaced."""
    try:
        body = audit.encode(seq=0, event="a:b", at=NOW, actor=CARL, data=data)
    except ValueError as refused:
        assert "become the same" in str(refused)  # noqa: PT017 - two names that differ only in broken characters
        return
    record = audit.parse(body)
    assert b"\n" not in body
    assert b"\r" not in body
    assert record.data == stored(data)
    assert audit.encode(seq=0, event="a:b", at=record.at, actor=record.actor, data=record.data) == body


def test_half_a_surrogate_pair_and_control_characters_are_stored_safely(database: Database) -> None:
    """What has no UTF-8 becomes U+FFFD, NUL and ESC are escaped, and both databases give the same back."""
    with database.write() as session:
        audit.append(session, event="a:b", at=NOW, actor=CARL, data={"x\ud800": "a\udfffb\0\x1b[2J\u2028"})
    with database.read() as session:
        (record,) = audit.read_entries(session)
        assert record.data == {"x\ufffd": "a\ufffdb\0\x1b[2J\u2028"}
        assert b"\0" not in record.body
        assert b"\x1b" not in record.body
        assert audit.check(session) is None


DEEP: Any = {}
for _ in range(20):
    DEEP = {"deeper": DEEP}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"data": {"x": float("nan")}}, ValueError, "JSON"),
        ({"data": {"x": float("inf")}}, ValueError, "JSON"),
        ({"data": {"x": "é" * 30_000}}, ValueError, "60,000 bytes"),
        ({"data": {"x": {1, 2}}}, TypeError, "only JSON"),
        ({"data": {"x": b"bytes"}}, TypeError, "only JSON"),
        ({"data": {"x": NOW}}, TypeError, "only JSON"),
        ({"data": {1: "x"}}, TypeError, "not text"),
        ({"data": dict.fromkeys(("\ud800", "\ud801"))}, ValueError, "become the same"),
        ({"data": DEEP}, ValueError, "nested deeper"),
        ({"at": NOW.replace(tzinfo=None)}, ValueError, "zone"),
        ({"event": "approve"}, ValueError, "noun:verb"),
        ({"event": "request:Approve"}, ValueError, "noun:verb"),
        ({"event": "request:approve\n"}, ValueError, "noun:verb"),
        ({"request_id": ""}, ValueError, "request"),
        ({"request_id": "BG-1\n"}, ValueError, "request"),
        ({"request_id": "B" * 65}, ValueError, "request"),
        ({"actor": audit.Actor(team="T0HOME", person="")}, ValueError, "person"),
        ({"source": "pending approved"}, ValueError, "from"),
    ],
)
def test_what_cannot_be_logged_is_refused_and_leaves_nothing(
    database: Database, change: dict[str, Any], error: type[Exception], words: str
) -> None:
    """NaN, what is not JSON, a naive time, a malformed word, too much: an error that says so, and no entry."""
    arguments: dict[str, Any] = {"event": "request:approve", "at": NOW, "actor": CARL} | change
    with pytest.raises(error, match=words), database.write() as session:
        audit.append(session, **arguments)
    with database.read() as session:
        assert audit.head(session).size == 0


def test_an_entry_of_exactly_the_limit_fits(database: Database) -> None:
    """A body of 60,000 bytes is stored and read; one byte more is refused."""
    room = audit.MAX_BODY - len(audit.encode(seq=0, event="a:b", at=NOW, actor=CARL, data={"x": ""}))
    with database.write() as session:
        entry = audit.append(session, event="a:b", at=NOW, actor=CARL, data={"x": "y" * room})
        assert len(entry.body) == audit.MAX_BODY
        with pytest.raises(ValueError, match="60,001"):
            audit.append(session, event="a:b", at=NOW, actor=CARL, data={"x": "y" * (room + 1)})
    with database.read() as session:
        assert len(audit.read_entries(session)[0].body) == audit.MAX_BODY


def test_sequence_hashes_and_roots_follow_each_other(database: Database) -> None:
    """Entries are numbered 0, 1, 2 …, each with its leaf hash and the root of all through it."""
    assert_empty = audit.Head(size=0, root=merkle.EMPTY_ROOT)
    with database.read() as session:
        assert audit.head(session) == assert_empty
        assert audit.check(session) is None
    fill(database, 21)
    with database.read() as session:
        records = audit.read_entries(session)
        head = audit.head(session)
    leaves = [merkle.leaf_hash(record.body) for record in records]
    assert [record.seq for record in records] == list(range(21))
    assert [record.leaf_hash for record in records] == leaves
    assert [record.root for record in records] == [merkle.Tree(leaves[: n + 1]).root for n in range(21)]
    assert head == audit.Head(size=21, root=records[-1].root)


def test_a_clock_that_goes_backwards_is_recorded_as_it_was(database: Database) -> None:
    """Order is the sequence; the time is kept as given, also when it is earlier than the entry's before."""
    with database.write() as session:
        for minutes in (5, -5):
            audit.append(session, event="a:b", at=NOW + timedelta(minutes=minutes), actor=CARL)
    with database.read() as session:
        assert [record.at for record in audit.read_entries(session)] == [
            NOW + timedelta(minutes=5),
            NOW - timedelta(minutes=5),
        ]
        assert audit.check(session) is None


def test_the_columns_repeat_the_body(database: Database) -> None:
    """What queries select by is what the hashed body says."""
    fill(database, 3)
    with database.read() as session:
        for entry in session.exec(select(Entry)):
            body = json.loads(entry.body)
            assert (entry.seq, entry.event, entry.request_id) == (body["seq"], body["event"], body.get("request"))
            assert audit.write_time(entry.at) == body["at"]


# --- what is read --------------------------------------------------------------------------------------------------


def test_entries_are_selected_by_request_and_range(database: Database) -> None:
    """One request's, those about none, all; after a number, through a number, and not more than a number."""
    fill(database, 9)

    def seqs(**selection: Any) -> list[int]:
        with database.read() as session:
            return [record.seq for record in audit.read_entries(session, **selection)]

    assert seqs() == list(range(9))
    assert seqs(request_id="BG-2") == [1, 4, 7]
    assert seqs(request_id="") == [2, 5, 8]
    assert seqs(request_id="BG-9") == []
    assert seqs(after=3, until_seq=6) == [4, 5, 6]
    assert seqs(request_id="BG-1", after=0, limit=1) == [3]


def test_a_record_gives_every_part_back(database: Database) -> None:
    """The parsed view holds what was given to append."""
    fill(database, 2)
    with database.read() as session:
        record = audit.read_entries(session)[1]
    assert (record.seq, record.at, record.event) == (1, NOW + timedelta(seconds=1), "request:approve")
    assert (record.request_id, record.actor) == ("BG-2", CARL)
    assert (record.source, record.target, record.version) == ("pending", "approved", 2)
    assert (record.policy, record.refused) == ("0" * 64, None)
    assert record.data == {"n": 1, "reason": "checkout is down"}


GOOD = audit.encode(seq=3, event="a:b", at=NOW, actor=CARL, request_id="BG-1", version=2, data={"x": 1})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b"{" * 5000,
        b"[" * 100_000,
        b'{"seq":' + b"9" * 5000 + b"}",
        GOOD + b" ",
        GOOD.replace(b",", b", ", 1),
        GOOD.replace(b'"seq":3', b'"seq":3.0'),
        GOOD.replace(b'"seq":3', b'"seq":true'),
        GOOD.replace(b'"seq":3', b'"seq":-3'),
        GOOD.replace(b'"seq":3', b'"seq":3,"seq":3'),
        GOOD.replace(b'"v":1', b'"v":2'),
        GOOD.replace(b'"v":1', b'"v":NaN'),
        GOOD.replace(b'"v":1', b'"v":1,"w":1'),
        GOOD.replace(b'"data":{"x":1}', b'"data":{}'),
        GOOD.replace(b'"data":{"x":1}', b'"data":null'),
        GOOD.replace(b'"x":1', b'"x":"\\ud800"'),
        GOOD.replace(b'"x":1', b'"x":"\\u0041"'),
        GOOD.replace(b"02:00:00.000125Z", b"02:00:00Z"),
        GOOD.replace(b"02:00:00.000125Z", b"02:00:00.000125+00:00"),
        GOOD.replace(b"02:00:00.000125Z", b"02:00:61.000125Z"),
        GOOD.replace(b'"team":"T0HOME"', b'"team":1'),
        GOOD.replace(b'"a:b"', b'"nothing"'),
        GOOD.replace(b'"BG-1"', b'""'),
    ],
)
def test_a_body_that_the_log_would_not_write_is_not_an_entry(body: bytes) -> None:
    """Other spellings, unknown or missing keys, wrong kinds and hostile depths are ValueErrors, never crashes."""
    assert audit.parse(GOOD).seq == 3
    with pytest.raises(ValueError):
        audit.parse(body)


@given(st.binary(max_size=60), st.integers(0, len(GOOD)), st.integers(0, len(GOOD)))
def test_parsing_never_crashes_and_always_round_trips(noise: bytes, start: int, end: int) -> None:
    """Any change of a body is either not an entry, or an entry that is written exactly so."""
    body = GOOD[:start] + noise + GOOD[end:]
    try:
        record = audit.parse(body)
    except ValueError:
        return
    assert audit._encode_again(record) == body


# --- what was tampered with ----------------------------------------------------------------------------------------


def rewrite(execute: Any, seq: int, body: bytes) -> None:
    """Change a body and everything that is computed from it in its own row."""
    (peaks,) = execute("SELECT peaks FROM entry WHERE seq = %s", seq - 1).fetchone()
    leaf = merkle.leaf_hash(body)
    peaks = merkle.push(bytes(peaks), seq, leaf)
    execute(
        "UPDATE entry SET body = %s, leaf_hash = %s, peaks = %s, root = %s WHERE seq = %s",
        body,
        leaf,
        peaks,
        merkle.root(peaks),
        seq,
    )


BODY = "SELECT body FROM entry WHERE seq = 3"


@pytest.mark.parametrize(
    ("attack", "seq", "words"),
    [
        pytest.param(lambda do: do("UPDATE entry SET body = %s WHERE seq = 3", b"{}"), 3, "changed", id="body"),
        pytest.param(
            lambda do: do("UPDATE entry SET leaf_hash = %s WHERE seq = 3", b"0" * 32), 3, "changed", id="leaf"
        ),
        pytest.param(lambda do: do("UPDATE entry SET root = %s WHERE seq = 3", b"0" * 32), 3, "root", id="root"),
        pytest.param(lambda do: do("UPDATE entry SET peaks = %s WHERE seq = 3", b"0" * 32), 3, "peaks", id="peaks"),
        pytest.param(lambda do: do("UPDATE entry SET request_id = 'BG-9' WHERE seq = 3"), 3, "columns", id="request"),
        pytest.param(lambda do: do("UPDATE entry SET request_id = NULL WHERE seq = 3"), 3, "columns", id="hide"),
        pytest.param(lambda do: do("UPDATE entry SET event = 'a:b' WHERE seq = 3"), 3, "columns", id="event"),
        pytest.param(
            lambda do: do("UPDATE entry SET at = '2026-03-01 05:00:00+00:00' WHERE seq = 3"), 3, "columns", id="time"
        ),
        pytest.param(lambda do: do("DELETE FROM entry WHERE seq = 3"), 3, "missing", id="drop_one"),
        pytest.param(lambda do: do("DELETE FROM entry WHERE seq = 0"), 0, "missing", id="drop_the_first"),
        pytest.param(lambda do: rewrite(do, 3, b"{}"), 3, "not written by the log", id="foreign_body"),
        pytest.param(
            lambda do: rewrite(do, 3, bytes(do(BODY).fetchone()[0]).replace(b'"seq":3', b'"seq":4')),
            3,
            "says that it is entry 4",
            id="wrong_number",
        ),
        pytest.param(
            lambda do: rewrite(do, 3, bytes(do(BODY).fetchone()[0]).replace(b"U0CARL", b"U0CORA")),
            4,
            "peaks",
            id="consistent_rewrite_of_one_row",
        ),
    ],
)
def test_check_names_the_first_entry_that_was_tampered_with(
    database: Database, database_url: str, attack: Any, seq: int, words: str
) -> None:
    """An owner who lifts the guards and changes a row is found, by number; a careful rewrite breaks the next row."""
    fill(database, 7)
    with unguarded(database_url) as execute:
        attack(execute)
    with database.read() as session:
        finding = audit.check(session)
    assert finding is not None
    assert finding.seq == seq
    assert words in finding.sentence


def test_reading_a_changed_body_names_it(database: Database, database_url: str) -> None:
    """No follower acts on a row whose body is not an entry."""
    fill(database, 4)
    with unguarded(database_url) as execute:
        execute("UPDATE entry SET body = %s WHERE seq = 2", b"{}")
    with pytest.raises(audit.Damaged, match="Entry 2") as damaged, database.read() as session:
        audit.read_entries(session)
    assert damaged.value.seq == 2


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("change", ["body = 'text'", "at = 'yesterday'", "event = CAST(x'ff' AS TEXT)", "root = 7"])
def test_attack_a_value_of_another_kind_is_named_not_a_crash(
    database: Database, database_url: str, change: str
) -> None:
    """SQLite stores any value anywhere; a row that cannot even be read is found by its number."""
    fill(database, 6)
    with unguarded(database_url) as execute:
        execute(f"UPDATE entry SET {change} WHERE seq = 4")
    with database.read() as session:
        finding = audit.check(session)
    assert finding is not None
    assert finding.seq == 4
    if "root" not in change:  # roots are recomputed by the check alone
        with pytest.raises(audit.Damaged, match="Entry 4"), database.read() as session:
            audit.read_entries(session)


def rewritten(records: Sequence[audit.Record]) -> list[tuple[bytes, bytes, bytes, bytes]]:
    """A whole log, made up anew and consistent in itself."""
    rows, peaks = [], b""
    for record in records:
        body = record.body.replace(b"U0CARL", b"U0CORA")
        leaf = merkle.leaf_hash(body)
        peaks = merkle.push(peaks, record.seq, leaf)
        rows.append((body, leaf, merkle.root(peaks), peaks))
    return rows


def test_attack_rewriting_everything_shows_only_against_a_head_kept_elsewhere(
    database: Database, database_url: str
) -> None:
    """A consistent rewrite or a cut tail passes the table's own check, and fails against a head that was kept."""
    fill(database, 6)
    with database.read() as session:
        kept = audit.head(session)
        records = audit.read_entries(session)
        assert audit.check(session, trusted=kept) is None
    fill(database, 2)
    with database.read() as session:
        assert audit.check(session, trusted=kept) is None
    with unguarded(database_url) as execute:
        execute("DELETE FROM entry WHERE seq > 4")
    with database.read() as session:
        assert audit.check(session) is None
        found = audit.check(session, trusted=kept)
        assert found is not None
        assert found.seq == 5
    with unguarded(database_url) as execute:
        execute("DELETE FROM entry")
        columns = "seq, request_id, event, at, body, leaf_hash, root, peaks"
        for record, row in zip(records, rewritten(records), strict=True):
            at = record.at.isoformat(sep=" ")
            execute(
                f"INSERT INTO entry ({columns}) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
                *(record.seq, record.request_id, record.event, at, *row),
            )
    with database.read() as session:
        assert audit.check(session) is None
        found = audit.check(session, trusted=kept)
        assert found is not None
        assert "rewritten" in found.sentence
        assert audit.check(session, trusted=audit.Head(size=0, root=b"0" * 32)) is not None
