"""Four hospitals detect cancer: synthetic training data, noise before sending, noise after averaging, secure sums.

Each hospital makes a synthetic set of its records. Six studies then differ in one thing each: what is left out shows
what it cost. All of them run as real processes; each is also trained many times in one process, for one run with noise
is one draw.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo import hospitals
from demo.collaborative import page
from demo.collaborative.repeated import read_study, train_again
from demo.collaborative.variants import EPSILON, VARIANTS, Variant
from demo.consortium import Consortium
from demo.kit import models, program, synthetic
from demo.kit.program import console, step
from quorate_client.tasks.data.table import Table, read_table

SCHEMA = Path(hospitals.__file__).parent / "schema.toml"
CELLS, MADE = "cells", "cells-synthetic"


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything.

    Args:
        rounds: Of each study. times: That each is trained in one process.
    """

    rounds: int = 4
    times: int = 25


def run(root: Path, size: Size = Size()) -> page.Told:
    """The whole demo, in the order in which people would act. Returns what is on the page."""
    started = time.monotonic()
    tables = hospitals.write(root / "data")
    shutil.copy(SCHEMA, root)
    studies = {each.name: root / f"{each.name}.toml" for each in VARIANTS}
    for each in VARIANTS:
        studies[each.name].write_text(each.study(size.rounds), encoding="utf-8")
    with Consortium(root, CELLS) as consortium:
        made = _consortium(consortium, tables, studies)
    with step(f"each of them {size.times} times in one process, to see what is luck"):
        tested, found = _again(root, tables, studies, made, size.times)
    told = page.Told(found, made, tested.records, size.times, time.monotonic() - started)
    page.write(told, root)
    console.print(page.table(told))
    console.print(told.lead, highlight=False)
    console.print(
        f"page    {root / 'collaborative.html'} (and .json)\nreports {root}/NAME.report.html\nlogs    {root}/*.log"
    )
    return told


def _consortium(consortium: Consortium, tables: Mapping[str, Path], studies: Mapping[str, Path]) -> dict[str, Any]:
    """Everything that real processes do. Returns what each hospital says of its synthetic set."""
    with step("server and four hospitals: founded, invited, joined, data checked against the schema"):
        synthetic.begin(consortium, tables, SCHEMA)
    with step(f"each hospital makes synthetic records at epsilon {EPSILON:g} and reads the report on them"):
        made = synthetic.make(consortium, MADE, EPSILON)
    for each in VARIANTS:
        with step(f"run: {each.words}"):
            dataset, among = _source(each, made)
            consortium.run_study(studies[each.name], consortium.root / f"{each.name}.npz", dataset, among)
    consortium.write_report(page.BOTH, "run")
    return made


def _again(
    root: Path, tables: Mapping[str, Path], studies: Mapping[str, Path], made: Mapping[str, Any], times: int
) -> tuple[Table, dict[str, page.Found]]:
    """All held-out records, and each study on them: as it ran, and as it comes out with other luck."""
    schema, sites = models.table_schema(SCHEMA), {name: root / f"site-{name}" for name in tables}
    records = {name: read_table(path, schema) for name, path in tables.items()}
    tested = models.joined([table.part(models.held_out(sites[name], CELLS)) for name, table in records.items()])
    found = {}
    for each in VARIANTS:
        study = read_study(studies[each.name])
        dataset, among = _source(each, made)
        luck = train_again(study, [sites[name] for name in among], dataset, tested, times)
        found[each.name] = page.found(study, root / f"{each.name}.npz", tested, luck)
    return tested, found


def _source(each: Variant, made: Mapping[str, Any]) -> tuple[str, list[str]]:
    """What a study trains on, and at which hospitals: one whose set was refused trains on none."""
    return (MADE, synthetic.usable(made)) if each.is_synthetic else (CELLS, list(made))


if __name__ == "__main__":
    sys.exit(program.main(run, "demo.collaborative", "Four hospitals detect cancer with every protection at once."))
