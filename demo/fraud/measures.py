"""How good a list of alerts is: what it finds among few investigations, and what that is worth.

Not accuracy: whoever calls each claim genuine is right 97 times in a hundred. The higher a claim's score, the sooner
it is looked at.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Truth = npt.NDArray[np.bool_]
Scores = npt.NDArray[np.float64]
Euros = npt.NDArray[np.float64]

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


@dataclass(frozen=True, slots=True)
class Found:
    """The same of one draw, without intervals."""

    average_precision: float
    recall_1: float
    recall_5: float
    saved_5: float
    auc: float


def measure(truth: Truth, scores: Scores, sums: Euros, stakes: Stakes) -> Found:
    """What investigating by score finds; of equal scores the first in the file is first.

    Args:
        sums: Insured, in euros, [claims].
    """
    order = np.argsort(-scores, kind="stable")
    frauds, count = truth[order], int(truth.sum())
    found = np.cumsum(frauds)
    first_1, first_5 = (max(1, math.ceil(share * len(truth))) for share in (0.01, 0.05))
    unpaid = stakes.proven * float((sums[order] * frauds)[:first_5].sum())
    # Of each fraud, how many genuine claims come before it.
    genuine_before = np.flatnonzero(frauds) + 1 - found[frauds]
    return Found(
        average_precision=float((found[frauds] / (np.flatnonzero(frauds) + 1)).sum() / count),
        recall_1=float(found[first_1 - 1] / count),
        recall_5=float(found[first_5 - 1] / count),
        saved_5=unpaid - stakes.investigation_eur * first_5,
        auc=1.0 - float(genuine_before.sum()) / (count * (len(truth) - count)),
    )


def quality(truth: Truth, scores: Scores, sums: Euros, stakes: Stakes, other: Scores | None = None) -> Quality:
    """All figures of one way to train.

    Args:
        other: Scores of another way; the draws are the same for both.
    """
    draws = _draws(truth)
    found = [measure(truth[draw], scores[draw], sums[draw], stakes) for draw in draws]
    figures = {field.name: _figure([getattr(one, field.name) for one in found]) for field in dataclasses.fields(Found)}
    if other is None:
        return Quality(**figures)
    others = [measure(truth[draw], other[draw], sums[draw], stakes) for draw in draws]
    pairs = zip(others, found, strict=True)
    return Quality(**figures, against=_figure([a.average_precision - b.average_precision for a, b in pairs]))


def _figure(values: list[float]) -> Figure:
    """The first is of all claims as they are, the others of draws."""
    low, high = np.quantile(values[1:], (0.025, 0.975))
    return Figure(values[0], float(low), float(high))


def _draws(truth: Truth) -> list[npt.NDArray[np.int64]]:
    """All claims; then claims drawn with replacement, as many frauds each time as there are. Always the same ones."""
    rng = np.random.default_rng(0)
    kinds = [np.flatnonzero(truth), np.flatnonzero(~truth)]
    drawn = [np.concatenate([rng.choice(kind, len(kind)) for kind in kinds]) for _ in range(DRAWS)]
    return [np.arange(len(truth)), *drawn]
