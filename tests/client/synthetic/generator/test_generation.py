"""Tables that are made: of the schema, the same for the same seed, and telling of records what the sums tell."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate_client.synthetic.generator import GENERATOR, generate, plan
from quorate_client.synthetic.generator.generation import one_of_each_unit
from quorate_client.tasks.data.schema import TabularSchema
from quorate_client.tasks.data.table import Table
from tests.client.synthetic.generator.kit import DELTA, MIXED, SEED, random_table, require_fits, schema_of, schemas

SCHEMA = schema_of(MIXED)
TABLE = random_table(SCHEMA, 2000)


def same(one: Table, other: Table) -> bool:
    columns = all(np.array_equal(one.columns[name], other.columns[name], equal_nan=True) for name in one.columns)
    return columns and np.array_equal(one.labels, other.labels)


def make(epsilon: float | None = 1.0, seed: bytes = SEED, table: Table = TABLE, rows: int = 500) -> Table:
    return generate(plan(SCHEMA, epsilon, DELTA), SCHEMA, table, rows, seed)


@given(schemas(), st.integers(1, 40), st.integers(1, 50), st.sampled_from([None, 0.1, 3.0, 100.0]))
@settings(max_examples=30, deadline=None)
def test_whatever_the_schema_and_the_table_the_rows_fit(
    schema: TabularSchema, records: int, rows: int, epsilon: float | None
) -> None:
    made = generate(plan(schema, epsilon, DELTA), schema, random_table(schema, records), rows, SEED)
    require_fits(schema, made, rows)


def test_the_same_seed_makes_the_same_table_and_another_seed_another() -> None:
    assert GENERATOR == "quorate.marginals/1"
    assert same(make(), make())
    assert not same(make(), make(seed=bytes(32)))


@pytest.mark.parametrize("epsilon", [None, 20.0])
def test_what_goes_with_the_label_and_with_each_other_still_does(epsilon: float | None) -> None:
    lot = np.random.default_rng(1)
    ages = TABLE.columns["age"]
    linked = Table(TABLE.columns | {"change": np.clip((ages - 58) + lot.normal(0, 5, 2000), -50, 50)}, TABLE.labels)
    made = make(epsilon, table=linked, rows=2000)
    for labels, columns in ((linked.labels, linked.columns), (made.labels, made.columns)):
        assert np.corrcoef(columns["age"], labels)[0, 1] == pytest.approx(0.86, abs=0.06)
        within = [np.corrcoef(columns["age"][labels == y], columns["change"][labels == y])[0, 1] for y in (0, 1)]
        assert min(within) > 0.75
    assert made.labels.mean() == pytest.approx(linked.labels.mean(), abs=0.02)
    assert np.isnan(made.columns["income"]).mean() == pytest.approx(0.1, abs=0.04)


def test_one_record_of_each_unit_is_looked_at_and_the_lot_decides_which() -> None:
    units = np.repeat(np.arange(500), 4)
    table = replace(TABLE, units=units)
    chosen = one_of_each_unit(table, SEED)
    assert units[chosen].tolist() == list(range(500))
    assert np.bincount(chosen % 4, minlength=4) == pytest.approx(125, abs=40)
    assert (chosen != one_of_each_unit(table, bytes(32))).any()
    many = make(None, table=replace(table, units=np.where(np.arange(2000) < 1000, 0, np.arange(2000))))
    require_fits(SCHEMA, many, 500)


def test_a_table_with_no_record_of_a_class_is_made_all_the_same() -> None:
    none = Table(TABLE.columns, np.zeros(2000, np.int64))
    require_fits(SCHEMA, make(table=none), 500)
    assert set(make(None, table=none).labels) == {0}


def test_thirty_classes_of_flags_are_made() -> None:
    flags = schema_of([{"name": f"f{n}", "type": "flag"} for n in range(4)], [f"k{n}" for n in range(30)])
    made = generate(plan(flags, 1.0, DELTA), flags, random_table(flags, 600), 600, SEED)
    require_fits(flags, made, 600)


def test_a_unique_record_is_not_reproduced() -> None:
    """A record whose every cell no other has: in twenty sets of three times as many rows no row is it."""
    rare = {"age": 99.0, "income": 999_999.0, "change": -49.5, "ward": 3.0, "smoker": 1.0}
    crowd = Table(
        {
            "age": np.clip(TABLE.columns["age"], 18, 60),
            "income": TABLE.columns["income"] / 100,
            "change": np.abs(TABLE.columns["change"]),
            "ward": np.zeros(2000),
            "smoker": np.zeros(2000),
        },
        TABLE.labels,
    )
    for name, value in rare.items():
        crowd.columns[name][0] = value
    near = {"age": 3.0, "income": 50_000.0, "change": 5.0, "ward": 0.0, "smoker": 0.0}
    for number in range(20):
        made = make(3.0, bytes([number]) * 32, crowd, 6000)
        hits = np.all([np.abs(made.columns[name] - rare[name]) <= near[name] for name in rare], axis=0)
        assert not hits.any()


def test_progress_rises_to_the_end() -> None:
    told: list[float] = []
    generate(plan(SCHEMA, 1.0, DELTA), SCHEMA, TABLE, 10, SEED, told.append)
    assert told[0] == 0
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1)
