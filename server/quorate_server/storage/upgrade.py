"""Makes the server's database, and brings one of an earlier layout to this version's.

All steps are one transaction with the number that they lead to: whoever is killed leaves the layout before. Of SQLite a
copy is made first, while nobody can write, and kept. A second process waits and finds nothing left to do.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import ConnectionPoolEntry

from quorate.errors import AlreadyExistsError
from quorate.process.backup.sqlite_copy import copy_database
from quorate.process.private_files import create_private
from quorate_server.storage.database import LAYOUT, layout_of, refusal_of, require_tables, require_there, sqlite_path

_LOCK = 0x71756F72  # of PostgreSQL's advisory locks, the one that is ours
_MIGRATIONS = Path(__file__).parent / "migrations"


@dataclass(frozen=True, slots=True)
class Upgrade:
    """What an upgrade does, or did. ``steps`` is empty where there is nothing to do.

    Args:
        found: The layout before.
        steps: What each step brings, for people.
        copy: Where the database as it was is kept; None where the database is no SQLite file.
    """

    found: str
    steps: tuple[str, ...]
    copy: Path | None


def pending_upgrade(url: str) -> Upgrade:
    """What ``upgrade_database`` would do. Changes nothing.

    Raises:
        WrongStateError: it is not there, empty, or newer than this version. StorageError: it cannot be read.
    """
    require_there(url)
    engine = create_engine(url)
    try:
        with _translated(engine), engine.connect() as connection:
            return _pending(connection, url)
    finally:
        engine.dispose()


def upgrade_database(url: str) -> Upgrade:
    """Bring the database to this version's layout; no server of an earlier version may be running on it.

    Raises:
        WrongStateError, StorageError: as ``pending_upgrade``, or it cannot be written. DiskFullError: no room for it or
            its copy. The database is as it was.
    """
    require_there(url)
    with _alone(url) as connection:
        todo = _pending(connection, url)
        path = sqlite_path(url)
        if todo.steps:
            if path is not None and todo.copy is not None:
                copy_database(path, todo.copy)
            _run(connection, stamp=todo.found)
        return todo


def make_database(url: str) -> None:
    """Make the tables in an empty database, and its file if it is one.

    Raises:
        AlreadyExistsError: it is not empty. StorageError, DiskFullError: it cannot be made.
    """
    path = sqlite_path(url)
    if path is not None and not path.exists():
        os.close(create_private(path))
    with _alone(url) as connection:
        if layout_of(connection) is not None:
            raise AlreadyExistsError("There is a server's database already", action="It is never replaced by a new one")
        _run(connection)


def _pending(connection: Connection, url: str) -> Upgrade:
    found = require_tables(layout_of(connection))
    revisions = ScriptDirectory(str(_MIGRATIONS)).iterate_revisions(LAYOUT, found)
    steps = tuple(f"{each.revision}: {each.doc}" for each in reversed(list(revisions)))
    path = sqlite_path(url)
    return Upgrade(found, steps, path.with_name(f"{path.name}.before-{LAYOUT}") if path is not None else None)


def _run(connection: Connection, stamp: str | None = None) -> None:
    """Run the revisions that are missing. ``stamp``: the layout of a database that may not say so itself."""
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    if stamp is not None:
        command.stamp(config, stamp)
    command.upgrade(config, LAYOUT)


@contextmanager
def _alone(url: str) -> Iterator[Connection]:
    """One transaction in which nobody else writes, tables included; it is committed at the end."""
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _begin_by_hand)
        event.listen(engine, "begin", _begin)
    try:
        with _translated(engine), engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            yield connection
    finally:
        engine.dispose()


@contextmanager
def _translated(engine: Engine) -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        raise refusal_of(error.orig or error, engine) from error


def _begin_by_hand(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    """Python's driver would begin no transaction before a CREATE or ALTER."""
    connection.isolation_level = None
    connection.execute("PRAGMA busy_timeout=60000")


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
