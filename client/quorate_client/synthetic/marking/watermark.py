"""A keyed watermark in the choice of rows, by which a site knows its own tables again.

Each row draws a lot by its content under a key of the site's: half of all rows that there could be are *green*. More
rows are made than are wanted, and of them green ones are kept somewhat more often. So about 60 % of a table's distinct
rows are green in place of 50 %, which a test finds in a table of some 1,500 rows, or in 1,000 of its rows.

Numbers count with four digits, for whoever writes a table anew may cut some.

Nothing of it is seen without the key, and no column's figures move: a lot has to do with nothing but the key. Rows that
come several times among those that were made are chosen without regard to it, or the more frequent green ones would
make their values more frequent. It is removed by changing most rows in any cell, or by leaving a column out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quorate_client.tasks.data.columns import Mask, Vector
from quorate_client.tasks.data.fingerprints import Fingerprints, of_rows
from quorate_client.tasks.data.schema import TabularSchema
from quorate_client.tasks.data.table import Table

SPARE = 1.3
"""So many times the rows that are wanted are made: enough green ones in nearly every table."""
GREEN_SHARE = 0.6
FOUND_Z = 5.0
"""A table that did not come from here reaches it with a chance of 3 in 10 million."""
DIGITS = 4
MIN_DISTINCT = 1_500
"""Distinct rows of a table that can carry it; one of so many is found in 996 of 1,000 cases."""


@dataclass(frozen=True, slots=True)
class Finding:
    """How many distinct rows a table has, and how many of them are green."""

    distinct: int
    green: int

    @property
    def z(self) -> float:
        """By how many standard deviations there are more green ones than chance gives."""
        return (self.green - self.distinct / 2) / math.sqrt(self.distinct / 4) if self.distinct else 0.0

    @property
    def is_ours(self) -> bool:
        return self.z >= FOUND_Z


def find(key: bytes, schema: TabularSchema, table: Table) -> Finding:
    """Look for the watermark: in whatever order rows and columns are, and however numbers and words are written."""
    lots = np.unique(_lots(key, schema, table))
    return Finding(len(lots), int(np.count_nonzero(_green(lots))))


def thinned(key: bytes, schema: TabularSchema, candidates: Table, rows: int, seed: bytes) -> tuple[Table, Finding]:
    """``rows`` of the candidates, of each class its share, with the watermark if there are enough distinct ones.

    Args:
        candidates: At least so many; ``SPARE`` times as many let it be found.
        seed: 32 bytes. Whatever is left to chance follows from it.

    Returns:
        The table, and what is found in it.
    """
    lots = _lots(key, schema, candidates)
    _, places, counts = np.unique(lots, return_inverse=True, return_counts=True)
    chance = np.random.default_rng(np.frombuffer(seed, np.uint32))
    kept = np.zeros(candidates.records, dtype=np.bool_)
    marks = bool(np.count_nonzero(counts == 1) * rows >= MIN_DISTINCT * candidates.records)
    for label, quota in _shares(candidates.labels, rows):
        of_class = candidates.labels == label
        if marks:
            kept[_marked(of_class, counts[places] == 1, _green(lots), quota, chance)] = True
        else:
            kept[chance.permutation(np.flatnonzero(of_class))[:quota]] = True
    table = candidates.part(kept)
    return table, find(key, schema, table)


def _marked(of_class: Mask, single: Mask, green: Mask, quota: int, chance: np.random.Generator) -> npt.NDArray[np.intp]:
    """Which rows of a class are kept: of those that come several times their share, of the others more green ones."""
    several, greens, others = (
        chance.permutation(np.flatnonzero(of_class & each)) for each in (~single, single & green, single & ~green)
    )
    of_several = min(len(several), round(quota * len(several) / max(1, int(of_class.sum()))))
    of_singles = quota - of_several
    of_greens = min(len(greens), max(round(GREEN_SHARE * of_singles), of_singles - len(others)))
    chosen = (several[:of_several], greens[:of_greens], others[: of_singles - of_greens])
    return np.concatenate(chosen)


def _shares(labels: npt.NDArray[np.int64], rows: int) -> list[tuple[int, int]]:
    """Each class with its part of ``rows``, by largest remainders."""
    classes, counts = np.unique(labels, return_counts=True)
    exact = counts * (rows / len(labels))
    whole = np.floor(exact).astype(np.int64)
    for place in np.argsort(whole - exact, kind="stable")[: rows - int(whole.sum())]:
        whole[place] += 1
    return list(zip(classes.tolist(), whole.tolist(), strict=True))


def _lots(key: bytes, schema: TabularSchema, table: Table) -> Fingerprints:
    """Of each row, equal for rows that say the same."""
    numbers = {column.name for column in schema.columns if column.type == "number"}
    columns = {name: _cut(values) if name in numbers else values for name, values in table.columns.items()}
    return of_rows(key, schema, Table(columns, table.labels))


def _cut(values: Vector) -> Vector:
    """To so many significant digits."""
    sizes = np.abs(np.where(values == 0, 1.0, values))
    steps = 10.0 ** (np.floor(np.log10(sizes)) - (DIGITS - 1))
    return np.round(values / steps) * steps


def _green(lots: Fingerprints) -> Mask:
    return (lots & np.uint64(1)).astype(np.bool_)
