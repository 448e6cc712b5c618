"""The transport and the round loop: overhead, start, reconnect, large updates, many sites.

Real daemons on loopback; the peer is a stock Flower SuperLink with as many SuperNodes, measured in the same run.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import flower_peer
from bench.processes import Watch, memory_mb
from bench.scrapes import slowest_scrape_s
from bench.table import Row
from demo import hospitals
from demo.consortium import QUIET, Consortium, ended, free_port, write_settings
from quorate.errors import QuorateError
from quorate.identity import RunId
from quorate.rounds.blobs import FRAME_BYTES
from quorate.rounds.run import RunState, RunView
from quorate_operator.client import OperatorClient
from quorate_operator.profile import Profile

DEMO = Path(hospitals.__file__).parent
LINE_DELAY_MS = 20  # one way; 40 ms there and back
PATIENCE_S = 240.0


@dataclass(frozen=True)
class Size:
    """Real sites and their rounds, of which the first do not count; the large updates of light sites; many of these."""

    sites: int
    warm_up: int
    counted: int
    large_sites: int
    large_bytes: int
    light_rounds: int
    many_sites: int
    peer_sites: int
    peer_rounds: int


FULL = Size(
    sites=4,
    warm_up=10,
    counted=100,
    large_sites=8,
    large_bytes=100_000_000,
    light_rounds=4,
    many_sites=200,
    peer_sites=4,
    peer_rounds=3,
)
# One site of the peer: on a busy machine several take so long to start an app that they start it again and again.
SMALL = Size(
    sites=3,
    warm_up=1,
    counted=2,
    large_sites=2,
    large_bytes=1_000_000,
    light_rounds=1,
    many_sites=3,
    peer_sites=1,
    peer_rounds=1,
)


def rows(size: Size) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        found = [
            *_real_sites(root / "real", size),
            *_large_updates(root / "large", size),
            *_many_sites(root / "many", size),
        ]
    peer = statistics.median(flower_peer.measure(size.peer_sites, size.peer_rounds))
    return [Row(**{**row, "peer": peer} if row["name"].startswith("round") else row) for row in found]


# --- real sites -------------------------------------------------------------------------------------------------------


def _real_sites(root: Path, size: Size) -> Iterator[dict[str, object]]:
    """Overhead per round, start and reconnect, with real client daemons and a tiny model."""
    tables = {}
    for name, table in list(hospitals.hospitals().items())[: size.sites]:
        root.mkdir(parents=True, exist_ok=True)
        tables[name] = root / f"{name}.csv"
        table.head(40).to_csv(tables[name], index=False)
    with Consortium(root) as consortium:
        consortium.found()
        consortium.start_server()
        consortium.set_up_sites(tables, DEMO / "schema.toml", protection=("none",))
        watched = _with_metrics(consortium.site_state(next(iter(tables))) / "config.toml")
        for name in tables:
            consortium.start_site(name)
        yield _row("idle client, before torch is loaded", "MB", _idle_client_mb(consortium), goal=100)
        _publish(
            root,
            consortium,
            sorted(tables),
            size.warm_up + size.counted,
            'schema_file = "schema.toml"\nepochs = 1\nbatch_size = 64',
        )
        consortium.approve("bench")
        with operator_of(consortium) as operator:
            seconds = _seconds_per_round(operator, size)
            yield _row(f"round, {size.sites} sites", "s", seconds, goal=0.03)
        yield _row("start of the server to the first round", "s", _server_start_s(consortium), goal=5)
        yield _row("scrape of a client's metrics", "s", slowest_scrape_s(watched), goal=0.05)
        yield _row("reconnect of a killed client", "s", _reconnect_s(consortium), goal=3)


def _seconds_per_round(operator: OperatorClient, size: Size) -> float:
    """From the end of the warm-up to the end of the run."""
    run = operator.start("bench").run
    warm: tuple[int, float] | None = None
    for view in operator.watch(run):
        if warm is None and len(view.results) >= size.warm_up:
            warm = (len(view.results), time.monotonic())
        if view.state is not RunState.RUNNING:
            _require_completed(view)
            break
    if warm is None:
        raise RuntimeError("the run ended before it was warm")
    return (time.monotonic() - warm[1]) / (size.warm_up + size.counted - warm[0])


def _server_start_s(consortium: Consortium) -> float:
    """A killed server starts again; its sites find it by themselves; a run is started; its first round ends."""
    _kill(consortium.server)
    started = time.monotonic()
    consortium.start_server()
    with operator_of(consortium) as operator:
        _until(lambda: _online(operator) == len(consortium.sites))
        run = operator.start("bench").run
        next(view for view in operator.watch(run) if view.results)
        seconds = time.monotonic() - started
        operator.stop(run)
    return seconds


def _reconnect_s(consortium: Consortium) -> float:
    with operator_of(consortium) as operator:
        name = next(iter(consortium.sites))
        _kill(consortium.sites[name])
        _until(lambda: _online(operator) == len(consortium.sites) - 1)
        started = time.monotonic()
        consortium.start_site(name)
        _until(lambda: _online(operator) == len(consortium.sites))
        return time.monotonic() - started


def _idle_client_mb(consortium: Consortium) -> float:
    with operator_of(consortium) as operator:
        _until(lambda: _online(operator) == len(consortium.sites))
    return max(memory_mb(process.pid) for process in consortium.sites.values())


# --- light sites ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Light:
    """Light sites that are connected, how long connecting took, and where the server's metrics are."""

    connected_s: float
    metrics: str


def _large_updates(root: Path, size: Size) -> Iterator[dict[str, object]]:
    """Large updates: memory and processor time of the server, then the same over a slow line."""
    with (
        _light_consortium(root / "idle", size, size.large_sites, 31) as (consortium, _),
        operator_of(consortium) as operator,
    ):
        idle_mb, _, _ = _watched_run(consortium, operator)
    dimension = size.large_bytes // 4
    with (
        _light_consortium(root / "large", size, size.large_sites, dimension) as (consortium, _),
        operator_of(consortium) as operator,
    ):
        peak_mb, cpu_s, view = _watched_run(consortium, operator)
    update_mb = size.large_bytes / 1e6
    megabytes = size.large_sites * update_mb * size.light_rounds
    name = f"peak memory over idle, in updates of {update_mb:g} MB"
    yield _row(name, "x", (peak_mb - idle_mb) / update_mb, goal=1.5)
    yield _row("received per CPU second of the server", "MB/s", megabytes / cpu_s, goal=250, more_is_better=True)
    yield _row(
        "the same only hashed and written", "MB/s", _hashed_and_written(root / "plain", size), more_is_better=True
    )
    with (
        _light_consortium(root / "line", size, size.large_sites, dimension, LINE_DELAY_MS) as (consortium, _),
        operator_of(consortium) as operator,
    ):
        _, _, view = _watched_run(consortium, operator)
    seconds = sum(result.phase_seconds["upload"] for result in view.results)
    yield _row("received over a line of 40 ms", "MB/s", megabytes / seconds, goal=50, more_is_better=True)


def _hashed_and_written(folder: Path, size: Size) -> float:
    """What this machine allows: the least that a server must do with one round's updates, per CPU second."""
    folder.mkdir()
    frame = os.urandom(FRAME_BYTES)
    frames = size.large_bytes // FRAME_BYTES
    started = time.process_time()
    for site in range(size.large_sites):
        with (folder / str(site)).open("wb", buffering=0) as file:
            for _ in range(frames):
                hashlib.sha256(frame).digest()
                file.write(frame)
            os.fsync(file.fileno())
    return size.large_sites * frames * FRAME_BYTES / 1e6 / (time.process_time() - started)


def _many_sites(root: Path, size: Size) -> Iterator[dict[str, object]]:
    with _light_consortium(root, size, size.many_sites, 31) as (consortium, light), operator_of(consortium) as operator:
        _, _, view = _watched_run(consortium, operator)
        yield _row(
            f"scrape of the server's metrics, {size.many_sites} sites", "s", slowest_scrape_s(light.metrics), goal=0.05
        )
    yield _row(f"{size.many_sites} sites connect", "s", light.connected_s, goal=3)
    worst = max(sum(result.phase_seconds.values()) for result in view.results)
    yield _row(f"slowest round of {size.many_sites} sites", "s", worst, goal=2)


def _watched_run(consortium: Consortium, operator: OperatorClient) -> tuple[float, float, RunView]:
    """Peak memory in MB and processor seconds of the server and its worker, and the completed run."""
    if consortium.server is None:
        raise RuntimeError("the server is not running")
    with Watch(consortium.server.pid) as watch:
        run = operator.start("bench").run
        view = completed(operator, run)
    return watch.peak_mb, watch.cpu_s, view


@contextmanager
def _light_consortium(
    root: Path, size: Size, sites: int, dimension: int, delay_ms: int = 0
) -> Iterator[tuple[Consortium, _Light]]:
    root.mkdir(parents=True)
    with Consortium(root) as consortium:
        consortium.found()
        metrics = _with_metrics(consortium.server_dir / "server.toml")
        consortium.start_server()
        address = consortium.address
        relay = None
        if delay_ms:
            port = free_port()
            target = address.rpartition(":")[2]
            relay = _module("bench.relay", str(port), target, str(delay_ms))
            address = f"127.0.0.1:{port}"
        numbers = str(sites), str(dimension), address, str(size.light_rounds)
        process = _module("bench.light_sites", str(consortium.server_dir), *numbers)
        try:
            names = json.loads(_line(process).partition(" ")[2])
            _publish(root, consortium, sorted(names), size.light_rounds, "")
            _write(process, "go\n")
            yield consortium, _Light(json.loads(_line(process))["seconds"], metrics)
        finally:
            for one in (process, relay):
                if one is not None:
                    with ended(one):
                        pass


def _with_metrics(configuration: Path) -> str:
    """Have a daemon that is not started yet tell its metrics. Returns where."""
    address = f"127.0.0.1:{free_port()}"
    write_settings(configuration, {"metrics_listen": json.dumps(address)})
    return address


def _module(name: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", name, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | QUIET,
        start_new_session=True,
    )


def _line(process: subprocess.Popen[bytes]) -> str:
    if process.stdout is None or not (line := process.stdout.readline()):
        raise RuntimeError("the light sites ended by themselves")
    return line.decode()


def _write(process: subprocess.Popen[bytes], text: str) -> None:
    if process.stdin is not None:
        process.stdin.write(text.encode())
        process.stdin.flush()


# --- small things -----------------------------------------------------------------------------------------------------


def _publish(root: Path, consortium: Consortium, sites: list[str], rounds: int, parameters: str) -> None:
    (root / "schema.toml").write_bytes((DEMO / "schema.toml").read_bytes())
    (root / "study.toml").write_text(
        f"""name = "bench"
purpose = "To measure."
sites = {json.dumps(sites)}
[task]
name = "tabular-classifier"
[task.parameters]
{parameters}
[rounds]
count = {rounds}
quorum = {len(sites)}
[protection]
mode = "none"
""",
        encoding="utf-8",
    )
    consortium.operator("study", "publish", root / "study.toml")


@contextmanager
def operator_of(consortium: Consortium) -> Iterator[OperatorClient]:
    with OperatorClient(Profile.load(consortium.profile, time.time())) as client:
        yield client


def _online(operator: OperatorClient) -> int:
    try:
        return sum(site.state == "online" for site in operator.sites())
    except QuorateError:
        return -1


def completed(operator: OperatorClient, run: RunId) -> RunView:
    for view in operator.watch(run):
        if view.state is not RunState.RUNNING:
            return _require_completed(view)
    raise RuntimeError("the server stopped telling of the run")


def _require_completed(view: RunView) -> RunView:
    if view.state is not RunState.COMPLETED:
        raise RuntimeError(f"the run is {view.state}: {view.reason}")
    return view


def _until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not is_so():
        if time.monotonic() > end:
            raise RuntimeError("what the bench waits for does not happen")
        time.sleep(0.02)


def _kill(process: subprocess.Popen[bytes] | None) -> None:
    if process is not None:
        process.kill()
        process.wait()


def _row(name: str, unit: str, ours: float, **more: float | bool) -> dict[str, object]:
    return {"name": name, "unit": unit, "ours": ours, **more}
