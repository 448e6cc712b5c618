"""Four life insurers, one server and a question: which claims are worth an investigation? As real processes.

Each insurer makes synthetic claims from its own ones, reads the report on them, and only then approves studies that
train on them. Then the same question is answered in other ways, to compare.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demo.consortium import Consortium
from demo.fraud import page
from demo.fraud.comparison import NEURAL, PRIVATE, REAL, SYNTHETIC, compare, write
from demo.kit import models, program, synthetic
from demo.kit.program import console, step

HERE = Path(__file__).parent
SCHEMA = HERE.parent / "claims.toml"
CLAIMS, MADE = "claims", "claims-synthetic"
EPSILON = 3.0
HELD_OUT = 0.3
STEPS = {
    SYNTHETIC: "synthetic claims, logistic regression",
    NEURAL: "synthetic claims, small neural network",
    PRIVATE: f"to compare, real claims with private gradients at epsilon {EPSILON:g}",
    REAL: "to compare, real claims without noise",
}


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything: all of it, or little, for a test.

    Args:
        share: Of each insurer's claims.
        studies: Those that are run.
        instead: Values of keys that the studies' files have another one for.
    """

    share: float = 1.0
    studies: tuple[str, ...] = (SYNTHETIC, NEURAL, PRIVATE, REAL)
    instead: Mapping[str, int] = field(default_factory=dict)


def run(root: Path, size: Size = Size()) -> page.Told:
    """The whole demo, in the order in which people would act. Returns what is on the page."""
    started = time.monotonic()
    tables = write(root / "data", size.share)
    studies = {name: _study(root, name, size.instead) for name in size.studies}
    released = {name: root / f"{name}.npz" for name in studies}
    with Consortium(root, CLAIMS, HELD_OUT) as consortium:
        made = _consortium(consortium, tables, studies, released)
    with step("to compare, each insurer alone, and all real claims in one place"):
        held_out = {name: models.held_out(consortium.site_state(name), CLAIMS) for name in tables}
        found = compare(tables, held_out, SCHEMA, released)
    told = page.Told(found, made, EPSILON, time.monotonic() - started)
    page.write(told, root)
    console.print(page.table(told))
    console.print(told.lead, highlight=False)
    console.print(" ".join(told.verdict[1:]), highlight=False)
    console.print(f"page    {root / 'fraud.html'} (and .json)\nreports {root}/NAME.report.html\nlogs    {root}/*.log")
    return told


def _consortium(
    consortium: Consortium, tables: Mapping[str, Path], studies: Mapping[str, Path], released: Mapping[str, Path]
) -> dict[str, Any]:
    """Everything that real processes do. Returns what each insurer says of its synthetic set."""
    with step("server and four insurers: founded, invited, joined, claims checked against the schema"):
        synthetic.begin(consortium, tables, SCHEMA)
    with step(f"each insurer makes synthetic claims at epsilon {EPSILON:g} and reads the report on them"):
        made = synthetic.make(consortium, MADE, EPSILON)
    for name, file in studies.items():
        dataset, among = (MADE, synthetic.usable(made)) if name in (SYNTHETIC, NEURAL) else (CLAIMS, None)
        with step(f"{STEPS[name]}: published, approved, run"):
            consortium.run_study(file, released[name], dataset, among)
    consortium.write_report("claims-synthetic", "run")
    return made


def _study(root: Path, name: str, instead: Mapping[str, int]) -> Path:
    """The study's file, with the schema where it expects it."""
    folder = root / "studies"
    folder.mkdir(exist_ok=True)
    shutil.copy(SCHEMA, root)
    lines = (HERE / f"{name}.toml").read_text(encoding="utf-8").splitlines()
    keys = [line.partition(" = ")[0] for line in lines]
    lines = [f"{key} = {instead[key]}" if key in instead else line for key, line in zip(keys, lines, strict=True)]
    (folder / f"{name}.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / f"{name}.toml"


if __name__ == "__main__":
    sys.exit(program.main(run, "demo.fraud", "Four insurers look for fraud, on synthetic claims and in other ways."))
