"""From noisy sums to the tables that records are drawn from, one stage after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quorate_client.synthetic.generator.bins import Bins, bins_for, merged
from quorate_client.synthetic.generator.estimates import Counts, raked, shrunk, simplex, without_three_way
from quorate_client.synthetic.generator.grid import Codes, Grid
from quorate_client.synthetic.generator.plan import NoiseMultipliers
from quorate_client.synthetic.generator.release import Noisy, Releases
from quorate_client.synthetic.generator.structure import (
    Edge,
    correlations,
    forests,
    noise_floor,
    score_products,
)
from quorate_client.synthetic.generator.sums import Counts as CountsSum


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
    forests: tuple[list[Edge], list[Edge]]


def fit(codes: Codes, classes: int, grids: Sequence[Grid], noise: NoiseMultipliers, releases: Releases) -> Model:
    """Measure and estimate.

    Args:
        codes: [records, 1 + columns] labels, then cells of ``grids``.
    """
    label_sum = CountsSum("label", (0,), (classes,))
    (label,) = releases.release(codes, [label_sum], noise.label)
    total = max(float(label.values.sum()), 1.0)
    counts = simplex(label.values, total)
    cell_sums = [CountsSum(f"column/{j}", (j + 1,), (grid.all_cells,)) for j, grid in enumerate(grids)]
    masses = [simplex(each.values, total) for each in releases.release(codes, cell_sums, noise.columns)]
    sigma = noise.labelled * len(grids) ** 0.5
    most = bins_for(float(counts.min()), sigma)
    bins = [merged(grid, mass, most) for grid, mass in zip(grids, masses, strict=True)]
    coarse = np.stack([codes[:, 0], *(each.codes(codes[:, j + 1]) for j, each in enumerate(bins))], axis=1)

    def labelled(turn: str) -> list[CountsSum]:
        return [CountsSum(f"labelled/{turn}/{j}", (0, j + 1), (classes, each.count)) for j, each in enumerate(bins)]

    first = releases.release(coarse, labelled("first"), noise.labelled)
    margins = [_margin(counts, each, table) for each, table in zip(bins, first, strict=True)]
    trees: tuple[list[Edge], list[Edge]] = ([], [])
    products = score_products(margins)
    floor = noise_floor(noise.structure * products.sensitivity, total)
    again = []
    if len(grids) > 1 and floor < 1:
        (noisy,) = releases.release(coarse, [products], noise.structure)
        trees = forests(len(grids), correlations(noisy.values, total), floor)
    else:
        again.append(releases.release(coarse, labelled("instead of structure"), noise.structure))
    edges = [*trees[0], *trees[1]]
    pair_sums = [
        CountsSum(f"pair/{a}/{b}", (0, a + 1, b + 1), (classes, bins[a].count, bins[b].count)) for a, b in edges
    ]
    last = releases.release(coarse, [*labelled("last"), *pair_sums], noise.pairs)
    again.append(last[: len(grids)])
    tables = [pooled(each) for each in zip(first, *again, strict=True)]
    margins = [_margin(counts, each, table) for each, table in zip(bins, tables, strict=True)]
    pairs = {
        (a, b): _pair(margins[a], margins[b], table) for (a, b), table in zip(edges, last[len(grids) :], strict=True)
    }
    return Model(counts, bins, margins, pairs, trees)


def pooled(measured: Sequence[Noisy]) -> Noisy:
    """The mean of measurements of one sum, by their precision."""
    if measured[0].sigma == 0:
        return measured[0]
    precisions = [each.sigma**-2 for each in measured]
    values = np.average([each.values for each in measured], axis=0, weights=precisions)
    return Noisy(values, float(sum(precisions)) ** -0.5)


def _margin(counts: Counts, bins: Bins, table: Noisy) -> Counts:
    guess = counts[:, None] * (bins.totals / max(bins.totals.sum(), 1e-9))[None]
    rows = [
        simplex(shrunk(measured, toward, table.sigma**2), float(count))
        for measured, toward, count in zip(table.values, guess, counts, strict=True)
    ]
    return np.stack(rows)


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
