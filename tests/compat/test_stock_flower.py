"""Our own apps where stock Flower is the host: a SuperLink with SuperNodes, and Flower's simulation."""

from __future__ import annotations

import importlib.util
import re
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.flower_peer import StockFlower
from quorate_client.rounds.model.state import THETA_OFFSET
from tests.compat.consortium_kit import SITES
from tests.compat.malignancy import APP, STUDIES, Outcome, assert_same, outcome
from tests.integration.test_secagg import samples, seen

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.timeout(1800)]

RUN_S = 1500.0


def node_configs(prepared: Path) -> list[dict[str, str]]:
    return [{"quorate-site": str(prepared / "sites" / f"{name}.json")} for name in SITES]


def run_config(prepared: Path) -> dict[str, str | int | float]:
    return {"study": str(prepared / "study.json"), "output": str(prepared)}


def stored(database: Path) -> list[bytes]:
    """What the SuperLink has written: SQLite overwrites nothing when it deletes."""
    return [path.read_bytes() for path in database.parent.glob(f"{database.name}*")]


def states(prepared: Path) -> dict[str, list[re.Pattern[bytes]]]:
    """Pieces of the models that sites hold, by the file's name."""
    return {
        path.name: samples(path.read_bytes()[THETA_OFFSET:]) for path in prepared.glob("state-*/work/runs/*/*.state")
    }


def opened(prepared: Path, log: str) -> Path:
    """The model that was released to the operator, as only the operator's key opens it."""
    number = re.search(r"started run (\d+)", log)
    assert number is not None
    runpy.run_path(str(APP / "open_model.py"))["open_model"](prepared, int(number[1]), prepared / "opened.npz")
    return prepared / "opened.npz"


def test_a_study_runs_on_a_stock_superlink_with_supernodes(
    own_transport: dict[str, Outcome], prepared: Path, tables: dict[str, Path]
) -> None:
    database = prepared / "superlink.sqlite"
    with StockFlower(len(SITES), node_configs=node_configs(prepared), database=database) as flower:
        flower.run(APP, RUN_S, run_config(prepared))
    assert_same(own_transport["none"], outcome(prepared / "model.npz", tables))
    # What makes the test below one: without protection the SuperLink stores the released model.
    assert "model" in seen(stored(database), {"model": samples((prepared / "model.npz").read_bytes())})


def test_a_secret_study_runs_there_too_and_the_superlink_stores_nothing_that_it_can_read(
    own_transport: dict[str, Outcome], prepared_in_secret: Path, tables: dict[str, Path]
) -> None:
    """Each message has a process of its own at the site; the secrets of a sum outlive it."""
    prepared = prepared_in_secret
    database = prepared / "superlink.sqlite"
    with StockFlower(len(SITES), node_configs=node_configs(prepared), database=database) as flower:
        log = flower.run(APP, RUN_S, run_config(prepared))
    model = opened(prepared, log)
    assert_same(own_transport["secagg"], outcome(model, tables))
    keys = [path.read_bytes() for path in prepared.glob("state-*/keys/studies/*.key")]
    assert len(keys) == len(SITES)
    assert len(set(keys)) == 1
    sought = states(prepared) | {
        "model": samples(model.read_bytes()),
        "study key": [re.compile(re.escape(keys[0]))],
    }
    contents = stored(database)
    # It is the right file: what was released lies there sealed.
    assert "sealed" in seen(contents, {"sealed": samples((prepared / "model.npz").read_bytes()[-2000:])})
    assert seen(contents, sought) == set()


@pytest.mark.parametrize("mode", STUDIES)
def test_a_study_runs_in_flowers_simulation(
    own_transport: dict[str, Outcome], prepared_as: Callable[[str], Path], tables: dict[str, Path], mode: str
) -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("NOT TESTED: Flower's simulation needs ray: pip install 'quorate[simulation]'")
    prepared = prepared_as(mode)
    config = run_config(prepared) | {"quorate-sites": str(prepared / "sites")}
    with StockFlower(len(SITES), simulated=True) as flower:
        log = flower.run(APP, RUN_S, config)
    model = prepared / "model.npz" if mode == "none" else opened(prepared, log)
    assert_same(own_transport[mode], outcome(model, tables))
