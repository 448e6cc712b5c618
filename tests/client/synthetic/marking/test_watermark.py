"""The watermark: found in our own tables, not in others, and seen in no column."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from quorate_client.synthetic.marking.watermark import FOUND_Z, MIN_DISTINCT, find, thinned
from quorate_client.tasks.data.schema import TabularSchema
from quorate_client.tasks.data.table import Table

from ..records import a_table, parsed

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
SEED = bytes(range(32))
ROWS = 4000


@pytest.fixture(scope="module")
def candidates() -> Table:
    return a_table(5200)


@pytest.fixture(scope="module")
def marked(candidates: Table) -> Table:
    return thinned(KEY, parsed(), candidates, ROWS, SEED)[0]


def test_it_is_found_in_a_table_that_was_chosen_under_the_key_and_under_no_other(marked: Table) -> None:
    found = find(KEY, parsed(), marked)
    assert marked.records == ROWS
    assert found.is_ours
    assert found.green / found.distinct == pytest.approx(0.6, abs=0.01)
    assert abs(find(OTHER_KEY, parsed(), marked).z) < 4


def test_it_is_not_found_in_tables_that_nobody_chose() -> None:
    scores = [find(KEY, parsed(), a_table(2000, seed)).z for seed in range(1, 40)]
    assert max(map(abs, scores)) < FOUND_Z
    assert np.std(scores) == pytest.approx(1, abs=0.35)


def test_the_order_of_rows_columns_and_categories_does_not_hide_it_nor_does_losing_some_rows(marked: Table) -> None:
    schema = parsed()
    chance = np.random.default_rng(1)
    some = np.zeros(ROWS, dtype=np.bool_)
    some[chance.permutation(ROWS)[:1500]] = True
    assert find(KEY, schema, marked.part(some)).is_ours
    region = schema.columns[2].model_copy(update={"categories": ("west", "north", "south, inland")})
    turned = schema.model_copy(update={"columns": (schema.columns[3], region, *schema.columns[:2])})
    places = np.array([1.0, 2.0, 0.0, np.nan])
    values = marked.columns["region"]
    moved = places[np.where(np.isnan(values), 3, values).astype(int)]
    shuffled = replace(marked, columns={**marked.columns, "region": moved})
    assert isinstance(turned, TabularSchema)
    assert find(KEY, turned, shuffled) == find(KEY, schema, marked)


def test_numbers_that_were_written_with_fewer_digits_do_not_hide_it(marked: Table) -> None:
    thirds = marked.columns["pressure"] / 3
    cut = np.array([float(f"{value:.6g}") for value in thirds])
    found = [
        find(KEY, parsed(), replace(marked, columns={**marked.columns, "pressure": values})) for values in (thirds, cut)
    ]
    assert found[0].distinct == found[1].distinct
    assert abs(found[0].green - found[1].green) < 5


def test_copies_of_rows_are_no_evidence() -> None:
    """Or a real table with one frequent green row would be called ours."""
    table = a_table(40)
    often = table.part(np.repeat(np.arange(40), 200))  # type: ignore[arg-type]
    assert find(KEY, parsed(), often).distinct == 40
    assert not find(KEY, parsed(), often).is_ours


def test_it_moves_no_column_s_figures(candidates: Table) -> None:
    """Against rows of the same candidates that were chosen by chance alone: over 30 keys the means differ by less than
    such choices differ among each other."""
    schema = parsed()
    for name in ("age", "smoker", "pressure"):
        values = candidates.columns[name]
        expected, spread = np.nanmean(values), np.nanstd(values)
        shifts = []
        for number in range(30):
            kept = thinned(bytes([number]) * 32, schema, candidates, ROWS, SEED)[0]
            shifts.append((np.nanmean(kept.columns[name]) - expected) / spread)
        by_chance = np.sqrt(1 / ROWS - 1 / candidates.records)
        assert abs(np.mean(shifts)) < 4 * by_chance / np.sqrt(30), name
        assert np.std(shifts) < 1.6 * by_chance, name


def test_frequent_rows_keep_their_frequency(candidates: Table) -> None:
    """A green one would otherwise come a fifth more often."""
    half = np.arange(5200) % 2 == 0
    columns = {name: np.where(half, values[0], values) for name, values in candidates.columns.items()}
    table = Table(columns, np.where(half, candidates.labels[0], candidates.labels))
    for number in range(6):
        kept = thinned(bytes([number]) * 32, parsed(), table, ROWS, SEED)[0]
        same = np.mean([kept.columns["pressure"] == table.columns["pressure"][0]])
        assert same == pytest.approx(0.5, abs=0.01)


def test_classes_keep_their_exact_shares(candidates: Table, marked: Table) -> None:
    wanted = np.bincount(candidates.labels) * (ROWS / candidates.records)
    assert np.abs(np.bincount(marked.labels) - wanted).max() < 1


def test_a_table_with_too_few_distinct_rows_is_left_unmarked(candidates: Table) -> None:
    table, found = thinned(KEY, parsed(), candidates, MIN_DISTINCT - 100, SEED)
    assert table.records == MIN_DISTINCT - 100
    assert not found.is_ours
    assert found.green / found.distinct == pytest.approx(0.5, abs=0.06)


def test_the_same_seed_chooses_the_same_rows_and_another_one_others(candidates: Table, marked: Table) -> None:
    again = thinned(KEY, parsed(), candidates, ROWS, SEED)[0]
    assert all(np.array_equal(again.columns[n], marked.columns[n], equal_nan=True) for n in marked.columns)
    other = thinned(KEY, parsed(), candidates, ROWS, b"s" * 32)[0]
    assert not np.array_equal(other.columns["pressure"], marked.columns["pressure"], equal_nan=True)
