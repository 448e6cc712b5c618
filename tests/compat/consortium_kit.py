"""A server and three sites as real daemons, with Flower apps installed at all of them."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Self, TypeVar

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from quorate.errors import ServerUnreachableError
from quorate.identity import SiteName
from quorate.rounds.run import RunState, RunView
from quorate.secagg.release import ReleaseKey
from quorate.study.study import Study
from quorate.study.study_file import StudyFile
from quorate.study.task_digest import task_digest
from quorate_client.cli import app as client_command
from quorate_client.site.folder import SiteFolder
from quorate_operator.client import OperatorClient
from quorate_operator.files import invitation_text
from quorate_operator.profile import Profile
from quorate_server.cli.founding import found
from tests.client.data_kit import fix_split
from tests.patience import PATIENCE_S

REPOSITORY = Path(__file__).parents[2]
APPS = (REPOSITORY / "examples" / "flower_quickstart", Path(__file__).parent / "apps")
"""Folders of packages that are installed everywhere."""
SITES = ("east", "north", "south")
SERVER_APPS = (
    "flower_quickstart.server_app:app",
    "compat_app.rounds:app",
    "compat_app.messages:app",
    "compat_app.legacy:server",
)
TASKS = (
    "flower:flower_quickstart.client_app:app",
    "flower:compat_app.client_app:app",
    "flower:compat_app.legacy:client",
    "tabular-classifier",
)
BIN = Path(sys.executable).parent

Value = TypeVar("Value")
RunConfig = Mapping[str, str | int | float | bool]


def environment() -> dict[str, str]:
    """Of every process here. Proxies of this machine have no business on its loopback."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return kept | {
        "PYTHONPATH": os.pathsep.join(map(str, APPS)),
        "OMP_NUM_THREADS": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }


def eventually(found: Callable[[], Value | None], what: str) -> Value:
    """What ``found`` gives once that is true."""
    end = time.monotonic() + PATIENCE_S
    while not (value := found()):
        assert time.monotonic() < end, f"waited {PATIENCE_S:g} s for {what}"
        time.sleep(0.02)
    return value


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Site:
    """A site's folder, and the strings by which a test holds its app."""

    def __init__(self, name: str, root: Path) -> None:
        self.name = name
        self.state = root / f"site-{name}"
        self.control = self.state / "work" / "control"  # a task may write nowhere else

    @property
    def steps(self) -> list[str]:
        """What the app did here, in order."""
        path = self.control / "steps"
        return path.read_text().splitlines() if path.exists() else []

    def forget_steps(self) -> None:
        (self.control / "steps").unlink(missing_ok=True)

    def hold(self, step: str) -> None:
        (self.control / f"hold-{step}").touch()

    def release(self, step: str) -> None:
        (self.control / f"hold-{step}").unlink()

    def kept(self, run: str) -> int:
        """How many blobs lie here for a run."""
        query = "SELECT DISTINCT hex(blob) FROM journal_blobs JOIN journal USING (message_id) WHERE run = ?"
        with closing(sqlite3.connect(self.state / "state.sqlite")) as db:
            names = {name.lower() for (name,) in db.execute(query, (run,))}
        return sum(path.name in names for path in (self.state / "spool").iterdir())


class Consortium:
    """Everything runs while in its context."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.server_dir = root / "server"
        self.sites = {name: Site(name, root) for name in SITES}
        self.release_key = ReleaseKey(X25519PrivateKey.generate())
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._numbers: dict[str, int] = {name: number for number, name in enumerate(SITES)}

    def __enter__(self) -> Self:
        address = f"127.0.0.1:{_free_port()}"
        profile = found(self.server_dir, consortium="compat", address=address, listen=address, now=time.time())
        with (self.server_dir / "server.toml").open("a") as file:
            file.write(_lines({"metrics_listen": "", "silent_after_s": 600.0}))
            file.write(_lines({"guest_apps": SERVER_APPS}))
        try:
            self.operator = OperatorClient(Profile.load(profile, time.time())).__enter__()
            self.start_server()
            eventually(self._server_answers, "the server")
            for name in SITES:
                self._join(name)
            self.await_sites()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.operator.__exit__(None, None, None)
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in reversed(self._daemons):
            try:
                daemon.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    # --- processes ---

    def start_server(self) -> None:
        self.server = self._start("server", "quorate-server", "run", "--state", self.server_dir)

    def kill_server(self) -> None:
        """As a power cut would."""
        self.server.kill()
        self.server.wait(PATIENCE_S)

    def await_sites(self) -> None:
        eventually(lambda: self._presence() == dict.fromkeys(SITES, "online"), "the sites to be connected")

    def _start(self, log: str, command: str, *arguments: str | Path) -> subprocess.Popen[bytes]:
        with (self.root / f"{log}.log").open("ab") as output:
            daemon = subprocess.Popen(
                [str(BIN / command), *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment(),
                start_new_session=True,
            )
        self._daemons.append(daemon)
        return daemon

    def _join(self, name: str) -> None:
        site = self.sites[name]
        invitation = self.root / f"{name}.invitation.json"
        invitation.write_text(invitation_text(self.operator.invite(SiteName(name), valid_s=0, keep_keys=False)))
        _site_command("join", invitation, "--state", site.state)
        site.control.mkdir(parents=True)
        policy = f'protection = ["none", "secagg"]\nrelease = ["sites", "operator"]\ntasks = {_toml(TASKS)}\n'
        policy += "evaluation_without_protection = true\n"
        (site.state / "policy.toml").write_text(policy)
        (site.state / "config.toml").write_text('metrics_listen = ""\n')
        self._start(f"site-{name}", "quorate-client", "run", "--state", site.state)

    def _server_answers(self) -> bool:
        try:
            self.operator.sites()
        except ServerUnreachableError:
            return False
        return True

    def _presence(self) -> dict[str, str]:
        try:
            return {site.name: site.state for site in self.operator.sites()}
        except ServerUnreachableError:
            return {}

    # --- studies and runs ---

    def register(self, name: str, dataset: str, table: Path, schema: Path) -> None:
        """Register records at a site."""
        fix_split(SiteFolder(self.sites[name].state))
        _site_command("data", "add", dataset, table, "--schema", schema, "--state", self.sites[name].state)

    def approved(self, file: Path, node_config: Callable[[str], Sequence[str]]) -> Study:
        """Publish a study file and have all sites approve it."""
        keys = {site.name: site.member.signing_key for site in self.operator.sites() if site.member}
        study = StudyFile.read(file).resolve("compat", keys, task_digest, self.release_key)
        self.operator.publish(study)
        for name, site in self.sites.items():
            settings = [part for pair in node_config(name) for part in ("--node-config", pair)]
            _site_command("approve", study.name, *settings, "--state", site.state)
        return study

    def guest(self, name: str, server_app: str, run_config: RunConfig, task: str = TASKS[1], **rounds: float) -> Study:
        """An approved study of one of the tests' apps."""
        file = self.root / f"{name}.toml"
        settings = {"count": 1, "quorum": 3, "deadline_s": 600} | rounds
        file.write_text(
            _lines({"name": name, "purpose": "To be compatible", "sites": SITES})
            + f'[task]\n{_lines({"name": task})}[protection]\nmode = "none"\n[rounds]\n{_lines(settings)}'
            + f"[guest]\n{_lines({'server_app': server_app})}[guest.run_config]\n{_lines(run_config)}"
        )
        return self.approved(file, self.node_config)

    def node_config(self, name: str) -> list[str]:
        """What a site gives its app: the test's strings, and a secret."""
        number = self._numbers[name]
        return [f"folder={self.sites[name].control}", f"number={number}", f"secret={CANARY}-{name}"]

    def start(self, study: str) -> str:
        for site in self.sites.values():
            site.forget_steps()
        return self.operator.start(study).run

    def await_end(self, run: str, state: RunState = RunState.COMPLETED) -> RunView:
        """The run when it no longer runs, in that state."""

        def ended() -> RunView | None:
            try:
                view = self.operator.run(run)
            except ServerUnreachableError:
                return None
            return view if view.state is not RunState.RUNNING else None

        view = eventually(ended, f"the run {run} to end")
        assert view.state is state, f"{view.state}: {view.reason}\n{self.worker_log(run)}"
        return view

    def folder(self, run: str) -> Path:
        return self.server_dir / "runs" / run

    def log(self, daemon: str) -> str:
        """What ``server`` or ``site-NAME`` said."""
        return (self.root / f"{daemon}.log").read_text()

    def worker_log(self, run: str) -> str:
        return (self.folder(run) / "worker.log").read_text()

    def replies(self, run: str) -> int:
        """How many replies to this run the server has written down."""
        with closing(sqlite3.connect(self.server_dir / "server.sqlite")) as db:
            return int(db.execute("SELECT count(*) FROM replies WHERE run = ?", (run,)).fetchone()[0])

    def spooled(self) -> list[Path]:
        """The blobs that lie at the server."""
        return [path for path in (self.server_dir / "spool").iterdir() if path.suffix == ""]


CANARY = "canary-4711"


def _site_command(*arguments: str | Path) -> None:
    client_command([str(argument) for argument in arguments], standalone_mode=False)


def _toml(value: object) -> str:
    return json.dumps(value)  # the same for strings, numbers, booleans and lists of them


def _lines(settings: Mapping[str, object]) -> str:
    return "".join(f"{key} = {_toml(value)}\n" for key, value in settings.items())
