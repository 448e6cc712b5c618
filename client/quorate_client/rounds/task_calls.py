"""A study's task as the engine calls it: typed, with everything that the worker answers checked.

A worker is told what to open only when it does not have it open already: a warm call is one small message and its
answer. What crosses is trusted in one direction only: an answer that is not of the agreed form is a failed task.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quorate.errors import DatasetMissingError, PrivacyUnsupportedError, TaskFailedError
from quorate.rounds.instruction import MAX_EXTRAS
from quorate.tally import LOSS_CAP, LOSS_ONE
from quorate_client.rounds.model.state import THETA_OFFSET, ModelState
from quorate_client.site.agreement import Agreement, Dataset
from quorate_client.tasks import PrivateSettings
from quorate_client.workers.pool import TaskWorker, TaskWorkers, WorkerKey

_OPENED = b"opened"
_INT64_END = 1 << 63


@dataclass(frozen=True, slots=True)
class Measure:
    """What a site counts for the first sum."""

    records: int
    statistics: tuple[int, ...]
    dimension: int


@dataclass(frozen=True, slots=True)
class Trained:
    """Beside the update itself. ``loss`` is the summed loss in units of 1/LOSS_ONE."""

    records: int
    loss: int


class TaskCalls:
    """The calls of one instruction. ``working_s`` is the time that the task took so far.

    Args:
        statistics: The sum over the sites; only ``measure`` does without it.
    """

    def __init__(
        self,
        workers: TaskWorkers,
        agreement: Agreement,
        statistics: tuple[int, ...],
        clock: Callable[[], float],
    ) -> None:
        if agreement.dataset is None:
            raise DatasetMissingError(
                f"No data set is registered for the study {agreement.study.name!r}",
                action="Register one with `quorate-client data add` and approve the study with it",
            )
        self._workers = workers
        self._agreement = agreement
        self._dataset: Dataset = agreement.dataset
        self._key = WorkerKey(agreement.digest, agreement.dataset.identity)
        self._statistics = statistics
        self._clock = clock
        self.working_s = 0.0

    async def measure(self) -> Measure:
        async with self._workers.lease(self._key) as worker:
            await self._open(worker)
            worker.ready_for = b""
            answer = await self._call(worker, "measure")
            statistics = _integers(answer, "statistics")
            worker.ready_for = _token(statistics)  # measuring builds the model with the site's own statistics
        return Measure(_count(answer, "records"), statistics, _count(answer, "dimension"))

    async def initial(self, path: Path) -> None:
        await self._ready_call("initial", path=str(path))

    async def train(
        self, state: ModelState, update: Path, round_number: int, rng_seed: int, proximal_mu: float
    ) -> Trained:
        answer = await self._ready_call(
            "train",
            theta=_theta(state),
            update=str(update),
            round_number=round_number,
            rng_seed=rng_seed,
            proximal_mu=proximal_mu,
        )
        loss = answer.get("loss_sum")
        if not isinstance(loss, int | float):
            raise _malformed()
        records = _count(answer, "records")
        return Trained(records, _fixed_loss(loss, records))

    async def train_privately(
        self, state: ModelState, update: Path, settings: PrivateSettings, proximal_mu: float
    ) -> Trained:
        """As ``train``, by DP-SGD. It tells no loss, which would be a release.

        Raises:
            PrivacyUnsupportedError: the task, its model or its data do not allow it. Nothing was computed.
        """
        if self._statistics:
            raise PrivacyUnsupportedError(
                "The task sums statistics of training records, which DP-SGD's account does not cover",
                action="Choose parameters with which it needs none: standardise = 'range' for tabular-classifier",
            )
        answer = await self._ready_call(
            "train_privately",
            theta=_theta(state),
            update=str(update),
            settings=asdict(settings),
            proximal_mu=proximal_mu,
        )
        return Trained(_count(answer, "records"), loss=0)

    async def evaluate(self, state: ModelState) -> tuple[int, ...]:
        return _integers(await self._ready_call("evaluate", theta=_theta(state)), "extras")

    async def export(self, state: ModelState, path: Path) -> None:
        await self._ready_call("export", theta=_theta(state), path=str(path))

    async def _ready_call(self, verb: str, **arguments: Any) -> dict[str, Any]:
        """Call a worker that has the study's model built with the sites' summed statistics."""
        wanted = _token(self._statistics)
        async with self._workers.lease(self._key) as worker:
            if worker.ready_for != wanted:
                await self._open(worker)
                worker.ready_for = b""
                await self._call(worker, "begin", statistics=list(self._statistics))
                worker.ready_for = wanted
            return await self._call(worker, verb, **arguments)

    async def _open(self, worker: TaskWorker) -> None:
        """A session in which nothing was begun."""
        if worker.ready_for == _OPENED:
            return
        worker.ready_for = b""
        study = self._agreement.study
        await self._call(
            worker,
            "open",
            task=study.task.model_dump(mode="json"),
            dataset=self._dataset.to_plain(),
            seed=study.seed,
        )
        worker.ready_for = _OPENED

    async def _call(self, worker: TaskWorker, verb: str, **arguments: Any) -> dict[str, Any]:
        started = self._clock()
        try:
            return await worker.call(verb, arguments)
        finally:
            self.working_s += self._clock() - started


def _token(statistics: tuple[int, ...]) -> bytes:
    return hashlib.sha256(repr(statistics).encode()).digest()


def _theta(state: ModelState) -> dict[str, Any]:
    return {"path": str(state.path), "offset": THETA_OFFSET, "dimension": state.dimension}


def _count(answer: dict[str, Any], key: str) -> int:
    value = answer.get(key)
    if type(value) is not int or not 0 <= value < _INT64_END:
        raise _malformed()
    return value


def _fixed_loss(loss: float, records: int) -> int:
    """A summed loss in units of 1/LOSS_ONE, cut to what so many records may add. One that is no number is the most, and
    no refusal: whether a site answers must not depend on its records."""
    most = min(int(LOSS_CAP) * LOSS_ONE * records, _INT64_END - 1)
    return round(max(-most, min(most, loss * LOSS_ONE)))  # in this order: min keeps its first before NaN


def _integers(answer: dict[str, Any], key: str) -> tuple[int, ...]:
    values = answer.get(key)
    if (
        not isinstance(values, list)
        or len(values) > MAX_EXTRAS
        or not all(type(value) is int and -_INT64_END <= value < _INT64_END for value in values)
    ):
        raise _malformed()
    return tuple(values)


def _malformed() -> TaskFailedError:
    return TaskFailedError(
        "The task answered something that is not of the agreed form", action="Tell the author of the task"
    )
