"""Singling out: do guesses that are made from the set point at exactly one person?

The European working party on data protection (opinion 05/2014) names this first. A guess is a condition that holds for
exactly one synthetic record (Giomi et al. 2023): of one column that its value is this one, of several columns that a
number is at least or at most so much, a word this one. It succeeds where it holds for exactly one real record.

Which guess succeeds depends on how many records there are, so training and held-out part are cut into groups of the
same size, and what is compared is how often a record of either part is the only one of its group for which a guess
holds. The risk is how many people a guess singles out beyond those that it would by chance; for guesses of one column
the worst column counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from quorate.study.section import Frozen
from quorate_client.synthetic.report.figures import Advantage, summed_advantage
from quorate_client.synthetic.report.records import Records, Variable, Vector

GUESSES = 1000
FEWEST_GUESSES = 20
FEWEST_CONDITIONS, MOST_CONDITIONS = 4, 8
"""Of few columns a guess says too little: chance alone makes it succeed, and hides what the set gives away."""
_CELLS = 300_000_000

Condition = tuple[int, str, float]
"""The variable, "=", "<" (at most) or ">" (at least), and a value."""


class GuessedColumn(Frozen):
    """Guesses of the value of one column that occurs once in the set."""

    name: str
    guesses: int
    advantage: Advantage


class SinglingOut(Frozen):
    """What the attack found.

    Args:
        group: How many records a group has, in which a guess must single out one.
        columns: Guesses of one column each; a column in which too few values occur once is not attacked.
        several: Guesses of several columns; None where too few could be made.
    """

    group: int
    columns: tuple[GuessedColumn, ...]
    guesses: int
    several: Advantage | None

    @property
    def worst(self) -> Advantage | None:
        """The one that counts."""
        all_of_them = [*(column.advantage for column in self.columns), *([self.several] if self.several else [])]
        return max(all_of_them, key=lambda one: (one.counted, one.found), default=None)


def attack(
    variables: Sequence[Variable], training: Records, held_out: Records, synthetic: Records, rng: np.random.Generator
) -> SinglingOut:
    group = min(len(training), len(held_out))
    used, unused = (rng.permutation(side)[: len(side) // group * group] for side in (training, held_out))
    values = {
        place: guessed
        for place in range(len(variables))
        if len(guessed := single_values(synthetic[:, place], rng)) >= FEWEST_GUESSES
    }
    comparisons = len(values) + 1
    columns = tuple(
        GuessedColumn(
            name=variables[place].name,
            guesses=len(guessed),
            advantage=summed_advantage(
                singled_by_value(used[:, place], group, guessed),
                singled_by_value(unused[:, place], group, guessed),
                len(used) / len(guessed),
                comparisons=comparisons,
            ),
        )
        for place, guessed in values.items()
    )
    made = list(guesses(variables, synthetic, rng))
    several = None
    if len(made) >= FEWEST_GUESSES:
        falls = [singled(side, group, made) for side in (used, unused)]
        several = summed_advantage(falls[0], falls[1], len(used) / len(made), comparisons=comparisons)
    return SinglingOut(group=group, columns=columns, guesses=len(made), several=several)


def single_values(column: Vector, rng: np.random.Generator) -> Vector:
    """At most ``GUESSES`` of the values that occur once."""
    values, counts = np.unique(column[~np.isnan(column)], return_counts=True)
    return rng.permutation(values[counts == 1])[:GUESSES]


def singled_by_value(column: Vector, group: int, guessed: Vector) -> Vector:
    """[records] 1 where a record is the only one of its group with its value, and that value was guessed."""
    singled = np.zeros(len(column))
    for start in range(0, len(column), group):
        _, first, counts = np.unique(column[start : start + group], return_index=True, return_counts=True)
        singled[start + first[counts == 1]] = 1
    return singled * np.isin(column, guessed)


def guesses(
    variables: Sequence[Variable], synthetic: Records, rng: np.random.Generator
) -> Iterator[tuple[Condition, ...]]:
    """At most ``GUESSES`` conditions of several columns, each of which holds for one synthetic record only."""
    fewest, most = min(FEWEST_CONDITIONS, len(variables)), min(MOST_CONDITIONS, len(variables))
    present = [column[~np.isnan(column)] for column in synthetic.T]
    medians = [float(np.median(column)) if len(column) else 0.0 for column in present]
    tries = min(20 * GUESSES, _CELLS // (len(synthetic) * MOST_CONDITIONS))
    made = 0
    for _ in range(tries):
        record = synthetic[rng.integers(len(synthetic))]
        chosen = rng.choice(len(variables), rng.integers(fewest, most + 1), replace=False)
        conditions = tuple(
            _condition(variables[place], int(place), float(record[place]), medians[place])
            for place in chosen
            if not np.isnan(record[place])
        )
        if conditions and int(holds(synthetic, conditions).sum()) == 1:
            yield conditions
            made += 1
            if made == GUESSES:
                return


def singled(records: Records, group: int, made: Sequence[tuple[Condition, ...]]) -> Vector:
    """[records] how many guesses hold for a record and for no other of its group."""
    times = np.zeros(len(records))
    for conditions in made:
        matches = np.flatnonzero(holds(records, conditions))
        groups, counts = np.unique(matches // group, return_counts=True)
        times[matches[np.isin(matches // group, groups[counts == 1])]] += 1
    return times


def holds(records: Records, conditions: tuple[Condition, ...]) -> npt.NDArray[np.bool_]:
    """[records] for which all conditions hold; none holds where the value is missing."""
    held = np.ones(len(records), dtype=np.bool_)
    for place, sign, value in conditions:
        column = records[:, place]
        held &= column == value if sign == "=" else column <= value if sign == "<" else column >= value
    return held


def _condition(variable: Variable, place: int, value: float, median: float) -> Condition:
    if not variable.is_number:
        return place, "=", value
    return place, ">" if value >= median else "<", value
