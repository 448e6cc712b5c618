"""Synthetic tables: what a model loses that is trained on them, at what epsilon and in what time, beside others' ways.

Trained on synthetic rows, tested on real ones that no table was made from; as many rows as training records. Goals are
the AUC of the same learner on the real training records, less what may be lost.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from bench.synthetic import peers
from bench.synthetic.large import seconds_and_megabytes
from bench.synthetic.learners import LEARNERS, aucs
from bench.synthetic.tables import CREDIT, Case, breast_cancer, credit_default, simulated_claims
from bench.table import Row
from quorate_client.synthetic.generator import generate, plan
from quorate_client.tasks.data.schema import TabularSchema
from quorate_client.tasks.data.table import Table

WIDER = 0.5
MOST_WORSE = 0.01
"""Of the AUC, where all ranges of the schema are wider by half."""
HUNDREDTH = 0.01


@dataclass(frozen=True)
class Size:
    """How much of each there is.

    Args:
        epsilons: At all of them we are measured. peer_epsilons: At these, others, which take long.
        splits: Of a table whose classes are frequent; rare ones have four times as many.
        claims: Simulated. large: Records and columns of the table that time and memory are measured on.
        planted: Sets that are searched for a planted record.
    """

    epsilons: tuple[float, ...]
    peer_epsilons: tuple[float, ...]
    splits: int
    claims: int
    large: tuple[int, int]
    planted: int
    has_dpmm: bool
    has_credit: bool


FULL = Size((1.0, 3.0, 8.0), (1.0,), 5, 10_000, (100_000, 30), 100, has_dpmm=True, has_credit=True)
SMALL = Size((1.0,), (1.0,), 1, 400, (500, 3), 2, has_dpmm=False, has_credit=False)


def rows(size: Size) -> list[Row]:
    cases = list(_cases(size))
    # dpmm takes minutes for a table, and runs beside the rest, which needs one processor.
    with ThreadPoolExecutor(1) as beside:
        compared = [(case, epsilon) for case in cases for epsilon in size.peer_epsilons if size.has_dpmm]
        waiting = [beside.submit(_dpmm, case, epsilon) for case, epsilon in compared]
        found = [row for case in cases for row in _case(case, size)]
        seconds, megabytes = seconds_and_megabytes(*size.large)
        planted = _planted(simulated_claims(1, size.claims), size.planted)
        peer = {name: figure for each in waiting for name, figure in each.result().items()}
    shape = "{:,} records of {} columns".format(*size.large)
    return [
        *(_beside(row, peer.get(row.name.partition(" (")[0])) for row in found),
        Row(f"time for {shape}", "s", seconds, 30.0),
        Row(f"memory for {shape}", "MB", megabytes, 1000.0),
        planted,
    ]


def _beside(row: Row, peer: float | None) -> Row:
    """With the peer's figure; a time is to be a hundredth of it."""
    if peer is None:
        return row
    return replace(row, peer=peer, goal=HUNDREDTH * peer if row.unit == "s" else row.goal)


def _cases(size: Size) -> Iterator[Case]:
    yield breast_cancer(size.splits)
    yield simulated_claims(4 * size.splits if size.splits > 1 else 1, size.claims)
    if size.has_credit:
        case = credit_default(size.splits)
        if case is None:
            _not_measured("credit default", f"{CREDIT} is not there; set QUORATE_SHARED to the folder that holds data/")
        else:
            yield case


def _case(case: Case, size: Size) -> Iterator[Row]:
    splits = [case.split(number) for number in range(case.splits)]
    real = _means(aucs(case.schema, *split) for split in splits)
    for epsilon in size.epsilons:
        ours, seconds = _ours(case, case.schema, splits, epsilon)
        for learner in LEARNERS:
            allowed = case.allowed.get(epsilon)
            goal = None if allowed is None else real[learner] - allowed[list(LEARNERS).index(learner)]
            name = f"AUC, {case.name}, {learner}, epsilon {epsilon:g} (real records: {real[learner]:.3f})"
            yield Row(name, "", ours[learner], goal, more_is_better=True)
        yield Row(f"time, {case.name}, epsilon {epsilon:g}", "s", seconds)
        if epsilon in case.allowed:
            wide, _ = _ours(case, case.widened(WIDER), splits, epsilon)
            for learner in LEARNERS:
                name = f"AUC, {case.name}, {learner}, epsilon {epsilon:g}, ranges wider by half"
                yield Row(name, "", wide[learner], ours[learner] - MOST_WORSE, more_is_better=True)
    yield from _for_orientation(case, splits, size)


def _ours(
    case: Case, schema: TabularSchema, splits: Sequence[tuple[Table, Table]], epsilon: float
) -> tuple[dict[str, float], float]:
    """Mean AUC by learner, and the mean time to make a table."""
    planned = plan(schema, epsilon, case.delta)
    made, spent = [], []
    for number, (training, _) in enumerate(splits):
        started = time.perf_counter()
        made.append(generate(planned, schema, training, training.records, _seed(number)))
        spent.append(time.perf_counter() - started)
    judged = (aucs(case.schema, table, held_out) for table, (_, held_out) in zip(made, splits, strict=True))
    return _means(judged), statistics.fmean(spent)


def _dpmm(case: Case, epsilon: float) -> dict[str, float]:
    """Figures by the name of the row that they belong beside, of one split; none where it did not come to an end."""
    training, held_out = case.split(0)
    try:
        python = peers.dpmm_python()
        made, seconds = peers.dpmm(python, case.schema, training, epsilon, case.delta, seed=0)
    except peers.NotMeasuredError as error:
        _not_measured(f"dpmm, {case.name}, epsilon {epsilon:g}", str(error))
        return {}
    judged = aucs(case.schema, made, held_out)
    auc = {f"AUC, {case.name}, {learner}, epsilon {epsilon:g}": value for learner, value in judged.items()}
    return auc | {f"time, {case.name}, epsilon {epsilon:g}": seconds}


def _for_orientation(case: Case, splits: Sequence[tuple[Table, Table]], size: Size) -> Iterator[Row]:
    copied = _means(
        aucs(case.schema, peers.copula(case.schema, training, training.records, number), held_out)
        for number, (training, held_out) in enumerate(splits)
    )
    for learner in LEARNERS:
        name = f"for orientation: Gaussian copula without privacy, {case.name}, {learner}"
        yield Row(name, "AUC", copied[learner], more_is_better=True)
    for epsilon in size.peer_epsilons:
        found = [peers.private_gradients(case.schema, *split, epsilon, case.delta) for split in splits]
        name = f"for orientation: private gradients on real records, {case.name}, epsilon {epsilon:g}"
        yield Row(name, "AUC", statistics.fmean(found), more_is_better=True)


def _planted(case: Case, sets: int) -> Row:
    """In how many sets at epsilon 3 a row comes back that is like no other record in any of its cells."""
    schema, table = case.schema, case.table
    planted = {column.name: _unheard_of(column, table.columns[column.name]) for column in schema.columns}
    for name, value in planted.items():
        table.columns[name][0] = value
    planned, found = plan(schema, 3.0, case.delta), 0
    for number in range(sets):
        made = generate(planned, schema, table, table.records, _seed(number))
        found += bool(np.all([_is_like(made.columns[name], value) for name, value in planted.items()], axis=0).any())
    return Row(f"sets of {sets} at epsilon 3 that hold a planted record", "", float(found), 0.0)


def _unheard_of(column: object, values: np.ndarray) -> float:
    """A value that hardly a record has: the end of a range, the rarest word."""
    ends = getattr(column, "range", None)
    if ends is not None:
        return float(np.floor(ends[1]))
    places = len(getattr(column, "categories", "01"))
    return float(np.argmin([np.sum(values == place) for place in range(places)]))


def _is_like(values: np.ndarray, value: float) -> np.ndarray:
    """Within a twentieth."""
    return np.abs(values - value) <= 0.05 * abs(value)


def _means(found: Iterator[dict[str, float]]) -> dict[str, float]:
    lists = defaultdict(list)
    for each in found:
        for name, value in each.items():
            lists[name].append(value)
    return {name: statistics.fmean(values) for name, values in lists.items()}


def _seed(number: int) -> bytes:
    return number.to_bytes(32, "big")


def _not_measured(what: str, why: str) -> None:
    print(f"NOT MEASURED: {what}: {why}", file=sys.stderr)
