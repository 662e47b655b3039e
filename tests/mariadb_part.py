"""Which real MariaDB do the tests share, and how does one come up and go down?

Debian's ``mariadb-server-core`` and ``mariadb-client-core`` are the programs; no service of the system is started. A
server is used as those of ``bot/demo/parts.py`` are::

    with MariaDB(directory) as server:
        ...

A pytest plugin: the fixture ``maria`` is one server and one OpenBao for a test process, set up as for the bot. Tests
leave both running and unsealed.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pymysql
import pytest
from real_parts import Real

from bot.demo.parts import HOST, OpenBao, Part, PartFailed, launch, may_enter, unprivileged
from bot.demo.vault_setup import MANAGER, Target, set_up
from workflows.engines import ENGINES, LevelSettings
from workflows.errors import Unavailable
from workflows.vault_plan import LevelSetup

if TYPE_CHECKING:
    import pwd
    from collections.abc import Iterator, Mapping

    from real_parts import Grant

    from bot.demo.vault_setup import BotLogin
    from workflows.engines import Credential
    from workflows.vault import Vault

_ENV: Final = {"PATH": f"{os.defpath}:/usr/sbin:/sbin", "LC_ALL": "C", "TZ": "UTC"}


class MariaDB(Part):
    """A MariaDB server with password logins over TCP, on loopback, without a system service.

    ``settings`` are added to the server's command line as ``--name=value``.
    """

    name = "MariaDB"
    host: Final = HOST

    def __init__(
        self, directory: Path | str, *, port: int = 0, durable: bool = True, settings: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(directory, port=port)
        self.durable = durable
        self.password = secrets.token_urlsafe(18)
        self._settings = dict(settings or {})
        self._owner: pwd.struct_passwd | None = None
        self._data = Path()
        self._scratch = Path()
        self._outside: Path | None = None

    def __repr__(self) -> str:
        return f"MariaDB('{HOST}:{self.port}')"

    def connect(self, **more: Any) -> pymysql.Connection:
        """Open a session, the superuser's unless ``user`` and ``password`` say otherwise."""
        words = {"host": HOST, "port": self.port, "user": "root", "password": self.password, "autocommit": True}
        return pymysql.connect(**(words | {"connect_timeout": 20, "read_timeout": 120} | more))

    def execute(self, *statements: str, database: str | None = None) -> list[tuple[Any, ...]]:
        """Run statements as the superuser and return the rows of the last."""
        with self.connect(database=database) as session, session.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return list(cursor.fetchall())

    def script(self, text: str) -> None:
        """Run a script as the superuser with the program ``mariadb``, as an administrator does."""
        words = ["mariadb", "--no-defaults", "--protocol=tcp", f"--host={HOST}", f"--port={self.port}", "--user=root"]
        done = subprocess.run(
            words, input=text.encode(), env={**_ENV, "MYSQL_PWD": self.password}, capture_output=True, check=False
        )
        assert not done.returncode, done.stderr.decode()

    def close(self) -> None:
        """Stop for good and remove what had to stand outside ``directory``."""
        super().close()
        if self._outside is not None:
            shutil.rmtree(self._outside, ignore_errors=True)
            self._outside = None
            self._data = Path()

    def _launch(self) -> None:
        server = shutil.which("mariadbd", path=_ENV["PATH"])
        if server is None:
            raise PartFailed("MariaDB is not installed: apt-get install mariadb-server-core mariadb-client-core.")
        if not self._data.name:
            self._settle()
        settings = {"datadir": str(self._data), "bind-address": HOST, "port": str(self.port), "skip-name-resolve": "1"}
        settings |= {
            "socket": str(self._data / "socket"),
            "pid-file": str(self._data / "pid"),
            "tmpdir": str(self._scratch),
        }
        settings |= {"innodb-buffer-pool-size": "16M", "innodb-log-file-size": "8M", "max-connections": "200"}
        settings |= {"performance-schema": "0", "event-scheduler": "ON", "secure-file-priv": str(self._data)}
        if not self.durable:
            settings |= {"innodb-flush-log-at-trx-commit": "0", "innodb-flush-method": "nosync", "sync-binlog": "0"}
        words = [f"--{name}={value}" for name, value in (settings | self._settings).items()]
        self._running = launch(
            [server, "--no-defaults", *words],
            log=self.log,
            polite=signal.SIGTERM,
            owner=self._owner,
            scratch=self._outside,
            env=_ENV,
        )
        self._wait(self._is_ready)

    def _is_ready(self) -> bool:
        try:
            self.connect(connect_timeout=2).close()
        except pymysql.Error:
            return False
        return True

    def _settle(self) -> None:
        """Choose who runs it and where, and create its system tables (``mariadb-install-db``)."""
        data = self.directory / "mysql"
        if os.geteuid() == 0:
            self._owner = unprivileged()
            if not may_enter(self.directory, self._owner):
                self._outside = Path(tempfile.mkdtemp(prefix="breakglass-mariadb-"))
                self._outside.chmod(0o711)
                data = self._outside / "mysql"
        # Of its own: a server that starts removes whatever temporary tables are there, those of its neighbours as well.
        scratch = data.with_name("scratch")
        owner: dict[str, Any] = {}
        if self._owner is not None:
            owner = {"user": self._owner.pw_uid, "group": self._owner.pw_gid, "extra_groups": []}
        for folder in (data, scratch):
            folder.mkdir(mode=0o700)
            if self._owner is not None:
                os.chown(folder, self._owner.pw_uid, self._owner.pw_gid)
        self._data, self._scratch = data, scratch
        places = ["--no-defaults", f"--datadir={data}", f"--tmpdir={scratch}"]
        words = [*places, "--auth-root-authentication-method=normal", "--skip-test-db"]
        made = subprocess.run(
            ["mariadb-install-db", *words, "--skip-name-resolve"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            cwd="/",
            env=_ENV,
            **owner,
        )
        if made.returncode:
            raise PartFailed(f"MariaDB cannot be set up: {made.stderr.decode(errors='replace').strip()[-500:]}")
        # Before it listens for the first time: the root without a password is never reachable.
        first = "".join(
            (
                "FLUSH PRIVILEGES;\n",
                f"CREATE OR REPLACE USER root@'{HOST}' IDENTIFIED BY '{self.password}';\n",
                f"GRANT ALL PRIVILEGES ON *.* TO root@'{HOST}' WITH GRANT OPTION;\n",
                "DELETE FROM mysql.global_priv WHERE User = '' OR (User = 'root' AND Host <> '127.0.0.1');\n",
                "FLUSH PRIVILEGES;\n",
            )
        )
        server = str(shutil.which("mariadbd", path=_ENV["PATH"]))
        settled = subprocess.run(
            [server, *places, "--bootstrap", "--innodb-buffer-pool-size=16M", "--innodb-log-file-size=8M"],
            input=first.encode(),
            capture_output=True,
            check=False,
            cwd="/",
            env=_ENV,
            **owner,
        )
        if settled.returncode:
            raise PartFailed(f"MariaDB cannot be set up: {settled.stderr.decode(errors='replace').strip()[-500:]}")


# ------------------------------------------------------------------------------------------------ set up for the bot

SHOP: Final = """
CREATE DATABASE shop;
CREATE TABLE shop.orders (id int PRIMARY KEY, status varchar(20) NOT NULL, note varchar(80) NOT NULL DEFAULT '');
CREATE TABLE shop.payment_cards (id int PRIMARY KEY, card_token varchar(80) NOT NULL);
INSERT INTO shop.orders SELECT seq, IF(seq > 560, 'stuck', 'paid'), '' FROM shop_numbers;
INSERT INTO shop.payment_cards SELECT seq, MD5(seq) FROM shop_numbers;
GRANT SELECT ON shop.orders TO bg_shop_ro;
GRANT SELECT, INSERT, UPDATE, DELETE ON shop.orders TO bg_shop_rw;
""".replace(
    "shop_numbers",
    "(WITH RECURSIVE n(seq) AS (SELECT 1 UNION ALL SELECT seq + 1 FROM n WHERE seq < 600) "
    "SELECT seq FROM n) AS numbers",
)


@dataclass
class Maria(Real):
    """A MariaDB in the place of the PostgreSQL."""

    pg: MariaDB  # type: ignore[assignment]
    wide: LevelSetup  # for attackers: as many sessions at once as a level may allow

    def set_up(self) -> BotLogin:
        """Set Vault up (again)."""
        return set_up(self.bao.addr, self.bao.root_token, self.target, [self.read, self.write, self.wide])

    def connect(self, credential: Credential, **more: Any) -> pymysql.Connection:
        """Log in at MariaDB with the credential."""
        words = {"user": credential.username, "password": credential.password, "database": credential.database}
        return self.pg.connect(**(words | more))

    def gone(self, vault: Vault, grant: Grant, known: frozenset[str] = frozenset()) -> bool:
        """Whether the engine says that nothing of the grant is left."""
        return ENGINES["mariadb"].is_gone(vault, grant, known)

    def proven(self, vault: Vault, grant: Grant) -> bool:
        """Whether the engine shows it to be gone at the target, within what the desk would wait."""

        def is_shown() -> bool:
            try:
                return bool(ENGINES["mariadb"].prove(vault, grant))
            except Unavailable as error:
                if error.reason != "left":
                    raise
                return False

        return self.until(is_shown)

    def sessions(self, username: str) -> int:
        """Count the open sessions of a login. Who only knocks, and will be refused, is listed under "Connect"."""
        where = f"user = '{username}' AND command NOT IN ('Connect', 'Killed')"
        return int(self.pg.execute(f"SELECT COUNT(*) FROM information_schema.processlist WHERE {where}")[0][0])

    def login_exists(self, username: str) -> bool:
        """Whether MariaDB has the account."""
        return bool(self.pg.execute(f"SELECT 1 FROM mysql.global_priv WHERE user = '{username}'"))


def maria_level(server: MariaDB, name: str, group: str, **more: str) -> LevelSetup:
    """Return a level at ``server`` whose Vault role is ``name``."""
    options = {"mount": "maria", "role": name, "host": server.host, "port": str(server.port), "database": "shop"}
    options |= {"watch_role": "shop-watch", "group": group, "manager": MANAGER}
    settings = LevelSettings(engine="mariadb", token_role=f"bg-{name}", options=options | more)
    return LevelSetup(settings, timedelta(minutes=30), f"shop/{name}")


def prepare_maria(server: MariaDB, *levels: LevelSetup) -> Target:
    """Do what an administrator does at the server, with the program that an administrator does it with."""
    for level in levels:
        server.script(ENGINES["mariadb"].target_steps(level.settings.options))
    password = secrets.token_urlsafe(24)
    server.script(f"ALTER USER {MANAGER}@'%' IDENTIFIED BY '{password}' ACCOUNT UNLOCK; {SHOP}")
    return Target(server.host, server.port, "shop", MANAGER, password)


@pytest.fixture(scope="session")
def maria(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Maria]:
    """Both servers, up and set up."""
    folder = tmp_path_factory.mktemp("maria")
    with MariaDB(folder / "mariadb") as server, OpenBao(folder / "openbao") as bao:
        read = maria_level(server, "shop-ro", "bg_shop_ro")
        write = maria_level(server, "shop-rw", "bg_shop_rw")
        wide = maria_level(server, "shop-wide", "bg_shop_ro", connections="20")
        target = prepare_maria(server, read, write)
        login = set_up(bao.addr, bao.root_token, target, [read, write, wide])
        yield Maria(server, bao, target, read, write, login, wide)


@pytest.fixture
def maria_vault(maria: Maria) -> Vault:
    """Return the bot's Vault, not logged in yet."""
    return maria.vault()
