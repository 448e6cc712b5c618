"""Schemas and tables for the generator's tests: small ones written out, and any that hypothesis can think of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

from quorate_client.synthetic.generator.grid import Codes, grid_of
from quorate_client.synthetic.generator.release import Noisy, Releases
from quorate_client.synthetic.generator.sums import Sum
from quorate_client.tasks.data.schema import TabularSchema, parse_schema
from quorate_client.tasks.data.table import Table

SEED = bytes(range(32))
DELTA = 1e-3

MIXED = (
    {"name": "age", "type": "integer", "range": [18.0, 99.0]},
    {"name": "income", "type": "number", "range": [0.0, 1e6], "missing": "mean"},
    {"name": "change", "type": "number", "range": [-50.0, 50.0]},
    {"name": "ward", "type": "category", "categories": ["a", "b", "c", "d", "e"], "missing": "e"},
    {"name": "smoker", "type": "flag", "missing": False},
)
"""A column of each kind."""


def schema_of(columns: Sequence[dict[str, Any]], classes: Sequence[str] = ("no", "yes")) -> TabularSchema:
    content = {"kind": "tabular", "columns": list(columns), "label": {"name": "label", "classes": list(classes)}}
    parsed = parse_schema(content, "The schema")
    assert isinstance(parsed, TabularSchema)
    return parsed


def random_table(schema: TabularSchema, records: int, seed: int = 0, present: float = 0.9) -> Table:
    """Values anywhere in their ranges; the first column goes with the label."""
    lot = np.random.default_rng(seed)
    labels = lot.integers(0, len(schema.label.class_order), records)
    columns = {}
    for place, column in enumerate(schema.columns):
        match column.type:
            case "number" | "integer":
                low, high = column.range
                values = lot.uniform(low, high, records)
                if place == 0:
                    values = low + (high - low) * (labels + lot.random(records)) / len(schema.label.class_order)
                if column.type == "integer":
                    values = np.clip(np.rint(values), np.ceil(low), np.floor(high))
            case "category":
                values = lot.integers(0, len(column.categories), records).astype(np.float64)
            case "flag":
                values = lot.integers(0, 2, records).astype(np.float64)
        if column.missing != "refuse":
            values[lot.random(records) > present] = np.nan
        columns[column.name] = values
    return Table(columns, labels.astype(np.int64))


def codes_of(schema: TabularSchema, table: Table) -> Codes:
    cells = [grid_of(column).codes(table.columns[column.name]) for column in schema.columns]
    return np.stack([table.labels.astype(np.int16), *cells], axis=1)


def require_fits(schema: TabularSchema, table: Table, rows: int) -> None:
    """Every cell is one that a checked file may hold."""
    assert table.records == rows
    assert list(table.columns) == [column.name for column in schema.columns]
    assert set(table.labels) <= set(range(len(schema.label.class_order)))
    for column in schema.columns:
        values = table.columns[column.name]
        assert values.shape == (rows,)
        assert values.dtype == np.float64
        missing = np.isnan(values)
        assert column.missing != "refuse" or not missing.any(), column
        known = values[~missing]
        match column.type:
            case "number" | "integer":
                assert ((known >= column.range[0]) & (known <= column.range[1])).all(), column
                assert column.type == "number" or (known == np.rint(known)).all(), column
            case "category":
                assert np.isin(known, np.arange(len(column.categories))).all(), column
            case "flag":
                assert np.isin(known, (0, 1)).all(), column


@dataclass(frozen=True, slots=True, eq=False)
class WatchedReleases(Releases):
    """Writes down what was asked of which codes, with which noise multiplier."""

    asked: list[tuple[Codes, Sequence[Sum], float, list[Noisy]]] = field(default_factory=list)

    def release(
        self, codes: Codes, sums: Sequence[Sum], noise_multiplier: float, weights: Sequence[float] | None = None
    ) -> list[Noisy]:
        noisy = Releases.release(self, codes, sums, noise_multiplier, weights)
        self.asked.append((codes, sums, noise_multiplier, noisy))
        return noisy


bounds = st.floats(-1e12, 1e12).map(lambda low: float(np.float32(low)))
widths = st.sampled_from([1e-6, 0.5, 1.0, 7.0, 1000.0, 1e9, 1e13])


@st.composite
def columns(draw: st.DrawFn) -> dict[str, Any]:
    missing = draw(st.booleans())
    match draw(st.sampled_from(["number", "integer", "category", "flag"])):
        case "number":
            low, width = draw(bounds), draw(widths)
            content: dict[str, Any] = {"type": "number", "range": [low, low + max(width, abs(low) * 1e-9)]}
            return content | ({"missing": "mean"} if missing else {})
        case "integer":
            low = draw(st.integers(-(10**9), 10**9))
            content = {"type": "integer", "range": [float(low), float(low + draw(st.integers(1, 10**9)))]}
            return content | ({"missing": "mean"} if missing else {})
        case "category":
            words = [f"w{word}" for word in range(draw(st.integers(2, 40)))]
            return {"type": "category", "categories": words} | ({"missing": words[0]} if missing else {})
        case _:
            return {"type": "flag"} | ({"missing": True} if missing else {})


@st.composite
def schemas(draw: st.DrawFn) -> TabularSchema:
    named = [
        column | {"name": f"c{place}"} for place, column in enumerate(draw(st.lists(columns(), min_size=1, max_size=5)))
    ]
    return schema_of(named, [f"k{number}" for number in range(draw(st.integers(2, 4)))])
