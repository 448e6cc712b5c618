"""Counting a classifier's outputs."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from quorate.tally import BINS, LOG_ODDS_SCALE, LOSS_CAP, LOSS_ONE
from quorate_client.tasks.models.scoring import tally


def test_metrics_of_a_tally_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(5)
    labels = (rng.random(4000) < 0.1).astype(np.int64)
    odds = rng.normal(-2.5 + 1.5 * labels, 1.0)
    losses = np.logaddexp(0, np.where(labels == 1, -odds, odds))
    metrics = tally(odds[:, None], losses, labels).metrics()
    assert metrics["auc"] == pytest.approx(roc_auc_score(labels, odds), abs=5e-4)
    assert metrics["loss"] == pytest.approx(log_loss(labels, 1 / (1 + np.exp(-odds))), abs=1e-6)
    assert metrics["accuracy"] == ((odds > 0) == labels).mean()
    assert metrics["recall"] == (odds[labels == 1] > 0).mean()
    assert metrics["specificity"] == (odds[labels == 0] <= 0).mean()


@pytest.mark.parametrize("base_rate", [0.001, 0.03, 0.5])
@pytest.mark.parametrize("spread", [0.5, 2.0])
def test_the_area_stays_close_where_positives_are_rare(base_rate: float, spread: float) -> None:
    rng = np.random.default_rng(2)
    odds = rng.normal(np.log(base_rate), spread, 200_000)
    labels = (rng.random(len(odds)) < 1 / (1 + np.exp(-odds))).astype(np.int64)
    area = tally(odds[:, None], np.zeros(len(odds)), labels).metrics()["auc"]
    assert area == pytest.approx(roc_auc_score(labels, odds), abs=2e-3)


def test_several_classes_are_scored_against_the_rest_without_saturating() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 4, 2000)
    logits = rng.normal(size=(2000, 4)) + 1.5 * np.eye(4)[labels]
    powers = np.exp(logits)
    probabilities = powers / powers.sum(axis=1, keepdims=True)
    found = tally(logits, np.zeros(2000), labels)
    assert found.classes == 4
    assert found.metrics()["auc"] == pytest.approx(roc_auc_score(labels, probabilities, multi_class="ovr"), abs=1e-3)
    assert found.metrics()["accuracy"] == (logits.argmax(axis=1) == labels).mean()
    extreme = tally(np.array([[900.0, -900.0, 0.0], [-900.0, 900.0, 0.0]]), np.zeros(2), np.array([0, 1]))
    assert extreme.metrics(least=1)["auc"] == 1.0


def test_a_score_falls_into_the_bin_that_the_contract_defines() -> None:
    logits = np.array([[2.0, 0.0, 0.0]])
    found = tally(logits, np.zeros(1), np.array([0]))
    for place, odds in ((0, 2 - np.log(2)), (3, -np.log(1 + np.exp(2))), (5, -np.log(1 + np.exp(2)))):
        histogram = found.histograms[place * BINS : (place + 1) * BINS]
        assert histogram.index(1) == int(BINS / (1 + np.exp(-odds / LOG_ODDS_SCALE)))
        assert sum(histogram) == 1


def test_two_logits_count_like_their_difference() -> None:
    odds, labels = np.linspace(-3, 3, 50), np.arange(50) % 2
    two = np.stack([np.full(50, 1.5), odds + 1.5], axis=1)
    assert tally(two, np.zeros(50), labels) == tally(odds[:, None], np.zeros(50), labels)


def test_a_loss_is_cut_so_that_sums_cannot_overflow() -> None:
    found = tally(np.array([[5.0], [5.0]]), np.array([1e30, 0.5]), np.array([0, 1]))
    assert found.loss_fixed == (LOSS_CAP + 0.5) * LOSS_ONE


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("classes", [1, 2, 3])
def test_outputs_that_are_not_finite_are_counted_like_any(bad: float, classes: int) -> None:
    """Whether an evaluation is refused would say something of the records."""
    labels = np.array([0, 1])
    outputs = np.zeros((2, classes))
    outputs[1, -1] = bad
    found = tally(outputs, np.array([0.0, bad]), labels)
    assert sum(found.confusion) == 2
    assert found.loss_fixed == (0.0 if bad == -np.inf else LOSS_CAP) * LOSS_ONE
