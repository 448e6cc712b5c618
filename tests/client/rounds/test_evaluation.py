"""What is told of held-out records: after which rounds, in which form, and paid for before one of them is read."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from quorate.aggregation.schemes import MIN_STEPS
from quorate.errors import (
    BudgetExhaustedError,
    ContributionError,
    PrivacyRefusedError,
    PrivacyUnsupportedError,
    QuorateError,
    SiteInterruptedError,
)
from quorate.identity import RunId, SiteName
from quorate.privacy.evaluation import NOISE_ONE, evaluation_sigma, tally_form
from quorate.privacy.events import Event
from quorate.rounds.instruction import Instruction, Phase, message_id
from quorate.study.rules import Rules
from quorate.study.study import Study
from quorate.tally import ClassificationTally, sensitivity
from quorate_client.approval.policy import PrivacyPolicy
from quorate_client.approval.privacy_cost import account_of_test_part
from quorate_client.ledger.entries import Account, Reserved, Spent
from quorate_client.ledger.ledger import Ledger, open_ledger
from quorate_client.ledger.limits import shipped_accountants
from quorate_client.rounds.evaluation import Evaluator
from quorate_client.rounds.model.state import ModelState
from quorate_client.rounds.task_calls import TaskCalls
from quorate_client.rounds.training import Accounting
from quorate_client.site.agreement import Agreement, Dataset
from quorate_client.site.database import make_state
from quorate_client.tasks.models.scoring import tally

from ..ledger_kit import KEY

ROUNDS, NOISE = 5, 2.0
STATE = cast(ModelState, None)  # the task is a double that does not look at it
DATASET = Dataset("visits", "tabular", Path(), {}, 0.2, 500)
TRAINING = {"clip": 1.0, "batch_size": 40, "steps": 5, "epsilon": 3.0}


def study(
    evaluate: str | None = None, sites: int = 5, colluders: int = 1, mode: str = "secagg", **privacy: Any
) -> Study:
    return Study.model_validate(
        {
            "consortium": "testers",
            "name": "hearts",
            "purpose": "To see whether it works",
            "task": {"name": "tabular-classifier", "digest": "0" * 64},
            "rounds": {"count": ROUNDS, "quorum": sites, "weights": "equal", "evaluate": evaluate},
            "protection": {"mode": mode, "colluders": colluders},
            "privacy": {"delta": 1e-3} | privacy if privacy else None,
            "sites": [{"name": f"site-{i:03}", "signing_key": f"{i:064x}"} for i in range(sites)],
        }
    )


def noisy(evaluate: str | None = None, noise: float = NOISE, **fields: Any) -> Study:
    return study(evaluate, training=TRAINING, evaluation={"noise_multiplier": noise}, **fields)


def counted(records: int = 40) -> ClassificationTally:
    odds = np.linspace(-4, 4, records)
    return tally(odds[:, None], np.full(records, 0.5), (np.arange(records) % 3 > 0).astype(np.int64))


@dataclass
class Task:
    """The task as the evaluator sees it, and how often its records were read."""

    words: tuple[int, ...] = field(default_factory=lambda: counted().encode())
    asked: int = 0

    async def evaluate(self, state: ModelState) -> tuple[int, ...]:
        self.asked += 1
        return self.words


@dataclass
class Site:
    """One site with its ledger and its policy."""

    ledger: Ledger
    policy: PrivacyPolicy = field(default_factory=PrivacyPolicy)
    task: Task = field(default_factory=Task)
    dataset: Dataset = DATASET

    def accounting(self) -> Accounting:
        return Accounting(self.ledger, lambda: self.policy, lambda: 1.7e9)

    def agreement(self, of: Study) -> Agreement:
        return Agreement(of, of.digest(), SiteName("east"), self.dataset, {})

    def evaluate(self, of: Study, after: int = ROUNDS, attempt: int = 0, run: str = "run-1") -> tuple[int, ...]:
        return self._evaluate(Evaluator(of, self.accounting()), of, after, attempt, RunId(run))

    def _evaluate(self, evaluator: Evaluator, of: Study, after: int, attempt: int, run: RunId) -> tuple[int, ...]:
        name = message_id(run, after + 1, Phase.UPLOAD, attempt, SiteName("east"))
        instruction = Instruction(name, run, after + 1, Phase.UPLOAD, attempt, of.digest(), 60.0, b"")
        task = cast(TaskCalls, self.task)
        return asyncio.run(evaluator.evaluate(task, STATE, after, instruction, self.agreement(of)))

    def refused(self, of: Study, error: type[QuorateError], **of_round: Any) -> None:
        """That nothing was read, and nothing spent."""
        before, asked = self.spent(), self.task.asked
        with pytest.raises(error):
            self.evaluate(of, **of_round)
        assert (self.task.asked, self.spent()) == (asked, before)

    def spent(self) -> list[Event]:
        return self.ledger.events(account_of_test_part(self.dataset))


@pytest.fixture(name="site")
def site_fixture(tmp_path: Path) -> Iterator[Site]:
    make_state(tmp_path / "state")
    ledger = open_ledger(tmp_path / "ledger", tmp_path / "state", KEY, shipped_accountants())
    yield Site(ledger)
    ledger.close()


# --- when, and in which form ---


@pytest.mark.parametrize(
    ("made", "after"),
    [
        (study(), [1, 2, 3, 4, 5]),
        (study("last"), [5]),
        (study("never"), []),
        (study(training=TRAINING), [5]),
        (study("each", training=TRAINING), [1, 2, 3, 4, 5]),
        (study("never", training=TRAINING), []),
        (noisy(), [5]),
    ],
)
def test_records_are_read_only_after_rounds_of_which_the_study_says_so(
    site: Site, made: Study, after: list[int]
) -> None:
    told = [number for number in range(ROUNDS + 2) if site.evaluate(made, number)]
    assert (told, site.task.asked) == (after, len(after))


def test_without_privacy_the_counts_are_told_as_the_task_made_them(site: Site) -> None:
    assert site.evaluate(study()) == counted().encode()


def test_a_private_study_is_told_sixteen_bins(site: Site) -> None:
    made = study(training=TRAINING)
    told = ClassificationTally.decode(site.evaluate(made), tally_form(made))
    assert len(told.histograms) == 2 * 16
    assert (told.confusion, told.loss_fixed) == (counted().confusion, counted().loss_fixed)
    assert site.spent() == []


def test_counts_that_contradict_each_other_are_not_told_in_a_private_study(site: Site) -> None:
    site.task.words = (0, 1, *counted().encode()[2:])
    with pytest.raises(ContributionError):
        site.evaluate(study(training=TRAINING))


# --- noise ---


def test_all_counts_carry_the_noise_and_the_loss_is_not_told(site: Site) -> None:
    made = noisy("each")
    exact = np.array(counted().written(tally_form(made)).encode())
    drawn = np.array([site.evaluate(made, number) for number in range(1, ROUNDS + 1)]) - exact
    assert (drawn[:, 0] == 0).all()
    sigma = evaluation_sigma(made, 2)
    assert drawn[:, 1:].std() == pytest.approx(sigma, rel=0.25)  # of 180 draws: 5 standard errors
    assert (np.abs(drawn[:, 1:]).max(axis=0) > 0).all()


@pytest.mark.parametrize(("sites", "colluders"), [(2, 0), (3, 1), (4, 1), (5, 2), (16, 2), (100, 1)])
@pytest.mark.parametrize("classes", [2, 10])
def test_the_sum_carries_the_noise_whoever_is_missing_or_colludes(sites: int, colluders: int, classes: int) -> None:
    made = noisy(sites=sites, colluders=colluders)
    honest = Rules(sites, colluders).floor - max(1, colluders)
    wanted = NOISE * sensitivity(classes) * NOISE_ONE
    assert math.sqrt(honest) * evaluation_sigma(made, classes) == pytest.approx(wanted)
    assert evaluation_sigma(noisy(sites=sites, colluders=0, mode="none"), classes) == pytest.approx(wanted)


def test_noise_that_is_too_fine_to_be_accounted_for_is_refused(site: Site) -> None:
    least = MIN_STEPS / evaluation_sigma(noisy(noise=1.0), 2)
    site.evaluate(noisy(noise=1.01 * least))
    with pytest.raises(PrivacyRefusedError, match="too small to be drawn"):
        site.evaluate(noisy(noise=0.99 * least))


def test_noise_on_an_evaluation_that_does_not_take_place_is_no_study() -> None:
    with pytest.raises(ValueError, match='evaluate is "never"'):
        noisy("never")


def test_noise_on_the_evaluation_alone_is_no_privacy_of_what_is_trained() -> None:
    with pytest.raises(ValueError, match="name at least one"):
        study(evaluation={"noise_multiplier": NOISE})


# --- the account of the test part ---


def test_it_is_paid_for_on_the_account_of_the_test_part(site: Site) -> None:
    site.evaluate(noisy())
    assert site.spent() == [Event(NOISE)]
    assert site.ledger.events(Account("visits", "record")) == []
    reserved, spent = (entry.content for entry in site.ledger.entries.all())
    assert isinstance(reserved, Reserved)
    assert isinstance(spent, Spent)
    assert (reserved.purpose, str(reserved.account)) == ("evaluate", "visits (test part, per record)")


def test_it_is_paid_for_before_a_record_is_read(site: Site) -> None:
    site.task.words = ()  # what comes of it cannot be told
    with pytest.raises(ContributionError):
        site.evaluate(noisy())
    assert (site.task.asked, site.spent()) == (1, [Event(NOISE)])


def test_the_same_evaluation_is_not_paid_for_twice(site: Site) -> None:
    site.evaluate(noisy())
    site.refused(noisy(), SiteInterruptedError)


def test_all_runs_of_a_study_stay_within_its_plan(site: Site) -> None:
    """Or a server that begins the study again and again averages the noise away. One spare evaluation is planned."""
    site.evaluate(noisy())
    site.evaluate(noisy(), attempt=1)
    site.refused(noisy(), BudgetExhaustedError, attempt=2)
    site.refused(noisy(), BudgetExhaustedError, run="run-2")


def test_the_limits_of_the_policy_hold_for_held_out_records_too(site: Site) -> None:
    site.policy = PrivacyPolicy(epsilon_ever=0.5)
    site.refused(noisy(noise=1.0), BudgetExhaustedError)


def test_without_a_ledger_nothing_is_read(site: Site) -> None:
    with pytest.raises(PrivacyUnsupportedError):
        site._evaluate(Evaluator(noisy(), None), noisy(), ROUNDS, 0, RunId("run-1"))
    assert site.task.asked == 0
