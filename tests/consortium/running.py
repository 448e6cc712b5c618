"""A server and its sites that a test can hold, kill, stop and look into.

``Consortium.found`` makes one by what the commands do, in this process: to start a command takes longer than to run it.
``Consortium.copy_of`` is another one on a port of its own, with everything that was founded and agreed.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import psutil

from demo.consortium import BIN, free_port, write_settings
from quorate.errors import ServerIdentityError, ServerUnreachableError
from quorate.identity import SiteName
from quorate.rounds.run import RunState, RunView
from quorate_client.cli import app as site_command
from quorate_client.site.folder import SiteFolder
from quorate_operator.cli import app as operator_command
from quorate_operator.client import OperatorClient
from quorate_operator.files import invitation_text
from quorate_operator.profile import Profile
from quorate_server.cli.founding import found as found_server
from tests.client.data_kit import fix_split
from tests.consortium.processes import Daemon, eventually

HOLD = "hold"

AWAY = (ServerUnreachableError, ServerIdentityError)
"""No server answers, or another one in its place."""


class Site:
    """One site's folder, its daemon if there is one, and the strings of its task.

    A task of the tests writes each step that it begins into ``control/steps``, with the number of its process; a file
    ``control/STEP`` is an order for that step.
    """

    def __init__(self, name: str, root: Path, packages: Sequence[Path]) -> None:
        self.name = name
        self.folder = root / name
        self.control = self.folder / "work" / "control"  # a task may write nowhere else
        self._log = root / f"site-{name}.log"
        self.packages = packages
        self.daemon: Daemon | None = None

    @property
    def running(self) -> Daemon:
        assert self.daemon is not None
        return self.daemon

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def command(self, *line: str | Path) -> None:
        """What its administrator types."""
        site_command([*map(str, line), "--state", str(self.folder)], standalone_mode=False)

    def start(self, *prefix: str) -> Daemon:
        """``prefix`` is a command that runs the daemon, an ``unshare`` for example."""
        line = (*prefix, BIN / "quorate-client", "run", "--state", self.folder)
        self.daemon = Daemon(self._log, *line, packages=self.packages)
        return self.daemon

    def order(self, step: str, word: str = HOLD) -> None:
        """What the task does when it comes to that step."""
        scratch = self.control / "new-order"
        scratch.write_text(word)
        scratch.rename(self.control / step)

    def release(self, step: str) -> None:
        (self.control / step).unlink()

    def forget(self) -> None:
        """All orders and steps, and what was logged."""
        for path in self.control.iterdir():
            path.unlink()
        self._log.write_bytes(b"")

    def steps(self) -> list[tuple[str, int]]:
        """Each step that was begun, with the process that did it."""
        try:
            lines = (self.control / "steps").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [(line.split()[0], int(line.split()[1])) for line in lines]

    def counts(self) -> Counter[str]:
        """How often each step was begun."""
        return Counter(name for name, _ in self.steps())

    def began(self, step: str) -> int:
        """How often a step was begun."""
        return self.counts()[step]

    def await_step(self, step: str) -> int:
        """Wait until a step is begun. Returns the number of the process that is at it."""
        return eventually(
            lambda: next((pid for name, pid in reversed(self.steps()) if name == step), 0),
            f"{self.name} to begin {step}",
        )


class Consortium:
    """What lies below a folder, and the processes that run on it. Close it, whatever happened.

    Args:
        packages: Folders of the packages that are installed at everybody.
    """

    def __init__(self, root: Path, sites: Iterable[str], packages: Sequence[Path] = ()) -> None:
        self.root = root
        self.server_dir = root / "server"
        self.profile = self.server_dir / "operator"
        self.sites = {name: Site(name, root, packages) for name in sites}
        self.server: Daemon | None = None
        self.is_as_founded = True
        """No site's folder, address or daemon is another one than at first."""
        profile = Profile.load(self.profile, time.time())
        self.address = profile.address
        self.packages = packages
        self._started: list[Daemon] = []
        self._open = ExitStack()
        self.operator = self._open.enter_context(OperatorClient(profile))

    @classmethod
    def found(
        cls,
        root: Path,
        name: str,
        sites: Iterable[str],
        packages: Sequence[Path],
        policy: Mapping[str, str],
        settings: Mapping[str, str] | None = None,
    ) -> Self:
        """A server that runs and sites that have joined, and do not run.

        Args:
            policy: Of each site; values are TOML. ``settings`` are the server's.
        """
        address = f"127.0.0.1:{free_port()}"
        found_server(root / "server", consortium=name, address=address, listen=address, now=time.time())
        quiet = {"metrics_listen": '""', "silent_after_s": "600.0"}
        write_settings(root / "server" / "server.toml", {**quiet, **(settings or {})})
        made = cls(root, sites, packages)
        try:
            made.start_server()
            eventually(made._answers, "the server")
            for site in made.sites.values():
                made._join(site, policy)
        except BaseException:
            made.close()
            raise
        return made

    @classmethod
    def copy_of(cls, other: Self, root: Path, settings: Mapping[str, str] | None = None) -> Self:
        """The same on a port of its own; ``settings`` are the server's. Nothing of it runs."""
        for folder in ("server", *other.sites):
            shutil.copytree(other.root / folder, root / folder)
        address = f"127.0.0.1:{free_port()}"
        quoted = json.dumps(address)
        write_settings(root / "server" / "server.toml", {"address": quoted, "listen": quoted, **(settings or {})})
        profile = root / "server" / "operator" / "profile.json"
        profile.write_text(json.dumps(json.loads(profile.read_text()) | {"address": address}))
        for name in other.sites:
            write_settings(root / name / "config.toml", {"address": quoted})
        return cls(root, other.sites, other.packages)

    def _answers(self) -> bool:
        try:
            self.operator.sites()
        except AWAY:
            return False
        return True

    def _join(self, site: Site, policy: Mapping[str, str]) -> None:
        invitation = self.root / f"{site.name}.json"
        invited = self.operator.invite(SiteName(site.name), valid_s=0, keep_keys=False)
        invitation.write_text(invitation_text(invited))
        site.command("join", invitation)
        fix_split(SiteFolder(site.folder))
        (site.folder / "policy.toml").unlink()
        write_settings(site.folder / "policy.toml", policy)
        write_settings(site.folder / "config.toml", {"metrics_listen": '""'})
        site.control.mkdir(parents=True)

    def publish(self, file: Path) -> None:
        """Publish a study file."""
        line = ["--profile", str(self.profile), "study", "publish", str(file)]
        operator_command(line, standalone_mode=False)

    # --- processes ---

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    @property
    def running(self) -> Daemon:
        """The server's daemon."""
        assert self.server is not None
        return self.server

    def start_server(self, *prefix: str) -> Daemon:
        """``prefix`` is a command that runs the daemon, an ``unshare`` for example. Does not wait for it."""
        line = (*prefix, BIN / "quorate-server", "run", "--state", self.server_dir)
        self.server = self.keep(Daemon(self.root / "server.log", *line, packages=self.packages))
        return self.server

    def start_site(self, name: str, *prefix: str) -> Daemon:
        return self.keep(self.sites[name].start(*prefix))

    def start(self, *besides: str) -> None:
        """The server and the sites, but for those ``besides``; wait until they are connected."""
        self.start_server()
        for name in self.sites:
            if name not in besides:
                self.start_site(name)
        self.await_sites(**dict.fromkeys(besides, "offline"))

    def restart(self, *names: str) -> None:
        """Start sites again, and wait until all are connected."""
        for name in names:
            self.start_site(name)
        self.await_sites()

    def start_copy(self, name: str, folder: Path | None = None) -> Daemon:
        """A second daemon with a site's identity, on a copy of its folder: as it is now, or the one given.

        The site's orders and steps are those of the first kind of copy from then on.
        """
        self.is_as_founded = False
        if folder is None:
            folder = self.root / f"copy-of-{name}"
            shutil.copytree(self.sites[name].folder, folder)
            self.sites[name].control = folder / "work" / "control"
        line = (BIN / "quorate-client", "run", "--state", folder)
        return self.keep(Daemon(self.root / f"copy-of-{name}.log", *line, packages=self.packages))

    def reroute(self, name: str, port: int) -> None:
        """Have a site reach the server over another port, from its restart on."""
        site = self.sites[name]
        assert site.running.stop() == 0
        write_settings(site.folder / "config.toml", {"address": json.dumps(f"127.0.0.1:{port}")})
        self.restart(name)

    def keep(self, daemon: Daemon) -> Daemon:
        """Have it ended with the rest."""
        self._started.append(daemon)
        return daemon

    def await_sites(self, **states: str) -> None:
        """Wait until the server sees the sites in these states; all online unless told otherwise."""
        wanted = {name: states.get(name, "online") for name in self.sites}
        eventually(lambda: self.presence() == wanted, f"the sites to be {wanted}")

    def presence(self) -> dict[str, str]:
        try:
            return {site.name: site.state for site in self.operator.sites()}
        except AWAY:
            return {}

    def run_workers(self) -> list[psutil.Process]:
        """The processes that drive runs."""
        return [child for child in self.running.children() if "worker_main" in _words(child)]

    def run_worker(self, other_than: int = 0) -> psutil.Process:
        """The process that drives the run."""
        found = eventually(lambda: [each for each in self.run_workers() if each.pid != other_than], "the run's worker")
        return found[0]

    def kill_run_worker(self) -> None:
        """And wait for its successor."""
        first = self.run_worker()
        first.kill()
        self.run_worker(other_than=first.pid)

    def rests(self) -> bool:
        """Whether all is as after the start, and may be used again: nothing runs, nothing is held, nobody is gone."""
        daemons = [self.server, *(site.daemon for site in self.sites.values())]
        if not self.is_as_founded or not all(daemon is not None and daemon.runs for daemon in daemons):
            return False
        if self.presence() != dict.fromkeys(self.sites, "online"):
            return False
        if any(run.state in (RunState.RUNNING, RunState.PAUSED) for run in self.operator.runs()):
            return False
        eventually(lambda: not self.run_workers(), "the workers of runs that are over to end")
        return True

    def forget(self) -> None:
        """What the sites did, and what was logged."""
        (self.root / "server.log").write_bytes(b"")
        for site in self.sites.values():
            site.forget()

    def close(self) -> None:
        self._open.close()
        for daemon in reversed(self._started):
            daemon.thaw()
            if daemon.runs:
                daemon.process.terminate()
        for daemon in reversed(self._started):
            daemon.end()

    # --- the server's spool ---

    def arriving(self, name: str) -> int:
        """Bytes that have arrived of a site's incomplete uploads."""
        return sum(path.stat().st_size for path in self._spool.glob(f"*.{name}.part"))

    def spooled(self) -> list[str]:
        """The blobs that lie there whole, and all that is arriving."""
        return sorted(path.name for path in self._spool.iterdir())

    @property
    def _spool(self) -> Path:
        return self.server_dir / "spool"

    # --- runs ---

    def run(self, study: str, **held: str | Sequence[str]) -> str:
        """Start a run of a study. Returns its name.

        Args:
            held: Sites, and the steps in which each waits until it is released.
        """
        for name, steps in held.items():
            for step in [steps] if isinstance(steps, str) else steps:
                self.sites[name].order(step)
        return self.operator.start(study).run

    def view(self, run: str) -> RunView:
        return self.operator.run(run)

    def folder(self, run: str) -> Path:
        return self.server_dir / "runs" / run

    def worker_log(self, run: str) -> str:
        return (self.folder(run) / "worker.log").read_text()

    def await_run(self, run: str, reached: Callable[[RunView], bool], what: str) -> RunView:
        """The run, once ``reached`` says so. A server that is away is waited for."""

        def look() -> RunView | None:
            try:
                view = self.view(run)
            except AWAY:
                return None
            return view if reached(view) else None

        return eventually(look, f"the run {run} {what}")

    def await_phase(self, run: str, phase: str, *replied: str) -> RunView:
        """The run, once it is in that phase and at least these sites have replied in it."""

        def reached(view: RunView) -> bool:
            done = {site.site for site in view.sites if site.state == "replied"}
            return view.phase == phase and done.issuperset(replied)

        return self.await_run(run, reached, f"in {phase} with replies of {replied}")

    def await_end(self, run: str, state: RunState = RunState.COMPLETED) -> RunView:
        """The run when it no longer runs; in another state than this one fails the test at once."""
        view = self.await_run(run, lambda view: view.state is not RunState.RUNNING, "to end")
        assert view.state is state, f"{view.state}: {view.reason}\n{self.worker_log(run)}"
        return view

    def await_pause(self, run: str, code: str, *told: str) -> RunView:
        """The run, paused for this reason, in which the operator is told these words."""
        view = self.await_end(run, RunState.PAUSED)
        assert view.reason is not None
        assert view.reason.code == code
        assert all(words in f"{view.reason.got} {view.reason.action}" for words in told), view.reason
        return view


def contributed(view: RunView) -> list[set[str]]:
    """Who is in each round."""
    return [set(result.contributed) for result in view.results]


def _words(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""
