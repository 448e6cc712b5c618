"""What sites tell of an evaluation: counts that can be added, and the metrics of their sum.

Each site sends the integers of a ``ClassificationTally`` as the extras of its ``evaluate`` reply. Adding them word by
word over the sites gives the tally of all test records together, so loss, accuracy and the rest are those of the pooled
test data and not an average of averages.

The area under the ROC curve comes from histograms of the score, with half credit for a positive and a negative in one
bin. A bin is an equal part of ``sigmoid(log_odds / 3)``, not of the probability: where positives are rare, or a model
is sure of itself, probabilities crowd into the first and the last bins. Measured against the exact area with 256 bins:
within 0.002 for positive rates from 0.1 % up, where bins of the plain probability are off by up to 0.2; within 0.0001
on models of 20 % positives. A model whose scores all lie beyond log odds of +-16 shows a lower area than it has.

What a study lets be told (after which rounds, in how many bins, with how much noise) is in ``privacy/evaluation.py``.
Rates are told under one rule, ``ClassificationTally.metrics``: over at least ``MIN_RECORDS`` records each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from quorate.errors import ContributionError

BINS: Final = 256
LOG_ODDS_SCALE: Final = 3.0
"""A record of log odds z falls into bin ``min(BINS - 1, floor(BINS * sigmoid(z / LOG_ODDS_SCALE)))``."""
LOSS_ONE: Final = 1 << 20
"""The fixed-point unit of summed losses."""
LOSS_CAP: Final = 1024.0
"""What a record adds to the summed loss is cut here, so that no sum of 2^33 records leaves 63 bits."""
MAX_CLASSES: Final = 30
"""So many that a tally fits into a reply's extras."""
MIN_RECORDS: Final = 10
"""A rate over fewer records is told to nobody: of eleven patients one of whom was ill, the recall is that patient's."""
RATES: Final = frozenset({"loss", "train_loss", "accuracy", "auc", "recall", "specificity"})
"""What is told of a round, by name: ``ClassificationTally.metrics``, and the loss of its training."""


@dataclass(frozen=True, slots=True)
class TallyForm:
    """How the counts of a tally are written down.

    Args:
        bins: Of each histogram; a divisor of BINS.
        one: What a record counts. Above 1 only in counts that carry noise, which is drawn in parts of a record.
    """

    bins: int = BINS
    one: int = 1

    @property
    def is_noisy(self) -> bool:
        return self.one > 1


EXACT: Final = TallyForm()


@dataclass(frozen=True, slots=True)
class ClassificationTally:
    """Counts over test records. Valid once built; adding the encoded words of two tallies gives a valid tally.

    Noisy counts may be negative and contradict each other, and the loss beside them is 0: no bound on a record's loss
    that is small enough to be hidden would leave it the loss.

    Args:
        classes: How many classes; with two, class 1 is the positive one.
        loss_fixed: The sum of the records' losses in units of 1/LOSS_ONE.
        confusion: classes x classes counts, row by row; the row is the true class, the column the predicted one.
        histograms: For each scored class 2 x bins counts: records of the class, then of all others, by the log odds
            of the class. With two classes only class 1 is scored, beyond that every class.
    """

    classes: int
    loss_fixed: int
    confusion: tuple[int, ...]
    histograms: tuple[int, ...]
    form: TallyForm = EXACT

    def __post_init__(self) -> None:
        k = self.classes
        if (
            not 2 <= k <= MAX_CLASSES
            or len(self.confusion) != k * k
            or len(self.histograms) != _scored(k) * 2 * self.form.bins
            or (self.form.is_noisy and self.loss_fixed)
        ):
            raise ContributionError("The counts of an evaluation are malformed")
        if self.form.is_noisy:
            return
        if min(self.loss_fixed, *self.confusion, *self.histograms) < 0:
            raise ContributionError("The counts of an evaluation are malformed")
        for scored, (members, others) in enumerate(self._pairs(), start=k - _scored(k)):
            true = sum(self.confusion[scored * k : (scored + 1) * k])
            if sum(members) != true or sum(others) != self.records - true:
                raise ContributionError("The counts of an evaluation contradict each other")

    @property
    def records(self) -> float:
        """The test records that were counted."""
        return sum(self.confusion) / self.form.one

    def encode(self) -> tuple[int, ...]:
        """The words that are added over the sites. Their number tells how many classes there are."""
        return (self.loss_fixed, *self.confusion, *self.histograms)

    @classmethod
    def decode(cls, extras: Sequence[int], form: TallyForm = EXACT) -> ClassificationTally:
        """Read words, of one site or summed.

        Raises:
            ContributionError: not the words of a tally in this form.
        """
        for classes in range(2, MAX_CLASSES + 1):
            counts = 1 + classes * classes
            if len(extras) == counts + _scored(classes) * 2 * form.bins:
                return cls(classes, extras[0], tuple(extras[1:counts]), tuple(extras[counts:]), form)
        raise ContributionError("The counts of an evaluation have a length that no number of classes gives")

    def written(self, form: TallyForm) -> ClassificationTally:
        """Exact counts in another form, without noise yet: neighbouring bins added up, without the loss if noisy."""
        width = self.form.bins // form.bins
        starts = range(0, len(self.histograms), width)
        return ClassificationTally(
            self.classes,
            0 if form.is_noisy else self.loss_fixed,
            tuple(form.one * count for count in self.confusion),
            tuple(form.one * sum(self.histograms[start : start + width]) for start in starts),
            form,
        )

    def metrics(self, least: int = MIN_RECORDS) -> dict[str, float]:
        """Loss (mean per record), accuracy and auc; with two classes also recall and specificity.

        Beyond two classes the area is the plain mean of each class against the rest. What fewer than ``least`` records
        speak of is left out. So is everything that speaks of one of two classes where the other one has fewer: with the
        accuracy it would give that one's rate.

        Args:
            least: Fewer than the usual ones only for whoever holds the records.
        """
        if self.records < least:
            return {}
        records, k = sum(self.confusion), self.classes
        correct = [self.confusion[c * k + c] for c in range(k)]
        rates = {"accuracy": sum(correct) / records}
        counted = least * self.form.one
        pairs = [(members, others) for members, others in self._pairs() if min(sum(members), sum(others)) >= counted]
        if pairs:
            rates["auc"] = sum(_area(members, others) for members, others in pairs) / len(pairs)
        negatives, positives = sum(self.confusion[:k]), sum(self.confusion[k:])
        if pairs and k == 2 and min(negatives, positives) >= counted:
            rates |= {"recall": correct[1] / positives, "specificity": correct[0] / negatives}
        within = {name: min(max(rate, 0.0), 1.0) for name, rate in rates.items()}  # noise may lead out
        return within if self.form.is_noisy else {"loss": self.loss_fixed / LOSS_ONE / records, **within}

    def _pairs(self) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """For each scored class the histogram of its records and that of the others."""
        bounds = pairwise(range(0, len(self.histograms) + 1, self.form.bins))
        parts = [self.histograms[start:end] for start, end in bounds]
        return list(zip(parts[::2], parts[1::2], strict=True))


def sensitivity(classes: int) -> float:
    """How far one record more or fewer moves the counts of a tally, all together (L2), but for the loss.

    It is in one place of the confusion, and in one histogram of each scored class.
    """
    return math.sqrt(1 + _scored(classes))


def _scored(classes: int) -> int:
    return 1 if classes == 2 else classes


def _area(members: Sequence[int], others: Sequence[int]) -> float:
    """The share of (member, other) pairs in which the member scores higher; a shared bin counts half."""
    twice = below = 0
    for member, other in zip(members, others, strict=True):
        twice += member * (2 * below + other)
        below += other
    return twice / (2 * sum(members) * below)
