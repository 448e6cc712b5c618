"""Our own apps where Flower is the host: a stock SuperLink with SuperNodes, and Flower's simulation.

The yardstick is the same study on Quorate's own transport, with real daemons. A site draws the seed of its training
itself and tells it to nobody, so no two runs shuffle alike. Here each batch holds all of a site's records: then the
order of the records changes nothing but the last bits, and the models agree to a few units of the fixed point.
"""

from __future__ import annotations

import importlib.util
import json
import runpy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench.flower_peer import StockFlower
from demo.hospitals import write as write_tables

from quorate.runs import RoundResult
from quorate_client.data import evaluation_part
from quorate_client.schema import parse_schema, read_schema
from quorate_client.table import read_table
from quorate_client.tasks.tabular_model import predict
from tests.compat.consortium_kit import REPOSITORY, SITES, Consortium

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.timeout(900)]

APP = REPOSITORY / "examples" / "stock_deployment"
SCHEMA = REPOSITORY / "demo" / "schema.toml"
DATASET = "records"
ROUNDS = 2
RUN_S = 600.0
ATOL = 2e-6


@dataclass(frozen=True)
class Outcome:
    """A released model, its metadata, and how well it does on all sites' test parts."""

    arrays: dict[str, np.ndarray]
    metadata: dict[str, Any]
    auc: float


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    written = write_tables(tmp_path_factory.mktemp("tables"))
    return {name: written[name] for name in SITES}


@pytest.fixture(scope="module")
def study_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's study for three of its hospitals, two rounds, and batches of all records."""
    folder = tmp_path_factory.mktemp("study")
    text = (REPOSITORY / "demo" / "study.toml").read_text()
    for old, new in {
        'sites = ["north", "south", "east", "west"]': f"sites = {json.dumps(SITES)}",
        "batch_size = 32": "batch_size = 4096",
        "count = 20": f"count = {ROUNDS}",
        "deadline_s = 120": "deadline_s = 300",
    }.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "schema.toml").write_text(SCHEMA.read_text())
    (folder / "study.toml").write_text(text)
    return folder / "study.toml"


@pytest.fixture(scope="module")
def own(consortium: Consortium, study_file: Path, tables: dict[str, Path]) -> tuple[Outcome, RoundResult]:
    """On Quorate's own transport, with the last round's result."""
    for name, table in tables.items():
        consortium.register(name, DATASET, table, SCHEMA)
    consortium.approved(study_file, lambda _: [])
    run = consortium.start("malignancy")
    view = consortium.await_end(run)
    return outcome(consortium.folder(run) / "model.npz", tables), view.results[-1]


@pytest.fixture
def prepared(study_file: Path, tables: dict[str, Path], tmp_path: Path) -> Path:
    """What the example's own program writes."""
    prepare = runpy.run_path(str(APP / "prepare.py"))["prepare"]
    prepare(study_file, tmp_path, tables)
    return tmp_path


def outcome(model: Path, tables: dict[str, Path]) -> Outcome:
    schema = parse_schema(read_schema(SCHEMA), "the demo's schema")
    with np.load(model, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored}
    metadata = json.loads(arrays.pop("__metadata__").tobytes())
    scores, truths = [], []
    for path in tables.values():
        table = read_table(path, schema)
        held_out = evaluation_part(DATASET, table.records, 0.2)
        positive = metadata["classes"].index("malignant")
        scores.append(predict(arrays, metadata, table)[held_out][:, positive])
        truths.append(np.asarray(table.labels)[held_out] == positive)
    return Outcome(arrays, metadata, _auc(np.concatenate(scores), np.concatenate(truths)))


def _auc(scores: np.ndarray, truths: np.ndarray) -> float:
    """The share of pairs that are in the right order."""
    pairs = scores[truths][:, None] - scores[~truths][None, :]
    return float(np.mean(pairs > 0) + np.mean(pairs == 0) / 2)


def assert_same(ours: Outcome, theirs: Outcome) -> None:
    assert ours.arrays.keys() == theirs.arrays.keys()
    for name, values in ours.arrays.items():
        np.testing.assert_allclose(theirs.arrays[name], values, rtol=0, atol=ATOL)
        assert np.abs(values).max() > 1000 * ATOL
    assert ours.metadata == theirs.metadata
    assert ours.auc == pytest.approx(theirs.auc, abs=1e-3)
    assert ours.auc > 0.95


def test_the_yardstick_is_repeatable(
    consortium: Consortium, own: tuple[Outcome, RoundResult], tables: dict[str, Path]
) -> None:
    """Without this, the comparisons below say nothing."""
    run = consortium.start("malignancy")
    consortium.await_end(run)
    assert_same(own[0], outcome(consortium.folder(run) / "model.npz", tables))
    assert own[1].contributed == SITES


def test_a_study_runs_on_a_stock_superlink_with_supernodes(
    own: tuple[Outcome, RoundResult], prepared: Path, tables: dict[str, Path]
) -> None:
    configs = [{"quorate-site": str(prepared / "sites" / f"{name}.json")} for name in SITES]
    config: dict[str, str | int | float] = {"study": str(prepared / "study.json"), "output": str(prepared)}
    with StockFlower(len(SITES), node_configs=configs) as flower:
        flower.run(APP, RUN_S, config)
    assert_same(own[0], outcome(prepared / "model.npz", tables))


def test_a_study_runs_in_flowers_simulation(
    own: tuple[Outcome, RoundResult], prepared: Path, tables: dict[str, Path]
) -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("NOT TESTED: Flower's simulation needs ray: pip install 'quorate[simulation]'")
    config: dict[str, str | int | float] = {
        "study": str(prepared / "study.json"),
        "output": str(prepared),
        "quorate-sites": str(prepared / "sites"),
    }
    with StockFlower(len(SITES), simulated=True) as flower:
        flower.run(APP, RUN_S, config)
    assert_same(own[0], outcome(prepared / "model.npz", tables))
