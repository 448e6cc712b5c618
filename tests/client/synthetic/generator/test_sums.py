"""What is measured: by hand on tables of a few records, and the change that one record can make."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate_client.synthetic.generator.budget import plan
from quorate_client.synthetic.generator.grid import grid_of
from quorate_client.synthetic.generator.model import fit
from quorate_client.synthetic.generator.sums import Counts, ScoreProducts, ScoreSums, Sum
from quorate_client.tasks.data.schema import TabularSchema
from tests.client.synthetic.generator.kit import (
    DELTA,
    MIXED,
    SEED,
    WatchedReleases,
    codes_of,
    random_table,
    schema_of,
    schemas,
)

CODES = np.array([[0, 0, 2], [1, 1, 2], [1, 1, 0], [1, 0, 2]], np.int16)
"""Four records: label, a column of two cells, a column of three."""
SCORES = [np.array([[-1, 2], [-2, 1]]), np.array([[3, 0, -1], [4, 0, -2]])]
"""For each column [label, cell]."""


def test_counts_are_those_that_one_counts_by_hand() -> None:
    assert Counts("label", (0,), (2,)).of(CODES).tolist() == [1, 3]
    assert Counts("one", (2,), (3,)).of(CODES).tolist() == [1, 0, 3]
    assert Counts("two", (0, 1), (2, 2)).of(CODES).tolist() == [[1, 0], [1, 2]]
    assert Counts("three", (0, 1, 2), (2, 2, 3)).of(CODES).tolist() == [
        [[0, 0, 1], [0, 0, 0]],
        [[0, 0, 1], [1, 0, 1]],
    ]


def test_products_of_scores_are_those_that_one_adds_by_hand() -> None:
    # The records' scores: (-1, -1), (1, -2), (1, 4), (-2, -2).
    assert ScoreProducts("all", SCORES, 100.0).of(CODES).tolist() == [1 - 2 + 4 + 4]


def test_a_long_row_of_scores_is_shortened_toward_zero() -> None:
    # (1, 4) is longer than 3: times 3 / 4.12 it is (.73, 2.9), and so (0, 2); the others stay.
    short = ScoreProducts("short", SCORES, 3.0)
    assert short.rows(CODES).tolist() == [[-1, -1], [1, -2], [0, 2], [-2, -2]]
    assert short.of(CODES).tolist() == [1 - 2 + 0 + 4]


def test_the_sensitivity_of_products_is_reached_by_a_row_of_equal_scores() -> None:
    equal = [np.full((1, 1), 5) for _ in range(4)]
    products = ScoreProducts("equal", equal, 10.0)
    alone = products.of(np.zeros((1, 5), np.int16))
    assert np.linalg.norm(alone) == pytest.approx(products.sensitivity)
    assert products.sensitivity == pytest.approx(100 * math.sqrt(3 / 8))


def test_sums_of_scores_are_those_that_one_adds_by_hand_for_each_class() -> None:
    one, other = np.array([[3, -1], [-1, 3]]), np.array([[0, 2], [1, 0], [-2, 0]])
    # The records' rows: (3, -1, -2, 0); (-1, 3, -2, 0), (-1, 3, 0, 2), (3, -1, -2, 0), all as long as the root of 14.
    assert ScoreSums("long", 2, [one, other], 3.8).of(CODES).tolist() == [[3, -1, -2, 0], [1, 5, -4, 2]]
    # To 3: times 3 / 3.74 they are (2.4, -.8, -1.6, 0) and the like, and toward zero (2, 0, -1, 0).
    short = ScoreSums("short", 2, [one, other], 3.0)
    assert short.of(CODES).tolist() == [[2, 0, -1, 0], [2, 4, -2, 1]]
    assert short.sensitivity == 3


@pytest.mark.parametrize("places", [(0,), (1,), (0, 1), (0, 1, 2)])
def test_the_sums_of_two_sites_add_up_to_the_sum_over_both(places: tuple[int, ...]) -> None:
    counts = Counts("counts", places, tuple((2, 2, 3)[place] for place in places))
    products = ScoreProducts("products", SCORES, 3.0)
    for each in (counts, products):
        assert (each.of(CODES[:1]) + each.of(CODES[1:]) == each.of(CODES)).all()


def test_no_record_is_a_sum_of_zeros() -> None:
    assert Counts("none", (0, 2), (2, 3)).of(CODES[:0]).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert ScoreProducts("none", SCORES, 3.0).of(CODES[:0]).tolist() == [0]


@given(schemas(), st.integers(1, 12), st.sampled_from([0.5, 5.0, 500.0]), st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_no_record_changes_what_is_measured_by_more_than_the_events_say(
    schema: TabularSchema, records: int, epsilon: float, lot: int
) -> None:
    """For each record of a table that is taken out, and each that could be put in, the changes of all sums over their
    noise are no larger than those of the events, which is what the account is of."""
    planned = plan(schema, epsilon, DELTA)
    watched = WatchedReleases(SEED)
    codes = codes_of(schema, random_table(schema, records, lot))
    fit(codes, len(schema.label.class_order), [grid_of(column) for column in schema.columns], planned.noise, watched)
    multipliers = [multiplier for _, _, multiplier, _ in watched.asked]
    assert multipliers == [event.noise_multiplier for event in planned.events]
    for measured, sums, multiplier, noisy in watched.asked:
        for row in range(records):
            changes = [change(each, measured, row) / got.sigma for each, got in zip(sums, noisy, strict=True)]
            assert math.hypot(*changes) <= (1 + 1e-9) / multiplier


def change(measured: Sum, codes: np.ndarray[tuple[int, int], np.dtype[np.int16]], row: int) -> float:
    without = measured.of(np.delete(codes, row, axis=0))
    return float(np.linalg.norm((measured.of(codes) - without).astype(np.float64)))


def test_each_sum_of_a_generation_has_a_name_of_its_own() -> None:
    schema = schema_of([*MIXED, *({"name": f"c{n}", "type": "number", "range": [0.0, 1.0]} for n in range(4))])
    table = random_table(schema, 5000)
    for n in range(4):
        table.columns[f"c{n}"][:] = table.columns["c0"]
    watched = WatchedReleases(SEED)
    grids = [grid_of(column) for column in schema.columns]
    model = fit(codes_of(schema, table), 2, grids, plan(schema, 20.0, DELTA).noise, watched)
    names = [each.name for _, sums, _, _ in watched.asked for each in sums]
    assert model.forests[0]  # pairs were measured
    assert len(names) == len(set(names))
