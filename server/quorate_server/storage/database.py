"""The one place that opens the server's database.

SQLite in WAL mode by default, PostgreSQL by URL. ``synchronous=NORMAL`` is enough: a kill loses nothing, and what a
power cut may lose at the end of the log is sent again by the sites, which keep every reply until its round is over.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from sqlalchemy import Engine, MetaData, create_engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

from quorate.errors import DiskFullError, QuorateError, StorageError
from quorate.process.storage_errors import sqlite_refusal

METADATA = MetaData()
_POSTGRESQL_DISK_FULL = "53100"


def open_database(url: str) -> Engine:
    """Open (and on first use create) the database. All tables are declared on ``METADATA`` before this is called.

    From then on a full disk is a DiskFullError, whatever is written.

    Raises:
        StorageError: it cannot be reached, opened or written, or is damaged. DiskFullError.
    """
    engine = create_engine(url)
    event.listen(engine, "handle_error", _translate)
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def _set_pragmas(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
            cursor = connection.cursor()
            for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "busy_timeout=5000"):
                cursor.execute(f"PRAGMA {pragma}")
            cursor.close()

    METADATA.create_all(engine)
    return engine


def _translate(context: ExceptionContext) -> None:
    error = context.original_exception
    if context.connection is None and context.engine is not None:
        raise _cannot_connect(error, context.engine) from error
    if (
        getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        or getattr(error, "sqlstate", None) == _POSTGRESQL_DISK_FULL
    ):
        raise DiskFullError(
            "The disk that holds the server's database is full",
            action="Free some space at the server; what could not be written is sent again by itself",
        ) from error


def _cannot_connect(error: BaseException, engine: Engine) -> QuorateError:
    if isinstance(error, sqlite3.Error):
        return sqlite_refusal(error, "The server's database", Path(engine.url.database or ""))
    return StorageError(
        "The server's database cannot be reached",
        got=str(error).partition("\n")[0],
        action="See that it runs, that `database_url` in server.toml is its address, and the rights of its user",
    )
