"""Daemons as processes of their own, and waiting for what they do. Every wait has an end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from demo.consortium import QUIET
from tests.patience import PATIENCE_S

Value = TypeVar("Value")


def environment(packages: Sequence[Path] = ()) -> dict[str, str]:
    """Of every process that is started here; ``packages`` are the folders of what is installed besides.

    Proxies of this machine have no business on its loopback.
    """
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return kept | QUIET | {"PYTHONPATH": os.pathsep.join(map(str, packages))}


@contextmanager
def installed(packages: Sequence[Path]) -> Iterator[None]:
    """The packages are there in this process too: it publishes and approves, which takes their digests.

    What was imported of them is forgotten: there may be another version of a package.
    """
    with pytest.MonkeyPatch.context() as patch:
        for folder in packages:
            patch.syspath_prepend(str(folder))
        before = set(sys.modules)
        try:
            yield
        finally:
            for name in set(sys.modules) - before:
                file = getattr(sys.modules[name], "__file__", None)
                if file is not None and any(Path(file).is_relative_to(folder) for folder in packages):
                    del sys.modules[name]


def eventually(found: Callable[[], Value | None], what: str) -> Value:
    """What ``found`` gives once that is true."""
    end = time.monotonic() + PATIENCE_S
    while not (value := found()):
        assert time.monotonic() < end, f"waited {PATIENCE_S:g} s for {what}"
        time.sleep(0.02)
    return value


class Daemon:
    """One process beside us, in a session of its own, with its log."""

    def __init__(self, log: Path, *line: str | Path, packages: Sequence[Path] = ()) -> None:
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [str(word) for word in line],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment(packages),
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
