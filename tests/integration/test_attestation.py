"""An attested aggregator with real processes: four hospitals, their server, and the process that adds.

A line between the server and the aggregator keeps all that passes. The consortium goes from one test to the next.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from demo.consortium import BIN, free_port
from quorate.errors import ProtectionRefusedError
from quorate.process.chunked_aead import sealed_bytes
from quorate.rounds.blobs import Blob
from quorate.rounds.run import RunState
from quorate.wire.messages import reply_from_bytes
from quorate_server.aggregator.cli import app as aggregator_command
from tests.attested_machine import public
from tests.consortium.processes import Daemon, eventually, installed
from tests.consortium.running import Site, contributed
from tests.integration.conftest import copies
from tests.integration.crash_kit import PACKAGES, SECRET, CrashTest, Template, write_study
from tests.integration.relay import Relay, relay

pytestmark = pytest.mark.integration

ALL = set(SECRET.sites)
OTHERS = ALL - {"east"}
READY = "aggregator ready"
STRANGER = Ed25519PrivateKey.from_private_bytes(b"\x09" * 32)


class Attested:
    """A consortium whose studies demand an attested aggregator, the aggregator, and the line to it."""

    def __init__(self, made: CrashTest, line: Relay, port: int) -> None:
        self.made, self.line, self._port = made, line, port
        self._key = made.root / "software.pem"
        self._aggregator: Daemon | None = None
        aggregator_command(["make-key", str(self._key)], standalone_mode=False)
        key = load_pem_private_key(self._key.read_bytes(), None).public_key()
        self.key = key.public_bytes(Encoding.Raw, PublicFormat.Raw).hex()
        for site in made.sites.values():
            policy = site.folder / "policy.toml"
            policy.write_text(policy.read_text().replace('["none", "secagg"]', '["enclave", "none", "secagg"]'))
        self.allow(*made.sites)
        made.start()
        self.start()

    def start(self) -> None:
        line = (BIN / "quorate-aggregator", "run", "--attester", "software", "--key", self._key)
        log = self.made.root / "aggregator.log"
        began = log.read_text().count(READY) if log.exists() else 0
        self._aggregator = Daemon(log, *line, "--listen", f"127.0.0.1:{self._port}", packages=PACKAGES)
        eventually(lambda: log.read_text().count(READY) > began, "the aggregator")

    def kill(self) -> None:
        """The machine loses its power: the aggregator and the processes of its runs, at once."""
        assert self._aggregator is not None
        group = psutil.Process(self._aggregator.pid).children(recursive=True)
        os.killpg(self._aggregator.pid, signal.SIGKILL)
        self._aggregator.process.wait()
        psutil.wait_procs(group)

    def stop(self) -> None:
        if self._aggregator is not None and self._aggregator.runs:
            self._aggregator.stop()

    def allow(self, *names: str, own: str = "", software: bool = True) -> None:
        """What sites demand of a machine; ``own`` is a policy beside the study's."""
        for name in names:
            folder = self.made.sites[name].folder
            text = (folder / "policy.toml").read_text().partition("\n[attestation]")[0]
            (folder / "attestation.toml").write_text(own)
            file = 'file = "attestation.toml"\n' if own else ""
            scratch = folder / "policy.part"
            scratch.write_text(f"{text}\n[attestation]\nsoftware = {json.dumps(software)}\n{file}")
            scratch.rename(folder / "policy.toml")

    def publish(self, name: str, rounds: str = "brisk", mode: str = "secagg") -> None:
        made = self.made
        file = write_study(made.root, name, SECRET.sites, SECRET.studies[rounds], mode, "operator", seed=len(name) + 7)
        policy = f'environment = "development"\nsoftware.keys = ["{self.key}"]'
        file.write_text(f"{file.read_text()}[attestation]\nrequired = true\n[attestation.policy]\n{policy}\n")
        made.publish(file)

    def approve(self, name: str) -> None:
        for site in self.made.sites.values():
            site.command("approve", name, "--dataset", site.name)

    def agree(self, name: str, rounds: str = "brisk", mode: str = "secagg") -> None:
        with installed(PACKAGES):
            self.publish(name, rounds, mode)
            self.approve(name)

    def run(self, study: str, **held: str) -> str:
        return super(CrashTest, self.made).run(study, **held)

    def run_to_upload(self, study: str, **held: str) -> str:
        """A run in which all have uploaded but west, which is held in its second round."""
        run = self.run(study, west="train-2", **held)
        self.made.sites["west"].await_step("train-2")
        self.made.await_phase(run, "upload", *(ALL - {"west"}))
        return run


@pytest.fixture(scope="module")
def kept(secret_template: Template, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attested]:
    port = free_port()
    with relay(port) as line, copies(secret_template, tmp_path_factory.mktemp("attested")) as make:
        line.keep()
        attested = Attested(make(aggregator=json.dumps(f"127.0.0.1:{line.port}")), line, port)
        yield attested
        attested.stop()


@pytest.fixture
def attested(kept: Attested) -> Iterator[Attested]:
    yield kept
    kept.allow(*kept.made.sites)
    for site in kept.made.sites.values():
        site.forget()
    kept.line.kept.clear()


def update_of(site: Site, run: str, round_number: int) -> tuple[Blob, bytes]:
    """What a site adds in a round, as it was before it was sealed to the machine. Beside it a site sends what it sealed
    to the other sites, and that the machine passes on to them as it is."""
    with closing(sqlite3.connect(f"file:{site.folder / 'state.sqlite'}?mode=ro", uri=True)) as database:
        ((reply,),) = database.execute(
            "SELECT reply FROM journal WHERE run = ? AND round = ? AND phase = 'upload'", (run, round_number)
        ).fetchall()
    update, _ = reply_from_bytes(reply).blobs
    return update, (site.folder / "spool" / update.id.hex()).read_bytes()


def pieces(content: bytes) -> list[re.Pattern[bytes]]:
    """From all over, long enough not to be met by chance."""
    step = max(1, len(content) // 16)
    found = (content[at : at + 48] for at in range(64, len(content) - 48, step))
    return [re.compile(re.escape(piece)) for piece in found if len(set(piece)) > 8]


def is_in(content: bytes, sought: list[re.Pattern[bytes]]) -> bool:
    return any(form.search(content) for form in sought)


def files_below(folder: Path) -> Iterator[bytes]:
    for path in folder.rglob("*"):
        try:
            yield path.read_bytes()
        except (IsADirectoryError, FileNotFoundError):
            continue


def test_what_a_site_adds_lies_at_the_server_and_passes_to_the_aggregator_sealed_only(attested: Attested) -> None:
    """Words that secure aggregation protects already, which nobody but the machine has to see."""
    made = attested.made
    attested.agree("sealed")
    run = attested.run_to_upload("sealed")
    sent = [update_of(made.sites[name], run, 2) for name in ("east", "north", "south")]
    sought = [form for _, content in sent for form in pieces(content)]
    assert len(sought) >= 3 * 16
    assert is_in(sent[0][1], sought), "the search finds what is there"
    sizes = {path.stat().st_size for path in (made.server_dir / "spool").iterdir()}
    assert {sealed_bytes(blob.size) for blob, _ in sent} <= sizes, "the updates are there"
    assert not any(is_in(content, sought) for content in files_below(made.server_dir))
    made.sites["west"].release("train-2")
    made.require_whole(run, ALL, ALL, ALL)
    assert len(attested.line.kept) > sum(blob.size for blob, _ in sent)
    assert not is_in(bytes(attested.line.kept), sought)
    assert not any(is_in(content, sought) for content in files_below(made.server_dir))
    for site in made.sites.values():
        left = {path.stem for path in (site.folder / "spool").iterdir()}
        assert left == site_blobs(site), f"{site.name} keeps what it sealed"


def site_blobs(site: Site) -> set[str]:
    """The bulk data that a site's journal needs."""
    with closing(sqlite3.connect(f"file:{site.folder / 'state.sqlite'}?mode=ro", uri=True)) as database:
        return {blob.hex() for (blob,) in database.execute("SELECT blob FROM journal_blobs")}


def test_a_machine_that_loses_its_power_costs_no_training(attested: Attested) -> None:
    made = attested.made
    attested.agree("powerless")
    run = attested.run_to_upload("powerless", east="train-3")
    attested.kill()
    attested.start()
    made.sites["west"].release("train-2")
    made.sites["east"].await_step("train-3")
    attested.kill()
    made.sites["east"].release("train-3")
    attested.start()
    made.require_whole(run, ALL, ALL, ALL)


def test_a_site_that_trusts_the_machine_no_more_turns_away_and_says_why(attested: Attested) -> None:
    """By a policy of its own, in the middle of a run, whatever the study says."""
    made = attested.made
    attested.agree("distrusted")
    run = attested.run_to_upload("distrusted")
    attested.allow("east", own=f'environment = "development"\nsoftware.keys = ["{public(STRANGER)}"]\n')
    made.sites["west"].release("train-2")
    view = made.await_end(run)
    assert contributed(view)[2] == OTHERS
    assert made.sites["east"].began("train-3") == 0
    assert view.results[2].missing["east"] == "attestation_key_unknown"


def test_evidence_made_by_software_is_refused_by_a_site_that_does_not_allow_it(attested: Attested) -> None:
    """When it is asked for its approval, and at work if it allows it no more."""
    made = attested.made
    with installed(PACKAGES):
        attested.publish("unproven")
        attested.allow("east", software=False)
        with pytest.raises(ProtectionRefusedError):
            made.sites["east"].command("approve", "unproven", "--dataset", "east")
        attested.allow("east")
        attested.approve("unproven")
    attested.allow(*made.sites, software=False)
    run = attested.run("unproven")
    view = made.await_pause(run, "quorum_missing", "software_evidence_forbidden")
    assert view.results == ()
    assert all(site.counts() == {} for site in made.sites.values())
    made.operator.stop(run)


def test_a_run_whose_machine_is_away_pauses_and_goes_on(attested: Attested) -> None:
    made = attested.made
    attested.agree("away", "hasty")
    attested.stop()
    run = attested.run("away")
    made.await_pause(run, "aggregator_unreachable")
    attested.start()
    made.resume(run)
    assert made.await_end(run, RunState.COMPLETED).rounds == 2


def test_an_attested_machine_opens_updates_and_adds_them(attested: Attested) -> None:
    attested.agree("opened", "thrifty", "enclave")
    attested.made.require_whole(attested.run("opened"), ALL, ALL, ALL)
