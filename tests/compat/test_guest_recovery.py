"""A guest app starts again after a crash or a pause: what was answered is not asked twice, the result is the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from quorate.rounds.run import RunState
from quorate.study.study import Study
from tests.compat.consortium_kit import AppConsortium
from tests.compat.reference import run_here
from tests.consortium.processes import eventually

pytestmark = pytest.mark.integration

ROUNDS = 3
STEPS = [f"{kind}-{number}" for number in range(1, ROUNDS + 1) for kind in ("train", "evaluate")]


@pytest.fixture(scope="module")
def study(consortium: AppConsortium) -> Study:
    return consortium.guest("rounds", "compat_app.rounds:app", {"rounds": ROUNDS, "rate": 0.5})


@pytest.fixture(scope="module")
def expected(consortium: AppConsortium, study: Study, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The model that comes out when nothing happens on the way."""
    from compat_app.client_app import app as client
    from compat_app.rounds import app as server

    folder = tmp_path_factory.mktemp("expected")
    configs = {name: {"number": number, "folder": str(folder)} for number, name in enumerate(sorted(consortium.sites))}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_here(server, client, study, configs)
    return model(folder)


@pytest.fixture
def held(consortium: AppConsortium, study: Study) -> Iterator[str]:
    """A run whose second round waits for north; the other two have answered."""
    north = consortium.sites["north"]
    north.order("train-2")
    run = consortium.start_anew(study.name)
    try:
        eventually(lambda: north.began("train-2") and consortium.replies(run) == 8, "north to be the last one")
        yield run
    finally:
        (north.control / "train-2").unlink(missing_ok=True)


def model(folder: Path) -> np.ndarray:
    with np.load(folder / "model.npz") as stored:
        weights: np.ndarray = stored["arr_0"]
    return weights


def require_undisturbed(consortium: AppConsortium, run: str, expected: np.ndarray) -> None:
    """Its model is the one of a run to which nothing happened, and every site did each step once, in order."""
    consortium.await_end(run)
    np.testing.assert_array_equal(model(consortium.folder(run)), expected)
    for site in consortium.sites.values():
        assert [name for name, _ in site.steps()] == STEPS, site.name


def test_a_killed_server_goes_on_where_the_app_was(consortium: AppConsortium, held: str, expected: np.ndarray) -> None:
    """Equal messages are answered from the journal, and a site that is at work stays at it."""
    consortium.running.kill()
    assert consortium.spooled()
    consortium.start_server()
    consortium.await_sites()
    consortium.sites["north"].release("train-2")
    require_undisturbed(consortium, held, expected)
    for name in consortium.sites:
        assert consortium.kept(name, held) == 3, (
            "the last training's and the last evaluation's, where the model came both times"
        )


def test_an_answer_that_was_made_while_the_server_was_away_counts(
    consortium: AppConsortium, held: str, expected: np.ndarray
) -> None:
    consortium.running.kill()
    north = consortium.sites["north"]
    done = north.log.count("work done")
    north.release("train-2")
    eventually(lambda: north.log.count("work done") > done, "north to be done")
    consortium.start_server()
    require_undisturbed(consortium, held, expected)


def test_a_killed_run_worker_is_started_again(consortium: AppConsortium, held: str, expected: np.ndarray) -> None:
    consortium.kill_run_worker()
    consortium.sites["north"].release("train-2")
    require_undisturbed(consortium, held, expected)


def test_a_paused_run_asks_anew_for_what_was_stopped_and_for_nothing_else(
    consortium: AppConsortium, held: str, expected: np.ndarray
) -> None:
    north = consortium.sites["north"]
    stopped = north.log.count("work_withdrawn")
    consortium.operator.pause(held)
    eventually(lambda: north.log.count("work_withdrawn") > stopped, "north to stop")
    north.release("train-2")
    assert consortium.spooled()
    consortium.operator.resume(held)
    consortium.await_end(held)
    np.testing.assert_array_equal(model(consortium.folder(held)), expected)
    for site in consortium.sites.values():
        again = ["train-2"] if site is north else []
        assert site.counts() == Counter(STEPS + again), site.name


def test_a_stopped_run_leaves_nothing_in_the_spool(consortium: AppConsortium, held: str) -> None:
    consortium.operator.stop(held)
    assert consortium.operator.run(held).state is RunState.STOPPED
    eventually(lambda: not consortium.spooled(), "the server's spool to be empty")
