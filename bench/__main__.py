"""``python -m bench NAME`` runs one bench, prints its table and writes it to build/bench/NAME.json.

A bench is a module of this package with a function ``rows() -> list[Row]``. A goal that is missed shows in the table
and in the file; the command fails only when a figure could not be measured.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from rich.console import Console

from bench import table

BENCHES = ("rounds", "secagg", "privacy")
RESULTS = Path("build/bench")


def main(arguments: list[str]) -> int:
    console = Console()
    if len(arguments) != 1 or arguments[0] not in BENCHES:
        console.print(f"usage: python -m bench NAME, where NAME is one of: {', '.join(BENCHES)}")
        return 2
    name = arguments[0]
    rows = importlib.import_module(f"bench.{name}").rows()
    path = RESULTS / f"{name}.json"
    table.write(rows, path)
    table.show(rows, f"bench {name}", console)
    missed = sum(row.met is False for row in rows)
    console.print(f"{missed or 'No'} goal{'' if missed == 1 else 's'} missed. Written to {path}.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
