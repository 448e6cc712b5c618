"""What is measured of the records: sums of integers, each with the most that one record can change it by.

Nothing here draws noise, and what comes out is exact: sums over the records of several sites add up to the sum over
all of them. Noise is ``release``'s matter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from quorate_client.synthetic.generator.grid import Codes

Integers = npt.NDArray[np.int64]

Rows = npt.NDArray[np.float64]

_PIECE_NUMBERS = 1 << 22
"""Numbers worked on at a time."""


class Sum(Protocol):
    """A sum over records, each of which is a row of codes: its label's, then its columns'."""

    @property
    def name(self) -> str:
        """Distinct within a generation: the noise of two sums never comes from one key."""
        ...

    @property
    def sensitivity(self) -> float:
        """The L2 norm of the largest change by one record that is added or removed."""
        ...

    def of(self, codes: Codes) -> Integers:
        """The sum over all rows of ``codes`` [records, 1 + columns]."""
        ...


@dataclass(frozen=True, slots=True)
class Counts:
    """How many records have each combination of cells.

    Args:
        places: Which columns of the codes; 0 is the label.
        shape: How many cells each has.
    """

    name: str
    places: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def sensitivity(self) -> float:
        return 1.0  # a record is in one cell

    def of(self, codes: Codes) -> Integers:
        cells = np.zeros(len(codes), np.int64)
        for place, size in zip(self.places, self.shape, strict=True):
            cells = cells * size + codes[:, place]
        return np.bincount(cells, minlength=math.prod(self.shape)).reshape(self.shape).astype(np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class ScoreProducts:
    """Sums of x_a x_b over all pairs a < b, where x is a record's row of scores, cut to a length.

    The products of one record have the squares' sum (|x|^4 - sum of x_a^4) / 2, at most |x|^4 (1 - 1/d) / 2: reached
    where all scores are equal.

    Args:
        scores: For each column [classes, cells] whole numbers.
        longest: The largest length |x| of a row; longer ones are shortened, and rounded toward zero.
    """

    name: str
    scores: Sequence[Integers]
    longest: float

    @property
    def sensitivity(self) -> float:
        columns = len(self.scores)
        return self.longest**2 * math.sqrt((1 - 1 / columns) / 2)

    def of(self, codes: Codes) -> Integers:
        columns = len(self.scores)
        total = np.zeros((columns, columns))
        piece = max(1, _PIECE_NUMBERS // columns)
        for start in range(0, len(codes), piece):
            rows = self.rows(codes[start : start + piece])
            total += rows.T @ rows  # whole numbers below 2^53: exact
        return total[np.triu_indices(columns, 1)].astype(np.int64)

    def rows(self, codes: Codes) -> Rows:
        """[records, columns] the scores of each record, whole numbers, none longer than ``longest``."""
        labels = codes[:, 0]
        columns = [scores[labels, codes[:, place]] for place, scores in enumerate(self.scores, start=1)]
        return shortened(np.stack(columns, axis=1).astype(np.float64), self.longest)


@dataclass(frozen=True, slots=True, eq=False)
class ScoreSums:
    """For each class the sum of its records' rows of scores, cut to a length: [classes, scores of all columns].

    Args:
        scores: For each column [cells, scores of it] whole numbers.
        longest: As of ``ScoreProducts``: the sensitivity, since a record is in one class.
    """

    name: str
    classes: int
    scores: Sequence[Integers]
    longest: float

    @property
    def sensitivity(self) -> float:
        return self.longest

    def of(self, codes: Codes) -> Integers:
        width = sum(scores.shape[1] for scores in self.scores)
        total = np.zeros((self.classes, width))
        piece = _PIECE_NUMBERS // (width + 1) + 1
        for start in range(0, len(codes), piece):
            part = codes[start : start + piece]
            is_of_class = part[:, 0] == np.arange(self.classes)[:, None]
            total += is_of_class.astype(np.float64) @ self.rows(part)
        return total.astype(np.int64)

    def rows(self, codes: Codes) -> Rows:
        """[records, scores] of each record, whole numbers, none longer than ``longest``."""
        columns = [scores[codes[:, place]] for place, scores in enumerate(self.scores, start=1)]
        return shortened(np.concatenate(columns, axis=1).astype(np.float64), self.longest)


def shortened(rows: Rows, longest: float) -> Rows:
    """The rows, in place, none longer than ``longest``: rounded toward zero, so they stay whole and do not grow."""
    lengths = np.sqrt((rows**2).sum(axis=1))
    is_long = lengths > longest
    rows[is_long] = np.trunc(rows[is_long] * (longest / lengths[is_long])[:, None])
    return rows
