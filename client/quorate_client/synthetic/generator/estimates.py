"""Tables of counts from noisy ones: projected, shrunk, raked. Noise is all they know of, no record."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.float64]


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
