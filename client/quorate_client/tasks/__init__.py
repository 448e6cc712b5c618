"""What a task is: installed code that knows how to read data, train and evaluate, and nothing of rounds or networks.

A study names a task by its entry point (group ``quorate.tasks``); the installed object implements ``Task``. Importing
it must be cheap (no torch, no numpy): the daemon and the operator's checks ask it about parameters only. ``open`` is
called in a task worker process, which may import what it likes.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from quorate.errors import TaskMissingError
from quorate.evaluation import ClassificationTally
from quorate_client.agreement import Dataset
from quorate_client.schema import Schema

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Vector = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What local training did: how many records, and the sum of their losses during the last pass over them."""

    records: int
    loss_sum: float


@runtime_checkable
class Task(Protocol):
    """An installed task."""

    def check(self, parameters: Mapping[str, Any]) -> None:
        """Raises StudyError, naming each wrong key, when a study's parameters are not valid."""

    def schema(self, parameters: Mapping[str, Any]) -> Schema:
        """What data must look like to be used with these parameters. Raises StudyError as ``check`` does."""

    def open(self, parameters: Mapping[str, Any], dataset: Dataset, seed: int) -> TaskSession:
        """Load a data set in a task worker.

        Args:
            parameters: The study's.
            dataset: A registered data set that fits ``schema(parameters)``.
            seed: The study's; the first model depends on it and on the parameters only.

        Raises:
            StudyError, SchemaError, DataError.
        """


class TaskSession(Protocol):
    """A task on loaded data. ``statistics`` may be asked for at any time, ``begin`` comes before everything else."""

    @property
    def records(self) -> int:
        """Training records."""

    def statistics(self) -> tuple[int, ...]:
        """Exact integers about the training records that are summed over all sites; empty if none are needed."""

    def begin(self, statistics: tuple[int, ...]) -> None:
        """Build the model from the summed statistics. Raises ContributionError if they cannot be such a sum."""

    def initial(self) -> Vector:
        """The first model [P], the same bits at every site."""

    def train(self, theta: Vector, round_number: int, rng_seed: int, proximal_mu: float) -> tuple[Vector, TrainReport]:
        """Train from ``theta`` [P] and give the update [P], the trained model less ``theta``.

        Args:
            theta: The global model.
            round_number: From 1.
            rng_seed: What the order of the records depends on.
            proximal_mu: FedProx's pull towards ``theta``; 0 is none.

        Raises:
            UpdateNotFiniteError: training produced NaN or infinity.
        """

    def evaluate(self, theta: Vector) -> ClassificationTally:
        """Count how ``theta`` does on the test records. Raises UpdateNotFiniteError if its outputs are not finite."""

    def export(self, theta: Vector) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """The model as named arrays, and what is needed to apply it, as plain JSON values."""


def load_task(reference: str) -> Task:
    """The installed object behind ``MODULE:ATTRIBUTE`` (``quorate.tasks.task_reference`` gives it for a task's name).

    Raises:
        TaskMissingError: there is no such object, or it is not a task.
    """
    module, _, attribute = reference.partition(":")
    try:
        task = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise TaskMissingError(
            f"The task {reference} cannot be loaded", action="Install the package that provides it, and what it needs"
        ) from error
    if not isinstance(task, Task):
        raise TaskMissingError(
            f"{reference} is not a task", expected="an object with the methods check, schema and open"
        )
    return task
