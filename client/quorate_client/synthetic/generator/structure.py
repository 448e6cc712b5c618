"""Which columns go together within a class: noisy products of scores, and two forests over the strongest pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from quorate_client.synthetic.generator.estimates import Counts
from quorate_client.synthetic.generator.sums import Integers, ScoreProducts

Edge = tuple[int, int]

_STEPS = 8
"""Whole numbers to a standard deviation of a score."""
_LONGEST = 1.2
"""Squared length of a row of scores over what is expected of one."""
_LEAST_CORRELATION = 0.05
_SIGMAS = 6.0


def score_products(tables: Sequence[Counts]) -> ScoreProducts:
    """The products that tell which columns go together.

    A bin's score is its rank among the records, less the mean of its class, over the standard deviation that is left.

    Args:
        tables: For each column [classes, bins] estimated counts.
    """
    scores = [_scores(table) for table in tables]
    return ScoreProducts("structure", scores, _STEPS * math.sqrt(_LONGEST * len(scores)))


def _scores(table: Counts) -> Integers:
    margin = table.sum(axis=0)
    total = max(float(margin.sum()), 1e-9)
    ranks = (np.cumsum(margin) - margin / 2) / total
    classes = np.maximum(table.sum(axis=1), 1e-9)
    centred = ranks[None] - (table @ ranks / classes)[:, None]
    spread = math.sqrt(float((table * centred**2).sum()) / total)
    if spread < 1e-6:
        return np.zeros(table.shape, np.int64)
    scores: Integers = np.rint(np.clip(centred / spread, -4, 4) * _STEPS).astype(np.int64)
    return scores


def correlations(products: Counts, records: float) -> Counts:
    """[columns * (columns - 1) / 2] from the noisy products."""
    return products / (_STEPS**2 * max(records, 1.0))


def noise_floor(sigma: float, records: float) -> float:
    """Correlations up to here are taken for noise; from 1 on nothing can be found."""
    return max(_LEAST_CORRELATION, _SIGMAS * sigma / (_STEPS**2 * max(records, 1.0)))


def forests(columns: int, strengths: Counts, floor: float) -> tuple[list[Edge], list[Edge]]:
    """Two forests over pairs stronger than ``floor``: the heaviest, and the heaviest of what it leaves over.

    The second one is completed by pairs of the first where they close no circle: two columns that go together only
    with each other would otherwise do so in half of the records.
    """
    firsts, seconds = np.triu_indices(columns, 1)
    order = np.argsort(-np.abs(strengths), kind="stable")
    edges = [(int(firsts[pair]), int(seconds[pair])) for pair in order if abs(strengths[pair]) > floor]
    first = _forest(columns, edges)
    taken = set(first)
    return first, _forest(columns, [*(edge for edge in edges if edge not in taken), *first])


def _forest(columns: int, edges: Sequence[Edge]) -> list[Edge]:
    """The edges, in their order, but for those that would close a circle."""
    tree = list(range(columns))
    chosen = []
    for a, b in edges:
        tree_a, tree_b = tree[a], tree[b]
        if tree_a != tree_b:
            chosen.append((a, b))
            tree = [tree_a if each == tree_b else each for each in tree]
    return chosen
