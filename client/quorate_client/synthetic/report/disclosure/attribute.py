"""Attribute disclosure: does the set tell somebody who knows all else about a person what he does not know?

The attacker finds the synthetic record that is closest to a person in all other columns and takes its value. He is
right about a word that is the same, about a number that is within a twentieth of the records' ranks. That he is right
about people whom the set was not made from is what the set teaches about everybody, and what it is made for; only what
he does better against people whom it was made from is disclosed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quorate.study.section import Frozen
from quorate_client.synthetic.report.figures import Advantage, advantage
from quorate_client.synthetic.report.records import Records, Space, Vector, blocks, squared

WITHIN = 0.05
MOST_TARGETS = 1000
_PAIRS = 20_000_000


class AttributeFigure(Frozen):
    """What the attack found about one column."""

    name: str
    advantage: Advantage


class Attribute(Frozen):
    """The attack on each column that is not the same for all."""

    members: int
    others: int
    columns: tuple[AttributeFigure, ...]

    @property
    def worst(self) -> AttributeFigure | None:
        return max(self.columns, key=lambda column: (column.advantage.counted, column.advantage.found), default=None)


def targets_for(synthetic: int) -> int:
    """How many people of either part are attacked: fewer where there are many records to look through."""
    return max(250, min(MOST_TARGETS, _PAIRS // max(synthetic, 1)))


def attack(
    space: Space, training: Records, held_out: Records, synthetic: Records, sensitive: Sequence[str] | None = None
) -> Attribute:
    """Attack each person of ``training`` and ``held_out``.

    Args:
        sensitive: The columns that are attacked; None: all of them, the label included.
    """
    pool = np.concatenate([training, held_out, synthetic])
    attacked = [
        place
        for place, variable in enumerate(space.variables)
        if (sensitive is None or variable.name in sensitive) and len(np.unique(pool[:, place])) > 1
    ]
    successes = [guesses(space, people, synthetic, attacked) for people in (training, held_out)]
    return Attribute(
        members=len(training),
        others=len(held_out),
        columns=tuple(
            AttributeFigure(
                name=space.variables[place].name,
                advantage=advantage(successes[0][:, at], successes[1][:, at], comparisons=len(attacked)),
            )
            for at, place in enumerate(attacked)
        ),
    )


def guesses(space: Space, people: Records, synthetic: Records, attacked: Sequence[int]) -> Records:
    """[people, attacked] 1 where the guess of that column is right."""
    of_people, of_rows = space.coordinates(people), space.coordinates(synthetic)
    known, rows = np.hstack(of_people), np.hstack(of_rows)
    places, guessed = space.places(people), space.places(synthetic)
    right = np.empty((len(people), len(attacked)))
    for block in blocks(len(people), len(synthetic)):
        to_all = squared(known[block], rows)
        for at, place in enumerate(attacked):
            closest = (to_all - squared(of_people[place][block], of_rows[place])).argmin(axis=1)
            right[block, at] = _is_right(
                places[block, place], guessed[closest, place], WITHIN if space.variables[place].is_number else 0.0
            )
    return right


def _is_right(true: Vector, guessed: Vector, within: float) -> Vector:
    both_missing = np.isnan(true) & np.isnan(guessed)
    return (both_missing | (np.abs(true - guessed) <= within)).astype(np.float64)
