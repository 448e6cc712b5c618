"""Class by column from scores: exact where nothing is shortened, and with less noise than counts have."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quorate_client.synthetic.generator import labelled
from quorate_client.synthetic.generator.bins import Bins
from quorate_client.synthetic.generator.labelled import Measured, Scoring, pooled, scores_of, scoring_of
from quorate_client.synthetic.generator.release import Noisy
from quorate_client.synthetic.generator.sums import Counts

CODES = np.array([[0, 0, 1]] * 60 + [[0, 0, 0]] * 30 + [[1, 1, 0]] * 10, np.int16)
BINS = [
    Bins(np.arange(2, dtype=np.int16), np.array([90.0, 10.0])),
    Bins(np.arange(2, dtype=np.int16), np.array([40.0, 60.0])),
]
SCORED = [scores_of(each) for each in BINS]
AGES = Bins(np.arange(5, dtype=np.int16), np.array([20.0, 30.0, 10.0, 25.0, 15.0]), ordered=4)
"""Four bins in order, and missing."""


def test_tables_are_the_counts_where_no_row_is_shortened() -> None:
    exact = Noisy(Scoring(SCORED, 100.0).differences("d", 2).of(CODES).astype(np.float64), 0.0)
    measured = [[each] for each in labelled.parts(exact, SCORED)]
    for place, table in enumerate(labelled.tables(measured, np.array([90.0, 10.0]), SCORED)):
        assert table == pytest.approx(Counts("c", (0, place + 1), (2, 2)).of(CODES), abs=0.5)


@pytest.mark.parametrize("bins", [*BINS, AGES])
def test_what_scores_add_up_to_leads_back_to_the_counts(bins: Bins) -> None:
    scores = scores_of(bins)
    counts = np.arange(2.0 * bins.count).reshape(2, -1)
    sums = labelled.from_counts(Noisy(counts, 0.0), scores).sums
    assert counts.sum(axis=1)[:, None] * scores.usual + sums @ scores.back == pytest.approx(counts)


def test_scores_over_all_records_add_up_to_nothing_and_higher_powers_weigh_less() -> None:
    scores = scores_of(AGES)
    assert scores.usual @ scores.of_bin == pytest.approx(np.zeros(4), abs=1e-9)
    trend, bend, wave, missing = scores.usual @ scores.of_bin**2
    assert [bend / trend, wave / trend] == pytest.approx([1 / 4, 1 / 9])
    assert missing == pytest.approx(scores.usual[4] * (1 - scores.usual[4]))
    assert (np.diff(scores.of_bin[:4, 0]) > 0).all() or (np.diff(scores.of_bin[:4, 0]) < 0).all()
    assert scores.of_bin[4, :3].tolist() == [0, 0, 0]


def test_a_column_that_is_nearly_constant_costs_next_to_nothing() -> None:
    """Counts of eight columns have a sensitivity of 2.83; differences have that of what varies."""
    without_noise, hidden = scoring_of(BINS * 4, 100.0, 0.0).length, scoring_of(BINS * 4, 100.0, 50.0).length
    assert without_noise == pytest.approx(math.sqrt(2.0 * 4 * (0.18 + 0.48)), rel=0.05)
    assert hidden == pytest.approx(math.sqrt(0.7 * 4 * (0.18 + 0.48)), rel=0.05)
    assert scoring_of(BINS * 4, 100.0, 50.0).differences("d", 2).sensitivity == pytest.approx(256 * hidden)


def test_a_record_that_is_unusual_in_one_column_counts_in_full_however_usual_all_are() -> None:
    rare = Bins(np.arange(2, dtype=np.int16), np.array([9999.0, 1.0]))
    sums = scoring_of([rare, rare], 1.0, 50.0).differences("d", 2)
    assert sums.of(np.array([[0, 1, 0]], np.int16)).tolist() == [[-256, 256, 0, 0], [0, 0, 0, 0]]


def test_bins_without_any_count_and_columns_of_one_bin_are_measured_all_the_same() -> None:
    one = Bins(np.zeros(2, np.int16), np.zeros(2), ordered=1)
    assert scoring_of([one], 0.0, 1.0).differences("d", 2).of(np.zeros((3, 2), np.int16)).shape == (2, 0)
    empty = Bins(np.arange(2, dtype=np.int16), np.zeros(2), ordered=2)
    assert scoring_of([empty], 0.0, 1.0).differences("d", 2).of(np.zeros((3, 2), np.int16)).shape == (2, 1)


def test_what_was_measured_twice_counts_by_its_precision() -> None:
    one, other = Measured(np.array([[4.0]]), np.array([1.0])), Measured(np.array([[1.0]]), np.array([2.0]))
    both = pooled([one, other])
    assert (both.sums.item(), both.variances.item()) == pytest.approx((3.0, 2 / 3))
