"""Bias: whether groups of people are drawn as they are, in number and in how often they have the looked-for class.

Groups are the words of each column and the bands of a column that holds an age. A group that has fewer than ten records
in the training part is not shown, and of one that has fewer in the set no rate is told. Of more than two classes the
rarest one is looked at.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from quorate.study.section import Frozen
from quorate_client.synthetic.report.records import Parts, Variable, Vector

FEWEST = 10
AGES = (18.0, 40.0, 65.0, 80.0)
_AGE = re.compile(r"(?:^|[^a-z])age(?:[^a-z]|$)", re.IGNORECASE)
_TWO_SIDES = 1.96

Flags = npt.NDArray[np.bool_]


class Group(Frozen):
    """One group.

    Args:
        share: Of all records: training part, synthetic set.
        rate: Of the class within the group: training part, synthetic set; None where the set has fewer than ten of it.
        gap: The set's rate less the training part's.
        stands: Whether the gap is wider than chance makes it (two standard errors).
    """

    name: str
    share: tuple[float, float]
    rate: tuple[float, float | None]
    gap: float | None
    stands: bool


class Divided(Frozen):
    """A column by which people fall into groups.

    Args:
        spread: Between the groups with the highest and the lowest rate: training part, synthetic set.
    """

    name: str
    groups: tuple[Group, ...]
    spread: tuple[float, float]


class Bias(Frozen):
    looked_for: str
    columns: tuple[Divided, ...]

    @property
    def widest(self) -> tuple[str, Group] | None:
        """The group that is drawn most unlike itself, of those whose gap stands."""
        gaps = [(column.name, group) for column in self.columns for group in column.groups if group.stands]
        return max(gaps, key=lambda pair: abs(pair[1].gap or 0.0), default=None)


def looked_for(parts: Parts) -> int:
    """The number of the class that is looked for: of two the positive one, of more the rarest that occurs."""
    if len(parts.variables[-1].words) == 2:
        return 1
    counts = np.bincount(parts.training[:, -1].astype(np.int64), minlength=len(parts.variables[-1].words))
    return int(np.where(counts > 0, counts, counts.max() + 1).argmin())


def examine(parts: Parts) -> Bias:
    wanted = looked_for(parts)
    has_it = [part[:, -1] == wanted for part in (parts.training, parts.synthetic)]
    columns = []
    for place, variable in enumerate(parts.variables[:-1]):
        groups = tuple(
            _group(name, *((of_group, has) for of_group, has in zip(within, has_it, strict=True)))
            for name, within in _members(variable, parts.training[:, place], parts.synthetic[:, place])
            if within[0].sum() >= FEWEST
        )
        if len(groups) > 1:
            columns.append(Divided(name=variable.name, groups=groups, spread=_spread(groups)))
    return Bias(looked_for=parts.variables[-1].words[wanted], columns=tuple(columns))


def _members(variable: Variable, training: Vector, synthetic: Vector) -> Iterator[tuple[str, tuple[Flags, Flags]]]:
    """Each group and which records of either part are in it."""
    for place, word in enumerate(variable.words):
        yield word, (training == place, synthetic == place)
    if variable.is_number and _AGE.search(variable.name):
        for low, high in zip((-math.inf, *AGES), (*AGES, math.inf), strict=True):
            yield _band(low, high), tuple((part >= low) & (part < high) for part in (training, synthetic))  # type: ignore[misc]


def _band(low: float, high: float) -> str:
    if low == -math.inf:
        return f"under {high:g}"
    return f"{low:g} and over" if high == math.inf else f"{low:g} to under {high:g}"


def _group(name: str, training: tuple[Flags, Flags], synthetic: tuple[Flags, Flags]) -> Group:
    share = [float(within.mean()) for within, _ in (training, synthetic)]
    counts = [int(within.sum()) for within, _ in (training, synthetic)]
    real = float(training[1][training[0]].mean())
    if counts[1] < FEWEST:
        return Group(name=name, share=(share[0], share[1]), rate=(real, None), gap=None, stands=False)
    drawn = float(synthetic[1][synthetic[0]].mean())
    pooled = (real * counts[0] + drawn * counts[1]) / sum(counts)
    error = math.sqrt(pooled * (1 - pooled) * (1 / counts[0] + 1 / counts[1]))
    gap = drawn - real
    return Group(
        name=name, share=(share[0], share[1]), rate=(real, drawn), gap=gap, stands=abs(gap) > _TWO_SIDES * error
    )


def _spread(groups: tuple[Group, ...]) -> tuple[float, float]:
    real = [group.rate[0] for group in groups]
    drawn = [group.rate[1] for group in groups if group.rate[1] is not None] or [0.0]
    return max(real) - min(real), max(drawn) - min(drawn)
