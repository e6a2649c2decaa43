"""Statements of SQLAlchemy's that are turned into text once, and then run by the driver itself.

What a statement goes through on its way (the look into the cache of compiled ones, a context, a
result) costs several times what SQLite takes to run it. That is nothing for most; it is most of
the cost of what every admission and every block of an upload runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.expression import ClauseElement

__all__ = ["Prepared", "run_plain"]

_DIALECT: Any = sqlite.dialect()


def run_plain(connection: Connection, statement: str, values: tuple[Any, ...] = ()) -> int:
    """Run this text by the driver; how many rows it changed. Raises what SQLAlchemy would."""
    driver: Any = connection.connection.dbapi_connection
    try:
        return int(driver.execute(statement, values).rowcount)
    except connection.dialect.loaded_dbapi.Error as error:
        raise _as_sqlalchemy(connection, statement, error) from error


def _as_sqlalchemy(connection: Connection, statement: str, error: Exception) -> Exception:
    base: Any = connection.dialect.loaded_dbapi.Error
    return DBAPIError.instance(statement, None, error, base)


class Prepared:
    """One statement. ``columns`` are those that an INSERT or an UPDATE sets from its values.

    For columns whose values the driver takes as they are: numbers, text, and truth, which it
    takes for a number. What comes back is as the driver has it, so truth is a number. Every value
    is handed in by name; a constant of the statement is a `literal_column`.
    """

    def __init__(self, statement: ClauseElement, columns: Iterable[str] | None = None) -> None:
        names = None if columns is None else list(columns)
        compiled: Any = statement.compile(dialect=_DIALECT, column_keys=names)
        self.text = str(compiled)
        self._names: tuple[str, ...] = tuple(compiled.positiontup)

    def run(self, connection: Connection, values: Mapping[str, Any]) -> int:
        """Run it; how many rows it changed. Raises what SQLAlchemy would."""
        return run_plain(connection, self.text, tuple([values[name] for name in self._names]))

    def rows(self, connection: Connection, values: Mapping[str, Any]) -> list[Any]:
        """All that it finds, read here: a row that is damaged says so when it is fetched."""
        driver: Any = connection.connection.dbapi_connection
        try:
            found = driver.execute(self.text, tuple([values[name] for name in self._names]))
            rows: list[Any] = found.fetchall()
            return rows
        except connection.dialect.loaded_dbapi.Error as error:
            raise _as_sqlalchemy(connection, self.text, error) from error
