"""The main job on one machine: one server and four hospitals, as separate processes with separate folders.

Each step runs the command that a person would type. Everything is written below one folder; nothing is left running.
"""

from __future__ import annotations

import sys
from pathlib import Path

from demo import compare, hospitals
from demo.consortium import Consortium
from demo.kit import program
from demo.kit.program import console, step

HERE = Path(__file__).parent
SCHEMA = HERE / "schema.toml"
PRIVATE, OPEN = "malignancy", "malignancy-without-noise"


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
        consortium.write_report(PRIVATE, "report")
        console.print("\nWhat the hospital east has on its ledger now, at its policy's delta and not the study's:")
        consortium.site("east", "ledger", "show", show=True)
    sites = {name: consortium.site_state(name) for name in tables}
    compare.show(console, tables, sites, SCHEMA, root / "model.npz", root / "model-without-noise.npz")
    console.print(f"model   {root / 'model.npz'}\nreport  {root / 'report.html'} (and .json)\nlogs    {root}/*.log")


if __name__ == "__main__":
    sys.exit(program.main(run, "demo", "Run a whole consortium on this machine."))
