"""Bins of a column: cells merged until the counts stand out of the noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quorate_client.synthetic.generator.estimates import Counts
from quorate_client.synthetic.generator.grid import Codes, Grid

_FEWEST, _MOST = 3, 16
_FINENESS = 4.0


def bins_for(smallest_class: float, sigma: float) -> int:
    """Into how many bins a column may be cut.

    Args:
        smallest_class: Records of the rarest class. sigma: Of the noise on a table of class by column.
    """
    if sigma == 0:
        return _MOST
    return int(np.clip(_FINENESS * math.sqrt(max(smallest_class, 0.0) / sigma), _FEWEST, _MOST))


@dataclass(frozen=True, slots=True, eq=False)
class Bins:
    """Which cells are one bin.

    Args:
        of_cell: [cells] the bin of each cell, missing last.
        mass: [cells] estimated counts.
        ordered: So many of the first bins are in an order, each like its neighbours.
    """

    of_cell: npt.NDArray[np.int16]
    mass: Counts
    ordered: int = 0

    @property
    def count(self) -> int:
        return int(self.of_cell.max()) + 1

    @property
    def totals(self) -> Counts:
        return np.bincount(self.of_cell, self.mass, self.count).astype(np.float64)

    def codes(self, cells: Codes) -> Codes:
        return self.of_cell[cells]


def merged(grid: Grid, mass: Counts, count: int) -> Bins:
    """A column's cells in about ``count`` bins of equal mass; missing is a bin of its own."""
    known = mass[: grid.cells]
    total = known.sum()
    if grid.cells <= count or total <= 0:
        of_cell = np.arange(grid.cells) if grid.cells <= count else np.zeros(grid.cells, np.int64)
    elif grid.is_ordered:
        middle = (np.cumsum(known) - known / 2) / total
        of_cell = np.minimum((middle * count).astype(np.int64), count - 1)
    else:
        # The rare ones together: one by one the noise would drown them.
        order = np.argsort(-known, kind="stable")
        of_cell = np.empty(grid.cells, np.int64)
        of_cell[order] = np.minimum(np.arange(grid.cells), count - 1)
    of_cell = np.unique(of_cell, return_inverse=True)[1]
    ordered = int(of_cell.max()) + 1 if grid.is_ordered else 0
    if grid.has_missing:
        of_cell = np.append(of_cell, of_cell.max() + 1)
    return Bins(of_cell.astype(np.int16), mass, ordered)
