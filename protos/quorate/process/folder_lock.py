"""Which process has a folder: a file in it that is locked. The system frees the lock when the process dies."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quorate.errors import WrongStateError
from quorate.process.storage_errors import os_refusal


@contextmanager
def held(lock: Path, *, what: str, action: str) -> Iterator[None]:
    """Keep others out meanwhile.

    Args:
        what: What is the case when another process has it.
        action: What to do then.

    Raises:
        WrongStateError: another process has it. DiskFullError, StorageError: the file cannot be made.
    """
    try:
        file = lock.open("a")
    except OSError as error:
        raise os_refusal(error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WrongStateError(what, action=action) from error
        yield


def is_held(lock: Path) -> bool:
    """Whether a process has it at this moment."""
    if not lock.exists():
        return False
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
