"""What could a login of a level do at MariaDB, and what does one do when it is tried?

Rules
-----
* A level is for a database, never for the server: a right on everything (``ON *.*``), which is how somebody makes
  accounts, reads files, or reads every account's password, is too much, whatever it is. So is the right to pass on.
* The first question is asked with the watching login (``breakglass.rights``), the second with a credential of the
  level, which may see its own rights.
* What is tried changes nothing: it reads one row.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from workflows.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pymysql

# The server's own, and ours.
_NOT_A_LEVELS: Final = ("mysql", "breakglass", "sys")
_GRANT: Final = re.compile(r"GRANT (?P<what>.+?) ON (?P<where>\S+(?: \S+)?) TO (?P<whom>.+)", re.ASCII)
_TABLES: Final = """
SELECT table_schema, table_name FROM information_schema.tables
WHERE table_type = 'BASE TABLE' AND table_schema NOT IN ('information_schema', 'performance_schema')
ORDER BY table_schema, table_name LIMIT 1
"""


def excess(rows: Sequence[Sequence[Any]], options: Mapping[str, str]) -> tuple[str, ...]:
    """Return what the level's group could do and must not. ``rows``: what ``breakglass.rights`` said of it."""
    group = options["group"]
    if not rows:
        return (f"There is no role {group} at {options['host']}:{options['port']}.",)
    found = []
    for name, everywhere, inside, hands_on, writes in rows:
        role = f"The role {name}" + ("" if name == group else f", which comes with {group},")
        if everywhere:
            found.append(f"{role} has rights on the whole server.")
        if inside:
            found.append(f"{role} has rights in a schema of the server's own, or in breakglass.")
        if hands_on:
            found.append(f"{role} may hand its rights on (GRANT OPTION).")
        if writes and options.get("read_only") == "true":
            found.append(f"{role} may write, and the level is read-only.")
    return tuple(found)


def rehearse(session: pymysql.Connection[Any], above: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    """Look at the rights of the session's own login and read a row. Raises pymysql.Error, Refused."""
    grants = [str(row[0]) for row in _rows(session, "SHOW GRANTS")]
    roles = {str(row[0]) for row in _rows(session, "SELECT role_name FROM information_schema.applicable_roles")}
    # Of the role that a session begins with, and of all that come with it. Without one there is only the login's own.
    if _rows(session, "SELECT CURRENT_ROLE()")[0][0] is not None:
        grants += [str(row[0]) for row in _rows(session, "SHOW GRANTS FOR CURRENT_ROLE")]
    if problem := next(filter(None, map(_too_mighty, grants)), None):
        raise Refused(problem)
    for other in above:
        if other.get("group") in roles:
            raise Refused(f"The credential has the rights of {other['group']}, which need more custodians.")
    seen = ["it logs in", "it has no right on the whole server, and can pass none on"]
    for schema, name in _rows(session, _TABLES):
        _rows(session, f"SELECT 1 FROM {_quoted(schema)}.{_quoted(name)} LIMIT 1")
        seen.append(f"it reads {schema}.{name}")
    return tuple(seen)


def _too_mighty(grant: str) -> str | None:
    """Say what is wrong with one line of SHOW GRANTS; None: nothing."""
    found = _GRANT.match(grant)
    if found is None:
        return "The credential can pass its role on, and must not." if "WITH ADMIN OPTION" in grant else None
    if found["where"] == "*.*" and found["what"] != "USAGE":
        return f"The credential has {found['what']} on the whole server, and must not."
    if "WITH GRANT OPTION" in found["whom"]:
        return f"The credential can pass on what it may at {found['where']}, and must not."
    schema = found["where"].removeprefix("PROCEDURE ").removeprefix("FUNCTION ").split(".")[0].strip("`")
    if schema in _NOT_A_LEVELS:
        return f"The credential has {found['what']} on {found['where']}, which is the server's own."
    return None


def _rows(session: pymysql.Connection[Any], statement: str) -> tuple[tuple[Any, ...], ...]:
    with session.cursor() as cursor:
        cursor.execute(statement)
        return tuple(cursor.fetchall())


def _quoted(name: str) -> str:
    return "`" + str(name).replace("`", "``") + "`"
