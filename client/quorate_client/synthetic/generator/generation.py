"""Makes a table that looks like another one, from noisy sums over its records alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from quorate_client.synthetic.generator.budget import Plan
from quorate_client.synthetic.generator.grid import Codes, grid_of
from quorate_client.synthetic.generator.model import Model, fit
from quorate_client.synthetic.generator.release import Releases, randomness
from quorate_client.synthetic.generator.sampling import Draws, draw_bins, shares_of, usable
from quorate_client.tasks.data.columns import Vector
from quorate_client.tasks.data.schema import TabularSchema
from quorate_client.tasks.data.table import Table

GENERATOR = "quorate.marginals/1"

_FITTED = 0.7
"""Share of the time that goes into measuring."""


def generate(
    plan: Plan,
    schema: TabularSchema,
    table: Table,
    rows: int,
    seed: bytes,
    progress: Callable[[float], None] = lambda _: None,
) -> Table:
    """``rows`` records of the schema, drawn from what noisy sums over ``table`` tell.

    Args:
        plan: Of this schema.
        table: The training part. Where it has units, one record of each is looked at, by lot.
        seed: Secret, and for one generation: the same arguments give the same table, and whoever has it can subtract
            the noise.
        progress: Told the share that is done.
    """
    progress(0.0)
    grids = [grid_of(column) for column in schema.columns]
    chosen = one_of_each_unit(table, seed)
    columns = [grid.codes(table.columns[column.name]) for grid, column in zip(grids, schema.columns, strict=True)]
    codes = np.stack([table.labels.astype(np.int16), *columns], axis=1)[chosen]
    model = fit(codes, len(schema.label.class_order), grids, plan.noise, Releases(seed))
    progress(_FITTED)
    draws = Draws(randomness(seed, "records"))
    labels, bins = _draw(model, rows, draws)
    made: dict[str, Vector] = {}
    for place, (column, grid) in enumerate(zip(schema.columns, grids, strict=True)):
        binning = model.bins[place]
        weights = usable(np.where(binning.of_cell[None] == np.arange(binning.count)[:, None], binning.mass[None], 0.0))
        cells = draws.choose(bins[place].astype(np.int64), weights)
        made[column.name] = grid.values(cells.astype(np.int16), draws.even(cells, grid.all_cells))
        progress(_FITTED + (1 - _FITTED) * (place + 1) / len(grids))
    return Table(made, labels.astype(np.int64))


def one_of_each_unit(table: Table, seed: bytes) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Places of the records that are looked at: one of each unit, by lot, whatever other units there are."""
    if table.units is None:
        return np.arange(table.records)
    order = Draws(randomness(seed, "units")).order(table.records)
    return order[np.unique(table.units[order], return_index=True)[1]]


def _draw(model: Model, rows: int, draws: Draws) -> tuple[Codes, list[Codes]]:
    """Labels and bins of each column, in random order: half from each forest."""
    parts = shares_of(rows, model.classes)
    labels = np.repeat(np.arange(len(parts)), parts).astype(np.int16)
    halves = []
    for place, edges in enumerate(model.forests):
        mine = labels[place::2]
        halves.append((mine, draw_bins(draws, mine, model.margins, model.pairs, edges)))
    order = draws.order(rows)
    (first, first_bins), (second, second_bins) = halves
    both = [np.concatenate(each)[order] for each in zip(first_bins, second_bins, strict=True)]
    return np.concatenate([first, second])[order], both
