"""``tabular-classifier``: parameters, federated standardisation, and a federation that does as well as pooled data."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from quorate.errors import ContributionError, InputError, StudyError, WrongStateError
from quorate.rounds.instruction import MAX_EXTRAS
from quorate.tally import ClassificationTally
from quorate_client.site.agreement import Dataset
from quorate_client.tasks import TaskSession
from quorate_client.tasks.data.datasets import load_table, register
from quorate_client.tasks.data.schema import TabularSchema
from quorate_client.tasks.data.table import Table
from quorate_client.tasks.models.tabular import predict
from quorate_client.tasks.models.tabular_features import (
    SUM_ONE,
    SUMS_PER_COLUMN,
    column_sums,
    features,
    standardisation,
)
from quorate_client.tasks.tabular import TASK
from tests.client.data_kit import a_site
from tests.client.real_data import real_data

SCHEMA: dict[str, Any] = {
    "kind": "tabular",
    "columns": [
        {"name": "age", "type": "integer", "range": [0, 100]},
        {"name": "pressure", "type": "number", "range": [50, 250], "missing": "mean"},
        {"name": "dose", "type": "number", "range": [0, 10], "missing": 5},
        {"name": "stage", "type": "category", "categories": ["I", "II", "III"], "missing": "II"},
        {"name": "smoker", "type": "flag", "missing": True},
    ],
    "label": {"name": "died", "classes": ["no", "yes"]},
}
NAN = float("nan")


def schema() -> TabularSchema:
    return TASK.schema({"schema": SCHEMA})


def table(*rows: tuple[float, ...]) -> Table:
    names = [column["name"] for column in SCHEMA["columns"]]
    columns = np.array(rows, dtype=np.float64).T
    return Table(dict(zip(names, columns, strict=True)), np.arange(len(rows)) % 2)


def add(sums: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(sum(words) for words in zip(*sums, strict=True))


def write(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def breast_cancer(folder: Path) -> tuple[dict[str, Any], list[Dataset]]:
    """The 569 records over four hospitals of different sizes and class balance, and the schema."""
    measured, benign = load_breast_cancer(return_X_y=True)
    names = [f"x{number}" for number in range(30)]
    content = {
        "kind": "tabular",
        "columns": [
            {"name": name, "type": "number", "range": [0, float(10 ** np.ceil(np.log10(high)))]}
            for name, high in zip(names, measured.max(axis=0), strict=True)
        ],
        "label": {"name": "diagnosis", "classes": ["malignant", "benign"], "positive": "malignant"},
    }
    rng = np.random.default_rng(11)
    skewed = np.argsort(rng.random(569) + 0.3 * benign)
    datasets = []
    for number, members in enumerate(np.split(skewed, [70, 180, 340])):
        chosen = rng.permutation(members)
        rows = [[*map(repr, measured[i].tolist()), ("malignant", "benign")[benign[i]]] for i in chosen]
        path = write(folder / f"{number}.csv", [*names, "diagnosis"], rows)
        datasets.append(register(f"hospital-{number}", path, content, 0.25, a_site(path.parent)))
    return content, datasets


def federate(sessions: Sequence[TaskSession], rounds: int, mu: float = 0.0) -> npt.NDArray[np.float32]:
    """Federated averaging in this process, weighted by records."""
    sums = add([session.statistics() for session in sessions])
    for session in sessions:
        session.begin(sums)
    starts = [session.initial() for session in sessions]
    assert len({start.tobytes() for start in starts}) == 1
    theta, total = starts[0], sum(session.records for session in sessions)
    for number in range(1, rounds + 1):
        average = np.zeros(len(theta))
        for place, session in enumerate(sessions):
            update, report = session.train(theta, number, 1000 * number + place, mu)
            assert report.records == session.records
            average += update.astype(np.float64) * (session.records / total)
        theta = (theta + average).astype(np.float32)
    return theta


def pooled_metrics(sessions: Sequence[TaskSession], theta: npt.NDArray[np.float32]) -> dict[str, float]:
    return ClassificationTally.decode(add([session.evaluate(theta).encode() for session in sessions])).metrics()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": "forest"}, "model: Input should be 'logistic' or 'mlp'"),
        ({"optimizer": "lbfgs"}, "optimizer: Input should be 'sgd' or 'adam'"),
        ({"epochs": 0}, "epochs: Input should be greater than or equal to 1"),
        ({"batch_size": 2.5}, "batch_size: Input should be a valid integer"),
        ({"learning_rate": -1}, "learning_rate: Input should be greater than 0"),
        ({"learning_rate": float("nan")}, "learning_rate: "),
        ({"weight_decay": -0.1}, "weight_decay: Input should be greater than or equal to 0"),
        ({"model": "mlp", "hidden": [0]}, "hidden.0: Input should be greater than or equal to 1"),
        ({"model": "mlp", "hidden": []}, "hidden: "),
        ({"hidden": [8]}, "hidden goes with model = 'mlp'"),
        ({"standardise": "none"}, "standardise: Input should be 'data' or 'range'"),
        ({"momentum": 0.9}, "momentum: unknown key"),
        ({"schema": {**SCHEMA, "columns": []}}, "columns must hold at least one"),
        ({"schema": None}, "The schema in the parameters of the task tabular-classifier has 1 problem"),
        (
            {"schema": {"kind": "images", "height": 8, "width": 8, "channels": 1, "classes": [0, 1]}},
            "Expected a schema of the kind 'tabular'; got 'images'",
        ),
    ],
)
def test_wrong_parameters_are_told_by_key_with_what_is_allowed(change: dict[str, Any], told: str) -> None:
    TASK.check({"schema": SCHEMA})
    with pytest.raises(StudyError) as caught:
        TASK.check({"schema": SCHEMA, **change})
    assert told in str(caught.value)


def test_an_unknown_parameter_is_told_with_all_that_there_are() -> None:
    known = "batch_size, epochs, hidden, learning_rate, model, optimizer, schema, standardise, weight"
    with pytest.raises(StudyError, match=known):
        TASK.check({"schema": SCHEMA, "lr": 1})


def test_parameters_without_a_schema_are_refused() -> None:
    with pytest.raises(StudyError, match="needs a schema in its parameters"):
        TASK.check({"epochs": 2})


def test_the_sums_of_the_widest_table_fit_into_a_reply() -> None:
    columns = [{"name": f"x{number}", "type": "flag"} for number in range(4096)]
    TASK.check({"schema": {**SCHEMA, "columns": columns}})
    with pytest.raises(StudyError, match="at most 4096"):
        TASK.check({"schema": {**SCHEMA, "columns": [*columns, {"name": "y", "type": "flag"}]}})
    assert 4096 * SUMS_PER_COLUMN <= MAX_EXTRAS


def test_sums_are_exact_integers_over_the_public_range_without_missing_values() -> None:
    part = table((25, 150, 10, 0, 1), (75, NAN, NAN, 1, 0), (100, 50, 0, 2, 1))
    quarter, half = SUM_ONE // 4, SUM_ONE // 2
    assert column_sums(schema(), part) == (
        *(3, quarter + 3 * quarter + SUM_ONE, SUM_ONE // 16 + 9 * SUM_ONE // 16 + SUM_ONE),
        *(2, half, quarter),  # the mean is over the values that are there
        *(3, SUM_ONE + half, SUM_ONE + quarter),  # the constant 5 counts
    )


def test_the_sums_of_several_sites_give_the_moments_of_all_records() -> None:
    rng = np.random.default_rng(1)
    parts = [
        table(*[(*rng.uniform((18, 60, 0), (95, 220, 3)), rng.integers(3), 1) for _ in range(size)])
        for size in (5, 40, 200)
    ]
    by = standardisation(schema(), add([column_sums(schema(), part) for part in parts]))
    for place, name in enumerate(["age", "pressure", "dose"]):
        values = np.concatenate([part.columns[name] for part in parts])
        assert by.means[place] == pytest.approx(values.mean(), rel=1e-6)
        assert by.scales[place] == pytest.approx(values.std(), rel=1e-6)
    assert by.means[3:] == (0.0,) * 4
    assert by.scales[3:] == (1.0,) * 4


def test_a_column_that_does_not_vary_or_is_never_there_is_divided_by_its_range() -> None:
    for value in np.linspace(0.1, 99.9, 200):  # rounding lets some of them seem to vary
        by = standardisation(schema(), column_sums(schema(), table(*[(value, NAN, 1, 0, 0)] * 5)))
        assert by.means[0] == pytest.approx(value, abs=1e-6)
        assert by.scales[0] == 100
        assert (by.means[1], by.scales[1]) == (150, 200)


@pytest.mark.parametrize("place", range(9))
@pytest.mark.parametrize("value", [-1, 2**60])
def test_sums_that_no_records_can_have_are_refused(place: int, value: int) -> None:
    sums = list(column_sums(schema(), table((25, 150, 10, 0, 1), (75, 60, 2, 1, 0))))
    standardisation(schema(), sums)
    sums[place] = value
    if place % 3 == 0 and value > 0:
        return  # any number of values may have been zero
    with pytest.raises(ContributionError, match="contradict each other"):
        standardisation(schema(), sums)
    with pytest.raises(ContributionError, match="Expected 9 integers; got 8"):
        standardisation(schema(), sums[:-1])


def test_features_are_standardised_numbers_flags_and_one_column_for_each_category() -> None:
    part = table((20, 100, 4, 0, 0), (40, NAN, NAN, NAN, NAN), (60, 200, 6, 2, 1))
    matrix = features(schema(), part, standardisation(schema(), column_sums(schema(), part)))
    age, dose = np.sqrt(800 / 3), np.sqrt(2 / 3)
    np.testing.assert_allclose(
        matrix,
        [
            [-20 / age, -1, -1 / dose, 1, 0, 0, 0],
            [0, 0, 0, 0, 1, 0, 1],  # the mean, the mean, the constant, stage II, a smoker
            [20 / age, 1, 1 / dose, 0, 0, 1, 1],
        ],
        atol=1e-6,
    )


def test_a_federation_does_as_well_as_pooled_data(tmp_path: Path) -> None:
    content, datasets = breast_cancer(tmp_path)
    parameters = {"schema": content, "learning_rate": 0.02, "optimizer": "adam"}
    sessions = [TASK.open(parameters, dataset, 3) for dataset in datasets]
    theta = federate(sessions, rounds=25)
    parts = [load_table(dataset, TASK.schema(parameters)) for dataset in datasets]
    arrays, metadata = sessions[0].export(theta)
    scores = np.concatenate([predict(arrays, metadata, test)[:, 1] for _, test in parts])
    truth = np.concatenate([test.labels for _, test in parts])
    federated = roc_auc_score(truth, scores)

    def matrix(part: Table) -> npt.NDArray[np.float64]:
        return np.stack(list(part.columns.values()), axis=1)

    training = np.concatenate([matrix(part) for part, _ in parts])
    scaler = StandardScaler().fit(training)
    model = LogisticRegression().fit(scaler.transform(training), np.concatenate([part.labels for part, _ in parts]))
    pooled = roc_auc_score(
        truth, model.decision_function(scaler.transform(np.concatenate([matrix(t) for _, t in parts])))
    )
    assert abs(federated - pooled) <= 0.005
    assert pooled > 0.98
    np.testing.assert_allclose(metadata["means"], scaler.mean_, rtol=1e-4)
    np.testing.assert_allclose(metadata["scales"], scaler.scale_, rtol=1e-2)
    metrics = pooled_metrics(sessions, theta)
    assert metrics["auc"] == pytest.approx(federated, abs=0.002)
    assert metrics["accuracy"] == pytest.approx(((scores > 0.5) == truth).mean())


def test_a_perceptron_learns_what_a_line_cannot(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    points = rng.uniform(-1, 1, (400, 2))
    rows = [[*map(repr, point.tolist()), int(point[0] * point[1] > 0)] for point in points]
    columns = [{"name": name, "type": "number", "range": [-1, 1]} for name in ("a", "b")]
    content = {"kind": "tabular", "columns": columns, "label": {"name": "same", "classes": [0, 1]}}
    dataset = register("signs", write(tmp_path / "signs.csv", ["a", "b", "same"], rows), content, 0.3, a_site(tmp_path))
    areas = []
    for choice in ({"model": "logistic"}, {"model": "mlp", "hidden": [16, 8]}):
        parameters = {"schema": content, "optimizer": "adam", "learning_rate": 0.02, "epochs": 5, **choice}
        session = TASK.open(parameters, dataset, 3)
        theta = federate([session], rounds=10, mu=0.01)
        areas.append(session.evaluate(theta).metrics()["auc"])
        arrays, metadata = session.export(theta)
        _, test = load_table(dataset, TASK.schema(parameters))
        assert roc_auc_score(test.labels, predict(arrays, metadata, test)[:, 1]) == pytest.approx(areas[-1], abs=0.01)
    assert areas[0] < 0.7
    assert areas[1] > 0.95


def test_several_classes_are_learnt_and_released(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    levels = rng.uniform(0, 3, 300)
    rows = [[repr(float(level)), "abc"[int(level)]] for level in levels]
    columns = [{"name": "level", "type": "number", "range": [0, 3]}]
    content = {"kind": "tabular", "columns": columns, "label": {"name": "grade", "classes": ["a", "b", "c"]}}
    dataset = register(
        "grades", write(tmp_path / "grades.csv", ["level", "grade"], rows), content, 0.3, a_site(tmp_path)
    )
    session = TASK.open({"schema": content, "optimizer": "adam", "epochs": 10}, dataset, 3)
    theta = federate([session], rounds=5)
    found = session.evaluate(theta)
    assert found.classes == 3
    assert found.metrics()["accuracy"] > 0.9
    arrays, metadata = session.export(theta)
    _, test = load_table(dataset, TASK.schema({"schema": content}))
    chances = predict(arrays, metadata, test)
    np.testing.assert_allclose(chances.sum(axis=1), 1)
    assert (chances.argmax(axis=1) == test.labels).mean() == pytest.approx(found.metrics()["accuracy"])


def test_the_metadata_of_a_release_are_json_and_can_be_checked_as_parameters(tmp_path: Path) -> None:
    content, datasets = breast_cancer(tmp_path)
    for choice in ({}, {"model": "mlp"}):
        session = TASK.open({"schema": content, **choice}, datasets[0], 3)
        session.begin(session.statistics())
        arrays, metadata = session.export(session.initial())
        assert json.loads(json.dumps(metadata, allow_nan=False)) == metadata
        TASK.check(metadata["parameters"])
        assert metadata["classes"] == ["benign", "malignant"]
        assert metadata["features"] == [f"x{number}" for number in range(30)]
        assert arrays["layer1.weight"].shape == (32 if choice else 1, 30)
    images = {"kind": "images", "height": 8, "width": 8, "channels": 1, "classes": [0, 1]}
    _, test = load_table(datasets[0], TASK.schema({"schema": content}))
    with pytest.raises(InputError, match="not one of a table"):
        predict(arrays, {**metadata, "parameters": {"schema": images}}, test)


def test_a_session_that_has_not_begun_refuses_to_work(tmp_path: Path) -> None:
    content, datasets = breast_cancer(tmp_path)
    session = TASK.open({"schema": content}, datasets[0], 3)
    theta = np.zeros(31, dtype=np.float32)
    for attempt in (session.initial, lambda: session.train(theta, 1, 1, 0.0), lambda: session.evaluate(theta)):
        with pytest.raises(WrongStateError, match="before it had begun"):
            attempt()


def test_real_credit_records_give_the_reference_area(tmp_path: Path) -> None:
    path = real_data("credit_default/credit_default.csv")
    ranges = {
        1: [0, 1e6],
        5: [18, 100],
        **{n: [-2, 9] for n in range(6, 12)},
        **{n: [-1e6, 2e6] for n in range(12, 24)},
    }
    categories = {2: [1, 2], 3: list(range(7)), 4: list(range(4))}
    columns = [
        {"name": f"X{n}", "type": "category", "categories": categories[n]}
        if n in categories
        else {"name": f"X{n}", "type": "integer", "range": ranges[n]}
        for n in range(1, 24)
    ]
    content = {
        "kind": "tabular",
        "columns": columns,
        "label": {"name": "Y", "classes": [0, 1]},
        "file": {"ignore": ["ID"]},
    }
    dataset = register("credit", path, content, 0.3, a_site(tmp_path))
    session = TASK.open({"schema": content, "batch_size": 256, "learning_rate": 0.5}, dataset, 3)
    theta = federate([session], rounds=5)
    assert session.evaluate(theta).metrics()["auc"] > 0.71  # a central logistic regression: 0.716
