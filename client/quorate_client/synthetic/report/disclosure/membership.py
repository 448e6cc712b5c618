"""Membership: can somebody who has a record tell whether the set was made from it?

The attack is that of Carlini et al. (2022, "Membership inference attacks from first principles") with the generator in
the place of the model. Targets are as many records of the training part as of the held-out part. Each shadow set is
made by the same generator from the rest of the training part and a random half of the targets, so that it is made from
as many records as the real one, each target is in exactly half of the shadows, and the attacker knows all records but
the targets: what a promise of differential privacy is about. What is seen of a set near a target (``features``) is
compared with what was seen in shadows with and without the target; how much each sign is worth is learnt from the
shadows. Then the set itself is attacked. Held-out records enter shadows, which nobody sees, and never the set.

Records of one unit are in or out together, and a unit is scored by its most telling record.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn.linear_model import LogisticRegression

from quorate.study.section import Frozen
from quorate_client.synthetic.report.figures import (
    CONFIDENCE,
    STANDS,
    Advantage,
    Interval,
    auc,
    clopper_pearson,
    generator_of,
    quantiles,
    seed_of,
)
from quorate_client.synthetic.report.records import (
    Places,
    Records,
    Space,
    Vector,
    nearest,
    records_of,
    units_of,
    variables_of,
)
from quorate_client.tasks.data.schema import TabularSchema
from quorate_client.tasks.data.table import Table

Flags = npt.NDArray[np.bool_]
Again = Callable[[Table, bytes], Table]

FALSE_POSITIVES = 0.01
MOST_TARGETS = 1000
FEATURES = 4
_NEIGHBOURS = 5
_DRAWS = 1000
_CLIP = 20.0
_SMALLEST_DISTANCE = 1e-6


class Membership(Frozen):
    """What the attack found.

    Args:
        auc: The chance that a record of the training part scores above a held-out one; 0.5 is guessing.
        true_positives: The share of the training part's targets that are found where at most 1 % of the others are.
        false_positives: The share of the others that are taken for members there: at most 0.01, and less where there
            are fewer than a hundred.
        advantage: The first less the baseline of 1 %.
    """

    shadows: int
    members: int
    others: int
    auc: Interval
    true_positives: Interval
    false_positives: float
    advantage: Advantage


@dataclass(frozen=True, slots=True)
class _Targets:
    """Units that are attacked. ``unit`` numbers them: first those of the training part."""

    table: Table
    unit: Places
    members: int

    @property
    def units(self) -> int:
        return 2 * self.members


def shadows_for(records: int) -> int:
    """How many shadow sets: more where they cost little and there are few records to learn from."""
    return 32 if records <= 2_000 else 16 if records <= 50_000 else 8


def attack(
    schema: TabularSchema,
    training: Table,
    held_out: Table,
    synthetic: Table,
    again: Again,
    seed: bytes,
    progress: Callable[[float], None] = lambda _: None,
) -> Membership:
    rng = generator_of(seed, "membership")
    targets, rest = _targets(training, held_out, rng)
    pool = np.concatenate([records_of(schema, training), records_of(schema, held_out)])
    eye = _Eye.of(schema, pool, records_of(schema, targets.table))
    count = shadows_for(training.records)
    inside = _halves(count, targets.members, rng)
    seen = np.empty((count, targets.table.records, FEATURES))
    for shadow in range(count):
        members = targets.table.part(inside[shadow][targets.unit])
        made = again(_shuffled(joined(rest, members), rng), seed_of(seed, f"shadow {shadow}"))
        seen[shadow] = eye.features(records_of(schema, made))
        progress((shadow + 1) / (count + 1))
    scores = likelihood_ratios(seen, inside[:, targets.unit], eye.features(records_of(schema, synthetic)))
    of_units = np.full(targets.units, -np.inf)
    np.maximum.at(of_units, targets.unit, scores)
    progress(1.0)
    return judged(of_units[: targets.members], of_units[targets.members :], count, rng)


@dataclass(frozen=True, slots=True)
class _Eye:
    """Looks at a synthetic set from the places of the targets."""

    space: Space
    records: Records
    coordinates: Records
    bins: Places
    rarity: Records

    @classmethod
    def of(cls, schema: TabularSchema, pool: Records, records: Records) -> _Eye:
        space = Space.of(variables_of(schema), pool)
        rarity = np.column_stack([_rarity(pool[:, place], records[:, place]) for place in range(pool.shape[1])])
        return cls(space, records, np.hstack(space.coordinates(records)), space.bins(records), rarity)

    def features(self, made: Records) -> Records:
        """[targets, features] of one set: the closest record; how dense it is around; rare values that are repeated
        exactly; and how likely the target is by the set's tables of each column within the class."""
        _, distances = nearest(self.coordinates, np.hstack(self.space.coordinates(made)), _NEIGHBOURS)
        repeated = [
            np.isin(self.records[:, place], made[:, place]) * self.rarity[:, place] for place in range(made.shape[1])
        ]
        return np.column_stack(
            [
                np.log(distances[:, 0] + _SMALLEST_DISTANCE),
                np.log(distances.mean(axis=1) + _SMALLEST_DISTANCE),
                np.sum(repeated, axis=0),
                _log_likelihood(self.bins, self.space.bins(made)),
            ]
        )


def likelihood_ratios(seen: npt.NDArray[np.float64], inside: Flags, now: Records) -> Vector:
    """[targets] how much more the set looks like shadows with the target than like those without it.

    Args:
        seen: [shadows, targets, features] what was seen in each shadow.
        inside: [shadows, targets] which target was in which shadow: of each at least two, and two without it.
        now: [targets, features] what is seen in the set that is attacked.

    Two signs a feature: where between the two means it lies, in units of the spread, with the difference that all
    targets have in common, and the same with the target's own difference (the logarithm of the likelihood ratio of two
    Gaussians of one spread). A shadow is compared with the others only; from the shadows a logistic regression learns
    what each sign is worth.
    """
    within = inside[:, :, None]
    counts = within.sum(axis=0), (~within).sum(axis=0)
    sums = (seen * within).sum(axis=0), (seen * ~within).sum(axis=0)
    means = sums[0] / counts[0], sums[1] / counts[1]
    spread = np.sqrt(np.square(seen - np.where(within, means[0], means[1])).mean(axis=(0, 1)))
    spread = np.where(spread > 1e-9, spread, 1.0)
    signs = [
        _signs(
            seen[shadow],
            (sums[0] - seen[shadow] * within[shadow]) / (counts[0] - within[shadow]),
            (sums[1] - seen[shadow] * ~within[shadow]) / (counts[1] - ~within[shadow]),
            spread,
        )
        for shadow in range(len(seen))
    ]
    stacked = np.concatenate(signs)
    scale = np.maximum(stacked.std(axis=0), 1e-9)
    judge = LogisticRegression(max_iter=5000).fit(stacked / scale, inside.ravel())
    return np.asarray(judge.decision_function(_signs(now, *means, spread) / scale), dtype=np.float64)


def judged(members: Vector, others: Vector, shadows: int, rng: np.random.Generator) -> Membership:
    """The figures of an attack that gave these scores."""
    positive = np.repeat([True, False], [len(members), len(others)])
    true, false = rates(members, others)
    draws = [(rng.choice(members, len(members)), rng.choice(others, len(others))) for _ in range(_DRAWS)]
    aucs = [auc(np.concatenate(pair), positive) for pair in draws]
    trues = [rates(*pair)[0] for pair in draws]
    hits = round(true * len(members))
    # The bootstrap knows that the threshold was drawn too; the exact interval does not collapse where all are found.
    low, high = _wider(quantiles(trues, CONFIDENCE), clopper_pearson(hits, len(members), CONFIDENCE))
    area = quantiles(aucs, CONFIDENCE)
    return Membership(
        shadows=shadows,
        members=len(members),
        others=len(others),
        auc=Interval(found=auc(np.concatenate([members, others]), positive), low=area[0], high=area[1]),
        true_positives=Interval(found=true, low=low, high=high),
        false_positives=false,
        advantage=Advantage(
            training=true,
            held_out=FALSE_POSITIVES,
            found=true - FALSE_POSITIVES,
            low=low - FALSE_POSITIVES,
            high=high - FALSE_POSITIVES,
            stands=by_chance(hits, len(members), round(false * len(others)), len(others)) < (1 - STANDS) / 2,
        ),
    )


def rates(members: Vector, others: Vector) -> tuple[float, float]:
    """True and false positives where at most 1 % of the others are taken for members."""
    allowed = int(FALSE_POSITIVES * len(others))
    threshold = np.sort(others)[::-1][allowed]
    return float((members > threshold).mean()), float((others > threshold).mean())


def by_chance(hits: int, members: int, misses: int, others: int) -> float:
    """The chance of so many hits where scores mean nothing: of the best ones, that so few are not members."""
    return float(stats.hypergeom.cdf(misses, members + others, others, hits + misses))


def joined(first: Table, second: Table) -> Table:
    """The records of both."""
    columns = {name: np.concatenate([values, second.columns[name]]) for name, values in first.columns.items()}
    units = None if first.units is None or second.units is None else np.concatenate([first.units, second.units])
    return Table(columns, np.concatenate([first.labels, second.labels]), units)


def _targets(training: Table, held_out: Table, rng: np.random.Generator) -> tuple[_Targets, Table]:
    """As many units of either part, and the rest of the training part."""
    used, unused = units_of(training), units_of(held_out)
    candidates = np.unique(used), np.unique(unused)
    count = min(MOST_TARGETS, len(candidates[1]), len(candidates[0]) // 2)
    chosen = [np.sort(rng.permutation(units)[:count]) for units in candidates]
    is_target = np.isin(used, chosen[0]), np.isin(unused, chosen[1])
    numbers = [
        np.searchsorted(chosen[0], used[is_target[0]]),
        np.searchsorted(chosen[1], unused[is_target[1]]) + count,
    ]
    table = joined(training.part(is_target[0]), held_out.part(is_target[1]))
    return _Targets(table, np.concatenate(numbers), count), training.part(~is_target[0])


def _halves(shadows: int, members: int, rng: np.random.Generator) -> Flags:
    """[shadows, units]: each is in half of the shadows; of each pair of a member and another one is in each."""
    used = np.argsort(rng.random((shadows, members)), axis=0) < shadows // 2
    return np.hstack([used, ~used])


def _shuffled(table: Table, rng: np.random.Generator) -> Table:
    """The place of a record must not tell whether it is a target."""
    order = rng.permutation(table.records)
    units = None if table.units is None else table.units[order]
    return Table({name: values[order] for name, values in table.columns.items()}, table.labels[order], units)


def _signs(seen: Records, inside: Records, outside: Records, spread: Vector) -> Records:
    place = np.clip((seen - (inside + outside) / 2) / spread, -_CLIP, _CLIP)
    own = np.clip((inside - outside) / spread, -_CLIP, _CLIP)
    return np.hstack([place, place * own])


def _rarity(pool: Vector, values: Vector) -> Vector:
    """How surprising it is to meet each value; nothing where it is missing."""
    known, counts = np.unique(pool[~np.isnan(pool)], return_counts=True)
    if not len(known):
        return np.zeros(len(values))
    at = np.searchsorted(known, np.where(np.isnan(values), known[0], values))
    return np.where(np.isnan(values), 0.0, np.log(len(pool) / counts[at]))


def _log_likelihood(targets: Places, made: Places) -> Vector:
    """[targets] by tables of each column within the class, half a record added to each cell. The class comes last."""
    classes, total = targets[:, -1], np.zeros(len(targets))
    width = int(max(targets.max(), made.max())) + 1
    for place in range(targets.shape[1] - 1):
        table = np.bincount(made[:, -1] * width + made[:, place], minlength=width * width).reshape(width, width)
        cells = int(max(targets[:, place].max(), made[:, place].max())) + 1
        total += np.log((table[classes, targets[:, place]] + 0.5) / (table[classes].sum(axis=1) + 0.5 * cells))
    return total


def _wider(first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
    return min(first[0], second[0]), max(first[1], second[1])
