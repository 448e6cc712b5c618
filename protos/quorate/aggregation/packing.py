"""Updates as coefficients: weighted fixed-point integers in lanes, above room for the noise of encryption.

A value x of a site of weight w becomes u = rint(w * clip(x) / step), and a coefficient carries one u in each of its
lanes: Delta * (u_0 + 2^b u_1 + 2^2b u_2), signed, with Delta = 2^d. Adding coefficients adds lanes. The noise of all
sites stays below Delta / 2, so rounding the opened sum to a multiple of Delta leaves exact integer sums, with a
probability of failure of zero for honest input. That no noise is left is a security property and not a nicety: what
approximate decryption leaves in its output gives the key away (Li and Micciancio, https://eprint.iacr.org/2020/1533).

Which value sits where: values are cut into runs of DEGREE; the first run is lane 0 of the first polynomial, the next
one its lane 1, and so on, then come the lanes of the second polynomial. The last polynomial is filled up with zeros.

No lane overflows: with weights of at most 1 together, |sum of u| <= (bound + 9 sigma) / step + n/2 = 2^(b-1) - 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quorate.aggregation.plain import WEIGHT_ONE, Floats
from quorate.aggregation.ring import DEGREE, Integers
from quorate.aggregation.rlwe import NOISE_BOUND
from quorate.errors import ContributionError

MAX_SITES = 1024
MAX_LANES = 3
MAX_SITES_OF_THREE_LANES = 16
"""With more sites three lanes are too coarse: b would be 12 bits and less."""

_SUM_BITS = 51
"""Sums of messages use the signed integers of 51 bits; q has 52 and takes the noise on top."""
_BLOCK = 16
"""Polynomials worked on at a time, so that temporaries stay in the cache."""


@dataclass(frozen=True, slots=True)
class Packing:
    """Parameters that all sites of a study share.

    Args:
        bound: Each coordinate of an update is clipped to [-bound, bound].
        sites: The size n of the roster.
        lanes: Values to a coefficient, 1 to 3; three only for rosters of up to 16.
        noise_std: The largest standard deviation of the privacy noise in the weighted sum, in the update's unit.
    """

    bound: float
    sites: int
    lanes: int = 2
    noise_std: float = 0.0

    def __post_init__(self) -> None:
        """Refuse parameters for which the promises of this module do not hold.

        Whatever passes leaves a lane at least 13 bits (three lanes, 16 sites), so ``step`` is always positive.

        Raises:
            ContributionError: a parameter is out of range.
        """
        if not (math.isfinite(self.bound) and self.bound > 0):
            raise ContributionError("The bound of an update is out of range", expected="a finite number above 0")
        if not (math.isfinite(self.noise_std) and self.noise_std >= 0):
            raise ContributionError("The privacy noise is out of range", expected="a finite number from 0")
        if not 1 <= self.sites <= MAX_SITES:
            raise ContributionError("The size of the roster is out of range", expected=f"1 to {MAX_SITES} sites")
        if not 1 <= self.lanes <= MAX_LANES:
            raise ContributionError("The number of lanes is out of range", expected=f"1 to {MAX_LANES}")
        if self.lanes == MAX_LANES and self.sites > MAX_SITES_OF_THREE_LANES:
            raise ContributionError(
                "Three lanes are too coarse for this roster", expected=f"at most {MAX_SITES_OF_THREE_LANES} sites"
            )

    @property
    def delta_bits(self) -> int:
        """d: the bits below the lanes, room for the noise of all sites (and 64 for SEAL's floating-point decoder)."""
        return math.ceil(math.log2(2 * (self.sites * NOISE_BOUND + 64)))

    @property
    def lane_bits(self) -> int:
        """b: the bits of a lane of the sum."""
        return (_SUM_BITS - self.delta_bits) // self.lanes

    @property
    def step(self) -> float:
        """The weight of the last bit of a lane, in the update's unit."""
        largest = (1 << self.lane_bits - 1) - 1
        return (self.bound + 9 * self.noise_std) / (largest - self.sites / 2)

    def polynomials(self, dimension: int) -> int:
        """How many polynomials hold so many values."""
        return -(-dimension // (self.lanes * DEGREE))

    def encode(self, update: Floats, weight: int) -> tuple[Integers, int]:
        """A piece of an update as coefficients, and how many coordinates had to be clipped.

        Pieces of a multiple of lanes * DEGREE values encode to what the whole would; only the last may be shorter.

        Args:
            update: (k,). weight: in units of 1/WEIGHT_ONE; the weights of all sites are at most 1 together.

        Returns:
            (polynomials(k), DEGREE) coefficients.

        Raises:
            ContributionError: a weight outside (0, WEIGHT_ONE].
        """
        integers, clipped = self.quantise(update, weight)
        return self.combine(integers), clipped

    def quantise(self, update: Floats, weight: int, toward_zero: bool = False) -> tuple[Integers, int]:
        """The weighted fixed-point integers of a piece, (k,), to which privacy noise may be added; like ``encode``.

        Whatever the values are, there are integers for them: infinity is the bound, and what is no number is 0. Whether
        an update is refused would say something of the records that it was trained on.

        Args:
            toward_zero: Round so that no update becomes longer than it was.
        """
        if not 0 < weight <= WEIGHT_ONE:
            raise ContributionError("The weight of an update is out of range", expected="above 0 and at most 1")
        scale = weight / WEIGHT_ONE / self.step
        integers, clipped = np.empty(update.shape, dtype=np.int64), 0
        values = _BLOCK * DEGREE
        for start in range(0, update.size, values):
            x = update[start : start + values]
            # The extremes of values with a NaN among them are NaN.
            low, high = float(x.min()), float(x.max())
            if not (-self.bound <= low and high <= self.bound):
                exact = np.asarray(x, dtype=np.float64)
                clipped += int(np.count_nonzero(~(np.abs(exact) <= self.bound)))
                x = np.clip(np.nan_to_num(exact, nan=0.0), -self.bound, self.bound)
            scaled = np.multiply(x, scale, dtype=np.float64)
            rounded = np.trunc if toward_zero else np.rint
            rounded(scaled, out=integers[start : start + x.size], casting="unsafe")
        return integers, clipped

    def combine(self, integers: Integers) -> Integers:
        """Lanes to coefficients: (k,) integers to (polynomials(k), DEGREE)."""
        return self.join(integers) << self.delta_bits

    def join(self, integers: Integers) -> Integers:
        """The same without room for the noise below: what a tag covers, and what ``Participant.encrypt`` takes."""
        whole = integers.size // (self.lanes * DEGREE)
        joined = np.empty((self.polynomials(integers.size), DEGREE), dtype=np.int64)
        self._join(integers[: whole * self.lanes * DEGREE], joined[:whole])
        if whole < len(joined):
            rest = np.zeros(self.lanes * DEGREE, dtype=np.int64)
            rest[: integers.size - whole * rest.size] = integers[whole * rest.size :]
            self._join(rest, joined[whole:])
        return joined

    def _join(self, integers: Integers, out: Integers) -> None:
        lanes = integers.reshape(-1, self.lanes, DEGREE)
        for start in range(0, len(out), _BLOCK):
            joined, block = out[start : start + _BLOCK], lanes[start : start + _BLOCK]
            # From the highest lane down, as in Horner's rule; shifts of negative numbers multiply.
            np.copyto(joined, block[:, -1])
            for lane in range(self.lanes - 2, -1, -1):
                np.left_shift(joined, self.lane_bits, out=joined)
                np.add(joined, block[:, lane], out=joined)

    def round_noise(self, opened: Integers) -> Integers:
        """An opened sum without Delta and without its noise: exact.

        The residue is a free check for a wrong key or share. It does not find tampering: multiples of Delta pass.

        Raises:
            ContributionError: a residue is larger than the noise of all sites can be (and 16 for SEAL's decoder).
        """
        rounded = (opened + (1 << (self.delta_bits - 1))) >> self.delta_bits
        residues = opened - (rounded << self.delta_bits)
        limit = self.sites * NOISE_BOUND + 16
        if opened.size and (int(residues.max()) > limit or int(residues.min()) < -limit):
            raise ContributionError("The sum does not open", action="Nothing was applied; the round is lost")
        return rounded

    def decode(self, opened: Integers, dimension: int) -> Integers:
        """The exact sums of the sites' integers, (dimension,).

        Args:
            opened: (polynomials(dimension), DEGREE) coefficients with noise, centred.

        Raises:
            ContributionError: the sum does not open, or is not of this dimension.
        """
        if opened.shape != (self.polynomials(dimension), DEGREE):
            raise ContributionError("A sum is not of the model's size")
        sums = np.empty((len(opened), self.lanes, DEGREE), dtype=np.int64)
        sign_bits = 64 - self.lane_bits
        for start in range(0, len(opened), _BLOCK):
            rest, lanes = self.round_noise(opened[start : start + _BLOCK]), sums[start : start + _BLOCK]
            for lane in range(self.lanes - 1):
                # The low b bits with their sign: shifted to the top and, arithmetically, back.
                np.right_shift(rest << sign_bits, sign_bits, out=lanes[:, lane])
                rest = (rest - lanes[:, lane]) >> self.lane_bits
            np.copyto(lanes[:, -1], rest)
        return sums.reshape(-1)[:dimension]

    def require_bounded(self, sums: Integers, weight: int) -> None:
        """That sums of integers are no larger than those of clipped updates with their noise can be.

        Args:
            weight: The sum of the survivors' weights, in units of 1/WEIGHT_ONE.

        Raises:
            ContributionError: one is.
        """
        limit = (self.bound * weight / WEIGHT_ONE + 9 * self.noise_std) / self.step + self.sites / 2
        if sums.size and max(int(sums.max()), -int(sums.min())) > limit:
            raise ContributionError("A sum is larger than the sites' updates can be together")

    def average(self, sums: Integers, weight: int) -> npt.NDArray[np.float64]:
        """The weighted average from sums of integers.

        The error is at most n * step / 2 over the weight.

        Args:
            weight: The sum of the survivors' weights, in units of 1/WEIGHT_ONE.

        Raises:
            ContributionError: the total weight is not in (0, 1], but for a unit that rounding up may add for each site.
        """
        if not 0 < weight <= WEIGHT_ONE + self.sites:
            raise ContributionError("The total weight of a sum is out of range", expected="above 0 and at most 1")
        average: npt.NDArray[np.float64] = sums * np.float64(self.step * WEIGHT_ONE / weight)
        return average
