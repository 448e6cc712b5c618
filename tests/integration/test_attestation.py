"""An attested aggregator with real processes: four hospitals, their server, and the process that adds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.consortium import BIN, free_port
from quorate_server.aggregator.cli import app as aggregator_command
from tests.consortium.processes import Daemon, installed
from tests.integration.conftest import copies
from tests.integration.crash_kit import PACKAGES, SECRET, CrashTest, Template, write_study

pytestmark = pytest.mark.integration

ALL = set(SECRET.sites)


class Attested(CrashTest):
    """A consortium whose studies demand an attested aggregator."""

    aggregator: Daemon
    address_of_aggregator: str
    key: Path


def study_with(
    consortium: CrashTest, name: str, rounds: str, policy: str, mode: str = "secagg", more: str = "", extra: str = ""
) -> None:
    """Publish a study that demands a machine with this policy, and have all sites approve it."""
    with installed(PACKAGES):
        file = write_study(
            consortium.root, name, SECRET.sites, SECRET.studies[rounds], mode, "operator", seed=consortium._agreed
        )
        consortium._agreed += 1
        text = file.read_text().replace("[protection]", f"{extra}[protection]")
        file.write_text(text + f"{more}[attestation]\nrequired = true\n[attestation.policy]\n{policy}\n")
        consortium.publish(file)
        for site in consortium.sites.values():
            site.command("approve", name, "--dataset", site.name)


def public_key(key: Path) -> str:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    return load_pem_private_key(key.read_bytes(), None).public_key().public_bytes_raw().hex()  # type: ignore[union-attr]


@pytest.fixture
def consortium(secret_template: Template, tmp_path: Path) -> Iterator[CrashTest]:
    address = f"127.0.0.1:{free_port()}"
    with copies(secret_template, tmp_path) as make:
        made = make(aggregator=json.dumps(address))
        aggregator_command(["make-key", str(made.root / "software.pem")], standalone_mode=False)
        for site in made.sites.values():
            policy = site.folder / "policy.toml"
            text = policy.read_text().replace('["none", "secagg"]', '["enclave", "none", "secagg"]')
            policy.write_text(text + "\n[attestation]\nsoftware = true\n")
        made.start()
        made.address_of_aggregator = address
        start_aggregator(made)
        yield made
        made.aggregator.end()


def start_aggregator(made: CrashTest) -> None:
    line = (BIN / "quorate-aggregator", "run", "--attester", "software", "--key", made.root / "software.pem")
    made.aggregator = Daemon(
        made.root / "aggregator.log", *line, "--listen", made.address_of_aggregator, packages=PACKAGES
    )


def test_a_run_is_added_up_by_the_attested_machine(consortium: CrashTest) -> None:
    key = public_key(consortium.root / "software.pem")
    study_with(consortium, "attested", "brisk", f'environment = "development"\nsoftware.keys = ["{key}"]')
    run = super(CrashTest, consortium).run("attested")
    consortium.require_whole(run, ALL, ALL, ALL)


def test_an_attested_machine_opens_updates_and_adds_them(consortium: CrashTest) -> None:
    key = public_key(consortium.root / "software.pem")
    study_with(
        consortium, "opened", "thrifty", f'environment = "development"\nsoftware.keys = ["{key}"]', mode="enclave"
    )
    run = super(CrashTest, consortium).run("opened")
    consortium.require_whole(run, ALL, ALL, ALL)
