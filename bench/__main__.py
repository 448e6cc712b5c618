"""``python -m bench NAME`` runs one bench, prints its table and writes it to build/bench/NAME.json.

A bench is a module of this package with a function ``rows(size) -> list[Row]`` and two sizes, FULL and SMALL. With the
word ``small`` behind its name it does everything that it does, with little of each, to show that it still runs: those
figures say nothing, and go to NAME-small.json. A goal that is missed shows in the table and in the file; the command
fails only when a figure could not be measured.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from rich.console import Console

from bench import table

BENCHES = ("rounds", "secagg", "privacy", "upgrade", "synthetic", "attestation")
RESULTS = Path("build/bench")
USAGE = f"usage: python -m bench NAME [small], where NAME is one of: {', '.join(BENCHES)}"


def main(arguments: list[str]) -> int:
    console = Console()
    if not arguments or arguments[0] not in BENCHES or arguments[1:] not in ([], ["small"]):
        console.print(USAGE, markup=False)
        return 2
    bench = importlib.import_module(f"bench.{arguments[0]}")
    rows = bench.rows(bench.SMALL if arguments[1:] else bench.FULL)
    path = RESULTS / f"{'-'.join(arguments)}.json"
    table.write(rows, path)
    table.show(rows, f"bench {' '.join(arguments)}", console)
    missed = sum(row.met is False for row in rows)
    console.print(f"{missed or 'No'} goal{'' if missed == 1 else 's'} missed. Written to {path}.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
