"""The one place that opens the server's database.

SQLite in WAL mode by default, PostgreSQL by URL. ``synchronous=NORMAL`` is enough: a kill loses nothing, and what a
power cut may lose at the end of the log is sent again by the sites, which keep every reply until its round is over.

It is opened only as this version's layout has it; ``upgrade`` makes and upgrades it.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from sqlalchemy import Connection, Engine, MetaData, create_engine, event, inspect, make_url, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

from quorate import __version__
from quorate.errors import DiskFullError, QuorateError, StorageError, WrongStateError
from quorate.process.storage_errors import sqlite_refusal

METADATA = MetaData()
LAYOUT = "0002"
"""The layout that the tables are declared in: the newest revision in ``migrations/versions``."""
FIRST_LAYOUT = "0001"
_FIRST_TABLES = {"sites", "earlier_keys", "certificates", "invitations", "studies", "answers", "readiness"} | {
    *("runs", "replies", "results", "sessions", "ledger_heads")
}
_VERSION_TABLE = "alembic_version"
_POSTGRESQL_DISK_FULL = "53100"


def open_database(url: str) -> Engine:
    """Open the database. From then on a full disk is a DiskFullError, whatever is written.

    Raises:
        WrongStateError: it is not there, empty, or of another layout than this version's.
        StorageError: it cannot be reached, opened or written, or is damaged. DiskFullError.
    """
    require_there(url)
    engine = create_engine(url)
    event.listen(engine, "handle_error", _translate)
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def _set_pragmas(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
            cursor = connection.cursor()
            for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "busy_timeout=5000"):
                cursor.execute(f"PRAGMA {pragma}")
            cursor.close()

    try:
        with engine.connect() as connection:
            _require_newest(require_tables(layout_of(connection)))
    except BaseException:
        engine.dispose()
        raise
    return engine


def sqlite_path(url: str) -> Path | None:
    """The file of an SQLite database; None of another one."""
    parsed = make_url(url)
    return Path(parsed.database) if parsed.get_backend_name() == "sqlite" and parsed.database else None


def require_there(url: str) -> None:
    """An SQLite file that is gone would be made anew by opening it, and everybody forgotten.

    Raises:
        WrongStateError: it is gone.
    """
    path = sqlite_path(url)
    if path is not None and not path.exists():
        raise WrongStateError(
            f"The server's database {path} is not there",
            action="Restore it with `quorate-server restore`. An empty one, which knows nobody, is made by "
            "`quorate-server upgrade --new-database` only",
        )


def layout_of(connection: Connection) -> str | None:
    """The layout of a database that is there; None of an empty one.

    Raises:
        WrongStateError: it has tables of ours, and no layout that can be upgraded; or it is newer than this version.
    """
    tables = set(inspect(connection).get_table_names())
    if _VERSION_TABLE in tables:
        found = str(connection.execute(text(f"SELECT version_num FROM {_VERSION_TABLE}")).scalar())  # noqa: S608
    elif tables >= _FIRST_TABLES:  # the first layout was written before layouts had numbers
        found = FIRST_LAYOUT
    elif tables & _FIRST_TABLES:
        raise WrongStateError(
            "The server's database is too old to be upgraded", action="Found a server anew, or ask for help with it"
        )
    else:
        return None
    if found > LAYOUT:
        raise WrongStateError(
            f"The server's database was written by a newer version of Quorate than this one, {__version__}",
            expected=f"layout {LAYOUT}",
            got=f"layout {found}",
            action="Install the version that wrote it or a newer one; or restore the backup from before its upgrade",
        )
    return found


def require_tables(layout: str | None) -> str:
    """The layout of a database that is not empty. Raises WrongStateError."""
    if layout is None:
        raise WrongStateError(
            "The server's database is empty",
            action="Restore it; or, if it is to be a new one, run `quorate-server upgrade --new-database`",
        )
    return layout


def _require_newest(found: str) -> None:
    if found != LAYOUT:
        raise WrongStateError(
            "The server's database is of an earlier layout",
            expected=f"layout {LAYOUT}",
            got=f"layout {found}",
            action="Start the server with this version, which upgrades it, or run `quorate-server upgrade`",
        )


def _is_disk_full(error: BaseException) -> bool:
    """Whether a driver's error says so."""
    return (
        getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        or getattr(error, "sqlstate", None) == _POSTGRESQL_DISK_FULL
    )


def _translate(context: ExceptionContext) -> None:
    error = context.original_exception
    if context.connection is None and context.engine is not None:
        raise refusal_of(error, context.engine) from error
    if _is_disk_full(error):
        raise DiskFullError(
            "The disk that holds the server's database is full",
            action="Free some space at the server; what could not be written is sent again by itself",
        ) from error


def refusal_of(error: BaseException, engine: Engine) -> QuorateError:
    """What a driver's error means where the database is connected to, or upgraded as a whole."""
    if isinstance(error, sqlite3.Error):
        return sqlite_refusal(error, "The server's database", Path(engine.url.database or ""))
    if _is_disk_full(error):
        return DiskFullError("The disk that holds the server's database is full", action="Free some space there")
    return StorageError(
        "The server's database cannot be reached or used",
        got=str(error).partition("\n")[0],
        action="See that it runs, that `database_url` in server.toml is its address, and the rights of its user",
    )
