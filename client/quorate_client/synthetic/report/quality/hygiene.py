"""Hygiene: signs of a generator that repeats records. They find accidents and prove nothing.

Exact copies of records that have a continuous column must not be: chance does not make them. Where all columns are
coarse, records coincide by chance, and the held-out part tells how often.

Distances to the closest record are shown and never a limit. A consensus of experts (Patterns 2025) and attacks on sets
that pass such tests (ESORICS 2025) say why: a set can keep any distance and still tell who is in it, and an honest one
may come close to records that are like many others.
"""

from __future__ import annotations

import numpy as np

from quorate.study.section import Frozen
from quorate_client.synthetic.report.records import Parts, Records, Space, Vector, nearest

CONTINUOUS = 0.5
"""The share of records with a value of their own from which on a column of numbers is taken for continuous."""


class Distances(Frozen):
    """From records of one part to the closest synthetic one, in columns that differ."""

    lowest_twentieth: float
    median: float


class Hygiene(Frozen):
    """What was found.

    Args:
        copies: Synthetic records that equal one of the training part.
        copies_expected: How many would by chance, from those that equal a held-out one.
        has_continuous: Whether a column is continuous, so that no copy is by chance.
        training: Distances of the training part's records.
        held_out: Distances of the held-out part's.
    """

    copies: int
    copies_expected: float
    has_continuous: bool
    training: Distances
    held_out: Distances

    @property
    def is_clean(self) -> bool:
        return not (self.has_continuous and self.copies)


def examine(space: Space, parts: Parts, people: tuple[Records, Records]) -> Hygiene:
    """Look at all records for copies, and at ``people``, some of either part, for distances."""
    rows = np.hstack(space.coordinates(parts.synthetic))
    distances = [_distances(nearest(np.hstack(space.coordinates(some)), rows, 1)[1][:, 0]) for some in people]
    return Hygiene(
        copies=copies(parts.synthetic, parts.training),
        copies_expected=copies(parts.synthetic, parts.held_out) * len(parts.training) / len(parts.held_out),
        has_continuous=any(
            _is_continuous(parts.training[:, place])
            for place, variable in enumerate(space.variables)
            if variable.is_number
        ),
        training=distances[0],
        held_out=distances[1],
    )


def copies(synthetic: Records, real: Records) -> int:
    """How many synthetic records equal a real one in every column, missing values included."""
    known = {row.tobytes() for row in np.ascontiguousarray(real)}
    return sum(row.tobytes() in known for row in np.ascontiguousarray(synthetic))


def _is_continuous(column: Vector) -> bool:
    present = column[~np.isnan(column)]
    return len(np.unique(present)) > CONTINUOUS * len(column)


def _distances(found: Vector) -> Distances:
    low, median = np.quantile(found, [0.05, 0.5])
    return Distances(lowest_twentieth=float(low), median=float(median))
