"""Files that nobody but their owner may read, from their first byte on."""

from __future__ import annotations

import os
from pathlib import Path

from quorate.errors import AlreadyExistsError


def create_private(path: Path, action: str = "") -> int:
    """Open a new file for writing, mode 0600. Returns its descriptor.

    Raises:
        AlreadyExistsError: there is a file of that name; ``action`` is what to do about it. OSError.
    """
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise AlreadyExistsError(f"{path} exists and is not overwritten", action=action) from error


def write_new(path: Path, content: bytes) -> None:
    """Write a new file. Raises AlreadyExistsError."""
    with os.fdopen(create_private(path), "wb") as file:
        file.write(content)


def write_private(path: Path, content: bytes) -> None:
    """Put a file in place whole, flushed to disk; one of that name is replaced."""
    scratch = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    try:
        with os.fdopen(create_private(scratch), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        scratch.rename(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Take to disk which names are in it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
