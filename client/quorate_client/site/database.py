"""The site's database: one SQLite file that the daemon and the administrator's commands share.

``synchronous=FULL``: what is written here (a session number, a reply, an approval) must survive a power cut, because
each of them was promised to somebody. Commands leave requests here and the daemon picks them up; no local socket.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from quorate.errors import DiskFullError, WrongStateError
from quorate.process.storage_errors import sqlite_refusal
from quorate_client.site.layout import KEEP_HISTORY, Layout, Step, alone, fill, missing, new_file, require_newest

_NAME = "The site's database"
_MEMORY = "memory"
_SCHEMA = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE journal (
    message_id BLOB PRIMARY KEY, run TEXT NOT NULL, round INTEGER NOT NULL, phase TEXT NOT NULL,
    deadline_s REAL NOT NULL, started_unix_s REAL NOT NULL, reply BLOB, is_settled INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX journal_run ON journal (run, round);
CREATE TABLE journal_blobs (
    message_id BLOB NOT NULL REFERENCES journal ON DELETE CASCADE, blob BLOB NOT NULL, PRIMARY KEY (message_id, blob)
) STRICT;
CREATE TABLE datasets (
    name TEXT PRIMARY KEY, kind TEXT NOT NULL, path TEXT NOT NULL, schema TEXT NOT NULL, test_fraction REAL NOT NULL,
    records INTEGER NOT NULL, units INTEGER, content TEXT NOT NULL, record_index TEXT, added_unix_s REAL NOT NULL
) STRICT;
CREATE TABLE answers (
    digest BLOB PRIMARY KEY, canonical BLOB NOT NULL, answer TEXT NOT NULL, dataset TEXT, node_config TEXT NOT NULL,
    signature BLOB NOT NULL, answered_unix_s REAL NOT NULL
) STRICT;
CREATE TABLE roster (
    digest BLOB NOT NULL REFERENCES answers ON DELETE CASCADE, name TEXT NOT NULL, signing_key BLOB NOT NULL,
    sealing_key BLOB NOT NULL, sealing_proof BLOB NOT NULL, PRIMARY KEY (digest, name)
) STRICT;
CREATE TABLE approvals (digest BLOB NOT NULL, site TEXT NOT NULL, signature BLOB NOT NULL, PRIMARY KEY (digest, site))
    STRICT;
CREATE TABLE survivors (id BLOB PRIMARY KEY, members TEXT NOT NULL) STRICT;
CREATE TABLE ballots (
    identity BLOB PRIMARY KEY, run TEXT NOT NULL, round INTEGER NOT NULL, query BLOB NOT NULL,
    survivors BLOB NOT NULL REFERENCES survivors, digest BLOB NOT NULL
) STRICT;
CREATE INDEX ballots_query ON ballots (query);
CREATE TABLE beliefs (run TEXT NOT NULL, round INTEGER NOT NULL, belief BLOB NOT NULL, PRIMARY KEY (run, round)) STRICT;
CREATE TABLE uploads (
    run TEXT NOT NULL, round INTEGER NOT NULL, attempt INTEGER NOT NULL, failed INTEGER NOT NULL,
    PRIMARY KEY (run, round, attempt)
) STRICT;
CREATE TABLE counted (run TEXT PRIMARY KEY, records INTEGER NOT NULL) STRICT;
"""
_KNOW_ORIGINS = Step("what a synthetic data set was made from, and how", "ALTER TABLE datasets ADD COLUMN origin TEXT;")
_KNOW_STUDIES = Step("for which study each reply is", "ALTER TABLE journal ADD COLUMN study_digest BLOB;")
STATE_LAYOUT = Layout(
    _NAME, first=4, schema=_SCHEMA, steps=(KEEP_HISTORY, _KNOW_ORIGINS, _KNOW_STUDIES), refusal=WrongStateError
)


@dataclass(frozen=True, slots=True)
class ConnectionReport:
    """How the daemon's connection stands, as it last wrote it down. ``code`` and ``problem`` say why it is down."""

    state: str  # connecting | connected | waiting | stopped
    address: str
    since_unix_s: float
    code: str = ""
    problem: str = ""
    clock_offset_s: float | None = None


class SiteDatabase:
    """The settings in the database, and the connection that the other tables are reached by."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self.database = database

    def close(self) -> None:
        self.database.close()

    def next_session(self) -> int:
        """A session number higher than all before it, on disk before this returns."""
        with transaction(self.database):
            number = int(self._get("session") or 0) + 1
            self._set("session", str(number))
        return number

    def flush(self) -> None:
        """Take to disk what was written before and did not wait for it (``rounds/sums/votes.py``)."""
        self._set("flushed", "1")

    @property
    def paused(self) -> bool:
        """Whether the administrator asked for a pause."""
        return self._get("paused") == "1"

    def pause(self, paused: bool) -> None:
        """Whoever lets the daemon go on has looked at why it failed: what it counted of that is forgotten."""
        self._set("paused", "1" if paused else "0")
        if not paused:
            with disk_errors():
                self.database.execute("UPDATE uploads SET failed = 0 WHERE failed")

    @property
    def had_policy(self) -> bool:
        """Whether there was a policy at this site, now or before."""
        return self._get("had_policy") == "1"

    def remember_policy(self) -> None:
        if not self.had_policy:
            self._set("had_policy", "1")

    @property
    def memory(self) -> bytes:
        """Random bytes since votes were last forgotten (``forgotten_votes.py``); none before."""
        return bytes.fromhex(self._get(_MEMORY) or "")

    @property
    def connection(self) -> ConnectionReport | None:
        text = self._get("connection")
        return ConnectionReport(**json.loads(text)) if text else None

    def report_connection(self, report: ConnectionReport) -> None:
        self._set("connection", json.dumps(asdict(report)))

    def _get(self, name: str) -> str | None:
        with disk_errors():
            row = self.database.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def _set(self, name: str, value: str) -> None:
        with disk_errors():
            self.database.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, value))


def make_state(path: Path) -> None:
    """Make the database of a new site; one that is there stays as it is.

    Raises:
        StorageError, DiskFullError: it cannot be made.
    """
    with _opening(path):
        new_file(path)
        with closing(_connected(path)) as database:
            fill(database, STATE_LAYOUT)


def begin_memory(path: Path) -> None:
    """Tell this database from every earlier one of this site. It may still be of an earlier layout.

    Raises:
        StorageError, DiskFullError: it cannot be written.
    """
    with _opening(path), closing(_connected(path)) as database:
        database.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (_MEMORY, os.urandom(16).hex()))


def open_state(path: Path) -> SiteDatabase:
    """Open the site's database.

    Raises:
        WrongStateError: it is not there, or of another layout than this version's. StorageError: it is damaged, or
            cannot be opened. DiskFullError.
    """
    if not path.exists():
        raise missing(path, _NAME)
    with _opening(path):
        database = _connected(path)
        try:
            require_newest(database, path, STATE_LAYOUT)
        except BaseException:
            database.close()
            raise
    return SiteDatabase(database)


@contextmanager
def _opening(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise sqlite_refusal(error, _NAME, path) from error


def _connected(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None, timeout=5.0)
    try:
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            database.execute(f"PRAGMA {pragma}")
    except BaseException:
        database.close()
        raise
    return database


@contextmanager
def site_state(path: Path) -> Iterator[SiteDatabase]:
    state = open_state(path)
    try:
        yield state
    finally:
        state.close()


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All or nothing, and alone; raises what ``disk_errors`` does."""
    with disk_errors(), alone(database):
        yield


@contextmanager
def disk_errors() -> Iterator[None]:
    """Translate what the disk and other processes do to the database."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise DiskFullError(
                "The disk that holds the site's database is full", action="Free some space; the daemon then goes on"
            ) from error
        raise WrongStateError(
            "The site's database cannot be written",
            got=str(error),
            action="Look for another program that holds it open, and at the disk's health",
        ) from error
