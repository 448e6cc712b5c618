"""How much sites count in a sum: all together at most 1, and each so much that none of them can be made to vanish."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorate.aggregation.plain import WEIGHT_ONE
from quorate.aggregation.weights import least_weight, record_weight, require_weight
from quorate.errors import SumRefusedError
from quorate.study.rules import Rules


@given(st.lists(st.integers(1, 10**9), min_size=2, max_size=40), st.data())
def test_the_weights_of_honest_sites_are_never_refused_whoever_was_counted_and_whoever_is_there(
    records: list[int], data: st.DataObject
) -> None:
    sites = len(records)
    rules = Rules(sites, data.draw(st.integers(0, sites - 2)))
    counted = data.draw(st.sets(st.sampled_from(range(sites)), min_size=rules.floor))
    total, missing = sum(records[site] for site in counted), sites - len(counted)
    weights = [record_weight(records[site], total, sites, missing, is_counted=site in counted) for site in range(sites)]
    assert sum(weights) <= WEIGHT_ONE
    survivors = data.draw(st.sets(st.sampled_from(range(sites)), min_size=rules.floor))
    require_weight(sum(weights[site] for site in survivors), len(survivors), rules)


def test_sites_that_are_not_tiny_count_in_proportion_to_their_records() -> None:
    weights = [record_weight(records, 1000, 4, 0, is_counted=True) for records in (100, 200, 300, 400)]
    assert [weight / weights[0] for weight in weights] == pytest.approx([1, 2, 3, 4], rel=1e-6)


def test_a_tiny_site_is_raised_to_the_least_weight() -> None:
    assert record_weight(1, 10**9, 4, 0, is_counted=True) == least_weight(4) == WEIGHT_ONE // 400


@pytest.mark.parametrize("total", [1, 0, -WEIGHT_ONE, 2 * least_weight(4) - 1, WEIGHT_ONE + 1])
def test_a_total_that_honest_sites_do_not_add_up_to_is_refused(total: int) -> None:
    with pytest.raises(SumRefusedError):
        require_weight(total, 3, Rules(4, 1))


def test_equal_weights_are_within_the_bounds() -> None:
    for sites in (2, 3, 7, 1000):
        rules = Rules(sites, 0)
        require_weight(sites * (WEIGHT_ONE // sites), sites, rules)
        require_weight(rules.floor * (WEIGHT_ONE // sites), rules.floor, rules)
