"""DP-SGD through the shipped tasks and through a task worker: what is scaled by what, what leaves, what is refused."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from quorate.errors import ContributionError, PrivacyUnsupportedError, SiteRefusalError, TaskFailedError
from quorate.identity import SiteName
from quorate.study.study import TaskRef
from quorate.study.task_digest import task_digest
from quorate_client.rounds.model.state import THETA_OFFSET
from quorate_client.rounds.task_calls import TaskCalls, Trained
from quorate_client.site.agreement import Agreement, Dataset
from quorate_client.tasks import PrivateSession, PrivateSettings
from quorate_client.tasks.data.datasets import load_table, register
from quorate_client.tasks.data.schema import TabularSchema
from quorate_client.tasks.data.table import Table
from quorate_client.tasks.image import TASK as IMAGE
from quorate_client.tasks.models.tabular import predict
from quorate_client.tasks.models.tabular_features import SUM_ONE, features, range_standardisation
from quorate_client.tasks.tabular import TASK as TABULAR
from quorate_client.tasks.training.dp_sgd import PrivateTraining
from quorate_client.workers.pool import TaskWorker, TaskWorkers, WorkerKey
from tests.client.data_kit import a_site
from tests.client.engine_kit import (
    installed_fixture,  # noqa: F401  # a fixture, found because it is here
    make_agreement,
    make_study,
)
from tests.client.in_process import InProcessWorkers

SCHEMA: dict[str, Any] = {
    "kind": "tabular",
    "columns": [
        {"name": "age", "type": "integer", "range": [0, 100]},
        {"name": "pressure", "type": "number", "range": [50, 250], "missing": "mean"},
        {"name": "stage", "type": "category", "categories": ["I", "II"]},
        {"name": "smoker", "type": "flag"},
    ],
    "label": {"name": "died", "classes": ["no", "yes"]},
}
RANGED = {"schema": SCHEMA, "standardise": "range"}
SETTINGS = PrivateSettings(clip=1.0, noise_multiplier=1.0, sampling_rate=0.25, steps=3, units=170)


def dataset(folder: Path, records: int = 200) -> Dataset:
    rng = np.random.default_rng(1)
    ages = rng.integers(0, 101, records)
    rows = [
        (age, "" if age % 7 == 0 else 100 + age / 2, ("I", "II")[age % 2], age % 3 == 0, ("no", "yes")[age > 50])
        for age in ages.tolist()
    ]
    path = folder / "records.csv"
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["age", "pressure", "stage", "smoker", "died"])
        table.writerows([(*row[:3], int(row[3]), row[4]) for row in rows])
    return register("records", path, SCHEMA, 0.2, a_site(folder))


def images(folder: Path) -> Dataset:
    rng = np.random.default_rng(1)
    np.savez(folder / "images.npz", images=rng.integers(0, 256, (60, 8, 8)).astype(np.uint8), labels=np.arange(60) % 3)
    return register("images", folder / "images.npz", IMAGE_SCHEMA, 0.2, a_site(folder))


IMAGE_SCHEMA: dict[str, Any] = {"kind": "images", "height": 8, "width": 8, "channels": 1, "classes": [0, 1, 2]}


# --- scaling by public ranges -----------------------------------------------------------------------------------------


def test_ranges_put_the_middle_at_zero_and_look_at_no_record() -> None:
    schema = TABULAR.schema(RANGED)
    assert isinstance(schema, TabularSchema)
    by = range_standardisation(schema)
    assert by.means == (50, 150, 0, 0, 0)
    assert by.scales == (12.5, 25, 1, 1, 1)
    columns = {"age": [0, 100, 50], "pressure": [250, math.nan, 50], "stage": [0, 1, 1], "smoker": [0, 1, 0]}
    table = Table({name: np.array(values, float) for name, values in columns.items()}, np.array([0, 1, 1]))
    np.testing.assert_array_equal(features(schema, table, by), [[-4, 4, 1, 0, 0], [4, 0, 0, 1, 1], [0, -4, 0, 1, 0]])


def test_a_session_by_ranges_has_no_statistics_and_takes_none(tmp_path: Path) -> None:
    session = TABULAR.open(RANGED, dataset(tmp_path), 3)
    assert session.statistics() == ()
    assert TABULAR.open({"schema": SCHEMA}, dataset(tmp_path), 3).statistics() != ()
    with pytest.raises(ContributionError, match="need no statistics"):
        session.begin((1, 2, 3))
    session.begin(())


def test_a_model_by_ranges_is_released_with_them_and_predicts_without_the_data(tmp_path: Path) -> None:
    registered = dataset(tmp_path)
    session = TABULAR.open({**RANGED, "learning_rate": 0.5}, registered, 3)
    session.begin(())
    theta = session.initial()
    for number in range(20):
        theta = theta + session.train(theta, number, number, 0.0)[0]
    arrays, metadata = session.export(theta)
    assert metadata["parameters"]["standardise"] == "range"
    TABULAR.check(metadata["parameters"])
    _, test = load_table(registered, TABULAR.schema(RANGED))
    found = predict(arrays, metadata, test)
    assert (found.argmax(axis=1) == test.labels).mean() == session.evaluate(theta).metrics()["accuracy"] > 0.8


# --- sessions ---------------------------------------------------------------------------------------------------------


def sessions(folder: Path) -> list[Any]:
    made = [
        TABULAR.open(RANGED, dataset(folder), 3),
        TABULAR.open({**RANGED, "model": "mlp", "hidden": [8]}, dataset(folder), 3),
        IMAGE.open({"schema": IMAGE_SCHEMA, "filters": [4]}, images(folder), 3),
        IMAGE.open({"schema": IMAGE_SCHEMA, "filters": [4, 6], "normalisation": "none"}, images(folder), 3),
    ]
    for session in made:
        session.begin(session.statistics())
    return made


def test_the_shipped_tasks_can_be_trained_privately(tmp_path: Path) -> None:
    for session in sessions(tmp_path):
        assert isinstance(session, PrivateSession)
        theta, training = session.initial(), PrivateTraining(session.trainable())
        settings = replace(SETTINGS, units=session.records)
        update = training.train(theta, settings, 0.1)
        assert update.shape == theta.shape
        assert update.dtype == np.float32
        assert np.isfinite(update).all()
        assert (update != training.train(theta, settings, 0.1)).all()


def test_a_session_goes_on_with_its_own_model_beside_private_training(tmp_path: Path) -> None:
    for session in sessions(tmp_path):
        theta = session.initial() + np.float32(0.01)
        before = session.train(theta, 1, 1, 0.0)[0], session.evaluate(theta).encode()
        PrivateTraining(session.trainable()).train(theta, replace(SETTINGS, units=session.records), 0.0)
        np.testing.assert_array_equal(session.train(theta, 1, 1, 0.0)[0], before[0])
        assert session.evaluate(theta).encode() == before[1]


def test_private_training_learns(tmp_path: Path) -> None:
    session = TABULAR.open({**RANGED, "learning_rate": 1.0}, dataset(tmp_path), 3)
    session.begin(())
    theta, training = session.initial(), PrivateTraining(session.trainable())
    for _ in range(20):
        theta = theta + training.train(theta, SETTINGS, 0.0)
    assert session.evaluate(theta).metrics()["auc"] > 0.9


# --- the worker -------------------------------------------------------------------------------------------------------


@dataclass
class State:
    """As much of a model's state on disk as a call takes."""

    path: Path
    dimension: int

    @classmethod
    def of(cls, path: Path, theta: npt.NDArray[np.float32]) -> State:
        path.write_bytes(bytes(THETA_OFFSET) + theta.astype("<f4").tobytes())
        return cls(path, theta.size)


def calls(
    folder: Path,
    parameters: dict[str, Any],
    statistics: tuple[int, ...] = (),
    workers: TaskWorkers | None = None,
) -> TaskCalls:
    name = "tabular-classifier"
    study = make_study(task=TaskRef(name=name, digest=task_digest(name), parameters=parameters))
    agreement = Agreement(study, study.digest(), SiteName("north"), dataset(folder), {})
    return TaskCalls(workers or InProcessWorkers(), agreement, statistics, time.monotonic)


async def test_a_worker_trains_privately_and_tells_no_loss(installed: Path, tmp_path: Path) -> None:
    task = calls(tmp_path, RANGED)
    measure = await task.measure()
    assert measure.statistics == ()
    state: Any = State.of(tmp_path / "state", np.zeros(measure.dimension, np.float32))
    trained = await task.train_privately(state, tmp_path / "update", SETTINGS, 0.0)
    assert trained == Trained(measure.records, 0)
    update = np.fromfile(tmp_path / "update", "<f4")
    assert update.size == measure.dimension
    assert (update != 0).all()


async def test_statistics_of_training_records_are_refused_before_anything_is_computed(
    installed: Path, tmp_path: Path
) -> None:
    task = calls(tmp_path, {"schema": SCHEMA}, (1, 2, 3))
    with pytest.raises(PrivacyUnsupportedError, match=r"statistics of training records.*standardise = 'range'"):
        await task.train_privately(State(tmp_path / "state", 6), tmp_path / "update", SETTINGS, 0.0)  # type: ignore[arg-type]
    assert task.working_s == 0
    assert not (tmp_path / "update").exists()


async def test_a_task_without_private_training_is_refused(installed: Path, tmp_path: Path) -> None:
    workers = InProcessWorkers()
    agreement = make_agreement(make_study(), tmp_path)
    task = TaskCalls(workers, agreement, (), time.monotonic)
    request = training_request(tmp_path, (await task.measure()).dimension)
    async with workers.lease(task._key) as worker:
        with pytest.raises(PrivacyUnsupportedError):
            await worker.call("train_privately", request)
    assert not (tmp_path / "update").exists()


async def test_a_worker_trains_on_what_the_task_began_with_the_last_time(installed: Path, tmp_path: Path) -> None:
    """The variance of a column becomes the scale of its features, and so the size of gradients that nothing clips."""
    task = calls(tmp_path, {"schema": SCHEMA})
    request = training_request(tmp_path, (await task.measure()).dimension)
    request["settings"] |= {"clip": 1e6, "noise_multiplier": 1e-20}
    half, quarter = 80 * SUM_ONE, 40 * SUM_ONE
    sizes = []
    async with task._workers.lease(task._key) as worker:
        for variance in (0.0, 1e-6):  # of which the first makes the width of the range the scale
            sums = (160, half, quarter + int(160 * SUM_ONE * variance)) * 2
            await worker.call("begin", {"statistics": list(sums)})
            await worker.call("train_privately", dict(request))
            sizes.append(np.abs(np.fromfile(request["update"], "<f4")).max())
    assert sizes[1] > 50 * sizes[0]


async def test_a_worker_refuses_settings_that_are_no_privacy(installed: Path, tmp_path: Path) -> None:
    task = calls(tmp_path, RANGED)
    measure = await task.measure()
    request = training_request(tmp_path, measure.dimension)
    async with task._workers.lease(task._key) as worker:
        for change in ({"noise_multiplier": 0.0}, {"clip": math.inf}, {"seed": 1}):
            with pytest.raises(SiteRefusalError):
                await worker.call("train_privately", {**request, "settings": request["settings"] | change})
    assert not (tmp_path / "update").exists()


@pytest.mark.parametrize("answer", [{}, {"records": -1}, {"records": 1.5}])
async def test_an_answer_that_counts_records_wrongly_is_not_taken(
    installed: Path, tmp_path: Path, answer: dict[str, Any]
) -> None:
    class Liar:
        ready_for = b""

        async def call(self, verb: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
            return answer if verb == "train_privately" else {}

    class Liars(InProcessWorkers):
        @asynccontextmanager
        async def lease(self, key: WorkerKey) -> AsyncIterator[TaskWorker]:
            yield Liar()

    task = calls(tmp_path, RANGED, workers=Liars())
    state: Any = State.of(tmp_path / "state", np.zeros(6, np.float32))
    with pytest.raises(TaskFailedError, match="agreed form"):
        await task.train_privately(state, tmp_path / "update", SETTINGS, 0.0)


def training_request(folder: Path, dimension: int) -> dict[str, Any]:
    state = State.of(folder / "state", np.zeros(dimension, np.float32))
    return {
        "theta": {"path": str(state.path), "offset": THETA_OFFSET, "dimension": dimension},
        "update": str(folder / "update"),
        "settings": asdict(SETTINGS),
        "proximal_mu": 0.0,
    }
