"""The main job on one machine: one server and four hospitals, as separate processes with separate folders.

Each step runs the command that a person would type. Everything is written below one folder; nothing is left running.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from demo import compare, hospitals
from demo.consortium import CommandFailedError, Consortium

HERE = Path(__file__).parent
SCHEMA = HERE / "schema.toml"
PRIVATE, OPEN = "malignancy", "malignancy-without-noise"
console = Console()


@contextmanager
def step(text: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    console.print(f"[green]✓[/] {text} [dim]({time.monotonic() - started:.1f} s)[/]")


def run(root: Path) -> None:
    """The whole demo, in the order in which people would act."""
    tables = hospitals.write(root / "data")
    with Consortium(root) as consortium:
        with step("server: certificate authority, configuration, operator's credential"):
            consortium.found()
            consortium.start_server()
        with step("four hospitals: invited, joined over mutual TLS, data checked against the schema"):
            consortium.set_up_sites(tables, SCHEMA)
            for name in tables:
                consortium.start_site(name)
        with step("two studies, with noise for privacy and without: published, read and approved by each hospital"):
            for study, file in ((PRIVATE, "study.toml"), (OPEN, "study-without-noise.toml")):
                consortium.operator("study", "publish", HERE / file)
                consortium.approve(study)
        with step("run: 20 rounds with differential privacy"):
            consortium.operator("run", "start", PRIVATE)
            consortium.operator("run", "watch", PRIVATE, show=True)
        with step("run: 20 rounds without, to compare"):
            consortium.operator("run", "start", OPEN)
            consortium.operator("run", "watch", OPEN)
        for study, file in ((PRIVATE, "model.npz"), (OPEN, "model-without-noise.npz")):
            consortium.operator("model", "fetch", study, "-o", root / file)
        for form in ("html", "json"):
            consortium.operator("run", "report", PRIVATE, "--format", form, "-o", root / f"report.{form}")
        console.print("\nWhat the hospital east has on its ledger now, at its policy's delta and not the study's:")
        consortium.site("east", "ledger", "show", show=True)
    sites = {name: consortium.site_state(name) for name in tables}
    compare.show(console, tables, sites, SCHEMA, root / "model.npz", root / "model-without-noise.npz")
    console.print(f"model   {root / 'model.npz'}\nreport  {root / 'report.html'} (and .json)\nlogs    {root}/*.log")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m demo", description="Run a whole consortium on this machine.")
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


if __name__ == "__main__":
    sys.exit(main())
