"""What a task is: installed code that knows how to read data, train and evaluate, and nothing of rounds or networks.

A study names a task by its entry point (group ``quorate.tasks``); the installed object implements ``Task``. Importing
it must be cheap (no torch, no numpy): the daemon and the operator's checks ask it about parameters only. ``open`` is
called in a task worker process, which may import what it likes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from quorate.errors import ConfigError, PrivacyUnsupportedError
from quorate.tally import ClassificationTally
from quorate_client.site.agreement import Dataset
from quorate_client.tasks.data.schema import Schema

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor, nn

    from quorate_client.tasks.training.sgd import LocalSettings

    Vector = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What local training did: how many records, and the sum of their losses during the last pass over them."""

    records: int
    loss_sum: float


@dataclass(frozen=True, slots=True)
class PrivateSettings:
    """One round of DP-SGD at one site (Abadi et al. 2016, algorithm 1), as the site's account has it.

    Args:
        clip: Each record's gradient is cut to this L2 norm.
        noise_multiplier: The standard deviation of the noise on the sum of a step's gradients, over ``clip``.
        sampling_rate: The chance of each unit to be in a step: of a record, unless the data set names its units.
        steps: Of this round.
        units: From how many a step draws.
    """

    clip: float
    noise_multiplier: float
    sampling_rate: float
    steps: int
    units: int

    @property
    def expected_batch(self) -> float:
        """What the noisy sum is divided by, and never by those that a step happened to draw."""
        return self.units * self.sampling_rate

    def __post_init__(self) -> None:
        if not all(math.isfinite(size) and size > 0 for size in (self.clip, self.noise_multiplier)):
            raise ConfigError("Private training needs a clip and a noise multiplier above 0")
        if not self.sampling_rate > 0 or min(self.steps, self.units) < 1:
            raise ConfigError("Private training needs a sampling rate above 0, and at least one step and one unit")
        if self.sampling_rate > 0.5:
            raise PrivacyUnsupportedError(
                "There are too few training records for the steps of DP-SGD that the study asks for",
                expected="twice as many records as a step expects, since a record is hidden by the steps that lack it",
                action="Choose a smaller privacy.training.batch_size, or leave this site out",
            )


@dataclass(frozen=True, slots=True)
class Trainable:
    """What a task hands over for DP-SGD. The loop is Quorate's: a task draws no records, takes no steps, adds no noise.

    That is against mistakes. A task's code runs in the same process, and a hostile one can do all of this and more.

    The promise is made to each row of ``features`` and ``labels``. Whoever puts a record in twice, to balance classes
    for example, promises less to it than the account says.

    Args:
        module: Its parameters, in their order, are the model [P]. A record's output depends on that record alone, and
            not on chance: no batch norm, no dropout. It is copied.
        features: [n, ...], on the device on which to train.
        labels: [n], on the same device.
        loss: (outputs [n, ...], labels [n]) -> the loss of each record [n], from that record alone.
        settings: Of the optimiser. Epochs and batch size do not count: ``PrivateSettings`` has its own.
        units: Of each record the number of its unit, as ``data.load_table`` gives them; a step then draws units.
    """

    module: nn.Module
    features: Tensor
    labels: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]
    settings: LocalSettings
    units: npt.NDArray[np.int64] | None = None


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
        """

    def evaluate(self, theta: Vector) -> ClassificationTally:
        """Count how ``theta`` does on the test records, whatever its outputs are."""

    def export(self, theta: Vector) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """The model as named arrays, and what is needed to apply it, as plain JSON values."""


@runtime_checkable
class PrivateSession(Protocol):
    """What a ``TaskSession`` can do beside if DP-SGD can train its model. Its ``statistics`` must then be empty.

    Statistics of training records are a release of their own, which DP-SGD's account does not cover.
    """

    def trainable(self) -> Trainable:
        """The model, the training records and the loss, as they are after ``begin``."""
