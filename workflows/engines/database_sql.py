"""Which SQL makes a login at PostgreSQL, takes it back for good, and prepares the server for that?

Rules
-----
* A login has no right of its own: it is in one group role, which the target's owner has given rights.
* It is taken back in an order that holds against a client that keeps reconnecting (see ``REVOCATION``).
* The manager that Vault uses is not a superuser: it creates and drops logins, ends their sessions, and lends the rights
  of the group roles that it was given.
* Every name that comes from a policy is checked before it stands in a statement.
"""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# Names of roles and schemas stand in statements as they are, so they need no quotes. "pg_…" is the server's own.
IDENTIFIER: Final = re.compile(r"(?!pg_)[a-z_][a-z0-9_]{0,62}", re.ASCII)
SPAN: Final = re.compile(r"([1-9][0-9]{0,5})(ms|s|m|h)", re.ASCII)
_MILLISECONDS: Final = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}

# A person needs a psql and a second one, not two hundred.
CONNECTIONS: Final = 2
MOST_CONNECTIONS: Final = 20

# The child token is named after its request (Vault puts "token-" before it), and so is the login: whoever looks at the
# target's sessions sees which request they belong to. Eight random letters keep two credentials of one request apart.
USERNAME: Final = '{{ printf "%s-%s" (.DisplayName | replace "token-" "" | truncate 40) (random 8) | lowercase }}'

# What is recorded of what a login runs (workflows/captures/postgres.py reads it), as settings of the login: nobody else
# pays for it, and only a superuser, or who was given the right by name, can change them.
# With pgaudit: log_duration shows calls over the fast path, which pgaudit does not see; log_rows would write a
# statement only at its end; log_statement would write each once more.
_AUDIT_ALWAYS: Final = {"log_min_messages": "warning", "log_min_error_statement": "error", "lc_messages": "C"}
AUDIT: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {
        "none": {},
        "pgaudit": {
            "pgaudit.log": "all",
            "pgaudit.log_catalog": "on",
            "pgaudit.log_level": "log",
            "pgaudit.log_parameter": "on",
            "pgaudit.log_rows": "off",
            "pgaudit.log_statement": "on",
            "pgaudit.log_statement_once": "off",
            "log_statement": "none",
            "log_duration": "on",
            **_AUDIT_ALWAYS,
        },
        "log_statement": {"log_statement": "all", "log_parameter_max_length": "-1", **_AUDIT_ALWAYS},
    }
)
# A role may be given settings of an extension that is not there, and then nothing is recorded: this fails instead, and
# with it the credential.
_PGAUDIT_IS_THERE: Final = "SELECT 1/count(*) FROM pg_settings WHERE name='pgaudit.log'"

# What the bot looks at the target with: its group may connect, and so see who else is connected and which roles there
# are, and has no other right.
WATCH_GROUP: Final = "bg_watch"
WATCH_CONNECTIONS: Final = 8
WATCH_TTL: Final = 3600  # seconds

_SWEEP: Final = (
    "SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity a LEFT JOIN pg_roles r ON r.oid=a.usesysid "
    "WHERE a.usesysid IS NOT NULL AND a.usesysid<>0 AND r.oid IS NULL"
)
# A session of a fixed account (``static.py``) that began in the last moment, too: the account bears our mark and cannot
# log in. Others' roles that cannot are left alone: their sessions may have been meant to run out.
_SWEEP_FIXED: Final = (
    "SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity a JOIN pg_roles r ON r.oid=a.usesysid "
    "WHERE NOT r.rolcanlogin AND shobj_description(r.oid,'pg_authid') LIKE 'bg-%-%'"
)
WATCH_REVOCATION: Final = ('DROP ROLE IF EXISTS "{{name}}"', _SWEEP, _SWEEP_FIXED)

# Statements run in one transaction, and any failure would roll the NOLOGIN back: hence the COMMIT behind it, which is a
# habit of Vault's plugin and held by a test. Only when no new session can start are the open ones ended, twice: at
# once, then waiting for each. What the login owns goes to the manager, since a plain DROP fails on a temporary table.
# At the end, sessions of logins that no longer exist (a race at the first step) are swept.
# The login may be gone already: dropped by hand in the night, or lost with a fail-over or a restore. Nothing may fail
# then, or the lease could never end, and the request would stay "being taken back" for good. Vault does not split a
# statement at its semicolons when it has the word END.
_IF_THERE: Final = "DO $$ BEGIN IF EXISTS (SELECT FROM pg_roles WHERE rolname='{{name}}') THEN %s; END IF; END $$"
REVOCATION: Final = (
    _IF_THERE % 'ALTER ROLE "{{name}}" NOLOGIN',
    "COMMIT",
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename='{{name}}'",
    "SELECT pg_terminate_backend(pid,5000) FROM pg_stat_activity WHERE usename='{{name}}'",
    _IF_THERE
    % (
        'GRANT "{{name}}" TO "{manager}"; REASSIGN OWNED BY "{{name}}" TO "{manager}"; '
        'DROP OWNED BY "{{name}}"; DROP ROLE "{{name}}"'
    ),
    _SWEEP,
)


def problems(options: Mapping[str, str]) -> dict[str, str]:
    """Return what is wrong with the options that stand in statements: a sentence by key."""
    found: dict[str, str] = {}
    for key in ("group", "manager"):
        if key in options and not IDENTIFIER.fullmatch(options[key]):
            found[key] = (
                f"{options[key]!r} is not the name of a role of your own: a-z, 0-9 and _, not beginning with pg_."
            )
    if "group" in options and options["group"] in {options.get("manager"), WATCH_GROUP, "postgres", "public"}:
        found["group"] = f"{options['group']!r} is not a role whose rights can be lent: make one for this level."
    connections = options.get("connections", str(CONNECTIONS))
    if not re.fullmatch(r"[1-9][0-9]?", connections) or int(connections) > MOST_CONNECTIONS:
        found["connections"] = f"The sessions at once are a whole number from 1 to {MOST_CONNECTIONS}."
    if "statement_timeout" in options and not SPAN.fullmatch(options["statement_timeout"]):
        found["statement_timeout"] = "A statement's longest time is written as 500ms, 30s, 5m or 1h."
    if options.get("read_only", "true") not in {"true", "false"}:
        found["read_only"] = 'Write "true" or "false", in quotes.'
    if any(not IDENTIFIER.fullmatch(name) for name in schemas(options)):
        found["schemas"] = "Write names of schemas (a-z, 0-9 and _) with a comma between them."
    if options.get("audit", "none") not in AUDIT:
        found["audit"] = "What its logins run is recorded by pgaudit, by log_statement, or by none."
    return found


def schemas(options: Mapping[str, str]) -> tuple[str, ...]:
    """Return the schemas that the level is for; none: no limit."""
    return tuple(name.strip() for name in options["schemas"].split(",")) if "schemas" in options else ()


def creation(options: Mapping[str, str]) -> tuple[str, ...]:
    """Return the statements that make a level's login.

    What a login may do is its group's rights. The settings here keep a tired person from a slip; a session could change
    them, and therefore ``breakglass check`` looks whether the group's rights are as narrow as they say.
    """
    audit = options.get("audit", "none")
    made = [_PGAUDIT_IS_THERE] if audit == "pgaudit" else []
    made.append(_login(options.get("connections", str(CONNECTIONS)), options["group"]))
    made += audit_settings(audit, "{{name}}")
    if options.get("read_only") == "true":
        made.append('ALTER ROLE "{{name}}" SET default_transaction_read_only = on')
    if "statement_timeout" in options and (span := SPAN.fullmatch(options["statement_timeout"])):
        made.append(f"ALTER ROLE \"{{{{name}}}}\" SET statement_timeout = '{int(span[1]) * _MILLISECONDS[span[2]]}ms'")
    if names := schemas(options):
        made.append(f'ALTER ROLE "{{{{name}}}}" SET search_path = {", ".join(names)}')
    return tuple(made)


def audit_settings(audit: str, role: str) -> tuple[str, ...]:
    """Return the statements after which what ``role`` runs is recorded; ``audit`` is a key of ``AUDIT``."""
    return tuple(f"ALTER ROLE \"{role}\" SET {name} = '{value}'" for name, value in AUDIT[audit].items())


def audit_grants(audit: str, manager: str) -> tuple[str, ...]:
    """Return the statements that let the manager set its logins so."""
    return tuple(f"GRANT SET ON PARAMETER {name} TO {manager};" for name in AUDIT[audit])


def revocation(options: Mapping[str, str]) -> tuple[str, ...]:
    """Return the statements that take a level's login back."""
    return tuple(line.replace("{manager}", options["manager"]) for line in REVOCATION)


def watch_creation() -> tuple[str, ...]:
    """Return the statements that make a login that can only look."""
    return (_login(str(WATCH_CONNECTIONS), WATCH_GROUP),)


def _login(connections: str, group: str) -> str:
    return (
        "CREATE ROLE \"{{name}}\" LOGIN INHERIT PASSWORD '{{password}}' VALID UNTIL '{{expiration}}' "
        f'CONNECTION LIMIT {connections} IN ROLE "{group}"'
    )


def target_steps(database: str, manager: str, groups: Iterable[str], *, is_watched: bool, audit: str = "none") -> str:
    """Return the SQL that a superuser runs in ``database`` before Vault is set up; running it twice is fine.

    It gives the manager no password: that is for whoever runs it to set. ``audit`` is a key of ``AUDIT``.
    """
    name = '"' + database.replace('"', '""') + '"'
    lines = [
        "-- The manager with which Vault makes logins. Without INHERIT or pg_signal_backend a revocation would fail,",
        "-- and the login would go on working.",
        _created(manager),
        f"ALTER ROLE {manager} LOGIN CREATEROLE INHERIT NOSUPERUSER NOCREATEDB NOREPLICATION NOBYPASSRLS;",
        f"GRANT pg_signal_backend TO {manager};",
        "-- (What it lends it gets WITH ADMIN OPTION, below: from version 16 on, CREATEROLE alone does not let it hand",
        "-- out a role that it did not create.)",
        f"GRANT CONNECT ON DATABASE {name} TO {manager};",
        "-- By default every login may connect to every database, and so to these.",
        "REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC;",
    ]
    if is_watched:
        lines += [
            "",
            "-- What the bot looks with may connect, and has no other right.",
            _created(WATCH_GROUP),
            f"GRANT CONNECT ON DATABASE {name} TO {WATCH_GROUP};",
            f"GRANT {WATCH_GROUP} TO {manager} WITH ADMIN OPTION;",
        ]
    if AUDIT[audit]:
        lines += [
            "",
            "-- What its logins run is recorded: the manager may set them so (from PostgreSQL 15 on). What the",
            "-- configuration of the server needs besides is printed by: breakglass capture setup postgres",
            *audit_grants(audit, manager),
        ]
    lines += [
        "",
        "-- The roles that are lent. Their rights are yours to give: GRANT … TO the role, as narrow as the title says.",
        *(_created(group) for group in groups),
        *(f"GRANT CONNECT ON DATABASE {name} TO {group};" for group in groups),
        *(f"GRANT {group} TO {manager} WITH ADMIN OPTION;" for group in groups),
    ]
    return "\n".join(lines) + "\n"


def _created(role: str) -> str:
    return (
        f"DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname='{role}') THEN "
        f"CREATE ROLE {role} NOLOGIN; END IF; END $$;"
    )
