from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

import pytest

from quorate.errors import EXIT_OTHER, DiskFullError, StorageError
from quorate.process.storage_errors import lacks_room, os_refusal, sqlite_refusal, storage_errors


@pytest.mark.parametrize(
    ("number", "kind", "said"),
    [
        (errno.ENOSPC, DiskFullError, "Free some space"),
        (errno.EDQUOT, DiskFullError, "raise the quota"),
        (errno.EROFS, StorageError, "ReadWritePaths="),
        (errno.EACCES, StorageError, "chown"),
        (errno.EPERM, StorageError, "chown"),
        (errno.ENOTDIR, StorageError, "Not a directory"),
    ],
)
def test_what_a_file_system_does_is_told_with_the_path_and_what_to_do(
    number: int, kind: type[Exception], said: str, tmp_path: Path
) -> None:
    refusal = os_refusal(OSError(number, os.strerror(number), str(tmp_path / "file")))
    assert type(refusal) is kind
    assert str(tmp_path / "file") in str(refusal)
    assert said in str(refusal)
    assert refusal.exit_code == EXIT_OTHER


def test_a_real_error_is_translated_at_the_door(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="file/inside cannot be used"), storage_errors():
        (tmp_path / "file").touch()
        (tmp_path / "file" / "inside").write_text("x")


def test_an_error_that_names_no_path_is_no_matter_of_storage() -> None:
    with pytest.raises(ConnectionResetError), storage_errors():
        raise ConnectionResetError(errno.ECONNRESET, "reset")


def test_a_full_disk_needs_no_path() -> None:
    with pytest.raises(DiskFullError), storage_errors():
        raise OSError(errno.ENOSPC, "No space left on device")


def sqlite_error(database: Path) -> sqlite3.Error:
    with pytest.raises(sqlite3.Error) as caught:
        sqlite3.connect(database).execute("PRAGMA journal_mode=WAL")
    return caught.value


def test_only_a_damaged_database_is_a_reason_to_restore_a_backup(tmp_path: Path) -> None:
    damaged, missing = tmp_path / "damaged.sqlite", tmp_path / "nowhere" / "db.sqlite"
    damaged.write_bytes(b"not a database" * 100)
    assert "Restore it from the newest backup" in str(sqlite_refusal(sqlite_error(damaged), "The database", damaged))
    # Whoever restored a backup for these would throw away what is newest, for nothing.
    unreachable = sqlite_refusal(sqlite_error(missing), "The database", tmp_path / "db.sqlite")
    assert isinstance(unreachable, StorageError)
    assert "Restore" not in str(unreachable)
    assert "belongs to this user" in str(unreachable)


def test_a_copy_that_lacks_room_is_a_full_disk_whatever_sqlite_calls_it(tmp_path: Path) -> None:
    refused = sqlite3.OperationalError("disk I/O error")
    refused.sqlite_errorcode = sqlite3.SQLITE_IOERR_SHMSIZE
    assert lacks_room(refused, Path("/proc"))  # a file system without a single free byte
    assert not lacks_room(refused, tmp_path)


def test_a_database_that_cannot_be_opened_for_lack_of_space_is_a_full_disk(tmp_path: Path) -> None:
    path = Path("/proc/db.sqlite")  # on a file system without a single free byte
    refusal = sqlite_refusal(sqlite3.OperationalError("disk I/O error"), "The database", path)
    assert isinstance(refusal, DiskFullError)
