"""The plain scheme: weighted fixed-point integers that a server adds word by word.

It protects nothing. It exists so that a study with ``protection = "none"`` takes the same path as an encrypted one:
a site encodes its update into words, the server adds words without knowing what they mean, a site opens the sum.

A site k with weight w_k (an integer in units of 1/WEIGHT_ONE, so that the weights of all sites add up to about
WEIGHT_ONE) sends u = rint(w_k * clip(x) / step) modulo 2^32. With the sum of the weights at most 2 * WEIGHT_ONE no
word of the sum can overflow: |sum u| <= (2 * bound + 9 sigma) / step + n/2 <= 2^31 - 1. The error of the average is at
most n * step / (2 W), and adding integers is exact and commutes: the sum does not depend on the order of arrival.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quorate.errors import ContributionError, UpdateNotFiniteError

Words = npt.NDArray[np.uint32]
Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]

WORD_BYTES = 4
WEIGHT_ONE = 1 << 30
MAX_TOTAL_WEIGHT = 2 * WEIGHT_ONE


@dataclass(frozen=True, slots=True)
class PlainScheme:
    """Parameters that all sites of a study share.

    Args:
        bound: Each coordinate of an update is clipped to [-bound, bound].
        sites: The size of the roster.
        noise_std: The largest standard deviation of the privacy noise in the weighted sum, in the update's unit.
    """

    bound: float
    sites: int
    noise_std: float = 0.0

    @property
    def step(self) -> float:
        """The weight of the last bit of a word, in the update's unit."""
        return (2 * self.bound + 9 * self.noise_std) / (2**31 - 1 - self.sites / 2)

    def encode(self, update: Floats, weight: int) -> tuple[Words, int]:
        """A piece of an update as words, and how many coordinates had to be clipped; raises what ``quantise`` does."""
        integers, clipped = self.quantise(update, weight)
        return self.combine(integers), clipped

    def quantise(self, update: Floats, weight: int, toward_zero: bool = False) -> tuple[Integers, int]:
        """The weighted fixed-point integers of a piece (k,), to which privacy noise may be added, and how many
        coordinates had to be clipped.

        Args:
            toward_zero: Round so that no update becomes longer than it was.

        Raises:
            UpdateNotFiniteError: the update holds NaN or infinity. ContributionError: a weight outside (0, WEIGHT_ONE].
        """
        if not 0 < weight <= WEIGHT_ONE:
            raise ContributionError("The weight of an update is out of range", expected="above 0 and at most 1")
        x = np.asarray(update, dtype=np.float64)
        if not np.isfinite(x).all():
            raise UpdateNotFiniteError(
                "Training produced values that are not finite, so nothing was sent",
                action="Lower the learning rate or look for extreme values in the data",
            )
        clipped = int(np.count_nonzero(np.abs(x) > self.bound))
        scaled = np.clip(x, -self.bound, self.bound) * (weight / WEIGHT_ONE / self.step)
        return (np.trunc if toward_zero else np.rint)(scaled).astype(np.int64), clipped

    def combine(self, integers: Integers) -> Words:
        """Integers as words: modulo 2^32."""
        return integers.astype(np.uint32)

    def require_bounded(self, total: Words, weight: int) -> None:
        """That a piece of a sum is no larger than that of clipped updates with their noise can be.

        Args:
            weight: The sum of the survivors' weights, in units of 1/WEIGHT_ONE.

        Raises:
            ContributionError: it is.
        """
        limit = (self.bound * weight / WEIGHT_ONE + 9 * self.noise_std) / self.step + self.sites / 2
        sums = total.view(np.int32).astype(np.int64)
        if sums.size and int(np.abs(sums).max()) > limit:
            raise ContributionError("A sum is larger than the sites' updates can be together")

    def decode(self, total: Words, weight: int) -> npt.NDArray[np.float64]:
        """The weighted average from a piece of the sum.

        Raises:
            ContributionError: the total weight is not in (0, 2].
        """
        if not 0 < weight <= MAX_TOTAL_WEIGHT:
            raise ContributionError("The total weight of a sum is out of range", expected="above 0 and at most 2")
        return total.view(np.int32).astype(np.float64) * (self.step * WEIGHT_ONE / weight)


def weight_of(records: int, total_records: int) -> int:
    """A site's share of all records in units of 1/WEIGHT_ONE: at least 1 and at most WEIGHT_ONE."""
    if records < 1 or total_records < 1:
        raise ContributionError("A weight needs at least one record")
    return max(1, min(WEIGHT_ONE, math.floor(records / total_records * WEIGHT_ONE)))


def add(accumulator: Words, words: Words) -> None:
    """Add modulo 2^32, in place."""
    np.add(accumulator, words, out=accumulator)
