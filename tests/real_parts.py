"""Which real Vault and PostgreSQL do the tests share? One of each per test process, set up as for the bot.

A pytest plugin: a test file names it in ``pytest_plugins``. Tests leave both running and unsealed.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import psycopg
import pytest

from bot.demo.parts import OpenBao, Postgres
from bot.demo.vault_setup import MANAGER, prepare_target, set_up
from workflows.engines import ENGINES, LevelSettings, Wish
from workflows.vault import ChildToken, Vault
from workflows.vault_plan import LevelSetup

WATCH_ROLE = "orders-watch"
_names: Final = itertools.count(1)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from bot.demo.vault_setup import BotLogin, Target
    from workflows.engines import Credential


@dataclass
class Grant:
    """What an engine is told of a grant (a stored grant has more)."""

    accessor: str | None
    lease_id: str | None
    lease_prefix: str
    intended_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    request_id: str = "BG-7KQ2"
    identity: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    number: int = 1
    expires_at: datetime | None = None


@dataclass
class Real:
    """The two servers, the levels that were set up, and the bot's login."""

    pg: Postgres
    bao: OpenBao
    target: Target
    read: LevelSetup
    write: LevelSetup
    login: BotLogin
    rehearsal: LevelSetup | None = field(default=None, kw_only=True)

    def vault(self) -> Vault:
        """Return a new Vault of the bot's."""
        return Vault(self.bao.addr, role_id=self.login.role_id, secret_id=self.login.secret_id)

    def set_up(self) -> BotLogin:
        """Set Vault up (again)."""
        return set_up(
            self.bao.addr,
            self.bao.root_token,
            self.target,
            [one for one in (self.read, self.write, self.rehearsal) if one],
        )

    def root_vault(self) -> Vault:
        """Return a Vault that may do everything."""
        return Vault(self.bao.addr, token=self.bao.root_token)

    def root_child(self) -> ChildToken:
        """Return the root token in the shape of a child token."""
        return ChildToken("", self.bao.root_token, timedelta(hours=1))

    def open(
        self, vault: Vault, level: LevelSetup | None = None, ttl: timedelta = timedelta(minutes=5), name: str = ""
    ) -> tuple[Credential, Grant, ChildToken]:
        """Open a grant as the desk does; returns the credential, the grant and its child token."""
        name = name or f"BG-{next(_names):04}"  # no two requests have the same one: a proof counts all that carry it
        settings = (level or self.read).settings
        engine = ENGINES[settings.engine]
        intended_at = datetime.now(UTC)
        child = vault.open_child(settings.token_role, ttl, display_name=name, metadata={"request": name})
        credential = engine.issue(vault, child, settings.options, Wish(name, "U0RITA"))
        grant = Grant(
            child.accessor,
            credential.lease_id,
            engine.lease_prefix(settings.options),
            intended_at,
            name,
            credential.username,
            settings.options,
        )
        return credential, grant, child

    def connect(self, credential: Credential, **more: object) -> psycopg.Connection:
        """Log in at PostgreSQL with the credential."""
        return psycopg.connect(
            host=credential.host,
            port=credential.port,
            dbname=more.pop("dbname", credential.database),
            user=credential.username,
            password=credential.password,
            autocommit=True,
            connect_timeout=5,
            **more,
        )

    @staticmethod
    def until(what: Callable[[], bool], seconds: float = 15.0) -> bool:
        """Return whether ``what`` came true within ``seconds``."""
        late = time.monotonic() + seconds
        while not what():
            if time.monotonic() > late:
                return False
            time.sleep(0.01)
        return True

    def gone(self, vault: Vault, grant: Grant, known: frozenset[str] = frozenset()) -> bool:
        """Whether the engine says that nothing of the grant is left."""
        return ENGINES["database"].is_gone(vault, grant, known)

    def take_back(self, vault: Vault, grant: Grant) -> bool:
        """Revoke the grant and return whether it was gone in time."""
        vault.revoke_accessor(grant.accessor)
        return self.until(lambda: self.gone(vault, grant))

    def sessions(self, username: str) -> int:
        """Count the open sessions of a login."""
        with psycopg.connect(self.pg.dsn) as server:
            row = server.execute("SELECT count(*) FROM pg_stat_activity WHERE usename = %s", [username]).fetchone()
        return row[0]

    def login_exists(self, username: str) -> bool:
        """Whether PostgreSQL has the role."""
        with psycopg.connect(self.pg.dsn) as server:
            return server.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [username]).fetchone() is not None


def level_for(pg: Postgres, name: str, group: str, database: str = "orders", **more: str) -> LevelSetup:
    """Return a level at ``pg`` whose Vault role is ``name``; ``more`` are further options."""
    settings = LevelSettings(
        engine="database",
        token_role=f"bg-{name}",
        options={
            "mount": "database",
            "role": name,
            "host": pg.host,
            "port": str(pg.port),
            "database": database,
            "watch_role": WATCH_ROLE,
            "group": group,
            "manager": MANAGER,
            **more,
        },
    )
    return LevelSetup(settings, timedelta(minutes=30), name)


@pytest.fixture(scope="session")
def real(tmp_path_factory) -> Iterator[Real]:
    """Both servers, up and set up."""
    folder = tmp_path_factory.mktemp("parts")
    with Postgres(folder / "postgres") as pg, OpenBao(folder / "openbao") as bao:
        target = prepare_target(pg)
        read = level_for(pg, "orders-ro", "bg_orders_ro")
        write = level_for(pg, "orders-rw", "bg_orders_rw", connections="8")
        rehearsal = level_for(pg, "orders-rehearsal", "bg_orders_rehearsal", read_only="true", statement_timeout="1m")
        login = set_up(bao.addr, bao.root_token, target, [read, write, rehearsal])
        yield Real(pg, bao, target, read, write, login, rehearsal=rehearsal)


@pytest.fixture
def vault(real: Real) -> Vault:
    """Return the bot's Vault, not logged in yet."""
    return real.vault()
