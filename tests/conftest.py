"""What do the tests run on?

Rules
-----
* Real databases: a test that asks for ``database`` runs twice, on SQLite and on PostgreSQL, on an empty one of its own.
* One PostgreSQL server for a test process; each test's database is copied from a template, which is quick.
"""

from __future__ import annotations

import itertools
import shutil
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import psycopg
import pytest
from hypothesis import settings

from bot.demo.parts import Postgres
from storage.database import Database

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# No test may fail because the machine was busy for a moment.
settings.register_profile("house", deadline=None)
settings.load_profile("house")

_TEMPLATE: Final = "breakglass_template"
_numbers: Final = itertools.count(1)


@pytest.fixture
def now() -> datetime:
    """A moment in the night."""
    return datetime(2026, 3, 1, 2, 0, tzinfo=UTC)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A real PostgreSQL server; its databases are thrown away, so nothing waits for the disk."""
    with Postgres(tmp_path_factory.mktemp("postgres"), durable=False) as server:
        _execute(server, f"CREATE DATABASE {_TEMPLATE}")
        _set_up(server.url_for(_TEMPLATE))
        yield server


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file that has the tables and nothing in them."""
    file = tmp_path_factory.mktemp("sqlite") / "template.db"
    _set_up(f"sqlite:///{file}")
    return file


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database of one's own that has the tables and nothing in them."""
    if request.param == "sqlite":
        shutil.copyfile(request.getfixturevalue("sqlite_template"), tmp_path / "breakglass.db")
        yield f"sqlite:///{tmp_path / 'breakglass.db'}"
        return
    server: Postgres = request.getfixturevalue("postgres")
    name = f"test_{next(_numbers)}"
    _execute(server, f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE}")
    yield server.url_for(name)
    _execute(server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database of one's own, set up and empty."""
    database = Database(database_url)
    yield database
    database.close()


def _set_up(url: str) -> None:
    database = Database(url)
    database.setup()
    database.close()


def _execute(server: Postgres, statement: str) -> None:
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute(statement)
