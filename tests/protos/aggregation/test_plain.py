"""The plain scheme: exact sums, whatever the order, and no overflow for any weights that a round allows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorate.aggregation import plain
from quorate.aggregation.plain import MAX_TOTAL_WEIGHT, WEIGHT_ONE, PlainScheme, Words, weight_of
from quorate.errors import ContributionError, UpdateNotFiniteError

bounds = st.floats(min_value=1e-6, max_value=1e6, allow_nan=False)


def summed(encoded: list[Words]) -> Words:
    total = np.zeros_like(encoded[0])
    for words in encoded:
        plain.add(total, words)
    return total


@st.composite
def rounds(draw: st.DrawFn) -> tuple[PlainScheme, list[int], list[list[float]]]:
    """Sites with weights of at most 2 together, and updates that may lie beyond the bound."""
    sites = draw(st.integers(1, 12))
    weights = draw(st.lists(st.integers(1, WEIGHT_ONE), min_size=sites, max_size=sites))
    excess = sum(weights) - MAX_TOTAL_WEIGHT
    if excess > 0:
        weights = [max(1, weight * MAX_TOTAL_WEIGHT // sum(weights) - 1) for weight in weights]
    bound = draw(bounds)
    value = st.sampled_from([-1.0, 1.0, 0.0, -5.0, 5.0, 1e-9]) | st.floats(-1.2, 1.2, allow_nan=False)
    updates = draw(st.lists(st.lists(value, min_size=3, max_size=3), min_size=sites, max_size=sites))
    return PlainScheme(bound, sites), weights, [[x * bound for x in update] for update in updates]


@given(rounds())
def test_the_average_is_as_exact_as_promised_and_no_word_overflows(
    case: tuple[PlainScheme, list[int], list[list[float]]],
) -> None:
    scheme, weights, updates = case
    encoded = [scheme.encode(np.array(u), w)[0] for u, w in zip(updates, weights, strict=True)]
    exact = sum(words.view(np.int32).astype(object) for words in encoded)
    assert all(abs(value) <= 2**31 - 1 for value in exact)
    average = scheme.decode(summed(encoded), sum(weights))

    total = sum(weights)
    clipped = [np.clip(np.array(u), -scheme.bound, scheme.bound) for u in updates]
    wanted = sum(c * (w / total) for c, w in zip(clipped, weights, strict=True))
    allowed = scheme.sites * scheme.step / (2 * total / WEIGHT_ONE)
    assert np.all(np.abs(average - wanted) <= allowed * (1 + 1e-9) + 1e-12 * scheme.bound)


@given(rounds(), st.randoms(use_true_random=False))
def test_the_sum_does_not_depend_on_the_order_of_arrival(
    case: tuple[PlainScheme, list[int], list[list[float]]], order: object
) -> None:
    scheme, weights, updates = case
    encoded = [scheme.encode(np.array(u), w)[0] for u, w in zip(updates, weights, strict=True)]
    shuffled = list(encoded)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    assert np.array_equal(summed(encoded), summed(shuffled))


@pytest.mark.parametrize("sites", [1, 2, 1000])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_the_largest_sum_that_a_round_allows_fits_a_word(sites: int, sign: float) -> None:
    scheme = PlainScheme(4.0, sites)
    share = min(WEIGHT_ONE, MAX_TOTAL_WEIGHT // sites)
    words, _ = scheme.encode(np.full(2, sign * 4.0), share)
    total = sum([words.view(np.int32).astype(object)] * sites)
    assert all(abs(value) <= 2**31 - 1 for value in total)
    assert scheme.decode(summed([words] * sites), share * sites) == pytest.approx(sign * 4.0, rel=1e-6)


def test_what_lies_beyond_the_bound_is_clipped_and_counted() -> None:
    scheme = PlainScheme(1.0, 2)
    words, clipped = scheme.encode(np.array([0.5, 1.0, -1.0, 1.001, -7.0], dtype=np.float32), WEIGHT_ONE)
    assert clipped == 2
    assert scheme.decode(words, WEIGHT_ONE) == pytest.approx([0.5, 1, -1, 1, -1], abs=scheme.step)


def test_the_words_never_change() -> None:
    words, _ = PlainScheme(4.0, 4).encode(np.array([0.0, 1.0, -1.0, 4.0, -4.0, 9.0]), WEIGHT_ONE // 4)
    assert words.tolist() == GOLDEN_WORDS
    assert words.dtype == np.uint32


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_without_saying_what_it_was(value: float) -> None:
    with pytest.raises(UpdateNotFiniteError) as caught:
        PlainScheme(1.0, 2).encode(np.array([0.5, value]), WEIGHT_ONE)
    assert "0.5" not in str(caught.value)


@pytest.mark.parametrize("weight", [0, -1, WEIGHT_ONE + 1])
def test_a_weight_that_a_site_cannot_have_is_refused(weight: int) -> None:
    with pytest.raises(ContributionError):
        PlainScheme(1.0, 2).encode(np.array([0.5]), weight)


@pytest.mark.parametrize("weight", [0, -1, MAX_TOTAL_WEIGHT + 1])
def test_a_sum_whose_weight_cannot_be_is_refused(weight: int) -> None:
    with pytest.raises(ContributionError):
        PlainScheme(1.0, 2).decode(np.zeros(1, dtype=np.uint32), weight)


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=50))
def test_the_weights_of_all_sites_add_up_to_about_one(records: list[int]) -> None:
    weights = [weight_of(count, sum(records)) for count in records]
    assert all(1 <= weight <= WEIGHT_ONE for weight in weights)
    assert abs(sum(weights) - WEIGHT_ONE) <= len(records)


@pytest.mark.parametrize(("records", "total"), [(0, 10), (5, 0), (-1, 10)])
def test_no_records_have_no_weight(records: int, total: int) -> None:
    with pytest.raises(ContributionError):
        weight_of(records, total)


def test_a_site_that_has_grown_cannot_weigh_more_than_all() -> None:
    assert weight_of(20, 10) == WEIGHT_ONE


GOLDEN_WORDS = [0, 67108864, 4227858432, 268435456, 4026531840, 268435456]
