"""What the daemon tells of the studies that it is offered: whom it would refuse, what they would cost, and no more."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from structlog.testing import capture_logs

from quorate.errors import (
    BudgetExhaustedError,
    DatasetMissingError,
    IdentityError,
    KeyMismatchError,
    LedgerRolledBackError,
    PolicyError,
    PrivacyRefusedError,
    PrivacyUnsupportedError,
    StudyExpiredError,
    TaskMismatchError,
)
from quorate.privacy.events import Event
from quorate.study.readiness import Readiness
from quorate.study.study import Protection, Rounds, Study, TaskRef
from quorate.study.task_digest import task_digest
from quorate_client.approval.answers import Answer, Answers
from quorate_client.approval.datasets import Datasets
from quorate_client.approval.readiness import Assessor, Question, about
from quorate_client.ledger.entries import Account, Charge, Limits
from quorate_client.ledger.ledger import open_ledger
from quorate_client.ledger.limits import shipped_accountants
from quorate_client.site.agreement import Dataset
from quorate_client.site.database import open_state
from quorate_client.site.folder import SiteFolder
from quorate_client.site.keys import load_keys
from tests.patience import PATIENCE_S

from ..conftest import APP, POLICY, RunningSite, ScriptedEngine, add_others, enrol, instruct, live, make_study
from ..consortium import RunningServer, Server
from ..daemon.test_daemon import daemon

TABULAR = "tabular-classifier"
DELTA = 5e-4
TRAINING = {"clip": 1.0, "batch_size": 40, "steps": 5, "noise_multiplier": 1.1}
RATE = 40 / 400
OF_STUDY = Event(1.1, RATE, 5 * 5)
"""Of ``private`` on ``PATIENTS``: 4 rounds and a spare one."""


def dataset(name: str = "patients", records: int = 500) -> Dataset:
    return Dataset(name, "tabular", Path(f"/nowhere/{name}.csv"), {}, 0.2, records)


def private(services: Server, name: str = "private", **changes: Any) -> Study:
    """A study with DP-SGD."""
    content: dict[str, Any] = {
        "name": name,
        "task": TaskRef(name=TABULAR, digest=task_digest(TABULAR)),
        "guest": None,
        "rounds": Rounds(count=4, quorum=3),
        "protection": Protection(mode="none"),
        "privacy": {"delta": DELTA, "training": TRAINING},
    }
    return make_study(services, **content | changes)


@pytest.fixture
def joined(folder: SiteFolder, server: RunningServer, tmp_path: Path) -> SiteFolder:
    enrol(folder, server.services, server.address)
    add_others(server.services, tmp_path)
    return folder


def register(folder: SiteFolder, *datasets: Dataset) -> None:
    state = open_state(folder.database)
    for each in datasets:
        Datasets(state, lambda: 0.0).add(each)
    state.close()


def approve(folder: SiteFolder, study: Study, name: str | None) -> None:
    state = open_state(folder.database)
    signature = load_keys(folder.keys).sign_answer("approved", study.digest())
    Answers(state, lambda: 0.0).record(Answer(study, study.digest(), "approved", signature, name))
    state.close()


def spend(folder: SiteFolder, *events: Event, digest: bytes = b"e" * 32, run: str = "run-0") -> None:
    ledger = open_ledger(folder.ledger, folder.database, load_keys(folder.keys).signing, shipped_accountants())
    charge = Charge(Account("patients", "record"), "earlier", digest, run, 1, 0, events)
    ledger.spend(ledger.reserve(charge, Limits(DELTA), 1.7e9), events)
    ledger.close()


def write_policy(folder: SiteFolder, privacy: str = "") -> None:
    folder.policy.write_text(f"{POLICY}\n[privacy]\n{privacy}\n")


async def told(folder: SiteFolder, server: RunningServer, *studies: Study) -> list[Readiness]:
    """What a daemon tells of the studies when it connects, one after the other."""
    server.services.studies = list(studies)
    async with live(folder, ScriptedEngine()):
        reports = [await server.services.report() for _ in studies]
    assert [digest for digest, _ in reports] == [study.digest() for study in studies]
    return [said for _, said in reports]


async def test_a_study_that_nothing_is_against_is_told_without_a_figure(
    joined: SiteFolder, server: RunningServer
) -> None:
    assert await told(joined, server, make_study(server.services)) == [Readiness()]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"task": TaskRef(name="flower:email:message", digest="ab" * 32)}, PolicyError.code),
        ({"task": TaskRef(name=APP, digest="ab" * 32)}, TaskMismatchError.code),
        ({"expires": "2001-01-01"}, StudyExpiredError.code),
        ({"consortium": "others"}, IdentityError.code),
    ],
    ids=["policy", "task", "expired", "consortium"],
)
async def test_what_is_against_a_study_is_told_by_its_code(
    joined: SiteFolder, server: RunningServer, changes: dict[str, Any], code: str
) -> None:
    assert await told(joined, server, make_study(server.services, **changes)) == [Readiness(code)]


async def test_a_study_that_contradicts_itself_does_not_hide_the_others(
    joined: SiteFolder, server: RunningServer, tmp_path: Path
) -> None:
    old, new = make_study(server.services, name="old"), tmp_path / "again"
    add_others(server.services, new)  # the other sites joined again, with other keys
    assert await told(joined, server, old, make_study(server.services)) == [
        Readiness(KeyMismatchError.code),
        Readiness(),
    ]


async def test_earlier_runs_of_a_study_leave_room_for_its_spare_rounds_only(
    joined: SiteFolder, server: RunningServer
) -> None:
    study = private(server.services)
    register(joined, dataset())
    approve(joined, study, "patients")
    assert await told(joined, server, study) == [Readiness()]
    spend(joined, replace(OF_STUDY, count=5), digest=study.digest(), run="run-1")
    assert await told(joined, server, study) == [Readiness()]
    spend(joined, replace(OF_STUDY, count=1), digest=study.digest(), run="run-2")
    assert await told(joined, server, study) == [Readiness(BudgetExhaustedError.code)]


@pytest.mark.parametrize(
    ("policy", "training", "code"),
    [
        ("epsilon_ever = 0.5", {}, BudgetExhaustedError.code),
        ("epsilon_per_run = 0.5", {}, BudgetExhaustedError.code),
        ("least_records = 450", {}, PrivacyRefusedError.code),
        ("", {"batch_size": 201}, PrivacyUnsupportedError.code),
    ],
    ids=["for ever", "a run", "records", "batch"],
)
async def test_what_only_the_data_set_decides_is_told_of_a_study_that_was_approved(
    joined: SiteFolder, server: RunningServer, policy: str, training: dict[str, Any], code: str
) -> None:
    register(joined, dataset())
    write_policy(joined, policy)
    study = private(server.services, privacy={"delta": DELTA, "training": TRAINING | training})
    assert await told(joined, server, study) == [Readiness()]
    approve(joined, study, "patients")
    assert await told(joined, server, study) == [Readiness(code)]


async def test_records_that_were_released_without_a_bound_block_a_study_where_there_is_a_limit(
    joined: SiteFolder, server: RunningServer
) -> None:
    study = private(server.services)
    register(joined, dataset())
    approve(joined, study, "patients")
    ledger = open_ledger(joined.ledger, joined.database, load_keys(joined.keys).signing, shipped_accountants())
    ledger.record_unbounded(Account("patients", "record"), "plain", b"p" * 32, "run-0")
    ledger.close()
    assert await told(joined, server, study) == [Readiness()]
    write_policy(joined, "epsilon_ever = 1e6")
    assert await told(joined, server, study) == [Readiness(BudgetExhaustedError.code)]
    write_policy(joined, 'epsilon_ever = 1e6\nunbounded = "set_aside"')
    assert await told(joined, server, study) == [Readiness()]


async def test_the_data_set_is_the_approved_one(joined: SiteFolder, server: RunningServer) -> None:
    study = private(server.services, privacy={"delta": DELTA, "training": TRAINING | {"batch_size": 230}})
    assert await told(joined, server, study) == [Readiness(DatasetMissingError.code)]
    register(joined, dataset(), dataset("visits", 600))
    assert await told(joined, server, study) == [Readiness()]
    approve(joined, study, "visits")
    assert await told(joined, server, study) == [Readiness()]
    approve(joined, study, "patients")
    assert await told(joined, server, study) == [Readiness(PrivacyUnsupportedError.code)]
    approve(joined, study, "gone")
    assert await told(joined, server, study) == [Readiness(DatasetMissingError.code)]


async def test_a_ledger_that_was_put_back_blocks_studies_with_privacy(
    joined: SiteFolder, server: RunningServer
) -> None:
    register(joined, dataset())
    spend(joined, Event(2.0, 0.1, 50))
    joined.ledger.unlink()
    studies = private(server.services), private(server.services, "plain", privacy=None)
    for study in studies:
        approve(joined, study, "patients")
    assert await told(joined, server, *studies) == [Readiness(LedgerRolledBackError.code), Readiness()]


# --- what the operator must not learn ---


async def test_an_operator_finds_no_budget_by_trying_studies(joined: SiteFolder, server: RunningServer) -> None:
    """Whoever may publish studies could bisect what is left, and how many records there are, by the codes alone."""
    register(joined, dataset())
    write_policy(joined, "epsilon_ever = 5.0")
    dear = private(server.services, "dear", privacy={"delta": DELTA, "training": TRAINING | {"noise_multiplier": 0.3}})
    large = private(server.services, "large", privacy={"delta": DELTA, "training": TRAINING | {"batch_size": 300}})
    cheap = private(server.services, "cheap")
    assert await told(joined, server, dear, large, cheap) == [Readiness()] * 3
    # Of a study that was approved here a run would tell the same code, and no more.
    approve(joined, dear, "patients")
    approve(joined, cheap, "patients")
    assert await told(joined, server, dear, cheap) == [Readiness(BudgetExhaustedError.code), Readiness()]


@pytest.mark.parametrize(("records", "known"), [(0, 0), (7, 7), (99, 99), (100, 100), (439, 430), (12_999, 12_000)])
def test_records_are_known_to_two_digits_and_never_too_many(records: int, known: int) -> None:
    assert about(records) == known


# --- when it is told ---


async def test_what_was_told_is_told_again_only_when_it_differs(
    joined: SiteFolder, server: RunningServer, engine: ScriptedEngine
) -> None:
    services = server.services
    services.studies = [make_study(services)]
    async with live(joined, engine):
        visit = await services.visit()
        first = await services.report()
        assert first == (services.studies[0].digest(), Readiness())
        services.studies.append(private(services))
        visit.send(studies_changed={})
        second = await services.report()
        assert second == (services.studies[1].digest(), Readiness(DatasetMissingError.code))
    async with live(joined, engine):  # a new connection may lead to a server that lost it: it is told all
        assert [await services.report() for _ in services.studies] == [first, second]


async def test_a_change_that_the_server_does_not_know_of_is_told_at_the_next_look(
    joined: SiteFolder, server: RunningServer, engine: ScriptedEngine
) -> None:
    services = server.services
    services.studies = [private(services)]
    async with live(joined, engine) as site:
        site.daemon.stream._readiness.look_every_s = 0.01
        assert await services.report() == (services.studies[0].digest(), Readiness(DatasetMissingError.code))
        register(joined, dataset())
        visit = await services.visit()
        visit.send(studies_changed={})
        assert (await services.report())[1] == Readiness()
        write_policy(joined, 'require = ["update"]')
        assert (await services.report())[1] == Readiness(PrivacyRefusedError.code)


@pytest.mark.parametrize("older", ["with a guard", "without a guard"])
async def test_a_server_of_an_older_version_is_asked_once_and_no_trouble(
    joined: SiteFolder,
    server: RunningServer,
    engine: ScriptedEngine,
    older: Literal["with a guard", "without a guard"],
) -> None:
    services = server.services
    services.older_than_reports = older
    services.studies = [make_study(services), private(services)]
    approve(joined, services.studies[0], None)
    with capture_logs() as logs:
        async with live(joined, engine) as site:
            site.daemon.stream._readiness.look_every_s = 0.01
            visit = await services.visit()
            for number in (1, 2, 3):
                visit.send(studies_changed={})
                visit.instruct(instruct(services, number))
                assert not (await visit.next("reply")).code
                await visit.next("heartbeat")
    assert services.unknown_calls == 1
    assert services.visits.empty()
    assert {entry["log_level"] for entry in logs} <= {"debug", "info"}


class SlowAssessor(Assessor):
    """One whose accountant computes until it is let go."""

    begun, released = threading.Event(), threading.Event()

    def answer(self, question: Question) -> None:
        self.begun.set()
        assert self.released.wait(PATIENCE_S)
        super().answer(question)


async def test_while_an_accountant_computes_the_daemon_goes_on(
    server: RunningServer, site: RunningSite, folder: SiteFolder
) -> None:
    """Computing takes seconds: heartbeats and the work of rounds must not wait for it."""
    reports = site.daemon.stream._readiness
    real = reports.assessor
    reports.assessor = slow = SlowAssessor(folder, real._answers, real._datasets, real._tasks, real._ledger, real._wall)
    register(folder, dataset())
    server.services.studies = [private(server.services)]
    approve(folder, server.services.studies[0], "patients")
    visit = await server.services.visit()
    visit.send(studies_changed={})
    assert await asyncio.to_thread(slow.begun.wait, 20)
    visit.instruct(instruct(server.services))
    assert not (await visit.next("reply")).code
    await visit.next("heartbeat")
    slow.released.set()
    assert (await server.services.report())[1] == Readiness()


async def test_only_a_study_with_private_training_brings_numpy_into_the_daemon(
    joined: SiteFolder, server: RunningServer
) -> None:
    joined.config.write_text('metrics_listen = ""\n')
    register(joined, dataset())
    plain = private(server.services, "plain", privacy=None)
    noisy = private(
        server.services,
        "noisy",
        rounds=Rounds(count=4, quorum=3, weights="equal"),
        privacy={"delta": DELTA, "average": {"clip": 1.0, "noise_multiplier": 1.0}},
    )
    training = private(server.services)
    for study in (plain, noisy, training):
        approve(joined, study, "patients")
    heavy = []
    for studies in ([plain, noisy], [plain, noisy, training]):
        server.services.studies = studies
        async with daemon(joined) as process:
            for _ in studies:
                assert (await server.services.report())[1].is_ready
            process.terminate()
            _, stderr = await process.communicate()
        heavy.append(b"numpy" in stderr)
    assert heavy == [False, True]
