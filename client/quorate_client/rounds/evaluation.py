"""What a site tells of an evaluation: counted by the task, in the study's form, with noise where it asks for it.

It runs in the daemon: how many bins leave, how much noise is on them and what it costs is not the task's affair. What
noise hides is paid for on the account of the data set's test part before a held-out record is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from quorate.errors import PrivacyRefusedError, PrivacyUnsupportedError
from quorate.privacy.evaluation import evaluation_plan, evaluation_sigma, tally_form
from quorate.privacy.plan import TrainingPlan
from quorate.process.randomness import Randomness, SystemRandomness
from quorate.rounds.instruction import Instruction
from quorate.study.study import Study
from quorate.tally import EXACT, ClassificationTally
from quorate_client.approval.privacy_cost import account_of_test_part, limits_of
from quorate_client.ledger.entries import EVALUATE, Charge
from quorate_client.ledger.ledger import Reservation
from quorate_client.rounds.model.state import ModelState
from quorate_client.rounds.task_calls import TaskCalls
from quorate_client.site.agreement import Agreement, Dataset

if TYPE_CHECKING:
    from quorate_client.rounds.training import Accounting


class Evaluator:
    """Evaluates for one run of a study.

    Args:
        accounting: Absent where a site keeps no ledger; studies with noise on the evaluation are refused then.
        randomness: Made anew for each evaluation; another one for tests only.
    """

    def __init__(
        self, study: Study, accounting: Accounting | None, randomness: Callable[[], Randomness] = SystemRandomness
    ) -> None:
        self._study = study
        self._accounting = accounting
        self._randomness = randomness

    async def evaluate(
        self, task: TaskCalls, state: ModelState, round_number: int, instruction: Instruction, agreement: Agreement
    ) -> tuple[int, ...]:
        """The words that are told of the model after a round; none after one that the study does not evaluate.

        Raises:
            BudgetExhaustedError, PrivacyRefusedError, PrivacyUnsupportedError, LedgerError: no record was read then.
            ContributionError: the task's counts are none. TaskFailedError and others of the task.
        """
        if not self._study.evaluates(round_number):
            return ()
        form, plan = tally_form(self._study), evaluation_plan(self._study)
        if form == EXACT:
            return await task.evaluate(state)
        if plan is None:
            return ClassificationTally.decode(await task.evaluate(state)).written(form).encode()
        if self._accounting is None or agreement.dataset is None:
            raise PrivacyUnsupportedError(
                "Nobody keeps a privacy ledger here, so nothing is evaluated with privacy",
                action="Open the site's ledger where its engine is made, as the daemon does",
            )
        paid = await asyncio.to_thread(self._reserve, self._accounting, plan, instruction, agreement, agreement.dataset)
        tally = ClassificationTally.decode(await task.evaluate(state)).written(form)
        sigma = evaluation_sigma(self._study, tally.classes)
        noisy = await asyncio.to_thread(_noisy, tally, sigma, self._randomness())
        await asyncio.to_thread(self._accounting.ledger.spend, paid, (plan.round_event,))
        return noisy

    def _reserve(
        self, accounting: Accounting, plan: TrainingPlan, instruction: Instruction, agreement: Agreement, of: Dataset
    ) -> Reservation:
        privacy = self._study.privacy
        if privacy is None:
            raise PrivacyUnsupportedError("A study without a [privacy] section has no account")
        charge = Charge(
            account_of_test_part(of),
            self._study.name,
            agreement.digest,
            instruction.run,
            instruction.round_number,
            instruction.attempt,
            (plan.round_event,),
            EVALUATE,
        )
        limits = limits_of(charge.account, accounting.noted_policy(), privacy, self._study.rounds.count, plan)
        return accounting.ledger.reserve(charge, limits, accounting.wall())


def _noisy(tally: ClassificationTally, sigma: float, randomness: Randomness) -> tuple[int, ...]:
    """The words of a tally with discrete Gaussian noise on all of its counts; the loss beside them is none.

    Raises:
        PrivacyRefusedError: the noise is too fine to be accounted for in a sum.
    """
    from quorate.aggregation.schemes import MIN_STEPS
    from quorate.privacy.noise import discrete_gaussian  # imports numpy

    if sigma < MIN_STEPS:
        raise PrivacyRefusedError(
            "The study's noise on the evaluation is too small to be drawn exactly",
            expected=f"a standard deviation of at least {MIN_STEPS} steps at each site",
            got=f"{sigma:.3g}",
            action="Have the operator raise privacy.evaluation.noise_multiplier",
        )
    loss, *counts = tally.encode()
    noise = discrete_gaussian(randomness, sigma, len(counts)).tolist()
    return (loss, *(count + drawn for count, drawn in zip(counts, noise, strict=True)))
