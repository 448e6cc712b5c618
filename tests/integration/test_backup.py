"""The drill: back up in the middle of a study, lose the disks of the server and of a site, restore, go on."""

from __future__ import annotations

import shutil

import pytest

from tests.integration.consortium_kit import ALL, HOLD, OTHERS, Consortium, contributed
from tests.integration.processes import commands

pytestmark = pytest.mark.integration


def test_a_study_goes_on_after_the_disks_of_the_server_and_of_a_site_were_lost(consortium: Consortium) -> None:
    """What was backed up while all ran is enough: rounds that were committed stay, and the site builds its model anew
    from what the restored server kept."""
    root, east = consortium.root, consortium.sites["east"]
    (root / "passphrase").write_text("a passphrase for the drill\n")
    sealed = ("--passphrase-file", root / "passphrase")
    east.order("train-2", HOLD)
    run = consortium.run("patient")
    east.await_step("train-2")
    consortium.await_phase(run, "train", ("north", "west"))

    commands("quorate-server", ["backup", root / "server.backup", "--state", consortium.server_dir, *sealed])
    commands("quorate-client", ["backup", root / "east.backup", "--state", east.folder, *sealed])
    running, site = consortium.running, east.running
    site.kill()
    running.kill()
    for folder in (consortium.server_dir, east.folder):
        shutil.rmtree(folder)

    commands("quorate-server", ["restore", root / "server.backup", "--state", consortium.server_dir, *sealed])
    commands("quorate-client", ["restore", root / "east.backup", "--state", east.folder, *sealed])
    east.control.mkdir(parents=True)
    consortium.start_server()
    consortium.start_site("east")

    view = consortium.await_end(run)
    consortium.require_shares(view)
    assert contributed(view) == [ALL, OTHERS, ALL]
    assert dict(view.results[1].missing) == {"east": "site_interrupted"}
    assert {consortium.sites[name].began("train-2") for name in OTHERS} == {1}
    assert east.began("train-3") == 1
    assert consortium.presence() == dict.fromkeys(consortium.plan.sites, "online")
