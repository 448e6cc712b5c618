"""Local training with differential privacy for each unit: DP-SGD (Abadi et al. 2016, algorithm 1).

A step takes each unit with the same chance, cuts the gradient of one of its records to a norm (``sampling``), adds
noise to the sum and divides by the number of units that were to be expected. Neighbouring data sets differ by one unit,
with all its records, that is added or removed.

The loop is here and not in a task: a task hands over a model, its records and its loss, and has no say in what is
drawn, how many steps are taken and what noise is added.

What needs Opacus is in ``record_gradients``. Only task workers import the two, and only when a study asks for privacy.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from quorate.errors import PrivacyUnsupportedError
from quorate.process.randomness import Randomness, SystemRandomness
from quorate_client.tasks import PrivateSettings, Trainable
from quorate_client.tasks.training.gaussian import standard_normal
from quorate_client.tasks.training.record_gradients import (
    RecordGradients,
    clipped_sum,
    gradients_of_records,
    require_separable,
)
from quorate_client.tasks.training.sampling import Units
from quorate_client.tasks.training.sgd import FlatModel, FlatOptimizer, Vector, update_since

_MOST_VALUES = 1 << 26
"""Numbers that the records in work at one time may need, 256 MB."""
_VALUES_PER_INPUT = 64
"""Estimated numbers in memory for each of a record's inputs: a convolution unfolds its input, for some layers."""
_MOST_RECORDS = 1024
"""In work at one time: more makes a step no faster, and each is tried alone once."""
_SPREAD = 6.0
"""Standard deviations by which a step's batch may be larger than expected and still be worked on in one piece."""


class PrivateTraining:
    """DP-SGD of a task's model on its records.

    Whether the records can be kept apart is found out once, on a copy of the real model and in batches as they are
    going to be, before anything is computed that leaves. The model never sees a larger one than it was tried with.

    Args:
        randomness: For tests; the operating system's otherwise.
    """

    def __init__(self, trainable: Trainable, randomness: Randomness | None = None) -> None:
        self._trainable = trainable
        self._units = Units(len(trainable.labels), trainable.units)
        self._randomness = randomness or SystemRandomness()
        # A copy, since the task goes on with its own, which may have other vectors under its parameters.
        self._model = FlatModel(copy.deepcopy(trainable.module), trainable.features.device)
        self._tried = 0

    def train(self, theta: Vector, private: PrivateSettings, proximal_mu: float) -> Vector:
        """Train from ``theta`` [P] for all of ``private.steps``, and give the update [P].

        Weight decay and FedProx's pull (Li et al. 2020, equation 2) depend on no record and are added after the noise.

        Raises:
            PrivacyUnsupportedError: one record's gradient depends on others, or it cannot be told, or the units are not
                those of the account. Nothing was trained.
        """
        if private.units != self._units.count:
            raise PrivacyUnsupportedError(
                "The task would draw from other units than those of the account",
                expected=f"{private.units} units",
                got=f"{self._units.count}",
                action="Tell the author of the task",
            )
        model = self._model
        largest = self._require_separable(private.sampling_rate)
        model.load(theta)
        start = model.theta.clone()
        optimizer = FlatOptimizer(self._trainable.settings, model.theta)
        model.module.train()
        with gradients_of_records(model) as gradients:
            for _ in range(private.steps):
                chosen = self._units.batch(self._randomness, private.sampling_rate).to(start.device)
                total = self._clipped_sum(gradients, chosen, private.clip, largest)
                noise = standard_normal(self._randomness, len(total)).mul_(private.noise_multiplier * private.clip)
                # Summed in double precision and rounded to the model's after that; what leaves the site is rounded
                # again, to the grid of fixed-point numbers. So the low bits tell nothing of the sum without the noise.
                model.gradient.copy_(noise.to(start.device).add_(total).div_(private.expected_batch))
                if proximal_mu:
                    model.gradient.add_(model.theta - start, alpha=proximal_mu)
                optimizer.step(model.theta, model.gradient)
        return update_since(start, model)

    def _require_separable(self, sampling_rate: float) -> int:
        """Try the model, unless it was tried; returns how many records it may see at one time."""
        features, labels = self._trainable.features, self._trainable.labels
        expected = sampling_rate * self._units.count
        each = len(self._model.theta) + _VALUES_PER_INPUT * features[:1].numel()
        fitting = min(_MOST_RECORDS, _MOST_VALUES // each)
        largest = max(1, min(fitting, math.ceil(expected + _SPREAD * math.sqrt(expected))))
        if largest > self._tried:
            require_separable(self._model, features, labels, self._trainable.loss, largest)
            self._tried = largest
        return largest

    def _clipped_sum(self, gradients: RecordGradients, chosen: Tensor, clip: float, largest: int) -> Tensor:
        """[P], in pieces of at most ``largest``; zero where no record was drawn, and then the step is noise alone."""
        data = self._trainable
        total = torch.zeros_like(self._model.theta)
        for piece in torch.split(chosen, largest) if len(chosen) else ():
            total += clipped_sum(gradients, self._model, data.loss, data.features[piece], data.labels[piece], clip)
        return total
