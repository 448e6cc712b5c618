"""From the columns of a table to the standardised numbers that ``tabular-classifier`` learns from, in numpy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quorate.errors import ContributionError
from quorate_client.tasks.data.schema import (
    REFUSE,
    CategoryColumn,
    FlagColumn,
    NumberColumn,
    TabularSchema,
)
from quorate_client.tasks.data.table import Table

SUMS_PER_COLUMN = 3
"""Of each column of numbers: how many values, their sum and the sum of their squares. The most columns that a schema
may have make no more sums than a reply has room for."""
SUM_ONE = 1 << 26
"""The fixed-point unit of summed features. Sums over 2^25 records stay within 51 bits, below the modulus of an
encrypted sum; one value is off by at most 2^-27 of its column's range."""
MIN_VARIANCE = 2 / SUM_ONE
"""A variance below this, in units of the range, is that of rounding: the range is 5800 standard deviations wide."""

RANGE_WIDTH = 8
"""Of a range, in the model's units. A range is wider than what mostly occurs: in the demo's data a standard deviation
is a tenth of it on average. So this makes 0.8 of one, near the 1 that standardisation by the data would make."""


@dataclass(frozen=True, slots=True)
class Standardisation:
    """What each feature is centred on and divided by; 0 and 1 for flags and categories."""

    means: tuple[float, ...]
    scales: tuple[float, ...]


def feature_names(schema: TabularSchema) -> tuple[str, ...]:
    """A column's name, or COLUMN=CATEGORY for each category."""
    return tuple(
        f"{column.name}={category}" if category else column.name
        for column in schema.columns
        for category in (column.categories if isinstance(column, CategoryColumn) else ("",))
    )


def column_sums(schema: TabularSchema, table: Table) -> tuple[int, ...]:
    """For each column of numbers: how many values, their sum and the sum of their squares.

    A value counts as its place in the column's public range, from 0 to 1, in units of 1/SUM_ONE. A missing value does
    not count where the schema says "mean"; elsewhere its constant does.
    """
    sums: list[int] = []
    for column in _number_columns(schema):
        values = _filled(column, table.columns[column.name])
        low, high = column.range
        places = (values[~np.isnan(values)] - low) / (high - low)
        sums += [len(places), _fixed_sum(places), _fixed_sum(places * places)]
    return tuple(sums)


def standardisation(schema: TabularSchema, sums: Sequence[int]) -> Standardisation:
    """Mean and standard deviation of each feature over all sites, from the summed ``column_sums``.

    Computed from exact integers, so that every site arrives at the same bits. A column that does not vary, or that has
    no value anywhere, is divided by the width of its range.

    Raises:
        ContributionError: the integers cannot be such a sum.
    """
    columns = list(_number_columns(schema))
    if len(sums) != SUMS_PER_COLUMN * len(columns):
        raise ContributionError(
            "The summed statistics do not fit the schema",
            expected=f"{SUMS_PER_COLUMN * len(columns)} integers",
            got=str(len(sums)),
        )
    triples = zip(*[iter(sums)] * SUMS_PER_COLUMN, strict=True)
    found = {column.name: _moments(column, *triple) for column, triple in zip(columns, triples, strict=True)}
    return _by_column(schema, found)


def range_standardisation(schema: TabularSchema) -> Standardisation:
    """By public ranges instead of records: the middle of a range becomes 0, its ends -4 and 4."""
    return _by_column(
        schema,
        {
            column.name: ((column.range[0] + column.range[1]) / 2, (column.range[1] - column.range[0]) / RANGE_WIDTH)
            for column in _number_columns(schema)
        },
    )


def features(schema: TabularSchema, table: Table, by: Standardisation) -> npt.NDArray[np.float32]:
    """What the model sees, [records, features]: standardised numbers, flags, and a 1 for the category that holds."""
    matrix = np.empty((table.records, len(by.means)), dtype=np.float32)
    place = 0
    for column in schema.columns:
        values = table.columns[column.name]
        match column:
            case NumberColumn():
                filled = _filled(column, values)
                standard = (filled - by.means[place]) / by.scales[place]
                matrix[:, place] = np.where(np.isnan(filled), 0.0, standard)
                place += 1
            case FlagColumn():
                matrix[:, place] = np.where(np.isnan(values), float(column.missing is True), values)
                place += 1
            case CategoryColumn():
                fill = 0 if column.missing == REFUSE else column.categories.index(column.missing)
                codes = np.where(np.isnan(values), fill, values).astype(np.int64)
                width = len(column.categories)
                matrix[:, place : place + width] = codes[:, None] == np.arange(width)
                place += width
    return matrix


def _by_column(schema: TabularSchema, found: Mapping[str, tuple[float, float]]) -> Standardisation:
    """For each feature, from the centre and scale of each column of numbers."""
    pairs = [
        found.get(column.name, (0.0, 1.0))
        for column in schema.columns
        for _ in range(len(column.categories) if isinstance(column, CategoryColumn) else 1)
    ]
    return Standardisation(tuple(centre for centre, _ in pairs), tuple(scale for _, scale in pairs))


def _number_columns(schema: TabularSchema) -> Iterator[NumberColumn]:
    return (column for column in schema.columns if isinstance(column, NumberColumn))


def _filled(column: NumberColumn, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """With the schema's constant for missing values; those that become the mean stay NaN."""
    if isinstance(column.missing, str):
        return values
    return np.where(np.isnan(values), column.missing, values)


def _fixed_sum(values: npt.NDArray[np.float64]) -> int:
    return int(np.rint(values * SUM_ONE).astype(np.int64).sum())


def _moments(column: NumberColumn, count: int, total: int, squares: int) -> tuple[float, float]:
    """Mean and standard deviation in the column's own unit."""
    # The square of a place in [0, 1] is at most the place.
    if not 0 <= squares <= total <= count * SUM_ONE:
        raise ContributionError("The summed statistics contradict each other")
    low, high = column.range
    if count == 0:
        return (low + high) / 2, high - low
    mean = total / (count * SUM_ONE)
    variance = max(0, squares * count * SUM_ONE - total * total) / (count * SUM_ONE) ** 2
    scale = math.sqrt(variance) if variance > MIN_VARIANCE else 1.0
    return low + (high - low) * mean, (high - low) * scale
