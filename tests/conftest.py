"""What do the tests run on?

Rules
-----
* Real databases: a test that asks for ``database`` runs twice, on SQLite and on PostgreSQL, on an empty one of its own.
* One PostgreSQL server for a test process. Its database is emptied between the tests (2 ms), not made anew (250 ms):
  whoever is still connected is cut off, and the guards of the log are lifted for that moment and put back.
  A test that changes tables or guards makes a database of its own from the template (``fresh_postgresql``).
"""

from __future__ import annotations

import itertools
import shutil
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import psycopg
import pytest
from hypothesis import settings
from sqlmodel import SQLModel

from bot.demo.parts import Postgres
from storage.database import Database

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Named here, once, so that their own asserts are rewritten before anything imports them.
pytest_plugins = ("real_parts", "counter", "mariadb_part", "sshd_part", "pgaudit_part")

# No test may fail because the machine was busy for a moment.
settings.register_profile("house", deadline=None)
settings.load_profile("house")

_TEMPLATE: Final = "breakglass_template"
_SHARED: Final = "breakglass_shared"
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


@pytest.fixture(scope="session")
def postgres_shared(postgres: Postgres) -> Iterator[tuple[str, psycopg.Connection[tuple[object, ...]]]]:
    """The URL of the database that the tests use one after the other, and the connection that empties it."""
    _execute(postgres, f"CREATE DATABASE {_SHARED} TEMPLATE {_TEMPLATE}")
    with psycopg.connect(postgres.dsn_for(_SHARED), autocommit=True) as connection:
        yield postgres.url_for(_SHARED), connection


@pytest.fixture
def fresh_postgresql(postgres: Postgres) -> Iterator[str]:
    """The URL of a PostgreSQL database of one's own, to do with as one likes."""
    name = f"fresh_{next(_numbers)}"
    _execute(postgres, f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE}")
    yield postgres.url_for(name)
    _execute(postgres, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database that has the tables and nothing in them."""
    if request.param == "sqlite":
        shutil.copyfile(request.getfixturevalue("sqlite_template"), tmp_path / "breakglass.db")
        return f"sqlite:///{tmp_path / 'breakglass.db'}"
    url, connection = request.getfixturevalue("postgres_shared")
    connection.execute(_EMPTY)
    return str(url)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database that is set up and empty."""
    database = Database(database_url)
    yield database
    database.close()


_EMPTY: Final = "; ".join(
    (
        """SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
           WHERE datname = current_database() AND pid <> pg_backend_pid()""",
        "BEGIN",
        "ALTER TABLE entry DISABLE TRIGGER USER",
        "ALTER TABLE pruned DISABLE TRIGGER USER",
        *(f'DELETE FROM "{table.name}"' for table in reversed(SQLModel.metadata.sorted_tables)),
        *(
            f"ALTER TABLE entry ENABLE ALWAYS TRIGGER {guard}"
            for guard in ("entry_no_change", "entry_no_truncate", "entry_only_next", "entry_only_pruned")
        ),
        *(
            f"ALTER TABLE pruned ENABLE ALWAYS TRIGGER {guard}"
            for guard in ("pruned_only_now", "pruned_no_change", "pruned_no_truncate")
        ),
        "COMMIT",
    )
)


def _set_up(url: str) -> None:
    database = Database(url)
    database.setup()
    database.close()


def _execute(server: Postgres, statement: str) -> None:
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute(statement)
