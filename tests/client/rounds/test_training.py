"""Training with privacy: nothing is computed that was not paid for, and nothing but the update comes of it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from quorate.errors import (
    BudgetExhaustedError,
    LedgerError,
    PrivacyRefusedError,
    PrivacyUnsupportedError,
    QuorateError,
    SiteInterruptedError,
    TaskCrashedError,
)
from quorate.identity import RunId, SiteName
from quorate.privacy.accounting import epsilon
from quorate.privacy.events import Event
from quorate.rounds.instruction import Instruction, Phase, message_id
from quorate.study.study import Study
from quorate_client.approval.policy import PrivacyPolicy
from quorate_client.ledger.entries import Account
from quorate_client.ledger.ledger import Ledger, open_ledger
from quorate_client.ledger.limits import shipped_accountants
from quorate_client.rounds.model.state import ModelState
from quorate_client.rounds.task_calls import Measure, TaskCalls, Trained
from quorate_client.rounds.training import Accounting, Trainer
from quorate_client.site.agreement import Agreement, Dataset
from quorate_client.site.database import make_state
from quorate_client.tasks import PrivateSettings
from quorate_client.tasks.data.record_index import RecordIndex, write_index
from quorate_client.workers.pool import TaskWorker, WorkerKey

from ..ledger_kit import KEY

RUN, SITE = RunId("run-1"), SiteName("east")
RECORDS, HELD_OUT = 400, 100
TRAINING = {"clip": 1.0, "batch_size": 40, "steps": 5, "epsilon": 3.0}
PER_RECORD, PER_SITE = Account("visits", "record"), Account("visits", "site")
STATE = cast(ModelState, SimpleNamespace(path=Path("state"), dimension=3))  # the task is a double that does not read it


def an_index(folder: Path, records: int) -> Path:
    """Fingerprints of so many records to train on, and of some that are held out."""
    numbers = np.arange(records + HELD_OUT, dtype=np.uint64)
    numbers[HELD_OUT:] += np.uint64(1 << 63)
    return write_index(folder / "records", RecordIndex(("age",), 0.2, "check", numbers, None))


@dataclass
class Task:
    """The task as the trainer sees it, and what it was asked to do."""

    statistics: tuple[int, ...] = ()
    records: int = RECORDS
    error: QuorateError | None = None
    asked: list[str] = field(default_factory=list)
    settings: PrivateSettings | None = None

    async def measure(self) -> Measure:
        return Measure(self.records, self.statistics, 3)

    async def train(self, state: ModelState, update: Path, number: int, seed: int, pull: float) -> Trained:
        self.asked.append("train")
        return Trained(self.records, 12345)

    async def train_privately(self, state: ModelState, update: Path, settings: PrivateSettings, pull: float) -> Trained:
        self.asked.append("train_privately")
        self.settings = settings
        if self.error is not None:
            raise self.error
        return Trained(self.records, 0)


def study(rounds: int = 10, **privacy: Any) -> Study:
    return Study.model_validate(
        {
            "consortium": "testers",
            "name": "hearts",
            "purpose": "To see whether it works",
            "task": {"name": "tabular-classifier", "digest": "0" * 64},
            "rounds": {"count": rounds, "quorum": 4, "weights": "equal"},
            "privacy": {"delta": 1e-3} | privacy if privacy else None,
            "sites": [{"name": f"site-{i}", "signing_key": f"{i:064x}"} for i in range(5)],
        }
    )


@dataclass
class Site:
    """One site with its ledger and its policy."""

    folder: Path
    ledger: Ledger
    policy: PrivacyPolicy = field(default_factory=PrivacyPolicy)
    task: Task = field(default_factory=Task)
    calls: TaskCalls | None = None

    def trainer(self, of: Study) -> Trainer:
        return Trainer(of, lambda count: bytes(count), self.accounting())

    def accounting(self) -> Accounting:
        return Accounting(self.ledger, lambda: self.policy, lambda: 1.7e9)

    def train(self, of: Study, number: int = 1, attempt: int = 0, trainer: Trainer | None = None) -> Trained:
        trainer, instruction = trainer or self.trainer(of), self.asks(of, number, attempt)
        task = cast(TaskCalls, self.calls or self.task)
        return asyncio.run(trainer.train(task, STATE, self.folder / "update", instruction, self.agreement(of)))

    def foresee(self, of: Study) -> None:
        task = cast(TaskCalls, self.task)
        asyncio.run(self.trainer(of).foresee(task, self.asks(of), self.agreement(of)))

    def asks(self, of: Study, number: int = 1, attempt: int = 0) -> Instruction:
        name = message_id(RUN, number, Phase.UPLOAD, attempt, SITE)
        return Instruction(name, RUN, number, Phase.UPLOAD, attempt, of.digest(), 60.0, b"")

    def agreement(self, of: Study) -> Agreement:
        dataset = Dataset("visits", "tabular", self.folder, {}, 0.2, self.task.records + HELD_OUT)
        return Agreement(of, of.digest(), SITE, replace(dataset, index=an_index(self.folder, self.task.records)), {})

    def refused(self, of: Study, error: type[QuorateError], **of_round: int) -> QuorateError:
        """The refusal, after making sure that nothing was computed and nothing spent."""
        before, asked = self.spent(), list(self.task.asked)
        with pytest.raises(error) as caught:
            self.train(of, **of_round)
        assert type(caught.value) is error
        assert (self.spent(), self.task.asked) == (before, asked)
        return caught.value

    def spent(self) -> list[Event]:
        return self.ledger.events(PER_RECORD) + self.ledger.events(PER_SITE)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    make_state(tmp_path / "state.sqlite")
    ledger = open_ledger(tmp_path / "ledger.sqlite", tmp_path / "state.sqlite", KEY, shipped_accountants())
    yield Site(tmp_path, ledger)
    ledger.close()


def test_without_privacy_nothing_is_charged(site: Site) -> None:
    assert site.train(study()) == Trained(RECORDS, 12345)
    assert (site.task.asked, site.spent()) == (["train"], [])


def test_private_training_is_paid_for_and_tells_no_loss(site: Site) -> None:
    assert site.train(study(training=TRAINING)) == Trained(RECORDS, 0)
    assert site.task.asked == ["train_privately"]
    (event,) = site.spent()
    assert (event.sampling_rate, event.count) == (0.1, 5)
    assert site.task.settings == PrivateSettings(1.0, event.noise_multiplier, 0.1, 5, RECORDS)


def test_all_planned_rounds_together_cost_what_the_study_says_and_not_more(site: Site) -> None:
    of = study(rounds=3, training=TRAINING)
    trainer = site.trainer(of)
    for number in (1, 2, 3):
        site.train(of, number, trainer=trainer)
    site.train(of, 3, attempt=1, trainer=trainer)  # the spare round
    assert 2.9 < epsilon(site.ledger.events(PER_RECORD), 1e-3) <= 3.0
    refusal = site.refused(of, BudgetExhaustedError, number=3, attempt=2)
    assert "more than the study hearts plans" in refusal.what


class Modest:
    """A worker that says that it took no steps."""

    ready_for = b""

    async def call(self, verb: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return {"records": RECORDS, "steps": 0, "statistics": [], "dimension": 3}

    @asynccontextmanager
    async def lease(self, key: WorkerKey) -> AsyncIterator[TaskWorker]:
        yield self

    async def close(self) -> None: ...


def test_the_steps_that_were_planned_are_paid_for_whatever_the_task_says_that_it_took(site: Site) -> None:
    of = study(training=TRAINING)
    site.calls = TaskCalls(Modest(), site.agreement(of), (), lambda: 0.0)
    site.train(of)
    assert [event.count for event in site.spent()] == [5]


def test_a_task_that_dies_is_paid_for_in_full_and_not_asked_again_for_the_same(site: Site) -> None:
    of = study(training=TRAINING)
    site.task.error = TaskCrashedError("It died")
    with pytest.raises(TaskCrashedError):
        site.train(of)
    assert [event.count for event in site.spent()] == [5]
    site.task.error = None
    site.refused(of, SiteInterruptedError)
    site.train(of, attempt=1)
    assert [event.count for event in site.spent()] == [10]


def test_noise_on_parameters_is_on_the_account_of_the_whole_site(site: Site) -> None:
    weak, strong = {"clip": 1.0, "noise_multiplier": 0.5}, {"clip": 1.0, "noise_multiplier": 2.0}
    assert site.train(study(update=strong, average=weak)) == Trained(RECORDS, 0)
    assert site.task.asked == ["train"]
    assert site.ledger.events(PER_RECORD) == []
    assert site.ledger.events(PER_SITE) == [Event(2.0)]  # what holds against the other sites too
    site.train(study(average=weak), number=2)
    assert set(site.ledger.events(PER_SITE)) == {Event(2.0), Event(0.5)}


def test_a_site_as_a_whole_releases_no_more_than_the_planned_rounds_and_the_spare_ones(site: Site) -> None:
    of = study(rounds=2, update={"clip": 1.0, "noise_multiplier": 2.0})
    for number, attempt in ((1, 0), (2, 0), (2, 1)):
        site.train(of, number, attempt)
    site.refused(of, BudgetExhaustedError, number=2, attempt=2)


def test_both_accounts_are_charged_where_both_are_promised(site: Site) -> None:
    site.train(study(training=TRAINING, update={"clip": 1.0, "noise_multiplier": 2.0}))
    assert len(site.ledger.events(PER_RECORD)) == len(site.ledger.events(PER_SITE)) == 1


# --- refusals: nothing is computed, nothing is spent ---


@pytest.mark.parametrize("limit", ["epsilon_per_run", "epsilon_per_year", "epsilon_ever"])
def test_work_that_would_pass_a_limit_of_the_policy_is_refused(site: Site, limit: str) -> None:
    site.policy = PrivacyPolicy.model_validate({limit: 0.2})
    refusal = site.refused(study(training=TRAINING), BudgetExhaustedError)
    assert refusal.expected.startswith(f"{limit} = 0.2")


@pytest.mark.parametrize(
    ("policy", "error"),
    [(PrivacyPolicy(epsilon_ever=0.2), BudgetExhaustedError), (PrivacyPolicy(least_noise=100.0), PrivacyRefusedError)],
)
def test_a_training_that_would_be_refused_is_refused_before_the_evaluation_beside_it_is_paid_for(
    site: Site, policy: PrivacyPolicy, error: type[QuorateError]
) -> None:
    of = study(training=TRAINING, evaluation={"noise_multiplier": 2.0})
    site.foresee(of)
    assert (site.spent(), site.task.asked) == ([], [])
    site.policy = policy
    with pytest.raises(error):
        site.foresee(of)
    site.foresee(study(training=TRAINING))  # no evaluation is paid for: soon enough when it trains
    assert (site.spent(), site.task.asked) == ([], [])


def test_a_policy_that_was_tightened_during_a_run_holds_from_the_next_round_on(site: Site) -> None:
    of = study(training=TRAINING)
    site.train(of)
    site.policy = PrivacyPolicy(least_noise=100.0)
    site.refused(of, PrivacyRefusedError, number=2)


def test_a_noise_that_follows_from_epsilon_is_held_against_the_policy(site: Site) -> None:
    site.policy = PrivacyPolicy(least_noise=5.0)
    refusal = site.refused(study(training=TRAINING), PrivacyRefusedError)
    assert refusal.expected == "privacy.least_noise = 5"


def test_a_delta_too_large_for_the_data_set_is_refused(site: Site) -> None:
    of = study(training=TRAINING)
    site.task.records = 1000  # 1000^-1.1 is 0.0005
    refusal = site.refused(of, PrivacyRefusedError)
    assert refusal.got == "privacy.delta = 0.001"
    site.policy = PrivacyPolicy(largest_delta=0.001)
    site.train(of)


@pytest.mark.parametrize(("records", "error"), [(49, PrivacyRefusedError), (79, PrivacyUnsupportedError)])
def test_a_data_set_with_too_few_records_is_refused(site: Site, records: int, error: type[QuorateError]) -> None:
    site.task.records = records
    site.refused(study(training=TRAINING), error)


def test_statistics_of_training_records_are_not_told_beside_a_promise(site: Site) -> None:
    site.task.statistics = (17, 4)
    site.refused(study(training=TRAINING), PrivacyUnsupportedError)
    with pytest.raises(PrivacyUnsupportedError):
        site.trainer(study(training=TRAINING)).admit(Measure(RECORDS, (17, 4), 3))
    site.trainer(study()).admit(Measure(RECORDS, (17, 4), 3))


def test_without_a_ledger_nothing_private_is_trained(site: Site) -> None:
    of = study(training=TRAINING)
    with pytest.raises(PrivacyUnsupportedError, match="privacy ledger"):
        site.train(of, trainer=Trainer(of, lambda count: bytes(count), None))
    assert site.task.asked == []


def test_a_ledger_that_was_tampered_with_stops_training(site: Site, tmp_path: Path) -> None:
    of = study(training=TRAINING)
    site.train(of)
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as database, database:
        database.execute("DELETE FROM entries WHERE number = (SELECT max(number) FROM entries)")
    with pytest.raises(LedgerError):
        site.train(of, number=2)
    assert site.task.asked == ["train_privately"]
