"""A round's training at a site. With differential privacy what it may cost is on the ledger before it begins.

Nothing that was computed from training records leaves beside the update where privacy is promised: an exact loss would
be a release that no noise hides.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from quorate.errors import LedgerRolledBackError, PrivacyUnsupportedError
from quorate.identity import RunId
from quorate.privacy.evaluation import evaluation_plan
from quorate.privacy.events import Event
from quorate.privacy.plan import TrainingPlan, site_event
from quorate.rounds.instruction import Instruction
from quorate.study.study import Study
from quorate_client.approval.datasets import require_account
from quorate_client.approval.policy import PrivacyPolicy
from quorate_client.approval.privacy_cost import (
    account_of,
    account_of_test_part,
    limits_of,
    plan_training,
)
from quorate_client.ledger.entries import EVALUATE, Account, Charge, Limits, Unit
from quorate_client.ledger.ledger import Ledger
from quorate_client.rounds.model.state import ModelState
from quorate_client.rounds.task_calls import Measure, TaskCalls, Trained
from quorate_client.site.agreement import Agreement, Dataset
from quorate_client.tasks import PrivateSettings


@dataclass(frozen=True, slots=True)
class Accounting:
    """What training with privacy needs of the site.

    Args:
        policy: The site's, as it is at this moment.
        wall: Unix seconds.
    """

    ledger: Ledger
    policy: Callable[[], PrivacyPolicy]
    wall: Callable[[], float]

    def begin(self, agreement: Agreement, run: RunId) -> None:
        """Before anything of a run: its data set has its account, what will be used in a way that no epsilon bounds is
        on the ledger, and what its evaluation will come to is held against the limits, or a refusal in the last sum
        would cost all rounds.

        Raises:
            BudgetExhaustedError: the evaluation would pass a limit. DataError: the records cannot be compared with
            those that have accounts. LedgerError, DiskFullError, WrongStateError: it could not be written. In each
            case no record may be touched.
        """
        study, dataset = agreement.study, agreement.dataset
        if dataset is not None:
            self._require_account(dataset, is_bounded=_bounds_training(study, dataset))
        plan = evaluation_plan(study)
        if plan is not None and dataset is not None and study.privacy is not None:
            account = account_of_test_part(dataset)
            limits = limits_of(account, self.noted_policy(), study.privacy, study.rounds.count, plan)
            charge = Charge(account, study.name, agreement.digest, run, 0, 0, (), EVALUATE)
            self.ledger.foresee(charge, limits, self.wall())
        self.note_use(agreement, run)

    def note_use(self, agreement: Agreement, run: RunId) -> None:
        """Before each use of records. Raises as ``begin`` does of the ledger."""
        study = agreement.study
        for used in _used_without_bound(study, agreement.dataset):
            self.ledger.record_unbounded(used, study.name, agreement.digest, run)

    def noted_policy(self) -> PrivacyPolicy:
        """The policy for one piece of work, once its limits are on the ledger: whoever loosens them, computes, and
        tightens them again leaves an entry. It is read once, so that no other one is used than was noted."""
        policy = self.policy()
        self.ledger.note_limits(policy.limits)
        return policy

    def _require_account(self, dataset: Dataset, *, is_bounded: bool) -> None:
        """A ledger that lost entries may lack the account that was opened; it takes what has no bound all the same."""
        try:
            require_account(dataset.source, self.ledger)
        except LedgerRolledBackError:
            if is_bounded:
                raise


@dataclass(frozen=True, slots=True)
class _Planned:
    """How a round trains with privacy, and what that costs. ``units`` are those that are trained on."""

    accounting: Accounting
    training: TrainingPlan | None
    units: int
    charges: list[tuple[Charge, Limits]]


class Trainer:
    """Trains for one run of a study.

    Args:
        randomness: Gives secret random bytes.
        accounting: Absent where a site keeps no ledger; studies with privacy are refused then.
    """

    def __init__(self, study: Study, randomness: Callable[[int], bytes], accounting: Accounting | None) -> None:
        self._study = study
        self._randomness = randomness
        self.accounting = accounting
        self._records: int | None = None

    def admit(self, measure: Measure) -> None:
        """Look at what a site is about to tell of its training records.

        Raises:
            PrivacyUnsupportedError: statistics of theirs, in a study that promises privacy.
        """
        self._records = measure.records
        if self._study.privacy is not None and measure.statistics:
            raise PrivacyUnsupportedError(
                "The task sums exact statistics of the training records, which no noise hides",
                expected="a task that scales by public ranges where a study has a [privacy] section",
                action='Have the operator publish the study with standardise = "range" among the task\'s parameters',
            )

    async def foresee(self, task: TaskCalls, instruction: Instruction, agreement: Agreement) -> None:
        """Refuse now what ``train`` would not pay for, before the evaluation of the same sum is paid for in vain."""
        if self.accounting is None or evaluation_plan(self._study) is None:
            return
        policy = await asyncio.to_thread(self.accounting.noted_policy)
        planned = await self._planned(task, instruction, agreement, policy)
        for charge, limits in planned.charges:
            await asyncio.to_thread(self.accounting.ledger.foresee, charge, limits, self.accounting.wall())

    async def train(
        self, task: TaskCalls, state: ModelState, update: Path, instruction: Instruction, agreement: Agreement
    ) -> Trained:
        """Train on ``state`` and write the update, float32[P], to ``update``.

        Nothing of the data set's budget is told to anybody: with the noise known, and it is in the study, what was
        spent tells the number of records.

        Returns:
            What may be told of it.

        Raises:
            BudgetExhaustedError, PrivacyRefusedError, PrivacyUnsupportedError, LedgerError: nothing was computed then.
            TaskFailedError and others of the task.
        """
        policy = None
        if self.accounting is not None:
            policy = await asyncio.to_thread(self.accounting.noted_policy)
            await asyncio.to_thread(self.accounting.note_use, agreement, instruction.run)
        number, pull, privacy = instruction.round_number, self._study.optimizer.proximal_mu, self._study.privacy
        if privacy is None:
            return await task.train(state, update, number, self._seed(), pull)
        planned = await self._planned(task, instruction, agreement, policy)
        plan, units, accounting = planned.training, planned.units, planned.accounting
        paid = [
            await asyncio.to_thread(accounting.ledger.reserve, charge, limits, accounting.wall())
            for charge, limits in planned.charges
        ]
        if plan is None or privacy.training is None:
            trained = (await task.train(state, update, number, self._seed(), pull)).records
        else:
            clip = privacy.training.clip
            settings = PrivateSettings(clip, plan.noise_multiplier, plan.sampling_rate, plan.steps, units)
            trained = (await task.train_privately(state, update, settings, pull)).records
        # All that was planned, whatever the task may say that it did: the loop takes all of a round's steps.
        for reservation, (charge, _) in zip(paid, planned.charges, strict=True):
            await asyncio.to_thread(accounting.ledger.spend, reservation, charge.events)
        return Trained(trained, 0)

    async def _planned(
        self, task: TaskCalls, instruction: Instruction, agreement: Agreement, policy: PrivacyPolicy | None
    ) -> _Planned:
        """Raises PrivacyRefusedError, PrivacyUnsupportedError."""
        privacy = self._study.privacy
        if self._records is None:
            self.admit(await task.measure())
        if self.accounting is None or policy is None or agreement.dataset is None or privacy is None:
            raise PrivacyUnsupportedError(
                "Nobody keeps a privacy ledger here, so nothing is trained with privacy",
                action="Open the site's ledger where its engine is made, as the daemon does",
            )
        units = 0
        if privacy.training is not None:
            units = await asyncio.to_thread(_units, agreement.dataset, self._records or 0)
        plan = await asyncio.to_thread(plan_training, self._study, policy, units)
        charges = [
            (charge, limits_of(charge.account, policy, privacy, self._study.rounds.count, plan))
            for charge in _charges(instruction, agreement, agreement.dataset, plan, site_event(privacy))
        ]
        return _Planned(self.accounting, plan, units, charges)

    def _seed(self) -> int:
        """Told to nobody: whoever could choose it would know which records made the update."""
        return int.from_bytes(self._randomness(8), "big") >> 1


def _used_without_bound(study: Study, dataset: Dataset | None) -> Iterator[Account | None]:
    """Of which records a study tells something that no epsilon bounds: None is any at the site, for a guest app."""
    if dataset is None or study.kind == "guest":
        yield None
        return
    if not _bounds_training(study, dataset):
        yield account_of(dataset)
    if study.tells_exact_counts:
        yield account_of_test_part(dataset)


def _bounds_training(study: Study, dataset: Dataset) -> bool:
    """Whether an epsilon bounds what is told of single training records: DP-SGD's, or the one for which the synthetic
    records were made that are trained on in their place. That one was paid then, and training on them costs nothing."""
    if study.training_data == "synthetic":
        return dataset.origin is not None and dataset.origin.epsilon is not None
    return study.bounds_training


def _units(dataset: Dataset, records: int) -> int:
    from quorate_client.tasks.data.datasets import units_trained_on  # imports numpy

    return units_trained_on(dataset, records)


def _charges(
    instruction: Instruction, agreement: Agreement, dataset: Dataset, plan: TrainingPlan | None, of_site: Event | None
) -> list[Charge]:
    """What a round releases of the data set: per record or unit, and of the site as a whole."""
    source = dataset.source
    events: list[tuple[Unit, Event]] = [(source.unit, plan.round_event)] if plan is not None else []
    events += [("site", of_site)] if of_site is not None else []
    return [
        Charge(
            Account(source.name, unit),
            agreement.study.name,
            agreement.digest,
            instruction.run,
            instruction.round_number,
            instruction.attempt,
            (event,),
        )
        for unit, event in events
    ]
