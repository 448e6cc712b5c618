"""Differential privacy: steps of DP-SGD, the account, the ledger, the policy, and how good the demo's model gets."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from bench.dp_steps import training_steps
from bench.table import Row
from demo import hospitals
from demo.consortium import DATASET, TEST_FRACTION
from quorate.identity import parse_name
from quorate.privacy import accounting
from quorate.privacy.events import Event
from quorate.privacy.plan import training_plan
from quorate.process.private_files import write_private
from quorate.secagg.release import ReleaseKey
from quorate.study.study import Study
from quorate.study.study_file import StudyFile
from quorate.study.task_digest import task_digest
from quorate.tally import ClassificationTally
from quorate_client.approval.policy import Policy, PrivacyPolicy
from quorate_client.ledger.entries import Account, Charge, Limits
from quorate_client.ledger.ledger import open_ledger
from quorate_client.ledger.limits import shipped_accountants
from quorate_client.site.database import make_state
from quorate_client.site.folder import SiteFolder
from quorate_client.tasks import PrivateSettings
from quorate_client.tasks.data.datasets import register
from quorate_client.tasks.models.tabular import TabularSession
from quorate_client.tasks.tabular import TASK
from quorate_client.tasks.training.dp_sgd import PrivateTraining

DEMO = Path(hospitals.__file__).parent
DELTA = 1e-3
PLAN = Event(1.0, 256 / 10_000, 800)


@dataclass(frozen=True)
class Size:
    """Batches of training steps and how often each thing is done; the hospitals that train the demo's model."""

    batches: tuple[int, ...]
    turns: int
    spendings: int
    checks: int
    hospitals: int
    trainings: int


FULL = Size(batches=(64, 256), turns=15, spendings=200, checks=100, hospitals=4, trainings=10)
SMALL = Size(batches=(4,), turns=1, spendings=3, checks=1, hospitals=1, trainings=1)


def rows(size: Size) -> list[Row]:
    return [
        *training_steps(size.batches, size.turns),
        *_account(),
        _ledger(size.spendings),
        _policy(size.checks),
        *_utility(size),
    ]


def _account() -> list[Row]:
    """A query for a plan, and one after a round more; CPU time, the first import apart."""
    accounting.epsilon([Event(1.1, 0.1, 10)], DELTA)
    whole = _cpu_s(lambda: accounting.epsilon([PLAN], 1e-5))
    composition = accounting.Composition([PLAN])
    composition.epsilon(1e-5)
    composition.add(Event(PLAN.noise_multiplier, PLAN.sampling_rate, 8))
    return [
        Row("epsilon of 800 steps, PLD", "s", whole, 1.0),
        Row("the same with a round more", "s", _cpu_s(lambda: composition.epsilon(1e-5)), 1.0),
    ]


def _ledger(spendings: int) -> Row:
    """Reserve and spend with all limits on, to the disk; wall time, for it is mostly waiting for it."""
    key, limits = Ed25519PrivateKey.generate(), Limits(DELTA, (Event(4.0, 0.1, 10_000),), 50.0, 50.0, 50.0)
    event = Event(4.0, 0.1, 20)
    spent: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        make_state(Path(folder) / "state")
        ledger = open_ledger(Path(folder) / "ledger", Path(folder) / "state", key, shipped_accountants())
        for number in range(spendings):
            charge = Charge(Account("cells", "record"), "hearts", bytes(32), "run", number, 0, (event,))
            started = time.perf_counter()
            ledger.spend(ledger.reserve(charge, limits, time.time()), charge.events)
            spent.append((time.perf_counter() - started) * 1000)
        ledger.close()
    return Row(f"ledger: reserve and spend, median of {spendings}", "ms", statistics.median(spent), 20.0)


def _policy(checks: int) -> Row:
    policy = Policy(
        release=frozenset({"operator"}), privacy=PrivacyPolicy(epsilon_per_run=5.0, least_noise=0.5, largest_clip=2.0)
    )
    study = _study(3.0)
    return Row("policy: a study held against all rules", "ms", 1000 * _cpu_s(lambda: policy.check(study), checks), 5.0)


def _utility(size: Size) -> list[Row]:
    """Pooled AUC on the demo's held-out records, mean of some trainings, beside the same study without noise.

    In one process, with the weights and the noise of the demo's hospitals; the settings are those of demo/study.toml.
    Each training holds out other records: with some 116 of them, the luck of one lot moves the AUC more than the noise.
    """
    levels = (None, 3.0, 1.0)
    found: dict[float | None, list[float]] = {level: [] for level in levels}
    for lot in range(size.trainings):
        with tempfile.TemporaryDirectory() as folder:
            sessions = _hospitals(Path(folder), size.hospitals, lot)
        for level in levels:
            found[level].append(_federated(sessions, level))
    means = {level: statistics.mean(values) for level, values in found.items()}
    return [
        Row(
            f"AUC of the demo with epsilon {epsilon:g}, mean of {size.trainings}",
            "",
            means[epsilon],
            goal,
            means[None],
            more_is_better=True,
        )
        for epsilon, goal in ((3.0, 0.985), (1.0, 0.98))
    ]


def _federated(sessions: list[TabularSession], epsilon: float | None) -> float:
    study = _study(epsilon or 1.0)
    if study.privacy is None or study.privacy.training is None:
        raise ValueError("the demo's study has no [privacy.training]")
    training, rounds = study.privacy.training, study.rounds.count
    weights = np.array([session.records for session in sessions], np.float64)
    trainings = [PrivateTraining(session.trainable()) for session in sessions]
    theta = sessions[0].initial()
    for number in range(1, rounds + 1):
        updates = []
        for session, private in zip(sessions, trainings, strict=True):
            if epsilon is None:
                updates.append(session.train(theta, number, number, 0.0)[0])
                continue
            plan = training_plan(study.privacy, training, session.records, rounds)
            noise, rate = plan.noise_multiplier, plan.sampling_rate
            settings = PrivateSettings(training.clip, noise, rate, plan.steps, session.records)
            updates.append(private.train(theta, settings, 0.0))
        theta = (theta + np.average(updates, axis=0, weights=weights)).astype(np.float32)
    return _auc(sessions, theta)


def _auc(sessions: list[TabularSession], theta: np.ndarray[tuple[int], np.dtype[np.float32]]) -> float:
    counts = np.sum([session.evaluate(theta).encode() for session in sessions], axis=0)
    return ClassificationTally.decode(tuple(int(count) for count in counts)).metrics(least=1)["auc"]


def _hospitals(folder: Path, count: int, lot: int) -> list[TabularSession]:
    parameters = _study(1.0).task.parameters
    opened = []
    site = SiteFolder(folder / "site")
    site.create()
    write_private(site.keys / "records.key", bytes([lot]) * 32)  # which records are held out
    for path in list(hospitals.write(folder).values())[:count]:
        dataset = register(DATASET, path, parameters["schema"], TEST_FRACTION, site)
        session: TabularSession = TASK.open(parameters, dataset, 1)
        session.begin(())
        opened.append(session)
    return opened


def _study(epsilon: float) -> Study:
    """The demo's, with another epsilon, as the operator's command makes it."""
    file = StudyFile.read(DEMO / "study.toml")
    content = file.model_dump(mode="json")
    content["privacy"]["training"]["epsilon"] = epsilon
    keys = {parse_name(name): bytes([number]) * 32 for number, name in enumerate(file.sites)}
    release_key = ReleaseKey(X25519PrivateKey.generate())
    return StudyFile.model_validate(content).resolve("bench", keys, task_digest, release_key)


def _cpu_s(work: Callable[[], object], times: int = 1) -> float:
    started = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - started) / times
