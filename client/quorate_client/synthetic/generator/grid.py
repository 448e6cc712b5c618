"""The public grid of a column: cells that its schema alone decides, and the way from values to cells and back.

Numbers have 16 cells of equal width, cut once more at the octaves toward zero (or toward the end of the range that is
nearest to it), since amounts crowd there, and zero is a cell of its own. Categories and flags have their words. A
column that may be missing has one more cell, the last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

import numpy as np
import numpy.typing as npt

from quorate_client.tasks.data.columns import Vector
from quorate_client.tasks.data.schema import REFUSE, CategoryColumn, Column, FlagColumn, NumberColumn

Codes = npt.NDArray[np.int16]

_LINEAR = 16
_OCTAVES = 8
_MOST_EXACT = 64
"""Integers up to so many have a cell each."""


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Cells of one column.

    Args:
        edges: [cells + 1] of a number: cell k is [edges[k], edges[k + 1]), but for the last, which has its upper end.
            None where the cells are words.
        cells: How many, without that of missing values.
        is_ordered: Whether neighbouring cells are alike.
        has_missing: Whether there is one more cell, of missing values.
        is_whole: Whether values are whole numbers.
    """

    edges: Vector | None
    cells: int
    is_ordered: bool
    has_missing: bool
    is_whole: bool

    @property
    def all_cells(self) -> int:
        return self.cells + self.has_missing

    def codes(self, values: Vector) -> Codes:
        """[records] the cell of each value."""
        missing = np.isnan(values)
        known = np.where(missing, 0.0, values)
        found = known.astype(np.int64) if self.edges is None else np.searchsorted(self.edges, known, side="right") - 1
        return np.where(missing, self.cells, np.clip(found, 0, self.cells - 1)).astype(np.int16)

    def values(self, codes: Codes, places: Vector) -> Vector:
        """[records] a value in each cell, at the place in [0, 1) of its width."""
        inside = np.minimum(codes, self.cells - 1)
        if self.edges is None:
            found = inside.astype(np.float64)
        else:
            low, high = self.edges[inside], self.edges[inside + 1]
            if self.is_whole:
                # Cells begin at whole numbers, and the last one ends one above the range.
                found = low + np.floor(places * (high - low))
            else:
                found = np.where(
                    high - low < _LEAST, low, np.minimum(low + places * (high - low), np.nextafter(high, low))
                )
        return np.where(codes == self.cells, np.nan, found)


_LEAST = float(np.finfo(np.float64).tiny)


def grid_of(column: Column) -> Grid:
    """The grid of a column of the schema."""
    match column:
        case NumberColumn():
            edges = _edges(*column.range, is_whole=column.type == "integer")
            return Grid(edges, len(edges) - 1, True, column.missing != REFUSE, column.type == "integer")
        case CategoryColumn():
            return Grid(None, len(column.categories), False, column.missing != REFUSE, False)
        case FlagColumn():
            return Grid(None, 2, False, column.missing != REFUSE, False)
        case _:
            assert_never(column)


def _edges(low: float, high: float, is_whole: bool) -> Vector:
    if is_whole:
        low, high = float(np.ceil(low)), float(np.floor(high)) + 1
        if high - low <= _MOST_EXACT:
            return np.arange(low, high + 1)
    turn = min(max(low, 0.0), high)
    octaves = 2.0 ** -np.arange(1, _OCTAVES + 1)
    cuts = [np.linspace(low, high, _LINEAR + 1), turn + (high - turn) * octaves, turn + (low - turn) * octaves]
    if low <= 0 <= high:
        cuts.append(np.array([0.0, 1.0 if is_whole else _LEAST / 2]))
    edges = np.concatenate(cuts)
    if is_whole:
        edges = np.ceil(edges)
    edges = np.unique(edges)
    return edges[(edges >= low) & (edges <= high)]
