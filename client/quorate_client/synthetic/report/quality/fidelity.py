"""Fidelity: how alike the tables of single columns and of pairs of columns are.

Distances are in total variation: the share of records that would have to change to make one table the other, 0 to 1.
Numbers fall into tenths of the real records, which the report does not name. Beside each distance stands that of the
held-out part from the training part: what chance alone makes, for a part of that size.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from quorate.study.section import Frozen
from quorate_client.synthetic.report.records import Parts, Places, Records, Space, Variable

RARE = 0.01
_PAIR_BINS = 5
_WORST_PAIRS = 10


class ColumnFidelity(Frozen):
    """One column against the training part.

    Args:
        distance: Total variation.
        chance: The same of the held-out part.
        divergence: Jensen and Shannon's, in bits, 0 to 1.
        missing: Shares of missing values: training part, synthetic set.
    """

    name: str
    distance: float
    chance: float
    divergence: float
    missing: tuple[float, float]


class PairFidelity(Frozen):
    """Two columns together."""

    names: tuple[str, str]
    distance: float
    chance: float


class RareWords(Frozen):
    """Of a column of words: those that fewer than one record of a hundred of the training part has.

    Args:
        rare: How many there are.
        kept: How many of them occur in the synthetic set.
        share: Of records with one of them: training part, synthetic set.
    """

    name: str
    rare: int
    kept: int
    share: tuple[float, float]


class ClassShare(Frozen):
    name: str
    training: float
    synthetic: float


class Fidelity(Frozen):
    columns: tuple[ColumnFidelity, ...]
    label: tuple[ClassShare, ...]
    rare: tuple[RareWords, ...]
    pairs: int
    median_pair: float
    median_chance: float
    worst_pairs: tuple[PairFidelity, ...]


def examine(space: Space, parts: Parts) -> Fidelity:
    tables = [space.bins(part) for part in (parts.training, parts.synthetic, parts.held_out)]
    pairs = _pairs(space, parts)
    return Fidelity(
        columns=tuple(_column(variable, place, parts, tables) for place, variable in enumerate(parts.variables)),
        label=_label(parts),
        rare=tuple(
            _rare(variable, parts.training[:, place], parts.synthetic[:, place])
            for place, variable in enumerate(parts.variables)
            if len(variable.words) > 2
        ),
        pairs=len(pairs),
        median_pair=float(np.median([pair.distance for pair in pairs])),
        median_chance=float(np.median([pair.chance for pair in pairs])),
        worst_pairs=tuple(sorted(pairs, key=lambda pair: -pair.distance)[:_WORST_PAIRS]),
    )


def total_variation(first: Places, second: Places) -> float:
    """Between the shares of the codes."""
    shares = _shares(first, second)
    return float(np.abs(shares[0] - shares[1]).sum() / 2)


def divergence(first: Places, second: Places) -> float:
    """Jensen and Shannon's, in bits."""
    one, other = _shares(first, second)
    middle = (one + other) / 2
    return sum(float((side[side > 0] * np.log2(side[side > 0] / middle[side > 0])).sum()) / 2 for side in (one, other))


def _shares(first: Places, second: Places) -> tuple[Records, Records]:
    cells = int(max(first.max(), second.max())) + 1
    one, other = (np.bincount(side, minlength=cells) / len(side) for side in (first, second))
    return one, other


def _column(variable: Variable, place: int, parts: Parts, tables: Sequence[Places]) -> ColumnFidelity:
    training, synthetic, held_out = (table[:, place] for table in tables)
    missing = [float(np.isnan(part[:, place]).mean()) for part in (parts.training, parts.synthetic)]
    return ColumnFidelity(
        name=variable.name,
        distance=total_variation(training, synthetic),
        chance=total_variation(training, held_out),
        divergence=divergence(training, synthetic),
        missing=(missing[0], missing[1]),
    )


def _pairs(space: Space, parts: Parts) -> list[PairFidelity]:
    tables = [space.bins(part, _PAIR_BINS) for part in (parts.training, parts.synthetic, parts.held_out)]
    width = int(max(table.max() for table in tables)) + 1
    found = []
    for first, second in combinations(range(len(parts.variables)), 2):
        training, synthetic, held_out = (table[:, first] * width + table[:, second] for table in tables)
        found.append(
            PairFidelity(
                names=(parts.variables[first].name, parts.variables[second].name),
                distance=total_variation(training, synthetic),
                chance=total_variation(training, held_out),
            )
        )
    return found


def _label(parts: Parts) -> tuple[ClassShare, ...]:
    return tuple(
        ClassShare(
            name=word,
            training=float((parts.training[:, -1] == place).mean()),
            synthetic=float((parts.synthetic[:, -1] == place).mean()),
        )
        for place, word in enumerate(parts.variables[-1].words)
    )


def _rare(variable: Variable, training: Records, synthetic: Records) -> RareWords:
    counts = np.array([(training == place).sum() for place in range(len(variable.words))])
    rare = np.flatnonzero((counts > 0) & (counts < RARE * len(training)))
    share = [float(np.isin(part, rare).mean()) for part in (training, synthetic)]
    return RareWords(
        name=variable.name,
        rare=len(rare),
        kept=int(np.isin(rare, synthetic).sum()),
        share=(share[0], share[1]),
    )
