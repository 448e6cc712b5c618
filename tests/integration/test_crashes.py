"""Processes that die in the middle of a round: nothing is lost, nothing is counted or trained twice."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable

import psutil
import pytest

from tests.integration.crash_kit import ALL, OTHERS, SITES, UPDATE_BYTES, CrashTest
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.integration


# --- the server ---


@pytest.mark.parametrize(
    ("phase", "held", "step", "replied"),
    [
        ("upload", ("west",), "measure", ("east", "north")),
        ("upload", SITES, "train-2", ()),
        ("upload", ("west",), "train-2", ("east", "north")),
        ("upload", ("west",), "evaluate-2", ("east", "north")),
        ("release", ("east",), "export-3", ()),
    ],
    ids=["statistics", "train before any reply", "train after some replies", "evaluate", "release"],
)
def test_a_run_goes_on_by_itself_when_the_server_was_killed_in(
    consortium: CrashTest, phase: str, held: tuple[str, ...], step: str, replied: tuple[str, ...]
) -> None:
    """The restarted server asks only for what it has not got; what sites did meanwhile counts, each round once."""
    run = consortium.run("patient", **dict.fromkeys(held, step))
    for name in held:
        consortium.sites[name].await_step(step)
    consortium.await_phase(run, phase, *replied)
    consortium.running.kill()
    for name in held:  # they end their work while nobody is there to take it
        consortium.sites[name].release(step)
    consortium.start_server()
    consortium.require_whole(run, ALL, ALL, ALL)
    for name in (*held, *replied):
        assert consortium.sites[name].began(step) == 1


def test_a_run_goes_on_by_itself_when_the_server_was_killed_in_a_checkpoint(consortium: CrashTest) -> None:
    """The site that was asked for the checkpoint is asked again; the round before it counts once."""
    run = consortium.run("patient", west="evaluate-3")
    consortium.sites["west"].await_step("evaluate-3")
    consortium.await_phase(run, "upload", "east", "north")
    for name in ("east", "north"):
        consortium.sites[name].running.freeze()
    consortium.sites["west"].release("evaluate-3")
    consortium.await_phase(run, "checkpoint")
    consortium.running.kill()
    for name in ("east", "north"):
        consortium.sites[name].running.thaw()
    consortium.start_server()
    consortium.require_whole(run, ALL, ALL, ALL)


def test_a_server_that_is_killed_again_and_again_counts_each_round_once(consortium: CrashTest) -> None:
    """Kills that are not timed by anybody's phase."""
    run = consortium.run("patient")
    for _ in range(3):
        consortium.await_run(run, lambda view: True, "to be seen")
        consortium.running.kill()
        consortium.start_server()
    assert consortium.require_whole(run).results[-1].contributed == SITES


def test_the_death_of_the_runs_worker_costs_nothing(consortium: CrashTest) -> None:
    """Its successor takes the replies that are there and waits for the rest."""
    west = consortium.sites["west"]
    run = consortium.run("patient", west="train-2")
    consortium.await_phase(run, "upload", "east", "north")
    west.await_step("train-2")
    consortium.kill_run_worker()
    west.release("train-2")
    consortium.require_whole(run, ALL, ALL, ALL)


# --- a site ---


def test_a_site_that_is_killed_while_it_trains_is_missed_for_that_round_only(consortium: CrashTest) -> None:
    """The round closes with the others; the site is back in the next one, and the work that it lost is not repeated."""
    east, north = consortium.sites["east"], consortium.sites["north"]
    run = consortium.run("brisk", east="train-2", north="evaluate-2")
    east.await_step("train-2")
    east.running.kill()
    north.await_step("evaluate-2")
    east.release("train-2")
    consortium.restart("east")
    north.release("evaluate-2")
    consortium.require_whole(run, ALL, OTHERS, ALL, east="absent")
    assert east.began("train-2") == 1
    assert "site_interrupted" in east.log


def test_a_site_that_comes_back_in_time_says_that_it_was_interrupted(consortium: CrashTest) -> None:
    """It does not train twice in a round, and nobody waits for it until the deadline."""
    east = consortium.sites["east"]
    run = consortium.run("patient", east="train-2")
    east.await_step("train-2")
    east.running.kill()
    consortium.start_site("east")
    consortium.require_whole(run, ALL, OTHERS, ALL, east="site_interrupted")
    assert east.began("train-2") == 1


@pytest.mark.parametrize("killed", ["the server", "the site"])
def test_an_upload_goes_on_where_a_kill_left_it(consortium: CrashTest, killed: str) -> None:
    """What had arrived whole is not sent again, a torn frame is; the site trains once, and uploads once."""
    north = consortium.sites["north"]
    with consortium.cut_upload("patient", north="evaluate-2") as (run, line):
        consortium.running.kill() if killed == "the server" else consortium.sites["east"].running.kill()
        line.full_speed()
        sent_before = line.sent_bytes
        consortium.start_server() if killed == "the server" else consortium.start_site("east")
        north.await_step("evaluate-2")  # the update is in; a checkpoint, of the same size, comes later
        assert line.sent_bytes - sent_before < UPDATE_BYTES
        north.release("evaluate-2")
        consortium.require_whole(run, ALL, ALL, ALL)


def test_an_upload_whose_round_closed_meanwhile_leaves_nothing_behind(consortium: CrashTest) -> None:
    """The round closes without the site that was killed in its upload; what had arrived is removed."""
    north = consortium.sites["north"]
    with consortium.cut_upload("brisk", north="evaluate-2") as (run, line):
        consortium.sites["east"].running.kill()
        line.full_speed()
        north.await_step("evaluate-2")
        consortium.restart("east")
        north.release("evaluate-2")
        consortium.require_whole(run, ALL, OTHERS, ALL, east="absent")
    assert consortium.spooled() == []


def test_what_a_site_delivered_before_it_was_killed_counts(consortium: CrashTest) -> None:
    """Its update is in the round, though it is dead when the round closes; after its restart it goes on."""
    east, north, west = (consortium.sites[name] for name in SITES)
    run = consortium.run("brisk", west="train-2", north="evaluate-2")
    west.await_step("train-2")
    consortium.await_phase(run, "upload", "east", "north")
    east.running.kill()
    west.release("train-2")
    north.await_step("evaluate-2")
    consortium.restart("east")
    north.release("evaluate-2")
    consortium.require_whole(run, ALL, ALL, ALL)


def test_the_death_of_a_tasks_process_ends_the_job_and_not_the_daemon(consortium: CrashTest) -> None:
    """The operator sees ``task_crashed``; the daemon lives, evaluates in the same round and trains in the next."""
    east = consortium.sites["east"]
    run = consortium.run("patient", east="train-2")
    os.kill(east.await_step("train-2"), signal.SIGKILL)
    consortium.require_whole(run, ALL, OTHERS, ALL, east="task_crashed")
    assert east.running.runs
    assert east.began("evaluate-2") == 1


def test_a_frozen_site_is_absent_and_takes_part_again_when_it_thaws(found: Callable[..., CrashTest]) -> None:
    """A stopped process keeps its connection open: the missing heartbeats tell."""
    consortium = found(heartbeat_s="0.3", silent_after_s="3.0")
    consortium.start()
    east, north = consortium.sites["east"], consortium.sites["north"]
    run = consortium.run("brisk", east="train-2", north="evaluate-2")
    east.await_step("train-2")
    east.running.freeze()
    consortium.await_sites(east="silent")
    north.await_step("evaluate-2")
    east.release("train-2")
    east.running.thaw()
    consortium.await_sites()
    north.release("evaluate-2")
    consortium.require_whole(run, ALL, OTHERS, ALL, east="absent")


def test_a_site_that_is_frozen_past_the_deadline_is_late(consortium: CrashTest) -> None:
    """Nobody noticed that it stood still, so the round waits until its deadline, and not longer."""
    east, north = consortium.sites["east"], consortium.sites["north"]
    run = consortium.run("hasty", east="train-1", north="evaluate-1")
    east.await_step("train-1")
    east.running.freeze()
    north.await_step("evaluate-1")
    east.release("train-1")
    east.running.thaw()
    north.release("evaluate-1")
    consortium.require_whole(run, OTHERS, ALL, east="late")


# --- two daemons with one identity ---


def test_a_copy_of_a_running_site_takes_over_and_the_original_stops(consortium: CrashTest) -> None:
    """Of two daemons with one identity one goes on; the other ends with exit code 10 and says what that means."""
    east = consortium.sites["east"]
    run = consortium.run("patient", east="train-2")
    east.await_step("train-2")
    consortium.start_copy("east")
    assert east.running.exit_code() == 10
    assert "keys were copied" in east.log
    consortium.require_whole(run, ALL, OTHERS, ALL, east="site_interrupted")


def test_a_stale_copy_of_a_site_is_turned_away(consortium: CrashTest) -> None:
    """A restored backup shows a session number that was used: exit code 11. The site's own daemon is not disturbed."""
    east = consortium.sites["east"]
    stale = consortium.root / "stale"
    shutil.copytree(consortium.template.founded.sites["east"].folder, stale)
    shutil.copy(east.folder / "config.toml", stale)
    run = consortium.run("patient", east="train-2")
    east.await_step("train-2")
    copy = consortium.start_copy("east", stale)
    assert copy.exit_code() == 11
    assert "revoke and invite the site again" in copy.log.read_text()
    east.release("train-2")
    consortium.require_whole(run, ALL, ALL, ALL)


# --- afterwards ---


def test_nothing_is_left_running_when_the_daemons_were_killed(consortium: CrashTest) -> None:
    """Workers die with the daemon that started them: of a server, of a site, however it ended."""
    consortium.run("patient", **dict.fromkeys(SITES, "train-1"))
    for site in consortium.sites.values():
        site.await_step("train-1")
    worker = consortium.run_worker()
    daemons = [consortium.running, *(site.running for site in consortium.sites.values())]
    children = [child for daemon in daemons for child in daemon.children()]
    assert worker in children
    assert len(children) >= 1 + len(SITES)
    for daemon in daemons:
        daemon.kill()
    _, alive = psutil.wait_procs(children, PATIENCE_S)
    assert alive == []
