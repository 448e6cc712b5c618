"""Records as the measures see them: a matrix of columns and the label, alike, and how far records are from one another.

A distance counts each column from 0 to 1: numbers by the share of records that lie between, words by whether they
differ. Places and words are learnt from the training and the held-out part together. Learnt from the training part
alone, distances would differ between the two parts already, and attacks would find a difference that is not in the
synthetic set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quorate_client.tasks.data.schema import CategoryColumn, FlagColumn, TabularSchema
from quorate_client.tasks.data.table import Table

Records = npt.NDArray[np.float64]
"""[records, variables] as in a Table, the label last; NaN where a value is missing."""
Vector = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]

BINS = 10
_MOST_WORDS = 64
"""Of a column, beyond which the rarest words count as one: distances need a column of memory for each."""
_BLOCK_CELLS = 4_000_000


@dataclass(frozen=True, slots=True)
class Variable:
    """A column, or the label. ``words`` are its categories in order; none: it is a number."""

    name: str
    words: tuple[str, ...]

    @property
    def is_number(self) -> bool:
        return not self.words


@dataclass(frozen=True, slots=True)
class Parts:
    """What a report is about."""

    variables: tuple[Variable, ...]
    training: Records
    held_out: Records
    synthetic: Records


def variables_of(schema: TabularSchema) -> tuple[Variable, ...]:
    return (
        *(Variable(column.name, _words(column)) for column in schema.columns),
        Variable(schema.label.name, schema.label.class_order),
    )


def records_of(schema: TabularSchema, table: Table) -> Records:
    """The table's values, one way to write each: all that is missing is the same NaN, and zero has no sign."""
    columns = [table.columns[column.name] for column in schema.columns]
    matrix = np.column_stack([*columns, table.labels.astype(np.float64)]) + 0.0
    matrix[np.isnan(matrix)] = np.nan
    return matrix


def units_of(table: Table) -> Places:
    """Whose each record is."""
    return np.arange(table.records) if table.units is None else table.units


def one_of_each_unit(units: Places, most: int, rng: np.random.Generator) -> Places:
    """The places of at most ``most`` records, no two of one unit: records of one unit are no independent evidence."""
    order = rng.permutation(len(units))
    _, first = np.unique(units[order], return_index=True)
    chosen = order[first]
    return np.sort(rng.permutation(chosen)[:most])


@dataclass(frozen=True, slots=True)
class Space:
    """Where records lie. ``knots`` are the places of numbers; ``codes`` the coordinate of each word."""

    variables: tuple[Variable, ...]
    knots: tuple[tuple[Vector, Vector], ...]
    codes: tuple[Places, ...]

    @classmethod
    def of(cls, variables: Sequence[Variable], records: Records) -> Space:
        knots, codes = [], []
        for place, variable in enumerate(variables):
            present = records[:, place][~np.isnan(records[:, place])]
            knots.append(_knots(present if variable.is_number else present[:0]))
            codes.append(_codes(present[:0] if variable.is_number else present, len(variable.words)))
        return cls(tuple(variables), tuple(knots), tuple(codes))

    def places(self, records: Records) -> Records:
        """Numbers as the share of records below them, from 0 to 1; words as they are; NaN where missing."""
        out = records.copy()
        for place, (variable, (values, shares)) in enumerate(zip(self.variables, self.knots, strict=True)):
            if variable.is_number:
                out[:, place] = np.interp(records[:, place], values, shares)
        return out

    def bins(self, records: Records, bins: int = BINS) -> Places:
        """[records, variables] the tenth of the numbers, or the word; what is missing comes last."""
        places = self.places(records)
        numbers = np.array([variable.is_number for variable in self.variables])
        places[:, numbers] = np.minimum(np.floor(places[:, numbers] * bins), bins - 1)
        last = np.where(numbers, bins, [len(variable.words) for variable in self.variables])
        return np.where(np.isnan(places), last, places).astype(np.int64)

    def coordinates(self, records: Records) -> list[Records]:
        """For each variable the columns in which squared distances are its own, 0 to 1."""
        places = self.places(records)
        return [
            _number_coordinates(places[:, place])
            if variable.is_number
            else _word_coordinates(places[:, place], self.codes[place])
            for place, variable in enumerate(self.variables)
        ]


def squared(queries: Records, rows: Records) -> Records:
    """[queries, rows] squared distances."""
    products = queries @ rows.T
    products *= -2
    products += (queries**2).sum(axis=1)[:, None]
    products += (rows**2).sum(axis=1)[None, :]
    return np.maximum(products, 0, out=products)


def blocks(queries: int, rows: int) -> Iterator[slice]:
    """Pieces of the queries whose distances to all rows fit into memory."""
    size = max(1, _BLOCK_CELLS // max(rows, 1))
    return (slice(start, min(start + size, queries)) for start in range(0, queries, size))


def nearest(queries: Records, rows: Records, count: int) -> tuple[Places, Records]:
    """[queries, count] the places of the closest rows and their distances, the closest first."""
    count = min(count, len(rows))
    places = np.empty((len(queries), count), dtype=np.int64)
    distances = np.empty((len(queries), count))
    for block in blocks(len(queries), len(rows)):
        to_all = squared(queries[block], rows)
        some = np.argpartition(to_all, count - 1, axis=1)[:, :count]
        of_some = np.take_along_axis(to_all, some, axis=1)
        order = np.lexsort((some, of_some), axis=1)
        places[block] = np.take_along_axis(some, order, axis=1)
        distances[block] = np.sqrt(np.take_along_axis(of_some, order, axis=1))
    return places, distances


def _words(column: object) -> tuple[str, ...]:
    match column:
        case CategoryColumn():
            return column.categories
        case FlagColumn():
            return ("no", "yes")
        case _:
            return ()


def _knots(present: Vector) -> tuple[Vector, Vector]:
    """Each value, and the share of records below it: half of those that have it included."""
    if not len(present):
        return np.zeros(1), np.full(1, 0.5)
    values, counts = np.unique(present, return_counts=True)
    return values, (np.cumsum(counts) - counts / 2) / len(present)


def _codes(present: Vector, words: int) -> Places:
    """The coordinate of each word, and of a missing one."""
    if words < _MOST_WORDS:
        return np.arange(words + 1)
    ranks = np.empty(words, dtype=np.int64)
    ranks[np.argsort(-np.bincount(present.astype(np.int64), minlength=words), kind="stable")] = np.arange(words)
    return np.append(np.minimum(ranks, _MOST_WORDS - 1), _MOST_WORDS)


def _number_coordinates(places: Vector) -> Records:
    missing = np.isnan(places)
    return np.column_stack([np.where(missing, 0.5, places), missing * np.sqrt(0.75)])


def _word_coordinates(places: Vector, codes: Places) -> Records:
    at = codes[np.where(np.isnan(places), len(codes) - 1, places).astype(np.int64)]
    return np.where(at[:, None] == np.arange(codes.max() + 1), np.sqrt(0.5), 0.0)
