"""Tables from noisy counts, on cases that one can compute by hand."""

from __future__ import annotations

import numpy as np
import pytest

from quorate_client.synthetic.generator.estimates import expected_values, raked, shrunk, simplex, without_three_way


def test_the_nearest_counts_take_the_same_off_all_and_leave_none_below_zero() -> None:
    assert simplex(np.array([5.0, 3.0, -4.0]), 6.0).tolist() == [4, 2, 0]
    assert simplex(np.array([[1.0, 1.0], [0.0, 0.0]]), 6.0).tolist() == [[2, 2], [1, 1]]
    assert simplex(np.array([-3.0, -1.0]), 0.0).tolist() == [0, 0]


def test_what_does_not_stand_out_of_the_noise_becomes_the_guess() -> None:
    guess = np.array([10.0, 10.0, 10.0])
    assert shrunk(np.array([11.0, 9.0, 10.0]), guess, 4.0).tolist() == [10, 10, 10]
    # 200 away in squares, of which noise is 2 * 4: 96 hundredths are kept.
    assert shrunk(np.array([20.0, 0.0, 10.0]), guess, 4.0) == pytest.approx(np.array([19.6, 0.4, 10]))
    assert shrunk(guess, guess, 4.0).tolist() == [10, 10, 10]
    assert shrunk(np.array([11.0, 9.0, 10.0]), guess, 0.0).tolist() == [11, 9, 10]


def test_raking_gives_the_margins_and_keeps_the_odds() -> None:
    table = raked(np.array([[1.0, 2.0], [3.0, 12.0]]), np.array([30.0, 70.0]), np.array([40.0, 60.0]))
    assert table.sum(axis=1) == pytest.approx([30, 70])
    assert table.sum(axis=0) == pytest.approx([40, 60])
    assert table[0, 0] * table[1, 1] / table[0, 1] / table[1, 0] == pytest.approx(2)


def test_an_empty_table_is_raked_to_independence() -> None:
    table = raked(np.zeros((2, 2)), np.array([30.0, 70.0]), np.array([40.0, 60.0]))
    assert table == pytest.approx(np.array([[12.0, 18.0], [28.0, 42.0]]))


def test_the_model_has_all_margins_of_two_and_the_same_odds_in_each_class() -> None:
    rows, columns = np.array([[30.0, 30.0], [10.0, 30.0]]), np.array([[20.0, 40.0], [20.0, 20.0]])
    pairs = np.array([[25.0, 15.0], [15.0, 45.0]])
    table = without_three_way(rows, columns, pairs, turns=200)
    assert table.sum(axis=2) == pytest.approx(rows, rel=1e-3)
    assert table.sum(axis=1) == pytest.approx(columns, rel=1e-3)
    assert table.sum(axis=0) == pytest.approx(pairs, rel=1e-3)
    odds = [each[0, 0] * each[1, 1] / each[0, 1] / each[1, 0] for each in table]
    assert odds[0] == pytest.approx(odds[1], rel=1e-6)


def test_among_columns_of_noise_the_one_that_stands_out_keeps_its_values_and_the_others_lose_theirs() -> None:
    lot = np.random.default_rng(0)
    measured = [lot.normal(0, 3, 2) for _ in range(30)] + [np.array([60.0, -20.0])]
    found = expected_values(measured, [np.full(2, 9.0)] * 31, [np.array([100.0, 100.0])] * 31)
    assert found[-1] == pytest.approx(measured[-1], rel=0.05)
    assert np.abs(found[:-1]).mean() < 0.3 * np.abs(measured[:-1]).mean()


def test_what_is_expected_to_be_small_is_shrunk_more() -> None:
    (found,) = expected_values([np.array([6.0, 6.0])], [np.array([9.0, 9.0])], [np.array([10.0, 2.0])])
    assert 6 > found[0] > 2 * found[1] > 0


def test_exact_values_stay() -> None:
    (found,) = expected_values([np.array([6.0, 0.0])], [np.full(2, 1e-9)], [np.full(2, 10.0)])
    assert found == pytest.approx([6.0, 0.0])
