"""Our own apps where stock Flower is the host: a SuperLink with SuperNodes, and Flower's simulation."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from bench.flower_peer import StockFlower
from tests.compat.consortium_kit import SITES
from tests.compat.malignancy import APP, Outcome, assert_same, outcome

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.timeout(900)]

RUN_S = 600.0


def test_a_study_runs_on_a_stock_superlink_with_supernodes(
    own_transport: Outcome, prepared: Path, tables: dict[str, Path]
) -> None:
    configs = [{"quorate-site": str(prepared / "sites" / f"{name}.json")} for name in SITES]
    config: dict[str, str | int | float] = {"study": str(prepared / "study.json"), "output": str(prepared)}
    with StockFlower(len(SITES), node_configs=configs) as flower:
        flower.run(APP, RUN_S, config)
    assert_same(own_transport, outcome(prepared / "model.npz", tables))


def test_a_study_runs_in_flowers_simulation(own_transport: Outcome, prepared: Path, tables: dict[str, Path]) -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("NOT TESTED: Flower's simulation needs ray: pip install 'quorate[simulation]'")
    config: dict[str, str | int | float] = {
        "study": str(prepared / "study.json"),
        "output": str(prepared),
        "quorate-sites": str(prepared / "sites"),
    }
    with StockFlower(len(SITES), simulated=True) as flower:
        flower.run(APP, RUN_S, config)
    assert_same(own_transport, outcome(prepared / "model.npz", tables))
