"""Commands and daemons as processes of their own, and waiting for what they do. Every wait has an end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import psutil

from tests.patience import PATIENCE_S

BIN = Path(sys.executable).parent
TASK_FOLDER = Path(__file__).parent / "slow_task"

_APPS = {
    "quorate": "quorate_operator.cli.app",
    "quorate-client": "quorate_client.cli.app",
    "quorate-server": "quorate_server.cli.app",
}
Value = TypeVar("Value")


def environment() -> dict[str, str]:
    """Of every process that is started here. Proxies of this machine have no business on its loopback."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return kept | {
        "PYTHONPATH": str(TASK_FOLDER),
        "OMP_NUM_THREADS": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }


def commands(program: str, *lines: Sequence[str | Path]) -> None:
    """Run command lines of a program (``quorate``, say), one after the other in one process: starting is what takes
    time.
    """
    script = (
        f"import json, sys\nfor line in json.loads(sys.argv[1]):\n    {_APPS[program]}(line, standalone_mode=False)"
    )
    module = _APPS[program].rpartition(".")[0]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import {module}\n{script}",
            json.dumps([[str(word) for word in line] for line in lines]),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
        env=environment(),
    )
    assert done.returncode == 0, f"{program}: {lines}\n{done.stdout}{done.stderr}"


def eventually(found: Callable[[], Value | None], what: str) -> Value:
    """What ``found`` gives once that is true."""
    end = time.monotonic() + PATIENCE_S
    while True:
        value = found()
        if value:
            return value
        assert time.monotonic() < end, f"waited {PATIENCE_S:g} s for {what}"
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_settings(path: Path, settings: Mapping[str, str]) -> None:
    """Set keys in a configuration file, which may not be there yet. Values are TOML."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = [line for line in lines if line.partition("=")[0].strip() not in settings]
    path.write_text("\n".join([*(f"{k} = {v}" for k, v in settings.items()), *kept]) + "\n", encoding="utf-8")


class Daemon:
    """One process beside us, in a session of its own, with its log."""

    def __init__(self, log: Path, *line: str | Path) -> None:
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [str(word) for word in line],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment(),
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def runs(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """As a power cut would: it learns nothing of it."""
        self.process.kill()
        self.process.wait(PATIENCE_S)

    def stop(self) -> int:
        """Politely. Returns its exit code."""
        if self.runs:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
        return self.process.wait(PATIENCE_S)

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def exit_code(self) -> int:
        """Of a process that ends by itself."""
        return self.process.wait(PATIENCE_S)

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.pid).children(recursive=True)

    def end(self) -> None:
        """Whatever state it is in."""
        if self.runs:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.kill()
