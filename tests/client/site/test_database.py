"""The site's database."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from quorate.errors import DiskFullError, StorageError, WrongStateError
from quorate_client.site.database import ConnectionReport, open_state

from ..databases import state_made


def test_a_session_number_is_never_used_twice_whatever_happens_in_between(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    numbers = []
    for _ in range(3):
        with state_made(path) as state:
            numbers += [state.next_session(), state.next_session()]

    assert numbers == [1, 2, 3, 4, 5, 6]


def test_the_database_survives_power_cuts_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    with state_made(path) as state:
        assert state.database.execute("PRAGMA synchronous").fetchone() == (2,)
        assert state.database.execute("PRAGMA journal_mode").fetchone() == ("wal",)

    assert path.stat().st_mode & 0o777 == 0o600


def test_a_pause_is_seen_by_another_process_at_once(tmp_path: Path) -> None:
    with state_made(tmp_path / "state.sqlite") as daemon, state_made(tmp_path / "state.sqlite") as command:
        assert not daemon.paused
        command.pause(True)
        assert daemon.paused
        command.pause(False)
        assert not daemon.paused


def test_the_connection_is_reported_for_the_commands(tmp_path: Path) -> None:
    report = ConnectionReport("waiting", "server:1", 12.0, "server_unreachable", "It did not answer", -3.5)
    with state_made(tmp_path / "state.sqlite") as state:
        assert state.connection is None
        state.report_connection(report)
        assert state.connection == report


def test_a_database_of_a_newer_version_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    with state_made(path) as state:
        state.database.execute("PRAGMA user_version=99")

    with pytest.raises(WrongStateError, match="newer version"):
        open_state(path)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    path.write_bytes(b"not a database" * 100)

    with pytest.raises(StorageError, match="is damaged"):
        open_state(path)


def test_a_full_disk_is_told_apart(tmp_path: Path) -> None:
    with state_made(tmp_path / "state.sqlite") as state:
        (pages,) = state.database.execute("PRAGMA page_count").fetchone()
        state.database.execute(f"PRAGMA max_page_count={pages}")
        with pytest.raises(DiskFullError):
            state.report_connection(ConnectionReport("waiting", "x" * 100_000, 0.0))
        assert state.connection is None


def test_a_database_that_another_program_holds_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    with state_made(path) as state:
        state.database.execute("PRAGMA busy_timeout=0")
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(WrongStateError, match="cannot be written"):
            state.next_session()
        holder.close()
