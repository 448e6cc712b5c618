"""Bins, forests and draws."""

from __future__ import annotations

import numpy as np
import pytest

from quorate_client.synthetic.generator.bins import bins_for, merged
from quorate_client.synthetic.generator.grid import Grid
from quorate_client.synthetic.generator.release import randomness
from quorate_client.synthetic.generator.sampling import Draws, shares_of, tree_order
from quorate_client.synthetic.generator.structure import correlations, forests, score_products
from quorate_client.synthetic.generator.sums import Counts
from tests.client.synthetic.generator.kit import SEED

ORDERED = Grid(np.arange(7.0), 6, is_ordered=True, has_missing=True, is_whole=True)
WORDS = Grid(None, 6, is_ordered=False, has_missing=False, is_whole=False)


def draws() -> Draws:
    return Draws(randomness(SEED, "test"))


def test_more_records_or_less_noise_allow_more_bins_within_bounds() -> None:
    assert [bins_for(count, 10.0) for count in (-5.0, 5.0, 50.0, 1e6)] == [3, 3, 8, 16]
    assert bins_for(1.0, 0.0) == 16


def test_ordered_cells_become_bins_of_equal_mass_and_missing_stays_alone() -> None:
    bins = merged(ORDERED, np.array([10.0, 10, 20, 0, 15, 5, 2]), 3)
    assert bins.of_cell.tolist() == [0, 0, 1, 2, 2, 2, 3]
    assert bins.totals.tolist() == [20, 20, 20, 2]


def test_rare_words_share_a_bin() -> None:
    bins = merged(WORDS, np.array([1.0, 50, 2, 40, 1, 30]), 4)
    assert len(set(bins.of_cell[[1, 3, 5]])) == 3
    assert len(set(bins.of_cell[[0, 2, 4]])) == 1


def test_a_column_without_any_count_is_one_bin() -> None:
    assert merged(ORDERED, np.zeros(7), 3).of_cell.tolist() == [0, 0, 0, 0, 0, 0, 1]


def test_the_second_forest_takes_what_the_first_leaves_over_and_only_then_pairs_of_the_first() -> None:
    # Pairs of four columns: 01, 02, 03, 12, 13, 23.
    first, second = forests(4, np.array([0.9, -0.8, 0.1, 0.7, 0.3, 0.2]), 0.15)
    assert first == [(0, 1), (0, 2), (1, 3)]
    assert second == [(1, 2), (2, 3), (0, 1)]


def test_scores_find_the_columns_that_go_together_within_a_class() -> None:
    lot = np.random.default_rng(0)
    labels = lot.integers(0, 2, 20_000)
    a = np.clip(4 * labels + lot.integers(0, 4, 20_000), 0, 7)
    b = np.clip(a + lot.integers(-1, 2, 20_000), 0, 7)
    c = np.clip(4 * labels + lot.integers(0, 4, 20_000), 0, 7)  # goes with a, but only through the label
    codes = np.stack([labels, a, b, c], axis=1).astype(np.int16)
    products = score_products([Counts("t", (0, j), (2, 8)).of(codes).astype(np.float64) for j in (1, 2, 3)])
    found = correlations(products.of(codes).astype(np.float64), 20_000)
    assert found[0] > 0.55
    assert np.abs(found[1:]).max() < 0.05


def test_a_constant_column_has_no_score() -> None:
    products = score_products([np.array([[5.0], [7.0]]), np.array([[1.0, 4.0], [3.0, 4.0]])])
    assert products.scores[0].tolist() == [[0], [0]]


def test_whole_parts_are_as_near_as_can_be() -> None:
    assert shares_of(10, np.array([1.0, 1.0, 1.0])).tolist() == [4, 3, 3]
    assert shares_of(7, np.array([0.0, 3.0])).tolist() == [0, 7]


def test_a_column_is_drawn_after_the_one_it_depends_on() -> None:
    order = tree_order(5, [(3, 1), (1, 0), (2, 4)])
    assert order == [(0, None), (1, 0), (3, 1), (2, None), (4, 2)]


def test_draws_come_out_as_the_weights_say() -> None:
    groups = np.repeat([0, 1], 1000)
    chosen = draws().choose(groups, np.array([[1.0, 3.0, 0.0], [0.0, 1.0, 1.0]]))
    assert np.abs(np.bincount(chosen[:1000], minlength=3) - [250, 750, 0]).max() <= 1
    assert np.abs(np.bincount(chosen[1000:], minlength=3) - [0, 500, 500]).max() <= 1


def test_even_places_are_in_random_order() -> None:
    places = draws().even(np.zeros(1000, np.int64), 1)
    assert np.sort(places) == pytest.approx(np.arange(1000) / 1000, abs=0.001)
    assert abs(np.corrcoef(places, np.arange(1000))[0, 1]) < 0.1
