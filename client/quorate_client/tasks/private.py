"""Local training with differential privacy for each unit: DP-SGD (Abadi et al. 2016, algorithm 1).

A step takes each unit with the same chance, cuts the gradient of one of its records to a norm (``sampling``), adds
noise to the sum and divides by the number of units that were to be expected. Neighbouring data sets differ by one unit,
with all its records, that is added or removed.

What needs Opacus is in ``record_gradients``. Only task workers import the two, and only when a study asks for privacy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quorate.secagg.randomness import Randomness, SystemRandomness
from quorate_client.tasks import PrivateReport, PrivateSettings
from quorate_client.tasks.gaussian import standard_normal
from quorate_client.tasks.record_gradients import (
    RecordGradients,
    clipped_sum,
    gradients_of_records,
    require_separable,
)
from quorate_client.tasks.sampling import Units
from quorate_client.tasks.train import FlatModel, FlatOptimizer, LocalSettings, Loss, Vector, update_since

_MOST_VALUES = 1 << 26
"""Numbers that the records in work at one time may need, 256 MB."""
_VALUES_PER_INPUT = 64
"""Estimated numbers in memory for each of a record's inputs: a convolution unfolds its input, for some layers."""


class PrivateTraining:
    """DP-SGD of one model on one set of records [n, ...] and labels [n], all on the model's device.

    Whether the records can be kept apart is found out once, on the real model, before anything is computed that leaves.

    Args:
        loss: One value for each record, from that record alone.
        randomness: For tests; the operating system's otherwise.
        units: Of the records; each is by itself otherwise.

    Raises:
        PrivacyUnsupportedError: one record's gradient depends on others, or it cannot be told.
    """

    def __init__(
        self,
        model: FlatModel,
        features: Tensor,
        labels: Tensor,
        loss: Loss,
        settings: LocalSettings,
        randomness: Randomness | None = None,
        units: Units | None = None,
    ) -> None:
        self._model, self._features, self._labels, self._loss = model, features, labels, loss
        self._settings = settings
        self._randomness = randomness or SystemRandomness()
        self._units = units or Units(len(labels))
        require_separable(model, features, labels, loss)

    def train(self, theta: Vector, private: PrivateSettings, proximal_mu: float) -> tuple[Vector, PrivateReport]:
        """Train from ``theta`` [P]. The task's epochs and batch size do not count; ``private`` has its own.

        Weight decay and FedProx's pull (Li et al. 2020, equation 2) depend on no record and are added after the noise.

        Returns:
            The update [P], and the steps that were taken.

        Raises:
            UpdateNotFiniteError: the update holds NaN or infinity.
        """
        model = self._model
        model.load(theta)
        start = model.theta.clone()
        optimizer = FlatOptimizer(self._settings, model.theta)
        steps = 0
        model.module.train()
        with gradients_of_records(model) as gradients:
            for _ in range(private.steps):
                chosen = self._units.batch(self._randomness, private.sampling_rate).to(start.device)
                total = self._clipped_sum(gradients, chosen, private.clip)
                noise = standard_normal(self._randomness, len(total)).mul_(private.noise_multiplier * private.clip)
                # Summed in double precision and rounded to the model's after that; what leaves the site is rounded
                # again, to the grid of fixed-point numbers. So the low bits tell nothing of the sum without the noise.
                model.gradient.copy_(noise.to(start.device).add_(total).div_(private.expected_batch))
                if proximal_mu:
                    model.gradient.add_(model.theta - start, alpha=proximal_mu)
                optimizer.step(model.theta, model.gradient)
                steps += 1
        return update_since(start, model), PrivateReport(steps)

    def _clipped_sum(self, gradients: RecordGradients, chosen: Tensor, clip: float) -> Tensor:
        """[P], in pieces that fit in memory; zero where no record was drawn, and then the step is noise alone."""
        total = torch.zeros_like(self._model.theta)
        each = len(total) + _VALUES_PER_INPUT * self._features[:1].numel()
        for piece in torch.split(chosen, max(1, _MOST_VALUES // each)) if len(chosen) else ():
            total += clipped_sum(gradients, self._model, self._loss, self._features[piece], self._labels[piece], clip)
        return total
