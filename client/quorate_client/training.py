"""A round's training at a site. With differential privacy what it may cost is on the ledger before it begins.

Nothing that was computed from training records leaves beside the update where privacy is promised: an exact loss would
be a release that no noise hides.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from quorate.errors import PrivacyUnsupportedError
from quorate.exchange import Instruction
from quorate.privacy.events import Event, Spending
from quorate.privacy.plan import TrainingPlan, site_event
from quorate.privacy.terms import Privacy
from quorate.study import Study
from quorate_client.agreement import Agreement, Dataset
from quorate_client.ledger import Ledger, Reservation
from quorate_client.ledger_entries import Account, Charge, Unit
from quorate_client.model_state import ModelState
from quorate_client.policy import PrivacyPolicy
from quorate_client.privacy_plan import limits_of, plan_training
from quorate_client.task_calls import Measure, TaskCalls, Trained
from quorate_client.tasks import PrivateSettings


@dataclass(frozen=True, slots=True)
class Accounting:
    """What training with privacy needs of the site.

    Args:
        policy: The site's, as it is at this moment.
        wall: Unix seconds.
        noted: Takes what a data set has spent, for the site's own metrics.
    """

    ledger: Ledger
    policy: Callable[[], PrivacyPolicy]
    wall: Callable[[], float]
    noted: Callable[[Spending], None]


class Trainer:
    """Trains for one run of a study.

    Args:
        randomness: Gives secret random bytes.
        accounting: Absent where a site keeps no ledger; studies with privacy are refused then.
    """

    def __init__(self, study: Study, randomness: Callable[[int], bytes], accounting: Accounting | None) -> None:
        self._study = study
        self._randomness = randomness
        self._accounting = accounting
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

    async def train(
        self, task: TaskCalls, state: ModelState, update: Path, instruction: Instruction, agreement: Agreement
    ) -> tuple[Trained, Spending | None]:
        """Train on ``state`` and write the update, float32[P], to ``update``.

        Returns:
            What may be told of it, and what is told of the data set's budget.

        Raises:
            BudgetExhaustedError, PrivacyRefusedError, PrivacyUnsupportedError, LedgerError: nothing was computed then.
            TaskFailedError and others of the task.
        """
        number, pull, privacy = instruction.round_number, self._study.optimizer.proximal_mu, self._study.privacy
        if privacy is None:
            return await task.train(state, update, number, self._seed(), pull), None
        if self._records is None:
            self.admit(await task.measure())
        if self._accounting is None or agreement.dataset is None:
            raise PrivacyUnsupportedError(
                "Nobody keeps a privacy ledger here, so nothing is trained with privacy",
                action="Open the site's ledger where its engine is made, as the daemon does",
            )
        units = await asyncio.to_thread(_units, agreement.dataset, self._records or 0)
        plan = await asyncio.to_thread(plan_training, self._study, self._accounting.policy(), units)
        charges = _charges(instruction, agreement, agreement.dataset, plan, site_event(privacy))
        paid = [await asyncio.to_thread(self._reserve, self._accounting, charge, plan, privacy) for charge in charges]
        if plan is None or privacy.training is None:
            trained = (await task.train(state, update, number, self._seed(), pull)).records
        else:
            settings = PrivateSettings(
                privacy.training.clip,
                plan.noise_multiplier,
                plan.sampling_rate,
                plan.steps,
                expected_batch=plan.sampling_rate * units,
            )
            report = await task.train_privately(state, update, number, settings, pull)
            trained, plan = report.records, replace(plan, steps=report.steps)
        spent = _charges(instruction, agreement, agreement.dataset, plan, site_event(privacy))
        for reservation, charge in zip(paid, spent, strict=True):
            await asyncio.to_thread(self._accounting.ledger.spend, reservation, charge.events)
        told = await asyncio.to_thread(_spending, self._accounting, agreement.dataset, privacy.delta)
        return Trained(trained, 0), told

    def _seed(self) -> int:
        """Told to nobody: whoever could choose it would know which records made the update."""
        return int.from_bytes(self._randomness(8), "big") >> 1

    def _reserve(
        self, accounting: Accounting, charge: Charge, plan: TrainingPlan | None, privacy: Privacy
    ) -> Reservation:
        limits = limits_of(charge.account, accounting.policy(), privacy, self._study.rounds.count, plan)
        return accounting.ledger.reserve(charge, limits, accounting.wall())


def _units(dataset: Dataset, records: int) -> int:
    from quorate_client.data import units_trained_on  # imports numpy

    return units_trained_on(dataset, records)


def _spending(accounting: Accounting, dataset: Dataset, delta: float) -> Spending | None:
    """What the site's policy lets the operator know of what was spent per record or unit, in tenths and never too low.

    More digits would tell the number of records: it decides how often a record is in a step, and that the epsilon.
    """
    policy = accounting.policy()
    spent = accounting.ledger.spent(Account(dataset.name, dataset.unit), delta)
    if not 0 < spent < math.inf:
        return None
    left = policy.left_after(spent)
    accounting.noted(Spending(spent, delta, left))
    told = Spending(math.ceil(10 * spent) / 10, delta, None if left is None else math.floor(10 * left) / 10)
    return told if policy.tell_epsilon else None


def _charges(
    instruction: Instruction, agreement: Agreement, dataset: Dataset, plan: TrainingPlan | None, of_site: Event | None
) -> list[Charge]:
    """What a round releases of the data set: per record or unit, and of the site as a whole."""
    events: list[tuple[Unit, Event]] = [(dataset.unit, plan.round_event)] if plan is not None else []
    events += [("site", of_site)] if of_site is not None else []
    return [
        Charge(
            Account(dataset.name, unit),
            agreement.study.name,
            agreement.digest,
            instruction.run,
            instruction.round_number,
            instruction.attempt,
            (event,),
        )
        for unit, event in events
    ]
