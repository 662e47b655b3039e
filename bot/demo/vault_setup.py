"""How does the demo set up Vault and its target database? As an administrator does, with a root token.

What is done at Vault is ``workflows/vault_plan.py``'s, and the SQL is ``workflows/engines/database_sql.py``'s: the same
that ``breakglass vault policy`` prints for a real installation.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg import sql

from bot.demo.parts import PartFailed, call
from workflows.engines import database_sql
from workflows.vault_plan import APPROLE, APPROLE_MOUNT, plan

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bot.demo.parts import Postgres
    from workflows.vault_plan import LevelSetup

LOG_MOUNT: Final = "transit"
LOG_KEY: Final = "breakglass-log"
MANAGER: Final = "bgmgr"
ORDERS_SQL: Final = Path(__file__).with_name("orders.sql")


@dataclass(frozen=True, slots=True)
class Target:
    """A database whose logins Vault manages. ``manager`` is the role with which it does."""

    host: str
    port: int
    database: str
    manager: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class BotLogin:
    """What goes into VAULT_ROLE_ID and VAULT_SECRET_ID."""

    role_id: str
    secret_id: str = field(repr=False)


def prepare_target(
    pg: Postgres,
    *,
    database: str = "orders",
    manager: str = MANAGER,
    groups: Sequence[str] = ("bg_orders_ro", "bg_orders_rw", "bg_orders_rehearsal"),
    schema: Path = ORDERS_SQL,
) -> Target:
    """Create the database from ``schema`` and the manager role; both may exist already on that server.

    The manager may lend ``groups``, whose rights ``schema`` gives. Raises :class:`PartFailed`.
    """
    password = secrets.token_urlsafe(24)
    try:
        with psycopg.connect(pg.dsn, autocommit=True) as server:
            known = server.execute("SELECT 1 FROM pg_database WHERE datname = %s", [database]).fetchone()
            if known is None:
                server.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))
        with psycopg.connect(pg.dsn_for(database)) as target:
            if known is None:
                target.execute(schema.read_bytes())
            target.execute(database_sql.target_steps(database, manager, groups, is_watched=True).encode())
            target.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(manager), sql.Literal(password)))
    except psycopg.Error as error:
        failure = PartFailed(f"The database {database!r} cannot be set up: {error}")
    else:
        return Target(pg.host, pg.port, database, manager, password)
    raise failure


def set_up(address: str, root_token: str, target: Target, levels: Iterable[LevelSetup]) -> BotLogin:
    """Set Vault up for the levels of one target and return the bot's login. Doing it twice is fine.

    Raises :class:`PartFailed` with Vault's words.
    """

    def ask(method: str, path: str) -> dict[str, str]:
        return dict(call(address, method, path, {} if method == "POST" else None, token=root_token)["data"])

    mounts = {*(f"sys/mounts/{name}" for name in ask("GET", "sys/mounts"))}
    mounts |= {f"sys/auth/{name}" for name in ask("GET", "sys/auth")}
    for write in plan(levels, (LOG_MOUNT, LOG_KEY)).writes:
        if f"{write.path}/" in mounts:
            continue
        body = {**write.body, **dict.fromkeys(write.secrets, target.password)}
        call(address, write.method, write.path, body, token=root_token)
    own = f"auth/{APPROLE_MOUNT}/role/{APPROLE}"
    return BotLogin(ask("GET", f"{own}/role-id")["role_id"], ask("POST", f"{own}/secret-id")["secret_id"])
