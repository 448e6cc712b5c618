"""The gradients of single records, clipped and added up, and whether a model lets them be had.

Of Opacus only the parts that know a layer's mathematics are used: its validator, and the hooks that give each record's
gradient, or its norm. Its PrivacyEngine is left alone: it takes the sampling rate from the length of a DataLoader (one
over a whole number), truncates the expected batch, keeps an account of its own, and draws from torch's generator, of
which there are only 2^32 (the secure one that it would take cannot be installed any more).

Imports torch and Opacus: only task workers import this module, and only when a study asks for privacy.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from opacus.grad_sample.grad_sample_module import GradSampleHooks
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleHooksFastGradientClipping
from opacus.validators import ModuleValidator
from torch import Tensor

from quorate.errors import PrivacyUnsupportedError
from quorate_client.tasks.train import FlatModel, Loss

_SHORTEST = 1e-6
"""Added to norms before dividing by them, as Opacus does; it only makes gradients shorter."""
_PROBES = 8
_TOLERANCE = 1e-3
_FOREIGN = (RuntimeError, ValueError, TypeError, AttributeError, IndexError, NotImplementedError)
"""What torch, Opacus or a model raise when a model or a loss cannot work on one record."""


class RecordGradients(Protocol):
    """What Opacus' hooks make of a batch of records."""

    hooks: GradSampleHooks

    def clipped(self, losses: Tensor, clip: float) -> tuple[Tensor, Tensor]:
        """From the loss of each record: the norm of its gradient [n], and the sum of the clipped gradients [P]."""


class _Kept:
    """Each record's whole gradient in memory.

    Fastest for a model of one layer, and for convolutions: Opacus has no rule for their norms alone.
    """

    def __init__(self, model: FlatModel) -> None:
        self.hooks = GradSampleHooks(model.module, loss_reduction="sum")
        self._parameters: list[Any] = list(model.module.parameters())  # Opacus adds attributes to them
        self._reached = _smallest_of_each_layer(model)

    def clipped(self, losses: Tensor, clip: float) -> tuple[Tensor, Tensor]:
        torch.autograd.grad(losses.sum(), self._reached)
        samples = torch.cat([parameter.grad_sample.flatten(1) for parameter in self._parameters], dim=1)
        for parameter in self._parameters:
            parameter.grad_sample = None
        norms = samples.norm(dim=1)
        return norms, _factors(norms, clip) @ samples


class _Ghost:
    """Norms alone, and a second pass backward in which each record counts as much as its norm allows.

    Ghost clipping (Li et al. 2022, section 4): less memory and less time for a model of several layers.
    """

    def __init__(self, model: FlatModel) -> None:
        self.hooks = GradSampleHooksFastGradientClipping(model.module, loss_reduction="sum")
        self._parameters: list[Any] = list(model.module.parameters())  # Opacus adds attributes to them
        self._reached = _smallest_of_each_layer(model)
        self._gradient = model.gradient

    def clipped(self, losses: Tensor, clip: float) -> tuple[Tensor, Tensor]:
        torch.autograd.grad(losses.sum(), self._reached, retain_graph=True)
        norms = torch.stack([parameter._norm_sample for parameter in self._parameters]).norm(dim=0)
        for parameter in self._parameters:
            del parameter._norm_sample  # so that no layer that sits out a batch is counted by the last one's
        self._gradient.zero_()
        self.hooks.disable_hooks()
        (_factors(norms, clip) * losses).sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.hooks.enable_hooks()
        return norms, self._gradient.clone()


@contextmanager
def gradients_of_records(model: FlatModel, *, ghost: bool | None = None) -> Iterator[RecordGradients]:
    """Hang Opacus' hooks on a model that is in training mode, and take them off again.

    Args:
        ghost: Whether by ghost clipping; what is faster for the model if not given.

    Raises:
        NotImplementedError: a layer with parameters has buffers too.
    """
    if ghost is None:
        layers = [type(layer) for layer in model.module.modules() if list(layer.parameters(recurse=False))]
        ghost = len(layers) > 1 and all(kind in GradSampleHooksFastGradientClipping.NORM_SAMPLERS for kind in layers)
    gradients = _Ghost(model) if ghost else _Kept(model)
    with warnings.catch_warnings():
        # Opacus' hooks are on modules whose inputs need no gradient, which torch mentions at each of them.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        try:
            yield gradients
        finally:
            gradients.hooks.cleanup()


def clipped_sum(
    gradients: RecordGradients, model: FlatModel, loss: Loss, features: Tensor, labels: Tensor, clip: float
) -> Tensor:
    """The sum [P] of the gradients of records [n, ...], each cut to the norm ``clip``.

    A record whose gradient has no finite norm counts as a gradient of zero: it would make the sum of all others NaN,
    and that the training failed would tell that it is there.
    """
    norms, total = gradients.clipped(loss(model.module(features), labels), clip)
    finite = norms.isfinite()
    if bool(finite.all()):
        return total
    if not bool(finite.any()):
        return torch.zeros_like(total)
    return gradients.clipped(loss(model.module(features[finite]), labels[finite]), clip)[1]


def _smallest_of_each_layer(model: FlatModel) -> list[torch.nn.Parameter]:
    """What to ask a gradient of so that all hooks are called and little is computed beside: the biases, mostly."""
    layers = [list(layer.parameters(recurse=False)) for layer in model.module.modules()]
    return [min(parameters, key=torch.numel) for parameters in layers if parameters]


def _factors(norms: Tensor, clip: float) -> Tensor:
    return (clip / (norms + _SHORTEST)).clamp(max=1.0).detach()


def require_separable(model: FlatModel, features: Tensor, labels: Tensor, loss: Loss) -> None:
    """Find out on a few records whether the gradient of each can be had, and bounded, apart from all others.

    Opacus' validator knows some layers by name; others mix records all the same, and so do losses that are divided by
    a sum of class weights. So the model itself is asked, at random parameters: is a record's loss, and its gradient,
    the same alone as among others, and do Opacus' hooks clip and add up exactly these gradients? Labels of whole
    numbers are made up, so that there is more than one class among them whatever the site has.

    Raises:
        PrivacyUnsupportedError: it is not so, or there are not two records.
    """
    if len(labels) < 2:
        raise PrivacyUnsupportedError("There are too few training records for differential privacy", expected="two")
    _require_known_layers(model)
    chosen = torch.linspace(0, len(labels) - 1, min(_PROBES, len(labels)), device=labels.device).long()
    features, labels = features[chosen], labels[chosen]
    before = [buffer.clone() for buffer in model.module.buffers()]
    generator = torch.Generator().manual_seed(0)
    sizes = [parameter.shape for parameter in model.module.parameters()]
    random = [torch.randn(size, generator=generator).flatten() / math.sqrt(math.prod(size[1:])) for size in sizes]
    model.load(torch.cat(random).numpy())
    for layer in model.module.modules():
        if isinstance(layer, torch.nn.modules.dropout._DropoutNd):
            layer.eval()  # what it leaves out is random, and the same for no two batches
    try:
        if not labels.is_floating_point():
            classes = max(2, model.module(features).shape[1:].numel())
            labels = torch.arange(len(labels), device=labels.device, dtype=labels.dtype) % classes
        alone = torch.stack([_gradient(model, loss, features, labels, i, alone=True) for i in range(len(labels))])
        among = torch.stack([_gradient(model, loss, features, labels, i, alone=False) for i in range(len(labels))])
        norms = alone.norm(dim=1)
        clip = float(norms.median()) + _SHORTEST
        expected = _factors(norms, clip) @ alone
        with gradients_of_records(model) as gradients:
            clipped = clipped_sum(gradients, model, loss, features, labels, clip)
    except _FOREIGN as error:
        raise PrivacyUnsupportedError(
            "The model or its loss cannot be taken apart into records",
            expected="a model that works on one record, and one loss for each",
            got=type(error).__name__,
            action="Take other layers, or a loss without reduction",
        ) from error
    if not all(map(torch.equal, before, model.module.buffers())):
        raise PrivacyUnsupportedError(
            "A layer of the model remembers the records that it has seen", action="Take a layer without running values"
        )
    if not torch.allclose(alone, among, rtol=_TOLERANCE, atol=_TOLERANCE * clip):
        raise PrivacyUnsupportedError(
            "A record's gradient depends on the other records of its batch",
            action="Replace batch norm by group norm, and a loss that is weighted or averaged over the batch by one "
            "that gives each record's own",
        )
    if not torch.allclose(expected, clipped, rtol=_TOLERANCE, atol=_TOLERANCE * clip * len(labels)):
        raise PrivacyUnsupportedError(
            "The gradients of single records that Opacus gives are not those of the model",
            action="Use each parameter in one layer, and only by calling that layer",
        )


def _require_known_layers(model: FlatModel) -> None:
    """Raises PrivacyUnsupportedError for a layer that Opacus refuses or has no rule for, and for unused parameters."""
    model.module.train()
    told = [str(error) for error in ModuleValidator.validate(model.module)]
    for layer in model.module.modules():
        parameters = list(layer.parameters(recurse=False))
        if parameters and type(layer) not in GradSampleHooks.GRAD_SAMPLERS:
            told.append(f"there is no rule for the gradients of single records in a layer {type(layer).__name__}")
        if not all(parameter.requires_grad for parameter in parameters):
            told.append(f"a layer {type(layer).__name__} has parameters that are not trained; make them buffers")
    if told:
        raise PrivacyUnsupportedError(
            "The model has layers with which differential privacy does not work",
            got="; ".join(told),
            action="Replace these layers, for example batch norm by group norm",
        )


def _gradient(model: FlatModel, loss: Loss, features: Tensor, labels: Tensor, record: int, *, alone: bool) -> Tensor:
    """The gradient [P] of one record's loss, computed from a batch of that record or of all."""
    if alone:
        features, labels, record = features[record : record + 1], labels[record : record + 1], 0
    model.gradient.zero_()
    losses = loss(model.module(features), labels)
    if losses.shape != labels.shape[:1]:
        raise ValueError("the loss is not one value for each record")
    losses[record].backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return model.gradient.clone()
