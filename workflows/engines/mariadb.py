"""How does a MariaDB login come out of Vault's database engine, and how is it shown to be gone?

Rules
-----
* What is left at Vault is looked for as for every lease (``leases.py``).
* Nobody who can log in has MariaDB's right to make accounts, which is the right to change everybody's password: logins
  are made, ended and looked at by procedures of an account that is locked (``mariadb.sql``, which also has the order
  that holds against a client that keeps reconnecting, or that stops in the middle of logging in).
* Whether the login can still do something is then seen at the target, with a login of the bot's that may call the
  procedures that look and nothing else (``watch_role``). It sees counts and names, and nobody's statements.
"""

from __future__ import annotations

import re
import shlex
import ssl
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import pymysql

from workflows.engines import mariadb_rights
from workflows.engines.database_sql import SPAN
from workflows.engines.logins import Logins
from workflows.engines.naming import is_local, like_exactly, mark_of, watch_path
from workflows.engines.seam import Session, Write
from workflows.errors import Refused, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import timedelta

    from workflows.engines import Credential, Held
    from workflows.vault import Vault

# Roles stand in statements as they are.
IDENTIFIER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}", re.ASCII)

# A person needs a client and a second one, not two hundred.
CONNECTIONS: Final = 2
MOST_CONNECTIONS: Final = 20
WATCH_GROUP: Final = "bg_watch"
WATCH_CONNECTIONS: Final = 8
WATCH_TTL: Final = 3600  # seconds

# As at PostgreSQL: the request first, then letters that keep two credentials of one request apart. Shorter than there,
# since MySQL's names end at 32 characters.
USERNAME: Final = '{{ printf "%s-%s" (.DisplayName | replace "token-" "" | truncate 20) (random 8) | lowercase }}'
REVOCATION: Final = ("CALL breakglass.end_login('{{name}}')",)

_UNITS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
_SECONDS: Final = 5  # to connect, and for an answer


@dataclass(frozen=True, slots=True)
class Login:
    """A MariaDB account that Vault made for one grant."""

    username: str
    password: str = field(repr=False)
    host: str
    port: int
    database: str
    lease_id: str
    ttl: timedelta
    is_verified: bool = False

    def lines(self) -> tuple[str, ...]:
        """Return the line that opens a session, quoted for a POSIX shell.

        The password is in the environment, which only the person's own processes and root can read; among the
        arguments every local user could list it, and a file (``--defaults-extra-file``) would stay behind. Without
        ``--no-defaults`` a password in a ``.my.cnf`` would win over the environment's.
        """
        return (f"MYSQL_PWD={shlex.quote(self.password)} mysql {shlex.join(self.arguments())}",)

    def arguments(self) -> tuple[str, ...]:
        """Return the client's arguments, none of which is a secret."""
        words = {"host": self.host, "port": str(self.port), "user": self.username, "database": self.database}
        # Never the local socket, whatever the host is called: another server may listen there.
        verified = ("--ssl-verify-server-cert",) if self.is_verified else ()
        options = (f"--{name}={value}" for name, value in words.items())
        return ("--no-defaults", "--protocol=tcp", *verified, *options)


class MariaDB(Logins[Login]):
    """Vault's database secrets engine with its MySQL plugin, at a MariaDB; one Vault role per level."""

    keys: Final = {
        "mount": True,
        "role": True,
        "host": True,
        "port": True,
        "database": True,
        "watch_role": False,  # of the same mount: what the bot looks at the target with
        "tls": False,
        # What the role is made of; Vault is set up by these, and the bot does not need them.
        "connection": False,
        "group": False,
        "manager": False,
        "connections": False,
        "statement_timeout": False,
        "read_only": False,
    }
    set_up_by: Mapping[str, str] = MappingProxyType(
        {
            "group": "the role at MariaDB whose rights its logins get",
            "manager": "the account with which Vault makes them",
        }
    )
    program: Final = "mysql"

    def problems(self, options: Mapping[str, str]) -> dict[str, str]:
        """Return what is wrong, by key."""
        found = super().problems(options)
        if options.get("tls", "verify") not in {"verify", "disable"}:
            found["tls"] = "It is verify or disable."
        for key in ("group", "manager"):
            if key in options and not IDENTIFIER.fullmatch(options[key]):
                found[key] = f"{options[key]!r} is not the name of a role of your own: letters, digits and _."
        if options.get("group") in {WATCH_GROUP, "root", "PUBLIC", "public"}:
            found["group"] = f"{options['group']!r} is not a role whose rights can be lent: make one for this level."
        connections = options.get("connections", str(CONNECTIONS))
        if not re.fullmatch(r"[1-9][0-9]?", connections) or int(connections) > MOST_CONNECTIONS:
            found["connections"] = f"The sessions at once are a whole number from 1 to {MOST_CONNECTIONS}."
        if "statement_timeout" in options and not SPAN.fullmatch(options["statement_timeout"]):
            found["statement_timeout"] = "A statement's longest time is written as 500ms, 30s, 5m or 1h."
        if options.get("read_only", "true") not in {"true", "false"}:
            found["read_only"] = 'Write "true" or "false", in quotes.'
        return found

    def credential(
        self, options: Mapping[str, str], data: Mapping[str, object], lease_id: str, ttl: timedelta
    ) -> Login:
        """Return the login that an answer of Vault's holds. Raises Unavailable when it holds none."""
        username, password = self._name_and_password(options, data)
        return Login(
            username,
            password,
            options["host"],
            int(options["port"]),
            options["database"],
            lease_id,
            ttl,
            is_verified=_is_verified(options),
        )

    def session(self, credential: Credential) -> Session:
        """Return how ``mysql`` is started. The password is in the environment alone."""
        if not isinstance(credential, Login):
            raise TypeError(f"not a database login: {type(credential).__name__}")
        return Session((self.program, *credential.arguments()), {"MYSQL_PWD": credential.password})

    def prove(self, vault: Vault, grant: Held) -> tuple[str, ...]:
        """See that the account does not exist at MariaDB, or is locked, and that no session of it is left."""
        with _watching(vault, grant.options) as target:
            if target is None:
                return ()
            # Not only the name on record. The bot may have died before it recorded one; and a grant's token that was
            # stolen reads again: Vault leaves alone what is being read in the moment of the token's end.
            mark, named = mark_of(grant.request_id), grant.identity or ""
            patterns = [f"{mark}%"] if named.startswith(mark) or not named else [f"{mark}%", like_exactly(named)]
            seen = [_called(target, "look", like)[0] for like in patterns]
        able, there, sessions = (sum(int(number) for number in column) for column in zip(*seen, strict=True))
        if able or sessions:
            raise Unavailable(
                f"Vault says that it is gone, and at {grant.options['host']} {able} logins and {sessions} sessions of "
                "it are left.",
                code="left",
            )
        return ("its account is locked" if there else "its account does not exist", "no session of it is open")

    def identities(self, vault: Vault, options: Mapping[str, str]) -> frozenset[str]:
        """Return the accounts of that server that are named after a request and can log in."""
        with _watching(vault, options) as target:
            if target is None:
                return frozenset()
            rows = _called(target, "marked")
        return frozenset(str(name) for (name,) in rows)

    def writes(self, options: Mapping[str, str], longest: timedelta) -> tuple[Write, ...]:
        """Return the mount, the connection and the roles. Raises Invalid without ``group`` and ``manager``."""
        connection = self.connection_of(options)
        mount, host = options["mount"], options["host"]
        place = f"{f'[{host}]' if ':' in host else host}:{options['port']}"
        seconds = int(longest.total_seconds())
        watched = ("watch_role",) if "watch_role" in options else ()
        made = [
            Write("POST", f"sys/mounts/{mount}", {"type": "database"}, made_once=True),
            Write(
                "POST",
                f"{mount}/config/{connection}",
                {
                    "plugin_name": "mysql-database-plugin",
                    "connection_url": f"{{{{username}}}}:{{{{password}}}}@tcp({place})/"
                    f"?tls={'true' if _is_verified(options) else 'false'}",
                    "username": options["manager"],
                    "username_template": USERNAME,
                    "allowed_roles": sorted(options[key] for key in ("role", *watched)),
                    "max_open_connections": 8,
                    # The manager may not change accounts, but its own password it may.
                    "root_rotation_statements": ["SET PASSWORD = PASSWORD('{{password}}')"],
                },
                secrets=("password",),
                joined=("allowed_roles",),
            ),
            Write(
                "POST",
                f"{mount}/roles/{options['role']}",
                {
                    "db_name": connection,
                    "creation_statements": [
                        _creation(
                            options["group"],
                            options.get("connections", str(CONNECTIONS)),
                            _seconds(options.get("statement_timeout")),
                        )
                    ],
                    "revocation_statements": list(REVOCATION),
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
                        "creation_statements": [_creation(WATCH_GROUP, str(WATCH_CONNECTIONS), str(_SECONDS))],
                        "revocation_statements": list(REVOCATION),
                        "default_ttl": WATCH_TTL,
                        "max_ttl": WATCH_TTL,
                    },
                )
            )
        return tuple(made)

    def excess(self, vault: Vault, options: Mapping[str, str]) -> tuple[str, ...]:
        """Look with the watching login at what the level's group could do; nothing when the level names no group."""
        if "group" not in options:
            return ()
        with _watching(vault, options) as target:
            if target is None:
                return ()
            return mariadb_rights.excess(_called(target, "rights", options["group"]), options)

    def rehearse(
        self, credential: Credential, options: Mapping[str, str], above: Sequence[Mapping[str, str]]
    ) -> tuple[str, ...]:
        """Log in, look at the login's own rights, and read a row."""
        if not isinstance(credential, Login):
            raise Refused("This is not a login of MariaDB.")
        try:
            with _connected(options, credential.username, credential.password, credential.database) as session:
                return mariadb_rights.rehearse(session, above)
        except (pymysql.Error, OSError) as error:
            # Only the kind: the words of a failed statement may repeat it.
            failure = Unavailable(
                f"The credential could not be tried at {credential.host}:{credential.port} ({type(error).__name__})."
            )
        raise failure

    def target_steps(self, options: Mapping[str, str]) -> str:
        """Return the SQL for the server's administrator. ``group`` and ``manager`` are there."""
        group, manager, where = options["group"], options["manager"], f"{options['host']}:{options['port']}"
        procedures = files("workflows.engines").joinpath("mariadb.sql").read_text(encoding="utf-8")
        return f"""-- At {where}, as an administrator, with the program mariadb; it may be run twice.

{procedures}
-- The manager with which Vault makes logins. It cannot log in before it has a password:
-- ALTER USER {manager}@'%' IDENTIFIED BY '…' ACCOUNT UNLOCK;
CREATE USER IF NOT EXISTS {manager}@'%' ACCOUNT LOCK;
GRANT EXECUTE ON PROCEDURE breakglass.open_login TO {manager}@'%';
GRANT EXECUTE ON PROCEDURE breakglass.end_login TO {manager}@'%';

-- The role that is lent. Its rights are yours to give: GRANT … TO it, as narrow as the level's title says.
CREATE ROLE IF NOT EXISTS {group};
GRANT {group} TO breakglass_definer@localhost WITH ADMIN OPTION;
"""


def _creation(group: str, connections: str, seconds: str) -> str:
    return (
        "CALL breakglass.open_login('{{name}}', '{{password}}', "
        f"'{group}', {connections}, {seconds}, '{{{{expiration}}}}')"
    )


def _seconds(span: str | None) -> str:
    """Return a statement's longest time in seconds; 0 is any."""
    found = SPAN.fullmatch(span or "")
    return f"{int(found[1]) * _UNITS[found[2]]:g}" if found else "0"


def _is_verified(options: Mapping[str, str]) -> bool:
    """Whether the server must show a certificate: unless it is on this machine, or the level says no."""
    return options.get("tls", "disable" if is_local(options["host"]) else "verify") == "verify"


@contextmanager
def _watching(vault: Vault, options: Mapping[str, str]) -> Iterator[pymysql.Connection[Any] | None]:
    """Open a session that can only look; None when the level has no role for that. Raises Unavailable."""
    if "watch_role" not in options:
        yield None
        return
    path = watch_path(options)
    where = f"{options['host']}:{options['port']}"
    login = vault.watcher(path)
    failure: Unavailable | None = None
    try:
        with _connected(options, str(login.data.get("username")), str(login.data.get("password"))) as session:
            yield session
    except (pymysql.Error, OSError):
        # A login that the server lost (a restore) is not asked for again and again.
        vault.forget_watcher(path)
        failure = Unavailable(f"The database at {where} cannot be looked at, so nothing is shown to be gone.")
    if failure is not None:
        raise failure


def _connected(
    options: Mapping[str, str], username: str, password: str, database: str | None = None
) -> pymysql.Connection[Any]:
    return pymysql.connect(
        host=options["host"],
        port=int(options["port"]),
        user=username,
        password=password,
        database=database,
        ssl=ssl.create_default_context() if _is_verified(options) else None,
        connect_timeout=_SECONDS,
        read_timeout=_SECONDS,
        write_timeout=_SECONDS,
        autocommit=True,
    )


def _called(session: pymysql.Connection[Any], procedure: str, *words: str) -> tuple[tuple[Any, ...], ...]:
    """Call one of the procedures that look."""
    with session.cursor() as cursor:
        cursor.execute(f"CALL breakglass.{procedure}({', '.join(['%s'] * len(words))})", words)
        return tuple(cursor.fetchall())
