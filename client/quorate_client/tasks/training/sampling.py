"""What a step of private training draws: each unit with the same chance, and of a drawn unit one of its rows.

A unit is a record, or all records of one patient where the data set names patients. One row stands for a drawn unit, so
that a unit moves a step's sum by one clipped gradient, however many rows it has: the account is that of DP-SGD on so
many units, and it does not depend on how the row is chosen.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quorate.process.randomness import Randomness


class Units:
    """The units of the training rows.

    Args:
        rows: How many there are.
        of_row: [rows] equal numbers for the rows of one unit; None where each row is a unit of its own.
    """

    def __init__(self, rows: int, of_row: npt.NDArray[np.int64] | None = None) -> None:
        each = np.arange(rows) if of_row is None else of_row
        if len(each) != rows:
            raise ValueError("one unit for each row is expected")
        self._rows = np.argsort(each, kind="stable")
        _, self._starts, self._sizes = np.unique(each[self._rows], return_index=True, return_counts=True)

    @property
    def count(self) -> int:
        return len(self._starts)

    def batch(self, randomness: Randomness, sampling_rate: float) -> Tensor:
        """Numbers of the rows in a step: one of each unit that was drawn, all its rows with the same chance."""
        drawn = poisson_batch(randomness, self.count, sampling_rate).numpy()
        words = np.frombuffer(randomness.draw(8 * len(drawn)), dtype="<u8")
        chosen = (words % self._sizes[drawn].astype(np.uint64)).astype(np.int64)
        return torch.from_numpy(self._rows[self._starts[drawn] + chosen])


def poisson_batch(randomness: Randomness, units: int, sampling_rate: float) -> Tensor:
    """Numbers of the units in a step, each there with chance ``sampling_rate`` and independently of all others.

    The rate is rounded down to a multiple of 2^-64, which is never more than what is accounted for.
    """
    words = np.frombuffer(randomness.draw(8 * units), dtype="<u8")
    bound = int(sampling_rate * 2.0**64)
    taken = words < np.uint64(bound) if bound < 1 << 64 else np.ones(units, dtype=bool)
    return torch.from_numpy(np.flatnonzero(taken))
