"""A copy of an SQLite file that others may be writing: whole, in one file, and there only when it is finished."""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import closing
from pathlib import Path

from quorate.errors import DiskFullError, StorageError
from quorate.process.private_files import create_private, flush_folder
from quorate.process.storage_errors import lacks_room

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def open_to_read(path: Path) -> sqlite3.Connection:
    """A connection that cannot write and makes no file. Raises sqlite3's own errors."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=60.0)


def copy_database(source: Path | sqlite3.Connection, target: Path) -> None:
    """Copy what is committed; a file of that name is replaced. One writer at a time for each target is the caller's
    part: then what a killed one left is taken away by the next.

    Args:
        source: A file, or a connection, whose transaction is then what is copied.

    Raises:
        DiskFullError. StorageError: it cannot be read, or not be written there. Nothing of the copy is left.
    """
    scratch = target.with_name(f"{target.name}.part")
    try:
        _remove(scratch)
        os.close(create_private(scratch))
        with closing(sqlite3.connect(scratch)) as writing:
            if isinstance(source, Path):
                with closing(open_to_read(source)) as reading:
                    reading.backup(writing)
            else:
                source.backup(writing)
            writing.execute("PRAGMA journal_mode=DELETE")  # one file, not three
        with scratch.open("rb+") as file:
            os.fsync(file.fileno())
        scratch.rename(target)
        flush_folder(target.parent)
    except (sqlite3.Error, OSError) as error:
        raise _translated(error, target) from error
    finally:
        _remove(scratch)


def _remove(scratch: Path) -> None:
    for end in ("", "-journal", "-wal", "-shm"):
        scratch.with_name(scratch.name + end).unlink(missing_ok=True)


def _translated(error: sqlite3.Error | OSError, target: Path) -> DiskFullError | StorageError:
    is_full = error.errno in NO_ROOM if isinstance(error, OSError) else lacks_room(error, target.parent)
    if is_full:
        return DiskFullError(f"There is no room for the copy {target}", action="Free some space and try again")
    return StorageError(
        f"The copy {target} cannot be made", got=str(error), action="Check the owner of its folder, and the disk"
    )
