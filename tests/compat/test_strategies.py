"""A stock Flower app, unchanged, on our transport: real daemons, and the result is the one without a transport."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from quorate.study.study import Study
from tests.compat.consortium_kit import REPOSITORY, SITES, AppConsortium, node_config
from tests.compat.reference import run_here

pytestmark = pytest.mark.integration

STRATEGIES = ("fedavg", "fedprox", "fedadam", "fedmedian")


def publish(consortium: AppConsortium, strategy: str) -> Study:
    """The example's own study file, with another strategy in its run configuration."""
    text = (REPOSITORY / "examples" / "flower_quickstart" / "study.toml").read_text()
    file = consortium.root / f"{strategy}.toml"
    file.write_text(text.replace('"quickstart"', f'"{strategy}"').replace('"fedavg"', f'"{strategy}"', 2))
    return consortium.approved(
        file, lambda site: node_config(**{"partition-id": SITES.index(site), "num-partitions": 3})
    )


def arrays(path: Path) -> list[np.ndarray]:
    with np.load(path) as stored:
        return [stored[name] for name in sorted(stored)]


@pytest.fixture(scope="module")
def results(consortium: AppConsortium) -> dict[str, tuple[Study, str]]:
    """All strategies, side by side: their messages are equal in the first round and must not be mixed up."""
    studies = {strategy: publish(consortium, strategy) for strategy in STRATEGIES}
    runs = {strategy: consortium.run(study.name) for strategy, study in studies.items()}
    for run in runs.values():
        consortium.await_end(run)
    return {strategy: (studies[strategy], runs[strategy]) for strategy in STRATEGIES}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_stock_strategy_gives_what_it_gives_without_a_transport(
    consortium: AppConsortium,
    results: dict[str, tuple[Study, str]],
    strategy: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from flower_quickstart.client_app import app as client
    from flower_quickstart.server_app import app as server

    study, run = results[strategy]
    monkeypatch.chdir(tmp_path)
    run_here(
        server,
        client,
        study,
        {name: {"partition-id": number, "num-partitions": 3} for number, name in enumerate(SITES)},
    )
    for ours, expected in zip(arrays(consortium.folder(run) / "model.npz"), arrays(Path("model.npz")), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)
        assert np.any(ours != 0)
    metrics = json.loads((consortium.folder(run) / "metrics.json").read_text())
    expected_metrics = json.loads(Path("metrics.json").read_text())
    assert list(metrics) == ["1", "2", "3"]
    for number, values in metrics.items():
        assert values == pytest.approx(expected_metrics[number], abs=1e-6)


def test_the_strategies_differ(consortium: AppConsortium, results: dict[str, tuple[Study, str]]) -> None:
    models = [np.concatenate(arrays(consortium.folder(run) / "model.npz")).tobytes() for _, run in results.values()]
    assert len(set(models)) == len(STRATEGIES)


def test_what_the_app_saved_as_its_model_can_be_fetched(
    consortium: AppConsortium, results: dict[str, tuple[Study, str]]
) -> None:
    """The run's folder is the app's working directory, so model.npz there is the run's model."""
    _, run = results["fedavg"]
    assert consortium.operator.run(run).model_available
    fetched = b"".join(consortium.operator.model(run))
    assert fetched == (consortium.folder(run) / "model.npz").read_bytes()
