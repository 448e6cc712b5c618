"""An attack on what DP-SGD gives away: it must do no better than the promise, and better once the noise is gone.

Many small models are trained with and without one record that nobody else resembles. Who knows all other records says
from the loss of that record whether it was there. How often that is right bounds epsilon from below (Nasr et al. 2021,
section 4). The bound is blunt: what it lets pass, the tests of noise, clipping and sampling have to find.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from scipy import stats
from torch import Tensor, nn

from quorate_client.tasks import PrivateSettings, Trainable
from quorate_client.tasks.training.dp_sgd import PrivateTraining
from quorate_client.tasks.training.sgd import FlatModel, LocalSettings, log_loss, outputs_of

MODELS = 800
DELTA = 1e-3
CONFIDENCE = 0.95
LOCAL = LocalSettings(epochs=1, batch_size=1, learning_rate=1.0, weight_decay=0.0, optimizer="sgd")
PRIVATE = PrivateSettings(clip=1.0, noise_multiplier=1.2, sampling_rate=0.5, steps=4, units=40)
CANARY = torch.tensor([[0.0, 0.0, 0.0, 10.0]]), torch.tensor([1])


class Repeated:
    """The same attack at each run of the test."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def draw(self, count: int) -> bytes:
        return self._rng.bytes(count)


def records(canary: bool) -> tuple[Tensor, Tensor]:
    features = torch.randn(40, 4, generator=torch.Generator().manual_seed(1))
    features[:, 3] = 0.0
    labels = (features[:, 0] > 0).long()
    if not canary:
        return features, labels
    return torch.cat([features, CANARY[0]]), torch.cat([labels, CANARY[1]])


def scores(settings: PrivateSettings, canary: bool) -> npt.NDArray[np.float64]:
    """How well each of many models knows the canary: less its loss, [MODELS]."""
    model = FlatModel(nn.Sequential(nn.Linear(4, 1)), torch.device("cpu"))
    training = PrivateTraining(Trainable(model.module, *records(canary), log_loss, LOCAL), Repeated(canary))
    found = np.empty(MODELS)
    theta = np.zeros(5, np.float32)
    own = replace(settings, units=40 + canary)
    for i in range(MODELS):
        update = training.train(theta, own, 0.0)
        found[i] = -float(log_loss(outputs_of(model, CANARY[0], update), CANARY[1]))
    return found


def least_epsilon(settings: PrivateSettings) -> float:
    """With 95 % confidence the attack shows at least this epsilon."""
    seen, unseen = scores(settings, True), scores(settings, False)
    half = MODELS // 2
    best = max(unseen[:half], key=lambda threshold: _bound(seen[:half], unseen[:half], threshold))
    return _bound(seen[half:], unseen[half:], best)


def _bound(seen: npt.NDArray[np.float64], unseen: npt.NDArray[np.float64], threshold: float) -> float:
    count, doubt = len(seen), (1 - CONFIDENCE) / 2
    hits, alarms = int((seen > threshold).sum()), int((unseen > threshold).sum())
    hit_rate = stats.beta.ppf(doubt, hits, count - hits + 1) if hits else 0.0
    alarm_rate = stats.beta.ppf(1 - doubt, alarms + 1, count - alarms) if alarms < count else 1.0
    return float(np.log(max(hit_rate - DELTA, 1e-9) / alarm_rate))


@pytest.fixture(scope="module")
def promised() -> float:
    accountant = PLDAccountant()
    step = PoissonSampledDpEvent(PRIVATE.sampling_rate, GaussianDpEvent(PRIVATE.noise_multiplier))
    accountant.compose(step, PRIVATE.steps)
    return float(accountant.get_epsilon(DELTA))


def test_the_attack_shows_no_more_than_was_promised(promised: float) -> None:
    shown = least_epsilon(PRIVATE)
    assert 0.2 * promised < shown < promised  # an attack that finds nothing would prove nothing


def test_the_attack_shows_more_than_was_promised_once_the_noise_is_off(promised: float) -> None:
    assert least_epsilon(replace(PRIVATE, noise_multiplier=1e-9)) > promised
