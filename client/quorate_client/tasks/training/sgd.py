"""Local training in torch: one model, one set of tensors, one loss.

The three are kept apart, so that whatever trains differently (with per-record gradients, say) takes the same. A loss
gives one value for each record and depends on that record alone; only its mean over a batch is formed here.

The parameters of a model are views into one vector, and so are their gradients: the vector that travels needs no
copying together, and an optimiser's step is a few operations whatever the number of layers. With a tiny model that, and
indexing tensors instead of a DataLoader, is most of a round's time.

Imports torch: only task workers import this module.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from quorate_client.tasks import TrainReport

Vector = npt.NDArray[np.float32]
Loss = Callable[[Tensor, Tensor], Tensor]
"""(outputs [n, ...], labels [n]) -> the loss of each record [n]."""

_INITIAL_CONTEXT = b"quorate/initial-model/v1\x00"
_EVALUATION_BATCH = 1024
_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """How to train in one round. The weight decay is an L2 penalty on all parameters."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    optimizer: Literal["sgd", "adam"]


class FlatModel:
    """A module whose parameters and gradients are views into two vectors."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.module = module.to(device)
        parameters = list(module.parameters())
        size = sum(parameter.numel() for parameter in parameters)
        self.theta = torch.zeros(size, device=device)
        self.gradient = torch.zeros(size, device=device)
        start = 0
        for parameter in parameters:
            end = start + parameter.numel()
            parameter.data = self.theta[start:end].view(parameter.shape)
            parameter.grad = self.gradient[start:end].view(parameter.shape)
            start = end

    def load(self, theta: Vector) -> None:
        """Take over a model [P]."""
        self.theta.copy_(torch.tensor(theta))

    def arrays(self) -> dict[str, npt.NDArray[np.float32]]:
        """A copy of the parameters by name."""
        return {name: value.detach().cpu().numpy().copy() for name, value in self.module.named_parameters()}


class FlatOptimizer:
    """Plain SGD, or Adam (Kingma and Ba 2015, algorithm 1, with its defaults), on one vector.

    Not torch.optim's: on one vector an optimiser is a few lines, and making one of torch's loads its compiler, which
    takes a second and 70 MB. The weight decay is added to the gradient, as torch.optim's SGD and Adam do.
    """

    def __init__(self, settings: LocalSettings, theta: Tensor) -> None:
        self._settings = settings
        self._steps = 0
        self._moments = (torch.zeros_like(theta), torch.zeros_like(theta)) if settings.optimizer == "adam" else ()

    def step(self, theta: Tensor, gradient: Tensor) -> None:
        """Change ``theta`` [P] in place. ``gradient`` [P] is spent."""
        rate = self._settings.learning_rate
        if self._settings.weight_decay:
            gradient.add_(theta, alpha=self._settings.weight_decay)
        if not self._moments:
            theta.add_(gradient, alpha=-rate)
            return
        self._steps += 1
        first, second = self._moments
        first.lerp_(gradient, 1 - _BETA1)
        second.mul_(_BETA2).addcmul_(gradient, gradient, value=1 - _BETA2)
        spread = (second / (1 - _BETA2**self._steps)).sqrt_().add_(_EPSILON)
        theta.addcdiv_(first, spread, value=-rate / (1 - _BETA1**self._steps))


def best_device() -> torch.device:
    """The GPU, if there is one; it is told to compute the same thing twice in the same way."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    return torch.device("cuda")


def initial_vector(module: nn.Module, seed: int) -> Vector:
    """The first model [P], from nothing but the module's shape and the seed.

    Weights are uniform in +-sqrt(6 / fan-in) (He et al. 2015), the last layer is zero so that all classes start alike,
    biases are zero and the scales of normalisations one. Drawn with SHAKE-256 and exactly rounded arithmetic, not with
    a library's generator: sites with other versions or processors must arrive at the same bits.
    """
    weighted = [layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    size = sum(parameter.numel() for parameter in module.parameters())
    stream = hashlib.shake_256(_INITIAL_CONTEXT + seed.to_bytes(8, "big")).digest(4 * size)
    uniform = np.frombuffer(stream, dtype="<u4") * 2.0**-31 - 1.0
    bounds = {layer.weight: math.sqrt(6 / layer.weight[0].numel()) for layer in weighted[:-1]}
    scales = {layer.weight for layer in module.modules() if isinstance(layer, nn.GroupNorm)}
    vector = np.zeros(size, dtype=np.float32)
    start = 0
    for parameter in module.parameters():
        end = start + parameter.numel()
        if parameter in scales:
            vector[start:end] = 1.0
        elif parameter in bounds:
            vector[start:end] = uniform[start:end] * bounds[parameter]
        start = end
    return vector


def log_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of each record. One output is the log odds of class 1, several are the classes' logits."""
    if outputs.shape[1] == 1:
        return nn.functional.binary_cross_entropy_with_logits(outputs[:, 0], labels.to(outputs.dtype), reduction="none")
    return nn.functional.cross_entropy(outputs, labels, reduction="none")


def train(
    model: FlatModel,
    features: Tensor,
    labels: Tensor,
    loss: Loss,
    settings: LocalSettings,
    theta: Vector,
    rng_seed: int,
    proximal_mu: float,
) -> tuple[Vector, TrainReport]:
    """Minibatch training from ``theta`` [P] on records [n, ...] and labels [n], all on the model's device.

    With ``proximal_mu`` the loss has the term mu/2 * ||theta' - theta||^2 (FedProx; Li et al. 2020, equation 2).

    Returns:
        The update [P], and how many records it is from with the sum of their losses in the last epoch. What is not
        finite in it is the daemon's affair.
    """
    model.load(theta)
    start = model.theta.clone()
    optimizer = FlatOptimizer(settings, model.theta)
    order = torch.Generator().manual_seed(rng_seed % 2**63)
    loss_sum = torch.zeros((), device=start.device)
    model.module.train()
    for _ in range(settings.epochs):
        loss_sum.zero_()
        shuffled = torch.randperm(len(labels), generator=order).to(start.device)
        for chosen in torch.split(shuffled, settings.batch_size):
            model.gradient.zero_()
            losses = loss(model.module(features[chosen]), labels[chosen])
            losses.mean().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            if proximal_mu:
                model.gradient.add_(model.theta - start, alpha=proximal_mu)
            optimizer.step(model.theta, model.gradient)
            loss_sum += losses.detach().sum()
    return update_since(start, model), TrainReport(len(labels), float(loss_sum))


def update_since(start: Tensor, model: FlatModel) -> Vector:
    """What training changed, [P]."""
    update: Vector = (model.theta - start).cpu().numpy()
    return update


def outputs_of(model: FlatModel, features: Tensor, theta: Vector) -> Tensor:
    """What the model ``theta`` gives for each record [n, ...], without gradients."""
    model.load(theta)
    model.module.eval()
    with torch.inference_mode():
        return torch.cat([model.module(piece) for piece in torch.split(features, _EVALUATION_BATCH)])
