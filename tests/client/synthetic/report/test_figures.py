"""Intervals and rates, each against a loop or a table."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from quorate_client.synthetic.report.disclosure.membership import by_chance, rates
from quorate_client.synthetic.report.figures import (
    advantage,
    auc,
    clopper_pearson,
    generator_of,
    seed_of,
    summed_advantage,
)


def test_an_advantage_is_the_difference_of_two_rates_with_agresti_and_caffo_s_interval() -> None:
    found = advantage([1, 1, 1, 0], [1, 0, 0, 0, 0])
    assert (found.training, found.held_out) == (0.75, 0.2)
    assert found.found == pytest.approx(0.55)
    first, second = 4 / 6, 2 / 7  # a success and a failure more on either side
    error = math.sqrt(first * (1 - first) / 6 + second * (1 - second) / 7)
    assert found.low == pytest.approx(first - second - 1.959964 * error)
    assert found.high == pytest.approx(first - second + 1.959964 * error)
    assert not found.stands
    assert found.counted == 0


def test_an_advantage_counts_once_chance_does_not_explain_it() -> None:
    found = advantage([1] * 50, [0] * 50)
    assert found.stands
    assert found.counted == 1
    assert found.low < found.high == 1


def test_the_worst_of_many_comparisons_stands_later_than_a_single_one() -> None:
    successes = [1] * 33 + [0] * 67, [1] * 13 + [0] * 87
    assert advantage(*successes).stands
    assert not advantage(*successes, comparisons=50).stands


def test_a_share_of_the_rest_is_anonymeter_s_risk() -> None:
    found = advantage([1, 1, 1, 0], [1, 0, 0, 0], share_of_rest=True)
    assert found.found == pytest.approx((0.75 - 0.25) / (1 - 0.25))


def test_nothing_gained_is_nothing_whichever_side_is_ahead() -> None:
    assert advantage([0] * 200, [1] * 200).counted == 0


def test_what_falls_to_records_is_weighed_to_a_rate() -> None:
    training, held_out = np.array([3.0, 0, 1, 0]), np.array([1.0, 0])
    found = summed_advantage(training, held_out, 0.2)
    assert (found.training, found.held_out) == (pytest.approx(0.2), pytest.approx(0.1))
    error = 0.2 * math.sqrt(max(training.var(), 1 / 4) / 4 + max(held_out.var(), 1 / 2) / 2)
    assert found.high == pytest.approx(0.1 + 1.959964 * error)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(0, 10, 0.0, 0.3085), (10, 10, 0.6915, 1.0), (3, 10, 0.0667, 0.6525)],
)
def test_the_exact_interval_is_that_of_the_tables(successes: int, trials: int, low: float, high: float) -> None:
    assert clopper_pearson(successes, trials, 0.95) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_auc_is_the_share_of_pairs_in_order_with_half_of_the_ties() -> None:
    scores, positive = [3.0, 1.0, 2.0, 2.0, 0.5], np.array([True, False, True, False, True])
    pairs = [
        1.0 if ahead > behind else 0.5 if ahead == behind else 0.0
        for ahead, is_ahead in zip(scores, positive, strict=True)
        for behind, is_behind in zip(scores, positive, strict=True)
        if is_ahead and not is_behind
    ]
    assert auc(scores, positive) == pytest.approx(sum(pairs) / len(pairs))
    assert auc(scores, np.ones(5, dtype=np.bool_)) == 0.5


def test_true_positives_are_counted_where_one_of_a_hundred_others_is_taken_for_a_member() -> None:
    others = np.arange(200.0)
    members = np.array([500.0, 198.5, 197.5, 197.0, 3.0])
    true, false = rates(members, others)
    assert (true, false) == (pytest.approx(0.6), 0.01)  # 198 and 199 may be wrong; above 197 lie three members


def test_below_a_hundred_others_none_may_be_taken_for_a_member() -> None:
    assert rates(np.array([9.0, 10.5, 11.0]), np.arange(11.0)) == (pytest.approx(2 / 3), 0.0)


def test_the_chance_of_hits_is_counted_over_all_orders() -> None:
    members, others, hits, misses = 4, 5, 3, 1
    orders = list(combinations(range(members + others), members))
    good = [order for order in orders if sum(place < hits + misses for place in order) >= hits]
    assert by_chance(hits, members, misses, others) == pytest.approx(len(good) / len(orders))


def test_seeds_of_two_purposes_differ_and_are_the_same_again() -> None:
    assert seed_of(b"seed", "one") == seed_of(b"seed", "one") != seed_of(b"seed", "two")
    assert generator_of(b"seed", "one").random() == generator_of(b"seed", "one").random()
