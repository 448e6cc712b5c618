"""What a step of DP-SGD costs at a site, beside Opacus as it comes.

CPU time of one thread, medians over turns that alternate between the two. The peer is Opacus' GradSampleModule and
DPOptimizer with noise from torch's generator, which has only 2^32 streams; ours draws noise and sampling from AES. Both
take Poisson batches of the same rate from the same records, and step with plain SGD.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from bench.table import Row
from quorate_client.tasks import PrivateSettings, Trainable
from quorate_client.tasks.data.schema import ImageSchema
from quorate_client.tasks.image import ImageParameters
from quorate_client.tasks.models import image, tabular
from quorate_client.tasks.training.dp_sgd import PrivateTraining
from quorate_client.tasks.training.sgd import LocalSettings, initial_vector, log_loss

RECORDS = 4096
MOST = 1.1
"""Times the peer's time that a step of ours may take."""
RATE, CLIP, NOISE = 0.1, 1.0, 1.1


def training_steps(batches: Sequence[int], turns: int) -> list[Row]:
    """A step for each model and batch, the median of so many turns."""
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(RECORDS, 30, generator=generator)
    images = torch.randint(0, 256, (RECORDS, 1, 28, 28), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 2, (RECORDS,), generator=generator)
    schema = ImageSchema(kind="images", height=28, width=28, channels=1, classes=("0", "1"))
    cases: list[tuple[str, Callable[[], nn.Module], Tensor, int]] = [
        ("logistic regression, 30 features", lambda: tabular.build(30, (), 1), table, 200),
        ("perceptron 30-64-32-1", lambda: tabular.build(30, (64, 32), 1), table, 50),
        ("convolutions on 28 x 28 pixels", lambda: image.build(ImageParameters(), schema), images, 2),
    ]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [
            _step(f"a step, {name}, batch {batch}", module, features, labels, batch, steps, turns)
            for name, module, features, steps in cases
            for batch in batches
        ]
    finally:
        torch.set_num_threads(threads)


def _step(
    name: str, module: Callable[[], nn.Module], features: Tensor, labels: Tensor, batch: int, steps: int, turns: int
) -> Row:
    ours, peer = _ours(module(), features, labels, batch), _peer(module(), features, labels, batch)
    seconds: tuple[list[float], list[float]] = [], []
    for turn in range(turns + 1):
        for work, spent in zip((ours, peer), seconds, strict=True):
            started = time.process_time()
            work(steps)
            if turn:  # the first is for the caches
                spent.append((time.process_time() - started) / steps * 1000)
    medians = [statistics.median(spent) for spent in seconds]
    return Row(name, "ms", medians[0], MOST * medians[1], medians[1])


def _ours(module: nn.Module, features: Tensor, labels: Tensor, batch: int) -> Callable[[int], None]:
    local = LocalSettings(epochs=1, batch_size=batch, learning_rate=RATE, weight_decay=0.0, optimizer="sgd")
    training = PrivateTraining(Trainable(module, features, labels, log_loss, local))
    theta = initial_vector(module, 1)
    settings = PrivateSettings(CLIP, NOISE, batch / len(labels), 1, len(labels))
    return lambda steps: (training.train(theta, replace(settings, steps=steps), 0.0), None)[1]


def _peer(module: nn.Module, features: Tensor, labels: Tensor, batch: int) -> Callable[[int], None]:
    nn.utils.vector_to_parameters(torch.tensor(initial_vector(module, 1)), module.parameters())
    hooked = GradSampleModule(module)
    optimizer = DPOptimizer(
        torch.optim.SGD(hooked.parameters(), lr=RATE),
        noise_multiplier=NOISE,
        max_grad_norm=CLIP,
        expected_batch_size=batch,
    )

    def work(steps: int) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            for _ in range(steps):
                chosen = (torch.rand(len(labels)) < batch / len(labels)).nonzero()[:, 0]
                optimizer.zero_grad()
                log_loss(hooked(features[chosen]), labels[chosen]).mean().backward()  # type: ignore[no-untyped-call]
                optimizer.step()

    return work
