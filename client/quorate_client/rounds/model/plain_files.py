"""Float32 files that a task may have written: opened without trust, read in blocks."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from quorate.errors import TaskFailedError
from quorate.rounds.blobs import INLINE_BYTES, Blob
from quorate.rounds.spool import Spool

BLOCK_BYTES = 1024 * 1024


def open_plain(path: Path) -> BinaryIO:
    """Open a file that a task's process may have written.

    Raises:
        TaskFailedError: it is not there, or not a plain file.
    """
    try:
        # Without O_NONBLOCK, opening a named pipe would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise TaskFailedError("The task did not write the file it was asked for", got=error.strerror or "") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise TaskFailedError("The task wrote something that is not a plain file")
    return os.fdopen(descriptor, "rb")


def require_size(file: BinaryIO, size: int) -> None:
    found = os.fstat(file.fileno()).st_size
    if found != size:
        raise TaskFailedError(
            "The task's update does not have the model's size", expected=f"{size} bytes", got=f"{found}"
        )


def store(content: bytes, spool: Spool) -> Blob:
    """Bytes as a blob: inline if they are few, else in the spool."""
    return store_pieces(iter([content]), len(content), spool)


def store_file(path: Path, spool: Spool) -> Blob:
    """A file as a blob: inline if it is small, else in the spool.

    Raises:
        TaskFailedError: not a plain file.
    """
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        return store_pieces(read_blocks(file, size), size, spool)


def store_pieces(content: Iterator[bytes], size: int, spool: Spool) -> Blob:
    """The same of bytes that come in pieces, ``size`` together."""
    return Blob.of(b"".join(content)) if size <= INLINE_BYTES else spool.put(content)


def read_blocks(file: BinaryIO, size: int) -> Iterator[bytes]:
    """The next ``size`` bytes of a file, in blocks.

    Raises:
        TaskFailedError: the file ends before.
    """
    for start in range(0, size, BLOCK_BYTES):
        block = file.read(min(BLOCK_BYTES, size - start))
        if len(block) != min(BLOCK_BYTES, size - start):
            raise TaskFailedError("A file became shorter while it was read")
        yield block
