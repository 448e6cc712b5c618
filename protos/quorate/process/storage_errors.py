"""What disks, folders and SQLite files do to a program, told in one sentence with what to do about it.

The system's own errors name a call and a number. Who keeps a machine running needs path, user, and next step.
"""

from __future__ import annotations

import errno
import os
import pwd
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quorate.errors import DiskFullError, QuorateError, StorageError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_RIGHT = (errno.EACCES, errno.EPERM)
_SQLITE_DAMAGED = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)
_LEAST_FREE_BYTES = 256 * 1024
"""SQLite needs a page of shared memory and a page of its log to open a file; with less it says "disk I/O error"."""


@contextmanager
def storage_errors() -> Iterator[None]:
    """Translate an error of the file system that nobody translated closer to where it happened.

    Raises:
        DiskFullError, StorageError: naming the path. What names no path is no matter of storage and passes.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno not in _FULL:
            raise
        raise os_refusal(error) from error


def os_refusal(error: OSError) -> QuorateError:
    """What an error of the file system means."""
    path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else None
    place = str(path) if path is not None else "a file"
    if error.errno in _FULL:
        return DiskFullError(
            f"There is no space left for {place}", action="Free some space on that disk, or raise the quota"
        )
    if error.errno == errno.EROFS:
        return StorageError(
            f"{place} is on a file system that is read-only",
            action="Mount it writable, or permit the folder in the service's unit (ReadWritePaths=)",
        )
    if error.errno in _NO_RIGHT:
        return StorageError(
            f"The user {_user(os.geteuid())} may not use {place}",
            got=error.strerror or "",
            action=f"Run this as {_owner(path)}, to whom the folder belongs, or give it to this user (chown)",
        )
    return StorageError(
        f"{place} cannot be used", got=error.strerror or type(error).__name__, action="See what is there"
    )


def sqlite_refusal(error: sqlite3.Error, what: str, path: Path) -> QuorateError:
    """What an error of SQLite means for the file at ``path``. Only damage is a reason to restore a backup.

    Args:
        what: How the file is called, as the beginning of a sentence: "The site's database".
    """
    if _sqlite_code(error) in _SQLITE_DAMAGED:
        return StorageError(f"{what} {path} is damaged", got=str(error), action="Restore it from the newest backup")
    if lacks_room(error, path.parent):
        return DiskFullError(f"The disk that holds {path} is full", action="Free some space")
    return StorageError(
        f"{what} {path} cannot be opened or written by the user {_user(os.geteuid())}",
        got=str(error),
        action=f"See that {path.parent} belongs to this user (now: {_owner(path.parent)}), is writable, and that no "
        "other program holds the file",
    )


def lacks_room(error: sqlite3.Error, folder: Path) -> bool:
    """Whether SQLite failed in this folder because its disk is full; it has several names for that."""
    return _sqlite_code(error) == sqlite3.SQLITE_FULL or _free_bytes(folder) < _LEAST_FREE_BYTES


def _sqlite_code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF  # the upper bits tell more of the same


def _free_bytes(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return _LEAST_FREE_BYTES


def _owner(path: Path | None) -> str:
    """Whose the nearest folder is that can be looked at."""
    for place in (path, *path.parents) if path is not None else ():
        try:
            return _user(place.stat().st_uid)
        except OSError:
            continue
    return "its owner"


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)
