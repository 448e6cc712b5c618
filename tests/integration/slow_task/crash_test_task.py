"""A task that a test can hold, crash and audit; found through PYTHONPATH, beside its entry point.

It writes every step that it begins into ``control/steps``, in its working folder, which is its site's own. A file
``control/STEP`` is an order for that step: ``hold`` (until the file is gone), ``raise``, ``allocate``. Steps are named
``measure``, ``train-ROUND``, ``evaluate-ROUND``, ``export-ROUND``, and ``initial-1`` where a model is only made to be
measured, ``initial-2`` where it is used. With a file ``control/keep`` each update is written to
``control/update-ROUND``.

What it learns can be checked by hand: each site adds 1 to its own coordinate in each round. The average of a round so
holds each contributor's share of the records; a contribution that is lost or counted twice shows in the sum of rounds.
The other coordinates are small noise, different in each training, so that no two updates are alike. The last one tells
the models apart with which studies of different seeds begin.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quorate.tally import BINS, ClassificationTally
from quorate_client.site.agreement import Dataset
from quorate_client.tasks import TrainReport
from quorate_client.tasks.data.schema import Schema, parse_schema

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Vector = npt.NDArray[np.float32]

CANARY = "canary-4711-patient-name"
NOISE = 1e-3
POLL_S = 0.01


class CrashTestSession:
    def __init__(self, sites: list[str], dimension: int, dataset: Dataset, seed: int) -> None:
        self.records = dataset.records
        self._seed = seed
        self._sites = sites
        self._dimension = dimension
        self._place = sites.index(dataset.name)
        self._made = 0

    def statistics(self) -> tuple[int, ...]:
        _step("measure")
        return ()

    def begin(self, statistics: tuple[int, ...]) -> None:
        pass

    def initial(self) -> Vector:
        import numpy as np

        self._made += 1
        _step(f"initial-{self._made}")
        theta = np.zeros(self._dimension, np.float32)
        theta[-1] = self._seed * NOISE
        return theta

    def train(self, theta: Vector, round_number: int, rng_seed: int, proximal_mu: float) -> tuple[Vector, TrainReport]:
        import numpy as np

        _step(f"train-{round_number}")
        update = np.random.default_rng(rng_seed).uniform(-NOISE, NOISE, self._dimension).astype(np.float32)
        update[: len(self._sites)] = 0.0
        update[self._place] = 1.0
        if Path("control/keep").exists():
            Path(f"control/update-{round_number}").write_bytes(update.tobytes())
        return update, TrainReport(self.records, float(self.records))

    def evaluate(self, theta: Vector) -> ClassificationTally:
        _step(f"evaluate-{self._rounds_in(theta)}")
        histogram = [0] * BINS
        histogram[0] = 1
        return ClassificationTally(2, 1, (1, 0, 0, 1), (*histogram, *histogram))

    def export(self, theta: Vector) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        _step(f"export-{self._rounds_in(theta)}")
        return {"shares": theta[: len(self._sites)]}, {"task": "crash-test"}

    def _rounds_in(self, theta: Vector) -> int:
        """The shares of each round's contributors add up to one."""
        return round(float(theta[: len(self._sites)].sum()))


class CrashTestTask:
    def check(self, parameters: Mapping[str, Any]) -> None:
        pass

    def schema(self, parameters: Mapping[str, Any]) -> Schema:
        return parse_schema(parameters["schema"], "The schema of the study")

    def open(self, parameters: Mapping[str, Any], dataset: Dataset, seed: int) -> CrashTestSession:
        return CrashTestSession(parameters["sites"], parameters["dimension"], dataset, seed)


TASK = CrashTestTask()


def _step(name: str) -> None:
    """Write the step down, then do as ordered."""
    control = Path("control")
    with (control / "steps").open("a") as steps:
        steps.write(f"{name} {os.getpid()}\n")
    order = control / name
    if not order.exists():
        return
    match order.read_text():
        case "hold":
            while order.exists():
                time.sleep(POLL_S)
        case "raise":
            raise RuntimeError(f"the record of {CANARY} could not be read")
        case "allocate":
            bytearray(64 << 30)
        case other:
            raise AssertionError(f"no such order: {other}")
