"""Does the database have the columns that this version writes?

Rules
-----
* What can be added without a decision is added: a column that may be empty, and that no constraint or index is about.
* Everything else is named and refused. A column that must have a value needs somebody who says which; a column of a
  newer version, which this one would leave empty, needs that version.
* Nothing is ever dropped or changed.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import inspect
from sqlalchemy.schema import CreateColumn
from sqlmodel import SQLModel

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

log = logging.getLogger(__name__)

# How SQLite and PostgreSQL name a column that is not there, in a question and in an insert.
_NAMED: Final = re.compile(r'(?:no such column: |has no column named |column )"?(?:[a-z_]+\.)?([a-z_]+)"?')


def complete(connection: Connection) -> list[str]:
    """Add what can be added to the tables that stand; return what is wrong besides, as ``table.column``."""
    found = inspect(connection)
    quote = connection.dialect.identifier_preparer.quote
    wrong: list[str] = []
    for table in SQLModel.metadata.sorted_tables:
        standing = {str(column["name"]): column for column in found.get_columns(table.name)}
        bound = {column.name for index in table.indexes for column in index.columns}
        bound |= {column.name for constraint in table.constraints for column in getattr(constraint, "columns", ())}
        for column in table.columns:
            if column.name in standing:
                continue
            if not column.nullable or column.name in bound:
                wrong.append(f"{table.name}.{column.name}")
                continue
            words = CreateColumn(column).compile(dialect=connection.dialect)
            connection.exec_driver_sql(f"ALTER TABLE {quote(table.name)} ADD COLUMN {words}")
            log.warning("an older database: the table %s now has the column %s", table.name, column.name)
        wrong += [f"{table.name}.{name}" for name, column in standing.items() if _is_newer(name, column, table.columns)]
    return wrong


def _is_newer(name: str, column: Any, known: Any) -> bool:  # noqa: ANN401 - as the inspector gives it
    """Whether it is a column of another version, into which this one would have to write something."""
    return name not in known and not column["nullable"] and column.get("default") is None


def lacking_column(words: str) -> str | None:
    """Return the column of ours that a driver's error says is not there; None: it is about something else."""
    match = _NAMED.search(words)
    ours = {column.name for table in SQLModel.metadata.sorted_tables for column in table.columns}
    return match[1] if match is not None and match[1] in ours else None
