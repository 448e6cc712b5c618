"""Gaussian noise on integers, drawn exactly.

The noise is the discrete Gaussian N_Z(0, sigma^2), P(z) ~ exp(-z^2 / (2 sigma^2)) on all integers (Canonne, Kamath,
Steinke 2020, https://arxiv.org/abs/2004.00010, definition 1). On integers of L2 sensitivity D it has the Renyi
divergences of the continuous Gaussian, a D^2 / (2 sigma^2) (theorem 4 there), and no low-order bits to attack.

Several sites must be able to draw the same noise from one seed. So there are integer operations here, and of the
floating-point ones only those that IEEE 754 rounds exactly (+ - * / and conversions), each in a ufunc of its own: exp,
log and cos of numpy differ by a bit between CPUs.

How large the noise is that a study asks for is in ``update_noise``, what it costs in ``accounting``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Context, Decimal
from functools import lru_cache
from typing import final

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from quorate.errors import PrivacyRefusedError
from quorate.process.randomness import Randomness

Integers = npt.NDArray[np.int64]

MAX_SIGMA = float(1 << 30)
"""Up to here every product of integers below stays within 63 bits."""

_SLOTS = 1024
_PIECES = _SLOTS // 2
_LARGEST_PIECES_TO_SIGMA = 56
"""The pieces of one side reach to 512/56 > 9.14 sigma: what lies beyond has a chance of 2^-63."""
_SLOT_BITS = 54
"""64 bits choose: 10 a slot, 54 within it."""
_BLOCK = 1 << 14
"""Candidates worked on at a time: temporaries of about 1 MB, in the cache."""
_TAYLOR_DEGREE = 14
"""Of exp(-t) for t < 1/3: what is cut off is below 2^-58."""


@final
class SeededRandomness:
    """AES-256 in counter mode under a given key: whoever has the key draws the same bytes.

    ONLY for noise that all sites must draw alike, from a key that is used for nothing else and for one round. Whoever
    has the key can subtract the noise, so it never protects from the holders of the key. Secrets and a site's own
    noise come from ``SystemRandomness``.
    """

    def __init__(self, key: bytes) -> None:
        """The beginning of the key's stream; ``key`` has 32 bytes."""
        if len(key) != 32:
            raise ValueError("a key of shared noise has 32 bytes")
        self._stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def draw(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        return self._stream.update(bytes(count))


def discrete_gaussian(randomness: Randomness, sigma: float, count: int) -> Integers:
    """Independent draws of N_Z(0, sigma^2), (count,).

    The line of integers is cut into pieces of K, 512 on each side of zero. A piece is drawn with a chance proportional
    to the density at its inner end s, then a place y in it, uniformly, and s + y is kept with probability
    exp(-((s + y)^2 - s^2) / (2 sigma^2)); at least 97 % are. Up to sigma = 56, K is 1 and all are kept.

    Statistical distance of a draw from the exact distribution: below 2^-51. The pieces' chances are multiples of 2^-64
    (2^-55 together), the tail beyond is 2^-63, places are exactly uniform, and the probability of keeping is off by
    four roundings of its exponent (below 1/3, and 1/20 on average), one of itself and the 2^-53 that the uniform
    number it is compared with is a multiple of (2^-52 together).

    The draws are a function of the bytes alone: candidates take 8 (K = 1) or 24 bytes each, in order, and none is
    drawn in advance. Two draws of 500 are one draw of 1000. On every machine they are the same bits.

    Args:
        sigma: Above 0, at most MAX_SIGMA; in units of the integers.

    Raises:
        PrivacyRefusedError: sigma is out of range.
    """
    if not 0 < sigma <= MAX_SIGMA:
        raise PrivacyRefusedError(
            "The noise is out of range", expected=f"a standard deviation above 0 and at most {MAX_SIGMA:g} steps"
        )
    table = _table(float(sigma))
    draws = np.empty(count, dtype=np.int64)
    have = 0
    while have < count:
        kept = table.candidates(randomness, min(count - have, _BLOCK))
        draws[have : have + kept.size] = kept
        have += kept.size
    return draws


@dataclass(frozen=True, slots=True, eq=False)
class _Table:
    """The pieces of a sigma in an alias table (Walker 1977; Vose 1991).

    Args:
        width: K, integers to a piece.
        sigma: The standard deviation.
        thresholds: (_SLOTS,) uint64, of 2^54: below its threshold a slot stands for itself, from there for another.
        starts: (2 * _SLOTS,), the inner ends of the pieces: of slot k itself at 2k, of the other at 2k + 1. Pieces
            from 0 on grow upwards, those from -1 on downwards.
    """

    width: int
    sigma: float
    thresholds: npt.NDArray[np.uint64]
    starts: Integers

    def candidates(self, randomness: Randomness, count: int) -> Integers:
        """Which of the next ``count`` candidates are kept, in order."""
        if self.width == 1:
            return self._pieces(np.frombuffer(randomness.draw(8 * count), dtype="<u8"))
        words = np.frombuffer(randomness.draw(24 * count), dtype="<u8").reshape(count, 3)
        start = self._pieces(words[:, 0])
        place, fair = self._places(words[:, 1])
        # s^2 - (s + y)^2, at most 2^60: exact; the product with 1 / (2 sigma^2) is what is rounded.
        distance = np.abs(start)
        distance += distance
        distance += place
        distance *= place
        keep = _happens(words[:, 2], distance * (0.5 / self.sigma / self.sigma))
        keep &= fair
        np.negative(place, out=place, where=start < 0)
        start += place
        kept: Integers = start[keep]
        return kept

    def _pieces(self, words: npt.NDArray[np.uint64]) -> Integers:
        slots = words >> np.uint64(_SLOT_BITS)
        other = (words & np.uint64((1 << _SLOT_BITS) - 1)) >= self.thresholds[slots]
        slots += slots
        slots += other
        starts: Integers = self.starts[slots]
        return starts

    def _places(self, words: npt.NDArray[np.uint64]) -> tuple[Integers, npt.NDArray[np.bool_]]:
        """Uniform below ``width``, where the draw is fair (Lemire 2019, https://arxiv.org/abs/1805.10941)."""
        products = words & np.uint64((1 << 32) - 1)
        products *= np.uint64(self.width)
        fair = (products & np.uint64((1 << 32) - 1)) >= np.uint64((1 << 32) % self.width)
        products >>= np.uint64(32)
        return products.astype(np.int64), fair


def _happens(words: npt.NDArray[np.uint64], t: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Whether events of probability exp(-t) happen, for t in [0, 1/3)."""
    uniform = (words >> np.uint64(11)).astype(np.float64)
    uniform *= 2.0**-53
    # exp(-t) is at least 1 - t, so only the few that lie above need the series.
    happens = uniform < 1 - t
    doubtful = np.flatnonzero(~happens)
    t, series = t[doubtful], np.ones(doubtful.size)
    for degree in range(_TAYLOR_DEGREE, 0, -1):
        series *= t
        series /= -degree
        series += 1
    happens[doubtful] = uniform[doubtful] < series
    return happens


@lru_cache(maxsize=16)
def _table(sigma: float) -> _Table:
    width = math.ceil(sigma / _LARGEST_PIECES_TO_SIGMA)
    up = [width * piece for piece in range(_PIECES)]
    starts = up + [-1 - start for start in up]
    chances = _chances(sigma, starts)
    # Vose's algorithm in integers: each slot holds exactly 2^54, so what is small is filled up from what is large.
    thresholds, others = [1 << _SLOT_BITS] * _SLOTS, list(range(_SLOTS))
    small = [slot for slot in range(_SLOTS) if chances[slot] < 1 << _SLOT_BITS]
    large = [slot for slot in range(_SLOTS) if chances[slot] >= 1 << _SLOT_BITS]
    while small:
        slot, other = small.pop(), large[-1]
        thresholds[slot], others[slot] = chances[slot], other
        chances[other] -= (1 << _SLOT_BITS) - chances[slot]
        if chances[other] < 1 << _SLOT_BITS:
            small.append(large.pop())
    pairs = [(starts[slot], starts[others[slot]]) for slot in range(_SLOTS)]
    return _Table(width, sigma, np.array(thresholds, dtype=np.uint64), np.array(pairs, dtype=np.int64).reshape(-1))


def _chances(sigma: float, starts: list[int]) -> list[int]:
    """exp(-s^2 / (2 sigma^2)) for each start, in units that add up to 2^64 exactly; decimal rounds exactly."""
    context = Context(prec=50)
    twice_variance = context.multiply(2, context.power(Decimal(sigma), 2))
    densities = [context.exp(context.divide(-(start**2), twice_variance)) for start in starts]
    total = Decimal(0)
    for density in densities:
        total = context.add(total, density)
    unit = context.divide(Decimal(1 << 64), total)
    chances = [int(context.multiply(density, unit).to_integral_value()) for density in densities]
    # What rounding left over, at most 512 units, goes where it matters least.
    chances[0] += (1 << 64) - sum(chances)
    return chances
