"""Figures of attacks with their intervals, and when one counts.

Two errors are possible. A set that gives nothing away is refused because one of many attacks had luck; or a set that
gives much away passes because few records show little. Limits are on the *point* that an attack found, as the
literature's convention of 0.09 is, but only if it *stands*: if chance alone (an interval of 99 %, corrected for the
number of comparisons among which the worst is picked) does not explain it. So a copy of the records is refused from a
dozen held-out records on, an honest set in less than one case of a hundred at any size, and below about a thousand
records what does not stand shows nothing: the report says so beside it, and shows the interval of 95 %.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from quorate.study.section import Frozen

CONFIDENCE = 0.95
STANDS = 0.99

Vector = npt.NDArray[np.float64]


class Interval(Frozen):
    """A figure and its interval of 95 %."""

    found: float
    low: float
    high: float


class Advantage(Interval):
    """What an attack achieves against records that were used, beyond what it achieves against held-out ones.

    Args:
        training: Its success against records of the training part.
        held_out: Its success against records of the held-out part: what anybody may infer about anybody.
        found: The difference; ``low`` and ``high`` its interval of 95 %.
        stands: Whether chance does not explain it.
    """

    training: float
    held_out: float
    stands: bool

    @property
    def counted(self) -> float:
        """What a limit is compared with, 0 to 1."""
        return min(max(self.found, 0.0), 1.0) if self.stands else 0.0


def generator_of(seed: bytes, purpose: str) -> np.random.Generator:
    """Random numbers for one purpose."""
    return np.random.default_rng(int.from_bytes(seed_of(seed, purpose)))


def seed_of(seed: bytes, purpose: str) -> bytes:
    """A seed for one purpose, that says nothing about the seeds of others."""
    return hashlib.sha256(purpose.encode() + b"\0" + seed).digest()


def advantage(
    training: npt.ArrayLike, held_out: npt.ArrayLike, *, comparisons: int = 1, share_of_rest: bool = False
) -> Advantage:
    """Compare the successes, 0 to 1 each, against single records of either part.

    The interval is that of Agresti and Caffo (2000), who add a success and a failure to either side: it does not
    collapse where an attack always succeeds or always fails.

    Args:
        comparisons: Among how many such figures the worst is picked.
        share_of_rest: Give the advantage as a share of what was left to gain, as Giomi et al. (2023) do.
    """
    used, unused = (np.asarray(side, dtype=np.float64) for side in (training, held_out))
    gained = _adjusted(used)[0] - _adjusted(unused)[0]
    error = math.sqrt(_adjusted(used)[1] + _adjusted(unused)[1])
    return _advantage(float(used.mean()), float(unused.mean()), gained, error, comparisons, share_of_rest)


def summed_advantage(training: Vector, held_out: Vector, weight: float, *, comparisons: int = 1) -> Advantage:
    """Compare what falls to single records of either part; ``weight`` makes a mean a rate (Welch's interval)."""
    used, unused = float(training.mean() * weight), float(held_out.mean() * weight)
    # A side to which nothing fell has not shown that nothing can: it could have been one.
    error = weight * math.hypot(
        *(math.sqrt(max(side.var(), 1 / len(side)) / len(side)) for side in (training, held_out))
    )
    return _advantage(used, unused, used - unused, error, comparisons, share_of_rest=False)


def clopper_pearson(successes: int, trials: int, confidence: float) -> tuple[float, float]:
    """The exact interval of a rate."""
    tail = (1 - confidence) / 2
    low = stats.beta.ppf(tail, successes, trials - successes + 1) if successes else 0.0
    high = stats.beta.ppf(1 - tail, successes + 1, trials - successes) if successes < trials else 1.0
    return float(low), float(high)


def auc(scores: npt.ArrayLike, positive: npt.NDArray[np.bool_]) -> float:
    """The chance that a positive one scores above a negative one; one half where either is absent."""
    ahead = int(positive.sum())
    behind = len(positive) - ahead
    if not ahead or not behind:
        return 0.5
    ranks = stats.rankdata(scores)
    return float((ranks[positive].sum() - ahead * (ahead + 1) / 2) / (ahead * behind))


def quantiles(drawn: npt.ArrayLike, confidence: float) -> tuple[float, float]:
    """The interval that a bootstrap's draws give."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.asarray(drawn, dtype=np.float64), [tail, 1 - tail])
    return float(low), float(high)


def _adjusted(successes: Vector) -> tuple[float, float]:
    """Mean and variance of the mean with a success and a failure added."""
    padded = np.append(successes, [0.0, 1.0])
    return float(padded.mean()), float(padded.var() / len(padded))


def _advantage(
    used: float, unused: float, centre: float, error: float, comparisons: int, share_of_rest: bool
) -> Advantage:
    scale = 1 / max(1 - unused, 1e-9) if share_of_rest else 1.0
    wide = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) * error
    strict = float(stats.norm.ppf(1 - (1 - STANDS) / 2 / comparisons)) * error
    found = _within((used - unused) * scale)
    return Advantage(
        training=used,
        held_out=unused,
        found=found,
        low=min(found, _within((centre - wide) * scale)),
        high=max(found, _within((centre + wide) * scale)),
        stands=centre - strict > 0,
    )


def _within(value: Any) -> float:
    return float(min(max(value, -1.0), 1.0))
