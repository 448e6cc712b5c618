"""Tables of counts from noisy ones: projected, shrunk, raked. Noise is all they know of, no record."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.float64]

_SCALES = np.array([0.0, 0.03, 0.06, 0.12, 0.25, 0.5, 1.0, 2.0])


def simplex(values: Counts, total: float) -> Counts:
    """The nearest counts (in squares) that are none below 0 and add up to ``total``."""
    flat = values.ravel()
    falling = np.sort(flat)[::-1]
    excess = (np.cumsum(falling) - total) / np.arange(1, flat.size + 1)
    last = np.flatnonzero(falling > excess)
    level = excess[last[-1]] if last.size else falling[0]
    nearest: Counts = np.maximum(flat - level, 0).reshape(values.shape)
    return nearest


def shrunk(measured: Counts, toward: Counts, variance: float) -> Counts:
    """Measured values moved toward a guess, the more the less they differ from it for their noise (James and Stein).

    Args:
        variance: Of each measured value.
    """
    difference = measured - toward
    distance = float((difference**2).sum())
    if distance == 0:
        return toward
    return toward + max(0.0, 1 - (measured.size - 1) * variance / distance) * difference


def expected_values(
    measured: Sequence[Counts], variances: Sequence[Counts], sizes: Sequence[Counts], turns: int = 30
) -> list[Counts]:
    """What noisy values of several columns are on average, given what was measured (empirical Bayes).

    A column's values are normal around 0, with ``sizes`` times one of a few scales for standard deviations. How many
    columns have which scale is estimated from all of them: where most are noise, what stands out little is noise too.

    Args:
        measured: For each column [values]. variances, sizes: Of each of them.
    """
    fits, values = [], []
    for found, variance, size in zip(measured, variances, sizes, strict=True):
        spread = (_SCALES[:, None] * size) ** 2
        total = spread + variance
        fits.append(-0.5 * (np.log(total) + found**2 / total).sum(axis=1))
        values.append(spread / total * found)
    likelihoods = np.exp(np.stack(fits) - np.max(fits, axis=1, keepdims=True))
    chances, shares = likelihoods, np.ones(len(_SCALES))
    for _ in range(turns):
        chances = likelihoods * shares
        chances /= chances.sum(axis=1, keepdims=True)
        shares = chances.sum(axis=0) + 1 / len(_SCALES)
    return [chance @ value for chance, value in zip(chances, values, strict=True)]


def raked(table: Counts, rows: Counts, columns: Counts, turns: int = 30) -> Counts:
    """A table [..., rows, columns] scaled in turns until its margins are the given ones (nearly)."""
    fitted: Counts = table + 1e-9 * (rows.sum() + 1e-9) / table.size
    for _ in range(turns):
        fitted = fitted * _ratio(columns, fitted.sum(axis=-2))[..., None, :]
        fitted = fitted * _ratio(rows, fitted.sum(axis=-1))[..., :, None]
    return fitted


def without_three_way(rows: Counts, columns: Counts, pairs: Counts, turns: int = 30) -> Counts:
    """The table [classes, rows, columns] of these margins in which a pair's odds do not depend on the class.

    Args:
        rows: [classes, rows]. columns: [classes, columns]. pairs: [rows, columns], over all classes.
    """
    totals = rows.sum(axis=1)
    fitted: Counts = rows[:, :, None] * columns[:, None, :] / np.maximum(totals, 1e-9)[:, None, None] + 1e-9
    for _ in range(turns):
        fitted = fitted * _ratio(pairs, fitted.sum(axis=0))[None]
        fitted = fitted * _ratio(columns, fitted.sum(axis=-2))[..., None, :]
        fitted = fitted * _ratio(rows, fitted.sum(axis=-1))[..., :, None]
    return fitted


def _ratio(wanted: Counts, there: Counts) -> Counts:
    ratio: Counts = np.divide(wanted, there, out=np.zeros_like(there), where=there > 0)
    return ratio
