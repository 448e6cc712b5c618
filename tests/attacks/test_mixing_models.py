"""Models and losses that mix records where a probe of a few would not see it, and tasks that count their own steps.

DP-SGD's promise rests on one thing: taking one record away changes nothing but that record's own, clipped gradient.
Each model here breaks that, in batches as they occur in training and not in the smallest.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from quorate.errors import PrivacyUnsupportedError
from quorate.process.randomness import Randomness
from quorate_client.rounds.model.state import THETA_OFFSET
from quorate_client.rounds.task_calls import TaskCalls
from quorate_client.tasks import PrivateSettings, Trainable
from quorate_client.tasks.training.dp_sgd import PrivateTraining
from quorate_client.tasks.training.sgd import LocalSettings, Loss, log_loss
from tests.client.engine_kit import make_agreement, make_study
from tests.client.in_process import InProcessWorkers

LOCAL = LocalSettings(epochs=1, batch_size=1, learning_rate=0.1, weight_decay=0.0, optimizer="sgd")
PRIVATE = PrivateSettings(clip=1.0, noise_multiplier=1.0, sampling_rate=0.1, steps=2, units=400)
RECORDS = 400
LARGEST = 78
"""So many records are in a batch at most: six standard deviations above the 40 that are expected."""
BEYOND = 8
"""So many records a probe of old looked at."""


def train(module: nn.Module, loss: Loss, rates: Sequence[float] = (0.1,), randomness: Randomness | None = None) -> None:
    """Rounds of training, each with its own chance for a record to be in a step."""
    features = torch.randn(RECORDS, 5, generator=torch.Generator().manual_seed(1))
    labels = (features[:, 0] > 0).long()
    theta = np.zeros(sum(parameter.numel() for parameter in module.parameters()), np.float32)
    training = PrivateTraining(Trainable(module, features, labels, loss, LOCAL), randomness)
    for rate in rates:
        training.train(theta, replace(PRIVATE, sampling_rate=rate), 0.0)


class MixesMany(nn.Module):
    """Takes the mean away, of a batch that is large enough to have one."""

    def __init__(self, most: int = BEYOND) -> None:
        super().__init__()
        self.most = most

    def forward(self, values: Tensor) -> Tensor:
        return values if len(values) <= self.most else values - values.mean(dim=0)


class MixesOdd(nn.Module):
    """Shows in no batch of 16, 32 or 64."""

    def forward(self, values: Tensor) -> Tensor:
        return values if len(values) <= BEYOND or len(values) % 2 == 0 else values - values.mean(dim=0)


class Counts(nn.Module):
    """Writes down how many records it sees."""

    seen: ClassVar[list[int]] = []

    def forward(self, values: Tensor) -> Tensor:
        self.seen.append(len(values))
        return values


class TurnsTheLast(nn.Module):
    """Signs by a record's place: whoever comes after one that was taken away gets another."""

    def forward(self, values: Tensor) -> Tensor:
        places = torch.arange(len(values))[:, None]
        return torch.where((places >= BEYOND) & (places % 2 == 0), -values, values)


class Remembers(nn.Module):
    """What it saw in the last batch goes into this one, and no buffer of its tells so."""

    def __init__(self) -> None:
        super().__init__()
        self.before = torch.zeros(5)

    def forward(self, values: Tensor) -> Tensor:
        before, self.before = self.before, values.detach().mean(dim=0)
        return values + before


class DropsOut(nn.Module):
    """By torch's generator, whose stream is known, and by a record's place in the batch: without a layer to know by."""

    def forward(self, values: Tensor) -> Tensor:
        return nn.functional.dropout(values, 0.5)


def hardest(kept: int) -> Loss:
    """Learns from the records with the largest losses alone: who is among them depends on the others."""

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        losses = log_loss(outputs, labels)
        if len(losses) <= kept:
            return losses
        return torch.where(losses >= losses.topk(kept).values[-1], losses, 0.0 * losses)

    return loss


def by_place(outputs: Tensor, labels: Tensor) -> Tensor:
    places = torch.arange(len(labels))
    return log_loss(outputs, labels) * torch.where((places >= BEYOND) & (places % 2 == 0), -1.0, 1.0)


def weighted_by_class(outputs: Tensor, labels: Tensor) -> Tensor:
    """Class weights from the batch, once there are enough records to tell."""
    losses = log_loss(outputs, labels)
    return losses if len(labels) <= BEYOND else losses / labels.float().mean().clamp(min=0.1)


def harder_in_a_crowd(outputs: Tensor, labels: Tensor) -> Tensor:
    """Longer gradients for those records whose gradient is so long that it is cut to the same length in any case.

    With other parameters it is not.
    """
    losses = log_loss(outputs, labels)
    return torch.where(losses > 2.0, losses * (1 + len(losses)), losses)


def logistic(*before: nn.Module) -> nn.Module:
    return nn.Sequential(*before, nn.Linear(5, 1))


def mlp(*between: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 5), nn.ReLU(), *between, nn.Linear(5, 1))


@pytest.mark.parametrize("build", [logistic, mlp])
@pytest.mark.parametrize(
    "mixing",
    [
        MixesMany(),
        MixesMany(32),
        MixesMany(LARGEST - 1),
        MixesOdd(),
        TurnsTheLast(),
        Remembers(),
        DropsOut(),
        nn.Dropout(0.5),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_model_in_which_records_change_each_other_in_larger_batches_is_refused(
    build: Callable[[nn.Module], nn.Module], mixing: nn.Module
) -> None:
    with pytest.raises(PrivacyUnsupportedError):
        train(build(mixing), log_loss)


@pytest.mark.parametrize("build", [logistic, mlp])
@pytest.mark.parametrize("loss", [hardest(9), hardest(32), by_place, weighted_by_class, harder_in_a_crowd])
def test_a_loss_in_which_records_change_each_other_in_larger_batches_is_refused(
    build: Callable[[], nn.Module], loss: Any
) -> None:
    with pytest.raises(PrivacyUnsupportedError):
        train(build(), loss)


def test_a_model_never_sees_more_records_than_it_was_tried_with() -> None:
    class Everybody:
        """By chance a step draws all records."""

        def draw(self, count: int) -> bytes:
            return bytes(count)

    Counts.seen.clear()
    train(logistic(Counts()), log_loss, randomness=Everybody())
    assert max(Counts.seen) == LARGEST
    assert sum(Counts.seen[-6:]) == RECORDS  # five whole pieces and what is left, in the last step


def test_a_model_is_tried_again_before_it_sees_more_records() -> None:
    train(logistic(MixesMany(LARGEST)), log_loss)
    with pytest.raises(PrivacyUnsupportedError):
        train(logistic(MixesMany(LARGEST)), log_loss, rates=(0.1, 0.2))


@pytest.fixture
def dishonest_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path / "site-packages"
    info = folder / "dishonest_task-1.0.dist-info"
    info.mkdir(parents=True)
    shutil.copy(Path(__file__).parent / "dishonest_task.py", folder)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: dishonest-task\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[quorate.tasks]\nlinear = dishonest_task:TASK\n")
    monkeypatch.syspath_prepend(str(folder))
    yield
    sys.modules.pop("dishonest_task", None)


@pytest.mark.usefixtures("dishonest_installed")
@pytest.mark.parametrize("how", ["own loop", "twice"])
async def test_a_task_that_would_train_as_it_likes_writes_no_update(tmp_path: Path, how: str) -> None:
    study = make_study(parameters={"how": how})
    update, theta = tmp_path / "update", tmp_path / "theta"
    state: Any = SimpleNamespace(path=theta, dimension=3)
    theta.write_bytes(bytes(THETA_OFFSET + 12))
    task = TaskCalls(InProcessWorkers(), make_agreement(study, tmp_path), (), lambda: 0.0)
    with pytest.raises(PrivacyUnsupportedError):
        await task.train_privately(state, update, PRIVATE, 0.0)
    assert not update.exists()
