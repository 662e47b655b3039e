"""How are Vault and the target database set up so that the bot can do its work and nothing else?

This is what an administrator does once, by hand or with Terraform, before the bot is installed; the demo and the tests
do it with a root token. Vault's calls are written as they go over the wire, so they can be read as instructions.

Rules
-----
* The bot never reads a credential itself. It makes a child token per grant through a token role whose only policy reads
  one path, and it may look up, list and revoke exactly the leases of its levels.
* The key that signs the log's heads is made in Vault and never leaves it. The bot may sign with it and see its public
  half; a new version of it is an administrator's to make.
* The manager that Vault uses at PostgreSQL is not a superuser: it creates and drops logins, ends their sessions, and
  lends the rights of the levels' group roles.
* A login is taken back in an order that holds against a client that keeps reconnecting (see ``REVOCATION``).
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg import sql

from bot.demo.parts import PartFailed, call
from workflows.engines import ENGINES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import timedelta

    from bot.demo.parts import Answer, Postgres
    from workflows.engines import LevelSettings

APPROLE: Final = "breakglass-bot"
LOG_MOUNT: Final = "transit"
LOG_KEY: Final = "breakglass-log"
ORDERS_SQL: Final = Path(__file__).with_name("orders.sql")

# The child token is named after its request (Vault puts "token-" before it), and so is the login: whoever looks at the
# target's sessions sees which request they belong to. Eight random letters keep two credentials of one request apart.
USERNAME: Final = '{{ printf "%s-%s" (.DisplayName | replace "token-" "" | truncate 40) (random 8) | lowercase }}'

# "{group}" and "{manager}" are filled in here, "{{…}}" by Vault.
# CONNECTION LIMIT: a person needs a psql and a second one, not two hundred.
CREATION: Final = (
    (
        "CREATE ROLE \"{{name}}\" LOGIN INHERIT PASSWORD '{{password}}' VALID UNTIL '{{expiration}}' "
        'CONNECTION LIMIT 3 IN ROLE "{group}"'
    ),
)

# What the bot looks at the target with: its group may connect, and so see who else is connected and which roles there
# are, and has no other right.
WATCH_GROUP: Final = "bg_watch"
WATCH_CREATION: Final = (
    (
        "CREATE ROLE \"{{name}}\" LOGIN INHERIT PASSWORD '{{password}}' VALID UNTIL '{{expiration}}' "
        f'CONNECTION LIMIT 8 IN ROLE "{WATCH_GROUP}"'
    ),
)
_SWEEP: Final = (
    "SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity a LEFT JOIN pg_roles r ON r.oid=a.usesysid "
    "WHERE a.usesysid IS NOT NULL AND a.usesysid<>0 AND r.oid IS NULL"
)
WATCH_REVOCATION: Final = ('DROP ROLE IF EXISTS "{{name}}"', _SWEEP)
WATCH_TTL: Final = 3600  # seconds

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


@dataclass(frozen=True, slots=True)
class Target:
    """A database whose logins Vault manages. ``manager`` is the role with which it does."""

    host: str
    port: int
    database: str
    manager: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class LevelSetup:
    """A level to set up: its settings, the group role at the target whose rights it lends, and its longest time."""

    settings: LevelSettings
    group: str
    longest: timedelta


@dataclass(frozen=True, slots=True)
class BotLogin:
    """What goes into VAULT_ROLE_ID and VAULT_SECRET_ID."""

    role_id: str
    secret_id: str = field(repr=False)


def prepare_target(
    pg: Postgres,
    *,
    database: str = "orders",
    manager: str = "bgmgr",
    groups: Sequence[str] = ("bg_orders_ro", "bg_orders_rw"),
    schema: Path = ORDERS_SQL,
) -> Target:
    """Create the database from ``schema`` and the manager role; both may exist already on that server.

    The manager may lend ``groups``, which ``schema`` creates. Raises :class:`PartFailed`.
    """
    password = secrets.token_urlsafe(24)
    try:
        with psycopg.connect(pg.dsn, autocommit=True) as server:
            known = server.execute("SELECT 1 FROM pg_database WHERE datname = %s", [database]).fetchone()
            if known is None:
                server.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))
            # By default every login may connect to these two, whatever it was made for.
            server.execute("REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC")
        with psycopg.connect(pg.dsn_for(database)) as target:
            if known is None:
                target.execute(schema.read_bytes())
            role = sql.Identifier(manager)
            if target.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [manager]).fetchone() is None:
                target.execute(sql.SQL("CREATE ROLE {}").format(role))
            # INHERIT and pg_signal_backend: without either, revocation fails and the login goes on working.
            target.execute(
                sql.SQL("ALTER ROLE {} LOGIN CREATEROLE INHERIT NOSUPERUSER PASSWORD {}").format(
                    role, sql.Literal(password)
                )
            )
            target.execute(sql.SQL("GRANT pg_signal_backend TO {}").format(role))
            target.execute(sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(sql.Identifier(database), role))
            watch = sql.Identifier(WATCH_GROUP)
            if target.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [WATCH_GROUP]).fetchone() is None:
                target.execute(sql.SQL("CREATE ROLE {}").format(watch))
            target.execute(sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(sql.Identifier(database), watch))
            for group in (*groups, WATCH_GROUP):
                # From PostgreSQL 16 on, CREATEROLE alone does not let it hand out a role that it did not create.
                target.execute(sql.SQL("GRANT {} TO {} WITH ADMIN OPTION").format(sql.Identifier(group), role))
    except psycopg.Error as error:
        failure = PartFailed(f"The database {database!r} cannot be set up: {error}")
    else:
        return Target(pg.host, pg.port, database, manager, password)
    raise failure


def set_up(address: str, root_token: str, target: Target, levels: Iterable[LevelSetup]) -> BotLogin:
    """Set Vault up for the levels of one target and return the bot's login. Doing it twice is fine.

    All levels share the target's mount or not, as their settings say. Raises :class:`PartFailed` with Vault's words.
    """

    def ask(method: str, path: str, body: Mapping[str, object] | None = None) -> Answer:
        return call(address, method, path, body, token=root_token)

    levels = tuple(levels)
    # 1. The database engine: one mount, one connection per database.
    mounted = ask("GET", "sys/mounts")["data"]
    for mount in sorted({level.settings.options["mount"] for level in levels}):
        if f"{mount}/" not in mounted:
            ask("POST", f"sys/mounts/{mount}", {"type": "database"})
        here = [level for level in levels if level.settings.options["mount"] == mount]
        ask(
            "POST",
            f"{mount}/config/{target.database}",
            {
                "plugin_name": "postgresql-database-plugin",
                "connection_url": "postgresql://{{username}}:{{password}}@"
                f"{target.host}:{target.port}/{target.database}?sslmode=disable",
                "username": target.manager,
                "password": target.password,
                # Otherwise the passwords of the logins reach the server's log in clear text.
                "password_authentication": "scram-sha-256",
                "username_template": USERNAME,
                "allowed_roles": sorted({role for level in here for role in _roles(level.settings)}),
                "max_open_connections": 8,
            },
        )
    # 2. Per level: how its login is made and unmade, who may read it, and the token role that hands that right out.
    for level in levels:

        def filled(lines: tuple[str, ...], group: str = level.group) -> list[str]:
            return [line.replace("{group}", group).replace("{manager}", target.manager) for line in lines]

        seconds = int(level.longest.total_seconds())
        settings = level.settings
        ask(
            "POST",
            f"{settings.options['mount']}/roles/{settings.options['role']}",
            {
                "db_name": target.database,
                "creation_statements": filled(CREATION),
                "revocation_statements": filled(REVOCATION),
                "default_ttl": seconds,
                "max_ttl": seconds,
            },
        )
        if "watch_role" in settings.options:
            ask(
                "POST",
                f"{settings.options['mount']}/roles/{settings.options['watch_role']}",
                {
                    "db_name": target.database,
                    "creation_statements": list(WATCH_CREATION),
                    "revocation_statements": list(WATCH_REVOCATION),
                    "default_ttl": WATCH_TTL,
                    "max_ttl": WATCH_TTL,
                },
            )
        only = f"breakglass-{settings.token_role}"
        ask("PUT", f"sys/policies/acl/{only}", {"policy": level_policy(settings)})
        ask(
            "POST",
            f"auth/token/roles/{settings.token_role}",
            {
                "allowed_policies": [only],
                "orphan": True,
                "renewable": False,
                "token_no_default_policy": True,
                "token_type": "service",
                "token_explicit_max_ttl": seconds,
            },
        )
    # 3. The key that signs the log. Transit keys are not exportable unless they are made so.
    if f"{LOG_MOUNT}/" not in mounted:
        ask("POST", f"sys/mounts/{LOG_MOUNT}", {"type": "transit"})
    ask("POST", f"{LOG_MOUNT}/keys/{LOG_KEY}", {"type": "ed25519"})  # one that is there is left as it is
    # 4. The bot itself.
    ask("PUT", f"sys/policies/acl/{APPROLE}", {"policy": bot_policy([level.settings for level in levels])})
    if "approle/" not in ask("GET", "sys/auth")["data"]:
        ask("POST", "sys/auth/approle", {"type": "approle"})
    ask(
        "POST",
        f"auth/approle/role/{APPROLE}",
        {
            "token_policies": [APPROLE],
            "token_no_default_policy": True,
            "token_ttl": 3600,
            "token_max_ttl": 24 * 3600,
            "token_type": "service",
        },
    )
    role_id = str(ask("GET", f"auth/approle/role/{APPROLE}/role-id")["data"]["role_id"])
    secret_id = str(ask("POST", f"auth/approle/role/{APPROLE}/secret-id", {})["data"]["secret_id"])
    return BotLogin(role_id, secret_id)


def level_policy(settings: LevelSettings) -> str:
    """Return the policy (HCL) of a level's child tokens: that one path."""
    path = ENGINES[settings.engine].path(settings.options)
    return f'path "{path}" {{\n  capabilities = ["read"]\n}}\n'


def _roles(settings: LevelSettings) -> list[str]:
    return [settings.options[key] for key in ("role", "watch_role") if key in settings.options]


def bot_policy(levels: Sequence[LevelSettings]) -> str:
    """Return the bot's own policy (HCL): everything that it may do, and it may read no credential."""
    blocks = [
        "# Its own token: look at it, renew it, see what it may do.",
        _allow("auth/token/lookup-self", "read"),
        _allow("auth/token/renew-self", "update"),
        _allow("sys/capabilities-self", "update"),
        _allow("sys/capabilities-accessor", "update"),
        "# Ends of grants. An accessor is known only to whoever made or may list the token.",
        _allow("auth/token/revoke-accessor", "update"),
        _allow("auth/token/lookup-accessor", "update"),
        _allow("sys/leases/lookup", "update"),
    ]
    # Children with only what the bot sends: no policies of its own choice, no period, no id.
    sent = (
        '"ttl" = [], "explicit_max_ttl" = [], "display_name" = [], "meta" = [], '
        '"renewable" = [false], "no_default_policy" = [true]'
    )
    blocks += [
        _allow(f"auth/token/create/{token_role}", "create", "update", only=sent)
        for token_role in sorted({level.token_role for level in levels})
    ]
    prefixes = sorted({ENGINES[level.engine].lease_prefix(level.options) for level in levels})
    for prefix in prefixes:
        # LIST needs sudo, with and without the slash at the end.
        blocks += [_allow(f"sys/leases/lookup/{prefix}{end}", "list", "sudo") for end in ("", "/")]
    watched = sorted(
        f"{level.options['mount']}/creds/{level.options['watch_role']}"
        for level in levels
        if "watch_role" in level.options
    )
    globs = ", ".join(f'"{prefix}/*"' for prefix in (*prefixes, *dict.fromkeys(watched)))
    # Without the globs it could revoke anybody's lease.
    blocks.append(_allow("sys/leases/revoke", "update", only=f'"lease_id" = [{globs}], "sync" = [true, false]'))
    if watched:
        blocks.append("# Logins that can only look at a target, to see there that a credential is gone.")
        blocks += [_allow(path, "read") for path in dict.fromkeys(watched)]
    blocks.append("# The log's heads: sign them, and see what with.")
    blocks.append(_allow(f"{LOG_MOUNT}/sign/{LOG_KEY}", "update", only='"input" = [], "key_version" = []'))
    blocks.append(_allow(f"{LOG_MOUNT}/keys/{LOG_KEY}", "read"))
    blocks.append("# Leases that Vault has given up on.")
    blocks.append(_allow("sys/leases", "read", "list", "sudo"))
    return "\n".join(blocks) + "\n"


def _allow(path: str, *capabilities: str, only: str = "") -> str:
    listed = ", ".join(f'"{one}"' for one in capabilities)
    limits = f"\n  allowed_parameters = {{ {only} }}" if only else ""
    return f'path "{path}" {{\n  capabilities = [{listed}]{limits}\n}}'
