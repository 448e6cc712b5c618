"""Each figure on cases that are counted by hand, and beside scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from demo.fraud.measures import Stakes, measure, quality

STAKES = Stakes(investigation_eur=100.0, proven=0.5)


def test_of_twenty_claims_one_is_looked_at_in_either_share() -> None:
    truth = np.arange(20) < 2
    scores = -np.arange(20.0)
    found = measure(truth, scores, np.full(20, 1_000.0), STAKES)
    assert (found.recall_1, found.recall_5) == (0.5, 0.5)
    assert found.saved_5 == 0.5 * 1_000 - 100
    assert (found.average_precision, found.auc) == (1.0, 1.0)


def test_investigations_of_genuine_claims_cost_and_save_nothing() -> None:
    truth = np.arange(40) == 39
    found = measure(truth, -np.arange(40.0), np.full(40, 9_000.0), STAKES)
    assert found.saved_5 == -200
    assert found.recall_5 == 0
    assert found.average_precision == 1 / 40


def test_of_equal_scores_the_first_in_the_file_is_first() -> None:
    truth = np.arange(20) == 0
    assert measure(truth, np.zeros(20), np.ones(20), STAKES).recall_5 == 1
    assert measure(truth[::-1], np.zeros(20), np.ones(20), STAKES).recall_5 == 0


def test_precision_and_area_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    truth = rng.random(500) < 0.1
    scores = rng.normal(size=500) + truth
    found = measure(truth, scores, np.ones(500), STAKES)
    assert found.average_precision == pytest.approx(average_precision_score(truth, scores))
    assert found.auc == pytest.approx(roc_auc_score(truth, scores))


def test_intervals_hold_the_figure_and_the_difference_is_the_other_way_less_this_one() -> None:
    rng = np.random.default_rng(2)
    truth = rng.random(1_000) < 0.1
    good, poor = rng.normal(size=1_000) + 3 * truth, rng.normal(size=1_000)
    found = quality(truth, poor, np.ones(1_000), STAKES, good)
    assert found.average_precision.low <= found.average_precision.found <= found.average_precision.high
    assert found.against is not None
    assert 0 < found.against.low < found.against.found
    assert quality(truth, good, np.ones(1_000), STAKES).against is None
