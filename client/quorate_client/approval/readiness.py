"""Whether this site would work for a study, and what it would cost: said to the server before anybody starts a run.

What leaves is a code and no figure: with the noise known, and it is in the study, what a study costs tells the number
of records. Nothing is trained, nothing spent, no record read and no code of a task run: nobody here has approved most
of these studies.

What passes by itself (the policy's hours, a pause) is not said, nor what only the records themselves can tell.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from quorate.errors import (
    BudgetExhaustedError,
    DatasetMissingError,
    StudyNotApprovedError,
)
from quorate.privacy.evaluation import evaluation_plan
from quorate.privacy.events import Event
from quorate.privacy.plan import TrainingPlan
from quorate.study.study import Study
from quorate_client.approval.answers import Answers
from quorate_client.approval.datasets import Datasets
from quorate_client.approval.installed_tasks import InstalledTasks
from quorate_client.approval.policy import PrivacyPolicy
from quorate_client.approval.policy_file import check_policy_now
from quorate_client.approval.privacy_cost import Outlook, account_of, account_of_test_part, outlook_of, plan_training
from quorate_client.approval.review import check_roster
from quorate_client.approval.usable import look_at, require_usable
from quorate_client.ledger.entries import Account
from quorate_client.ledger.ledger import Ledger
from quorate_client.site.agreement import Dataset, is_of_kind
from quorate_client.site.folder import SiteFolder
from quorate_client.site.keys import load_identity, load_keys

MAX_STUDIES = 100
"""The newest. A study may cost seconds of computing, and anybody who is an operator can publish one."""


@dataclass(frozen=True, slots=True)
class Question:
    """What only the privacy ledger and an accountant can answer.

    Args:
        dataset: On which the study would train.
    """

    study: Study
    digest: bytes
    dataset: Dataset
    policy: PrivacyPolicy


class Assessor:
    """Holds studies against this site as it is at this moment. Lives in the event loop, but for ``answer``."""

    def __init__(
        self,
        folder: SiteFolder,
        answers: Answers,
        datasets: Datasets,
        tasks: InstalledTasks,
        ledger: Ledger,
        wall: Callable[[], float],
    ) -> None:
        self._folder = folder
        self._answers = answers
        self._datasets = datasets
        self._tasks = tasks
        self._ledger = ledger
        self._wall = wall
        self._identity = load_identity(folder.keys)
        self._keys = load_keys(folder.keys)

    def look(self, study: Study, digest: bytes) -> Question | None:
        """All but the sums: roster, policy, expiry, task, data set. Gives the question that is left, if there is one.

        Raises:
            QuorateError: what is against the study here.
        """
        check_roster(study, self._identity, self._keys)
        # The policy before the task: only a task that it names is looked for on this machine.
        now = datetime.fromtimestamp(self._wall()).astimezone()
        policy = check_policy_now(self._folder, study, now)
        self._tasks.check(study.task, now)
        if study.guest is not None:
            return None
        try:
            dataset = self._answers.agreement(digest, self._identity.site).dataset
        except StudyNotApprovedError:
            # Codes alone would tell the budget, and the number of records: with one study after another, each a little
            # dearer, whoever may publish them would find both. Of an approved study a run tells the same code.
            if not any(is_of_kind(each, study) for each in self._datasets.all()):
                raise DatasetMissingError("No data set of the study's kind is registered at this site") from None
            return None
        if dataset is None:
            return None
        require_usable(dataset, study, policy, look_at(dataset, self._datasets.find))
        if study.privacy is None:
            return None
        return Question(study, digest, dataset, policy.privacy)

    def answer(self, question: Question) -> None:
        """Whether the budget allows a run. Takes seconds, and imports numpy, for ``[privacy.training]``.

        Raises:
            QuorateError: the policy, the budget or the ledger is against it.
        """
        study, dataset = question.study, question.dataset
        self._ledger.entries.require_newest()
        training = plan_training(study, question.policy, about(training_units(dataset)))
        if training is not None:
            self._require_room(question, account_of(dataset), training, study.rounds.count)
        evaluation = evaluation_plan(study)
        if evaluation is not None:
            self._require_room(question, account_of_test_part(dataset), evaluation, study.evaluations)

    def _require_room(self, question: Question, account: Account, plan: TrainingPlan, rounds: int) -> None:
        """For so many rounds of a plan. Raises BudgetExhaustedError."""
        study = question.study
        of_study = self._ledger.events_of_study(account, question.digest)
        others, unbounded = self._ledger.committed(account, question.digest), self._ledger.unbounded(account)
        # All runs of a study stay within its plan together; what the earlier ones spent is part of its cost.
        if sum(event.count for event in of_study) + plan.steps * rounds > plan.study_event.count:
            raise BudgetExhaustedError(f"Earlier runs spent what another run of the study {study.name} would need")
        delta = study.privacy.delta if study.privacy is not None else question.policy.delta
        outlook = _remembered(plan, tuple(others), len(unbounded), delta, question.policy)
        if outlook.refused_by:
            raise BudgetExhaustedError(
                f"The study {study.name} would spend more of the privacy budget of {account} than this site's policy "
                "allows",
                expected=", ".join(outlook.refused_by),
            )


def training_units(dataset: Dataset) -> int:
    """From how many records or units a study would draw, but for the luck of the lots that split the data set."""
    return round((dataset.records if dataset.units is None else dataset.units) * (1 - dataset.test_fraction))


def about(records: int) -> int:
    """The number to two digits, rounded down: what leaves here must not count a site's records, and with fewer of them
    a study costs rather more than less."""
    scale = int(10 ** max(0, len(str(records)) - 2))
    return records // scale * scale


@lru_cache(maxsize=2 * MAX_STUDIES)
def _remembered(
    plan: TrainingPlan, begun: tuple[Event, ...], unbounded: int, delta: float, policy: PrivacyPolicy
) -> Outlook:
    """Nothing is computed twice while nothing has changed."""
    return outlook_of(plan, begun, unbounded, delta, policy)
