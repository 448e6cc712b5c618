"""Four life insurers, one server and a question: which claims are worth an investigation? As real processes.

Each insurer makes synthetic claims from its own ones, reads the report on them, and only then approves studies that
train on them. Then the same question is answered in other ways, to compare.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from demo.consortium import Consortium
from demo.fraud import page
from demo.fraud.comparison import NEURAL, PRIVATE, REAL, SYNTHETIC, Comparison, compare, write
from demo.kit import models, program, synthetic
from demo.kit.program import console, step

HERE = Path(__file__).parent
SCHEMA = HERE.parent / "claims.toml"
CLAIMS, MADE = "claims", "claims-synthetic"
EPSILON = 3.0
HELD_OUT = 0.3


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything: all of it, or little, for a test.

    Args:
        share: Of each insurer's claims. rounds: Of each study; None: as its file says.
    """

    share: float = 1.0
    rounds: int | None = None


def run(root: Path, size: Size = Size()) -> Comparison:
    """The whole demo, in the order in which people would act. Returns what is on the page."""
    started = time.monotonic()
    tables = write(root / "data", size.share)
    studies = {name: _study(root, name, size) for name in (SYNTHETIC, NEURAL, PRIVATE, REAL)}
    released = {name: root / f"{name}.npz" for name in studies}
    with Consortium(root, CLAIMS, HELD_OUT) as consortium:
        with step("server and four insurers: founded, invited, joined, claims checked against the schema"):
            consortium.found()
            consortium.start_server()
            consortium.set_up_sites(tables, SCHEMA)
            for name in tables:
                synthetic.allow_any_loss(consortium, name)
                consortium.start_site(name)
        with step(f"each insurer makes synthetic claims at epsilon {EPSILON:g} and reads the report on them"):
            made = synthetic.make(consortium, MADE, EPSILON)
        with step("two studies on synthetic claims: a logistic regression and a small neural network"):
            for name in (SYNTHETIC, NEURAL):
                consortium.run_study(studies[name], released[name], MADE)
        with step(f"to compare: real claims, with private gradients at epsilon {EPSILON:g}"):
            consortium.run_study(studies[PRIVATE], released[PRIVATE])
        with step("to compare: real claims, without noise"):
            consortium.run_study(studies[REAL], released[REAL])
        for form in ("html", "json"):
            consortium.operator("run", "report", "claims-synthetic", "--format", form, "-o", root / f"run.{form}")
    with step("to compare: each insurer alone, and all real claims in one place"):
        held_out = {name: models.held_out(consortium.site_state(name), CLAIMS) for name in tables}
        found = compare(tables, held_out, SCHEMA, released)
    told = page.Told(found, made, EPSILON, time.monotonic() - started)
    (root / "fraud.json").write_text(json.dumps(told.to_json(), indent=2) + "\n", encoding="utf-8")
    (root / "fraud.html").write_text(page.html(told), encoding="utf-8")
    console.print(page.table(told))
    console.print(told.lead, highlight=False)
    console.print(f"page    {root / 'fraud.html'} (and .json)\nreports {root}/NAME.report.html\nlogs    {root}/*.log")
    return found


def _study(root: Path, name: str, size: Size) -> Path:
    """The study's file, and the schema where it expects it."""
    folder = root / "studies"
    folder.mkdir(exist_ok=True)
    shutil.copy(SCHEMA, root)
    text = (HERE / f"{name}.toml").read_text(encoding="utf-8")
    lines = [
        f"count = {size.rounds}" if size.rounds and line.startswith("count = ") else line for line in text.splitlines()
    ]
    (folder / f"{name}.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / f"{name}.toml"


if __name__ == "__main__":
    sys.exit(program.main(run, "demo.fraud", "Four insurers look for fraud, on synthetic claims and in other ways."))
