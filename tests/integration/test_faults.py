"""Machines that are not as they should be: full disks, wrong clocks, tasks that go wrong, too few sites."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from demo.consortium import write_settings
from quorate.rounds.run import RunState
from tests.consortium.processes import Daemon, eventually
from tests.integration.crash_kit import ALL, ALLOCATE, OTHERS, RAISE, SITES, UPDATE_BYTES, CrashTest
from tests.integration.slow_task.crash_test_task import CANARY

pytestmark = pytest.mark.integration

MB = 1_000_000
Found = Callable[..., CrashTest]


# --- tasks ---


@pytest.mark.parametrize(("word", "code"), [(RAISE, "task_failed"), (ALLOCATE, "task_crashed")])
def test_of_a_task_that_goes_wrong_only_the_code_leaves_the_site(found: Found, word: str, code: str) -> None:
    """The round counts without it, the site is back in the next; what the task said stays in the site's own log."""
    consortium = found()
    east = consortium.sites["east"]
    write_settings(east.folder / "config.toml", {"task_memory_mb": "1024"})
    consortium.start()
    east.order("train-2", word)
    run = consortium.run("patient")
    east.await_step("train-2")
    east.release("train-2")
    consortium.require_whole(run, ALL, OTHERS, ALL, east=code)
    assert (CANARY in (east.folder / "log" / "tasks.log").read_text()) == (word == RAISE)
    consortium.running.stop()
    files = [path for path in consortium.server_dir.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [path for path in files if CANARY.encode() in path.read_bytes()]
    assert CANARY not in consortium.running.log.read_text()


def test_a_round_in_which_nothing_was_done_is_not_counted(consortium: CrashTest) -> None:
    """When all tasks raise, the run pauses and says why; a round is done when the next sum tells its metrics."""
    for site in consortium.sites.values():
        site.order("train-2", RAISE)
    run = consortium.run("patient")
    view = consortium.await_pause(run, "quorum_missing", "(task_failed)")
    assert view.results == ()
    assert not view.model_available
    for site in consortium.sites.values():
        site.release("train-2")
    assert consortium.operator.resume(run).state is RunState.RUNNING
    consortium.require_shares(run, ALL, ALL, ALL)


# --- the quorum ---


def test_a_run_without_its_quorum_pauses_and_goes_on_when_the_sites_are_back(consortium: CrashTest) -> None:
    """Never completed without them: paused with a reason, and nothing that was delivered is asked for again."""
    east, north = consortium.sites["east"], consortium.sites["north"]
    run = consortium.run("hasty", east="train-1", north="train-1")
    for site in (east, north):
        site.await_step("train-1")
        site.running.kill()
    assert consortium.await_pause(run, "quorum_missing", "east (absent)", "run resume").results == ()
    for site in (east, north):
        site.release("train-1")
    consortium.restart("east", "north")
    consortium.resume(run)
    consortium.require_shares(run, ALL, ALL)
    assert consortium.sites["west"].began("train-1") == 1


def test_a_paused_run_stays_paused_over_a_restart_of_the_server(consortium: CrashTest) -> None:
    """What an operator decided is not undone by a crash; resumed, the run is whole."""
    run = consortium.run("patient", east="train-2")
    consortium.sites["east"].await_step("train-2")
    consortium.operator.pause(run)
    consortium.sites["east"].release("train-2")
    consortium.running.kill()
    consortium.start_server()
    consortium.await_sites()
    consortium.resume(run)
    consortium.require_shares(run, ALL, ALL, ALL)


# --- disks ---

NAMESPACES = ("unshare", "--user", "--map-root-user", "--mount")


def on_a_small_disk(folder: Path, size_bytes: int) -> tuple[str, ...]:
    """The beginning of a command whose process sees ``folder`` on a disk of its own, with what was in it."""
    probe = subprocess.run(
        [*NAMESPACES, "mount", "-t", "tmpfs", "none", folder], capture_output=True, text=True, check=False
    )
    if probe.returncode != 0:
        pytest.skip(f"NOT TESTED: this machine does not let a test mount a small disk: {probe.stderr.strip()}")
    script = (
        f"cp -a '{folder}' '{folder}.before' && mount -t tmpfs -o size={size_bytes} none '{folder}' && "
        f"cp -a '{folder}.before/.' '{folder}' && exec \"$@\""
    )
    return (*NAMESPACES, "sh", "-c", script, "sh")


class SmallDisk:
    """The disk that a process sees at ``folder``, from outside."""

    def __init__(self, daemon: Daemon, folder: Path) -> None:
        self.folder = Path(f"/proc/{daemon.pid}/root{folder}")
        self._ballast = self.folder / "ballast"

    def free_bytes(self) -> int:
        return shutil.disk_usage(self.folder).free

    def fill(self, leaving_bytes: int) -> None:
        with self._ballast.open("wb") as ballast:
            os.posix_fallocate(ballast.fileno(), 0, self.free_bytes() - leaving_bytes)

    def free(self) -> None:
        self._ballast.unlink()


PLACES = pytest.mark.parametrize("place", ["spool", "."], ids=["the spool", "everything"])


def with_a_small_disk(consortium: CrashTest, place: str) -> SmallDisk:
    """Start everything, the server with a disk of its own at that place in its folder."""
    folder = (consortium.server_dir / place).resolve()
    folder.mkdir(exist_ok=True)
    server = consortium.start_server(*on_a_small_disk(folder, 32 * MB))
    consortium.restart(*SITES)
    return SmallDisk(server, folder)


@PLACES
def test_a_full_disk_at_the_server_pauses_the_run_before_anybody_trains_in_vain(found: Found, place: str) -> None:
    """The reason is ``disk_full``, with what to do; with space again ``run resume`` completes it. Nothing is lost."""
    consortium = found()
    disk = with_a_small_disk(consortium, place)
    west = consortium.sites["west"]
    run = consortium.run("patient", west="measure")
    west.await_step("measure")
    disk.fill(leaving_bytes=UPDATE_BYTES)
    west.release("measure")
    consortium.await_pause(run, "disk_full", "run resume")
    assert not any(site.began("train-1") for site in consortium.sites.values())
    disk.free()
    consortium.operator.resume(run)
    consortium.require_whole(run, ALL, ALL, ALL)


@pytest.mark.parametrize(
    ("step", "place"), [("train-2", "spool"), ("evaluate-3", ".")], ids=["the spool", "the whole disk"]
)
def test_what_sites_did_while_the_servers_disk_filled_up_counts_once_there_is_room(
    found: Found, step: str, place: str
) -> None:
    """Uploads are kept by the sites until there is room; a run that cannot be written down pauses until then, and its
    round does not count before it is stored."""
    consortium = found()
    disk = with_a_small_disk(consortium, place)
    run = consortium.run("patient", **dict.fromkeys(SITES, step))
    for site in consortium.sites.values():
        site.await_step(step)
    disk.fill(leaving_bytes=0)
    for site in consortium.sites.values():
        site.release(step)
    if place == "spool":
        for site in consortium.sites.values():
            met = 'upload broken off" code=disk_full'
            eventually(lambda log=site, met=met: met in log.log, f"{site.name} to meet the full disk")
        disk.free()
    else:
        assert len(consortium.await_pause(run, "disk_full").results) == 2
        disk.free()
        consortium.operator.resume(run)
    consortium.require_whole(run, ALL, ALL, ALL)
    assert "Traceback" not in consortium.running.log.read_text()


@PLACES
def test_a_site_whose_disk_is_full_refuses_and_is_back_when_there_is_space(found: Found, place: str) -> None:
    """The operator sees ``disk_full`` for this site; the round counts without it; the daemon lives."""
    consortium = found()
    east, north = consortium.sites["east"], consortium.sites["north"]
    folder = (east.folder / place).resolve()
    prefix = on_a_small_disk(folder, 32 * MB)
    consortium.start("east")
    daemon = consortium.start_site("east", *prefix)
    consortium.await_sites()
    disk = SmallDisk(daemon, folder)
    if place == ".":
        east.control = disk.folder / "work" / "control"
    run = consortium.run("brisk", east="train-2", north="train-2")
    east.await_step("train-2")
    disk.fill(leaving_bytes=UPDATE_BYTES // 2)
    east.release("train-2")
    eventually(lambda: "code=disk_full" in daemon.log.read_text(), "east to refuse")
    disk.free()
    north.release("train-2")
    consortium.require_whole(run, ALL, OTHERS, ALL, east="disk_full")
    assert daemon.runs


# --- clocks ---

SHIFT = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>
#define S (SHIFT_S)
int clock_gettime(clockid_t id, struct timespec *at) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int done = real(id, at);
    if (id == CLOCK_REALTIME) at->tv_sec += S;
    return done;
}
int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    int (*real)(struct timeval *, void *) = dlsym(RTLD_NEXT, "gettimeofday");
    int done = real(at, zone);
    at->tv_sec += S;
    return done;
}
time_t time(time_t *at) {
    time_t (*real)(time_t *) = dlsym(RTLD_NEXT, "time");
    time_t now = real(0) + S;
    if (at) *at = now;
    return now;
}
"""


@pytest.fixture
def shifted_clock(tmp_path: Path) -> Callable[[int], tuple[str, ...]]:
    """The beginning of a command whose process sees a wall clock that is so many days off, its TLS library included."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("NOT TESTED: without a C compiler a process cannot be shown another clock")
    source = tmp_path / "shift.c"
    source.write_text(SHIFT)

    def prefix(days: int) -> tuple[str, ...]:
        shift = tmp_path / f"shift{days}.so"
        line = [compiler, f"-DSHIFT_S={days * 86_400}", "-shared", "-fPIC", "-o", str(shift), str(source), "-ldl"]
        subprocess.run(line, check=True)
        return ("env", f"LD_PRELOAD={shift}")

    return prefix


def test_sites_whose_clocks_are_two_days_off_take_part_and_say_so(
    found: Found, shifted_clock: Callable[[int], tuple[str, ...]]
) -> None:
    """Certificates are dated so that the handshake holds, deadlines use another clock, and the log says what to do."""
    consortium = found()
    consortium.start_server()
    days = {"east": -2, "north": 2}
    consortium.start_site("west")
    for name, off in days.items():
        consortium.start_site(name, *shifted_clock(off))
    consortium.await_sites()
    consortium.require_whole(consortium.run("patient"), ALL, ALL, ALL)
    for name, off in days.items():
        told = re.search(r"offset_s=(-?\d+) action=.*NTP", consortium.sites[name].log)
        assert told is not None
        assert abs(int(told[1]) + off * 86_400) < 60


def test_a_clock_that_is_too_wrong_for_the_handshake_is_told_from_a_wrong_server(
    found: Found, shifted_clock: Callable[[int], tuple[str, ...]]
) -> None:
    """The site stays out, does not give up, and says which clock to set."""
    consortium = found()
    consortium.start_server()
    for name, off in {"east": -5, "north": 60}.items():
        site = consortium.sites[name]
        daemon = consortium.start_site(name, *shifted_clock(off))
        eventually(lambda log=site: "Set this machine's clock" in log.log, f"{name} to say what is wrong")
        assert "doctor" not in site.log
        assert daemon.runs
        daemon.kill()  # under a clock that is moved, gRPC's own threads may not end
