"""Upgrades and backups: how long a server that has done many rounds is away for them.

The database holds what runs leave behind: results of all rounds, and the answers of the rounds that are open. The peer
of a backup is a plain copy of the database's file, which is no backup while a server writes.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from bench.table import Row
from quorate.process.backup.archive import Passphrase
from quorate_server.cli.founding import found
from quorate_server.consortium.backup import backup_server, restore_server
from quorate_server.consortium.config import ServerConfig
from quorate_server.storage.upgrade import upgrade_database

RESULT_BYTES = 2_000
"""Of a round of a hundred sites, as JSON."""
REPLY_BYTES = 4_000
ROUNDS_OF_A_RUN = 100
SECRET = Passphrase(b"a passphrase for the bench")


@dataclass(frozen=True)
class Size:
    """Rounds and answers that the database holds, and how large the spool is."""

    rounds: int
    replies: int
    spool_bytes: int


FULL = Size(rounds=10_000, replies=2_000, spool_bytes=256 * 1024**2)
SMALL = Size(rounds=200, replies=20, spool_bytes=1024**2)


def rows(size: Size) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        config = _server(root / "server", size)
        database = config.state_dir / "server.sqlite"
        megabytes = (database.stat().st_size + size.spool_bytes) / 1e6
        upgrade_s = _seconds(lambda: upgrade_database(config.engine_url))
        copy_s = _seconds(lambda: shutil.copytree(config.state_dir, root / "copy"))
        plain_s = _seconds(lambda: backup_server(config, root / "plain", None, 0.0))
        sealed_s = _seconds(lambda: backup_server(config, root / "sealed", SECRET, 0.0))
        restored_s = _seconds(lambda: restore_server(root / "sealed", root / "again", SECRET, replace=False, now=0.0))
        rounds = f"{size.rounds:,} rounds"
        return [
            Row(f"upgrade of a database with {rounds}, its copy included", "s", upgrade_s, goal=10.0),
            Row(f"backup of {rounds} and a spool, while it runs", "s", plain_s, peer=copy_s),
            Row("the same, sealed under a passphrase", "s", sealed_s),
            Row("restore of that, checked and flushed to disk", "s", restored_s),
            Row("what was backed up", "MB", megabytes),
        ]


def _server(state: Path, size: Size) -> ServerConfig:
    """A server of the first layout that has done many rounds."""
    found(state, consortium="bench", address="127.0.0.1:8443", listen="127.0.0.1:0", now=time.time())
    with closing(sqlite3.connect(state / "server.sqlite")) as db, db:
        for statement in (
            "DROP TABLE alembic_version",
            "ALTER TABLE sessions DROP COLUMN version",
            "ALTER TABLE sessions DROP COLUMN connected_unix_s",
        ):
            db.execute(statement)
        runs = [f"run-{number}" for number in range(-(-size.rounds // ROUNDS_OF_A_RUN))]
        db.executemany("INSERT INTO runs VALUES (?, zeroblob(32), 'completed', '', '', 0, 0)", [(run,) for run in runs])
        db.executemany(
            "INSERT INTO results VALUES (?, ?, ?)",
            (
                (runs[number // ROUNDS_OF_A_RUN], number % ROUNDS_OF_A_RUN, "x" * RESULT_BYTES)
                for number in range(size.rounds)
            ),
        )
        db.executemany(
            "INSERT INTO replies VALUES (?, ?, 1, 'train', 0, ?, '', ?, 0)",
            (
                (number.to_bytes(32, "big"), runs[0], f"site-{number}", bytes(REPLY_BYTES))
                for number in range(size.replies)
            ),
        )
    spool = state / "spool"
    spool.mkdir()
    with (spool / ("ab" * 32)).open("wb") as file:
        for _ in range(size.spool_bytes // 1024**2):
            file.write(bytes(1024**2))
    return ServerConfig.read(state)


def _seconds(action: Callable[[], object]) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun
