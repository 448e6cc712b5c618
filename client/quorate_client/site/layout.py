"""Layouts of a site's SQLite files, and the numbered steps from one to the next.

A file carries its layout's number (``user_version``). A step and its number are one transaction, so whoever is killed
leaves the layout before or the one after. All steps that a file needs are one, too; a copy of the file is made before
them and kept. A newer file is refused by its number: an older program does not know what it would break.

Only who holds the folder's lock upgrades; everybody else refuses an older file, for the daemon of the version before
may still be at work on it. The first step of every file adds the table ``layouts``, which says which version of
Quorate brought the file where it is: so a refusal can say what to install. No step may take it away.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from quorate import __version__
from quorate.errors import AlreadyExistsError, QuorateError, WrongStateError
from quorate.process.backup.sqlite_copy import copy_database, open_to_read
from quorate.process.private_files import create_private
from quorate.process.storage_errors import sqlite_refusal


@dataclass(frozen=True, slots=True)
class Step:
    """From the layout before to the next.

    Args:
        what: What it brings, for people.
        script: SQL statements, each ended by a semicolon.
    """

    what: str
    script: str


@dataclass(frozen=True, slots=True)
class Layout:
    """What a file looks like: a first layout, and the steps since.

    Args:
        name: Of the file, in messages.
        first: The number of the oldest layout that can be upgraded.
        schema: Its SQL statements.
        refusal: What is raised for a file of another layout.
    """

    name: str
    first: int
    schema: str
    steps: tuple[Step, ...]
    refusal: type[QuorateError]

    @property
    def newest(self) -> int:
        return self.first + len(self.steps)


KEEP_HISTORY = Step(
    "which version of Quorate brought the file to its layout",
    "CREATE TABLE layouts (number INTEGER PRIMARY KEY, version TEXT NOT NULL, since_unix_s REAL NOT NULL) STRICT;",
)


@dataclass(frozen=True, slots=True)
class Pending:
    """What an upgrade does, or did. ``steps`` is empty where the file is of the newest layout, or not there."""

    path: Path
    found: int
    newest: int
    steps: tuple[str, ...]
    copy: Path


def new_file(path: Path) -> None:
    """An empty file of mode 0600, unless there is one. Raises OSError."""
    with suppress(AlreadyExistsError):
        os.close(create_private(path))


def fill(database: sqlite3.Connection, layout: Layout) -> None:
    """Make the tables of an empty file; one that has some stays as it is. Raises sqlite3's own errors."""
    if _number(database) == 0:
        with alone(database):
            if _number(database) == 0:
                _run(database, layout.schema)
                _set_number(database, layout.first)
                _take_steps(database, layout)


def require_newest(database: sqlite3.Connection, path: Path, layout: Layout) -> None:
    """Refuse a file of any other layout than the one that this program knows best; raises ``layout.refusal``."""
    found = _number(database)
    if found != layout.newest:
        raise _refusal(database, path, layout, found)


def pending(path: Path, layout: Layout) -> Pending:
    """What an upgrade would do. Changes nothing.

    Raises:
        QuorateError: ``layout.refusal``: the file is newer or too old. StorageError: it cannot be read.
    """
    if not path.exists():
        return Pending(path, 0, layout.newest, (), path)
    with _usable(path, layout), closing(open_to_read(path)) as database:
        return _pending(database, path, layout)


def upgrade(path: Path, layout: Layout) -> Pending:
    """Bring a file to the newest layout; the folder's lock must be held. One that is not there is not made.

    Raises:
        QuorateError: as ``pending``. StorageError: it cannot be written. DiskFullError: no room for it or its copy.
            In each case the file is as it was.
    """
    todo = pending(path, layout)
    if not todo.steps:
        return todo
    with (
        _usable(path, layout),
        closing(sqlite3.connect(path, isolation_level=None, timeout=60.0)) as database,
    ):
        database.execute("PRAGMA synchronous=FULL")
        with alone(database):
            todo = _pending(database, path, layout)
            if todo.steps:
                copy_database(path, todo.copy)
                _take_steps(database, layout)
    return todo


@contextmanager
def alone(database: sqlite3.Connection) -> Iterator[None]:
    """All or nothing, and no other process writes in between. Raises sqlite3's own errors."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if database.in_transaction:  # SQLite may have rolled back by itself, as it does when the disk is full
            database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")


def _pending(database: sqlite3.Connection, path: Path, layout: Layout) -> Pending:
    found = _number(database)
    if found != 0 and not layout.first <= found <= layout.newest:
        raise _refusal(database, path, layout, found)
    steps = layout.steps[found - layout.first :] if found else ()
    copy = path.with_name(f"{path.name}.before-{layout.newest}")
    return Pending(path, found, layout.newest, tuple(step.what for step in steps), copy)


def _take_steps(database: sqlite3.Connection, layout: Layout) -> None:
    found = _number(database)
    for number, step in enumerate(layout.steps[found - layout.first :], found + 1):
        _run(database, step.script)
        database.execute("INSERT INTO layouts VALUES (?, ?, ?)", (number, __version__, time.time()))
        _set_number(database, number)


def _run(database: sqlite3.Connection, script: str) -> None:
    """Not ``executescript``, which commits first."""
    for statement in script.split(";"):
        if statement.strip():
            database.execute(statement)


def _number(database: sqlite3.Connection) -> int:
    (number,) = database.execute("PRAGMA user_version").fetchone()
    return int(number)


def _set_number(database: sqlite3.Connection, number: int) -> None:
    database.execute(f"PRAGMA user_version={number}")


def _refusal(database: sqlite3.Connection, path: Path, layout: Layout, found: int) -> QuorateError:
    expected, got = f"layout {layout.newest}", f"layout {found}"
    if found > layout.newest:
        version = _written_by(database, found)
        return layout.refusal(
            f"{layout.name} {path} was written by a newer version of Quorate than this one, {__version__}",
            expected=expected,
            got=f"{got}, by {version}" if version else got,
            action=f"Install {version or 'the version that wrote it'} or a newer one",
        )
    if found == 0:
        return layout.refusal(f"{layout.name} {path} is empty", expected=expected, action="Restore it from a backup")
    if found < layout.first:
        return layout.refusal(
            f"{layout.name} {path} is too old to be upgraded",
            expected=f"layout {layout.first} or newer",
            got=got,
            action="Upgrade it with an earlier version of Quorate first",
        )
    return layout.refusal(
        f"{layout.name} {path} is of an earlier layout",
        expected=expected,
        got=got,
        action="Restart the site's daemon with this version, which upgrades it, or run `quorate-client upgrade`",
    )


def _written_by(database: sqlite3.Connection, number: int) -> str:
    try:
        row = database.execute("SELECT version FROM layouts WHERE number = ?", (number,)).fetchone()
    except sqlite3.Error:
        return ""
    return f"Quorate {row[0]}" if row else ""


@contextmanager
def _usable(path: Path, layout: Layout) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise sqlite_refusal(error, layout.name, path) from error


def missing(path: Path, name: str) -> WrongStateError:
    """A file that should be there is not: an empty one in its place would forget what was promised."""
    return WrongStateError(
        f"{name} {path} is not there",
        action="Restore it with `quorate-client restore`. If it is lost, have the operator invite this site again and "
        "run `quorate-client join --keep-keys`, which makes an empty one",
    )
