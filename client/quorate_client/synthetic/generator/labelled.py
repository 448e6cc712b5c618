"""Class by column: how often each class has each bin, measured for all columns in one sum.

A record counts in each column with the scores of its bin, all of them differences from what is usual: shares of bins
that are known by then. Most records are usual in most columns, so their rows are short, far shorter than plain counts
are, and less noise hides them. A word has a score of its own, and so have missing values. Numbers have polynomials of
their rank, the higher ones with less weight: so a trend is measured with less noise than what is odd about one bin.
Rows that are longer than most are shortened.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quorate_client.synthetic.generator.bins import Bins
from quorate_client.synthetic.generator.estimates import Counts, expected_values
from quorate_client.synthetic.generator.release import Noisy
from quorate_client.synthetic.generator.sums import ScoreSums

_STEPS = 256
"""Whole numbers to a score of 1."""
_LONGEST, _SHARES = 0.4, (0.7, 2.0)
"""Squared length of a row over what is expected of one: where noise is as large as a class, and least and most."""
_ORDERED = 0.5
"""Squared length of the trend's score over that of words with the same shares: all powers together weigh like those."""
_RECORDS = 0.5
"""That each bin has beside what was counted: no bin is impossible."""
_LEAST = 1e-9
"""Variance of what is exact."""


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Scores of one column's bins: over all records they add up to nothing.

    Args:
        usual: [bins] shares of the bins.
        of_bin: [bins, scores].
        back: [scores, bins] the counts that a sum of scores stands for, as differences from the usual ones.
        sizes: [scores] the mean of each in a class that is about as unusual in all of them.
    """

    usual: Counts
    of_bin: Counts
    back: Counts
    sizes: Counts


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Sums of one column's scores.

    Args:
        sums: [classes, scores]. variances: [scores] of each of them.
    """

    sums: Counts
    variances: Counts


def scores_of(bins: Bins) -> Scores:
    usual = (bins.totals + _RECORDS) / (bins.totals.sum() + _RECORDS * bins.count)
    ordered, everything = bins.ordered, np.eye(bins.count)
    of_bin, back, sizes = (everything - usual)[:, ordered:], everything[ordered:], np.sqrt(usual[ordered:])
    if not ordered:
        return Scores(usual, of_bin, back, sizes)
    known = usual[:ordered] / usual[:ordered].sum()
    back[:, :ordered] = -known  # a missing value more is a known one less
    degrees = np.arange(1.0, ordered)
    weights = math.sqrt(_ORDERED * (1 - float(usual @ usual))) / degrees
    powers = _powers(known)
    trends = np.zeros((bins.count, ordered - 1))
    trends[:ordered] = powers * weights / math.sqrt(usual[:ordered].sum())
    counts = np.zeros((ordered - 1, bins.count))
    counts[:, :ordered] = (powers * known[:, None] / weights).T * math.sqrt(usual[:ordered].sum())
    return Scores(usual, np.hstack([trends, of_bin]), np.vstack([counts, back]), np.append(weights / degrees, sizes))


def _powers(shares: Counts) -> Counts:
    """[bins, bins - 1] polynomials of the bins' rank: of mean 0 and variance 1, and none goes with another."""
    ranks = 2 * np.cumsum(shares) - shares - 1
    roots = np.sqrt(shares)[:, None]
    basis: Counts = np.linalg.qr(roots * ranks[:, None] ** np.arange(len(shares)))[0][:, 1:] / roots
    return basis


@dataclass(frozen=True, slots=True, eq=False)
class Scoring:
    """Scores of all columns.

    Args:
        length: Of a record's row of scores; longer ones are shortened.
    """

    columns: Sequence[Scores]
    length: float

    def differences(self, name: str, classes: int) -> ScoreSums:
        """The sum over the records of each class of their scores, in whole steps."""
        steps = [np.rint(_STEPS * each.of_bin).astype(np.int64) for each in self.columns]
        return ScoreSums(name, classes, steps, _STEPS * self.length)


def scoring_of(bins: Sequence[Bins], smallest_class: float, noise: float) -> Scoring:
    """Scores of all columns, and how long a row of them may be: shorter rows have less noise, and tell less of records
    that are unusual in many columns. At least one column may always be as unusual as can be.

    Args:
        smallest_class: Records of the rarest class. noise: For a row of length 1.
    """
    columns = [scores_of(each) for each in bins]
    expected = sum(float(each.usual @ (each.of_bin**2).sum(axis=1)) for each in columns)
    hidden = noise * math.sqrt(expected) / max(smallest_class, 1.0)
    share = float(np.clip(_LONGEST / np.cbrt(max(hidden, _LEAST)), *_SHARES))
    return Scoring(columns, math.sqrt(max(2.0, share * expected)))


def parts(noisy: Noisy, scored: Sequence[Scores]) -> list[Measured]:
    """``Scoring.differences`` for each column."""
    ends = np.cumsum([each.of_bin.shape[1] for each in scored])
    variance = max((noisy.sigma / _STEPS) ** 2, _LEAST)
    sums = np.split(noisy.values / _STEPS, ends[:-1], axis=1)
    return [Measured(each, np.full(each.shape[1], variance)) for each in sums]


def from_counts(table: Noisy, scores: Scores) -> Measured:
    """What a table of counts [classes, bins] tells of the sums."""
    variances = table.sigma**2 * (scores.of_bin**2).sum(axis=0)
    return Measured(table.values @ scores.of_bin, np.maximum(variances, _LEAST))


def tables(measured: Sequence[Sequence[Measured]], counts: Counts, scored: Sequence[Scores]) -> list[Counts]:
    """For each column counts [classes, bins], some of them perhaps below 0.

    Args:
        measured: For each column all that was measured of it. counts: [classes] how many records the classes have.
    """
    together = [pooled(each) for each in measured]
    found = [np.outer(counts, each.usual) for each in scored]
    for label, count in enumerate(counts):
        sums, variances = [each.sums[label] for each in together], [each.variances for each in together]
        sizes = [max(float(count), 1.0) * each.sizes for each in scored]
        for table, each, sum_ in zip(found, scored, expected_values(sums, variances, sizes), strict=True):
            table[label] += sum_ @ each.back
    return found


def pooled(measured: Sequence[Measured]) -> Measured:
    """The mean of measurements of the same sums, by their precision."""
    precision = np.sum([1 / each.variances for each in measured], axis=0)
    sums = np.sum([each.sums / each.variances for each in measured], axis=0)
    return Measured(sums / precision, 1 / precision)
