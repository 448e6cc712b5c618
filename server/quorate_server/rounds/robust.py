"""What an attested machine makes of updates that it may look at: their sum, or a robust value in its place; sealed.

Words are those of ``aggregation/plain.py``. A robust value is multiplied by the number of updates, so that sites open
it as they open a sum.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from quorate.aggregation import plain
from quorate.aggregation.schemes import plain_scheme_of
from quorate.errors import ContributionError
from quorate.process.chunked_aead import seal_chunks
from quorate.study.robust_section import Robust
from quorate.study.study import Study
from quorate_server.rounds.aggregate import Adder, PlainAdder, Update, require_length

ROBUST_BLOCK_BYTES = 64 * 1024
"""Of each update at a time: those of all sites are in memory together."""
_LARGEST = 2**31 - 1
Matrix = npt.NDArray[np.int64]
"""Updates by coordinates."""


class SealedAdder:
    """An adder whose result leaves the machine under a fresh key, ``key``, which is told once the sum may be read."""

    def __init__(self, adder: Adder) -> None:
        self._adder = adder
        self.key = os.urandom(32)

    def fold(self, update: Update) -> None:
        self._adder.fold(update)

    def blocks(self) -> Iterator[bytes]:
        return seal_chunks(self._adder.blocks(), self.key)


class RobustAdder:
    """Combines updates coordinate by coordinate. Reads each twice, and holds a block of each.

    Args:
        dimension: Parameters of the model.
    """

    def __init__(self, dimension: int, robust: Robust, study: Study) -> None:
        self._bytes = dimension * plain.WORD_BYTES
        self._robust = robust
        step = plain_scheme_of(study).step * plain.WEIGHT_ONE / plain.weight_of(1, len(study.sites))
        self._longest = robust.largest_norm / step if robust.largest_norm is not None else math.inf
        self._updates: list[tuple[Update, float]] = []

    def fold(self, update: Update) -> None:
        """Take in an update, and measure it.

        Raises:
            ContributionError: its file has another length than was said. FrameError: it does not open.
        """
        squares = 0.0
        with update() as file:
            require_length(file, self._bytes)
            for start in range(0, self._bytes, ROBUST_BLOCK_BYTES):
                values = _integers(file, min(ROBUST_BLOCK_BYTES, self._bytes - start)).astype(np.float64)
                squares += float(values @ values)
        norm = math.sqrt(squares)
        self._updates.append((update, self._longest / norm if norm > self._longest else 1.0))

    def blocks(self) -> Iterator[bytes]:
        """Little-endian words, in blocks."""
        with ExitStack() as open_files:
            files = [(open_files.enter_context(update()), scale) for update, scale in self._updates]
            for start in range(0, self._bytes, ROBUST_BLOCK_BYTES):
                size = min(ROBUST_BLOCK_BYTES, self._bytes - start)
                rows = np.stack([_scaled(_integers(file, size), scale) for file, scale in files])
                combined = np.clip(combine(rows, self._robust), -_LARGEST, _LARGEST)
                yield combined.astype("<i4").tobytes()


def combine(rows: Matrix, robust: Robust) -> npt.NDArray[np.int64]:
    """The robust value of each coordinate, times the number of updates, rounded to an integer.

    Args:
        rows: int64[updates, coordinates], each below 2^31.
    """
    count = len(rows)
    combined: npt.NDArray[np.int64]
    match robust.rule:
        case "mean":
            combined = rows.sum(axis=0)
        case "median":
            ordered = np.sort(rows, axis=0)
            low, high = ordered[(count - 1) // 2], ordered[count // 2]
            combined = (low + high) * count // 2
        case "trimmed_mean":
            out = robust.left_out(count)
            kept = count - 2 * out
            total = np.sort(rows, axis=0)[out : count - out].sum(axis=0) * count
            combined = (2 * total + kept) // (2 * kept)
    return combined


def adder_of(study: Study, dimension: int) -> SealedAdder:
    """The adder of one sum; no parameters where only counts are summed."""
    if study.robust is None or not dimension:
        return SealedAdder(PlainAdder(dimension, study))
    return SealedAdder(RobustAdder(dimension, study.robust, study))


def _integers(file: BinaryIO, size: int) -> Matrix:
    block = file.read(size)
    if len(block) != size:
        raise ContributionError("An update became shorter while it was read")
    return np.frombuffer(block, "<i4").astype(np.int64)


def _scaled(integers: Matrix, scale: float) -> Matrix:
    return integers if scale == 1.0 else np.trunc(integers * scale).astype(np.int64)
