"""A stock Flower deployment on this machine: one ``flower-superlink``, several ``flower-supernode``, no encryption.

The programs are those that flwr installs, started as its documentation says, on loopback with free ports and a home
folder of their own. Everything that was started is ended by process id, whatever happened in between.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

PEER_APP = Path(__file__).parent / "flower_peer_app"
START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 60.0


class PeerError(Exception):
    """The stock deployment did not do what it was asked to. Holds the end of its logs."""


class StockFlower:
    """The deployment, up while in its context.

    Args:
        sites: How many SuperNodes. Each has ``partition-id`` and ``num-partitions`` in its node configuration.
        environment: Variables for all processes, beside this process's own.
        node_configs: What else each SuperNode has in its node configuration.
        simulated: The SuperLink plays all SuperNodes (Flower's simulation, which needs ray).
        database: Where the SuperLink keeps what it stores, messages included; in its memory where it is not said.
    """

    def __init__(
        self,
        sites: int,
        environment: Mapping[str, str] | None = None,
        node_configs: Sequence[Mapping[str, str]] = (),
        simulated: bool = False,
        database: Path | None = None,
    ) -> None:
        self._sites = sites
        self._database = database
        self._simulated = simulated
        self._node_configs = [*node_configs, *[{}] * (sites - len(node_configs))]
        self._extra = dict(environment or {})
        self._stack = contextlib.ExitStack()
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        with self._stack:
            self._home = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="stock-flower-")))
            self._stack.callback(self._end_processes)
            self._address = f"127.0.0.1:{_free_port()}"
            self._write_connection()
            self._start_superlink()
            self._start_supernodes()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def run(self, app_dir: Path, timeout_s: float, run_config: Mapping[str, str | int | float] | None = None) -> str:
        """Run a Flower app with ``flwr run`` and wait for its end. Returns what it logged.

        Raises:
            PeerError: it failed or did not end in time.
        """
        overrides = [f"{key}={json.dumps(value)}" for key, value in (run_config or {}).items()]
        settings = [part for each in overrides for part in ("-c", each)]
        if self._simulated:
            settings += ["--federation-config", f"num-supernodes={self._sites}"]
        arguments = ["run", str(app_dir), "peer", "--stream", *settings]
        log = self._flwr(arguments, timeout_s)
        started_run = re.search(r"started run (\d+)", log)
        if started_run is None:
            raise PeerError(f"no run was started\n{log[-3000:]}")
        status = self._status(started_run[1])
        if status != "finished:completed":
            raise PeerError(f"the app ended as {status}\n{log[-3000:]}\n{self._logs()}")
        return log

    def _status(self, run_id: str) -> str:
        listed = json.loads(self._flwr(["list", "peer", "--run-id", run_id, "--format", "json"], START_TIMEOUT_S))
        return str(listed["runs"][0]["status"])

    def _write_connection(self) -> None:
        text = f'[superlink]\ndefault = "peer"\n\n[superlink.peer]\naddress = "{self._address}"\ninsecure = true\n'
        (self._home / "config.toml").write_text(text, encoding="utf-8")

    def _start_superlink(self) -> None:
        port = self._address.rpartition(":")[2]
        self._start(
            "superlink",
            "--insecure",
            "--host",
            "127.0.0.1",
            "--port",
            port,
            "--disable-runtime-dependency-installation",
            *(["--simulation"] if self._simulated else []),
            *(["--database", str(self._database)] if self._database else []),
        )
        self._wait_until(lambda: _is_healthy(int(port)), "the SuperLink did not start")

    def _start_supernodes(self) -> None:
        if self._simulated:
            return
        for number in range(self._sites):
            pairs = [f"{key}={json.dumps(value)}" for key, value in self._node_configs[number].items()]
            node = " ".join([f"partition-id={number}", f"num-partitions={self._sites}", *pairs])
            ports = ("--host", "127.0.0.1", "--port", str(_free_port()))
            self._start("supernode", "--insecure", "--superlink", self._address, *ports, "--node-config", node)

        def are_registered() -> bool:
            nodes = json.loads(self._flwr(["supernode", "list", "peer", "--format", "json"], START_TIMEOUT_S))["nodes"]
            return bool(sum(node["status"] == "online" for node in nodes) >= self._sites)

        self._wait_until(are_registered, "the SuperNodes did not connect")

    def _start(self, name: str, *arguments: str) -> None:
        with (self._home / f"{name}-{len(self._processes)}.log").open("wb") as log:
            program = str(_program(f"flower-{name}"))
            process = subprocess.Popen([program, *arguments], stdout=log, stderr=log, env=self._environment())
        self._processes.append(process)

    def _flwr(self, arguments: list[str], timeout_s: float) -> str:
        command = [str(_program("flwr")), *arguments]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=timeout_s, env=self._environment(), check=False
            )
        except subprocess.TimeoutExpired as error:
            raise PeerError(f"flwr {arguments[0]} did not end in {timeout_s:g} s\n{self._logs()}") from error
        if done.returncode:
            raise PeerError(f"flwr {arguments[0]} failed\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}\n{self._logs()}")
        return done.stdout

    def _environment(self) -> dict[str, str]:
        """SuperLink and SuperNode start their own programs by name, so the folder of these comes first."""
        return os.environ | {
            "FLWR_HOME": str(self._home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "PATH": f"{_program('flwr').parent}{os.pathsep}{os.environ['PATH']}",
            **self._extra,
        }

    def _wait_until(self, is_so: Callable[[], bool], complaint: str) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not is_so():
            ended = [process.args for process in self._processes if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                raise PeerError(f"{complaint}; ended: {ended or 'nothing'}\n{self._logs()}")
            time.sleep(0.2)

    def _tree(self) -> Iterator[psutil.Process]:
        for process in self._processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                parent = psutil.Process(process.pid)
                yield from [parent, *parent.children(recursive=True)]

    def _end_processes(self) -> None:
        tree = list(self._tree())
        for process in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        for process in psutil.wait_procs(tree, STOP_TIMEOUT_S)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for process in self._processes:
            process.wait(STOP_TIMEOUT_S)

    def _logs(self) -> str:
        logs = (path.read_text(encoding="utf-8", errors="replace")[-2000:] for path in sorted(self._home.glob("*.log")))
        return "\n".join(logs)


def _is_healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1.0)
    try:
        connection.request("GET", "/health")
        return bool(connection.getresponse().status == 200)
    except OSError:
        return False
    finally:
        connection.close()


def _program(name: str) -> Path:
    """A program that flwr installed beside this interpreter."""
    return Path(sys.executable).parent / name


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def measure(sites: int, rounds: int, timeout_s: float = 600.0) -> tuple[float, ...]:
    """Start a deployment, run the small app for some rounds of train and evaluate, stop everything.

    Returns:
        Seconds of each round, by the ServerApp's own clock.

    Raises:
        PeerError: it failed, or the model is not the one that as many rounds give.
    """
    parameters = 1000
    with StockFlower(sites) as peer, tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        config: dict[str, str | int | float] = {
            "num-server-rounds": rounds,
            "min-nodes": sites,
            "parameters": parameters,
            "result-file": str(result),
        }
        peer.run(PEER_APP, timeout_s, config)
        content = json.loads(result.read_text(encoding="utf-8"))
    if abs(content["norms"][-1] - rounds * parameters**0.5) > 1e-3 * rounds:
        raise PeerError(f"the rounds did not do their work: norms {content['norms']}")
    times = content["times"]
    return tuple(later - earlier for earlier, later in itertools.pairwise(times))
