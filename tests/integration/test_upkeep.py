"""Upgrade, backup and restore in the middle of a study.

The drill: back up, lose the disks of the server and of a site, restore, go on. And a release: the server first, then
the sites, one after the other.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest

from quorate.study.task_digest import task_digest
from quorate.versions import series_of
from quorate_client.site.folder import SiteFolder
from quorate_server.cli import app as server_command
from tests.consortium.processes import eventually, installed
from tests.consortium.running import Site
from tests.integration.conftest import copies
from tests.integration.crash_kit import (
    ALL,
    OTHERS,
    PACKAGES,
    SECRET,
    CrashTest,
    Template,
    write_study,
)
from tests.integration.releases import NEXT_LAYOUT, NEXT_SITE_LAYOUT, THIS, next_release, release

pytestmark = pytest.mark.integration

TOO_OLD = "0.0.9"


def sealing(consortium: CrashTest) -> tuple[str, str]:
    """The options of the commands."""
    passphrase = consortium.root / "passphrase"
    passphrase.write_text("a passphrase for the drill\n")
    return ("--passphrase-file", str(passphrase))


def restore_east(consortium: CrashTest, backup: Path, *options: str) -> None:
    """On an empty disk; then its daemon is started."""
    east = consortium.sites["east"]
    east.command("restore", backup, *options)
    east.control.mkdir(parents=True)
    consortium.start_site("east")


def test_a_study_goes_on_after_the_disks_of_the_server_and_of_a_site_were_lost(consortium: CrashTest) -> None:
    """What was backed up while all ran is enough: rounds that were committed stay, and the site builds its model anew
    from what the restored server kept."""
    root, east = consortium.root, consortium.sites["east"]
    sealed = sealing(consortium)
    server = ("--state", str(consortium.server_dir), *sealed)
    run = consortium.run("patient", east="train-2")
    east.await_step("train-2")
    consortium.await_phase(run, "upload", *OTHERS)

    server_command(["backup", str(root / "server.backup"), *server], standalone_mode=False)
    east.command("backup", root / "east.backup", *sealed)
    east.running.kill()
    consortium.running.kill()
    for folder in (consortium.server_dir, east.folder):
        shutil.rmtree(folder)

    server_command(["restore", str(root / "server.backup"), *server], standalone_mode=False)
    consortium.start_server()
    restore_east(consortium, root / "east.backup", *sealed)

    view = consortium.require_shares(run, ALL, OTHERS, ALL)  # what east's task did before was written on the lost disk
    assert dict(view.results[1].missing) == {"east": "site_interrupted"}
    assert {consortium.sites[name].began("train-2") for name in OTHERS} == {1}
    assert east.began("train-3") == 1


@pytest.fixture
def secret(secret_template: Template, tmp_path: Path) -> Iterator[CrashTest]:
    """Four sites, whose studies are under secure aggregation."""
    with copies(secret_template, tmp_path) as make:
        made = make()
        made.start()
        yield made


def test_a_site_that_was_restored_sits_out_the_secure_run_in_which_it_voted_since(secret: CrashTest) -> None:
    """It is told of no copy, for its next session number is a new one: it does not know what it voted for, says so, and
    the run ends without it. In the next one it takes part."""
    everybody, others = set(SECRET.sites), set(SECRET.sites) - {"east"}
    east, west, backup = secret.sites["east"], secret.sites["west"], secret.root / "east.backup"
    sealed = sealing(secret)
    run = secret.run("brisk", west=("train-1", "train-2"), east="train-2")
    west.await_step("train-1")
    east.command("backup", backup, *sealed)
    west.release("train-1")
    west.await_step("train-2")  # which takes the votes on round 1
    east.await_step("train-2")
    east.running.kill()
    shutil.rmtree(east.folder)

    restore_east(secret, backup, *sealed)
    secret.await_sites()
    west.release("train-2")

    view = secret.require_shares(run, everybody, others, others)
    assert dict(view.results[2].missing) == {"east": "votes_forgotten"}
    assert "stop the run and start another" in east.log
    assert "identity_cloned" not in east.log
    assert east.steps() == []
    secret.require_shares(secret.run("brisk"), everybody, everybody, everybody)


# --- a release ---


@dataclass(frozen=True)
class Upgrade:
    """The next release, and with it the next version of the task."""

    packages: tuple[Path, Path]
    version: str

    @classmethod
    def make(cls, root: Path) -> Self:
        code, version = next_release(root / "next-release")
        task = shutil.copytree(PACKAGES[0], root / "next-task")
        module = task / "crash_test_task.py"
        was = module.read_text()
        module.write_text(was.replace("{os.getpid()}", "{os.getpid()} next"))  # it reads data and trains alike
        assert module.read_text() != was
        return cls((code, task), version)


def agree_on_two_versions(consortium: CrashTest, name: str, upgrade: Upgrade) -> None:
    """A study of four rounds that waits for its sites, published from the next version of its task; today's is accepted
    too."""
    with installed(PACKAGES):
        today = task_digest("crash-test")
    rounds = SECRET.studies["patient"] | {"count": 4}
    file = write_study(consortium.root, name, SECRET.sites, rounds, "secagg", "operator", dimension=10_000, also=today)
    with installed(upgrade.packages[1:]):
        consortium.publish(file)
    with installed(PACKAGES):
        for site in consortium.sites.values():
            site.command("approve", name, "--dataset", site.name)


def versions(consortium: CrashTest) -> dict[str, str]:
    """What each site ran last, as the operator is told."""
    return {site.name: site.version for site in consortium.operator.sites()}


def trained_by_the_next_task(consortium: CrashTest, number: int) -> set[str]:
    """At whom, in a round."""
    return {
        name
        for name, site in consortium.sites.items()
        for line in (site.control / "steps").read_text().splitlines()
        if line.startswith(f"train-{number} ") and line.endswith(" next")
    }


def leave(site: Site) -> None:
    """Its daemon ends politely. The folder is free some seconds before the process is gone."""
    site.running.process.terminate()
    eventually(lambda: not SiteFolder(site.folder).daemon_runs(), f"the daemon of {site.name} to end")


def require_refused(consortium: CrashTest, site: Site, wanted: str) -> None:
    """A release from before the one before is installed there by mistake."""
    site.packages = (release(consortium.root / "too-old", TOO_OLD), *PACKAGES)
    consortium.start_site(site.name)
    eventually(lambda: "version_refused" in site.log, "the word on a release that is too old")
    assert f"Install a version of {series_of(wanted)} at the site" in site.log
    assert consortium.presence()[site.name] == "offline"
    site.running.kill()


def test_server_and_sites_are_upgraded_one_after_the_other_while_a_study_runs(secret: CrashTest) -> None:
    """Nobody is missed in any round: a site goes down when its update is at the server and another one still trains.

    A site with a release that is too old for the new server is told so, and the run does not notice.
    """
    everybody, upgrade = set(SECRET.sites), Upgrade.make(secret.root)
    agree_on_two_versions(secret, "rolling", upgrade)
    run = secret.run("rolling", west=("train-1", "train-2", "train-3"), east="train-4")
    ran = dict.fromkeys(everybody, THIS)

    secret.sites["west"].await_step("train-1")
    assert secret.running.stop() == 0
    secret.packages = upgrade.packages
    secret.start_server()
    secret.await_sites()
    assert (secret.server_dir / f"server.sqlite.before-{NEXT_LAYOUT}").exists()

    turns = (("east", "west"), ("south", "west"), ("north", "west"), ("west", "east"))
    for number, (name, holder) in enumerate(turns, 1):
        site = secret.sites[name]
        secret.sites[holder].await_step(f"train-{number}")
        secret.await_phase(run, "upload", name)
        assert versions(secret) == ran
        leave(site)
        if name == "south":
            require_refused(secret, site, upgrade.version)
            assert versions(secret) == ran | {name: TOO_OLD}
        site.packages = upgrade.packages
        secret.restart(name)
        ran[name] = upgrade.version
        secret.sites[holder].release(f"train-{number}")

    secret.require_whole(run, everybody, everybody, everybody, everybody)
    assert versions(secret) == dict.fromkeys(everybody, upgrade.version)
    assert [trained_by_the_next_task(secret, number) for number in (1, 2, 3, 4)] == [
        set(),
        {"east"},
        {"east", "south"},
        {"east", "south", "north"},
    ]
    for site in secret.sites.values():
        assert (site.folder / f"state.sqlite.before-{NEXT_SITE_LAYOUT}").exists()
