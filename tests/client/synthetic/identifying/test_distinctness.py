"""Numbers that tell records apart, beside measurements that happen to be nearly all distinct."""

from __future__ import annotations

import numpy as np
import pytest

from quorate_client.synthetic.identifying.distinctness import numbers_tell_apart, words_tell_apart
from quorate_client.tasks.data.columns import Vector

SIZES = (30, 100, 1000, 10_000)


def serial(drawn: np.random.Generator, records: int) -> Vector:
    return drawn.permutation(np.arange(1, records + 1)).astype(float)


def one_in_three(drawn: np.random.Generator, records: int) -> Vector:
    """A part of a larger house's serial numbers."""
    return drawn.permutation(np.arange(70_000, 70_000 + 3 * records))[:records].astype(float)


def in_tens(drawn: np.random.Generator, records: int) -> Vector:
    return 10 * serial(drawn, records)


def random_numbers(drawn: np.random.Generator, records: int) -> Vector:
    return drawn.integers(10_000_000, 100_000_000, records).astype(float)


def with_a_year(drawn: np.random.Generator, records: int) -> Vector:
    return 20_240_000_000 + drawn.choice(10_000_000, records, replace=False).astype(float)


def rising(drawn: np.random.Generator, records: int) -> Vector:
    return np.cumsum(drawn.integers(1, 9, records)).astype(float)


@pytest.mark.parametrize("records", SIZES)
@pytest.mark.parametrize("make", [serial, in_tens, with_a_year, rising])
def test_numbers_that_were_given_out_are_found(make, records: int) -> None:  # type: ignore[no-untyped-def]
    for seed in range(5):
        assert numbers_tell_apart(make(np.random.default_rng(seed), records)) is not None


@pytest.mark.parametrize("records", [300, 1000, 10_000])
def test_a_part_of_them_is_found_where_there_are_some_more(records: int) -> None:
    for seed in range(5):
        assert numbers_tell_apart(one_in_three(np.random.default_rng(seed), records)) is not None


@pytest.mark.parametrize("records", [100, 1000, 10_000])
def test_random_numbers_of_one_length_are_found(records: int) -> None:
    found = [numbers_tell_apart(random_numbers(np.random.default_rng(seed), records)) for seed in range(20)]
    assert sum(sign is not None for sign in found) >= 18


@pytest.mark.parametrize("records", SIZES)
@pytest.mark.parametrize(
    "measured",
    [
        lambda drawn, records: drawn.lognormal(10.5, 0.5, records),  # incomes
        lambda drawn, records: drawn.normal(250_000, 60_000, records).clip(100_000, 999_999),  # platelets a microlitre
        lambda drawn, records: drawn.lognormal(13, 1, records),  # sums insured
        lambda drawn, records: drawn.normal(100, 20, records),  # a score
        lambda drawn, records: drawn.uniform(20, 90, records),  # ages
        lambda drawn, records: drawn.normal(500_000, 100_000, records),
        lambda drawn, records: drawn.exponential(3_000_000, records) + 1_000_000,  # claims
        lambda drawn, records: np.full(records, 7.0),
    ],
)
def test_whole_measurements_are_left_alone(measured, records: int) -> None:  # type: ignore[no-untyped-def]
    for seed in range(20):
        assert numbers_tell_apart(np.rint(measured(np.random.default_rng(seed), records))) is None


def test_few_records_say_nothing() -> None:
    assert numbers_tell_apart(np.arange(19.0)) is None
    assert numbers_tell_apart(np.arange(20.0)) is not None


def test_words_tell_records_apart_where_nearly_each_has_its_own() -> None:
    drawn = np.random.default_rng(1)
    assert words_tell_apart(drawn.permutation(30), 30) is not None
    assert words_tell_apart(drawn.permutation(200), 900) is not None
    assert words_tell_apart(drawn.zipf(1.5, 500) % 900, 900) is None
    assert words_tell_apart(np.arange(19), 19) is None
