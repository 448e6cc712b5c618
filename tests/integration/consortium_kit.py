"""A consortium of real processes that a test can hold, kill, stop and look into.

``Template`` founds one once, by the commands that people would type; ``Consortium`` is a copy of it on a port of its
own, for one test. What the sites train is ``slow_task/crash_test_task.py``. Every wait has an end.
"""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quorate.errors import ServerIdentityError, ServerUnreachableError
from quorate.rounds.run import RunState, RunView
from quorate_client.site.folder import SiteFolder
from quorate_operator.client import OperatorClient
from quorate_operator.files import write_download
from quorate_operator.profile import Profile
from quorate_operator.release import load_key, opened
from tests.client.data_kit import fix_split
from tests.integration.processes import (
    BIN,
    Daemon,
    commands,
    eventually,
    free_port,
    write_settings,
)

NAME = "crash-test"
RECORDS = {"east": 20, "north": 30, "west": 50}
"""The sites and how many records each has."""
SITES = tuple(RECORDS)
ALL = set(SITES)
OTHERS = ALL - {"east"}
"""East is the one that things happen to."""
DIMENSION = 400_000
UPDATE_BYTES = 4 * DIMENSION
UPDATE_FRAMES = 7
HOLD = "hold"
RAISE = "raise"
ALLOCATE = "allocate"

STUDIES = {
    # Waits for its sites: who is killed and started again takes part.
    "patient": {"count": 3, "quorum": 2, "deadline_s": 600.0, "absent_grace_s": 300.0, "checkpoint_every": 2},
    # Goes on without those who are gone.
    "brisk": {"count": 3, "quorum": 2, "deadline_s": 600.0, "absent_grace_s": 0.3, "checkpoint_every": 10},
    # Waits for nobody very long: a few times what the work of a round takes where ten other things are done.
    "hasty": {"count": 2, "quorum": 2, "deadline_s": 15.0, "absent_grace_s": 0.3, "checkpoint_every": 10},
}


@dataclass(frozen=True)
class Plan:
    """What a template founds: the sites with their records, and the studies that they approve.

    Args:
        studies: Each study's rounds, by its name.
        secret: The studies under secure aggregation.
        kept: The studies whose model stays at the sites.
        tolerance: How far a coordinate of a final model may be from the one computed by hand.
    """

    records: Mapping[str, int]
    studies: Mapping[str, Mapping[str, float]]
    secret: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    tolerance: float = 1e-3

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(self.records)


PLAIN = Plan(RECORDS, STUDIES)

SECRET_ROUNDS = {"count": 3, "quorum": 3, "deadline_s": 600.0, "absent_grace_s": 0.3}
SECRET = Plan(
    # Numbers that are not met by chance in what a server stores.
    records={"east": 20_011, "north": 30_011, "south": 40_009, "west": 10_007},
    studies={
        "brisk": SECRET_ROUNDS,
        "patient": SECRET_ROUNDS | {"absent_grace_s": 300.0},
        "hasty": SECRET_ROUNDS | {"count": 2, "deadline_s": 15.0},
        "thrifty": SECRET_ROUNDS | {"checkpoint_every": 1},
        "kept": SECRET_ROUNDS,
        "open": SECRET_ROUNDS,
    },
    secret=("brisk", "patient", "hasty", "thrifty", "kept"),
    kept=("kept",),
    # Of each of three rounds the rounding of four sites' updates, and that of weights and of float32.
    tolerance=3e-5,
)
"""Four sites of which one may collude: three of them have to upload and to vote, two to reveal."""

SCHEMA = """
kind = "tabular"
[label]
name = "outcome"
classes = ["no", "yes"]
[[columns]]
name = "measured"
type = "number"
range = [0.0, 1.0]
"""

AWAY = (ServerUnreachableError, ServerIdentityError)
"""No server answers, or another one in its place."""


class Site:
    """One site's folder, its daemon if there is one, and the strings of its task."""

    def __init__(self, name: str, folder: Path, logs: Path) -> None:
        self.name = name
        self.folder = folder
        self.control = folder / "work" / "control"
        self._logs = logs
        self.daemon: Daemon | None = None

    @property
    def running(self) -> Daemon:
        assert self.daemon is not None
        return self.daemon

    @property
    def log(self) -> str:
        return (self._logs / f"site-{self.name}.log").read_text(encoding="utf-8")

    def start(self, *prefix: str) -> Daemon:
        """``prefix`` is a command that runs the daemon, an ``unshare`` for example."""
        line = (*prefix, BIN / "quorate-client", "run", "--state", self.folder)
        self.daemon = Daemon(self._logs / f"site-{self.name}.log", *line)
        return self.daemon

    def order(self, step: str, word: str) -> None:
        """What the task does when it comes to that step."""
        scratch = self.control / "new-order"
        scratch.write_text(word)
        scratch.rename(self.control / step)

    def release(self, step: str) -> None:
        (self.control / step).unlink()

    def steps(self) -> list[tuple[str, int]]:
        """Each step that was begun, with the process that did it."""
        try:
            lines = (self.control / "steps").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [(line.split()[0], int(line.split()[1])) for line in lines]

    def began(self, step: str) -> int:
        """How often a step was begun."""
        return Counter(name for name, _ in self.steps())[step]

    def await_step(self, step: str) -> int:
        """Wait until a step is begun. Returns the number of the process that is at it."""
        return eventually(
            lambda: next((pid for name, pid in reversed(self.steps()) if name == step), 0),
            f"{self.name} to begin {step}",
        )


class Template:
    """A consortium that was founded, joined and asked for approval by commands; its processes have ended."""

    def __init__(self, root: Path, plan: Plan = PLAIN) -> None:
        self.root = root
        self.plan = plan
        self._server, self._operator = root / "server", root / "server" / "operator"
        address = f"127.0.0.1:{free_port()}"
        names = ("--consortium", NAME, "--address", address, "--listen", address)
        commands("quorate-server", ["init", self._server, *names])
        settings = {"metrics_listen": '""', "silent_after_s": "600.0"}
        write_settings(self._server / "server.toml", settings)
        (root / "schema.toml").write_text(SCHEMA)
        daemon = Daemon(root / "template.log", BIN / "quorate-server", "run", "--state", self._server)
        try:
            with OperatorClient(Profile.load(self._operator, time.time())) as operator:
                eventually(lambda: _answers(operator), "the server")
            profile = ("--profile", self._operator)
            invite = [*profile, "site", "invite"]
            commands("quorate", *([*invite, name, "-o", root / f"{name}.json"] for name in plan.sites))
            states = {name: root / name for name in plan.sites}
            commands("quorate-client", *(["join", root / f"{name}.json", "--state", states[name]] for name in states))
            for state in states.values():
                fix_split(SiteFolder(state))
            commands("quorate-client", *(self._adding(name) for name in plan.sites))
            for name in plan.sites:
                self._settle(name)
            files = [self._write_study(study) for study in plan.studies]
            commands("quorate", *([*profile, "study", "publish", file] for file in files))
            pairs = product(plan.studies, plan.sites)
            commands(
                "quorate-client",
                *(["approve", study, "--dataset", site, "--state", root / site] for study, site in pairs),
            )
            assert daemon.stop() == 0
        finally:
            daemon.end()

    def _adding(self, name: str) -> list[str | Path]:
        """The command with which a site registers its data."""
        table = self.root / f"{name}.csv"
        rows = [f"{number % 100 / 100},{'yes' if number % 2 else 'no'}" for number in range(self.plan.records[name])]
        table.write_text("\n".join(["measured,outcome", *rows, ""]))
        schema = ("--schema", self.root / "schema.toml", "--test-fraction", "0.5")
        return ["data", "add", name, table, *schema, "--state", self.root / name]

    def _settle(self, name: str) -> None:
        """What a site's administrator writes."""
        state = self.root / name
        policy = {
            "protection": json.dumps(["none", "secagg"] if self.plan.secret else ["none"]),
            "evaluation_without_protection": "true",
            "release": json.dumps(["operator", "sites"] if self.plan.kept else ["operator"]),
            "minimum_sites": "2",
            "tasks": '["crash-test"]',
        }
        (state / "policy.toml").unlink()
        write_settings(state / "policy.toml", policy)
        write_settings(state / "config.toml", {"metrics_listen": '""'})
        (state / "work" / "control").mkdir(parents=True)

    def _write_study(self, study: str) -> Path:
        path = self.root / f"{study}.toml"
        rounds = "\n".join(f"{key} = {value}" for key, value in self.plan.studies[study].items())
        mode = "secagg" if study in self.plan.secret else "none"
        release = "sites" if study in self.plan.kept else "operator"
        sites = json.dumps(self.plan.sites)
        path.write_text(
            f'name = "{study}"\npurpose = "To be interrupted"\nsites = {sites}\n'
            f'[task]\nname = "crash-test"\n[task.parameters]\nschema_file = "schema.toml"\n'
            f"sites = {sites}\ndimension = {DIMENSION}\n"
            f'[rounds]\n{rounds}\n[protection]\nmode = "{mode}"\n[release]\nmodel = "{release}"\n'
        )
        return path


class Consortium:
    """A copy of the template with processes of its own. Close it, whatever happened."""

    def __init__(self, template: Template, root: Path, settings: Mapping[str, str] | None = None) -> None:
        self.template = template
        self.plan = template.plan
        self.root = root
        self.server_dir = root / "server"
        self.profile = self.server_dir / "operator"
        for folder in ("server", *self.plan.sites):
            shutil.copytree(template.root / folder, root / folder)
        self.sites = {name: Site(name, root / name, root) for name in self.plan.sites}
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        address = json.dumps(self.address)
        write_settings(self.server_dir / "server.toml", {"address": address, "listen": address, **(settings or {})})
        profile = json.loads((self.profile / "profile.json").read_text()) | {"address": self.address}
        (self.profile / "profile.json").write_text(json.dumps(profile))
        for site in self.sites.values():
            write_settings(site.folder / "config.toml", {"address": address})
        self.server: Daemon | None = None
        self._open = ExitStack()
        self.operator = self._open.enter_context(OperatorClient(Profile.load(self.profile, time.time())))
        self._started: list[Daemon] = []

    # --- processes ---

    @property
    def running(self) -> Daemon:
        """The server's daemon."""
        assert self.server is not None
        return self.server

    def start_server(self, *prefix: str) -> Daemon:
        """``prefix`` is a command that runs the daemon, an ``unshare`` for example. Does not wait for it."""
        line = (*prefix, BIN / "quorate-server", "run", "--state", self.server_dir)
        self.server = self.keep(Daemon(self.root / "server.log", *line))
        return self.server

    def start_site(self, name: str, *prefix: str) -> Daemon:
        return self.keep(self.sites[name].start(*prefix))

    def start(self) -> None:
        """Everything, and wait until all are connected."""
        self.start_server()
        for name in self.plan.sites:
            self.start_site(name)
        self.await_sites()

    def start_copy(self, name: str, folder: Path | None = None) -> Daemon:
        """A second daemon with a site's identity, on a copy of its folder: as it is now, or the one given.

        The site's orders and steps are those of the first kind of copy from then on.
        """
        if folder is None:
            folder = self.root / f"copy-of-{name}"
            shutil.copytree(self.sites[name].folder, folder)
            self.sites[name].control = folder / "work" / "control"
        line = (BIN / "quorate-client", "run", "--state", folder)
        return self.keep(Daemon(self.root / f"copy-of-{name}.log", *line))

    def reroute(self, name: str, port: int) -> None:
        """Have a site reach the server over another port, from its restart on."""
        site = self.sites[name]
        assert site.running.stop() == 0
        write_settings(site.folder / "config.toml", {"address": json.dumps(f"127.0.0.1:{port}")})
        self.start_site(name)
        self.await_sites()

    def keep(self, daemon: Daemon) -> Daemon:
        """Have it ended with the rest."""
        self._started.append(daemon)
        return daemon

    def await_sites(self, **states: str) -> None:
        """Wait until the server sees the sites in these states; all online unless told otherwise."""
        wanted = {name: states.get(name, "online") for name in self.plan.sites}
        eventually(lambda: self.presence() == wanted, f"the sites to be {wanted}")

    def presence(self) -> dict[str, str]:
        try:
            return {site.name: site.state for site in self.operator.sites()}
        except AWAY:
            return {}

    def close(self) -> None:
        self._open.close()
        for daemon in reversed(self._started):
            daemon.process.send_signal(signal.SIGCONT)
            if daemon.runs:
                daemon.process.terminate()
        for daemon in reversed(self._started):
            daemon.end()

    # --- the server's spool ---

    def arriving(self, name: str) -> int:
        """Bytes that have arrived of a site's incomplete uploads."""
        return sum(path.stat().st_size for path in self._spool.glob(f"*.{name}.part"))

    def spooled(self) -> list[str]:
        return sorted(path.name for path in self._spool.iterdir())

    @property
    def _spool(self) -> Path:
        return self.server_dir / "spool"

    # --- runs ---

    def run(self, study: str) -> str:
        """Start a run of a study. Returns its name."""
        return self.operator.start(study).run

    def view(self, run: str) -> RunView:
        return self.operator.run(run)

    def await_run(self, run: str, reached: Callable[[RunView], bool], what: str) -> RunView:
        """The run, once ``reached`` says so. A server that is away is waited for."""

        def look() -> RunView | None:
            try:
                view = self.view(run)
            except AWAY:
                return None
            return view if reached(view) else None

        return eventually(look, f"the run {what}")

    def await_phase(self, run: str, phase: str, replied: Sequence[str] = ()) -> RunView:
        """The run, once it is in that phase and at least these sites have replied in it."""

        def reached(view: RunView) -> bool:
            done = {site.site for site in view.sites if site.state == "replied"}
            return view.phase == phase and done.issuperset(replied)

        return self.await_run(run, reached, f"in {phase} with replies of {replied}")

    def await_end(self, run: str) -> RunView:
        """The run, completed: any other end fails the test at once."""
        view = self.await_run(run, lambda view: view.state is not RunState.RUNNING, "to end")
        assert view.state is RunState.COMPLETED, f"{view.state}: {view.reason}"
        return view

    def await_pause(self, run: str) -> RunView:
        """The run, paused, with its reason."""
        view = self.await_run(run, lambda view: view.state is not RunState.RUNNING, "to pause")
        assert view.state is RunState.PAUSED, f"{view.state}: {view.reason}"
        return view

    def require_whole(self, run: str) -> RunView:
        """A completed run holds each round once, each site trained exactly once in each that it is in and at most
        once in the others, and the model is made of exactly the contributions that the results name.
        """
        view = self.await_end(run)
        for site in self.sites.values():
            for result in view.results:
                count = site.began(f"train-{result.round_number}")
                once = count == 1 if site.name in result.contributed else count <= 1
                assert once, f"{site.name} trained {count} times in round {result.round_number}"
        self.require_shares(view)
        return view

    def require_shares(self, view: RunView) -> None:
        """The rounds of a completed run are all there, once, and its model holds each contributor's share of them."""
        assert [result.round_number for result in view.results] == list(range(1, view.rounds + 1))
        np.testing.assert_allclose(self.released(view.run), self.expected(view), atol=self.plan.tolerance, rtol=0)

    def expected(self, view: RunView) -> npt.NDArray[np.float64]:
        """The model's coordinates that the sites own, by hand."""
        records = self.plan.records
        expected = np.zeros(len(self.plan.sites))
        for result in view.results:
            total = sum(records[site] for site in result.contributed)
            for site in result.contributed:
                expected[self.plan.sites.index(site)] += records[site] / total
        return expected

    def released(self, run: str) -> npt.NDArray[np.float32]:
        """The same of the model that the operator fetches."""
        model = self.root / "model.npz"
        study, pieces = self.operator.study(self.view(run).study_digest.hex()).study, self.operator.model(run)
        sealed = opened(pieces, study, run, load_key(self.profile)) if study.is_release_sealed else pieces
        write_download(model, sealed)
        return shares_in(model)


def shares_in(model: Path) -> npt.NDArray[np.float32]:
    """The coordinates that the sites own, of a model in the form in which it is used."""
    with np.load(model) as released:
        shares: npt.NDArray[np.float32] = released["shares"]
        return shares


def _answers(operator: OperatorClient) -> bool:
    try:
        operator.sites()
    except AWAY:
        return False
    return True


def contributed(view: RunView) -> list[set[str]]:
    """Who is in each round."""
    return [set(result.contributed) for result in view.results]
