"""What the tests of secure aggregation share: randomness that can be repeated, and a test of uniformity."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from quorate.aggregation.ring import MODULUS, Polynomials


class SeededRandomness:
    """A ``Randomness`` that repeats itself: AES-256 in counter mode under a number as its key."""

    def __init__(self, seed: int) -> None:
        self._stream = Cipher(algorithms.AES(seed.to_bytes(32, "big")), modes.CTR(bytes(16))).encryptor()

    def draw(self, count: int) -> bytes:
        return self._stream.update(bytes(count))


def surprise(counts: npt.NDArray[np.int64], expected: npt.NDArray[np.float64]) -> float:
    """How many standard deviations a chi-square statistic lies above its mean (Wilson and Hilferty)."""
    freedom = len(counts) - 1
    statistic = float((np.square(counts - expected) / expected).sum())
    spread = 2 / (9 * freedom)
    return (math.cbrt(statistic / freedom) - (1 - spread)) / math.sqrt(spread)


def looks_uniform(words: Polynomials) -> bool:
    """Whether words pass for uniform below MODULUS, in 256 equal intervals and in their lowest 8 bits.

    Four standard deviations: with the fixed seeds of the tests it either always passes or never.
    """
    even = np.full(256, words.size / 256)
    intervals = np.bincount((words.reshape(-1) // np.uint64(MODULUS // 256 + 1)).astype(np.int64), minlength=256)
    low_bits = np.bincount((words.reshape(-1) & np.uint64(255)).astype(np.int64), minlength=256)
    return surprise(intervals, even) < 4 and surprise(low_bits, even) < 4


def random_words(seed: int, *shape: int) -> Polynomials:
    return np.random.default_rng(seed).integers(0, MODULUS, shape, dtype=np.uint64)
