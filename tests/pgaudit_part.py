"""Which real PostgreSQL with pgaudit do the tests share? Set up as the capture's ``setup`` says.

A pytest plugin: ``audited`` is one server and one OpenBao for a test process, with a level whose logins are recorded.
Its log is read as a tailer reads it: whole lines, each once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psycopg
import pytest
from real_parts import Real, level_for

from bot.demo.parts import OpenBao, PartFailed, Postgres
from bot.demo.vault_setup import prepare_target, set_up
from workflows.captures import CAPTURES
from workflows.engines import ENGINES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from workflows.captures.seam import Line

_PROGRAMS: Final = Path("/usr/lib/postgresql")
_SETTING: Final = re.compile(r"^([a-z_]+) = '?([^'#\s]+)'?", re.MULTILINE)


def server_settings() -> dict[str, str]:
    """Return the settings that the capture tells the administrator to make; and a name for the file."""
    first = CAPTURES["postgres"].setup({}).split("\n-- 2.", 1)[0]
    return {**dict(_SETTING.findall(first)), "log_filename": "postgresql", "log_rotation_age": "0"}


class PgAudit(Postgres):
    """Debian's newest PostgreSQL with pgaudit. ``recorded`` is the file that it writes its jsonlog to."""

    @property
    def bin(self) -> Path:
        """The folder with its programs."""
        found = [path.parent.parent for path in _PROGRAMS.glob("*/lib/pgaudit.so")]
        if not found:
            raise PartFailed("PostgreSQL with pgaudit is not installed: apt-get install postgresql-15-pgaudit.")
        return max(found, key=lambda path: int(path.name)) / "bin"

    @property
    def recorded(self) -> Path:
        """The file that a tailer follows."""
        return self._data / "log" / "postgresql.json"

    def _initdb(self) -> None:
        self._install = self.bin.parent
        super()._initdb()


@dataclass
class Audited:
    """The real parts, and what was read of the log so far."""

    real: Real
    lines: list[Line] = field(default_factory=list)
    _at: int = 0

    @property
    def pg(self) -> PgAudit:
        """The server."""
        return self.real.pg

    @property
    def end(self) -> int:
        """Where the log ends now."""
        return self.pg.recorded.stat().st_size

    def since(self, at: int) -> Iterator[tuple[int, bytes]]:
        """Give the log's whole lines from ``at`` on, with where each begins."""
        with self.pg.recorded.open("rb") as log:
            log.seek(at)
            for raw in log:
                if not raw.endswith(b"\n"):
                    break
                yield at, raw[:-1]
                at += len(raw)

    def read(self) -> None:
        """Take what the log has more. A line that cannot be read raises."""
        for at, raw in self.since(self._at):
            self._at = at + len(raw) + 1
            self.lines += CAPTURES["postgres"].read(raw)

    def of(self, identity: str) -> list[Line]:
        """Return the lines of one login."""
        return [line for line in self.lines if line.identity == identity]

    def until(self, identity: str, what: Callable[[list[Line]], object]) -> list[Line]:
        """Read until ``what`` is true of the login's lines, and return them."""

        def is_there() -> bool:
            self.read()
            return bool(what(self.of(identity)))

        assert self.real.until(is_there, 60), [line.text[:200] for line in self.of(identity)][-20:]
        return self.of(identity)

    def superuser(self, *statements: str, **more: Any) -> None:
        """Run statements as the server's administrator in the database of the orders."""
        with psycopg.connect(self.pg.dsn_for("orders"), autocommit=True, **more) as server:
            for statement in statements:
                server.execute(statement)


@pytest.fixture(scope="session")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Audited]:
    """Both servers, and the level ``orders-rw`` whose logins are recorded."""
    folder = tmp_path_factory.mktemp("audited")
    with (
        PgAudit(folder / "postgres", durable=False, settings=server_settings()) as pg,
        OpenBao(folder / "openbao") as bao,
    ):
        target = prepare_target(pg)
        read = level_for(pg, "orders-ro", "bg_orders_ro", audit="log_statement", connections="8")
        write = level_for(pg, "orders-rw", "bg_orders_rw", audit="pgaudit", connections="8")
        with psycopg.connect(pg.dsn_for("orders"), autocommit=True) as server:
            for level in (read, write):
                server.execute(ENGINES["database"].target_steps(level.settings.options).encode())
        login = set_up(bao.addr, bao.root_token, target, [read, write])
        yield Audited(Real(pg, bao, target, read, write, login))
