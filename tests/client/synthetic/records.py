"""A table of each kind of column, with missing values, in which the label depends on the columns."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from quorate_client.tasks.data.schema import TabularSchema, parse_schema
from quorate_client.tasks.data.table import Table

SCHEMA_TOML = """
kind = "tabular"

[[columns]]
name = "age"
type = "integer"
range = [0.0, 120.0]

[[columns]]
name = "pressure"
type = "number"
range = [60.0, 240.0]
missing = "mean"

[[columns]]
name = "region"
type = "category"
categories = ["north", "south, inland", "west"]
missing = "west"

[[columns]]
name = "smoker"
type = "flag"
missing = false

[label]
name = "outcome"
classes = ["well", "ill"]
"""
SCHEMA: Mapping[str, Any] = tomllib.loads(SCHEMA_TOML)


def parsed() -> TabularSchema:
    schema = parse_schema(SCHEMA, "The tests' schema")
    assert isinstance(schema, TabularSchema)
    return schema


def a_table(records: int, seed: int = 0) -> Table:
    chance = np.random.default_rng(seed)
    age = chance.integers(18, 95, records).astype(float)
    pressure = np.round(np.clip(chance.normal(100 + age / 2, 15), 60, 240), 1)
    region = chance.integers(0, 3, records).astype(float)
    smoker = (chance.random(records) < 0.3).astype(float)
    ill = age / 20 + smoker + chance.normal(0, 1, records) > 3.2
    for column, share in ((pressure, 0.05), (region, 0.02), (smoker, 0.02)):
        column[chance.random(records) < share] = np.nan
    return Table({"age": age, "pressure": pressure, "region": region, "smoker": smoker}, ill.astype(np.int64))


def write_table(path: Path, table: Table) -> Path:
    """As a hospital's own CSV: no mark."""
    regions = parsed().columns[2].categories  # type: ignore[union-attr]

    def cell(value: float, word: str) -> str:
        return "" if np.isnan(value) else word

    with path.open("w", encoding="utf-8") as file:
        file.write("outcome,age,region,pressure,smoker\n")
        for place in range(table.records):
            age, pressure, region, smoker = (
                float(table.columns[name][place]) for name in ("age", "pressure", "region", "smoker")
            )
            word = "" if np.isnan(region) else f'"{regions[int(region)]}"'
            cells = (f"{age:.0f}", word, cell(pressure, f"{pressure:g}"), cell(smoker, f"{smoker:.0f}"))
            file.write(",".join((("well", "ill")[int(table.labels[place])], *cells)) + "\n")
    return path
