"""What releases cost: epsilon at a given delta, for neighbours that differ by one unit added or removed.

There are two accountants, because there are two questions.

- ``epsilon`` composes privacy loss distributions (PLD; Doroshenko et al. 2022, https://arxiv.org/abs/2207.04380) and is
  the tighter one. It answers for a plan that was fixed before the first release, or for the first part of one: the
  composition of given distributions says nothing about noise or a number of releases chosen after seeing results.
- ``adaptive_epsilon`` adds up Renyi divergences, which may be chosen in the light of what was released before as long
  as their sum stays below a bound (Feldman and Zrnic 2021, https://arxiv.org/abs/2008.11193, theorem 4.3: a Renyi
  filter). So it is what decides whether one more release is allowed, over studies that know of each other. The theorem
  is for one order; the figure here is of the best of ``ORDERS``. Where the choice of releases depends on results and
  decides which order that is, delta may grow, by a factor of at most how many orders are ever the best (union bound).

Everything rounds against the spender: epsilon is never too low but for what floating point loses, less than a
millionth of it. The arithmetic is dp-accounting's, imported when there is something to compute: that takes a second.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from quorate.errors import PrivacyRefusedError
from quorate.privacy.events import Event

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

Costs = npt.NDArray[np.float64]
"""A Renyi divergence for each of ORDERS."""

ORDERS: tuple[float, ...] = (
    *(1.1, 1.25, 1.5, 1.75, 2, 2.25, 2.5, 2.75, 3, 3.25, 3.5, 3.75, 4, 4.5, 5, 5.5),
    *range(6, 64),
    *(64, 72, 80, 96, 112, 128, 160, 192, 256, 320, 384, 512, 768, 1024),
)
"""Low ones are best for a large epsilon, high ones for a small one."""
MAX_NOISE = 1e4
"""The largest noise multiplier that is ever asked for."""
MAX_COUNT = 10**9
"""The largest count that a planner is given: without limit, for all that matters."""

_MOST_EPSILON = 500.0
"""From here on epsilon is infinite: nothing is promised, and exp(-loss) leaves the range of floating point."""
_LEAST_NOISE = 0.01
"""Below it a release costs infinity. Unsampled it would be an epsilon of 5000."""
_FLAT_NOISE = 1e6
"""Larger noise counts as this, so that its square loses no digits."""
_RENYI_ROUNDING = 1e-14
"""More than what dp-accounting's sums of logarithms lose of a divergence of order up to 1024."""
_LEAST_DELTA = 1e-9
_MOST_COMPOSED = 1_000_000
"""Within both, what the FFT rounds is less than what the cells add, measured against the closed form of all but
unsampled releases. At 30,000 of them and delta 1e-12 epsilon would be 0.3 % too low. Beyond, Renyi's bound is it."""
_STEP = 1e-4
"""Width of the cells of privacy loss. n releases cost about n * _STEP^2 too much: at 100,000, 0.001. Chances of cells
are second differences over the width, so much narrower ones would drown in rounding."""
_CELLS = 1 << 16
"""Where losses span more cells than so many, cells get wider, by powers of 2 so that little is computed again."""


def epsilon(events: Sequence[Event], delta: float) -> float:
    """What a plan costs that was fixed in advance; 0 for nothing, infinity for hardly any noise.

    Raises:
        PrivacyRefusedError: delta is not above 0 and below 1.
    """
    return _epsilon(_merged(events), delta)


class Composition:
    """A plan that is carried out bit by bit, with ``epsilon`` after each.

    Equal releases only count up. A release's distribution is kept, and its power is one FFT whatever the exponent,
    so after a round more there is nothing to gain from the composition before it.
    """

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self._counts = _merged(events)

    def add(self, event: Event) -> None:
        """Count the event's releases in."""
        self._counts.update(_merged([event]))

    def epsilon(self, delta: float) -> float:
        """Like the function ``epsilon``, for all that was added."""
        return _epsilon(self._counts, delta)


def adaptive_epsilon(events: Iterable[Event], delta: float) -> float:
    """What releases cost that were chosen one after another, each in the light of those before it.

    Raises:
        PrivacyRefusedError: delta is not above 0 and below 1.
    """
    return epsilon_of_rdp(sum((rdp_cost(event) for event in events), np.zeros(len(ORDERS))), delta)


def rdp_cost(event: Event) -> Costs:
    """The event's Renyi divergences, of each of ORDERS; they add up over events.

    The subsampled Gaussian's (Mironov, Talwar, Zhang 2019, https://arxiv.org/abs/1908.10530); of fractional orders an
    upper bound, for dp-accounting adds up their alternating series without its signs. Infinite where the noise is too
    small to count, and where such a series does not converge.
    """
    if not event.count:  # infinity times nothing is not a number
        return np.zeros(len(ORDERS))
    return float(event.count) * _rdp_of_one(event.noise_multiplier, event.sampling_rate)


def epsilon_of_rdp(total: Costs, delta: float) -> float:
    """The least epsilon that follows from Renyi divergences (Canonne, Kamath, Steinke 2020, proposition 12).

    Raises:
        PrivacyRefusedError: delta is not above 0 and below 1.
    """
    from dp_accounting.rdp import compute_epsilon

    _require_delta(delta)
    return float(compute_epsilon(ORDERS, total, delta)[0])


@lru_cache(maxsize=256)
def noise_multiplier_for(epsilon: float, delta: float, sampling_rate: float, count: int) -> float:
    """The smallest noise multiplier, of four digits, for which the plan's ``epsilon`` is at most the given one.

    It is too large by at most 0.2 %, never too small.

    Args:
        count: Releases, at least 1. sampling_rate: in (0, 1].

    Raises:
        PrivacyRefusedError: no noise up to MAX_NOISE reaches it, or an argument makes no sense.
    """
    _require_delta(delta)
    if not (epsilon > 0 and math.isfinite(epsilon) and 0 < sampling_rate <= 1 and count >= 1):
        raise PrivacyRefusedError(
            "There is no noise for this promise",
            expected="an epsilon above 0, a sampling rate in (0, 1] and at least one release",
            got=f"epsilon {epsilon:g}, sampling rate {sampling_rate:g}, {count} releases",
        )

    def cost(noise: float, cells: int) -> float:
        return _epsilon(Counter({(noise, sampling_rate): count}), delta, cells)

    # Wide cells are cheap and take us near.
    near = _least_noise(lambda noise: cost(noise, _CELLS >> 4), epsilon, 1.0, 2.0)
    noise = _least_noise(lambda noise: cost(noise, _CELLS), epsilon, near, 1.01)
    if noise > MAX_NOISE:
        raise PrivacyRefusedError(
            "No reasonable noise keeps this promise",
            expected=f"an epsilon that a noise multiplier of at most {MAX_NOISE:g} reaches",
            got=f"epsilon {epsilon:g} at delta {delta:g} for {count} releases at sampling rate {sampling_rate:g}",
            action="Allow a larger epsilon, fewer steps or smaller batches",
        )
    return noise


def affordable_count(
    limit: float, delta: float, noise_multiplier: float, sampling_rate: float, spent: Sequence[Event]
) -> int:
    """The largest count of releases for which ``adaptive_epsilon`` of what is spent and they stays within the limit.

    Args:
        limit: Epsilon for all together. spent: What was released before.

    Raises:
        PrivacyRefusedError: delta is not above 0 and below 1.
    """
    before = sum((rdp_cost(event) for event in spent), np.zeros(len(ORDERS)))

    def fits(count: int) -> bool:
        return epsilon_of_rdp(before + rdp_cost(Event(noise_multiplier, sampling_rate, count)), delta) <= limit

    if not fits(0):
        return 0
    low, high = 0, 1
    while high <= MAX_COUNT and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return min(low, MAX_COUNT)


# --- privacy loss distributions, 2 to 4 MB each -----------------------------------------------------------------------

_Counts = Counter[tuple[float, float]]
"""Releases by noise multiplier and sampling rate."""


def _merged(events: Iterable[Event]) -> _Counts:
    counts: _Counts = Counter()
    for event in events:
        if event.count:
            counts[min(event.noise_multiplier, _FLAT_NOISE), event.sampling_rate] += event.count
    return counts


def _epsilon(counts: _Counts, delta: float, cells: int = _CELLS) -> float:
    """The lower one of two upper bounds: Renyi's, and that of the privacy loss distribution if it can be computed."""
    bound = adaptive_epsilon([Event(noise, rate, count) for (noise, rate), count in counts.items()], delta)
    if bound > _MOST_EPSILON:
        return math.inf
    # Unsampled Gaussians compose to one Gaussian, of closed form.
    precision = sum(count / noise**2 for (noise, rate), count in counts.items() if rate == 1)
    sampled = {mechanism: count for mechanism, count in counts.items() if mechanism[1] < 1}
    if not sampled:
        return min(bound, _epsilon_of_gaussian(1 / math.sqrt(precision), delta)) if precision else 0.0
    if bound == 0 or delta < _LEAST_DELTA or sum(sampled.values()) > _MOST_COMPOSED:
        return bound
    if precision:
        sampled[1 / math.sqrt(precision), 1.0] = 1
    widest = max([bound, *(_largest_loss(noise, rate) for noise, rate in sampled)])
    step = _STEP * 2.0 ** max(0, math.ceil(math.log2(widest / cells / _STEP)))
    total, *others = [_power(noise, rate, step, count) for (noise, rate), count in sampled.items()]
    for other in others:
        total = total.compose(other)
    return min(bound, float(total.get_epsilon_for_delta(delta)))


def _epsilon_of_gaussian(noise: float, delta: float) -> float:
    from dp_accounting import get_epsilon_gaussian

    with np.errstate(divide="ignore"):  # log(0) where nothing can be lost
        return float(get_epsilon_gaussian(noise, delta))


@lru_cache(maxsize=4)
def _power(noise: float, rate: float, step: float, count: int) -> PrivacyLossDistribution:
    return _loss_distribution(noise, rate, step).self_compose(count)


@lru_cache(maxsize=4)
def _loss_distribution(noise: float, rate: float, step: float) -> PrivacyLossDistribution:
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(
        noise, sampling_prob=rate, value_discretization_interval=step
    )


def _largest_loss(noise: float, rate: float) -> float:
    """Of one release, but for the e^-50 that dp-accounting cuts off (ten standard deviations)."""
    unsampled = 10 / noise + 0.5 / noise**2
    return math.log1p(rate * math.expm1(unsampled)) if unsampled < 700 else unsampled


def _least_noise(cost: Callable[[float], float], target: float, start: float, factor: float) -> float:
    """The smallest noise whose cost is at most the target, to 0.2 %; above MAX_NOISE if there is none.

    Args:
        cost: Of a noise multiplier; falls as noise grows, and is infinite near 0.
        start: A guess. factor: How far off it may be.
    """
    low = high = _four_digits(start)
    at_low = at_high = cost(high)
    while at_high > target and high <= MAX_NOISE:
        low, at_low = high, at_high
        high = _four_digits(high * factor)
        at_high, factor = cost(high), factor**1.5
    while at_low <= target:
        high, at_high = low, at_low
        low = _four_digits(low / factor)
        at_low, factor = cost(low), factor**1.5
    while high > 1.002 * low and at_high < 0.999 * target:
        # Epsilon is nearly a power of the noise; aimed a little too high, so as to arrive on the right side.
        share = math.log(at_low / (0.9995 * target)) / math.log(at_low / at_high) if at_high else 0.5
        share = min(max(share, 0.1), 0.9) if math.isfinite(at_low) else 0.5
        middle = _four_digits(low * (high / low) ** share)
        if middle >= high:
            break
        at_middle = cost(middle)
        if at_middle <= target:
            high, at_high = middle, at_middle
        else:
            low, at_low = middle, at_middle
    return high


def _four_digits(noise: float) -> float:
    """Rounded up."""
    scale = 10.0 ** (3 - math.floor(math.log10(noise)))
    return math.ceil(noise * scale) / scale


def _require_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise PrivacyRefusedError("There is no such promise", expected="a delta above 0 and below 1", got=f"{delta:g}")


# --- Renyi divergences ------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def _rdp_of_one(noise: float, rate: float) -> Costs:
    """Of one release. Read-only, for it is shared."""
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    if noise < _LEAST_NOISE:
        costs: Costs = np.full(len(ORDERS), math.inf)
    else:
        release = PoissonSampledDpEvent(rate, GaussianDpEvent(min(noise, _FLAT_NOISE)))
        with _quiet():
            costs = RdpAccountant(ORDERS).compose(release).rdp
        if rate < 1:
            costs = np.maximum(costs, 0) + _RENYI_ROUNDING
    costs.flags.writeable = False
    return costs


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings that an order's series did not converge: such an order is infinite and never the best."""

    def others(record: logging.LogRecord) -> bool:
        return "failed to converge" not in record.msg

    logger = logging.getLogger("absl")
    logger.addFilter(others)
    try:
        yield
    finally:
        logger.removeFilter(others)
