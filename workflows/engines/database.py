"""How does a PostgreSQL login come out of Vault's database engine, and how is it shown to be gone?

Rules
-----
* What is left at Vault is looked for as for every lease (``leases.py``).
* Whether the login can still do something is then seen at the target, with a login of the bot's that has no rights but
  to connect (``watch_role``); a session counts also when its role is dropped already.
"""

from __future__ import annotations

import shlex
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, LiteralString
from urllib.parse import quote

import psycopg

from workflows.engines import database_rights, database_sql
from workflows.engines.logins import Logins
from workflows.engines.naming import is_local, like_exactly, mark_of, watch_path
from workflows.engines.seam import Session, Write
from workflows.errors import Refused, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import timedelta

    from workflows.engines import Credential, Held
    from workflows.vault import Vault

SSL_MODES: Final = ("disable", "require", "verify-ca", "verify-full")

_SECONDS: Final = 5  # to connect, and for a question


@dataclass(frozen=True, slots=True)
class Login:
    """A PostgreSQL user that Vault made for one grant."""

    username: str
    password: str = field(repr=False)
    host: str
    port: int
    database: str
    lease_id: str
    ttl: timedelta

    def lines(self) -> tuple[str, ...]:
        """Return the line that opens a session, quoted for a POSIX shell.

        The password is in the environment, not among the arguments, which every local user can list.
        """
        return (f"PGPASSWORD={shlex.quote(self.password)} psql {shlex.quote(self.target())}",)

    def target(self) -> str:
        """Return libpq's connection string, without the password."""
        words = {"host": self.host, "port": str(self.port), "dbname": self.database, "user": self.username}
        return " ".join(f"{name}={_quoted(value)}" for name, value in words.items())


class Database(Logins[Login]):
    """Vault's database secrets engine with its PostgreSQL plugin; one Vault role per level."""

    keys: Mapping[str, bool] = MappingProxyType(
        {
            "mount": True,
            "role": True,
            "host": True,
            "port": True,
            "database": True,
            "watch_role": False,  # of the same mount: what the bot looks at the target with
            # What the role is made of (database_sql.py); Vault is set up by these, and the bot does not need them.
            "connection": False,
            "sslmode": False,
            "group": False,
            "manager": False,
            "connections": False,
            "statement_timeout": False,
            "read_only": False,
            "schemas": False,
            "audit": False,  # how what its logins run is recorded: pgaudit, log_statement or none
        }
    )
    set_up_by: Mapping[str, str] = MappingProxyType(
        {
            "group": "the role at PostgreSQL whose rights its logins get",
            "manager": "the role with which Vault makes them",
        }
    )
    program: Final = "psql"

    def problems(self, options: Mapping[str, str]) -> dict[str, str]:
        """Return what is wrong, by key."""
        found = super().problems(options)
        if "sslmode" in options and options["sslmode"] not in SSL_MODES:
            found["sslmode"] = f"It is one of {', '.join(SSL_MODES)}."
        return found | database_sql.problems(options)

    def credential(
        self, options: Mapping[str, str], data: Mapping[str, object], lease_id: str, ttl: timedelta
    ) -> Login:
        """Return the login that an answer of Vault's holds. Raises Unavailable when it holds none."""
        username, password = self._name_and_password(options, data)
        return Login(username, password, options["host"], int(options["port"]), options["database"], lease_id, ttl)

    def session(self, credential: Credential) -> Session:
        """Return how ``psql`` is started. The password is in the environment alone."""
        if not isinstance(credential, Login):
            raise TypeError(f"not a database login: {type(credential).__name__}")
        return Session((self.program, credential.target()), {"PGPASSWORD": credential.password})

    def prove(self, vault: Vault, grant: Held) -> tuple[str, ...]:
        """See that the login does not exist at PostgreSQL, or cannot log in, and that no session of it is left."""
        with watching(vault, grant.options) as target:
            if target is None:
                return ()
            # Not only the name on record. The bot may have died before it recorded one; and a grant's token that was
            # stolen reads again: Vault leaves alone what is being read in the moment of the token's end.
            able, there, sessions = one(
                target,
                "SELECT count(*) FILTER (WHERE rolcanlogin), count(*), "
                "(SELECT count(*) FROM pg_stat_activity WHERE usename = %(name)s OR usename LIKE %(like)s) "
                "FROM pg_roles WHERE rolname = %(name)s OR rolname LIKE %(like)s",
                {"name": grant.identity or "", "like": f"{like_exactly(mark_of(grant.request_id))}%"},
            )
            # Of a role that is dropped, a session still shows the number and no name any more.
            (orphans,) = one(
                target,
                "SELECT count(*) FROM pg_stat_activity a LEFT JOIN pg_roles r ON r.oid = a.usesysid "
                "WHERE a.usesysid IS NOT NULL AND a.usesysid <> 0 AND r.oid IS NULL",
            )
        if orphans:
            # A session that began in the last moment of a role: the end of a watching login sweeps those away.
            vault.end_watcher(watch_path(grant.options))
        if able or sessions or orphans:
            left = f"{able} logins and {sessions + orphans} sessions"
            raise Unavailable(
                f"Vault says that it is gone, and at {grant.options['host']} {left} of it are left.", code="left"
            )
        return ("its role cannot log in" if there else "its role does not exist", "no session of it is open")

    def identities(self, vault: Vault, options: Mapping[str, str]) -> frozenset[str]:
        """Return the logins of that server that are named after a request."""
        with watching(vault, options) as target:
            if target is None:
                return frozenset()
            rows = target.execute("SELECT rolname FROM pg_roles WHERE rolname LIKE 'bg-%-%' AND rolcanlogin").fetchall()
        return frozenset(str(name) for (name,) in rows)

    def writes(self, options: Mapping[str, str], longest: timedelta) -> tuple[Write, ...]:
        """Return the mount, the connection and the roles. Raises Invalid without the keys of ``set_up_by``."""
        connection = self.connection_of(options)
        mount, host = options["mount"], options["host"]
        place = f"{f'[{host}]' if ':' in host else host}:{options['port']}/{quote(options['database'], safe='')}"
        seconds = int(longest.total_seconds())
        watched = ("watch_role",) if "watch_role" in options else ()
        made = [
            Write("POST", f"sys/mounts/{mount}", {"type": "database"}, made_once=True),
            Write(
                "POST",
                f"{mount}/config/{connection}",
                {
                    "plugin_name": "postgresql-database-plugin",
                    "connection_url": f"postgresql://{{{{username}}}}:{{{{password}}}}@{place}"
                    f"?sslmode={options.get('sslmode', 'disable' if is_local(host) else 'verify-full')}",
                    "username": options["manager"],
                    # Otherwise the passwords of the logins reach the server's log in clear text.
                    "password_authentication": "scram-sha-256",
                    "username_template": database_sql.USERNAME,
                    "allowed_roles": sorted(options[key] for key in ("role", *watched)),
                    "max_open_connections": 8,
                },
                secrets=("password",),
                joined=("allowed_roles",),
            ),
            Write(
                "POST",
                f"{mount}/roles/{options['role']}",
                {
                    "db_name": connection,
                    "creation_statements": list(self.creation(options)),
                    "revocation_statements": list(self.revocation(options)),
                    "renew_statements": [],
                    "rollback_statements": [],
                    "default_ttl": seconds,
                    "max_ttl": seconds,
                },
                lends=True,
            ),
        ]
        if watched:
            made.append(
                Write(
                    "POST",
                    f"{mount}/roles/{options['watch_role']}",
                    {
                        "db_name": connection,
                        "creation_statements": list(database_sql.watch_creation()),
                        "revocation_statements": list(database_sql.WATCH_REVOCATION),
                        "default_ttl": database_sql.WATCH_TTL,
                        "max_ttl": database_sql.WATCH_TTL,
                    },
                )
            )
        return tuple(made)

    def creation(self, options: Mapping[str, str]) -> tuple[str, ...]:
        """Return the statements with which Vault makes a login."""
        return database_sql.creation(options)

    def revocation(self, options: Mapping[str, str]) -> tuple[str, ...]:
        """Return the statements with which Vault takes it back."""
        return database_sql.revocation(options)

    def excess(self, vault: Vault, options: Mapping[str, str]) -> tuple[str, ...]:
        """Look with the watching login at what the level's group could do; nothing when the level names no group."""
        if "group" not in options:
            return ()
        with watching(vault, options) as target:
            return () if target is None else database_rights.excess(target, options)

    def rehearse(
        self, credential: Credential, options: Mapping[str, str], above: Sequence[Mapping[str, str]]
    ) -> tuple[str, ...]:
        """Log in and try what the level is for, and what it is not for."""
        if not isinstance(credential, Login):
            raise Refused("This is not a login of PostgreSQL.")
        return database_rights.rehearse(credential, options, above)

    def target_steps(self, options: Mapping[str, str]) -> str:
        """Return the SQL for the server's administrator. ``group`` and ``manager`` are there."""
        manager, where = options["manager"], f"{options['host']}:{options['port']}"
        steps = database_sql.target_steps(
            options["database"],
            manager,
            [options["group"]],
            is_watched="watch_role" in options,
            audit=options.get("audit", "none"),
        )
        first = f"-- At {where}, in the database {options['database']!r}, as a superuser; then: \\password {manager}"
        return f"{first}\n{steps}"


def _quoted(value: str) -> str:
    """Quote one value of a libpq connection string."""
    if value and not any(c in value for c in " '\\"):
        return value
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


@contextmanager
def watching(vault: Vault, options: Mapping[str, str]) -> Iterator[psycopg.Connection[tuple[Any, ...]] | None]:
    """Open a session that can only look; None when the level has no role for that. Raises Unavailable."""
    if "watch_role" not in options:
        yield None
        return
    path = watch_path(options)
    where = f"{options['host']}:{options['port']}"
    login = vault.watcher(path)
    failure: Unavailable | None = None
    try:
        with psycopg.connect(
            host=options["host"],
            port=int(options["port"]),
            dbname=options["database"],
            user=login.data.get("username"),
            password=login.data.get("password"),
            connect_timeout=_SECONDS,
            options=f"-c statement_timeout={_SECONDS}s",
            application_name="breakglass watch",
            autocommit=True,
        ) as session:
            yield session
    except psycopg.Error:
        # A login that the server lost (a restore) is not asked for again and again.
        vault.forget_watcher(path)
        failure = Unavailable(f"The database at {where} cannot be looked at, so nothing is shown to be gone.")
    if failure is not None:
        raise failure


def one(
    session: psycopg.Connection[tuple[Any, ...]], query: LiteralString, values: Mapping[str, str] | None = None
) -> tuple[Any, ...]:
    """Return the only row of an answer. Raises Unavailable."""
    row = session.execute(query, values).fetchone()
    if row is None:
        raise Unavailable("The database did not answer what it was asked.")
    return row
