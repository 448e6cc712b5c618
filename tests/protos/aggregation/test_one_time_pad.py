"""Padding small integers: sums come out exactly, a padded value says nothing, and what does not fit is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorate.aggregation import one_time_pad, ring, rlwe
from quorate.aggregation.one_time_pad import MAX_VALUE, Words
from quorate.errors import ContributionError
from tests.protos.secagg.kit import SeededRandomness

Q = ring.MODULUS
values = st.sampled_from([0, 1, -1, MAX_VALUE, -MAX_VALUE]) | st.integers(-MAX_VALUE, MAX_VALUE)


def words(*numbers: int) -> Words:
    return np.array(numbers, dtype=np.uint64)


@given(st.lists(values, min_size=1, max_size=20), st.integers(0, 2**64))
def test_a_padded_value_comes_back_whatever_the_key(numbers: list[int], seed: int) -> None:
    key = rlwe.uniform(SeededRandomness(seed), len(numbers))
    masked = one_time_pad.mask(numbers, key)
    assert (masked < Q).all()
    assert masked.dtype == np.uint64
    assert one_time_pad.unmask(masked, key) == tuple(numbers)


@given(st.lists(st.lists(st.integers(-(2**44), 2**44), min_size=3, max_size=3), min_size=1, max_size=40))
def test_the_sum_of_padded_values_opens_with_the_sum_of_the_keys(sites: list[list[int]]) -> None:
    total, key_sum = np.zeros(3, dtype=np.uint64), np.zeros(3, dtype=np.uint64)
    for site, numbers in enumerate(sites):
        key = rlwe.uniform(SeededRandomness(site), 3)
        ring.add(total, one_time_pad.mask(numbers, key))
        ring.add(key_sum, key)
    opened = one_time_pad.unmask(total, key_sum)
    assert opened == tuple(sum(column) for column in zip(*sites, strict=True))
    assert all(type(value) is int for value in opened)


def test_values_that_are_meant_modulo_q_may_wrap() -> None:
    key = words(5)
    total = one_time_pad.mask([MAX_VALUE], key)
    ring.add(total, one_time_pad.mask([1], key))
    assert one_time_pad.unmask(total, words(10)) == (-MAX_VALUE,)


@given(values, values, st.integers(0, Q - 1))
def test_a_padded_word_fits_every_value_equally_well(one: int, other: int, key: int) -> None:
    masked = one_time_pad.mask([one], words(key))
    the_only_key = (int(masked[0]) - other) % Q
    assert one_time_pad.mask([other], words(the_only_key)).tolist() == masked.tolist()


@pytest.mark.parametrize("value", [0, 1, -MAX_VALUE])
def test_a_padded_value_is_uniform(value: int) -> None:
    count = 64_000
    masked = one_time_pad.mask([value] * count, rlwe.uniform(SeededRandomness(1), count))
    observed = np.bincount((masked * np.uint64(64) // np.uint64(Q)).astype(np.int64), minlength=64)
    assert float(((observed - count / 64) ** 2 / (count / 64)).sum()) < 115.0  # 63 degrees of freedom, 7e-5


def test_padding_changes_neither_keys_nor_sums() -> None:
    key, total = words(7, 8), words(9, 10)
    one_time_pad.mask([1, 2], key)
    one_time_pad.unmask(total, key)
    assert key.tolist() == [7, 8]
    assert total.tolist() == [9, 10]


@pytest.mark.parametrize("value", [MAX_VALUE + 1, -MAX_VALUE - 1, Q, 2**64, 0.5, float("nan"), "1", None])
def test_a_value_beyond_half_of_q_is_refused_and_not_repeated(value: int) -> None:
    with pytest.raises(ContributionError) as caught:
        one_time_pad.mask([424242, value], words(1, 2))
    assert "424242" not in str(caught.value)
    assert str(MAX_VALUE + 1) not in str(caught.value)


BAD_WORDS = [words(1), words(1, 2, 3), words(1, Q), words(2**64 - 1, 0), np.array([1, 2]), words(1, 2).reshape(1, 2)]


@pytest.mark.parametrize("key", BAD_WORDS)
def test_keys_of_another_form_are_refused(key: Words) -> None:
    with pytest.raises(ContributionError):
        one_time_pad.mask([1, 2], key)


@pytest.mark.parametrize("bad", BAD_WORDS)
def test_sums_of_another_form_are_refused(bad: Words) -> None:
    with pytest.raises(ContributionError):
        one_time_pad.unmask(bad, words(1, 2))
    with pytest.raises(ContributionError):
        one_time_pad.unmask(words(1, 2), bad)
