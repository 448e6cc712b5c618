"""Cells are the schema's alone, and a value goes into its cell and comes back within it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from quorate_client.synthetic.generator.grid import grid_of
from quorate_client.tasks.data.schema import TabularSchema
from tests.client.synthetic.generator.kit import MIXED, random_table, schema_of, schemas

AGE, INCOME, CHANGE, WARD, SMOKER = (grid_of(column) for column in schema_of(MIXED).columns)


def test_few_whole_numbers_have_a_cell_each() -> None:
    grid = grid_of(schema_of([{"name": "n", "type": "integer", "range": [-2.0, 9.0]}]).columns[0])
    assert grid.cells == 12
    assert grid.codes(np.array([-2.0, 0.0, 9.0])).tolist() == [0, 2, 11]
    assert grid.values(np.array([0, 2, 11], np.int16), np.array([0.0, 0.5, 0.999])).tolist() == [-2, 0, 9]


def test_words_and_flags_are_their_places_and_missing_is_a_cell_behind_them() -> None:
    assert (WARD.cells, WARD.all_cells, SMOKER.cells, SMOKER.all_cells) == (5, 6, 2, 3)
    assert WARD.codes(np.array([4.0, np.nan, 0.0])).tolist() == [4, 5, 0]
    assert SMOKER.codes(np.array([1.0, np.nan])).tolist() == [1, 2]
    assert np.isnan(SMOKER.values(np.array([2], np.int16), np.array([0.3]))).all()


def test_a_column_that_refuses_missing_values_has_no_cell_for_them() -> None:
    assert CHANGE.all_cells == CHANGE.cells
    assert INCOME.all_cells == INCOME.cells + 1


def test_zero_is_a_cell_of_its_own_and_comes_back_as_zero() -> None:
    for grid in (INCOME, CHANGE):
        zero, above = grid.codes(np.array([0.0, 1e-5]))
        assert above == zero + 1
        assert grid.values(np.array([zero], np.int16), np.array([0.7])).tolist() == [0.0]


def test_cells_grow_finer_toward_zero_on_both_sides() -> None:
    assert INCOME.edges is not None
    assert CHANGE.edges is not None
    assert np.diff(INCOME.edges)[1] < 1e6 / 200
    around = CHANGE.edges[(CHANGE.edges > -2) & (CHANGE.edges < 2)]
    assert (around < 0).sum() >= 4
    assert (around > 0).sum() >= 4


@given(schemas())
@settings(max_examples=40, deadline=None)
def test_a_value_comes_back_within_its_own_cell(schema: TabularSchema) -> None:
    table = random_table(schema, 30)
    lot = np.random.default_rng(1)
    for column in schema.columns:
        grid = grid_of(column)
        codes = grid.codes(table.columns[column.name])
        assert codes.min() >= 0
        assert codes.max() < grid.all_cells <= 1001
        for places in (lot.random(30), np.zeros(30), np.full(30, 1 - 2.0**-53)):
            back = grid.values(codes, places)
            assert (grid.codes(back) == codes).all(), column


@pytest.mark.parametrize("bad", [-1e9, 1e9])
def test_the_ends_of_a_range_belong_to_the_first_and_the_last_cell(bad: float) -> None:
    assert INCOME.codes(np.array([bad]))[0] in (0, INCOME.cells - 1)
