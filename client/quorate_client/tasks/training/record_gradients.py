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
from quorate_client.tasks.training.sgd import FlatModel, Loss

_SHORTEST = 1e-6
"""Added to norms before dividing by them, as Opacus does; it only makes gradients shorter."""
_TOLERANCE = 1e-3
"""Of what one record may change: how far a sum of clipped gradients may be off, from rounding."""
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
    norms, total = gradients.clipped(_losses(model, loss, features, labels), clip)
    finite = norms.isfinite()
    if bool(finite.all()):
        return total
    if not bool(finite.any()):
        return torch.zeros_like(total)
    return gradients.clipped(_losses(model, loss, features[finite], labels[finite]), clip)[1]


def _smallest_of_each_layer(model: FlatModel) -> list[torch.nn.Parameter]:
    """What to ask a gradient of so that all hooks are called and little is computed beside: the biases, mostly."""
    layers = [list(layer.parameters(recurse=False)) for layer in model.module.modules()]
    return [min(parameters, key=torch.numel) for parameters in layers if parameters]


def _factors(norms: Tensor, clip: float) -> Tensor:
    return (clip / (norms + _SHORTEST)).clamp(max=1.0).detach()


def require_separable(model: FlatModel, features: Tensor, labels: Tensor, loss: Loss, largest: int) -> None:
    """Find out whether the gradient of each record can be had, and bounded, apart from all others.

    Opacus' validator knows some layers by name; others mix records all the same, and so do losses that are divided by
    a sum of class weights, or keep the hardest records. A few records do not show it: what leaves eight alone may mix
    nine. So the model is asked itself, at random parameters and in batches of all sizes up to the largest that it is
    going to see, without this record or that, and in other orders: in each of them the clipped gradients must be those
    that each record has alone. What draws at random, as dropout does, is not the same twice and is found out with it.
    Its stream is torch's, which can be known, and goes by a record's place: one record less changes all others.

    Labels of whole numbers are made up, so that there is more than one class among them whatever the site has.

    Args:
        largest: So many records are in a batch at most.

    Raises:
        PrivacyUnsupportedError: it is not so, or there are not two records.
    """
    if len(labels) < 2:
        raise PrivacyUnsupportedError("There are too few training records for differential privacy", expected="two")
    _require_known_layers(model)
    chosen = torch.linspace(0, len(labels) - 1, min(largest, len(labels)), device=labels.device).long()
    features, labels = features[chosen], labels[chosen]
    before = [buffer.clone() for buffer in model.module.buffers()]
    _load_random(model)
    try:
        if not labels.is_floating_point():
            classes = max(2, model.module(features).shape[1:].numel())
            labels = torch.arange(len(labels), device=labels.device, dtype=labels.dtype) % classes
        different = _first_different(model, loss, features, labels)
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
    if different == 1:
        raise PrivacyUnsupportedError(
            "The gradients of single records that Opacus gives are not those of the model",
            action="Use each parameter in one layer, and only by calling that layer",
        )
    if different:
        raise PrivacyUnsupportedError(
            "A record's gradient depends on the other records of its batch, or on chance",
            got=f"other gradients in a batch of {different} than alone",
            action="Replace batch norm by group norm, leave out dropout, and take a loss that gives each record's own "
            "instead of one that is weighted, sorted or averaged over the batch",
        )


def _first_different(model: FlatModel, loss: Loss, features: Tensor, labels: Tensor) -> int:
    """The size of a batch in which records have other clipped gradients than each alone; 0 if there is none.

    Records without a finite gradient are left out: in training they count as nothing (``clipped_sum``).
    """
    alone = torch.stack([_gradient(model, loss, features[i : i + 1], labels[i : i + 1]) for i in range(len(labels))])
    norms = alone.norm(dim=1)
    usable = norms.isfinite()
    if not bool(usable.any()):
        raise ValueError("no record has a finite gradient")
    alone[~usable] = 0.0
    clip = float(norms[usable].median()) + _SHORTEST
    factors = _factors(norms, clip)
    with gradients_of_records(model) as gradients:
        for batch in _batches(usable.nonzero()[:, 0]):
            found, total = gradients.clipped(_losses(model, loss, features[batch], labels[batch]), clip)
            expected = torch.zeros_like(factors).index_copy(0, batch, factors[batch]) @ alone
            are_same = torch.allclose(found, norms[batch], rtol=_TOLERANCE, atol=_TOLERANCE * clip)
            if not (are_same and float((total - expected).norm()) <= _TOLERANCE * clip):  # NaN is not the same
                return len(batch)
    return 0


def _batches(records: Tensor) -> Iterator[Tensor]:
    """Of one record, of two, four and so on, of all but one, and of all in other orders."""
    for doublings in range(len(records).bit_length()):
        yield records[-(1 << doublings) :]
    if len(records) > 1:
        for left_out in (0, len(records) // 2, -1):
            yield records[records != records[left_out]]
    yield records.flip(0)
    yield records[torch.randperm(len(records), generator=torch.Generator().manual_seed(0)).to(records.device)]


def _load_random(model: FlatModel) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = [parameter.shape for parameter in model.module.parameters()]
    random = [torch.randn(size, generator=generator).flatten() / math.sqrt(math.prod(size[1:])) for size in sizes]
    model.load(torch.cat(random).numpy())


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


def _gradient(model: FlatModel, loss: Loss, features: Tensor, labels: Tensor) -> Tensor:
    """The gradient [P] of the summed losses of records, by torch alone."""
    model.gradient.zero_()
    _losses(model, loss, features, labels).sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return model.gradient.clone()


def _losses(model: FlatModel, loss: Loss, features: Tensor, labels: Tensor) -> Tensor:
    losses = loss(model.module(features), labels)
    if losses.shape != labels.shape[:1]:
        raise ValueError("the loss is not one value for each record")
    return losses
