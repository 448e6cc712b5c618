"""Class by column: how often each class has each bin, measured for all columns in one sum.

A record counts in each column as the difference between its own bin (1 there, 0 elsewhere) and what is usual: shares of
bins that are known by then. Most records are usual in most columns, so their rows are short, far shorter than plain
counts are, and less noise hides them. What is longer than most is shortened; it then counts for that part as usual.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from quorate_client.synthetic.generator.bins import Bins
from quorate_client.synthetic.generator.estimates import Counts
from quorate_client.synthetic.generator.release import Noisy
from quorate_client.synthetic.generator.sums import Integers, ScoreSums

_STEPS = 32
"""Whole numbers to one record."""
_LONGEST = 1.3
"""Squared length of a row over what is expected of one; at least one column may always be as unusual as can be."""


def differences(name: str, classes: int, bins: Sequence[Bins]) -> ScoreSums:
    """The sum over the records of each class of their differences from what is usual."""
    usual = [_usual(each) for each in bins]
    scores: list[Integers] = [_STEPS * np.eye(len(steps), dtype=np.int64) - steps for steps in usual]
    expected = [float((steps / _STEPS) @ (score**2).sum(axis=1)) for steps, score in zip(usual, scores, strict=True)]
    return ScoreSums(name, classes, scores, max(_STEPS * math.sqrt(2), math.sqrt(_LONGEST * sum(expected))))


def tables(measured: Noisy, counts: Counts, bins: Sequence[Bins]) -> list[Noisy]:
    """For each column counts [classes, bins].

    Args:
        measured: ``differences``. counts: [classes] how many records the classes have.
    """
    found, start = [], 0
    for each in bins:
        part = measured.values[:, start : start + each.count] / _STEPS
        start += each.count
        found.append(Noisy(part + counts[:, None] * (_usual(each) / _STEPS), measured.sigma / _STEPS))
    return found


def _usual(bins: Bins) -> Integers:
    """The share of each bin, in whole steps."""
    totals = bins.totals
    usual: Integers = np.rint(_STEPS * totals / max(float(totals.sum()), 1e-9)).astype(np.int64)
    return usual
