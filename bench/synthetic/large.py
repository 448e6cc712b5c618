"""``python -m bench.synthetic.large RECORDS COLUMNS`` makes one table of that size and prints seconds and peak MB.

A process of its own, so that its peak of memory is that of the generator and of the table it is given.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time

from bench.synthetic.tables import measured
from quorate_client.synthetic.generator import generate, plan


def seconds_and_megabytes(records: int, columns: int) -> tuple[float, float]:
    """Of one generation at epsilon 1, in a process of its own."""
    command = [sys.executable, "-m", "bench.synthetic.large", str(records), str(columns)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, megabytes = done.stdout.split()
    return float(seconds), float(megabytes)


def main(records: int, columns: int) -> None:
    schema, table = measured(records, columns)
    started = time.perf_counter()
    generate(plan(schema, 1.0, 1e-5), schema, table, records, bytes(32))
    print(time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
