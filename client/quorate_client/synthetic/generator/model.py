"""From noisy sums to the tables that records are drawn from, one stage after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quorate_client.synthetic.generator.bins import Bins, bins_for, merged
from quorate_client.synthetic.generator.budget import NoiseMultipliers
from quorate_client.synthetic.generator.estimates import Counts, raked, shrunk, simplex, without_three_way
from quorate_client.synthetic.generator.grid import Codes, Grid
from quorate_client.synthetic.generator.labelled import (
    Measured,
    Scores,
    Scoring,
    from_counts,
    parts,
    scoring_of,
    tables,
)
from quorate_client.synthetic.generator.release import Noisy, Releases
from quorate_client.synthetic.generator.structure import Edge, correlations, forests, noise_floor, score_products
from quorate_client.synthetic.generator.sums import Counts as CountsSum
from quorate_client.synthetic.generator.sums import Sum

Forests = tuple[list[Edge], list[Edge]]

_PAIR = 0.2
"""A pair weighs so much of what a column does: it is shrunk toward its columns, and these tell the classes apart."""


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """Estimated counts.

    Args:
        classes: [classes].
        bins: Of each column.
        margins: For each column [classes, bins].
        pairs: For each edge [classes, bins of the one, bins of the other].
        forests: Edges of two forests; half of the records is drawn from each.
    """

    classes: Counts
    bins: Sequence[Bins]
    margins: Sequence[Counts]
    pairs: dict[Edge, Counts]
    forests: Forests


def fit(codes: Codes, classes: int, grids: Sequence[Grid], noise: NoiseMultipliers, releases: Releases) -> Model:
    """Measure and estimate.

    Args:
        codes: [records, 1 + columns] labels, then cells of ``grids``.
    """
    (label,) = releases.release(codes, [CountsSum("label", (0,), (classes,))], noise.label)
    total = max(float(label.values.sum()), 1.0)
    counts = simplex(label.values, total)
    bins = _bins(codes, grids, counts, noise, releases)
    coarse = np.stack([codes[:, 0], *(each.codes(codes[:, j + 1]) for j, each in enumerate(bins))], axis=1)
    scoring = scoring_of(bins, float(counts.min()), noise.labelled)
    known = [_labelled("first", coarse, counts, scoring, noise.labelled, releases)]
    margins = _margins(counts, scoring.columns, [[each] for each in known[0]])
    trees: Forests = ([], [])
    products = score_products(margins)
    floor = noise_floor(noise.structure * products.sensitivity, total)
    if len(grids) > 1 and floor < 1:
        (noisy,) = releases.release(coarse, [products], noise.structure)
        trees = forests(len(grids), correlations(noisy.values, total), floor)
    else:
        known.append(_labelled("instead of structure", coarse, counts, scoring, noise.structure, releases))
    edges = list(dict.fromkeys([*trees[0], *trees[1]]))
    again, paired = _last(edges, coarse, counts, scoring, noise.pairs, releases)
    measured = zip(*known, again, _sides(scoring.columns, edges, paired), strict=True)
    margins = _margins(counts, scoring.columns, [[*columns, *pairs] for *columns, pairs in measured])
    pairs = {(a, b): _pair(margins[a], margins[b], table) for (a, b), table in zip(edges, paired, strict=True)}
    return Model(counts, bins, margins, pairs, trees)


def _bins(
    codes: Codes, grids: Sequence[Grid], counts: Counts, noise: NoiseMultipliers, releases: Releases
) -> list[Bins]:
    sums = [CountsSum(f"column/{j}", (j + 1,), (grid.all_cells,)) for j, grid in enumerate(grids)]
    cells = releases.release(codes, sums, noise.columns)
    most = bins_for(float(counts.min()), noise.labelled * math.sqrt(len(grids)))
    total = float(counts.sum())
    return [merged(grid, simplex(each.values, total), most) for grid, each in zip(grids, cells, strict=True)]


def _labelled(
    name: str, codes: Codes, counts: Counts, scoring: Scoring, noise: float, releases: Releases
) -> list[Measured]:
    """For each column; without noise plainly counted, since nothing need be short."""
    if noise:
        (measured,) = releases.release(codes, [scoring.differences(f"labelled/{name}", len(counts))], noise)
        return parts(measured, scoring.columns)
    sizes = [len(each.usual) for each in scoring.columns]
    sums = [CountsSum(f"labelled/{j}", (0, j + 1), (len(counts), size)) for j, size in enumerate(sizes)]
    exact = releases.release(codes, sums, noise)
    return [from_counts(table, each) for table, each in zip(exact, scoring.columns, strict=True)]


def _last(
    edges: Sequence[Edge], codes: Codes, counts: Counts, scoring: Scoring, noise: float, releases: Releases
) -> tuple[list[Measured], list[Noisy]]:
    """Class by column again, and class by pair."""
    sizes = [len(each.usual) for each in scoring.columns]
    pairs: list[Sum] = [
        CountsSum(f"pair/{a}/{b}", (0, a + 1, b + 1), (len(counts), sizes[a], sizes[b])) for a, b in edges
    ]
    if not noise:
        return _labelled("last", codes, counts, scoring, noise, releases), releases.release(codes, pairs, noise)
    again = scoring.differences("labelled/last", len(counts))
    measured, *paired = releases.release(codes, [again, *pairs], noise, [len(sizes), *[_PAIR] * len(pairs)])
    return parts(measured, scoring.columns), paired


def _sides(scored: Sequence[Scores], edges: Sequence[Edge], pairs: Sequence[Noisy]) -> list[list[Measured]]:
    """For each column: class by column once more, from the tables of the pairs that the column is in."""
    sides: list[list[Measured]] = [[] for _ in scored]
    for edge, pair in zip(edges, pairs, strict=True):
        for column, other in zip(edge, (2, 1), strict=True):
            side = Noisy(pair.values.sum(axis=other), pair.sigma * pair.values.shape[other] ** 0.5)
            sides[column].append(from_counts(side, scored[column]))
    return sides


def _margins(counts: Counts, scored: Sequence[Scores], measured: Sequence[Sequence[Measured]]) -> list[Counts]:
    """For each column [classes, bins], from all that was measured of it."""
    estimated = tables(measured, counts, scored)
    return [np.stack([simplex(*row) for row in zip(table, counts.tolist(), strict=True)]) for table in estimated]


def _pair(rows: Counts, columns: Counts, table: Noisy) -> Counts:
    variance = table.sigma**2
    classes = np.maximum(rows.sum(axis=1), 1e-9)
    product = (rows[:, :, None] * columns[:, None, :] / classes[:, None, None]).sum(axis=0)
    total = float(classes.sum())
    together = simplex(shrunk(table.values.sum(axis=0), product, variance * len(rows)), total)
    model = without_three_way(rows, columns, together)
    slices = [
        simplex(shrunk(measured, toward, variance), float(count))
        for measured, toward, count in zip(table.values, model, classes, strict=True)
    ]
    return raked(np.stack(slices), rows, columns)
