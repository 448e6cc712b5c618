"""What an attested machine makes of updates that it may look at: their sum, or a robust value in its place.

Updates lie outside, with whoever runs the machine, and some of their sites may work with him. So each is read twice:
once when it comes, to its end, and again when all are combined, where every block has to be the one that it was.
Nothing of an update is in the result before it was read whole, and the result is a function of what was read first.

Words are those of ``aggregation/plain.py``. A robust value is multiplied by the number of updates, so that sites open
it as they open a sum.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from quorate.aggregation import plain
from quorate.aggregation.schemes import plain_scheme_of
from quorate.errors import ContributionError
from quorate.study.robust_section import Robust
from quorate.study.study import Study
from quorate_server.rounds.aggregate import Update, require_length

ROBUST_BLOCK_BYTES = 64 * 1024
"""Of each update at a time: those of all sites are in memory together."""
_LARGEST = 2**31 - 1
Matrix = npt.NDArray[np.int64]
"""Updates by coordinates."""


@dataclass(frozen=True, slots=True)
class _Read:
    """An update that was read to its end, with the digest of each block, and what brings it to the norm allowed."""

    update: Update
    blocks: tuple[bytes, ...]
    scale: float


class RobustAdder:
    """Combines updates coordinate by coordinate. Holds a block of each, and a digest of every block.

    Args:
        dimension: Parameters of the model.
    """

    def __init__(self, dimension: int, study: Study) -> None:
        self._bytes = dimension * plain.WORD_BYTES
        self._robust = study.robust
        step = plain_scheme_of(study).step * plain.WEIGHT_ONE / plain.weight_of(1, len(study.sites))
        largest = study.robust.largest_norm if study.robust is not None else None
        self._longest = largest / step if largest is not None else math.inf
        self._updates: list[_Read] = []

    @property
    def contents(self) -> tuple[bytes, ...]:
        """A digest of each update."""
        return tuple(hashlib.sha256(b"".join(read.blocks)).digest() for read in self._updates)

    def fold(self, update: Update) -> None:
        """Take in an update, and measure it.

        Raises:
            ContributionError: its file has another length than was said. FrameError: it does not open.
        """
        squares, blocks = 0, []
        with update() as file:
            require_length(file, self._bytes)
            for size in self._sizes():
                block = _block(file, size)
                blocks.append(hashlib.sha256(block).digest())
                squares += _squares(_integers(block))
        # Integers and single roundings: the same scale on every machine.
        norm = math.sqrt(squares)
        scale = self._longest / norm if norm > self._longest else 1.0
        self._updates.append(_Read(update, tuple(blocks), scale))

    def blocks(self) -> Iterator[bytes]:
        """Little-endian words, in blocks.

        Raises:
            ContributionError, FrameError: an update is not any more what it was.
        """
        with ExitStack() as open_files:
            files = [open_files.enter_context(read.update()) for read in self._updates]
            for number, size in enumerate(self._sizes()):
                rows = np.stack(
                    [
                        _scaled(_integers(_same_block(file, size, read.blocks[number])), read.scale)
                        for file, read in zip(files, self._updates, strict=True)
                    ]
                )
                combined = np.clip(combine(rows, self._robust), -_LARGEST, _LARGEST)
                yield combined.astype("<i4").tobytes()

    def _sizes(self) -> Iterator[int]:
        """Of the blocks."""
        for start in range(0, self._bytes, ROBUST_BLOCK_BYTES):
            yield min(ROBUST_BLOCK_BYTES, self._bytes - start)


def combine(rows: Matrix, robust: Robust | None) -> npt.NDArray[np.int64]:
    """The sum of each coordinate, or the robust value times the number of updates, rounded to an integer.

    Args:
        rows: int64[updates, coordinates], each below 2^31.
    """
    count = len(rows)
    combined: npt.NDArray[np.int64]
    if robust is None or robust.rule == "mean":
        combined = rows.sum(axis=0)
    elif robust.rule == "median":
        ordered = np.sort(rows, axis=0)
        low, high = ordered[(count - 1) // 2], ordered[count // 2]
        combined = (low + high) * count // 2
    else:
        out = robust.left_out(count)
        kept = count - 2 * out
        total = np.sort(rows, axis=0)[out : count - out].sum(axis=0) * count
        combined = (2 * total + kept) // (2 * kept)
    return combined


def _block(file: BinaryIO, size: int) -> bytes:
    block = file.read(size)
    if len(block) != size:
        raise ContributionError("An update became shorter while it was read")
    return block


def _same_block(file: BinaryIO, size: int, digest: bytes) -> bytes:
    block = _block(file, size)
    if hashlib.sha256(block).digest() != digest:
        raise ContributionError(
            "An update is not any more what it was when it came, so nothing was summed",
            action="Have the server's disk looked at; no site can change what it sent",
        )
    return block


def _integers(block: bytes) -> Matrix:
    return np.frombuffer(block, "<i4").astype(np.int64)


def _squares(integers: Matrix) -> int:
    """The exact sum of the squares, of halves of 16 bits: of one block each sum is below 2^63."""
    sizes = np.abs(integers)
    high, low = sizes >> 16, sizes & 0xFFFF
    return (int(high @ high) << 32) + (int(high @ low) << 17) + int(low @ low)


def _scaled(integers: Matrix, scale: float) -> Matrix:
    return integers if scale == 1.0 else np.trunc(integers * scale).astype(np.int64)
