"""How good a list of alerts is: what it finds among few investigations, and what that is worth.

Not accuracy: whoever calls each claim genuine is right 97 times in a hundred. All functions take the truth and a score
for each claim; the higher a score, the sooner the claim is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, roc_auc_score

Truth = npt.NDArray[np.bool_]
Scores = npt.NDArray[np.float64]
Measure = Callable[[Truth, Scores, npt.NDArray[np.float64]], float]

DRAWS = 400


@dataclass(frozen=True, slots=True)
class Stakes:
    """What money is at stake. Assumptions, stated wherever a result of them is.

    Args:
        investigation_eur: What it costs to look into one claim.
        proven: Of the frauds that are looked into, how many can be proven; the sum insured of those is not paid.
    """

    investigation_eur: float = 1_500.0
    proven: float = 0.5


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure with its 95 % interval over draws of the held-out claims."""

    found: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Quality:
    """One way to train, measured.

    Args:
        recall_1, recall_5: Of all frauds, those among the first 1 % and 5 % of claims by score.
        saved_5: Euros, if the first 5 % are investigated.
        against: The average precision of another way less this one's; None: where there is no other.
    """

    average_precision: Figure
    recall_1: Figure
    recall_5: Figure
    saved_5: Figure
    auc: Figure
    against: Figure | None = None


def alerts(scores: Scores, share: float) -> npt.NDArray[np.int64]:
    """The claims that are looked at: the first ``share`` by score, one at least; of equals the first in the file."""
    return np.argsort(-scores, kind="stable")[: max(1, math.ceil(share * len(scores)))]


def recall(truth: Truth, scores: Scores, share: float) -> float:
    return float(truth[alerts(scores, share)].sum() / truth.sum())


def saved_eur(truth: Truth, scores: Scores, sums: npt.NDArray[np.float64], share: float, stakes: Stakes) -> float:
    """Sums insured that are not paid, less what all investigations cost."""
    chosen = alerts(scores, share)
    return float(stakes.proven * sums[chosen][truth[chosen]].sum() - stakes.investigation_eur * len(chosen))


def quality(
    truth: Truth, scores: Scores, sums: npt.NDArray[np.float64], stakes: Stakes, against: Scores | None = None
) -> Quality:
    """All figures of one way to train.

    Args:
        sums: Insured, in euros, [claims].
        against: Scores of another way; the draws are the same for both.
    """
    draws = _draws(truth)

    def figure(measure: Measure) -> Figure:
        found = [measure(truth[draw], scores[draw], sums[draw]) for draw in draws]
        return Figure(measure(truth, scores, sums), *map(float, np.quantile(found, (0.025, 0.975))))

    difference = None
    if against is not None:
        apart = [_precision(truth[d], against[d]) - _precision(truth[d], scores[d]) for d in draws]
        found = _precision(truth, against) - _precision(truth, scores)
        difference = Figure(found, *map(float, np.quantile(apart, (0.025, 0.975))))
    return Quality(
        average_precision=figure(lambda t, s, _: _precision(t, s)),
        recall_1=figure(lambda t, s, _: recall(t, s, 0.01)),
        recall_5=figure(lambda t, s, _: recall(t, s, 0.05)),
        saved_5=figure(lambda t, s, eur: saved_eur(t, s, eur, 0.05, stakes)),
        auc=figure(lambda t, s, _: float(roc_auc_score(t, s))),
        against=difference,
    )


def _precision(truth: Truth, scores: Scores) -> float:
    return float(average_precision_score(truth, scores))


def _draws(truth: Truth) -> list[npt.NDArray[np.int64]]:
    """Claims drawn with replacement, as many frauds each time as there are: the same draws for the same truth."""
    rng = np.random.default_rng(0)
    kinds = [np.flatnonzero(truth), np.flatnonzero(~truth)]
    return [np.concatenate([rng.choice(kind, len(kind)) for kind in kinds]) for _ in range(DRAWS)]
