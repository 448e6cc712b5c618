"""The drill: back up in the middle of a study, lose the disks of the server and of a site, restore, go on."""

from __future__ import annotations

import shutil

import pytest

from quorate_server.cli import app as server_command
from tests.integration.crash_kit import ALL, OTHERS, CrashTest

pytestmark = pytest.mark.integration


def test_a_study_goes_on_after_the_disks_of_the_server_and_of_a_site_were_lost(consortium: CrashTest) -> None:
    """What was backed up while all ran is enough: rounds that were committed stay, and the site builds its model anew
    from what the restored server kept."""
    root, east = consortium.root, consortium.sites["east"]
    (root / "passphrase").write_text("a passphrase for the drill\n")
    sealed = ("--passphrase-file", str(root / "passphrase"))
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
    east.command("restore", root / "east.backup", *sealed)
    east.control.mkdir(parents=True)
    consortium.start_server()
    consortium.start_site("east")

    view = consortium.require_shares(run, ALL, OTHERS, ALL)  # what east's task did before was written on the lost disk
    assert dict(view.results[1].missing) == {"east": "site_interrupted"}
    assert {consortium.sites[name].began("train-2") for name in OTHERS} == {1}
    assert east.began("train-3") == 1
