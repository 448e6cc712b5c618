"""The local training loop against torch's own optimisers, and what it promises beside."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from quorate_client.tasks.training.sgd import FlatModel, LocalSettings, initial_vector, log_loss, outputs_of, train

SETTINGS = LocalSettings(epochs=2, batch_size=16, learning_rate=0.1, weight_decay=0.0, optimizer="sgd")
CPU = torch.device("cpu")


def module() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 1))


def records(count: int = 50) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(count, 5, generator=generator)
    return features, (features[:, 0] * features[:, 1] > 0).long()


def random_theta() -> npt.NDArray[np.float32]:
    return np.random.default_rng(4).normal(scale=0.5, size=50).astype(np.float32)


def trained(settings: LocalSettings, seed: int = 3, mu: float = 0.0) -> npt.NDArray[np.float32]:
    return train(FlatModel(module(), CPU), *records(), log_loss, settings, random_theta(), seed, mu)[0]


def trained_by_torch(settings: LocalSettings, seed: int = 3, mu: float = 0.0) -> npt.NDArray[np.float32]:
    """The same written the usual way: module parameters, torch.optim, the proximal term as a part of the loss."""
    model = module()
    nn.utils.vector_to_parameters(torch.tensor(random_theta()), model.parameters())
    start = [parameter.detach().clone() for parameter in model.parameters()]
    kind: Any = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[settings.optimizer]
    optimizer = kind(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    features, labels = records()
    order = torch.Generator().manual_seed(seed)
    for _ in range(settings.epochs):
        for chosen in torch.randperm(50, generator=order).split(settings.batch_size):  # type: ignore[no-untyped-call]
            optimizer.zero_grad()
            pull = sum(((p - s) ** 2).sum() for p, s in zip(model.parameters(), start, strict=True))
            (log_loss(model(features[chosen]), labels[chosen]).mean() + mu / 2 * pull).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return nn.utils.parameters_to_vector(model.parameters()).detach().numpy() - random_theta()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize(("weight_decay", "mu"), [(0.0, 0.0), (0.05, 0.0), (0.0, 0.7), (0.05, 0.7)])
def test_training_does_what_torch_does(optimizer: Any, weight_decay: float, mu: float) -> None:
    settings = replace(SETTINGS, optimizer=optimizer, weight_decay=weight_decay, learning_rate=0.02)
    expected = trained_by_torch(settings, mu=mu)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(trained(settings, mu=mu), expected, atol=2e-5)


def test_the_proximal_term_holds_the_model_near_the_global_one() -> None:
    distances = [np.linalg.norm(trained(replace(SETTINGS, epochs=20), mu=mu)) for mu in (0.0, 0.5, 5.0)]
    assert distances[0] > 1.3 * distances[1] > 1.3 * 1.3 * distances[2] > 0


def test_training_depends_on_its_seed_and_on_nothing_else() -> None:
    assert trained(SETTINGS).tobytes() == trained(SETTINGS).tobytes()
    assert trained(SETTINGS).tobytes() != trained(SETTINGS, seed=4).tobytes()
    torch.manual_seed(99)
    assert trained(SETTINGS, seed=2**64 - 1).tobytes() == trained(SETTINGS, seed=2**64 - 1).tobytes()


def test_a_model_that_was_used_before_gives_the_same_update() -> None:
    model = FlatModel(module(), CPU)
    first, _ = train(model, *records(), log_loss, SETTINGS, random_theta(), 3, 0.0)
    again, _ = train(model, *records(), log_loss, SETTINGS, random_theta(), 3, 0.0)
    assert first.tobytes() == again.tobytes()


def test_the_report_holds_the_losses_of_the_last_epoch() -> None:
    model, theta = FlatModel(module(), CPU), random_theta()
    features, labels = records()
    still = replace(SETTINGS, learning_rate=1e-30)
    _, report = train(model, features, labels, log_loss, still, theta, 3, 0.0)
    assert report.records == 50
    assert report.loss_sum == pytest.approx(float(log_loss(outputs_of(model, features, theta), labels).sum()), rel=1e-5)


def test_a_read_only_model_is_neither_refused_nor_changed() -> None:
    theta = random_theta()
    theta.flags.writeable = False
    train(FlatModel(module(), CPU), *records(), log_loss, SETTINGS, theta, 3, 0.0)
    assert theta.tobytes() == random_theta().tobytes()


@pytest.mark.parametrize("trouble", ["learning rate", "features", "theta"])
def test_an_update_that_is_not_finite_is_left_to_the_daemon(trouble: str) -> None:
    features, labels = records()
    theta, settings = random_theta(), SETTINGS
    match trouble:
        case "learning rate":
            settings = replace(SETTINGS, learning_rate=1e30, epochs=5)
        case "features":
            features[3, 2] = float("nan")
        case "theta":
            theta[0] = np.inf
    update, _ = train(FlatModel(module(), CPU), features, labels, log_loss, settings, theta, 3, 0.0)
    assert not np.isfinite(update).all()


def test_the_first_model_has_the_same_bits_everywhere() -> None:
    vector = initial_vector(module(), 7)
    assert vector.dtype == np.float32
    assert vector.tobytes() == initial_vector(module(), 7).tobytes()
    assert vector.tobytes() != initial_vector(module(), 8).tobytes()
    np.testing.assert_array_equal(vector[:3], np.array([-0.5543243, -1.0755318, -0.18930382], np.float32))


def test_the_first_model_scales_weights_by_fan_in_and_gives_all_classes_the_same_chance() -> None:
    vector = initial_vector(module(), 7)
    assert (np.abs(vector[:35]) <= np.sqrt(6 / 5)).all()
    assert 0.4 < vector[:35].std() < 0.85
    assert (vector[35:] == 0).all()  # biases and the last layer
    normed = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(4, 2))
    shape = initial_vector(normed, 7)
    assert (shape[40:44] == 1).all()
    assert (shape[44:] == 0).all()


def test_losses_are_of_each_record_alone() -> None:
    features, labels = records()
    outputs = FlatModel(module(), CPU).module(features)
    together = log_loss(outputs, labels)
    assert together.shape == (50,)
    assert log_loss(outputs[7:8], labels[7:8]).item() == pytest.approx(together[7].item())
    several = torch.randn(50, 3, generator=torch.Generator().manual_seed(1))
    np.testing.assert_allclose(
        log_loss(several, labels).numpy(), -torch.log_softmax(several, 1)[torch.arange(50), labels].numpy(), atol=1e-6
    )


def test_two_outputs_and_one_output_have_the_same_loss() -> None:
    odds = torch.linspace(-4, 4, 9)[:, None]
    labels = torch.arange(9) % 2
    two = torch.cat([torch.zeros_like(odds), odds], dim=1)
    np.testing.assert_allclose(log_loss(odds, labels).numpy(), log_loss(two, labels).numpy(), atol=1e-6)


def test_large_parts_are_evaluated_in_pieces_that_make_the_whole() -> None:
    model, theta = FlatModel(module(), CPU), random_theta()
    features, _ = records(2500)
    whole = outputs_of(model, features, theta)
    assert whole.shape == (2500, 1)
    np.testing.assert_allclose(
        whole[1100:1110].numpy(), outputs_of(model, features[1100:1110], theta).numpy(), atol=1e-6
    )
