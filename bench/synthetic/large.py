"""``large.py RECORDS COLUMNS`` makes one table of that size and prints seconds and peak MB.

A process of its own, so that its peak of memory is that of the generator and of the table it is given.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time

import numpy as np

from quorate_client.synthetic.generator import generate, plan
from quorate_client.tasks.data.schema import Label, NumberColumn, TabularSchema
from quorate_client.tasks.data.table import Table


def seconds_and_megabytes(records: int, columns: int) -> tuple[float, float]:
    """Of one generation at epsilon 1, in a process of its own."""
    command = [sys.executable, __file__, str(records), str(columns)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, megabytes = done.stdout.split()
    return float(seconds), float(megabytes)


def measured(records: int, columns: int) -> tuple[TabularSchema, Table]:
    """Any table of that size: columns that hang together in groups of five."""
    lot = np.random.default_rng(0)
    groups = lot.normal(size=(records, -(-columns // 5)))
    values = {f"c{place}": np.clip(groups[:, place // 5] + lot.normal(size=records), -8, 8) for place in range(columns)}
    schema = TabularSchema(
        kind="tabular",
        columns=tuple(NumberColumn(name=name, type="number", range=(-8.0, 8.0)) for name in values),
        label=Label(name="label", classes=("no", "yes")),
    )
    return schema, Table(values, (groups[:, 0] > 1).astype(np.int64))


def main(records: int, columns: int) -> None:
    schema, table = measured(records, columns)
    started = time.perf_counter()
    generate(plan(schema, 1.0, 1e-5), schema, table, records, bytes(32))
    print(time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
