"""Noise on sums: all that ever leaves the records.

Each sum has noise from a key of its own, derived from the seed and the sum's name, so the same seed gives the same
noise and no two sums share any.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from quorate.privacy.noise import SeededRandomness, discrete_gaussian
from quorate_client.synthetic.generator.grid import Codes
from quorate_client.synthetic.generator.sums import Sum

_CONTEXT = b"quorate/synthetic/v1/"
_LEAST_STEPS = 64
"""Standard deviation of the noise in steps of the integers, at least: the account is that of continuous noise."""


@dataclass(frozen=True, slots=True, eq=False)
class Noisy:
    """A sum with noise.

    Args:
        values: As the sum has them.
        sigma: The noise's standard deviation for each of them; 0 without privacy.
    """

    values: npt.NDArray[np.float64]
    sigma: float


def randomness(seed: bytes, purpose: str) -> SeededRandomness:
    """A stream of its own for each purpose."""
    return SeededRandomness(HKDF(SHA256(), 32, None, _CONTEXT + purpose.encode()).derive(seed))


@dataclass(frozen=True, slots=True, eq=False)
class Releases:
    """Measures records and adds noise.

    Args:
        seed: Secret; whoever has it can subtract the noise.
    """

    seed: bytes

    def release(
        self, codes: Codes, sums: Sequence[Sum], noise_multiplier: float, weights: Sequence[float] | None = None
    ) -> list[Noisy]:
        """Sums under one noise multiplier: together they cost what one release with it does.

        Args:
            noise_multiplier: 0 for exact sums.
            weights: Which part of the precision each sum gets, in proportion; equal parts if not given.
        """
        parts = [1.0] * len(sums) if weights is None else weights
        return [
            self._noisy(codes, each, noise_multiplier * math.sqrt(sum(parts) / part) * each.sensitivity)
            for each, part in zip(sums, parts, strict=True)
        ]

    def _noisy(self, codes: Codes, measured: Sum, sigma: float) -> Noisy:
        exact = measured.of(codes)
        if sigma == 0:
            return Noisy(exact.astype(np.float64), 0.0)
        steps = max(1, math.ceil(_LEAST_STEPS / sigma))
        noise = discrete_gaussian(randomness(self.seed, f"noise/{measured.name}"), sigma * steps, exact.size)
        return Noisy((exact * steps + noise.reshape(exact.shape)) / steps, sigma)
