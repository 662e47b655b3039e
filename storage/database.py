"""Where do the rows live, and who may write now?

Rules
-----
* Two kinds: SQLite (a file, the default) and PostgreSQL (by URL, psycopg 3). No caller sees which.
* One writer at a time, over all threads, processes and machines. :meth:`Database.write` takes the writer's lock before
  it reads anything: SQLite ``BEGIN IMMEDIATE``, PostgreSQL one advisory lock that ends with the transaction. So what
  was read inside is still true at the commit, compare-and-set fails only when it should, and the log has no gap.
* The writer keeps its connection from one transaction to the next. On PostgreSQL it begins, takes the lock and reads
  the newest entry in one message. A connection that died meanwhile costs no error: nothing was written on it yet.
* A reader sees one moment, and cannot write.
* The log only grows: triggers refuse UPDATE, DELETE, TRUNCATE and every insert that is not the next entry. One change
  gets through: a body becomes NULL, in the transaction whose newest entry says so (``pruning.py``).
* Whoever follows the log is woken after the commit, and can never undo it.
* Library errors stop here: :class:`DatabaseDown` (no answer, or a no that may pass) and :class:`Clash` (a constraint).
  The URL holds a password, so it is in no message and no repr.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from sqlalchemy import create_engine, event, text
from sqlalchemy import exc as sa_exc
from sqlalchemy.engine import URL, make_url
from sqlmodel import Session, SQLModel

from storage import models, schema  # noqa: F401 - models are the tables that setup() creates

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from sqlalchemy.engine import Connection, ExceptionContext, RootTransaction
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry

log = logging.getLogger(__name__)

LOCK_SECONDS: Final = 5  # how long a writer waits for another one; Slack's patience is three
_POOL_SECONDS: Final = 10
_POSTGRESQL_LOCK: Final = 0x6272656B676C  # "brekgl": any constant that no other program takes
_NEWEST: Final = "SELECT seq, peaks FROM entry ORDER BY seq DESC LIMIT 1"
# Three statements in one message, each with a snapshot of its own: the last one sees what was committed while the
# second one waited. One statement that locks and reads would see the log as it was before the wait.
_LOCK_POSTGRESQL: Final = f"BEGIN; SELECT pg_advisory_xact_lock({_POSTGRESQL_LOCK})"
_BEGIN_POSTGRESQL: Final = f"{_LOCK_POSTGRESQL}; {_NEWEST}"
# IMMEDIATE, or a writer reads first and then loses the upgrade to another one (21 of 160 did).
_BEGIN_SQLITE: Final = "BEGIN IMMEDIATE"
_READS: Final = "breakglass_reads"
_IDLE: Final = 0  # PQTRANS_IDLE of libpq
_BUSY: Final = frozenset({"55P03", "57014"})  # lock_not_available, query_canceled: the server is there
_GONE: Final = "something in it was refused, and the transaction is gone"

# The parameters of a connection that must not hang when the machine behind it is gone (libpq; milliseconds for the
# last). A writer that was frozen in mid-transaction is cut, or it would keep every other bot from writing.
_LIBPQ: Final[dict[str, Any]] = {
    "connect_timeout": 3,
    "application_name": "breakglass",
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
_POSTGRESQL_SESSION: Final = (
    f"SET lock_timeout = '{LOCK_SECONDS}s'",
    "SET statement_timeout = '20s'",
    "SET idle_in_transaction_session_timeout = '30s'",
    # An entry that is lost after its credential was handed out is not to be had: a lazy default is overruled.
    "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'",
)

# What pruning may never touch, as a condition on the column ``event``; ``pruning.py`` says why.
_KEPT: Final = "(event = 'log:rotate' OR substr(event, 1, 10) = 'retention:' OR substr(event, 1, 7) = 'policy:')"

_SQLITE_GUARDS: Final = (
    # The row in "pruned" counts only while the entry that it names is the newest: in the transaction that wrote both.
    """CREATE TRIGGER IF NOT EXISTS entry_no_update BEFORE UPDATE ON entry
       WHEN NOT (OLD.body IS NOT NULL AND NEW.body IS NULL
           AND NEW.seq IS OLD.seq AND NEW.request_id IS OLD.request_id AND NEW.event IS OLD.event
           AND NEW.at IS OLD.at AND NEW.leaf_hash IS OLD.leaf_hash AND NEW.root IS OLD.root AND NEW.peaks IS OLD.peaks
           AND EXISTS (SELECT 1 FROM pruned WHERE seq = OLD.seq AND apply_seq = (SELECT MAX(seq) FROM entry)))
       BEGIN SELECT RAISE(ABORT, 'the log only grows: update is refused'); END""",
    """CREATE TRIGGER IF NOT EXISTS entry_no_delete BEFORE DELETE ON entry
       BEGIN SELECT RAISE(ABORT, 'the log only grows: delete is refused'); END""",
    # INSERT OR REPLACE deletes without firing the DELETE trigger when recursive_triggers is off in the attacker's
    # own connection. It must name an existing seq, and that is never the next one.
    """CREATE TRIGGER IF NOT EXISTS entry_only_next BEFORE INSERT ON entry
       WHEN NEW.seq IS NOT (SELECT COALESCE(MAX(seq) + 1, 0) FROM entry)
       BEGIN SELECT RAISE(ABORT, 'the log only grows: this is not the next entry'); END""",
    f"""CREATE TRIGGER IF NOT EXISTS pruned_only_now BEFORE INSERT ON pruned
       WHEN NOT (NEW.seq < NEW.apply_seq
           AND EXISTS (SELECT 1 FROM entry WHERE seq = NEW.apply_seq AND event = 'retention:apply'
               AND seq = (SELECT MAX(seq) FROM entry))
           AND EXISTS (SELECT 1 FROM entry WHERE seq = NEW.seq AND body IS NOT NULL AND NOT {_KEPT}))
       BEGIN SELECT RAISE(ABORT, 'the log only grows: this cannot be pruned now'); END""",
    """CREATE TRIGGER IF NOT EXISTS pruned_no_update BEFORE UPDATE ON pruned
       BEGIN SELECT RAISE(ABORT, 'what was pruned stays on record: update is refused'); END""",
    """CREATE TRIGGER IF NOT EXISTS pruned_no_delete BEFORE DELETE ON pruned
       BEGIN SELECT RAISE(ABORT, 'what was pruned stays on record: delete is refused'); END""",
)

_POSTGRESQL_GUARDS: Final = (
    """CREATE OR REPLACE FUNCTION entry_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
       BEGIN
           RAISE EXCEPTION USING ERRCODE = 'integrity_constraint_violation',
               MESSAGE = 'the log only grows: ' || lower(TG_OP) || ' is refused';
       END $$""",
    # The table is named in full: a temporary table called "entry" must not answer in its place. The name is written
    # into the function, not looked up at each insert: so its plan is kept, which halves the guard's cost.
    """DO $do$
       DECLARE place text := (SELECT quote_ident(nspname) FROM pg_namespace n JOIN pg_class c ON c.relnamespace = n.oid
           WHERE c.oid = 'entry'::regclass);
       BEGIN
           EXECUTE 'CREATE OR REPLACE FUNCTION entry_check_next() RETURNS trigger LANGUAGE plpgsql AS $$
       BEGIN
           IF NEW.seq IS DISTINCT FROM (SELECT COALESCE(MAX(seq) + 1, 0) FROM ' || place || '.entry) THEN
               RAISE EXCEPTION USING ERRCODE = ''integrity_constraint_violation'',
                   MESSAGE = ''the log only grows: this is not the next entry'';
           END IF;
           RETURN NEW;
       END $$';
       END $do$""",
    """CREATE OR REPLACE FUNCTION entry_check_change() RETURNS trigger LANGUAGE plpgsql AS $$
       BEGIN
           IF TG_OP = 'UPDATE' AND OLD.body IS NOT NULL AND NEW.body IS NULL
               AND ROW(NEW.seq, NEW.request_id, NEW.event, NEW.at, NEW.leaf_hash, NEW.root, NEW.peaks)
               IS NOT DISTINCT FROM ROW(OLD.seq, OLD.request_id, OLD.event, OLD.at, OLD.leaf_hash, OLD.root, OLD.peaks)
           THEN
               RETURN NEW;  -- if entry_check_pruned lets it
           END IF;
           RAISE EXCEPTION USING ERRCODE = 'integrity_constraint_violation',
               MESSAGE = 'the log only grows: ' || lower(TG_OP) || ' is refused';
       END $$""",
    # For all rows of a statement at once: one by one, a thousand would take half a second.
    # The row in "pruned" counts only while the entry that it names is the newest: in the transaction that wrote both.
    """CREATE OR REPLACE FUNCTION entry_check_pruned() RETURNS trigger LANGUAGE plpgsql AS $$
       DECLARE
           is_wrong boolean;
           place text := quote_ident(TG_TABLE_SCHEMA);
       BEGIN
           EXECUTE 'SELECT EXISTS (SELECT 1 FROM changed WHERE NOT EXISTS (SELECT 1 FROM ' || place
               || '.pruned p WHERE p.seq = changed.seq AND p.apply_seq = (SELECT MAX(seq) FROM ' || place || '.entry)))'
               INTO is_wrong;
           IF is_wrong IS NOT FALSE THEN
               RAISE EXCEPTION USING ERRCODE = 'integrity_constraint_violation',
                   MESSAGE = 'the log only grows: update is refused';
           END IF;
           RETURN NULL;
       END $$""",
    f"""CREATE OR REPLACE FUNCTION pruned_check_now() RETURNS trigger LANGUAGE plpgsql AS $$
       DECLARE
           is_wrong boolean;
           log text := quote_ident(TG_TABLE_SCHEMA) || '.entry';
       BEGIN
           EXECUTE 'SELECT EXISTS (SELECT 1 FROM added WHERE NOT (added.seq < added.apply_seq
               AND EXISTS (SELECT 1 FROM ' || log || ' e WHERE e.seq = added.apply_seq AND e.event = ''retention:apply''
                   AND e.seq = (SELECT MAX(seq) FROM ' || log || '))
               AND EXISTS (SELECT 1 FROM ' || log || ' e WHERE e.seq = added.seq AND e.body IS NOT NULL
                   AND NOT {_KEPT.replace("'", "''")})))' INTO is_wrong;
           IF is_wrong IS NOT FALSE THEN
               RAISE EXCEPTION USING ERRCODE = 'integrity_constraint_violation',
                   MESSAGE = 'the log only grows: this cannot be pruned now';
           END IF;
           RETURN NULL;
       END $$""",
    """CREATE OR REPLACE FUNCTION pruned_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
       BEGIN
           RAISE EXCEPTION USING ERRCODE = 'integrity_constraint_violation',
               MESSAGE = 'what was pruned stays on record: ' || lower(TG_OP) || ' is refused';
       END $$""",
    """CREATE OR REPLACE TRIGGER entry_no_change BEFORE UPDATE OR DELETE ON entry
       FOR EACH ROW EXECUTE FUNCTION entry_check_change()""",
    """CREATE OR REPLACE TRIGGER entry_no_truncate BEFORE TRUNCATE ON entry
       FOR EACH STATEMENT EXECUTE FUNCTION entry_refuse()""",
    """CREATE OR REPLACE TRIGGER entry_only_next BEFORE INSERT ON entry
       FOR EACH ROW EXECUTE FUNCTION entry_check_next()""",
    """CREATE OR REPLACE TRIGGER entry_only_pruned AFTER UPDATE ON entry REFERENCING NEW TABLE AS changed
       FOR EACH STATEMENT EXECUTE FUNCTION entry_check_pruned()""",
    """CREATE OR REPLACE TRIGGER pruned_only_now AFTER INSERT ON pruned REFERENCING NEW TABLE AS added
       FOR EACH STATEMENT EXECUTE FUNCTION pruned_check_now()""",
    """CREATE OR REPLACE TRIGGER pruned_no_change BEFORE UPDATE OR DELETE ON pruned
       FOR EACH ROW EXECUTE FUNCTION pruned_refuse()""",
    """CREATE OR REPLACE TRIGGER pruned_no_truncate BEFORE TRUNCATE ON pruned
       FOR EACH STATEMENT EXECUTE FUNCTION pruned_refuse()""",
    # ALWAYS: else "SET session_replication_role = replica" walks past them.
    "ALTER TABLE entry ENABLE ALWAYS TRIGGER entry_no_change",
    "ALTER TABLE entry ENABLE ALWAYS TRIGGER entry_no_truncate",
    "ALTER TABLE entry ENABLE ALWAYS TRIGGER entry_only_next",
    "ALTER TABLE entry ENABLE ALWAYS TRIGGER entry_only_pruned",
    "ALTER TABLE pruned ENABLE ALWAYS TRIGGER pruned_only_now",
    "ALTER TABLE pruned ENABLE ALWAYS TRIGGER pruned_no_change",
    "ALTER TABLE pruned ENABLE ALWAYS TRIGGER pruned_no_truncate",
)
_POSTGRESQL_GUARDS_STANDING: Final = """
    SELECT count(*) FROM pg_trigger t
    JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE tgrelid IN ('entry'::regclass, 'pruned'::regclass) AND tgenabled = 'A'
    AND (tgname <> 'entry_only_next' OR EXISTS (SELECT 1 FROM pg_proc p WHERE p.oid = t.tgfoid
        AND position(' FROM ' || quote_ident(n.nspname) || '.entry)' IN p.prosrc) > 0))
    AND tgname IN ('entry_no_change', 'entry_no_truncate', 'entry_only_next', 'entry_only_pruned',
        'pruned_only_now', 'pruned_no_change', 'pruned_no_truncate')"""


class DatabaseDown(Exception):
    """The database did not answer, or cannot now; nothing was written unless the connection died in the commit.

    ``str()`` is a plain sentence without names of machines or people.
    """


class OtherVersion(DatabaseDown):
    """Its tables are those of another version, and nothing can be written here before a person has seen to that."""


class Clash(Exception):
    """A constraint or a guard of the log said no, and the transaction is gone."""


class Write(Session):
    """The one writing transaction. ``appended`` collects whose entries to wake the followers for ("" for none's).

    ``kind`` is the database's, "sqlite" or "postgresql"; ``newest`` the newest entry's row if it came with the lock.
    """

    def __init__(self, wire: _Wire, transaction: RootTransaction, newest: tuple[Any, ...] | None) -> None:
        super().__init__(wire.connection, expire_on_commit=False)
        self.kind: Final = wire.connection.dialect.name
        self.appended: Final[set[str]] = set()
        self.is_gone = False  # a statement of run() failed
        self._wire: Final = wire
        self._outer: Final = transaction
        self._newest = newest

    def newest(self) -> tuple[int, bytes] | None:
        """Return number and peaks of the log's newest entry; None: there is none. Errors as :meth:`run`."""
        came, self._newest = self._newest, None  # true only until the next entry is appended
        found = came or self.run(_NEWEST)
        return (found[0], found[1]) if found else None

    def run(self, statement: str, values: tuple[Any, ...] = ()) -> tuple[Any, ...] | None:
        """Run one statement as the driver takes it, and return its first row; what the session holds comes before it.

        For the log alone. Raises :class:`DatabaseDown`, :class:`Clash`.
        """
        self._make_ready()
        try:
            return self._wire.run(statement, values)
        except Exception:
            self._give_up()
            raise

    def insert_many(self, table: str, columns: Mapping[str, str], rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert rows in their order, otherwise as :meth:`run`. ``columns``: PostgreSQL's type for each name."""
        self._make_ready()
        try:
            self._wire.insert_many(table, columns, rows)
        except Exception:
            self._give_up()
            raise

    def _make_ready(self) -> None:
        self.flush()
        if not self._outer.is_active:
            # SQLite would commit the statement by itself, outside the writer's lock.
            raise Clash(_GONE)

    def _give_up(self) -> None:
        # SQLite takes back the statement alone: whoever swallows the error would commit all that was before it.
        self.is_gone = True
        self._outer.rollback()

    def leave(self) -> None:
        """Let go of the rows, which stay readable, and of the connection, which the next transaction uses."""
        if self.in_transaction() or len(self.identity_map):
            self.close()
        self.bind = None


class Database:
    """The rows and the right to write them; safe to share by threads.

    ``url``: ``sqlite:///FILE``, or ``postgres://``, ``postgresql://``, ``postgresql+psycopg://``. Anything else, and
    SQLite in memory (a log that ends with the process), is a ValueError. Nothing is opened before the first use.
    """

    def __init__(self, url: str) -> None:
        parsed = _parse(url)
        self.kind: Final = parsed.get_backend_name()  # "sqlite" or "postgresql"
        self.woken: Final[list[Callable[[frozenset[str]], object]]] = []
        self._file: Final = Path(parsed.database or "") if self.kind == "sqlite" else None
        # The lock that counts is the database's. This one lets the threads of one process queue in order, without
        # SQLite's polling and without each holding a connection that a reader needs.
        self._turn: Final = threading.Lock()
        self._writer: int | None = None
        self._held: _Wire | None = None  # the writer's, between two transactions
        self._closed = 0  # how often: what was in use meanwhile is not kept
        self._engine: Final = create_engine(
            parsed,
            pool_size=16,
            max_overflow=24,
            pool_timeout=_POOL_SECONDS,
            pool_pre_ping=self.kind == "postgresql",  # a restarted server costs no error
            hide_parameters=True,  # what people typed does not belong into error messages
            connect_args={"timeout": LOCK_SECONDS, "check_same_thread": False} if self.kind == "sqlite" else _LIBPQ,
        )
        event.listen(self._engine, "connect", _set_up_sqlite if self.kind == "sqlite" else _set_up_postgresql)
        event.listen(self._engine, "handle_error", _translate, retval=True)
        one_moment: dict[str, Any] = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        if self.kind == "sqlite":  # a transaction of SQLite's sees one moment anyhow
            one_moment = {}
        self._reads: Final = self._engine.execution_options(**one_moment)
        if self.kind == "sqlite":
            event.listen(self._reads, "begin", _begin_reading_sqlite)

    def __repr__(self) -> str:
        return f"Database({self.kind})"

    def setup(self) -> None:
        """Create what is missing: tables, columns, the guards of the log. Any number of processes may do so at once.

        On a PostgreSQL where all of it stands, nothing is changed, so that the bot can run as a role that owns nothing.
        Raises :class:`OtherVersion` when there is more to do than that, and :class:`DatabaseDown`.
        """
        if self._file is not None:
            # Reasons and names are nobody else's business. SQLite gives its -wal and -shm the same permissions.
            _create_private(self._file)
            self._switch_to_wal()
        begin = _BEGIN_SQLITE if self.kind == "sqlite" else _LOCK_POSTGRESQL  # there may be no log to read yet
        with self._in_turn(), self._dropped_afterwards() as wire, wire.connection.begin():
            connection = wire.connection
            wire.run(begin, None)
            SQLModel.metadata.create_all(connection)
            if wrong := schema.complete(connection):
                listed = ", ".join(wrong)
                raise OtherVersion(f"The database was made by another version; to be seen to before it runs: {listed}.")
            if self.kind == "sqlite":
                for statement in _SQLITE_GUARDS:
                    connection.exec_driver_sql(statement)
            elif connection.scalar(text(_POSTGRESQL_GUARDS_STANDING)) != 7:
                for statement in _POSTGRESQL_GUARDS:
                    connection.exec_driver_sql(statement)

    @contextmanager
    def write(self) -> Iterator[Write]:
        """Give the one writing transaction: committed at the end of the block, rolled back by any exception.

        After the commit each of ``woken`` is called with the ids of the requests that entries were appended for.
        Raises :class:`DatabaseDown`, :class:`Clash`; RuntimeError inside another ``write()`` of the same thread.
        """
        with self._in_turn():
            closed = self._closed
            wire, transaction, newest = self._begin()
            try:
                # The transaction is the connection's. A session joins it only when it is used: an entry needs none.
                with transaction:
                    session = Write(wire, transaction, newest)
                    try:
                        yield session
                        if session.is_gone:
                            raise Clash(_GONE)
                        if session.in_transaction():
                            session.commit()
                    finally:
                        session.leave()
            finally:
                if closed == self._closed and wire.is_idle():
                    self._held = wire
                else:
                    _drop(wire.connection)
        # The lock is free again: a listener may write.
        if session.appended:
            self._wake(frozenset(session.appended))

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Give a transaction that sees one moment and cannot write. Raises :class:`DatabaseDown`."""
        with _pool_errors(), Session(self._reads, expire_on_commit=False) as session:
            yield session

    def ping(self) -> None:
        """Ask for a sign of life. Raises :class:`DatabaseDown`."""
        with self.read() as session:
            session.connection().exec_driver_sql("SELECT 1")

    def close(self) -> None:
        """Close all connections. The object can be used again afterwards."""
        self._closed += 1
        held, self._held = self._held, None
        if held is not None:
            _drop(held.connection)
        self._engine.dispose()

    def _open(self) -> _Wire:
        """Open a connection for a writer. It is never given back, only dropped: a reader could write on it."""
        with _pool_errors():
            wire = _Wire(self._engine.connect())
        if self.kind == "sqlite":
            wire.run("PRAGMA query_only = 0")
        return wire

    @contextmanager
    def _dropped_afterwards(self) -> Iterator[_Wire]:
        wire = self._open()
        try:
            yield wire
        finally:
            _drop(wire.connection)

    def _begin(self) -> tuple[_Wire, RootTransaction, tuple[Any, ...] | None]:
        """Begin with the writer's lock; return the transaction, and the newest entry's row if it came along.

        A connection that was kept may have died since. Nothing was written on it, so a new one takes its place.
        """
        held, self._held = self._held, None
        if held is not None:
            try:
                return self._begin_on(held)
            except DatabaseDown as down:
                if self.kind == "sqlite" or getattr(down.__cause__, "sqlstate", None) in _BUSY:
                    raise
        return self._begin_on(self._open())

    def _begin_on(self, wire: _Wire) -> tuple[_Wire, RootTransaction, tuple[Any, ...] | None]:
        try:
            statement = _BEGIN_SQLITE if self.kind == "sqlite" else _BEGIN_POSTGRESQL
            return wire, wire.connection.begin(), wire.run(statement, None)
        except BaseException:
            _drop(wire.connection)
            raise

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        me = threading.get_ident()
        if self._writer == me:
            raise RuntimeError("write() inside write(): the inner one would wait for the outer one for ever")
        if not self._turn.acquire(timeout=_POOL_SECONDS):
            raise DatabaseDown("The database is busy: others have been writing for too long.")
        self._writer = me
        try:
            yield
        finally:
            self._writer = None
            self._turn.release()

    def _wake(self, requests: frozenset[str]) -> None:
        for listener in tuple(self.woken):
            try:
                listener(requests)
            except Exception:
                log.exception("A follower could not be woken; it will find the entries at its next look.")

    def _switch_to_wal(self) -> None:
        """Switch the file to write-ahead logging, once and for good.

        Two processes that do so at the same moment get "locked" at once, past the busy time-out: so it is tried again.
        """
        patience = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                with closing(sqlite3.connect(str(self._file), timeout=LOCK_SECONDS, isolation_level=None)) as raw:
                    # For a new file only. Each commit writes whole pages, and an entry fills little of three.
                    raw.execute("PRAGMA page_size = 2048")
                    raw.execute("PRAGMA journal_mode = WAL")
                return  # noqa: TRY300 - reads as the end of the loop
            except sqlite3.DatabaseError as error:
                if not _is_sqlite_locked(error) or time.monotonic() > patience:
                    raise DatabaseDown(_sqlite_sentence(error)) from error
                time.sleep(0.02)


def _parse(url: str) -> URL:
    """Read the URL. What it holds is never repeated, not even when it cannot be read."""
    try:
        parsed = make_url(url)
    except (sa_exc.ArgumentError, ValueError):
        raise ValueError("The database URL cannot be read; see the documentation for its form.") from None
    if parsed.drivername in {"postgres", "postgresql", "postgresql+psycopg"}:
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername != "sqlite":
        raise ValueError("The database URL must begin with sqlite:/// or postgresql://.")
    if not parsed.database or parsed.database.startswith((":memory:", "file:")) or parsed.query:
        raise ValueError("The SQLite URL must name a file, without options: sqlite:///breakglass.db")
    return parsed


def _create_private(file: Path) -> None:
    """Create the file readable by its owner only; one that is there is not even opened.

    POSIX: closing any descriptor of a file drops all locks that the process holds on it. With SQLite's locks gone,
    another process would take the write-ahead log away under us, and the log would fork.
    """
    try:
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return
    except OSError as error:
        raise DatabaseDown("The database file cannot be opened or created.") from error


@contextmanager
def _pool_errors() -> Iterator[None]:
    """Translate the one library error that does not pass ``handle_error``: no connection became free in time."""
    try:
        yield
    except sa_exc.TimeoutError as error:
        raise DatabaseDown("The database is busy: no connection became free.") from error


def _set_up_sqlite(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # the driver would begin transactions by itself, and too late
    for pragma in ("synchronous = FULL", "foreign_keys = ON", "recursive_triggers = ON", "trusted_schema = OFF"):
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA {pragma}")
        cursor.close()


def _begin_reading_sqlite(connection: Connection) -> None:
    if _READS not in connection.info:
        connection.exec_driver_sql("PRAGMA query_only = 1")
        connection.info[_READS] = True
    connection.exec_driver_sql("BEGIN")


class _Wire:
    """A connection as its driver has it: past SQLAlchemy, which takes several times as long as a statement.

    What each statement would look up is looked up once. Errors of the driver's become ours.
    """

    __slots__ = ("_cursor", "_driver", "_errors", "connection")

    def __init__(self, connection: Connection) -> None:
        self.connection: Final = connection
        driver: Any = connection.connection.driver_connection
        library: Any = connection.dialect.loaded_dbapi
        self._driver: Final = driver
        self._errors: Final = library.Error
        self._cursor: Any = None
        if connection.dialect.name == "postgresql":
            driver.autocommit = True  # or the driver sends a BEGIN of its own, in a message of its own
            self._cursor = driver.cursor()  # for all statements: a new one costs as much as one

    def run(self, statement: str, values: tuple[Any, ...] | None = ()) -> tuple[Any, ...] | None:
        """Run one statement, or on PostgreSQL several (without values); return the first row of the last one."""
        row: tuple[Any, ...] | None
        try:
            if self._cursor is None:
                cursor = self._driver.execute(statement, values or ())
                row = cursor.fetchone() if cursor.description else None
                cursor.close()
                return row
            self._cursor.execute(statement, values)
            while values is None and self._cursor.nextset():
                pass
            row = self._cursor.fetchone() if self._cursor.description else None
        except self._errors as error:
            self._raise(error)
        return row

    def insert_many(self, table: str, columns: Mapping[str, str], rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert rows in their order."""
        if not rows:
            return
        into = f"INSERT INTO {table} ({', '.join(columns)})"
        try:
            if self._cursor is None:
                self._driver.executemany(f"{into} VALUES ({', '.join('?' * len(columns))})", rows).close()
            else:
                # As one statement: on its own each row takes the server twice as long.
                lists = ", ".join(f"%b::{kind}[]" for kind in columns.values())
                self._cursor.execute(f"{into} SELECT * FROM unnest({lists})", [*map(list, zip(*rows, strict=True))])
        except self._errors as error:
            self._raise(error)

    def is_idle(self) -> bool:
        """Whether the connection is sound and in no transaction, so that the next writer may have it."""
        if self.connection.closed or self.connection.invalidated:
            return False
        if self._cursor is None:
            return not self._driver.in_transaction
        return bool(self._driver.pgconn.transaction_status == _IDLE)

    def _raise(self, error: Any) -> NoReturn:  # noqa: ANN401 - a driver's
        dialect = self.connection.dialect
        library: Any = dialect.loaded_dbapi
        ours = _ours(
            error,
            is_clash=isinstance(error, library.IntegrityError),
            is_down=isinstance(error, library.OperationalError) or dialect.is_disconnect(error, self._driver, None),
        )
        if ours is None:
            raise error
        raise ours from error


def _drop(connection: Connection) -> None:
    """Close a connection of the writer's for good, whatever state it is in."""
    if not connection.closed:
        connection.invalidate()
        connection.close()


def _set_up_postgresql(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    for statement in _POSTGRESQL_SESSION:
        cursor.execute(statement)
    cursor.close()
    connection.commit()


def _translate(context: ExceptionContext) -> BaseException | None:
    """Turn a library error into ours, wherever it comes up: at connecting, in a flush, at the commit."""
    if context.is_pre_ping:
        return None  # the pool's own business: it opens a new connection
    found = context.sqlalchemy_exception
    return _ours(
        context.original_exception,
        is_clash=isinstance(found, sa_exc.IntegrityError),
        is_down=isinstance(found, sa_exc.OperationalError) or context.is_disconnect,
    )


def _ours(error: BaseException, *, is_clash: bool, is_down: bool) -> Clash | DatabaseDown | None:
    """Return what an error of the driver's is here; None: a mistake of ours, which shall be seen."""
    if is_clash:
        return Clash(_reason(error))
    if isinstance(error, sqlite3.Error):
        is_mistake = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_MISUSE) in {
            sqlite3.SQLITE_ERROR,
            sqlite3.SQLITE_MISUSE,
        }
        if is_mistake and (column := schema.lacking_column(str(error))):
            return _lacking(column)
        if is_mistake and "no such table" not in str(error):
            return None  # wrong SQL is our mistake, not the database's
        return DatabaseDown(_sqlite_sentence(error))
    if getattr(error, "sqlstate", None) == "42P01":  # undefined_table
        return DatabaseDown("The database has no tables yet.")
    if getattr(error, "sqlstate", None) == "42703" and (column := schema.lacking_column(str(error))):
        return _lacking(column)
    if getattr(error, "sqlstate", None) == "42501":  # insufficient_privilege
        return DatabaseDown(
            "The database does not let the bot's role do that: its owner has to create what is missing, or to grant it."
        )
    if is_down:
        return DatabaseDown(_postgresql_sentence(error))
    return None


def _lacking(column: str) -> OtherVersion:
    return OtherVersion(f"The database was made by an older version: it has no column {column} yet.")


def _reason(error: BaseException) -> str:
    """Say which rule was broken, without the row's contents (PostgreSQL's detail repeats them)."""
    diagnosis = getattr(error, "diag", None)
    if diagnosis is not None:
        return str(diagnosis.message_primary or "a constraint was broken")
    return str(error)


def _is_sqlite_locked(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def _sqlite_sentence(error: sqlite3.Error) -> str:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if _is_sqlite_locked(error):
        return "The database is busy: others have been writing for too long."
    if "no such table" in str(error):
        return "The database has no tables yet."
    return {
        sqlite3.SQLITE_FULL: "The database cannot be written: the disk is full.",
        sqlite3.SQLITE_READONLY: "The database cannot be written: it is read-only here.",
        sqlite3.SQLITE_CANTOPEN: "The database file cannot be opened.",
        sqlite3.SQLITE_NOTADB: "The database file is not an SQLite database.",
        sqlite3.SQLITE_CORRUPT: "The database file is damaged.",
    }.get(code, "The database file cannot be read or written.")


def _postgresql_sentence(error: BaseException) -> str:
    sqlstate = getattr(error, "sqlstate", None)
    if sqlstate in _BUSY:
        return "The database is busy: others have been writing for too long."
    if sqlstate == "53100":  # disk_full
        return "The database cannot be written: its disk is full."
    # At connecting, libpq passes on words only, and in the server's language.
    words = str(error)
    if "too many clients" in words or "too many connections" in words:
        return "The database is busy: it takes no more connections."
    if any(hint in words for hint in ("authentication failed", "no pg_hba.conf entry", "does not exist")):
        return "The database does not let the bot in."
    return "The database does not answer."
