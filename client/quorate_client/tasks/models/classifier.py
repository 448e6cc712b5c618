"""What a classifier does in a task worker once its data are tensors: the part that tables and images share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from quorate.errors import WrongStateError
from quorate.tally import ClassificationTally
from quorate_client.tasks import Trainable, TrainReport
from quorate_client.tasks.models.scoring import tally
from quorate_client.tasks.parameters import LocalTraining
from quorate_client.tasks.training.sgd import (
    FlatModel,
    LocalSettings,
    Vector,
    best_device,
    initial_vector,
    log_loss,
    outputs_of,
    train,
)

FORMAT = "quorate.model/1"


class ClassifierSession(ABC):
    """A ``TaskSession`` and a ``PrivateSession``.

    A subclass gives the statistics, and in ``begin`` the module and the tensors.
    """

    def __init__(self, parameters: LocalTraining, seed: int) -> None:
        self._settings = LocalSettings(
            epochs=parameters.epochs,
            batch_size=parameters.batch_size,
            learning_rate=parameters.learning_rate,
            weight_decay=parameters.weight_decay,
            optimizer=parameters.optimizer,
        )
        self._seed = seed
        self._device = best_device()
        self._model: FlatModel | None = None
        self._training: tuple[Tensor, Tensor]
        self._test: tuple[Tensor, Tensor]

    @property
    @abstractmethod
    def records(self) -> int: ...

    @property
    @abstractmethod
    def unit_numbers(self) -> npt.NDArray[np.int64] | None:
        """Of each training record the number of its unit; None where each is a unit of its own."""

    @abstractmethod
    def statistics(self) -> tuple[int, ...]: ...

    @abstractmethod
    def begin(self, statistics: tuple[int, ...]) -> None: ...

    @abstractmethod
    def metadata(self) -> Mapping[str, Any]:
        """What belongs to the released model beside its arrays. JSON values."""

    def start(
        self,
        module: nn.Module,
        training: tuple[npt.NDArray[Any], npt.NDArray[np.int64]],
        test: tuple[npt.NDArray[Any], npt.NDArray[np.int64]],
    ) -> None:
        """Take over the model and (features, labels) of both parts. Called by ``begin``."""
        self._model = FlatModel(module, self._device)
        self._training = self._tensors(*training)
        self._test = self._tensors(*test)

    def initial(self) -> Vector:
        return initial_vector(self._begun().module, self._seed)

    def train(self, theta: Vector, round_number: int, rng_seed: int, proximal_mu: float) -> tuple[Vector, TrainReport]:
        return train(self._begun(), *self._training, log_loss, self._settings, theta, rng_seed, proximal_mu)

    def trainable(self) -> Trainable:
        return Trainable(self._begun().module, *self._training, log_loss, self._settings, self.unit_numbers)

    def evaluate(self, theta: Vector) -> ClassificationTally:
        model, (features, labels) = self._begun(), self._test
        outputs = outputs_of(model, features, theta)
        losses = log_loss(outputs, labels)
        return tally(outputs.cpu().numpy(), losses.cpu().numpy(), labels.cpu().numpy())

    def export(self, theta: Vector) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        model = self._begun()
        model.load(theta)
        return dict(model.arrays()), {"format": FORMAT, **self.metadata()}

    def _begun(self) -> FlatModel:
        if self._model is None:
            raise WrongStateError("The task was used before it had begun", expected="begin() first")
        return self._model

    def _tensors(self, features: npt.NDArray[Any], labels: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        return torch.tensor(features, device=self._device), torch.tensor(labels, device=self._device)
