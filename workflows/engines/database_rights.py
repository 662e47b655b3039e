"""What could a login of a level do at PostgreSQL, and what does one do when it is tried?

Rules
-----
* A level's rights are those of its group role, and of every role that the group could become: all of them are looked
  at, whether they are inherited or not.
* The first question is asked with the watching login, which sees every role and every right and has none itself; the
  second with a credential of the level.
* What is tried changes no row: of a statement that would write, only the plan is asked for (EXPLAIN), and PostgreSQL
  checks its rights all the same. No trigger fires.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import sql

from workflows.engines.database_sql import AUDIT, CONNECTIONS, schemas
from workflows.errors import Refused, Unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from workflows.engines.database import Login

Session = psycopg.Connection[tuple[Any, ...]]

# Members of these can run programs on the server or reach its files or other servers: more than any database's rights.
FORBIDDEN_ROLES: Final = (
    "pg_execute_server_program",
    "pg_write_server_files",
    "pg_read_server_files",
    "pg_create_subscription",
)
_ATTRIBUTES: Final = ("SUPERUSER", "REPLICATION", "BYPASSRLS", "CREATEROLE", "CREATEDB")
_SHOWN: Final = 5  # of a list in a sentence
_SECONDS: Final = 5  # to connect, and for a question

_REACHABLE: Final = """
WITH RECURSIVE reach(oid) AS (
    SELECT oid FROM pg_roles WHERE rolname = %(role)s
    UNION SELECT m.roleid FROM pg_auth_members m JOIN reach ON m.member = reach.oid
)
SELECT rolname, rolsuper, rolreplication, rolbypassrls, rolcreaterole, rolcreatedb
FROM pg_roles JOIN reach USING (oid) ORDER BY rolname <> %(role)s, rolname
"""
# The server's own schemas are everybody's to read; nobody but a superuser can be given a right to write there.
_PLACES: Final = "n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%%'"
_WRITABLE: Final = f"""
SELECT format('%%I.%%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE {_PLACES} AND CASE
    WHEN c.relkind IN ('r', 'p', 'v', 'm', 'f') THEN
        has_table_privilege(%(role)s, c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE')
        OR has_any_column_privilege(%(role)s, c.oid, 'INSERT, UPDATE')
    WHEN c.relkind = 'S' THEN has_sequence_privilege(%(role)s, c.oid, 'USAGE, UPDATE')
    ELSE false END
UNION ALL
SELECT format('new things in %%I', n.nspname) FROM pg_namespace n
WHERE {_PLACES} AND has_schema_privilege(%(role)s, n.oid, 'CREATE')
UNION ALL
SELECT 'new schemas' WHERE has_database_privilege(%(role)s, current_database(), 'CREATE')
ORDER BY 1
"""
_ELSEWHERE: Final = f"""
SELECT format('%%I.%%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE {_PLACES} AND NOT n.nspname = ANY(%(schemas)s) AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
AND has_schema_privilege(%(role)s, n.oid, 'USAGE')
AND (has_table_privilege(%(role)s, c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE')
    OR has_any_column_privilege(%(role)s, c.oid, 'SELECT, INSERT, UPDATE'))
ORDER BY 1
"""
# Whoever may set these can keep what they run from being recorded.
_UNRECORDED: Final = """
SELECT DISTINCT parameter FROM unnest(%(roles)s::text[]) AS held, unnest(%(parameters)s::text[]) AS parameter
WHERE has_parameter_privilege(held, parameter, 'SET, ALTER SYSTEM') ORDER BY 1
"""
# Of one's own tables: the first that can be read, and the first that can be written to.
_OWN_TABLES: Final = f"""
SELECT DISTINCT ON (can_read, can_write) n.nspname, c.relname, a.attname,
    has_table_privilege(c.oid, 'SELECT') AS can_read, has_table_privilege(c.oid, 'UPDATE') AS can_write
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
WHERE {_PLACES} AND c.relkind IN ('r', 'p') AND has_schema_privilege(n.oid, 'USAGE')
ORDER BY can_read DESC, can_write DESC, n.nspname, c.relname, a.attnum
"""


def excess(session: Session, options: Mapping[str, str]) -> tuple[str, ...]:
    """Return what the level's group could do and must not, a sentence each. Raises psycopg.Error."""
    group = options["group"]
    reachable = session.execute(_REACHABLE, {"role": group}).fetchall()
    if not reachable:
        return (f"There is no role {group} at {options['host']}:{options['port']}.",)
    found = list(_too_mighty(group, reachable))
    if found:
        return tuple(found)  # whoever is that mighty may everything below, too
    if parameters := list(AUDIT[options.get("audit", "none")]):
        roles = [str(name) for name, *_ in reachable]
        more = {"roles": roles, "parameters": parameters}
        found += _named(session, _UNRECORDED, group, more, "is recorded, and its group {group} may set")
    if options.get("read_only") == "true":
        found += _named(session, _WRITABLE, group, {}, "is read-only, and its group {group} may write")
    if names := schemas(options):
        where = f"is for {', '.join(names)}, and its group {{group}} reaches"
        found += _named(session, _ELSEWHERE, group, {"schemas": list(names)}, where)
    return tuple(found)


def _too_mighty(group: str, reachable: Sequence[tuple[Any, ...]]) -> list[str]:
    found = []
    for name, *flags in reachable:
        through = "" if name == group else f", whose rights {group} could take on,"
        held = [word for word, flag in zip(_ATTRIBUTES, flags, strict=True) if flag]
        if held:
            found.append(f"The role {name}{through} has {' and '.join(held)}.")
        if name in FORBIDDEN_ROLES:
            found.append(f"The group {group} is a member of {name}.")
    return found


def _named(session: Session, query: str, group: str, more: Mapping[str, object], words: str) -> list[str]:
    rows = [str(name) for (name,) in session.execute(query.encode(), {"role": group, **more}).fetchall()]
    if not rows:
        return []
    rest = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    return [f"The level {words.format(group=group)} {', '.join(rows[:_SHOWN])}{rest}."]


def rehearse(login: Login, options: Mapping[str, str], above: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    """Try a level's login; see :class:`workflows.engines.seam.Rehearsed`."""
    try:
        with _connected(login, login.database) as session:
            seen = _tried(session, login, options, above)
        return ("it logs in", *seen, *_elsewhere(login))
    except psycopg.Error as error:
        # Only the kind: the words of a failed statement may repeat it.
        failure = Unavailable(
            f"The credential could not be tried at {login.host}:{login.port} ({type(error).__name__})."
        )
    raise failure


def _tried(session: Session, login: Login, options: Mapping[str, str], above: Sequence[Mapping[str, str]]) -> list[str]:
    seen = []
    _as_stated(session, options)
    # Read-only must not rest on a setting that the session can change.
    session.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE")
    reachable = session.execute(_REACHABLE, {"role": login.username}).fetchall()
    if mighty := _too_mighty(login.username, reachable):
        raise Refused(" ".join(mighty))
    names = {str(row[0]) for row in reachable}
    for other in above:
        if other.get("group") in names and other.get("group") != options.get("group"):
            raise Refused(f"The credential has the rights of {other['group']}, which need more custodians.")
    _denied(session, sql.SQL("CREATE ROLE breakglass_accomplice"), "make a role")
    _denied(session, sql.SQL("COPY (SELECT 1) TO PROGRAM 'true'"), "run a program")
    _denied(session, sql.SQL("SELECT pg_read_file('PG_VERSION')"), "read a file of the server")
    seen.append("it can make no role, run no program and read no file")
    tables = session.execute(_OWN_TABLES.encode()).fetchall()
    readable = [table for table in tables if table[3]]
    is_read_only = options.get("read_only") == "true"
    if readable:
        where = sql.Identifier(*readable[0][:2])
        session.execute(sql.SQL("SELECT 1 FROM {} LIMIT 1").format(where))
        seen.append(f"it reads {'.'.join(readable[0][:2])}")
    if is_read_only:
        if not readable:
            raise Refused("The credential can read no table at all: give its group the rights that the title says.")
        _denied(session, _update(readable[0]), f"write to {'.'.join(readable[0][:2])}")
        _denied(session, sql.SQL("EXPLAIN DELETE FROM {}").format(where), f"delete from {'.'.join(readable[0][:2])}")
        if writable := _named(session, _WRITABLE, login.username, {}, "is read-only, and its credential may write"):
            raise Refused(writable[0])
        seen.append(f"it cannot write to {'.'.join(readable[0][:2])}, nor to anything else")
    else:
        for table in [table for table in tables if table[4]][:1]:
            session.execute(_update(table))
            seen.append(f"it may write to {'.'.join(table[:2])}")
    return seen


def _update(table: Sequence[str]) -> sql.Composed:
    schema, name, column = table[:3]
    return sql.SQL("EXPLAIN UPDATE {} SET {column} = {column}").format(
        sql.Identifier(schema, name), column=sql.Identifier(column)
    )


def _as_stated(session: Session, options: Mapping[str, str]) -> None:
    """Refuse a login that was not made as the policy says now."""
    row = session.execute(
        "SELECT rolconnlimit, current_setting('default_transaction_read_only') = 'on', "
        "current_setting('statement_timeout') FROM pg_roles WHERE rolname = current_user"
    ).fetchone()
    wanted = (int(options.get("connections", CONNECTIONS)), options.get("read_only") == "true")
    has_limit = "statement_timeout" not in options or (row is not None and row[2] != "0")
    audit = AUDIT[options.get("audit", "none")]
    set_so = session.execute(
        "SELECT name, current_setting(name, true) FROM unnest(%(names)s::text[]) AS name", {"names": list(audit)}
    ).fetchall()
    if row is None or (row[0], row[1]) != wanted or not has_limit or dict(set_so) != dict(audit):
        raise Refused("The login was not made as the policy says: run breakglass vault apply.")


def _denied(session: Session, statement: sql.SQL | sql.Composed, what: str) -> None:
    """Try what must be denied; raise Refused when it is not. What it would have done is rolled back."""
    try:
        with session.transaction(force_rollback=True):
            session.execute(statement)
    except psycopg.errors.InsufficientPrivilege:
        return
    raise Refused(f"The credential can {what}, and must not.")


def _elsewhere(login: Login) -> tuple[str, ...]:
    """Be refused by a database that no level is for."""
    try:
        _connected(login, "template1").close()
    except psycopg.OperationalError:
        return ("it is refused by another database",)
    raise Refused(
        "The credential can log in to the database template1, and must not: revoke CONNECT there from PUBLIC."
    )


def _connected(login: Login, database: str) -> Session:
    return psycopg.connect(
        host=login.host,
        port=login.port,
        dbname=database,
        user=login.username,
        password=login.password,
        connect_timeout=_SECONDS,
        application_name="breakglass check",
        autocommit=True,
    )
