"""Integer noise against the exact distribution."""

from __future__ import annotations

import math
from decimal import Context, Decimal
from fractions import Fraction
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import strategies as st

from quorate.errors import PrivacyRefusedError
from quorate.privacy.noise import (
    MAX_SIGMA,
    SeededRandomness,
    _happens,
    _table,
    discrete_gaussian,
)
from tests.protos.secagg.kit import surprise

KEY = bytes(range(32))
SIGMAS = [0.5, 1.0, 3.2, 50.0, 57.0, 400.0]
"""One integer to a piece up to 56; the last two have more."""
KNOWN_SMALL = [-1, -1, -1, 0, -1, 1, 0, 0, 0, 0, 2, -1]
KNOWN_LARGE = [-69274, 39403, 18774, 68133, -103152, -19908, -249115, 36376, -140773, 188009, 131748, -126927]
KNOWN_XOR = -58624533
finite = st.floats(-1e6, 1e6, width=32)


class CountingRandomness:
    """Counts the bytes that are drawn."""

    def __init__(self) -> None:
        self.drawn = 0
        self._stream = SeededRandomness(KEY)

    def draw(self, count: int) -> bytes:
        self.drawn += count
        return self._stream.draw(count)


def draws(sigma: float, count: int, key: bytes = KEY) -> npt.NDArray[np.int64]:
    return discrete_gaussian(SeededRandomness(key), sigma, count)


def exact(sigma: float, reach: int) -> npt.NDArray[np.float64]:
    """The probabilities of -reach to reach by definition."""
    support = range(-math.ceil(12 * sigma), math.ceil(12 * sigma) + 1)
    total = math.fsum(math.exp(-z * z / (2 * sigma * sigma)) for z in support)
    return np.array([math.exp(-z * z / (2 * sigma * sigma)) / total for z in range(-reach, reach + 1)])


def misfit(noise: npt.NDArray[np.int64], sigma: float) -> float:
    """Standard deviations by which a chi-square test against N_Z(0, sigma^2) is off; both tails are a cell each."""
    expected = exact(sigma, math.ceil(12 * sigma)) * noise.size
    reach = int((expected >= 20).sum() - 1) // 2
    inner = expected[len(expected) // 2 - reach : len(expected) // 2 + reach + 1]
    tail = (noise.size - inner.sum()) / 2
    counts = np.bincount(np.clip(noise, -reach - 1, reach + 1) + reach + 1, minlength=2 * reach + 3)
    cells = slice(None) if tail >= 1 else slice(1, -1)
    return surprise(counts[cells], np.array([tail, *inner, tail])[cells])


# --- the distribution -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_noise_is_a_discrete_gaussian(sigma: float) -> None:
    assert abs(misfit(draws(sigma, 1_000_000), sigma)) < 4


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_test_of_the_distribution_finds_a_wrong_sigma(sigma: float) -> None:
    assert misfit(draws(sigma, 1_000_000), sigma * 1.03) > 8


def test_the_test_of_the_distribution_finds_rounded_continuous_noise() -> None:
    rounded = np.rint(np.random.default_rng(1).normal(0, 1, 1_000_000)).astype(np.int64)
    assert misfit(rounded, 1.0) > 8


@pytest.mark.parametrize("sigma", [1e3, 123_456.789, 1e7, MAX_SIGMA])
def test_large_noise_has_the_moments_and_the_shape_of_a_gaussian(sigma: float) -> None:
    count = 1_000_000
    x = draws(sigma, count) / sigma
    # Standard errors of the mean, the variance, skewness and kurtosis of a Gaussian.
    assert abs(x.mean()) < 4 * math.sqrt(1 / count)
    assert abs((x**2).mean() - 1) < 4 * math.sqrt(2 / count)
    assert abs((x**3).mean()) < 4 * math.sqrt(15 / count)
    assert abs((x**4).mean() - 3) < 4 * math.sqrt(96 / count)
    edges = [-math.inf, *np.linspace(-3, 3, 61), math.inf]
    cumulative = [0.5 * math.erfc(-edge / math.sqrt(2)) for edge in edges]
    counts, _ = np.histogram(x, bins=np.array([-100, *edges[1:-1], 100]))
    assert abs(surprise(counts, np.array([b - a for a, b in pairwise(cumulative)]) * count)) < 4


@pytest.mark.parametrize("sigma", [50.0, 1e3, 1e7])
def test_low_bits_are_uniform_and_draws_do_not_depend_on_each_other(sigma: float) -> None:
    noise = draws(sigma, 1_000_000)
    low = noise & 7
    assert abs(surprise(np.bincount(low, minlength=8), np.full(8, noise.size / 8))) < 4
    pairs = low[:-1:2] * 8 + low[1::2]
    assert abs(surprise(np.bincount(pairs, minlength=64), np.full(64, pairs.size / 64))) < 4
    for lag in (1, 2, 3, 512):
        correlation = float(np.corrcoef(noise[:-lag], noise[lag:])[0, 1])
        assert abs(correlation) < 4 / math.sqrt(noise.size)
        sizes = float(np.corrcoef(np.abs(noise[:-lag]), np.abs(noise[lag:]))[0, 1])
        assert abs(sizes) < 4 / math.sqrt(noise.size)


@pytest.mark.parametrize("sigma", [0.01, 0.5, 3.2, 56.0, 57.0, 12_345.6, MAX_SIGMA])
def test_pieces_are_chosen_with_their_exact_chances(sigma: float) -> None:
    table = _table(sigma)
    chances: dict[int, int] = {}
    for slot, threshold in enumerate(table.thresholds.tolist()):
        own, other = table.starts[2 * slot : 2 * slot + 2].tolist()
        chances[own] = chances.get(own, 0) + threshold
        chances[other] = chances.get(other, 0) + (1 << 54) - threshold
    context = Context(prec=60)
    densities = {
        s: context.exp(context.divide(-(s**2), 2 * context.power(Decimal(sigma), 2))) for s in chances if chances[s]
    }
    total = sum(densities.values())
    assert sum(chances.values()) == 1 << 64
    distance = sum(abs(Decimal(chances[s]) / (1 << 64) - density / total) for s, density in densities.items()) / 2
    assert distance < Decimal(2) ** -55
    # Every integer within 9 sigma is in a piece, and in one only.
    reached = sorted(table.starts[0::2].tolist())
    assert {b - a for a, b in pairwise(reached)} <= {table.width, 1}
    assert min(-reached[0], reached[-1]) + table.width > 9.14 * sigma


@pytest.mark.parametrize("t", [0.0, 1e-12, 0.01, 0.1, 0.25, 0.3333])
def test_a_draw_is_kept_with_the_exact_probability(t: float) -> None:
    probability = Fraction(Context(prec=60).exp(-Decimal(t)))
    border = int(probability * (1 << 53))
    near = np.array([border - 2, border - 1, border + 1, border + 2], dtype=np.uint64) << np.uint64(11)
    if t:
        assert _happens(near, np.full(4, t)).tolist() == [True, True, False, False]
    else:
        assert _happens(near[:2], np.zeros(2)).all()


class GivenBytes:
    """Draws what it was given."""

    def __init__(self, words: list[int]) -> None:
        self._rest = np.array(words, dtype="<u8").tobytes()

    def draw(self, count: int) -> bytes:
        drawn, self._rest = self._rest[:count], self._rest[count:]
        return drawn


@pytest.mark.parametrize("sigma", [57.0, 168.0, 12_345.6])
@pytest.mark.parametrize("slot", [3, 100, 600])
def test_a_candidate_is_kept_with_the_probability_of_its_own_integer(sigma: float, slot: int) -> None:
    table = _table(sigma)
    start, place = int(table.starts[2 * slot]), table.width - 1
    integer = start + place if start >= 0 else start - place
    exponent = Decimal(start**2 - integer**2) / (2 * Decimal(sigma) ** 2)
    border = int(Fraction(Context(prec=60).exp(exponent)) * (1 << 53))
    for nearby, kept in ((border - 3, [integer]), (border + 3, [])):
        words = [slot << 54, (1 << 32) - 1, nearby << 11]
        assert table.candidates(GivenBytes(words), 1).tolist() == kept


def test_a_place_in_a_piece_is_drawn_again_where_it_would_favour_some() -> None:
    table = _table(56.0 * 1000)  # 1000 integers to a piece, and 2^32 is 296 more than a multiple of that
    unit = (1 << 32) // 1000 + 1
    words = np.array([0, 1, unit, unit + 1, (1 << 32) - 1, (1 << 40) - 1], dtype=np.uint64)
    places, fair = table._places(words)
    assert places.tolist() == [0, 0, 1, 1, 999, 999]
    assert fair.tolist() == [False, True, True, True, True, True]


def test_few_candidates_are_thrown_away() -> None:
    for sigma in (57.0, 112.5, 1e3, 1e7):
        source = CountingRandomness()
        discrete_gaussian(source, sigma, 100_000)
        assert source.drawn < 100_000 * 24 / 0.97


# --- the same everywhere ----------------------------------------------------------------------------------------------


def test_the_noise_of_a_key_is_known() -> None:
    # All sites draw the shared noise for themselves: a change of these numbers breaks rounds between versions.
    assert draws(1.0, 12).tolist() == KNOWN_SMALL
    assert draws(123_456.789, 12).tolist() == KNOWN_LARGE
    assert int(np.bitwise_xor.reduce(draws(1e7, 200_000))) == KNOWN_XOR


@pytest.mark.parametrize("sigma", [3.2, 1e5])
def test_noise_drawn_in_parts_is_the_noise_drawn_at_once(sigma: float) -> None:
    source = SeededRandomness(KEY)
    parts = [discrete_gaussian(source, sigma, count) for count in (500, 500, 0, 1, 16_384, 22_615)]
    assert np.array_equal(np.concatenate(parts), draws(sigma, 40_000))


def test_noise_of_another_key_is_other_noise() -> None:
    assert not np.array_equal(draws(1e5, 100), draws(1e5, 100, bytes(32)))
    assert (
        SeededRandomness(KEY).draw(100) == SeededRandomness(KEY).draw(60) + CountingRandomness()._stream.draw(100)[60:]
    )


def test_a_key_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        SeededRandomness(bytes(16))


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, math.inf, MAX_SIGMA * 1.001])
def test_noise_out_of_range_is_refused_before_anything_is_drawn(sigma: float) -> None:
    source = CountingRandomness()
    with pytest.raises(PrivacyRefusedError, match="out of range"):
        discrete_gaussian(source, sigma, 10)
    assert source.drawn == 0
