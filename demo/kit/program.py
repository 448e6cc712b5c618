"""What each demo is as a program: a folder that is emptied first, steps that say how long they took, an end."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from demo.consortium import CommandFailedError

console = Console()


@contextmanager
def step(text: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    console.print(f"[green]✓[/] {text} [dim]({time.monotonic() - started:.1f} s)[/]")


def main(run: Callable[[Path], object], name: str, description: str) -> int:
    """Run a demo below the folder that the command line names. Returns the exit code.

    Args:
        name: Of the module that was started.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {name}", description=description)
    parser.add_argument("--folder", type=Path, default=Path("demo-run"), help="where all is written; emptied first")
    root: Path = parser.parse_args().folder.resolve()
    if root.exists() and not (root / "server.log").exists() and any(root.iterdir()):
        console.print(f"[red]{root} holds something else than an earlier demo;[/] choose another --folder")
        return 2
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    # So that the daemons are ended, too: they have sessions of their own.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    started = time.monotonic()
    try:
        run(root)
    except CommandFailedError as error:
        console.print(f"[red]The demo failed:[/] {error}\nThe logs are {root}/*.log", highlight=False)
        return 1
    console.print(f"[dim]{time.monotonic() - started:.0f} s in all; every process has ended[/]")
    return 0
