"""Linkability: does the set help somebody to tell that two records in two places are of one person?

As Giomi et al. (2023, "A unified framework for quantifying privacy risk in synthetic data") do it: the columns fall
into two halves, of which two parties hold one each. A person is linked where the synthetic records closest to either
half are the same. Success against held-out people is chance, and what the columns say of each other; the risk is the
share of the rest that is gained against people whom the set was made from. Averaged over several ways to halve the
columns.
"""

from __future__ import annotations

import numpy as np

from quorate.study.section import Frozen
from quorate_client.synthetic.report.figures import Advantage, advantage
from quorate_client.synthetic.report.records import Records, Space, Vector, nearest

SPLITS = 5
NEIGHBOURS = 1


class Linkability(Frozen):
    """What the attack found."""

    splits: int
    members: int
    others: int
    advantage: Advantage


def attack(
    space: Space, training: Records, held_out: Records, synthetic: Records, rng: np.random.Generator
) -> Linkability:
    halves = [_halves(len(space.variables), rng) for _ in range(SPLITS)]
    successes = [
        np.mean([linked(space, people, synthetic, *split) for split in halves], axis=0)
        for people in (training, held_out)
    ]
    return Linkability(
        splits=SPLITS,
        members=len(training),
        others=len(held_out),
        advantage=advantage(successes[0], successes[1], share_of_rest=True),
    )


def linked(space: Space, people: Records, synthetic: Records, first: list[int], second: list[int]) -> Vector:
    """[people] 1 where the synthetic records closest in either half of the columns have one in common."""
    of_people, of_rows = space.coordinates(people), space.coordinates(synthetic)
    found = [
        nearest(
            np.hstack([of_people[place] for place in half]), np.hstack([of_rows[place] for place in half]), NEIGHBOURS
        )[0]
        for half in (first, second)
    ]
    return np.where((found[0][:, :, None] == found[1][:, None, :]).any(axis=(1, 2)), 1.0, 0.0)


def _halves(variables: int, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    order = [int(place) for place in rng.permutation(variables)]
    return order[: variables // 2], order[variables // 2 :]
