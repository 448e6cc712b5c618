"""The privacy ledger's file: one SQLite table of entries, written by one process at a time and never lost in part.

``synchronous=FULL``: an entry that was written survives a power cut. The rows hold each entry's content as it was
signed, and nothing beside it that could say something else.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quorate.errors import DiskFullError, FrameError, LedgerError
from quorate.privacy.ledger_head import SignedHead
from quorate_client.ledger.entries import Entry, read_entry
from quorate_client.site.layout import KEEP_HISTORY, Layout, alone, fill, new_file, require_newest

BUSY_TIMEOUT_S = 60.0
"""Whoever writes holds the file while an accountant computes, which takes a second or so."""
RESTORE = "Restore the newest copy of ledger.sqlite; nothing is spent without it"
_SCHEMA = """
CREATE TABLE entries (
    number INTEGER PRIMARY KEY, content BLOB NOT NULL, hash BLOB NOT NULL, signature BLOB NOT NULL
) STRICT;
"""
LEDGER_LAYOUT = Layout("The privacy ledger", first=3, schema=_SCHEMA, steps=(KEEP_HISTORY,), refusal=LedgerError)


class LedgerFile:
    """The entries on disk. Its caller sees to it that one thread uses it at a time."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self.database = database

    def close(self) -> None:
        self.database.close()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """All or nothing, on disk when it ends, and no other process writes in between."""
        with unusable(), alone(self.database):
            yield

    def entries_from(self, number: int, previous: bytes) -> Iterator[Entry]:
        """The entries from this number on, oldest first; ``previous`` is the hash of the one before.

        Raises:
            LedgerError: at the first one that is not the one that was written there.
        """
        with unusable():
            rows = self.database.execute(
                "SELECT number, content, hash, signature FROM entries WHERE number >= ? ORDER BY number", (number,)
            ).fetchall()
        for expected, (found, content, entry_hash, signature) in enumerate(rows, number):
            if found != expected:
                raise LedgerError(f"Entry {expected} of the privacy ledger is missing", action=RESTORE)
            try:
                head = SignedHead(found, entry_hash, signature)
            except FrameError as error:
                raise LedgerError(f"Entry {found} of the privacy ledger is damaged", action=RESTORE) from error
            yield read_entry(content, head, previous)
            previous = entry_hash

    def append(self, entry: Entry) -> None:
        self.database.execute(
            "INSERT INTO entries VALUES (?, ?, ?, ?)", (entry.number, entry.text, entry.head.hash, entry.head.signature)
        )

    def holds(self, number: int, entry_hash: bytes) -> bool:
        with unusable():
            row = self.database.execute("SELECT hash FROM entries WHERE number = ?", (number,)).fetchone()
        return row is not None and row[0] == entry_hash


def open_file(path: Path) -> LedgerFile:
    """Open, and on first use create, the file. One that is gone is created too: the witness says that it was there.

    Raises:
        LedgerError: it is damaged, or of another layout than this version's. DiskFullError.
    """
    with unusable():
        new_file(path)
        database = sqlite3.connect(path, isolation_level=None, timeout=BUSY_TIMEOUT_S, check_same_thread=False)
        try:
            for pragma in ("journal_mode=WAL", "synchronous=FULL"):
                database.execute(f"PRAGMA {pragma}")
            fill(database, LEDGER_LAYOUT)
            require_newest(database, path, LEDGER_LAYOUT)
        except BaseException:
            database.close()
            raise
    return LedgerFile(database)


@contextmanager
def unusable() -> Iterator[None]:
    """Translate what the disk and other programs do to the ledger."""
    try:
        yield
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise DiskFullError(
                "The disk that holds the site's privacy ledger is full, so nothing is spent",
                action="Free some space; the daemon then goes on",
            ) from error
        raise LedgerError(
            "The site's privacy ledger cannot be read or written",
            got=str(error),
            action=f"Look for another program that holds it open, and at the disk's health. {RESTORE}",
        ) from error
