"""The phases of a study at a site, as values in and out: what a site computes and what it sends in each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from quorate.errors import FrameError
from quorate.identity import RunId
from quorate.process.cancellation import offload
from quorate.rounds.blobs import Blob
from quorate.rounds.instruction import Instruction, Phase, Reply, StudyContribution, StudyWork
from quorate.rounds.spool import Spool
from quorate.study.study import Study
from quorate.wire.messages import contribution_to_bytes, work_from_bytes
from quorate_client.rounds.evaluation import Evaluator
from quorate_client.rounds.model.catch_up import CatchUp, Fetch
from quorate_client.rounds.model.plain_files import store_file, store_pieces
from quorate_client.rounds.model.state import ModelState, StateFolder, content_of
from quorate_client.rounds.protect import FLOAT_BYTES, protect
from quorate_client.rounds.task_calls import TaskCalls
from quorate_client.rounds.training import Trainer
from quorate_client.site.agreement import Agreement
from quorate_client.site.folder import RELEASED_MODEL
from quorate_client.workers.pool import TaskWorkers

if TYPE_CHECKING:
    from quorate.aggregation.plain import PlainScheme

log = structlog.get_logger()


class StudyRun:
    """One run of a study at this site. One instruction at a time.

    Args:
        folder: Belongs to the run alone. The final model stays there as ``RELEASED_MODEL``.
        trainer: This run's.
    """

    def __init__(
        self,
        run: RunId,
        folder: Path,
        study: Study,
        workers: TaskWorkers,
        spool: Spool,
        clock: Callable[[], float],
        trainer: Trainer,
    ) -> None:
        self._run = run
        self._study = study
        self._states = StateFolder(folder, run, study)
        self._catch_up = CatchUp(self._states, spool, _scheme_of(study))
        self._workers = workers
        self._spool = spool
        self._clock = clock
        self._trainer = trainer
        self._evaluator = Evaluator(study, trainer.accounting)

    async def perform(self, instruction: Instruction, agreement: Agreement, fetch: Fetch) -> Reply:
        """Do one phase.

        Raises:
            QuorateError: what keeps this site from it. Nothing is half-applied then.
        """
        work = work_from_bytes(instruction.body)
        if instruction.round_number > self._study.rounds.count:
            raise FrameError("The server asks for a round beyond those of the study that was approved")
        if instruction.phase is not Phase.PREPARE and (work.dimension < 1 or not work.statistics):
            raise FrameError("The server asks for a round's work before the study was prepared")
        # The first of the summed extras of `prepare` is the number of all records; the task's own follow.
        task = TaskCalls(self._workers, agreement, work.statistics[1:], self._clock)
        number = instruction.round_number
        match instruction.phase:
            case Phase.PREPARE:
                contribution, blob = await self._prepare(task)
            case Phase.TRAIN:
                state = await self._catch_up.advance(work, number - 1, task.initial, fetch)
                contribution, blob = await self._train(task, state, work, instruction, agreement)
            case Phase.EVALUATE:
                state = await self._catch_up.advance(work, number, task.initial, fetch)
                told = await self._evaluator.evaluate(task, state, number, instruction, agreement)
                contribution, blob = _about(state, told), None
            case Phase.CHECKPOINT:
                state = await self._catch_up.advance(work, number, task.initial, fetch)
                blob = await asyncio.to_thread(store_pieces, content_of(state), state.size, self._spool)
                contribution = _about(state)
            case Phase.RELEASE:
                state = await self._catch_up.advance(work, number, task.initial, fetch)
                contribution, blob = _about(state), await self._release(task, state)
            case _:
                raise FrameError("The server asks for work that is not part of a study without protection")
        return Reply(
            instruction.message_id,
            body=contribution_to_bytes(contribution),
            blobs=() if blob is None else (blob,),
            working_s=task.working_s,
        )

    async def _prepare(self, task: TaskCalls) -> tuple[StudyContribution, None]:
        measure = await task.measure()
        self._trainer.admit(measure)
        extras = (measure.records, *measure.statistics)
        return StudyContribution(dimension=measure.dimension, extras=extras), None

    async def _train(
        self, task: TaskCalls, state: ModelState, work: StudyWork, instruction: Instruction, agreement: Agreement
    ) -> tuple[StudyContribution, Blob]:
        """Train on the model of the round before; what leaves is made by ``protect``."""
        with self._states.scratch() as update:
            report = await self._trainer.train(task, state, update, instruction, agreement)
            weight = _weight_of(self._study, report.records, work.total_weight)
            size = state.dimension * FLOAT_BYTES
            sent = await offload(size, protect, update, state.dimension, weight, self._study, self._spool)
        if sent.clipped:
            log.warning("update clipped", run=self._run, round=instruction.round_number, coordinates=sent.clipped)
        # How many were clipped is computed from records too.
        extras = (report.records, report.loss, sent.clipped if self._study.privacy is None else 0)
        return StudyContribution(state.digest, state.dimension, sent.weight, extras), sent.blob

    async def _release(self, task: TaskCalls, state: ModelState) -> Blob | None:
        """The model in the form in which it is used. It is sent only where the study that was approved says so."""
        with self._states.scratch() as scratch:
            await task.export(state, scratch)
            released = scratch.rename(self._states.folder / RELEASED_MODEL)
        if self._study.release.model != "operator":
            return None
        return await asyncio.to_thread(store_file, released, self._spool)


def _weight_of(study: Study, records: int, total_records: int) -> int:
    from quorate.aggregation.plain import weight_of  # imports numpy

    return weight_of(1, len(study.sites)) if study.rounds.weights == "equal" else weight_of(records, total_records)


def _scheme_of(study: Study) -> PlainScheme:
    from quorate.aggregation.schemes import plain_scheme_of  # imports numpy

    return plain_scheme_of(study)


def _about(state: ModelState, extras: tuple[int, ...] = ()) -> StudyContribution:
    return StudyContribution(state.digest, state.dimension, extras=extras)
