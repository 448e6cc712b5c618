"""Single messages of a stock ServerApp over real daemons: what arrives, what comes back, and what must not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from flwr.common.constant import ErrorCode

from quorate.study.study import Study
from quorate_server.flower.grid import node_id, run_number
from tests.compat.consortium_kit import CANARY, SITES, TASKS, AppConsortium
from tests.consortium.processes import eventually

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def study(consortium: AppConsortium) -> Study:
    config = {"text": "all of it", "rate": 0.25, "flag": True}
    return consortium.guest("messages", "compat_app.messages:app", config)


@pytest.fixture(scope="module")
def run(consortium: AppConsortium, study: Study) -> str:
    """All calls of the ServerApp, made once; north's app is held in one of them until that was given up."""
    run = consortium.run(study.name, north="wait")
    consortium.await_end(run)
    consortium.sites["north"].release("wait")
    return run


@pytest.fixture(scope="module")
def result(consortium: AppConsortium, run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((consortium.folder(run) / "result.json").read_text())
    return found


def test_every_site_is_a_node(study: Study, result: dict[str, Any], run: str) -> None:
    assert result["nodes"] == sorted(node_id(study, site) for site in study.site_names)
    assert result["run_id"] == str(run_number(run))


def test_a_client_app_gets_its_contexts(study: Study, result: dict[str, Any], run: str) -> None:
    """run_config from the study, node_config from the site's approval, the ids of both."""
    (first, _) = result["about"]
    of = {answer["node_id"]: answer for answer in first}
    for number, site in enumerate(SITES):
        answer = of[str(node_id(study, site))]
        assert answer["src"] == answer["node_id"]
        assert answer["node"] == str(number)
        assert (answer["text"], answer["rate"], answer["flag"]) == ("all of it", 0.25, True)
        assert answer["run_id"] == str(run_number(run))
        assert answer["group_id"] == "1"


def test_what_a_client_app_keeps_in_its_context_is_there_at_the_next_message(result: dict[str, Any]) -> None:
    counts = [[answer["messages"] for answer in answers] for answers in result["about"]]
    assert counts == [[1, 1, 1], [2, 2, 2]]
    assert [answer["messages"] for answer in result["later"]] == [3, 3, 3]  # also after a worker was ended


def test_a_client_app_that_raises_is_an_error_with_a_code_and_no_text(result: dict[str, Any]) -> None:
    assert result["trouble"] == [[False, ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "task_failed"]] * 3


def test_the_text_of_an_apps_exception_is_nowhere_at_the_server(consortium: AppConsortium, run: str) -> None:
    own_logs = [(site.folder / "log" / "tasks.log").read_text() for site in consortium.sites.values()]
    assert all(CANARY in log for log in own_logs)
    server = [path for path in consortium.server_dir.rglob("*") if path.is_file()]
    assert any(path.name == "worker.log" for path in server)
    for path in [*server, consortium.root / "server.log", *consortium.root.glob("site-*.log")]:
        assert CANARY.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("size", ["small", "beyond-one-message", "twenty-megabytes"])
def test_contents_of_any_size_travel_both_ways(result: dict[str, Any], size: str) -> None:
    assert result["large"][size] == [True, True, True]


def test_a_generator_may_change_a_content_between_two_messages(result: dict[str, Any]) -> None:
    assert result["lazy"] == [-0.0, -1.0, -2.0]


def test_replies_that_are_there_at_the_end_of_the_time_are_given_back(result: dict[str, Any]) -> None:
    assert result["partial"] == [2, True]


def test_what_nobody_waits_for_any_more_is_stopped_at_the_site(consortium: AppConsortium, run: str) -> None:
    log = consortium.sites["north"].log
    assert f"run={run}" in log
    refused = [line for line in log.splitlines() if "work_withdrawn" in line and run in line]
    assert len(refused) == 1


def test_nothing_of_a_run_that_is_over_stays_in_a_spool(consortium: AppConsortium, run: str) -> None:
    eventually(lambda: not consortium.spooled(), "the server's spool to be empty")


def test_a_site_keeps_the_last_two_turns_and_no_more(consortium: AppConsortium, run: str) -> None:
    """The bulk data came before those."""
    assert [consortium.kept(site, run) for site in SITES] == [0, 0, 0]


def test_an_app_of_flowers_earlier_kind_runs_too(consortium: AppConsortium) -> None:
    """NumPyClient, server_fn, and a strategy that asks its clients from several threads at once."""
    import numpy as np

    study = consortium.guest("legacy", "compat_app.legacy:server", {"rounds": 2}, task=TASKS[2])
    run = consortium.run(study.name)
    consortium.await_end(run)
    with np.load(consortium.folder(run) / "model.npz") as model:
        # Each round adds the average of 0, 1, 2, weighted by 10, 20, 30.
        np.testing.assert_allclose(model["arr_0"], np.full(3, 2 * 80 / 60))
