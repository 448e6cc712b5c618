"""Noise on sums: of the right size, from a key of its own for each sum, and the same again for the same seed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quorate_client.synthetic.generator.release import Releases
from quorate_client.synthetic.generator.sums import Counts
from tests.client.synthetic.generator.kit import SEED
from tests.protos.secagg.kit import surprise

CODES = np.zeros((7, 1), np.int16)
MANY = 30_000


def noise(multiplier: float, name: str = "many", seed: bytes = SEED, companions: int = 0) -> np.ndarray:
    sums = [Counts(name, (0,), (MANY,)), *(Counts(f"{name}/{n}", (0,), (1,)) for n in range(companions))]
    noisy = Releases(seed).release(CODES, sums, multiplier)[0]
    return noisy.values - sums[0].of(CODES)


def misfit(steps: np.ndarray, sigma: float) -> float:
    """Standard deviations by which a chi-square test is off, over cells of a fourth of sigma, and the tails."""
    assert steps == pytest.approx(np.rint(steps), abs=1e-6)
    steps = np.rint(steps)
    edges = np.rint(np.arange(-3, 3.1, 0.25) * sigma) + 0.5
    chances = np.diff([0, *(0.5 * (1 + math.erf(edge / sigma / math.sqrt(2))) for edge in edges), 1])
    counts = np.bincount(np.searchsorted(edges, steps), minlength=len(chances))
    return surprise(counts, chances * len(steps))


@pytest.mark.parametrize(("multiplier", "companions"), [(100.0, 0), (50.0, 3), (3.0, 0)])
def test_the_noise_is_the_gaussian_that_the_event_names_shared_by_the_sums(multiplier: float, companions: int) -> None:
    sigma = multiplier * math.sqrt(1 + companions)
    steps = max(1, math.ceil(64 / sigma))
    assert abs(misfit(noise(multiplier, companions=companions) * steps, sigma * steps)) < 4


def test_the_test_of_the_noise_finds_a_tenth_too_little() -> None:
    assert misfit(noise(90.0), 100.0) > 8


def test_the_same_seed_draws_the_same_noise_and_another_seed_or_name_another() -> None:
    assert (noise(100.0) == noise(100.0)).all()
    for other in (noise(100.0, seed=bytes(32)), noise(100.0, name="other")):
        assert abs(np.corrcoef(noise(100.0), other)[0, 1]) < 0.05


def test_without_privacy_sums_are_exact() -> None:
    (exact,) = Releases(SEED).release(CODES, [Counts("exact", (0,), (3,))], 0.0)
    assert exact.sigma == 0
    assert exact.values.tolist() == [7, 0, 0]
