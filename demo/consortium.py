"""A consortium of real daemons on this machine, set up by the commands that people would type."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

from quorate.process.private_files import write_private

BIN = Path(sys.executable).parent
START_S = STOP_S = 60.0
COMMAND_S = 600.0
DATASET = "cells"
TEST_FRACTION = 0.2
QUIET = {"OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}


class CommandFailedError(Exception):
    """A command did not succeed; its message is in this one's."""


def command(name: str, *arguments: str | Path, show: bool = False) -> str:
    """Run one of the three commands to its end. Returns what it printed, unless that is shown."""
    line = [str(BIN / name), *map(str, arguments)]
    done = subprocess.run(
        line,
        stdout=None if show else subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=COMMAND_S,
        env=os.environ | QUIET,
    )
    if done.returncode != 0:
        raise CommandFailedError(f"{name} {' '.join(map(str, arguments))}\n{done.stderr.strip()}")
    return done.stdout or ""


def start(log: Path, name: str, *arguments: str | Path) -> subprocess.Popen[bytes]:
    """Start a daemon beside us."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [str(BIN / name), *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | QUIET,
            start_new_session=True,
        )


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """End a daemon by its own process id, politely first."""
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_settings(path: Path, settings: Mapping[str, str], section: str | None = None) -> None:
    """Set keys in a configuration file, which may not be there yet.

    Args:
        section: Of the file, as it stands there already; None: above all sections.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = [line for line in lines if line.partition("=")[0].strip() not in settings]
    place = 0 if section is None else kept.index(f"[{section}]") + 1
    kept[place:place] = [f"{key} = {value}" for key, value in settings.items()]
    path.write_text("\n".join(kept) + "\n", encoding="utf-8")


class Consortium:
    """One server and its sites below a folder. Leaving it ends every process that it started.

    Args:
        dataset: What each site calls its records.
        test_fraction: Of them, kept for evaluation.
    """

    def __init__(self, root: Path, dataset: str = DATASET, test_fraction: float = TEST_FRACTION) -> None:
        self.root, self.dataset, self.test_fraction = root, dataset, test_fraction
        self.server_dir = root / "server"
        self.profile = self.server_dir / "operator"
        self.address = f"127.0.0.1:{free_port()}"
        self.sites: dict[str, subprocess.Popen[bytes]] = {}
        self.server: subprocess.Popen[bytes] | None = None
        self._running = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def operator(self, *arguments: str | Path, show: bool = False) -> str:
        return command("quorate", "--profile", self.profile, *arguments, show=show)

    def site(self, name: str, *arguments: str | Path, show: bool = False) -> str:
        return command("quorate-client", *arguments, "--state", self.site_state(name), show=show)

    def found(self) -> None:
        """Certificate authority, configuration, the operator's credential."""
        names = ("--consortium", "demo", "--address", self.address, "--listen", self.address)
        command("quorate-server", "init", self.server_dir, *names)
        write_settings(self.server_dir / "server.toml", {"metrics_listen": '""'})

    def start_server(self) -> None:
        self.server = start(self.root / "server.log", "quorate-server", "run", "--state", self.server_dir)
        self._running.enter_context(ended(self.server))
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            if self.server.poll() is not None:
                raise CommandFailedError(f"quorate-server ended by itself; see {self.root / 'server.log'}")
            try:
                socket.create_connection(("127.0.0.1", int(self.address.rpartition(":")[2])), 1.0).close()
                return
            except OSError:
                time.sleep(0.05)
        raise CommandFailedError("quorate-server did not open its door")

    def start_aggregator(self) -> str:
        """An attested aggregator, but that a program here says of itself what hardware would. Before the server.

        Returns:
            The study's section that names it.
        """
        key, address = self.root / "software.pem", f"127.0.0.1:{free_port()}"
        made = command("quorate-aggregator", "make-key", key)
        log = self.root / "aggregator.log"
        line = ("run", "--attester", "software", "--key", key, "--listen", address)
        self._running.enter_context(ended(start(log, "quorate-aggregator", *line)))
        write_settings(self.server_dir / "server.toml", {"aggregator": json.dumps(address)})
        lines = [line for line in made.splitlines() if " = " in line]
        return "\n".join(["[attestation]", "required = true", "[attestation.policy]", *lines, ""])

    def allow_software_evidence(self) -> None:
        """In each site's policy."""
        for policy in self.root.glob("site-*/policy.toml"):
            write_settings(policy, {"software": "true"}, section="attestation")

    def site_state(self, name: str) -> Path:
        return self.root / f"site-{name}"

    def set_up_sites(self, tables: Mapping[str, Path], schema: Path, protection: tuple[str, ...] = ("secagg",)) -> None:
        """Invite, join, register the data; allow these modes of protection."""
        with ThreadPoolExecutor(2) as pool:
            setting_up = [
                pool.submit(self._set_up_site, name, table, schema, protection) for name, table in tables.items()
            ]
            for done in setting_up:
                done.result()

    def _set_up_site(self, name: str, table: Path, schema: Path, protection: tuple[str, ...]) -> None:
        invitation, state = self.root / f"{name}.invitation.json", self.site_state(name)
        self.operator("site", "invite", name, "-o", invitation)
        command("quorate-client", "join", invitation, "--state", state)
        policy = {"protection": json.dumps(protection), "release": '["operator", "sites"]'}
        if "none" in protection:
            policy["evaluation_without_protection"] = "true"
        write_settings(state / "policy.toml", policy)
        write_settings(state / "config.toml", {"metrics_listen": '""'})
        # Which records are held out follows from this key; a demo is to show the same figures each time it is run.
        write_private(state / "keys" / "records.key", hashlib.sha256(name.encode()).digest())
        fraction = ("--test-fraction", str(self.test_fraction))
        command("quorate-client", "data", "add", self.dataset, table, "--schema", schema, *fraction, "--state", state)

    def start_site(self, name: str) -> None:
        log = self.root / f"site-{name}.log"
        self.sites[name] = start(log, "quorate-client", "run", "--state", self.site_state(name))
        self._running.enter_context(ended(self.sites[name]))

    def write_report(self, study: str, stem: str) -> None:
        """The report on a study's run, as a page and as JSON, below the consortium's folder."""
        for form in ("html", "json"):
            self.operator("run", "report", study, "--format", form, "-o", self.root / f"{stem}.{form}")

    def approve(self, study: str, dataset: str | None = None, sites: Sequence[str] | None = None) -> None:
        """Each site, or each of these, reads the study and approves it."""
        with ThreadPoolExecutor(2) as pool:
            arguments = ("approve", study, "--dataset", dataset or self.dataset)
            for done in [pool.submit(self.site, name, *arguments) for name in sites or self.sites]:
                done.result()

    def run_study(
        self, file: Path, model: Path, dataset: str | None = None, sites: Sequence[str] | None = None
    ) -> None:
        """Publish, approve at these sites or at all, run to the end, fetch the model."""
        name = str(tomllib.loads(file.read_text(encoding="utf-8"))["name"])
        self.operator("study", "publish", file)
        self.approve(name, dataset, sites)
        self.operator("run", "start", name)
        self.operator("run", "watch", name)
        self.operator("model", "fetch", name, "-o", model)
