"""What attacks find in synthetic sets: a copy is found, a promise of differential privacy is kept.

The promise is about every attack and every record. Here are one attack, the shadow sets of the report, and the record
that stands out most. Figures from several populations are averaged, since one of them is a draw.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from bench.table import Row
from quorate_client.synthetic.generator import generate, plan
from quorate_client.synthetic.report.disclosure import membership
from quorate_client.synthetic.report.disclosure.membership import Again, Membership
from quorate_client.tasks.data.schema import NumberColumn, TabularSchema
from quorate_client.tasks.data.table import Table

EPSILON, EPSILON_OF_SETS = 1.0, 3.0
DELTA = 1e-5
WITHIN = 0.01
"""Of a column's range: a synthetic value that close to the planted one repeats it."""

People = Callable[[int, int], Table]
"""So many records of one population, drawn with a seed."""


@dataclass(frozen=True)
class Size:
    """Records of a population, how many of them are held out, populations that are attacked, and sets that are made."""

    records: int
    held_out: int
    populations: int
    sets: int


FULL = Size(records=4000, held_out=1000, populations=5, sets=100)
SMALL = Size(records=300, held_out=60, populations=1, sets=2)


def attack_rows(schema: TabularSchema, people: People, size: Size) -> list[Row]:
    """The figures, for records that ``people`` draws."""
    with threadpool_limits(limits=1):
        copied = _attacked(schema, people, size, 0, lambda table, _: table)
        private = [
            _attacked(schema, people, size, place, _generator(schema, EPSILON, size.records - size.held_out))
            for place in range(size.populations)
        ]
        repeated = _sets_with_the_planted_record(schema, people, size)
    true = float(np.mean([found.true_positives.found for found in private]))
    false = float(np.mean([found.false_positives for found in private]))
    auc = float(np.mean([found.auc.found for found in private]))
    return [
        Row("attack on a generator that copies: AUC", "AUC", copied.auc.found, goal=0.98, more_is_better=True),
        Row(
            f"attack on the generator at epsilon {EPSILON:g}: true positives at {false:.1%} false ones",
            "share",
            true,
            goal=math.exp(EPSILON) * false + DELTA,
        ),
        Row(f"attack on the generator at epsilon {EPSILON:g}: AUC", "AUC", auc),
        Row(
            f"planted unique record, found in so many of {size.sets} sets at epsilon {EPSILON_OF_SETS:g}",
            "sets",
            repeated,
            0,
        ),
    ]


def _attacked(schema: TabularSchema, people: People, size: Size, place: int, again: Again) -> Membership:
    table = people(size.records, place)
    is_out = np.arange(size.records) < size.held_out
    training = table.part(~is_out)
    made = again(training, _seed("made", place))
    return membership.attack(schema, training, table.part(is_out), made, again, _seed("attack", place))


def _generator(schema: TabularSchema, epsilon: float, rows: int) -> Again:
    planned = plan(schema, epsilon, DELTA)
    return lambda table, seed: generate(planned, schema, table, rows, seed)


def _sets_with_the_planted_record(schema: TabularSchema, people: People, size: Size) -> int:
    """In how many sets a record stands that is all but the planted one, which is unlike everybody in every column."""
    table = people(size.records, 0)
    planted = {column.name: _farthest(column, table.columns[column.name]) for column in schema.columns}
    for name, value in planted.items():
        table.columns[name][0] = value
    table.labels[0] = int(np.bincount(table.labels, minlength=len(schema.label.classes)).argmin())
    again = _generator(schema, EPSILON_OF_SETS, size.records)
    made = (again(table, _seed("set", place)) for place in range(size.sets))
    return sum(_repeats(schema, one, planted, int(table.labels[0])) for one in made)


def _farthest(column: object, values: np.ndarray) -> float:
    """A value nobody has: the highest that the schema allows; of words the rarest one."""
    if isinstance(column, NumberColumn):
        return column.range[1]
    words = len(getattr(column, "categories", ("no", "yes")))
    return float(np.bincount(values[~np.isnan(values)].astype(np.int64), minlength=words).argmin())


def _repeats(schema: TabularSchema, made: Table, planted: dict[str, float], label: int) -> bool:
    alike = made.labels == label
    for column in schema.columns:
        near = WITHIN * (column.range[1] - column.range[0]) if isinstance(column, NumberColumn) else 0.0
        alike &= np.abs(made.columns[column.name] - planted[column.name]) <= near
    return bool(alike.any())


def _seed(purpose: str, place: int) -> bytes:
    return hashlib.sha256(f"{purpose} {place}".encode()).digest()
