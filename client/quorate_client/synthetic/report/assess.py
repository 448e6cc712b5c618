"""Measures a synthetic set: all figures of a report, in its order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from threadpoolctl import threadpool_limits

from quorate.errors import DataError
from quorate_client.synthetic.report.disclosure import attribute, linkability, membership, singling_out
from quorate_client.synthetic.report.disclosure.membership import Again
from quorate_client.synthetic.report.figures import generator_of
from quorate_client.synthetic.report.quality import bias, dictionary, fidelity, hygiene, utility
from quorate_client.synthetic.report.records import (
    Parts,
    Records,
    Space,
    one_of_each_unit,
    records_of,
    units_of,
    variables_of,
)
from quorate_client.synthetic.report.report import Report
from quorate_client.tasks.data.schema import TabularSchema
from quorate_client.tasks.data.table import Table

FEWEST_HELD_OUT = 2
_SHARE_OF_MEMBERSHIP, _SHARE_OF_ATTACKS = 0.7, 0.9

Progress = Callable[[float], None]


def assess(
    schema: TabularSchema,
    training: Table,
    held_out: Table,
    synthetic: Table,
    again: Again,
    epsilon: float | None,
    delta: float,
    seed: bytes,
    progress: Progress = lambda _: None,
    *,
    sensitive: Sequence[str] | None = None,
) -> Report:
    """Attack and measure a synthetic set. Same arguments give the same report.

    Args:
        training: The real records that the set was made from.
        held_out: Real records that were kept from the generator.
        again: Makes a set of the same kind from another table, with a seed: the attack on membership needs 8 to 32.
        epsilon: What the generator promises; None: nothing.
        seed: Of all that is drawn here.
        progress: Is told the share that is done.
        sensitive: The columns whose disclosure is measured; None: all, the label included.

    Raises:
        DataError: A part has too few records to compare anything.
    """
    _check(training, held_out, synthetic)
    # Many short tasks: on a machine that does other work, threads that wait for one another took ten times the time.
    with threadpool_limits(limits=1):
        return _measured(schema, training, held_out, synthetic, again, epsilon, delta, seed, progress, sensitive)


def _measured(
    schema: TabularSchema,
    training: Table,
    held_out: Table,
    synthetic: Table,
    again: Again,
    epsilon: float | None,
    delta: float,
    seed: bytes,
    progress: Progress,
    sensitive: Sequence[str] | None,
) -> Report:
    variables = variables_of(schema)
    parts = Parts(variables, *(records_of(schema, table) for table in (training, held_out, synthetic)))
    found = membership.attack(
        schema, training, held_out, synthetic, again, seed, lambda done: progress(done * _SHARE_OF_MEMBERSHIP)
    )
    space = Space.of(variables, np.concatenate([parts.training, parts.held_out]))
    people = _people(training, held_out, parts, seed)
    of_columns = attribute.attack(space, *people, parts.synthetic, sensitive)
    singled = singling_out.attack(
        variables, parts.training, parts.held_out, parts.synthetic, generator_of(seed, "singling out")
    )
    linked = linkability.attack(space, *people, parts.synthetic, generator_of(seed, "linkability"))
    progress(_SHARE_OF_ATTACKS)
    report = Report(
        epsilon=epsilon,
        delta=delta,
        training=training.records,
        held_out=held_out.records,
        synthetic=synthetic.records,
        membership=found,
        attribute=of_columns,
        singling_out=singled,
        linkability=linked,
        hygiene=hygiene.examine(space, parts, people),
        fidelity=fidelity.examine(space, parts),
        bias=bias.examine(parts),
        utility=utility.examine(schema, training, held_out, synthetic, generator_of(seed, "utility")),
        dictionary=dictionary.entries(schema),
    )
    progress(1.0)
    return report


def _people(training: Table, held_out: Table, parts: Parts, seed: bytes) -> tuple[Records, Records]:
    """Some people of either part, one record of each."""
    most = attribute.targets_for(len(parts.synthetic))
    rng = generator_of(seed, "people")
    return (
        parts.training[one_of_each_unit(units_of(training), most, rng)],
        parts.held_out[one_of_each_unit(units_of(held_out), most, rng)],
    )


def _check(training: Table, held_out: Table, synthetic: Table) -> None:
    for name, table in (("training part", training), ("held-out part", held_out), ("synthetic set", synthetic)):
        units = len(np.unique(units_of(table)))
        if units < FEWEST_HELD_OUT:
            raise DataError(
                f"The {name} is too small to measure a synthetic set",
                expected=f"{FEWEST_HELD_OUT} records of different people, and rather a thousand",
                got=str(units),
                action="Register more records",
            )
