"""DP-SGD: the noise that really comes out, what one record can change, who is in a step, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from quorate.errors import ConfigError, PrivacyUnsupportedError
from quorate.process.randomness import Randomness, SystemRandomness
from quorate_client.tasks import PrivateSettings, Trainable
from quorate_client.tasks.training import dp_sgd
from quorate_client.tasks.training.dp_sgd import PrivateTraining
from quorate_client.tasks.training.gaussian import standard_normal
from quorate_client.tasks.training.record_gradients import clipped_sum, gradients_of_records
from quorate_client.tasks.training.sampling import poisson_batch
from quorate_client.tasks.training.sgd import FlatModel, LocalSettings, Loss, log_loss

CPU = torch.device("cpu")
LOCAL = LocalSettings(epochs=1, batch_size=1, learning_rate=0.1, weight_decay=0.0, optimizer="sgd")
PRIVATE = PrivateSettings(clip=0.5, noise_multiplier=1.5, sampling_rate=0.2, steps=4, units=60)
SILENT = replace(PRIVATE, noise_multiplier=1e-30)


class Repeated:
    """Bytes that a test can have again."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def draw(self, count: int) -> bytes:
        return self._rng.bytes(count)


def logistic() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 1))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))


def convolutional() -> nn.Module:
    layers = (nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(12, 2))
    return nn.Sequential(*layers)


MODELS = pytest.mark.parametrize("module", [logistic, mlp, convolutional])


def records(count: int = 60) -> tuple[Tensor, Tensor]:
    features = torch.randn(count, 5, generator=torch.Generator().manual_seed(1))
    return features, (features[:, 0] > 0).long()


def flat(module: nn.Module, scale: float = 1.0) -> FlatModel:
    model = FlatModel(module, CPU)
    model.theta.copy_(torch.randn(len(model.theta), generator=torch.Generator().manual_seed(2)) * scale)
    return model


def start(model: FlatModel) -> npt.NDArray[np.float32]:
    theta: npt.NDArray[np.float32] = model.theta.numpy().copy()
    return theta


def training_of(
    model: FlatModel | nn.Module,
    data: tuple[Tensor, Tensor],
    loss: Loss = log_loss,
    settings: LocalSettings = LOCAL,
    randomness: Randomness | None = None,
) -> PrivateTraining:
    module = model.module if isinstance(model, FlatModel) else model
    return PrivateTraining(Trainable(module, *data, loss, settings), randomness)


def train_once(module: nn.Module, data: tuple[Tensor, Tensor] | None = None, loss: Loss = log_loss) -> None:
    theta = np.zeros(sum(parameter.numel() for parameter in module.parameters()), np.float32)
    features, labels = data or records()
    training_of(module, (features, labels), loss).train(theta, replace(PRIVATE, units=max(1, len(labels))), 0.0)


def no_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    return outputs[:, 0] * 0.0


def summed(model: FlatModel, features: Tensor, labels: Tensor, clip: float, ghost: bool | None = None) -> Tensor:
    model.module.train()
    with gradients_of_records(model, ghost=ghost) as gradients:
        return clipped_sum(gradients, model, log_loss, features, labels, clip)


def one_by_one(model: FlatModel, features: Tensor, labels: Tensor, clip: float) -> Tensor:
    """The same by plain torch, a record at a time."""
    total = torch.zeros_like(model.theta)
    for i in range(len(labels)):
        model.gradient.zero_()
        log_loss(model.module(features[i : i + 1]), labels[i : i + 1]).sum().backward()  # type: ignore[no-untyped-call]
        total += model.gradient * min(1.0, clip / float(model.gradient.norm()))
    return total


# --- noise ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 31, 5001])
def test_noise_is_normal(count: int) -> None:
    randomness = Repeated(count)
    values = torch.cat([standard_normal(randomness, count) for _ in range(20_000 // count + 1)]).numpy()
    assert stats.kstest(values, "norm").pvalue > 0.01
    assert abs(values.std() - 1) < 0.02
    assert np.abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.03


def test_noise_comes_from_all_its_bytes() -> None:
    class Ends:
        def __init__(self, word: bytes) -> None:
            self.draw: Callable[[int], bytes] = lambda count: word * (count // 8)

    for word in (bytes(8), b"\xff" * 8):
        assert standard_normal(Ends(word), 9).isfinite().all()
    drawn = bytearray()

    class Counting:
        def draw(self, count: int) -> bytes:
            drawn.extend(bytes(count))
            return SystemRandomness().draw(count)

    standard_normal(Counting(), 100)
    assert len(drawn) == 100 * 4 * 8  # four samples to a value, each of its own 64 bits


@pytest.mark.parametrize("module", [logistic, mlp])
def test_what_leaves_has_the_noise_that_is_accounted_for(module: Callable[[], nn.Module]) -> None:
    model = flat(module())
    training = training_of(model, records(), no_loss, LOCAL, Repeated(4))
    theta = np.zeros(len(model.theta), np.float32)
    updates = np.concatenate([training.train(theta, PRIVATE, 0.0) for _ in range(6000 // len(theta))])
    wanted = 0.1 * 1.5 * 0.5 * math.sqrt(4) / 12.0  # rate * sigma * clip * sqrt(steps) / expected batch
    assert stats.kstest(updates / wanted, "norm").pvalue > 0.01
    total = float((updates.astype(np.float64) ** 2).sum()) / wanted**2
    assert 0.005 < stats.chi2.cdf(total, len(updates)) < 0.995


def test_no_two_rounds_have_the_same_noise() -> None:
    model = flat(logistic())
    theta = np.zeros(6, np.float32)
    rounds = [training_of(model, records(), no_loss).train(theta, PRIVATE, 0.0) for _ in range(2)]
    assert not np.isclose(rounds[0], rounds[1]).any()


@MODELS
def test_a_step_without_records_is_noise_alone(module: Callable[[], nn.Module]) -> None:
    model = flat(module())
    rare = replace(PRIVATE, sampling_rate=1e-12, steps=3)
    update = training_of(model, records()).train(start(model), rare, 0.0)
    assert (update != 0).all()
    assert np.abs(update).max() < 8 * 0.1 * 1.5 * 0.5 * math.sqrt(3) / rare.expected_batch


def test_the_pull_and_the_weight_decay_come_after_the_noise_and_are_not_clipped() -> None:
    model = flat(logistic())
    theta = np.full(6, 100.0, np.float32)
    decaying = replace(LOCAL, weight_decay=0.5)
    training = training_of(model, records(), no_loss, decaying)
    free = training.train(theta, SILENT, 0.0)
    held = training.train(theta, SILENT, 2.0)
    np.testing.assert_allclose(free, 100 * (0.95**4 - 1), rtol=1e-4)
    x = 0.0
    for _ in range(4):
        x -= 0.1 * (2.0 * x + 0.5 * (100 + x))
    np.testing.assert_allclose(held, x, rtol=1e-4)


# --- sensitivity ------------------------------------------------------------------------------------------------------


@MODELS
@pytest.mark.parametrize("ghost", [False, True])
@pytest.mark.parametrize("clip", [0.05, 1.0, 1e6])
def test_hooks_and_ghost_clipping_give_the_clipped_gradients_of_single_records(
    module: Callable[[], nn.Module], ghost: bool, clip: float
) -> None:
    model = flat(module())
    expected = one_by_one(model, *records(), clip)
    np.testing.assert_allclose(summed(model, *records(), clip, ghost), expected, rtol=1e-4, atol=1e-4 * min(clip, 10))


@MODELS
@pytest.mark.parametrize("ghost", [False, True])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e6, 1e18, 1e30, math.inf, math.nan])
def test_one_record_changes_the_sum_by_no_more_than_the_clip(
    module: Callable[[], nn.Module], ghost: bool, size: float
) -> None:
    model = flat(module())
    features, labels = records(20)
    features[7] *= size
    labels[7] = 0
    others = torch.arange(20) != 7
    change = summed(model, features, labels, 0.25, ghost) - summed(model, features[others], labels[others], 0.25, ghost)
    assert change.isfinite().all()
    assert float(change.norm()) <= 0.25 * (1 + 1e-4)


def test_a_batch_of_nothing_but_unusable_records_is_an_empty_one() -> None:
    model = flat(mlp())
    assert not summed(model, torch.full((3, 5), math.nan), torch.tensor([0, 1, 1]), 1.0).any()


@MODELS
def test_pieces_of_a_batch_give_the_sum_of_the_batch(
    module: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, theta = flat(module()), start(flat(module()))
    settings = replace(SILENT, sampling_rate=0.5)
    whole = training_of(model, records(), log_loss, LOCAL, Repeated(8)).train(theta, settings, 0.0)
    monkeypatch.setattr(dp_sgd, "_MOST_VALUES", 1)
    pieces = training_of(model, records(), log_loss, LOCAL, Repeated(8)).train(theta, settings, 0.0)
    assert np.abs(whole).max() > 1e-3
    np.testing.assert_allclose(pieces, whole, atol=1e-6)


def test_the_sum_is_divided_by_the_expected_batch_and_not_by_the_drawn_one() -> None:
    model = flat(logistic())
    theta, randomness = start(model), Repeated(5)
    drawn = poisson_batch(Repeated(5), 60, 0.2)
    assert len(drawn) != 12
    features, labels = records()
    training = training_of(model, (features, labels), log_loss, LOCAL, randomness)
    update = training.train(theta, replace(SILENT, steps=1), 0.0)
    model.load(theta)
    expected = -0.1 * one_by_one(model, features[drawn], labels[drawn], 0.5) / 12.0
    np.testing.assert_allclose(update, expected, atol=1e-6)


def test_the_module_is_as_it_was_after_private_training() -> None:
    model = flat(mlp())
    training_of(model, records()).train(start(model), PRIVATE, 0.0)
    assert not any(layer._forward_hooks or layer._backward_hooks for layer in model.module.modules())
    assert all(parameter.grad is not None for parameter in model.module.parameters())
    model.theta.fill_(3.0)
    assert all((parameter == 3.0).all() for parameter in model.module.parameters())


# --- sampling ---------------------------------------------------------------------------------------------------------


def test_each_record_is_in_a_step_with_the_same_chance_and_by_itself() -> None:
    rate, steps, count = 0.3, 4000, 12
    taken = np.zeros((steps, count))
    randomness = Repeated(6)
    for step in range(steps):
        taken[step, poisson_batch(randomness, count, rate).numpy()] = 1
    sizes = np.bincount(taken.sum(axis=1).astype(int), minlength=count + 1)
    expected = stats.binom.pmf(np.arange(count + 1), count, rate) * steps
    tail = 8  # few steps are larger
    observed, wanted = np.append(sizes[:tail], sizes[tail:].sum()), np.append(expected[:tail], expected[tail:].sum())
    assert stats.chisquare(observed, wanted).pvalue > 0.01
    per_record = ((taken.sum(axis=0) - steps * rate) ** 2).sum() / (steps * rate * (1 - rate))
    assert stats.chi2.sf(per_record, count) > 0.01
    together = np.corrcoef(taken.T) - np.eye(count)
    assert np.abs(together).max() < 4.5 / math.sqrt(steps)
    assert np.abs(np.corrcoef(taken[:-1].ravel(), taken[1:].ravel())[0, 1]) < 4 / math.sqrt(taken.size)


def test_the_rate_is_exact_at_its_ends() -> None:
    class Fixed:
        def draw(self, count: int) -> bytes:
            return np.array([0, 2**62 - 1, 2**62, 2**64 - 1], dtype="<u8").tobytes()[:count]

    assert poisson_batch(Fixed(), 4, 0.25).tolist() == [0, 1]
    assert poisson_batch(Fixed(), 4, 1.0).tolist() == [0, 1, 2, 3]
    assert poisson_batch(Fixed(), 4, 1e-300).tolist() == []
    assert poisson_batch(SystemRandomness(), 0, 0.5).tolist() == []


def test_the_randomness_is_the_systems_and_not_torchs() -> None:
    model = flat(logistic())
    updates = []
    for _ in range(2):
        torch.manual_seed(1)
        np.random.seed(1)
        updates.append(training_of(model, records()).train(start(model), PRIVATE, 0.0))
        model = flat(logistic())
    assert not np.isclose(*updates).any()


# --- refusals ---------------------------------------------------------------------------------------------------------


class Mixing(nn.Module):
    """Takes the batch's mean away: the sort of layer that Opacus' validator lets pass."""

    def forward(self, values: Tensor) -> Tensor:
        return values - values.mean(dim=0)


class Remembering(nn.Module):
    """What comes out depends on the batch before."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(5))

    def forward(self, values: Tensor) -> Tensor:
        self.last = values.mean(dim=0).detach()
        return values


class Around(nn.Module):
    """Uses a layer's weight without calling the layer, so that hooks see half of its gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)
        self.last = nn.Linear(5, 1)

    def forward(self, values: Tensor) -> Tensor:
        return self.last(nn.functional.linear(self.layer(values), self.layer.weight))  # type: ignore[no-any-return]


class Idle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(5, 1), nn.Linear(5, 1)

    def forward(self, values: Tensor) -> Tensor:
        return self.used(values)  # type: ignore[no-any-return]


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(5, 1))

    def forward(self, values: Tensor) -> Tensor:
        return values @ self.weight


def frozen() -> nn.Module:
    module = mlp()
    for parameter in module[0].parameters():  # type: ignore[index]
        parameter.requires_grad = False
    return module


REFUSED: list[tuple[Callable[[], nn.Module], str]] = [
    (lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)), "batch norm|BatchNorm"),
    (lambda: nn.Sequential(nn.BatchNorm1d(5, affine=False), nn.Linear(5, 1)), "taken apart"),
    (lambda: nn.Sequential(nn.Linear(5, 4), Mixing(), nn.Linear(4, 1)), "depends on the other records"),
    (lambda: nn.Sequential(Remembering(), nn.Linear(5, 1)), "remembers"),
    (lambda: nn.Sequential(nn.Linear(5, 4), nn.Bilinear(4, 4, 1)), "no rule .* Bilinear"),
    (Around, "not those of the model"),
    (Idle, "taken apart"),
    (Bare, "no rule .* Bare"),
    (frozen, "not trained"),
]


@pytest.mark.parametrize(("module", "told"), REFUSED)
def test_a_model_that_cannot_be_taken_apart_is_refused(module: Callable[[], nn.Module], told: str) -> None:
    with pytest.raises(PrivacyUnsupportedError, match=told):
        train_once(module())


def mean_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    return log_loss(outputs, labels).mean()


def weighted_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Weights for a rare class over their mean in the batch, as in torch's cross entropy with reduction="mean"."""
    weights = torch.tensor([1.0, 30.0])[labels]
    return log_loss(outputs, labels) * weights / weights.mean()


def ranked_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    return log_loss(outputs, labels) - 0.5 * outputs[:, 0].max()


@pytest.mark.parametrize(
    ("loss", "told"),
    [(mean_loss, "one loss for each"), (weighted_loss, "other records"), (ranked_loss, "other records")],
)
@pytest.mark.parametrize("classes", [1, 2])
def test_a_loss_that_is_not_of_each_record_alone_is_refused(loss: Any, told: str, classes: int) -> None:
    features, labels = records()
    with pytest.raises(PrivacyUnsupportedError, match=told):  # even where the site's records do not show it
        train_once(logistic(), (features, labels * (classes - 1)), loss)


def test_weights_that_are_public_are_of_each_record_alone() -> None:
    def public(outputs: Tensor, labels: Tensor) -> Tensor:
        return log_loss(outputs, labels) * torch.tensor([1.0, 30.0])[labels]

    train_once(logistic(), loss=public)


@pytest.mark.parametrize(("count", "why"), [(0, "other units"), (1, "too few")])
def test_too_few_records_are_refused(count: int, why: str) -> None:
    with pytest.raises(PrivacyUnsupportedError, match=why):
        train_once(logistic(), records(count))


@pytest.mark.parametrize("units", [59, 61])
def test_other_units_than_those_of_the_account_are_not_trained_on(units: int) -> None:
    model = flat(logistic())
    with pytest.raises(PrivacyUnsupportedError, match=rf"other units.* {units} units; got 60"):
        training_of(model, records()).train(start(model), replace(PRIVATE, units=units), 0.0)


@pytest.mark.parametrize("rate", [0.51, 1.0, 2.0, math.inf])
def test_a_step_that_would_take_most_records_is_refused(rate: float) -> None:
    with pytest.raises(PrivacyUnsupportedError, match=r"too few .*batch_size"):
        replace(PRIVATE, sampling_rate=rate)


@pytest.mark.parametrize(
    "change",
    [
        {"clip": 0.0},
        {"clip": math.inf},
        {"noise_multiplier": 0.0},
        {"noise_multiplier": math.nan},
        {"units": 0},
        {"sampling_rate": 0.0},
        {"sampling_rate": math.nan},
        {"steps": 0},
    ],
)
def test_settings_that_mean_no_privacy_cannot_be_built(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        replace(PRIVATE, **change)


def test_a_record_that_cannot_be_used_does_not_stop_the_others() -> None:
    features, labels = records()
    model = flat(logistic())
    training = training_of(model, (features, labels))
    features[5] = math.nan
    update = training.train(start(model), replace(PRIVATE, sampling_rate=0.5), 0.0)
    assert np.isfinite(update).all()


def test_randomness_is_what_secure_aggregation_takes_too() -> None:
    repeated: Randomness = Repeated(1)
    assert len(repeated.draw(3)) == 3
