"""A run of a study at a site: what it answers in each exchange.

Sum 0 adds up record counts and statistics. Sum r adds the updates of round r, and beside them the counts of an
evaluation of the model that they start from. The last sum evaluates the final model only. Each sum starts from the
state that a site arrived at by itself (``catch_up.py``); what an instruction says beside the way to it reaches nothing.

What is encrypted, signed and voted on, and what is told, is the scheme's matter (``rounds/schemes``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import structlog

from quorate.aggregation.plain import weight_of
from quorate.aggregation.weights import record_weight
from quorate.errors import BaseModelMismatchError, FrameError
from quorate.identity import RunId, SiteName
from quorate.rounds.blobs import Blob
from quorate.rounds.instruction import Instruction, Phase, Reply
from quorate.rounds.rates import OWN_COUNTS
from quorate.rounds.spool import Spool
from quorate.study.study import Study
from quorate.wire.sum_messages import SumWork, sum_answer_to_bytes, sum_work_from_bytes
from quorate_client.rounds.evaluation import Evaluator
from quorate_client.rounds.model.fetch import Fetch
from quorate_client.rounds.model.state import ModelState, StateFolder
from quorate_client.rounds.sums.catch_up import CatchUp
from quorate_client.rounds.sums.scheme import Answered, FirstModel, Scheme
from quorate_client.rounds.task_calls import TaskCalls
from quorate_client.rounds.training import Trainer
from quorate_client.site.agreement import Agreement
from quorate_client.site.folder import RELEASED_MODEL
from quorate_client.workers.pool import TaskWorkers

log = structlog.get_logger()


class SumRun:
    """One run of a study at this site. One instruction at a time.

    Args:
        folder: Belongs to the run alone. The final model stays there as ``RELEASED_MODEL``.
        scheme: This run's.
        trainer: This run's.
    """

    def __init__(
        self,
        run: RunId,
        folder: Path,
        study: Study,
        scheme: Scheme,
        workers: TaskWorkers,
        spool: Spool,
        clock: Callable[[], float],
        trainer: Trainer,
    ) -> None:
        self._run = run
        self._study = study
        self._scheme = scheme
        self._states = StateFolder(folder, run, study)
        self._catch_up = CatchUp(run, study, self._states, spool, scheme)
        self._workers = workers
        self._clock = clock
        self._trainer = trainer
        self._evaluator = Evaluator(study, trainer.accounting)
        self._state: ModelState | None = None
        self._calls: list[TaskCalls] = []

    async def perform(self, instruction: Instruction, agreement: Agreement, fetch: Fetch) -> Reply:
        """Answer one exchange.

        Raises:
            QuorateError: what keeps this site from it. Nothing is half-applied then.
        """
        if instruction.round_number > self._study.rounds.count + 1:
            raise FrameError("The server asks for a round beyond those of the study that was approved")
        work = sum_work_from_bytes(instruction.body)
        self._calls.clear()
        blobs: tuple[Blob, ...] = ()
        match instruction.phase:
            case Phase.UPLOAD:
                answer, blobs = await self._upload(instruction, work, agreement, fetch)
            case Phase.CHECKPOINT:
                self._scheme.enter(instruction, work, agreement)
                answer, blobs = await self._scheme.checkpoint(instruction, self._before())
            case Phase.RELEASE:
                answer, blobs = await self._release(instruction, work, agreement, fetch)
            case _:
                answer = await self._scheme.exchange(instruction, work, agreement, fetch, self._state)
        working_s = self._scheme.told_s(sum(call.working_s for call in self._calls))
        return Reply(instruction.message_id, body=sum_answer_to_bytes(answer), blobs=blobs, working_s=working_s)

    # --- the exchanges ---

    async def _upload(self, instruction: Instruction, work: SumWork, agreement: Agreement, fetch: Fetch) -> Answered:
        """Arrive at the state that the sum starts from; then what this site adds to it."""
        self._scheme.enter(instruction, work, agreement)
        self._state = None
        if instruction.round_number > 0:
            self._state = await self._arrive(work, instruction.round_number - 1, agreement, fetch)
        async with self._scheme.on_records(instruction, self._state):
            if self._state is None:
                return await self._upload_statistics(work, agreement)
            return await self._upload_update(self._state, work, instruction, agreement)

    async def _upload_statistics(self, work: SumWork, agreement: Agreement) -> Answered:
        measure = await self._task(agreement, ()).measure()
        self._trainer.admit(measure)
        self._scheme.note_counted(measure.records)
        counts = (measure.records, *measure.statistics)
        self._scheme.begin_upload(work, b"", 0, len(counts))
        answer, blobs = await self._scheme.finish_upload(counts, ())
        return replace(answer, dimension=measure.dimension), blobs

    async def _upload_update(
        self, state: ModelState, work: SumWork, instruction: Instruction, agreement: Agreement
    ) -> Answered:
        task = self._task_at(state, agreement)
        after = instruction.round_number - 1
        trains = instruction.round_number <= self._study.rounds.count
        if trains:
            await self._trainer.foresee(task, instruction, agreement)
        tally = await self._evaluator.evaluate(task, state, after, instruction, agreement)
        self._scheme.begin_upload(work, state.digest, state.dimension if trains else 0, OWN_COUNTS + len(tally))
        own: tuple[int, ...] = (0,) * OWN_COUNTS
        updates: tuple[Blob, ...] = ()
        if trains:
            own, update = await self._train(task, state, instruction, agreement)
            updates = (update,)
        return await self._scheme.finish_upload((*own, *tally), updates)

    async def _train(
        self, task: TaskCalls, state: ModelState, instruction: Instruction, agreement: Agreement
    ) -> tuple[tuple[int, ...], Blob]:
        """Train on the state; what leaves is made by ``protect.py``."""
        with self._states.scratch() as update:
            report = await self._trainer.train(task, state, update, instruction, agreement)
            weight = self._weight(agreement.site, report.records, state)
            sent = await asyncio.to_thread(self._scheme.protect, update, state.dimension, weight)
        if sent.clipped:
            log.warning("update clipped", run=self._run, round=instruction.round_number, coordinates=sent.clipped)
        # How many were clipped is computed from records too.
        clipped = sent.clipped if self._study.privacy is None else 0
        return (sent.weight, report.records, report.loss, clipped), sent.blob

    def _weight(self, site: SiteName, records: int, state: ModelState) -> int:
        """This site's share in the average."""
        sites, pooled = len(self._study.sites), self._catch_up.pooled(state)
        if self._study.rounds.weights == "equal":
            return weight_of(1, sites)
        is_counted = site in pooled.counted
        if is_counted:
            records = self._scheme.counted(records)
        return record_weight(records, pooled.statistics[0], sites, sites - len(pooled.counted), is_counted=is_counted)

    def _before(self) -> ModelState:
        """The state before the one that this site uploaded from, which the sum between the two confirms."""
        state = self._state and self._states.before(self._state)
        if state is None:
            raise BaseModelMismatchError("This site does not hold the state of which a checkpoint is asked")
        return state

    async def _release(self, instruction: Instruction, work: SumWork, agreement: Agreement, fetch: Fetch) -> Answered:
        """The model in the form in which it is used. It is sent only where the study that was approved says so. The
        last sum, which evaluated it, shows that it is the sites' model."""
        self._scheme.enter(instruction, work, agreement)
        rounds = self._study.rounds.count
        evaluated = next((ref for ref in work.sums if ref.round_number == rounds + 1), None)
        if evaluated is None:
            raise FrameError("The server did not pass on the sum that starts from the final model")
        state = await self._arrive(work, rounds, agreement, fetch)
        await self._catch_up.confirm(state, evaluated, fetch)
        with self._states.scratch() as scratch:
            async with self._scheme.one_code():
                await self._task_at(state, agreement).export(state, scratch)
            model = scratch.rename(self._states.folder / RELEASED_MODEL)
        answer, blobs = await self._scheme.release(model)
        return replace(answer, model=self._scheme.name_of(state.digest)), blobs

    # --- what the exchanges share ---

    async def _arrive(self, work: SumWork, target: int, agreement: Agreement, fetch: Fetch) -> ModelState:
        async def make(path: Path, statistics: tuple[int, ...]) -> None:
            async with self._scheme.one_code():
                await self._task(agreement, statistics[1:]).initial(path)

        async def dimension() -> int:
            return (await self._task(agreement, ()).measure()).dimension

        return await self._catch_up.arrive(work, target, FirstModel(make, dimension), fetch)

    def _task_at(self, state: ModelState, agreement: Agreement) -> TaskCalls:
        # The first of the summed statistics is the number of all records; the task's own follow.
        return self._task(agreement, self._catch_up.pooled(state).statistics[1:])

    def _task(self, agreement: Agreement, statistics: tuple[int, ...]) -> TaskCalls:
        self._calls.append(TaskCalls(self._workers, agreement, statistics, self._clock))
        return self._calls[-1]
