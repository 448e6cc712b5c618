"""Utility: how well a model does on real held-out records if it was trained on the synthetic set and not on real ones.

Two learners, because a set can serve one and fail the other: logistic regression, and boosted trees, which live from
what columns say together. What counts (``loss``) is the AUC of the better of the two trained on real records less that
of the better of the two trained on the set: one of them is what somebody would use. A label that came loose from its
record shows in it, however good all single columns look.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from quorate.study.section import Frozen
from quorate_client.synthetic.report.figures import CONFIDENCE, Interval, auc, quantiles
from quorate_client.tasks.data.schema import TabularSchema
from quorate_client.tasks.data.table import Table
from quorate_client.tasks.models.tabular_features import column_sums, features, standardisation

RARE_CLASS = 0.1
"""The share of a class below which average precision says more than AUC."""
_DRAWS = 300

Learner = Literal["logistic regression", "boosted trees"]
Scores = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
LEARNERS: tuple[Learner, ...] = ("logistic regression", "boosted trees")


class Trained(Frozen):
    """One learner.

    Args:
        real: AUC on held-out records when trained on real records.
        synthetic: The same when trained on the synthetic set.
        loss: The first less the second, on the same held-out records.
        real_precision: Average precision, where a class is rare.
    """

    learner: Learner
    real: Interval
    synthetic: Interval
    loss: Interval
    real_precision: Interval | None
    synthetic_precision: Interval | None


class Utility(Frozen):
    """What was found.

    Args:
        tested: Held-out records, and those of the class that is looked for (of several classes: the rarest one).
        loss: Of the better learner; None where the held-out part holds one class only, so that nothing can be told.
    """

    tested: int
    tested_positive: int
    learners: tuple[Trained, ...]
    loss: Interval | None


def examine(
    schema: TabularSchema,
    training: Table,
    held_out: Table,
    synthetic: Table,
    rng: np.random.Generator,
    progress: Callable[[float], None] = lambda _: None,
) -> Utility:
    classes = len(schema.label.class_order)
    positive = 1 if classes == 2 else int(np.bincount(training.labels, minlength=classes).argmin())
    tested, tested_positive = held_out.records, int((held_out.labels == positive).sum())
    if len(np.unique(held_out.labels)) < 2:
        return Utility(tested=tested, tested_positive=tested_positive, learners=(), loss=None)
    state = int(rng.integers(2**31))
    scores = {}
    for place, learner in enumerate(LEARNERS):
        scores[learner] = tuple(_scores(learner, schema, part, held_out, state) for part in (training, synthetic))
        progress((place + 1) / (len(LEARNERS) + 1))
    draws = [np.arange(tested), *rng.integers(tested, size=(_DRAWS, tested))]
    areas = np.array(
        [
            [[mean_auc(side[draw], held_out.labels[draw]) for side in scores[learner]] for learner in LEARNERS]
            for draw in draws
        ]
    )
    rare = float((training.labels == positive).mean()) < RARE_CLASS
    best = areas.max(axis=1)
    progress(1.0)
    return Utility(
        tested=tested,
        tested_positive=tested_positive,
        learners=tuple(
            Trained(
                learner=learner,
                real=_interval(areas[:, place, 0]),
                synthetic=_interval(areas[:, place, 1]),
                loss=_interval(areas[:, place, 0] - areas[:, place, 1]),
                real_precision=_precision(scores[learner][0], held_out.labels, positive, draws) if rare else None,
                synthetic_precision=_precision(scores[learner][1], held_out.labels, positive, draws) if rare else None,
            )
            for place, learner in enumerate(LEARNERS)
        ),
        loss=_interval(best[:, 0] - best[:, 1]),
    )


def mean_auc(scores: Scores, labels: Labels) -> float:
    """The AUC of each class against the others, averaged over the classes that occur; of two classes the AUC.

    Args:
        scores: [records, classes]
    """
    if scores.shape[1] == 2:
        return auc(scores[:, 1], labels == 1)
    found = [auc(scores[:, place], labels == place) for place in np.unique(labels)]
    return float(np.mean(found))


def _scores(learner: Learner, schema: TabularSchema, trained_on: Table, tested: Table, state: int) -> Scores:
    """[records, classes] the chance of each class, for the records of ``tested``."""
    by = standardisation(schema, column_sums(schema, trained_on))
    known, labels = features(schema, trained_on, by), trained_on.labels
    scores = np.zeros((tested.records, len(schema.label.class_order)))
    present = np.unique(labels)
    if len(present) == 1:
        scores[:, present] = 1.0
        return scores
    model = _model(learner, state).fit(known, labels)
    scores[:, present] = model.predict_proba(features(schema, tested, by))
    return scores


def _model(learner: Learner, state: int) -> Any:
    if learner == "logistic regression":
        return LogisticRegression(max_iter=5000)
    return HistGradientBoostingClassifier(early_stopping=False, random_state=state)


def _precision(scores: Scores, labels: Labels, positive: int, draws: list[npt.NDArray[np.int64]]) -> Interval | None:
    """Average precision for the class ``positive``; a draw without it has none."""
    found = [
        average_precision_score(labels[draw] == positive, scores[draw, positive])
        for draw in draws
        if (labels[draw] == positive).any()
    ]
    return _interval(np.array(found)) if (labels == positive).any() else None


def _interval(drawn: Scores) -> Interval:
    """The first is the figure itself, the others are a bootstrap's."""
    low, high = quantiles(drawn[1:], CONFIDENCE)
    return Interval(found=float(drawn[0]), low=low, high=high)
