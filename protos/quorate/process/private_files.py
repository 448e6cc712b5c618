"""New files, most of which nobody but their owner may read, from their first byte on."""

from __future__ import annotations

import os
from pathlib import Path

from quorate.errors import AlreadyExistsError, NotFoundError


def create_private(path: Path, action: str = "") -> int:
    """Open a new file for writing, mode 0600. As ``create_new``."""
    return create_new(path, action, 0o600)


def create_new(path: Path, action: str = "", mode: int = 0o666) -> int:
    """Open a new file for writing. Returns its descriptor.

    Args:
        mode: Less what the umask takes away. As it is: for what is no secret.

    Raises:
        AlreadyExistsError: there is a file of that name; ``action`` is what to do about it. NotFoundError: its folder
            is not there. OSError.
    """
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError as error:
        raise AlreadyExistsError(f"{path} exists and is not overwritten", action=action) from error
    except FileNotFoundError as error:
        raise no_folder(path) from error


def no_folder(path: Path) -> NotFoundError:
    """That a file's folder is not there."""
    return NotFoundError(f"There is no folder {path.parent} to write {path.name} into", action="Make the folder first")


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
