"""Draws records from a model's tables, so evenly that counts come out as the tables have them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quorate.privacy.noise import SeededRandomness
from quorate_client.synthetic.generator.estimates import Counts
from quorate_client.synthetic.generator.grid import Codes
from quorate_client.synthetic.generator.structure import Edge

Places = npt.NDArray[np.int64]


def shares_of(total: int, weights: Counts) -> Places:
    """``total`` in whole parts as near to the weights as can be (largest remainders)."""
    exact = total * weights / weights.sum()
    parts: Places = np.floor(exact).astype(np.int64)
    short = total - int(parts.sum())
    parts[np.argsort(parts - exact, kind="stable")[:short]] += 1
    return parts


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """Even draws from one stream."""

    stream: SeededRandomness

    def uniform(self, count: int) -> npt.NDArray[np.float64]:
        """[count] in [0, 1)."""
        words = np.frombuffer(self.stream.draw(8 * count), "<u8") >> np.uint64(11)
        return words.astype(np.float64) * 2.0**-53

    def order(self, count: int) -> Places:
        """The numbers below ``count`` in some order."""
        return np.argsort(np.frombuffer(self.stream.draw(8 * count), "<u8"), kind="stable")

    def even(self, groups: Places, count: int) -> npt.NDArray[np.float64]:
        """[records] in [0, 1), evenly spread within each of ``count`` groups, in a random order."""
        order = self.order(len(groups))
        order = order[np.argsort(groups[order], kind="stable")]
        sizes = np.bincount(groups, minlength=count)
        starts = np.cumsum(sizes) - sizes
        ordered = groups[order]
        ranks = np.arange(len(groups)) - starts[ordered]
        places = np.empty(len(groups))
        places[order] = np.minimum((ranks + self.uniform(count)[ordered]) / sizes[ordered], 1 - 2.0**-53)
        return places

    def choose(self, groups: Places, weights: Counts) -> Places:
        """[records] for each a choice by the weights [groups, choices] of its group."""
        chances = np.cumsum(weights, axis=1)
        chances = chances / chances[:, -1:]
        chances[:, -1] = 1.0
        places = self.even(groups, len(weights))
        ladder = (chances + np.arange(len(weights))[:, None]).ravel()
        found = np.searchsorted(ladder, groups + places, side="right") - groups * weights.shape[1]
        choices: Places = np.clip(found, 0, weights.shape[1] - 1)
        return choices


def tree_order(columns: int, edges: Sequence[Edge]) -> list[tuple[int, int | None]]:
    """Each column with the one it is drawn from, which comes before it; None for a root."""
    neighbours: list[list[int]] = [[] for _ in range(columns)]
    for a, b in edges:
        neighbours[a].append(b)
        neighbours[b].append(a)
    order: list[tuple[int, int | None]] = []
    seen: set[int] = set()
    for root in range(columns):
        waiting: list[tuple[int, int | None]] = [(root, None)] if root not in seen else []
        seen.add(root)
        while waiting:
            column, parent = waiting.pop(0)
            order.append((column, parent))
            for other in neighbours[column]:
                if other not in seen:
                    seen.add(other)
                    waiting.append((other, column))
    return order


def draw_bins(
    draws: Draws, labels: Codes, margins: Sequence[Counts], pairs: dict[Edge, Counts], edges: Sequence[Edge]
) -> list[Codes]:
    """For each column [records] bins, given the labels.

    Args:
        margins: For each column [classes, bins]. pairs: For each edge [classes, bins of a, bins of b].
    """
    bins: list[Codes] = [labels] * len(margins)
    classes = labels.astype(np.int64)
    for column, parent in tree_order(len(margins), edges):
        weights = margins[column]
        groups = classes
        if parent is not None:
            table = pairs[parent, column] if (parent, column) in pairs else pairs[column, parent].transpose(0, 2, 1)
            groups = classes * table.shape[1] + bins[parent]
            weights = table.reshape(-1, table.shape[2])
        bins[column] = draws.choose(groups, usable(weights)).astype(np.int16)
    return bins


def usable(weights: Counts) -> Counts:
    """With equal chances in rows that have none."""
    return np.where(weights.sum(axis=1, keepdims=True) > 0, weights, 1.0)
