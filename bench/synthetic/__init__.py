"""Synthetic tables: what a model loses that is trained on them, at what epsilon and in what time, beside others' ways.

Trained on synthetic rows, tested on real ones that no table was made from. A loss is the AUC of the same learner
trained on the real training records, less that; figures are means over splits. Tables have three times as many rows as
there are training records: rows cost no epsilon, and with fewer of them trees learn what one draw happened to bring.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from bench.synthetic import attacks, peers
from bench.synthetic.large import seconds_and_megabytes
from bench.synthetic.learners import LEARNERS, aucs
from bench.synthetic.tables import (
    CLAIMS,
    CREDIT,
    Case,
    breast_cancer,
    claims_of,
    credit_default,
    simulated_claims,
)
from bench.table import Row
from quorate_client.synthetic.generator import generate, plan
from quorate_client.tasks.data.schema import TabularSchema
from quorate_client.tasks.data.table import Table

ROWS = 3
"""So many synthetic rows for a training record."""
WIDER, WIDER_AT, MOST_WORSE = 0.5, 3.0, 0.01
"""All ranges of the schema wider by half, at this epsilon, where a difference is not drowned; the AUC it may cost."""
HUNDREDTH = 0.01
Splits = Sequence[tuple[Table, Table]]
Losses = dict[str, float]
"""By learner."""


@dataclass(frozen=True)
class Size:
    """How much of each there is.

    Args:
        epsilons: At all of them we are measured. peer_epsilons: At these, others, which take long.
        splits: Of a table whose classes are frequent; rare ones have four times as many.
        claims: Simulated. large: Records and columns of the table that time and memory are measured on.
        attacks: How many records and sets are attacked.
    """

    epsilons: tuple[float, ...]
    peer_epsilons: tuple[float, ...]
    splits: int
    claims: int
    large: tuple[int, int]
    attacks: attacks.Size
    has_dpmm: bool
    has_credit: bool


FULL = Size((1.0, 3.0, 8.0), (1.0,), 5, 10_000, (100_000, 30), attacks.FULL, has_dpmm=True, has_credit=True)
SMALL = Size((3.0,), (1.0,), 1, 400, (500, 3), attacks.SMALL, has_dpmm=False, has_credit=False)


def rows(size: Size) -> list[Row]:
    cases = list(_cases(size))
    # dpmm takes minutes for a table, and runs beside the rest, which needs one processor.
    with ThreadPoolExecutor(1) as beside:
        compared = [(case, epsilon) for case in cases for epsilon in size.peer_epsilons if size.has_dpmm]
        waiting = [beside.submit(_dpmm, case, epsilon) for case, epsilon in compared]
        found = [row for case in cases for row in _case(case, size)]
        attacked = attacks.attack_rows(CLAIMS, claims_of, size.attacks)
        peer = {name: figure for each in waiting for name, figure in each.result().items()}
    seconds, megabytes = seconds_and_megabytes(*size.large)
    shape = "{:,} records of {} columns".format(*size.large)
    return [
        *(_beside(row, peer) for row in found),
        Row(f"time for {shape}", "s", seconds, 30.0),
        Row(f"memory for {shape}", "MB", megabytes, 1000.0),
        *attacked,
    ]


def _beside(row: Row, peer: dict[str, float]) -> Row:
    """With the peer's figure; a time is to be a hundredth of it, even of one after which it had to be stopped."""
    figure, stopped = peer.get(row.name.partition(" (")[0]), peer.get(f"{row.name}, stopped")
    if stopped is not None:
        return replace(row, name=f"{row.name} (peer: stopped before its end)", peer=stopped, goal=HUNDREDTH * stopped)
    if figure is None:
        return row
    return replace(row, peer=figure, goal=HUNDREDTH * figure if row.unit == "s" else row.goal)


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
    real = [aucs(case.schema, *split) for split in splits]
    means = {learner: statistics.fmean(each[learner] for each in real) for learner in LEARNERS}
    for epsilon in size.epsilons:
        made, seconds = _made(case, case.schema, splits, epsilon)
        losses = _losses(case, splits, real, made)
        for learner, allowed in zip(LEARNERS, case.allowed.get(epsilon, (None, None)), strict=True):
            name = f"{_loss(case, learner, epsilon)} (on real records {means[learner]:.3f})"
            yield Row(name, "AUC", losses[learner], allowed)
        yield Row(_time(case, epsilon), "s", seconds)
        if epsilon == WIDER_AT:
            wide = _losses(case, splits, real, _made(case, case.widened(WIDER), splits, epsilon)[0])
            for learner in LEARNERS:
                name = f"lost more with ranges wider by half, {case.name}, {learner}, epsilon {epsilon:g}"
                yield Row(name, "AUC", wide[learner] - losses[learner], MOST_WORSE)
    yield from _for_orientation(case, splits, real, size)


def _loss(case: Case, learner: str, epsilon: float) -> str:
    return f"loss of AUC, {case.name}, {learner}, epsilon {epsilon:g}"


def _time(case: Case, epsilon: float) -> str:
    return f"time for a table, {case.name}, epsilon {epsilon:g}"


def _made(case: Case, schema: TabularSchema, splits: Splits, epsilon: float) -> tuple[list[Table], float]:
    """A table for each split, and the mean time to make one."""
    planned = plan(schema, epsilon, case.delta)
    started = time.perf_counter()
    made = [
        generate(planned, schema, training, ROWS * training.records, number.to_bytes(32, "big"))
        for number, (training, _) in enumerate(splits)
    ]
    return made, (time.perf_counter() - started) / len(splits)


def _losses(case: Case, splits: Splits, real: Sequence[Losses], made: Sequence[Table]) -> Losses:
    """Means over the splits."""
    judged = [aucs(case.schema, table, held_out) for table, (_, held_out) in zip(made, splits, strict=True)]
    return {
        learner: statistics.fmean(was[learner] - now[learner] for was, now in zip(real, judged, strict=True))
        for learner in LEARNERS
    }


def _dpmm(case: Case, epsilon: float) -> dict[str, float]:
    """Figures by the name of the row that they belong beside, of one split."""
    splits = [case.split(0)]
    training, _ = splits[0]
    try:
        python = peers.dpmm_python()
        made, seconds = peers.dpmm(python, case.schema, training, ROWS * training.records, epsilon, case.delta, seed=0)
    except peers.NotMeasuredError as error:
        _not_measured(f"dpmm, {case.name}, epsilon {epsilon:g}", str(error))
        return {}
    except peers.NotEndedError:
        return {f"{_time(case, epsilon)}, stopped": peers.DPMM_TIMEOUT_S}
    losses = _losses(case, splits, [aucs(case.schema, *splits[0])], [made])
    return {_loss(case, learner, epsilon): loss for learner, loss in losses.items()} | {_time(case, epsilon): seconds}


def _for_orientation(case: Case, splits: Splits, real: Sequence[Losses], size: Size) -> Iterator[Row]:
    copied = [
        peers.copula(case.schema, training, ROWS * training.records, number)
        for number, (training, _) in enumerate(splits)
    ]
    for learner, loss in _losses(case, splits, real, copied).items():
        yield Row(f"for orientation: loss of AUC, {case.name}, {learner}, Gaussian copula, no privacy", "AUC", loss)
    for epsilon in size.epsilons:
        found = [peers.private_gradients(case.schema, *split, epsilon, case.delta) for split in splits]
        loss = statistics.fmean(each["logistic"] for each in real) - statistics.fmean(found)
        yield Row(
            f"for orientation: {_loss(case, 'logistic', epsilon)}, private gradients on real records", "AUC", loss
        )


def _not_measured(what: str, why: str) -> None:
    print(f"NOT MEASURED: {what}: {why}", file=sys.stderr)
