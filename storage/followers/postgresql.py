"""A copy in a second PostgreSQL, which the bot can add to and read, and cannot change: what stands there, and who may?

Rules
-----
* The tables belong to the standby's administrator, who runs what ``breakglass follower setup NAME`` prints. The bot's
  role there owns nothing and has INSERT and SELECT; one that could do more is refused, and so is a table without the
  guards of the log.
* What comes again is compared with what stands there: "on conflict do nothing" alone would call a different entry
  acknowledged.
* It follows only the log that it began: the origin and entry 0 stand in a table of one row.
* Acknowledged means committed, with ``synchronous_commit`` on.
* The URL holds a password, so it is in no message.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict

from storage.followers.seam import CopyTrouble, Item, Kind, Place

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from storage.followers.seam import SignedNote

_ROLE: Final = "breakglass_copy"
_DATABASE: Final = "breakglass_copy"
_PAGE: Final = 1000
_GUARDS: Final = 7

# A standby that is gone must not keep the thread (seconds; milliseconds for the last).
_LIBPQ: Final[dict[str, Any]] = {
    "connect_timeout": 5,
    "application_name": "breakglass copy",
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
_SESSION: Final = """
    SET statement_timeout = '20s'; SET lock_timeout = '5s'; SET idle_in_transaction_session_timeout = '30s';
    SET search_path = pg_catalog;
    SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') IN ('off', 'local')
"""
_TABLES: Final = ("copy_log", "copy_entry", "copy_head")

_SETUP: Final = """\
-- Run this as an administrator of the standby server:  psql -v ON_ERROR_STOP=1 -f THIS_FILE postgres
-- The role can add to the copy and read it, and owns nothing. Give it a password afterwards:  \\password {role_name}
CREATE ROLE {role} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;
CREATE DATABASE {database};
REVOKE ALL ON DATABASE {database} FROM PUBLIC;
GRANT CONNECT ON DATABASE {database} TO {role};
\\connect {database_name}
{tables}"""

_SETUP_TABLES: Final = """\
CREATE SCHEMA breakglass;
CREATE TABLE breakglass.copy_log (
    only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    origin text NOT NULL,
    first bytea NOT NULL CHECK (octet_length(first) = 32)
);
CREATE TABLE breakglass.copy_entry (
    seq bigint PRIMARY KEY CHECK (seq >= 0),
    leaf_hash bytea NOT NULL CHECK (octet_length(leaf_hash) = 32),
    body bytea CHECK (body IS NULL OR sha256('\\x00'::bytea || body) = leaf_hash)
);
CREATE TABLE breakglass.copy_head (
    number bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    digest bytea PRIMARY KEY CHECK (digest = sha256(note)),
    note bytea NOT NULL
);
CREATE FUNCTION breakglass.copy_refuse() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'integrity_constraint_violation',
        MESSAGE = 'the copy only grows: ' || lower(TG_OP) || ' is refused';
END $$;
CREATE FUNCTION breakglass.copy_check_next() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
    IF NEW.seq IS DISTINCT FROM (SELECT COALESCE(MAX(seq) + 1, 0) FROM breakglass.copy_entry) THEN
        RAISE EXCEPTION USING ERRCODE = 'integrity_constraint_violation',
            MESSAGE = 'the copy only grows: this is not the next entry';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER copy_only_next BEFORE INSERT ON breakglass.copy_entry
    FOR EACH ROW EXECUTE FUNCTION breakglass.copy_check_next();
ALTER TABLE breakglass.copy_entry ENABLE ALWAYS TRIGGER copy_only_next;
{guards}\
GRANT USAGE ON SCHEMA breakglass TO {role};
GRANT SELECT, INSERT ON breakglass.copy_log, breakglass.copy_entry, breakglass.copy_head TO {role};
"""

# ALWAYS: else "SET session_replication_role = replica" walks past them.
_SETUP_GUARDS: Final = """\
CREATE TRIGGER copy_no_change BEFORE UPDATE OR DELETE ON breakglass.{table}
    FOR EACH ROW EXECUTE FUNCTION breakglass.copy_refuse();
CREATE TRIGGER copy_no_truncate BEFORE TRUNCATE ON breakglass.{table}
    FOR EACH STATEMENT EXECUTE FUNCTION breakglass.copy_refuse();
ALTER TABLE breakglass.{table} ENABLE ALWAYS TRIGGER copy_no_change;
ALTER TABLE breakglass.{table} ENABLE ALWAYS TRIGGER copy_no_truncate;
"""

_RIGHTS: Final = """
    SELECT count(*) FILTER (WHERE has_table_privilege(c.oid, 'INSERT') AND has_table_privilege(c.oid, 'SELECT')) AS may,
           count(*) FILTER (WHERE has_table_privilege(c.oid, 'UPDATE, DELETE, TRUNCATE, TRIGGER')
                            OR pg_has_role(c.relowner, 'USAGE')) AS may_more
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'breakglass' AND c.relname = ANY (%s)
"""
_STANDING: Final = """
    SELECT count(*) FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'breakglass' AND c.relname = ANY (%s) AND t.tgenabled = 'A'
    AND t.tgname IN ('copy_no_change', 'copy_no_truncate', 'copy_only_next')
"""


class PostgresqlCopy:
    """The copy in the database at ``url``. Used by one thread at a time."""

    is_readable = True

    def __init__(self, name: str, url: str, origin: str) -> None:
        self.name = name
        self._url = _plain(url)
        self._origin = origin
        self._connection: psycopg.Connection[Any] | None = None

    def __repr__(self) -> str:
        return f"PostgresqlCopy({self.name!r})"

    def deliver(self, items: Sequence[Item], head: SignedNote | None, *, now: datetime) -> int:  # noqa: ARG002
        """Insert what is not there yet, in one transaction; see :class:`storage.followers.seam.Copy`."""
        with self._transaction() as connection:
            # 1. What stands there?
            last = _last(connection)
            self._check_log(connection, items, last)
            if items and items[0].seq > last + 1:
                raise CopyTrouble(self._say_lost(items[0].seq, last))
            # 2. What came before must be what stands there.
            self._compare(connection, [item for item in items if item.seq <= last])
            # 3. The rest.
            new = [(item.seq, item.leaf_hash, item.body) for item in items if item.seq > last]
            if new:
                with connection.cursor() as cursor:
                    cursor.executemany(
                        "INSERT INTO breakglass.copy_entry (seq, leaf_hash, body) VALUES (%s, %s, %s)", new
                    )
            if head is not None:
                connection.execute(
                    "INSERT INTO breakglass.copy_head (digest, note) VALUES (%s, %s) ON CONFLICT (digest) DO NOTHING",
                    [sha256(head).digest(), head],
                )
        return max(last, items[-1].seq) if items else last

    def position(self) -> int | None:
        """Return the last entry that stands there, None when nothing does."""
        with self._transaction() as connection:
            last = _last(connection)
        return last if last >= 0 else None

    def read(self, start: int = 0) -> Iterator[Item]:
        """Give the entries as they stand, page by page."""
        query = "SELECT seq, body, leaf_hash FROM breakglass.copy_entry WHERE seq >= %s ORDER BY seq LIMIT %s"
        while True:
            with self._transaction() as connection:
                rows = connection.execute(query, [start, _PAGE]).fetchall()
            for seq, body, leaf in rows:
                yield Item(seq, body, leaf)
            if len(rows) < _PAGE:
                return
            start = rows[-1][0] + 1

    def heads(self) -> Iterator[SignedNote]:
        """Give the signed heads as they stand, oldest first."""
        with self._transaction() as connection:
            rows = connection.execute("SELECT note FROM breakglass.copy_head ORDER BY number").fetchall()
        return (note for (note,) in rows)

    def close(self) -> None:
        """Close the connection; the next use opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # ------------------------------------------------------------------------------------ what must hold

    def _check_log(self, connection: psycopg.Connection[Any], items: Sequence[Item], last: int) -> None:
        """Refuse a standby that another log has begun; begin it with entry 0."""
        row = connection.execute("SELECT origin, first FROM breakglass.copy_log").fetchone()
        if row is None:
            if items and items[0].seq == 0 and last < 0:
                connection.execute(
                    "INSERT INTO breakglass.copy_log (origin, first) VALUES (%s, %s)",
                    [self._origin, items[0].leaf_hash],
                )
            elif last >= 0:
                raise CopyTrouble(f"The standby of {self.name} holds entries and does not say of which log.")
            return
        origin, first = row
        if origin != self._origin:
            raise CopyTrouble(
                f"The standby of {self.name} holds the log {origin}, not {self._origin}: "
                "give this log another database."
            )
        begun = connection.execute("SELECT leaf_hash FROM breakglass.copy_entry WHERE seq = 0").fetchone()
        if begun is None or begun[0] != first:
            raise CopyTrouble(f"The standby of {self.name} does not begin with the entry that it was begun with.")

    def _compare(self, connection: psycopg.Connection[Any], items: Sequence[Item]) -> None:
        if not items:
            return
        rows = connection.execute(
            "SELECT seq, body, leaf_hash FROM breakglass.copy_entry WHERE seq BETWEEN %s AND %s",
            [items[0].seq, items[-1].seq],
        )
        there = {seq: Item(seq, body, leaf) for seq, body, leaf in rows}
        for item in items:
            if item.seq not in there or not there[item.seq].is_same(item):
                raise CopyTrouble(
                    f"A different entry {item.seq} stands in the standby of {self.name}: the log was changed, or this "
                    f"is another log's. Compare them with “breakglass verify --against {self.name}”."
                )

    def _say_lost(self, start: int, last: int) -> str:
        ends = f"ends at entry {last}" if last >= 0 else "is empty"
        return (
            f"The standby of {self.name} {ends}, though entry {start - 1} was acknowledged: "
            "it was restored or replaced. "
            f"Bring the right one back, or fill the new one with “breakglass follower reset {self.name}”."
        )

    # ------------------------------------------------------------------------------------ the connection

    @contextmanager
    def _transaction(self) -> Iterator[psycopg.Connection[Any]]:
        """Give a transaction, and make sentences of what goes wrong; then the connection is not used again."""
        try:
            if self._connection is None or self._connection.closed:
                self._connection = self._connect()
            with self._connection.transaction():
                yield self._connection
        except psycopg.Error as error:
            self.close()
            raise CopyTrouble(self._say_error(error)) from error
        except CopyTrouble:
            self.close()
            raise

    def _connect(self) -> psycopg.Connection[Any]:
        connection = psycopg.connect(self._url, autocommit=True, **_LIBPQ)
        try:
            connection.execute(_SESSION)
            self._check_rights(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _check_rights(self, connection: psycopg.Connection[Any]) -> None:
        tables = list(_TABLES)
        may, may_more = connection.execute(_RIGHTS, [tables]).fetchone() or (0, 0)
        if may_more:
            raise CopyTrouble(
                f"The role of the copy {self.name} could change what stands in the standby: use a role that has "
                f"INSERT and SELECT and owns nothing, as “breakglass follower setup {self.name}” prints it."
            )
        if may != len(_TABLES):
            raise CopyTrouble(self._say_setup("lacks its tables, or the role may not use them"))
        if (connection.execute(_STANDING, [tables]).fetchone() or (0,))[0] != _GUARDS:
            raise CopyTrouble(self._say_setup("lacks the guards of its tables"))

    def _say_setup(self, what: str) -> str:
        return f"The standby of {self.name} {what}: run what “breakglass follower setup {self.name}” prints."

    def _say_error(self, error: psycopg.Error) -> str:
        """Say what is wrong without the library's words: they repeat names of hosts, people and rows."""
        state = error.sqlstate or ""
        if isinstance(error, psycopg.IntegrityError):
            return (
                f"The standby of {self.name} refused an entry; if it was written by another bot, it goes on by itself."
            )
        if state in {"42P01", "3F000", "42501"}:  # undefined table or schema, no privilege
            return self._say_setup("lacks its tables, or the role may not use them")
        if state in {"53100", "53200"}:
            return f"The standby of {self.name} has no room left on its disk, or in its memory."
        if state in {"57014", "55P03"}:
            return f"The standby of {self.name} is too slow: it did not answer in time."
        if state and state[:2] not in {"08", "28", "3D", "57"}:  # it is down, or lets nobody in
            return f"The standby of {self.name} failed (SQLSTATE {state}): see the log of its server."
        words = str(error)
        if any(hint in words for hint in ("authentication failed", "no pg_hba.conf entry", "does not exist")):
            return f"The standby of {self.name} does not let the bot in: look at its URL, role and password."
        return f"The standby of {self.name} does not answer."


def _last(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("SELECT COALESCE(MAX(seq), -1) FROM breakglass.copy_entry").fetchone()
    return int(row[0]) if row else -1


def _plain(url: str) -> str:
    return re.sub(r"\Apostgres(ql)?(\+psycopg)?://", "postgresql://", url)


def build(place: Place) -> PostgresqlCopy:
    """Build the copy that the policy describes."""
    return PostgresqlCopy(place.name, _checked(place), place.origin)


def _checked(place: Place) -> str:
    url = place.secret("url_env")
    try:
        conninfo_to_dict(_plain(url))
    except psycopg.Error:
        raise CopyTrouble(f"The URL of the copy {place.name} ({place.settings['url_env']}) cannot be read.") from None
    return url


def setup(place: Place) -> str:
    """Return the SQL for the standby's administrator: role, database, tables, guards, grants.

    Role and database are those of the copy's URL where the environment has it, else ``breakglass_copy``.
    """
    known: dict[str, Any] = {}
    if place.environment.get(place.settings.get("url_env", "")):
        known = dict(conninfo_to_dict(_plain(_checked(place))))
    role, database = str(known.get("user") or _ROLE), str(known.get("dbname") or _DATABASE)
    return _SETUP.format(
        role=_quoted(role),
        role_name=role,
        database=_quoted(database),
        database_name=_quoted(database),
        tables=setup_tables(role),
    )


def setup_tables(role: str) -> str:
    """Return the part of the SQL that is run inside the standby's database."""
    guards = "".join(_SETUP_GUARDS.format(table=table) for table in _TABLES)
    return _SETUP_TABLES.format(guards=guards, role=_quoted(role))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


KIND: Final = Kind(keys={"url_env": True}, build=build, setup=setup)
