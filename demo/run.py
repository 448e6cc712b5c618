"""The main job on one machine: one server and four hospitals, as separate processes with separate folders.

Each step runs the command that a person would type; ``--keep`` leaves the processes' folders for a look afterwards.
Everything is written below ``demo-run`` and nothing is left running.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import compare
import hospitals
from rich.console import Console

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
STOP_S = 10.0
console = Console()


class CommandFailedError(Exception):
    """A command of the demo did not succeed; its own message was shown."""


def run(command: str, *arguments: str | Path, show: bool = False) -> str:
    """Run one of the three commands to its end; its output, unless it is shown."""
    line = [str(BIN / command), *map(str, arguments)]
    done = subprocess.run(line, stdout=None if show else subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise CommandFailedError(f"{command} {' '.join(map(str, arguments))}\n{done.stderr.strip()}")
    return done.stdout or ""


@contextmanager
def daemon(log: Path, command: str, *arguments: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a daemon beside us; end it by its own process id, politely first."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [str(BIN / command), *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
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


@contextmanager
def step(text: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    console.print(f"[green]✓[/] {text} [dim]({time.monotonic() - started:.1f} s)[/]")


def write_settings(folder: Path, name: str, replace: dict[str, str]) -> None:
    """Set keys in a configuration file, which may not be there yet."""
    path = folder / name
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = [line for line in lines if line.partition("=")[0].strip() not in replace]
    path.write_text("\n".join([*(f"{key} = {value}" for key, value in replace.items()), *kept]) + "\n", encoding="utf-8")


def wait_until_ready(operator: Path, server: subprocess.Popen[bytes]) -> None:
    for _ in range(100):
        if server.poll() is not None:
            raise CommandFailedError("quorate-server ended by itself; see its log")
        try:
            run("quorate", "--profile", operator, "site", "list")
            return
        except CommandFailedError:
            time.sleep(0.2)
    raise CommandFailedError("quorate-server did not answer")


def set_up_site(root: Path, operator: Path, name: str, table: Path) -> Path:
    """Invite, join, allow unprotected studies (this demo's choice), register the data."""
    invitation, state = root / f"{name}.invitation.json", root / f"site-{name}"
    run("quorate", "--profile", operator, "site", "invite", name, "-o", invitation)
    run("quorate-client", "join", invitation, "--state", state)
    write_settings(state, "policy.toml", {"protection": '["none", "secagg"]', "release": '["operator", "sites"]'})
    write_settings(state, "config.toml", {"metrics_listen": '""'})
    schema = HERE / "schema.toml"
    run("quorate-client", "data", "add", compare.DATASET, table, "--schema", schema, "--state", state)
    return state


def consortium(root: Path) -> None:
    """The whole demo, in the order in which people would act."""
    tables = hospitals.write(root / "data")
    server_dir, operator = root / "server", root / "server" / "operator"
    address = f"127.0.0.1:{free_port()}"
    with ExitStack() as running:
        with step("server: certificate authority, configuration, operator's credential"):
            run("quorate-server", "init", server_dir, "--consortium", "demo", "--address", address, "--listen", address)
            write_settings(server_dir, "server.toml", {"metrics_listen": '""'})
            server = running.enter_context(daemon(root / "server.log", "quorate-server", "run", "--state", server_dir))
            wait_until_ready(operator, server)
        with step("four hospitals: invited, joined over mutual TLS, data checked against the schema"):
            with ThreadPoolExecutor(2) as pool:
                jobs = {n: pool.submit(set_up_site, root, operator, n, table) for n, table in tables.items()}
                states = {name: job.result() for name, job in jobs.items()}
            for name, state in states.items():
                running.enter_context(daemon(root / f"site-{name}.log", "quorate-client", "run", "--state", state))
        with step("study: published by the operator, read and approved by each hospital"):
            run("quorate", "--profile", operator, "study", "publish", HERE / "study.toml")
            with ThreadPoolExecutor(2) as pool:
                for done in [
                    pool.submit(
                        run, "quorate-client", "approve", "malignancy", "--dataset", compare.DATASET, "--state", state
                    )
                    for state in states.values()
                ]:
                    done.result()
        started = time.monotonic()
        run("quorate", "--profile", operator, "run", "start", "malignancy")
        run("quorate", "--profile", operator, "run", "watch", "malignancy", show=True)
        console.print(f"[green]✓[/] run completed [dim]({time.monotonic() - started:.1f} s)[/]")
        run("quorate", "--profile", operator, "model", "fetch", "malignancy", "-o", root / "model.npz")
        for form in ("html", "json"):
            report = root / f"report.{form}"
            run("quorate", "--profile", operator, "run", "report", "malignancy", "--format", form, "-o", report)
    compare.show(console, tables, HERE / "schema.toml", root / "model.npz")
    console.print(f"model   {root / 'model.npz'}\nreport  {root / 'report.html'}  (and report.json)\nlogs    {root}/*.log")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run a whole consortium on this machine.")
    parser.add_argument("--folder", type=Path, default=Path("demo-run"), help="where everything is written (emptied first)")
    options = parser.parse_args(arguments)
    root: Path = options.folder.resolve()
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    os.environ.update(OMP_NUM_THREADS="1", FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1")
    started = time.monotonic()
    try:
        consortium(root)
    except CommandFailedError as error:
        console.print(f"[red]The demo failed:[/] {error}\nLogs are in {root}/*.log", highlight=False)
        return 1
    console.print(f"[dim]{time.monotonic() - started:.0f} s in all; every process has ended[/]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
