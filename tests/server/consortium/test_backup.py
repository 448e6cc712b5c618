"""A server's backup: everything of one moment, put back whole or not at all."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from quorate.errors import AlreadyExistsError, BackupError, WrongStateError
from quorate.process.backup.archive import Passphrase
from quorate.process.folder_lock import held
from quorate.rounds.spool import Spool
from quorate_server.cli.founding import found, open_registry
from quorate_server.consortium.backup import backup_server, restore_server
from quorate_server.consortium.config import ServerConfig, held_by_server

NOW = 1_800_000_000.0
SECRET = Passphrase(b"correct horse battery")


@pytest.fixture
def config(tmp_path: Path) -> ServerConfig:
    """A server with one blob, one that is still arriving, and a released model."""
    state = tmp_path / "server"
    found(state, consortium="north-sea", address="localhost:8443", listen="127.0.0.1:0", now=NOW)
    spool = Spool(state / "spool")
    spool.put([b"a whole blob"])
    (state / "spool" / f"{'ab' * 32}.east.part").write_bytes(b"arriv")
    (state / "runs" / "hearts-1").mkdir(parents=True)
    (state / "runs" / "hearts-1" / "model.npz").write_bytes(b"model")
    (state / "runs" / "link").symlink_to("/etc/passwd")
    return ServerConfig.read(state)


def content(state: Path) -> dict[str, bytes]:
    """All files of a state but the database, and what is no state."""
    left_out = ("server.sqlite", "server.lock", "backup.lock", "replaced-")
    return {
        str(path.relative_to(state)): path.read_bytes()
        for path in state.rglob("*")
        if path.is_file() and not str(path.relative_to(state)).startswith(left_out)
    }


def sessions(state: Path) -> list[tuple[str, int]]:
    with closing(sqlite3.connect(state / "server.sqlite")) as db:
        return db.execute("SELECT site, number FROM sessions ORDER BY number").fetchall()


def connects(config: ServerConfig, number: int) -> None:
    with closing(sqlite3.connect(config.state_dir / "server.sqlite")) as db, db:
        db.execute("INSERT INTO sessions (site, number) VALUES (?, ?)", (f"site-{number}", number))


@pytest.mark.parametrize("passphrase", [None, SECRET])
def test_a_restored_server_is_what_it_was(config: ServerConfig, tmp_path: Path, passphrase: Passphrase | None) -> None:
    connects(config, 1)
    with held_by_server(config):  # it may be running
        made = backup_server(config, tmp_path / "backup", passphrase, NOW)
    assert (made.side, made.name, made.created_unix_s) == ("server", "north-sea", NOW)
    assert {path.name for path in config.state_dir.iterdir()} & {"backup-in-progress", "restoring"} == set()

    again = tmp_path / "again"
    aside = restore_server(tmp_path / "backup", again, passphrase, replace=False, now=NOW)
    assert not aside.exists()
    there = content(config.state_dir)
    arriving = [name for name in there if name.endswith(".part")]
    assert len(arriving) == 1
    assert content(again) == {name: what for name, what in there.items() if name not in (*arriving, "runs/link")}
    assert sessions(again) == [("site-1", 1)]
    assert {path.stat().st_mode & 0o777 for path in (again / "ca").iterdir()} == {0o600}
    with open_registry(ServerConfig.read(again)) as registry:
        assert [operator.name for operator in registry.operators()] == ["operator"]


def test_a_backup_is_of_one_moment_while_others_write(config: ServerConfig, tmp_path: Path) -> None:
    """A run's step names a blob and removes the one before: what the backup's database names is in its spool."""
    spool, stop = Spool(config.spool_dir), threading.Event()
    wrong: list[BaseException] = []

    def steps() -> None:
        try:
            previous = None
            with closing(sqlite3.connect(config.state_dir / "server.sqlite", timeout=30.0)) as db:
                for number in range(1_000_000):
                    blob = spool.put([f"step {number}".encode()])
                    with db:
                        db.execute("DELETE FROM sessions")
                        db.execute("INSERT INTO sessions (site, number) VALUES (?, 1)", (blob.id.hex(),))
                    if previous is not None:
                        spool.remove(previous.id)
                    previous = blob
                    if stop.is_set():
                        return
        except BaseException as error:  # noqa: BLE001  # told below
            wrong.append(error)

    writer = threading.Thread(target=steps)
    writer.start()
    try:
        for number in range(5):
            backup_server(config, tmp_path / f"{number}.backup", None, NOW)
    finally:
        stop.set()
        writer.join()
    assert wrong == []
    for number in range(5):
        again = tmp_path / f"again-{number}"
        restore_server(tmp_path / f"{number}.backup", again, None, replace=False, now=NOW)
        for name, _ in sessions(again):
            assert (again / "spool" / name).read_bytes().startswith(b"step")
            assert (again / "spool" / f"{name}.frames").exists()


def test_nothing_is_replaced_without_being_told_and_then_it_is_set_aside(config: ServerConfig, tmp_path: Path) -> None:
    backup_server(config, tmp_path / "backup", None, NOW)
    connects(config, 2)
    before = content(config.state_dir)
    with pytest.raises(AlreadyExistsError, match="--replace"):
        restore_server(tmp_path / "backup", config.state_dir, None, replace=False, now=NOW)
    assert content(config.state_dir) == before
    assert sessions(config.state_dir) == [("site-2", 2)]
    aside = restore_server(tmp_path / "backup", config.state_dir, None, replace=True, now=NOW)
    assert sessions(config.state_dir) == []
    assert sessions(aside) == [("site-2", 2)]
    assert content(aside) == before


def test_a_running_server_is_not_restored_over(config: ServerConfig, tmp_path: Path) -> None:
    backup_server(config, tmp_path / "backup", None, NOW)
    with held_by_server(config), pytest.raises(WrongStateError, match="A server runs"):
        restore_server(tmp_path / "backup", config.state_dir, None, replace=True, now=NOW)


def newer(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "server.sqlite")) as db, db:
        db.execute("UPDATE alembic_version SET version_num = '0099'")


def without_key(folder: Path) -> None:
    (folder / "ca" / "ca.key").unlink()


@pytest.mark.parametrize(("spoil", "match"), [(newer, "newer version"), (without_key, "authority")])
def test_a_backup_that_would_not_start_changes_nothing(
    config: ServerConfig, tmp_path: Path, spoil: Callable[[Path], None], match: str
) -> None:
    again = tmp_path / "again"
    backup_server(config, tmp_path / "backup", None, NOW)
    restore_server(tmp_path / "backup", again, None, replace=False, now=NOW)
    spoil(again)
    backup_server(ServerConfig.read(again), tmp_path / "spoilt", None, NOW)
    before = content(config.state_dir)
    with pytest.raises(Exception, match=match):
        restore_server(tmp_path / "spoilt", config.state_dir, None, replace=True, now=NOW)
    assert content(config.state_dir) == before
    assert sessions(config.state_dir) == []


def test_a_damaged_backup_changes_nothing(config: ServerConfig, tmp_path: Path) -> None:
    backup_server(config, tmp_path / "backup", None, NOW)
    (tmp_path / "backup").write_bytes((tmp_path / "backup").read_bytes()[:-5000])
    before = content(config.state_dir)
    with pytest.raises(BackupError, match="no whole backup"):
        restore_server(tmp_path / "backup", config.state_dir, None, replace=True, now=NOW)
    assert content(config.state_dir) == before
    with pytest.raises(BackupError):
        restore_server(tmp_path / "backup", tmp_path / "again", None, replace=False, now=NOW)
    assert content(tmp_path / "again") == {}


def test_a_database_that_is_no_file_of_the_folder_is_said_to_be_somebody_else_s_business(
    config: ServerConfig, tmp_path: Path
) -> None:
    with (config.state_dir / "server.toml").open("a") as file:
        file.write('database_url = "postgresql+psycopg://quorate:secret@db/quorate"\n')
    with pytest.raises(WrongStateError, match="pg_dump") as refused:
        backup_server(ServerConfig.read(config.state_dir), tmp_path / "backup", None, NOW)
    assert "secret" not in str(refused.value)
    assert not (tmp_path / "backup").exists()


def test_two_backups_at_once_are_one(config: ServerConfig, tmp_path: Path) -> None:
    with (
        held(config.state_dir / "backup.lock", what="", action=""),
        pytest.raises(WrongStateError, match="Another backup"),
    ):
        backup_server(config, tmp_path / "backup", None, NOW)
    assert not (tmp_path / "backup").exists()
