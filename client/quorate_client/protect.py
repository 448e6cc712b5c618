"""The last code before an update leaves the site: check it, turn it into words, put them into the spool.

It runs in the daemon, not in the task's process, and does not trust what that process wrote: the file must be a plain
file (a link could name one that the task itself may not read), of exactly the study's size, with finite values only.
The update is read, encoded and written in blocks: memory does not grow with the model.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from quorate.blobs import INLINE_BYTES, Blob, Spool
from quorate.errors import TaskFailedError
from quorate.study import Study

if TYPE_CHECKING:
    from quorate.secagg.packing import Packing
    from quorate.secagg.participant import Participant

BLOCK_BYTES = 1024 * 1024
FLOAT_BYTES = 4


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


@dataclass(frozen=True, slots=True)
class Protected:
    """An update that may leave: its words (inline if they are few, else in the spool) and what is told of it."""

    blob: Blob
    weight: int
    clipped: int


def protect(update: Path, dimension: int, weight: int, study: Study, spool: Spool) -> Protected:
    """Turn an update into what may leave the site under the study's protection.

    Args:
        update: float32[dimension], little-endian, as the task wrote it.
        weight: The site's share of all records, see ``secagg/plain.py``.

    Raises:
        TaskFailedError: not an update of this study. UpdateNotFiniteError: it holds NaN or infinity.
        ContributionError: an impossible weight. Nothing is left in the spool then.
    """
    import numpy as np  # the idle daemon does without it

    from quorate.secagg.plain import PlainScheme

    scheme = PlainScheme(study.protection.value_bound, len(study.sites))
    size = dimension * FLOAT_BYTES
    clipped = 0

    def words(file: BinaryIO) -> Iterator[bytes]:
        nonlocal clipped
        for block in read_blocks(file, size):
            encoded, outside = scheme.encode(np.frombuffer(block, "<f4"), weight)
            clipped += outside
            yield encoded.astype("<u4").tobytes()

    with open_plain(update) as file:
        _require_size(file, size)
        return Protected(_store(words(file), size, spool), weight, clipped)


def protect_secretly(
    update: Path, dimension: int, weight: int, packing: Packing, participant: Participant, spool: Spool
) -> Protected:
    """Turn an update into ciphertext that only the sum of enough sites opens.

    Args:
        update: float32[dimension], little-endian, as the task wrote it.
        weight: The site's share of all records, see ``secagg/plain.py``.
        participant: This site's part in the sum; it is where all hellos are checked and the key is drawn.

    Raises:
        TaskFailedError: not an update of this study. UpdateNotFiniteError: it holds NaN or infinity. Nothing is left
            in the spool then.
    """
    import numpy as np  # the idle daemon does without it

    from quorate.secagg import words

    size = dimension * FLOAT_BYTES
    clipped = first = 0

    def ciphertext(file: BinaryIO) -> Iterator[bytes]:
        nonlocal clipped, first
        for block in read_blocks(file, size):
            coefficients, outside = packing.encode(np.frombuffer(block, "<f4"), weight)
            clipped += outside
            lanes = coefficients >> packing.delta_bits
            yield words.pack(participant.encrypt(first, lanes, packing.delta_bits))
            first += len(lanes)

    with open_plain(update) as file:
        _require_size(file, size)
        sent = packing.polynomials(dimension) * words.POLYNOMIAL_BYTES
        return Protected(_store(ciphertext(file), sent, spool), weight, clipped)


def _require_size(file: BinaryIO, size: int) -> None:
    found = os.fstat(file.fileno()).st_size
    if found != size:
        raise TaskFailedError(
            "The task's update does not have the model's size", expected=f"{size} bytes", got=f"{found}"
        )


def store(content: bytes, spool: Spool) -> Blob:
    """Bytes as a blob: inline if they are few, else in the spool."""
    return _store(iter([content]), len(content), spool)


def store_file(path: Path, spool: Spool) -> Blob:
    """A file as a blob: inline if it is small, else in the spool.

    Raises:
        TaskFailedError: not a plain file.
    """
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        return _store(read_blocks(file, size), size, spool)


def _store(content: Iterator[bytes], size: int, spool: Spool) -> Blob:
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
