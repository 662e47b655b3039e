"""Whatever a login of a level runs at PostgreSQL is read from the server's log under that login's name, and no other.

Against Debian's PostgreSQL with pgaudit and a real OpenBao: the logins are made as the bot makes them.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import re
import subprocess
import threading
from dataclasses import replace
from types import SimpleNamespace

import psycopg
import pytest
from counter import CARL, CHEN, RITA, counter_at

from storage import verify
from workflows import policy as rules
from workflows.captures import CAPTURES
from workflows.captures.seam import Kind, Trust, Unreadable
from workflows.engines import ENGINES
from workflows.errors import Invalid, Refused
from workflows.policy_file import PolicyInvalid
from workflows.recorder import Raw, Recorder
from workflows.replay import check_database
from workflows.trial import try_level

POSTGRES = CAPTURES["postgres"]
DATABASE = ENGINES["database"]
PREPARED = (
    "CREATE TABLE notes (id int, body text)",
    "CREATE TABLE way28dump AS SELECT 'dumped' AS body",
    "GRANT ALL ON notes, way28dump TO bg_orders_rw",
    "CREATE VIEW seen_notes AS SELECT * FROM notes",
    "GRANT SELECT ON seen_notes TO bg_orders_rw",
    """CREATE FUNCTION plain(word text) RETURNS bigint LANGUAGE sql AS
    'SELECT count(*) FROM notes WHERE body = word /* way11of */'""",
    """CREATE FUNCTION dynamic(word text) RETURNS int LANGUAGE plpgsql AS $$DECLARE found int;
    BEGIN EXECUTE 'SELECT 12 /* way12' || word || '*/' INTO found; RETURN found; END$$""",
    "CREATE PROCEDURE called() LANGUAGE plpgsql AS $$BEGIN DELETE FROM notes WHERE body = 'way13of'; END$$",
    """CREATE FUNCTION triggered() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN PERFORM 1 FROM orders WHERE note = 'way41of'; RETURN NEW; END$$""",
    "CREATE TRIGGER follows AFTER INSERT ON notes FOR EACH ROW WHEN (NEW.id = 41) EXECUTE FUNCTION triggered()",
)


@pytest.fixture(scope="module")
def prepared(audited):
    """The target with a few things of the orders' owner to run."""
    audited.superuser(*PREPARED)
    return audited


@pytest.fixture
def login(prepared):
    """A login of the recorded level, whose grant is its request's."""
    numbers = itertools.count(1)

    def make(name="", level=None):
        vault = prepared.real.vault()
        return prepared.real.open(vault, level or prepared.real.write, name=name or f"BG-PG{next(numbers):02}")[0]

    return make


def _statements(lines):
    return [line for line in lines if line.kind is Kind.STATEMENT]


def _program(audited, credential, name, *words, given=""):
    """Run one of PostgreSQL's programs as the responder does."""
    target = {
        "PGHOST": credential.host,
        "PGPORT": str(credential.port),
        "PGUSER": credential.username,
        "PGPASSWORD": credential.password,
        "PGDATABASE": credential.database,
    }
    return subprocess.run(
        [str(audited.pg.bin / name), *words],
        input=given.encode(),
        env={"PATH": os.defpath, "LC_ALL": "C.UTF-8", **target},
        capture_output=True,
        check=False,
    )


# --------------------------------------------------------------------------------------------------- forty ways


def _way_pipeline(session):
    with session.pipeline():
        session.execute("SELECT 5 /* way05 */")
        session.execute("SELECT body FROM notes WHERE body = %s", ["way05b"])


def _way_cursor(session):
    with session.transaction(), session.cursor("way29") as cursor:
        cursor.execute("SELECT id FROM orders /* way29 */")
        cursor.fetchmany(3)


def _way_copied_in(session):
    with session.cursor() as cursor, cursor.copy("COPY notes FROM STDIN /* way15 */") as copy:
        copy.write("1\tunseen-payload\n")


def _way_copied_out(session):
    with session.cursor() as cursor, cursor.copy("COPY (SELECT 'way14') TO STDOUT") as copy:
        list(copy)


def _way_cancelled(session):
    threading.Timer(0.3, session.cancel).start()
    session.execute("SELECT pg_sleep(60) /* way21 */")


def _way_rolled_back(session):
    with session.transaction(force_rollback=True):
        session.execute("INSERT INTO notes VALUES (39, 'way39')")


def _way_savepoint(session):
    with session.transaction(), session.transaction(force_rollback=True):
        session.execute("UPDATE notes SET body = 'way38'")


def _way_stream(session):
    with session.cursor() as cursor:
        list(cursor.stream("SELECT id FROM orders WHERE note <> %s", ["way30"]))


def _way_many(session):
    with session.cursor() as cursor:
        cursor.executemany("INSERT INTO notes VALUES (40, %s)", [["way40"], ["way40b"]])


def _way_locked(session):
    with session.transaction():
        session.execute("LOCK TABLE notes IN SHARE MODE /* way36 */")


def _run(*statements, **more):
    def way(session):
        for statement in statements:
            session.execute(statement, **more)

    return way


# Each runs in a session, and its mark is the number in its name.
BY_PSYCOPG = {
    "way01 a simple query": _run("SELECT 'way01'"),
    "way02 with parameters": _run("SELECT %s::text, %s::text", params=["a,\"b\nc'", "way02"]),
    "way03 in binary": _run("SELECT body FROM notes WHERE body = %b", params=["way03"], binary=True),
    "way04 prepared by the driver": lambda s: [s.execute("SELECT %s::text", ["way04"], prepare=True) for _ in "ab"],
    "way05 in a pipeline": _way_pipeline,
    "way06 prepared in SQL": _run("PREPARE p06 AS SELECT $1::text", "EXECUTE p06('way06')", "DEALLOCATE p06"),
    "way07 in a DO block": _run("DO $$ BEGIN PERFORM 'way07'; END $$"),
    "way08 put together in a DO block": _run(
        "DO $$ BEGIN EXECUTE 'DELETE FROM notes WHERE body=''way' || '08'''; END $$"
    ),
    "way09 in a loop over rows": _run(
        "DO $$ DECLARE r record; BEGIN FOR r IN SELECT 1 AS way09 FROM notes LOOP NULL; END LOOP; END $$"
    ),
    "way10 several at once": _run("SELECT 1; SELECT 'way10'; SELECT 2"),
    "way11 in a function": _run("SELECT plain('x')"),
    "way12 put together in a function": _run("SELECT dynamic('of')"),
    "way13 in a procedure": _run("CALL called()"),
    "way14 copied out": _way_copied_out,
    "way15 copied in": _way_copied_in,
    "way16 of 200 kB": _run(f"SELECT length('{'x' * 200_000}way16')"),
    "way17 with a wrong word": _run("SELEC 'way17'"),
    "way18 of a table that is not there": _run("SELECT * FROM way18"),
    "way19 that is not allowed": _run("SELECT card_token FROM payment_cards /* way19 */"),
    "way20 that fails while it runs": _run("SELECT 1 / (id - 561) FROM orders /* way20 */"),
    "way21 cancelled": _way_cancelled,
    "way22 that takes too long": _run("SET statement_timeout = '100ms'", "SELECT pg_sleep(60) /* way22 */"),
    "way29 through a cursor": _way_cursor,
    "way30 row by row": _way_stream,
    "way31 with rows returned": _run("INSERT INTO notes VALUES (31, 'way31') RETURNING id"),
    "way32 a change": _run("UPDATE orders SET note = 'way32' WHERE id = 600"),
    "way33 that deletes within a reading": _run("WITH d AS (DELETE FROM notes WHERE body='way33' RETURNING *) TABLE d"),
    "way34 a MERGE": _run(
        "MERGE INTO notes n USING (SELECT 34 AS id) x ON n.id = x.id WHEN NOT MATCHED THEN INSERT VALUES (34, 'way34')"
    ),
    "way35 explained and run": _run("EXPLAIN ANALYZE DELETE FROM notes WHERE body = 'way35'"),
    "way36 a lock": _way_locked,
    "way37 told to others": _run("NOTIFY night, 'way37'"),
    "way38 back to a savepoint": _way_savepoint,
    "way39 rolled back": _way_rolled_back,
    "way40 many": _way_many,
    "way41 by a trigger": _run("INSERT INTO notes VALUES (41, 'x')"),
    "way42 through a view": _run("SELECT * FROM seen_notes WHERE body = 'way42'"),
    "way43 emptied": _run("TRUNCATE notes /* way43 */"),
    "way44 as the group": _run("SET ROLE bg_orders_rw", "SELECT 'way44'"),
    "way45 with breaks, quotes and far letters": _run("SELECT 'ü\n\"x\",\t''way45 \u2028 \U0001f511' -- end\n"),
    "way46 of values alone": _run("VALUES ('way46')"),
}
BY_PROGRAM = {
    "way23 psql -c": ("psql", ["-c", "SELECT 'way23'"], ""),
    "way24 psql reading a script": ("psql", [], "BEGIN;\nSELECT 'way24';\nCOMMIT;\n"),
    "way25 psql's own copy": ("psql", ["-c", "\\copy (SELECT 'way25') TO STDOUT"], ""),
    "way26 psql running what it read": ("psql", [], "SELECT 'SELECT ''way' || '26'''\n\\gexec\n"),
    "way27 psql with a variable": ("psql", ["-v", "word=way27"], "SELECT :'word';\n"),
    "way28 pg_dump": ("pg_dump", ["--table=way28dump", "--no-owner"], ""),
}


WAYS = sorted([*BY_PSYCOPG, *BY_PROGRAM, "way47 asynchronously"])


def _go(audited, credential, name):
    """Go one way with a credential, in a session of its own."""
    if name in BY_PROGRAM:
        program, words, given = BY_PROGRAM[name]
        done = _program(audited, credential, program, *words, given=given)
        assert done.returncode == 0, done.stderr
    elif name in BY_PSYCOPG:
        # What is refused, wrong or cancelled was tried all the same.
        with audited.real.connect(credential) as session, contextlib.suppress(psycopg.Error):
            BY_PSYCOPG[name](session)
    else:
        asyncio.run(_asynchronously(credential))


async def _asynchronously(credential):
    async with await psycopg.AsyncConnection.connect(
        credential.target(), password=credential.password, autocommit=True
    ) as session:
        await session.execute("SELECT 'way47'")


def test_forty_ways_of_running_sql_are_all_read_under_the_right_login(prepared, login):
    """Two logins take turns at 47 ways: each way's statement is read under the one that took it and not the other."""
    credentials = [login("BG-ODD1"), login("BG-EVEN")]
    expected = {}
    assert len(WAYS) == 47
    for number, name in enumerate(WAYS):
        credential = credentials[number % 2]
        expected[name] = credential.username
        _go(prepared, credential, name)
    for credential in credentials:
        prepared.until(credential.username, lambda lines: sum(x.kind is Kind.CLOSED for x in lines) >= 23)
    for name, username in expected.items():
        seen = {line.identity for line in _statements(prepared.lines) if name[:5] in line.text}
        assert seen == {username}, name
    whole = [line for line in _statements(prepared.lines) if "way16" in line.text]
    assert [len(line.text) for line in whole] == [len(f"SELECT length('{'x' * 200_000}way16')")]
    codes = {name: {x.result for x in _statements(prepared.lines) if name in x.text} for name in ("way17", "way19")}
    assert codes == {"way17": {"42601"}, "way19": {"42501"}}
    assert {x.result for x in _statements(prepared.lines) if "way20" in x.text} == {None, "22012"}
    assert {x.result for x in _statements(prepared.lines) if "way21" in x.text} == {None, "57014"}


def test_every_session_is_whole(prepared, login):
    """From its beginning to its end a session's lines are numbered without a hole, whatever else the server says."""
    credential = login("BG-WH0L")
    with prepared.real.connect(credential) as session:
        session.execute("SET debug_print_plan = on; SET client_min_messages = debug1")
        session.execute("SELECT count(*) FROM orders o, orders p")
        session.execute("DO $$ BEGIN RAISE WARNING 'a warning'; RAISE LOG 'a word'; END $$")
        with pytest.raises(psycopg.Error):
            session.execute("SELECT 1/0")
    lines = prepared.until(credential.username, lambda lines: [x for x in lines if x.kind is Kind.CLOSED])
    numbers = sorted({line.number for line in lines})
    assert lines[0].kind is Kind.OPENED or lines[1].kind is Kind.OPENED
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    assert {line.session for line in lines} == {lines[0].session}
    assert {line.database for line in _statements(lines)} == {"orders"}
    assert all(line.at.utcoffset().total_seconds() == 0 for line in lines)
    assert POSTGRES.trust is Trust.ENFORCED


# ------------------------------------------------------------------------------------------------- the known holes


def test_what_is_sent_into_a_copy_is_a_hole_and_said_to_be(prepared, login):
    """COPY FROM STDIN, also spelled STDOUT, is read with its statement and a hole; what was sent is nowhere."""
    credential = login("BG-C0PY")
    with prepared.real.connect(credential) as session, session.cursor() as cursor:
        for statement in ("COPY notes FROM STDIN", "copy notes from/**/stdout"):
            with cursor.copy(statement) as copy:
                copy.write("7\tunseen-payload\n")
        with cursor.copy("COPY notes TO STDOUT") as copy:
            list(copy)
    lines = prepared.until(credential.username, lambda lines: [x for x in lines if x.kind is Kind.CLOSED])
    assert [x.text for x in lines if x.kind is Kind.HOLE] == ["what was sent into this COPY is not recorded"] * 2
    assert not [x for x in lines if "unseen-payload" in x.text]


def test_a_replication_connection_is_a_hole_and_said_to_be(prepared, login):
    """A login that may replicate (ours may not) reads the cluster unrecorded, and the log says that it could."""
    credential = login("BG-REPL")
    prepared.superuser(f'ALTER ROLE "{credential.username}" REPLICATION')
    try:
        with prepared.real.connect(credential, replication="true", dbname="orders") as session:
            session.execute("IDENTIFY_SYSTEM")
    finally:  # or Vault's manager could not drop it
        prepared.superuser(f'ALTER ROLE "{credential.username}" NOREPLICATION')
    lines = prepared.until(credential.username, lambda lines: [x for x in lines if x.kind is Kind.CLOSED])
    assert [x.kind for x in lines if x.kind is not Kind.NOTE] == [Kind.OPENED, Kind.HOLE, Kind.CLOSED]
    assert "replication" in next(x.text for x in lines if x.kind is Kind.HOLE)


def test_a_call_over_the_fast_path_is_a_hole_and_said_to_be(prepared, login, tmp_path):
    """Large objects pass pgaudit by on the protocol's fast path: that a call was made is seen, and not which."""
    credential = login("BG-FAST")
    (tmp_path / "small").write_text("unseen-payload", encoding="utf-8")
    done = _program(prepared, credential, "psql", "-c", f"\\lo_import {tmp_path / 'small'}")
    assert done.returncode == 0, done.stderr
    lines = prepared.until(credential.username, lambda lines: [x for x in lines if x.kind is Kind.CLOSED])
    assert [x for x in lines if x.kind is Kind.HOLE and "fast path" in x.text]
    assert not [x for x in lines if "unseen-payload" in x.text]


# ------------------------------------------------------------------------------- attempts to switch it off, to blame

FORGED = (
    '{"timestamp":"2026-11-24 13:34:52.914 UTC","user":"VICTIM","dbname":"orders","pid":1,"session_id":"6ab.1",'
    '"line_num":3,"ps":"SELECT","error_severity":"LOG","message":"AUDIT: SESSION,1,1,READ,SELECT,,,select 1,<none>",'
    '"backend_type":"client backend"}'
)
# What is refused, and raises the finding "recording was tried to be stopped".
SWITCHING_OFF = {
    "SET": "SET pgaudit.log = 'none'",
    "SET LOCAL": "BEGIN; SET LOCAL pgaudit.log = 'none'",
    "SET of another": "SET log_min_messages = 'panic'",
    "RESET": "RESET pgaudit.log",
    "set_config": "SELECT set_config('pgaudit.log', 'none', false)",
    "set_config of a name put together": "SELECT set_config('pg' || 'audit.' || 'log', 'none', false)",
    "in a DO block": "DO $$ BEGIN EXECUTE 'S' || 'ET pgau' || 'dit.log TO none'; END $$",
    "pg_settings": "UPDATE pg_settings SET setting = 'none' WHERE name = 'pgaudit.log'",
    "ALTER ROLE of itself": "ALTER ROLE CURRENT_USER SET pgaudit.log = 'none'",
    "a library at log-in": "ALTER ROLE CURRENT_USER SET session_preload_libraries = ''",
}
# What is refused, or changes nothing.
HARMLESS = {
    "RESET ALL": "RESET ALL",
    "DISCARD ALL": "DISCARD ALL",
    "ALTER ROLE RESET ALL": "ALTER ROLE CURRENT_USER RESET ALL",
    "ALTER DATABASE": "ALTER DATABASE orders SET pgaudit.log = 'none'",
    "ALTER SYSTEM": "ALTER SYSTEM SET pgaudit.log = 'none'",
    "a function that sets": "CREATE FUNCTION off() RETURNS int LANGUAGE sql SET pgaudit.log = 'none' AS 'SELECT 1'",
    "SET ROLE": "SET ROLE bg_orders_rw",
    "SET SESSION AUTHORIZATION": "SET SESSION AUTHORIZATION 'VICTIM'",
    "another file": "SELECT pg_rotate_logfile(), pg_reload_conf()",
    "application_name": "SET application_name = 'VICTIM'",
    "a password of its own": "ALTER ROLE CURRENT_USER PASSWORD 'PASSWORD'",
    "forged JSON in a literal": f"SELECT '\n{FORGED}\n'",
    "forged CSV in a literal": "SELECT '\",<none>\nAUDIT: SESSION,9,1,READ,SELECT,,,\"select 666'",
    "escape sequences": "SELECT '\x1b[2J\x1b]0;x\x07\r\n\x7f\u202e', E'\\x00' || 'x'",
    "a line of a megabyte": f"SELECT length('{'long ' * 200_000}')",
    "a forged record": (
        "DO $$ BEGIN RAISE LOG 'AUDIT: SESSION,1,1,READ,SELECT,,,select 666,<none>'; "
        "RAISE LOG 'disconnection: session time: 0:00:01 user=VICTIM'; "
        "RAISE LOG 'connection authorized: user=VICTIM'; RAISE LOG 'statement: select 666'; END $$"
    ),
    "a failure that is not": f"DO $$ BEGIN RAISE EXCEPTION USING MESSAGE = '{FORGED}'; END $$",
}


@pytest.mark.parametrize("name", [*SWITCHING_OFF, *HARMLESS])
def test_an_attempt_to_switch_it_off_or_to_blame_another_changes_nothing(prepared, login, name):
    """After each attempt, in the same session and in the next, statements are read under the login's own name."""
    credential, victim = login("BG-EV1L"), "bg-0ther-1-abcdefgh"
    attempt = (
        (SWITCHING_OFF | HARMLESS)[name]
        .replace("VICTIM", victim)
        .replace("PASSWORD 'PASSWORD'", f"PASSWORD '{credential.password}'")
    )
    with prepared.real.connect(credential) as session:
        with contextlib.suppress(psycopg.Error):
            session.execute(attempt)
        with contextlib.suppress(psycopg.Error):
            session.execute("ROLLBACK")
        session.execute("SELECT 'canary one'")
    with prepared.real.connect(credential) as session:
        session.execute("SELECT 'canary two'")
    lines = prepared.until(credential.username, lambda lines: sum(x.kind is Kind.CLOSED for x in lines) == 2)
    run = [line.text for line in _statements(lines)]
    assert "SELECT 'canary one'" in run
    assert "SELECT 'canary two'" in run
    assert "select 666" not in run
    assert not prepared.of(victim)
    if name in SWITCHING_OFF:
        assert [line for line in lines if line.kind is Kind.STOPPED and "refused" in line.text]
    numbers = sorted({line.number for line in lines if line.session == lines[-1].session})
    assert numbers == list(range(numbers[0], numbers[-1] + 1))


@pytest.mark.parametrize("options", ["-c pgaudit.log=none", "-c log_statement=none", "-c log_min_messages=panic"])
def test_options_at_log_in_do_not_switch_it_off(prepared, login, options):
    """A log-in whose options would stop the recording is turned away, its session is closed, and that is a finding."""
    credential = login("BG-0PT5")
    with pytest.raises(psycopg.OperationalError, match="permission denied to set parameter"):
        prepared.real.connect(credential, options=options)
    lines = prepared.until(credential.username, lambda lines: [x for x in lines if x.kind is Kind.STOPPED])
    assert [x.kind for x in lines if x.kind is not Kind.NOTE] == [Kind.OPENED, Kind.CLOSED, Kind.STOPPED]


def test_a_replication_connection_is_refused(prepared, login):
    """A level's login may not replicate; that it was tried is a hole that is said."""
    credential = login("BG-REP2")
    with pytest.raises(psycopg.OperationalError, match="replication"):
        prepared.real.connect(credential, replication="true")
    assert prepared.until(credential.username, lambda lines: [x for x in lines if x.kind is Kind.HOLE])


def test_a_flood_loses_nothing(prepared, login):
    """Three thousand statements in a row are all read, once and in order."""
    credential = login("BG-FL0D")
    with prepared.real.connect(credential) as session, session.pipeline():
        for number in range(3000):
            session.execute(f"SELECT {number} AS flood")
    lines = prepared.until(credential.username, lambda lines: lines and lines[-1].kind is Kind.CLOSED)
    run = [line.text for line in _statements(lines) if line.text.endswith("flood")]
    assert run == [f"SELECT {number} AS flood" for number in range(3000)]


def test_a_superusers_silence_begins_unseen_and_therefore_none_is_issued(prepared):
    """The extension does not write the very SET that silences it: why a group that may set it is refused."""
    prepared.superuser("ALTER ROLE postgres SET pgaudit.log = 'all'")
    try:
        before = len(prepared.of("postgres"))
        prepared.superuser("SELECT 'loud'", "SET pgaudit.log = 'none'", "SELECT 'silent'", "RESET pgaudit.log")
        lines = prepared.until("postgres", lambda lines: [x for x in lines[before:] if "RESET" in x.text])
        run = [x.text.split("\n")[0] for x in _statements(lines[before:])]
    finally:
        prepared.superuser("ALTER ROLE postgres RESET pgaudit.log")
    assert "SELECT 'loud'" in run
    assert "SELECT 'silent'" not in run
    assert [x for x in lines if x.kind is Kind.STOPPED]  # of the RESET


def test_a_group_that_could_switch_it_off_is_refused(prepared):
    """A right to set what records, given to the group or to everybody, is found before a level is given out."""
    vault, options = prepared.real.vault(), prepared.real.write.settings.options
    assert DATABASE.excess(vault, options) == ()
    for role in ("bg_orders_rw", "PUBLIC"):
        prepared.superuser(f"GRANT SET ON PARAMETER pgaudit.log TO {role}")
        try:
            [found] = DATABASE.excess(vault, options)
        finally:
            prepared.superuser(f"REVOKE SET ON PARAMETER pgaudit.log FROM {role}")
        assert found == "The level is recorded, and its group bg_orders_rw may set pgaudit.log."
    assert DATABASE.excess(vault, options) == ()


def test_a_login_that_is_not_recorded_as_the_policy_says_is_found(prepared, login):
    """A level that became a recorded one, and Vault was not told: the rehearsal of its login finds it."""
    options = prepared.real.write.settings.options
    assert DATABASE.rehearse(login("BG-TR1A"), options, ())
    with pytest.raises(Refused, match="not made as the policy says"):
        DATABASE.rehearse(login("BG-TR1B", prepared.real.read), options, ())


# --------------------------------------------------------------------------------------------------- without pgaudit


def test_without_pgaudit_the_servers_own_log_is_read(prepared, login):
    """With log_statement, statements are read with their parameters, and calls over the fast path by their name."""
    credential = login("BG-L0GS", prepared.real.read)
    with prepared.real.connect(credential) as session:
        session.execute("SELECT 'a plain one'")
        session.execute("SELECT id FROM orders WHERE note = %s", ["a\nvalue"])
        session.execute("PREPARE p AS SELECT 'prepared'; EXECUTE p")
        with pytest.raises(psycopg.Error):
            session.execute("COPY orders FROM STDIN")
        with session.cursor() as cursor, cursor.copy("COPY (SELECT 1) TO STDOUT") as copy:
            list(copy)
        with pytest.raises(psycopg.Error):
            session.execute("SET log_statement = 'none'")
    lines = prepared.until(credential.username, lambda lines: [x for x in lines if x.kind is Kind.CLOSED])
    run = [line.text for line in _statements(lines)]
    assert "SELECT 'a plain one'" in run
    [asked] = [text for text in run if "note = $1" in text]
    assert asked.endswith("\n-- parameters: $1 = 'a\\nvalue'")
    assert [x.text for x in lines if x.kind is Kind.HOLE] == ["what was sent into this COPY is not recorded"]
    assert [x for x in lines if x.kind is Kind.STOPPED and x.text.startswith("refused")]
    done = _program(prepared, credential, "psql", "-c", "\\lo_import /dev/null")
    assert done.returncode == 0, done.stderr
    lines = prepared.until(credential.username, lambda lines: sum(x.kind is Kind.CLOSED for x in lines) == 2)
    assert next(x.text for x in lines if x.kind is Kind.CALL).startswith('fastpath function call: "lo_creat"')


# --------------------------------------------------------------------------------------------------- the whole flow

SOURCE = """captures:
  orders-pg: {kind: postgres, token_sha256: TTT, silent_after: 60s}
""".replace("TTT", "a" * 64)


class Recorded:
    """A desk whose write level is recorded, and what a tailer would send of the server's log from here on."""

    def __init__(self, audited, database):
        self.audited = audited
        self.desk = counter_at(audited.real, database)
        role = f"token_role: {audited.real.write.settings.token_role}\n"
        text = self.desk.policy.text
        assert role in text
        indent = " " * (text.index(role) - text.rindex("\n", 0, text.index(role)) - 1)
        more = f"{role}{indent}capture_source: orders-pg\n{indent}capture: required\n{indent}audit: pgaudit\n"
        self.text = text.replace(role, more) + SOURCE
        self.desk.policy = rules.parse(self.text, name="recorded")
        self.recorder = Recorder(database, lambda: self.desk.policy)
        self.at = audited.end
        self.sent = []
        self.send()  # the first heartbeat, without which nothing is issued

    def send(self):
        """Send what the log has more."""
        batch = [Raw("postgresql.json", at, raw) for at, raw in self.audited.since(self.at)]
        self.at = batch[-1].offset + len(batch[-1].line) + 1 if batch else self.at
        self.sent += batch
        return self.recorder.take("orders-pg", batch, self.desk.now)

    def said(self, event, row=None):
        """Return what the log says."""
        return [record.data for record in self.desk.log_of(row) if record.event == event]

    def until(self, what):
        """Send until ``what`` is true."""

        def is_so():
            self.send()
            return what()

        assert self.audited.real.until(is_so, 60)


def test_forty_ways_from_the_desk_to_the_log_of_the_request(prepared, database):
    """A credential of the real flow goes all ways: each is an entry of its request, holes and attempts are named."""
    flow = Recorded(prepared, database)
    desk = flow.desk
    row = desk.approved(level="write", by=(CARL, CHEN))
    credential = desk.show(row)
    for name in WAYS:
        _go(prepared, credential, name)
    with prepared.real.connect(credential, application_name="bg-0ther-1-abcdefgh") as session:
        with contextlib.suppress(psycopg.Error):
            session.execute("SET pgaudit.log = 'none'")
        session.execute("SELECT 'still here'")
    flow.until(lambda: len(flow.said("command:close", row)) > len(WAYS))
    run = flow.said("command:run", row)
    whole = next(data for data in run if data.get("payload", {}).get("bytes", 0) > 200_000)
    assert whole["text"].startswith("SELECT length('xxx")
    for name in set(WAYS) - {"way16 of 200 kB"}:
        assert [data for data in run if name[:5] in data["text"]], name
    assert {data["identity"] for data in run} == {credential.username}
    assert {data["trust"] for data in run} == {"enforced"}
    assert "SELECT 'still here'" in {data["text"] for data in run}
    closed = flow.said("command:close", row)
    assert [hole for data in closed for hole in data["holes"]] == ["what was sent into this COPY is not recorded"]
    assert [data["gaps"] for data in closed if data["gaps"]] == []
    assert sum(data["stopped"] for data in closed) == 1
    assert sum(data["commands"] for data in closed) == len(run)
    [stop] = flow.said("command:stop", row)
    assert "pgaudit.log" in stop["text"]
    assert flow.said("command:stranger") == []
    # What comes twice counts once.
    count = len(desk.log_of())
    flow.recorder.take("orders-pg", flow.sent, desk.now)
    assert len(desk.log_of()) == count
    desk.release(RITA, row.id, desk.fresh(row).request.version, now=desk.now)
    assert desk.finish(row.id, now=desk.now)
    with database.read() as session:
        findings = check_database(session, now=desk.now).findings
    # The verifier names what was not recorded, and finds nothing else.
    assert {(finding.kind, finding.request) for finding in findings} == {(verify.Kind.CAPTURE_GAP, row.id)}
    assert len(findings) == 2


def test_a_level_that_must_be_recorded_says_how(prepared, database):
    """A source may be heard of and say nothing of a login that nobody set to be recorded: the policy is refused."""
    text = Recorded(prepared, database).text
    assert rules.parse(text.replace("audit: pgaudit", "audit: none"), name="recorded")
    with pytest.raises(PolicyInvalid, match="records its logins only as “audit” says"):
        rules.parse(text.replace("audit: pgaudit\n", "\n"), name="recorded")


def test_what_is_tried_comes_back_from_the_source(prepared, database):
    """What ``breakglass check --levels`` runs at a real target is told by its source, and is nobody's command."""
    flow = Recorded(prepared, database)
    level = SimpleNamespace(
        name="write", settings=prepared.real.write.settings, quorum=2, capture_source="orders-pg", capture="required"
    )
    account = SimpleNamespace(name="orders-db", levels={"write": level})
    is_over = threading.Event()

    def send():
        while not is_over.wait(0.2):
            flow.send()

    sender = threading.Thread(target=send)
    sender.start()
    try:
        seen = try_level(prepared.real.vault(), database, account, level, RITA)
    finally:
        is_over.set()
        sender.join()
    assert "orders-pg has recorded it" in seen[-1]
    assert flow.said("command:stranger") == flow.said("command:run") == []


def test_a_login_that_no_grant_explains_is_an_alarm(prepared, database):
    """What a login does that an operator had Vault make, past the desk and after a request's name, is a stranger's."""
    flow = Recorded(prepared, database)
    credential, _, _ = prepared.real.open(prepared.real.vault(), prepared.real.write, name="BG-N0N3")
    with prepared.real.connect(credential) as session:
        session.execute("SELECT 'unexplained'")
    flow.until(lambda: flow.said("command:stranger"))
    flow.send()
    assert flow.said("command:run") == []
    assert {data["identity"] for data in flow.said("command:stranger")} == {credential.username}


# ------------------------------------------------------------------------------------------------------ what is told


def test_the_setup_is_what_the_engine_does():
    """What is pasted at the server names the settings that the logins get, and holds no secret."""
    text = POSTGRES.setup({"manager": "bgmgr", "role": "orders_repair"})
    for line in ("log_destination = 'jsonlog'", "GRANT SET ON PARAMETER pgaudit.log TO bgmgr;"):
        assert line in text
    assert "ALTER ROLE \"orders_repair\" SET pgaudit.log = 'all';" in text
    assert not re.search(r"(?i)password\s", text)
    with pytest.raises(Invalid):
        POSTGRES.setup({"manager": 'x"; DROP'})


def test_an_audit_of_another_kind_is_refused(audited):
    """The option says one of three words."""
    with pytest.raises(Invalid) as caught:
        replace(audited.real.write.settings, options={**audited.real.write.settings.options, "audit": "everything"})
    assert set(caught.value.fields) == {"audit"}


# ----------------------------------------------------------------------------------------------------- line by line


def _line(**changes):
    record = json.loads(FORGED) | {"user": "bg-7kq2-1-abcdefgh"} | changes
    return json.dumps({key: value for key, value in record.items() if value is not None}).encode()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\n",
        b"null",
        b"[]",
        b"{}",
        b"\x00" * 50,
        _line()[:-1],
        _line() + _line(),
        _line().replace(b'{"timestamp"', b'{"user":"bg-0ther-1-a","timestamp"'),
        b"[" * 100_000,
        _line(message='AUDIT: SESSION,1,1,READ,SELECT,,,"torn'),
        _line(message="AUDIT: SESSION,1"),
        _line(message="AUDIT: " + '"' * 999_999),
        _line(message="a\x00b"),
        _line(message="\ud800"),
        _line(user=7),
        _line(session_id="x"),
        _line(line_num=0),
        _line(line_num=True),
        _line(line_num=1.5),
        _line(timestamp="2026-11-24 13:34:52.914 CET"),
        _line(timestamp="2026-13-24 13:34:52.914 UTC"),
        b"2026-11-24 13:34:52.914 UTC [7] bg-7kq2 LOG:  statement: SELECT 1",
    ],
)
def test_what_is_no_line_of_the_servers_is_unreadable(raw):
    """Garbage, a torn line, a thing said twice, a NUL, another format or zone are refused with a sentence."""
    with pytest.raises(Unreadable) as caught:
        POSTGRES.read(raw)
    assert "bg-" not in str(caught.value)


def test_lines_of_nobody_and_other_zones_are_read():
    """A line of the server's own is about nobody; a zone that is written as hours is turned into UTC."""
    assert POSTGRES.read(_line(user=None)) == ()
    [there] = POSTGRES.read(_line(timestamp="2026-11-24 15:04:52.914 +01:30"))
    [here] = POSTGRES.read(_line())
    assert there == here
    assert here.text == "select 1"


def test_bytes_of_another_encoding_are_no_hiding_place():
    """A database may hold bytes that are no UTF-8: the line is read, with a mark in their place."""
    [line] = POSTGRES.read(
        _line(message="AUDIT: SESSION,1,1,READ,SELECT,,,select 'XX',<none>").replace(b"XX", b"\xff\xe2")
    )
    assert line.text == "select '\ufffd\ufffd'"


def test_rows_and_a_read_statement_that_names_a_setting():
    """Rows are read where pgaudit writes them; looking at a setting is no attempt to change it."""
    [line] = POSTGRES.read(_line(message="AUDIT: SESSION,1,1,READ,SELECT,,,select 1,<none>,12"))
    assert line.rows == 12
    [line] = POSTGRES.read(_line(message="AUDIT: SESSION,1,1,MISC,SHOW,,,SHOW pgaudit.log,<none>"))
    assert line.kind is Kind.STATEMENT
    kinds = [x.kind for x in POSTGRES.read(_line(message="statement: RESET pgaudit.log"))]
    assert kinds == [Kind.STATEMENT, Kind.STOPPED]


CUT = f" … cut: 1500000 bytes, sha256 {'0' * 64}".encode()


def test_a_line_that_was_too_long_to_be_sent_is_told_by_its_beginning(prepared, login):
    """A real line of two megabytes, cut anywhere as the tailer does, is its login's; a failure of that length, too."""
    credential, at = login("BG-L0NG"), prepared.end
    with prepared.real.connect(credential) as session:
        session.execute("SELECT length('" + 'a"\\é€,' * 250_000 + "'), 'x'")
        with pytest.raises(psycopg.Error):
            session.execute(f"SELECT 'b' FROM nothing_there -- {'b' * 1_500_000}")
    prepared.until(credential.username, lambda lines: [x for x in lines if x.kind is Kind.CLOSED])
    whole, failed = (raw for _, raw in prepared.since(at) if len(raw) > 1_400_000)
    for size in (1_000_000, *range(5_000, 5_030)):
        [line] = POSTGRES.read(whole[:size] + CUT)
        assert (line.kind, line.identity) == (Kind.STATEMENT, credential.username)
        assert line.text.startswith('SELECT length(\'a"\\é€,a"')
        assert line.text.endswith("-- the beginning of a line of 1500000 bytes")
    [line] = POSTGRES.read(failed[:1_000_000] + CUT)
    assert (line.kind, line.result, line.text[:10]) == (Kind.STATEMENT, "42P01", "SELECT 'b'")


def test_attack_what_a_statement_writes_ends_no_session_when_it_is_cut():
    """RAISE LOG can write a line so long that its context is lost: no session ends by it."""
    for message, kind in (
        ("disconnection: session time", Kind.NOTE),
        ("connection authorized: user=bg-0ther-1-a", Kind.NOTE),
        ("AUDIT: SESSION,1,1,READ,SELECT,,,forged ", Kind.STATEMENT),
        ("statement: forged ", Kind.STATEMENT),
    ):
        [line] = POSTGRES.read(_line(message=message + "x" * 100_000)[:90_000] + CUT)
        assert (line.kind, line.identity) == (kind, "bg-7kq2-1-abcdefgh")
    for raw in (b"", b"{", _line()[:60]):
        with pytest.raises(Unreadable):
            POSTGRES.read(raw + CUT)


def test_a_value_cannot_end_the_comment_that_it_stands_in():
    """What was given as a parameter stays behind the statement, in one line, whatever it holds."""
    message = 'AUDIT: SESSION,1,1,READ,SELECT,,,select $1,"x\nDROP TABLE orders; --"'
    [line] = POSTGRES.read(_line(message=message))
    assert line.text == "select $1\n-- with: x\\nDROP TABLE orders; --"
