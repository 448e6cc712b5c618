"""How many digits made numbers have.

What is drawn from noisy sums comes with seventeen digits, of which none after the sixth says anything: a table of them
is long, hard to read, and looks more exact than any instrument. So numbers are cut before anything else is done with
them: what is measured, trained on and exported is the same.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from quorate_client.tasks.data.columns import Vector
from quorate_client.tasks.data.schema import NumberColumn, TabularSchema
from quorate_client.tasks.data.table import Table

DIGITS = 6
"""Significant ones, beside those that all numbers of a column's range have in common."""
_POWERS = np.array([float(f"1e{power}") for power in range(23)])
"""All powers of ten that are exact in floating point."""


def cut(schema: TabularSchema, table: Table) -> Table:
    """The table with short numbers, which stay within the schema's ranges. Whole numbers stay as they are."""
    columns = dict(table.columns)
    for column in schema.columns:
        if isinstance(column, NumberColumn) and column.type == "number":
            columns[column.name] = _cut(columns[column.name], column.range)
    return replace(table, columns=columns)


def _cut(values: Vector, allowed: tuple[float, float]) -> Vector:
    """A whole number divided by a power of ten is the closest number to that decimal: it is written with no more."""
    low, high = allowed
    in_common = math.floor(math.log10(max(1.0, max(abs(low), abs(high)) / (high - low))))
    sizes = np.abs(np.where(values == 0, 1.0, values))
    places = DIGITS + in_common - 1 - np.floor(np.log10(sizes))
    places = np.clip(np.nan_to_num(places), 1 - len(_POWERS), len(_POWERS) - 1).astype(np.int64)
    before, after = _POWERS[np.maximum(-places, 0)], _POWERS[np.maximum(places, 0)]
    short: Vector = np.clip(np.rint(values / before * after) / after * before, low, high)
    return short
