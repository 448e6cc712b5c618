"""``image-classifier`` on loaded data. Imports torch: only task workers import this module."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from math import gcd
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from quorate.errors import ContributionError
from quorate_client.tasks.data.images import Images
from quorate_client.tasks.data.schema import ImageSchema, schema_dict
from quorate_client.tasks.image import NAME, ImageClassifier, ImageParameters
from quorate_client.tasks.models.classifier import ClassifierSession

_GROUPS = 8


class ImageSession(ClassifierSession):
    """Images and a model."""

    def __init__(
        self, parameters: ImageParameters, schema: ImageSchema, training: Images, test: Images, seed: int
    ) -> None:
        super().__init__(parameters, seed)
        self._parameters = parameters
        self._schema = schema
        self._parts = training, test

    @property
    def records(self) -> int:
        return self._parts[0].records

    @property
    def unit_numbers(self) -> npt.NDArray[np.int64] | None:
        return self._parts[0].units

    def statistics(self) -> tuple[int, ...]:
        return ()

    def begin(self, statistics: tuple[int, ...]) -> None:
        if statistics:
            raise ContributionError("This task sums no statistics", expected="none", got=f"{len(statistics)} integers")
        training, test = self._parts
        module = build(self._parameters, self._schema)
        self.start(module, (training.pixels, training.labels), (test.pixels, test.labels))

    def metadata(self) -> dict[str, Any]:
        return {
            "task": NAME,
            "parameters": {**self._parameters.model_dump(mode="json"), "schema": schema_dict(self._schema)},
            "classes": list(self._schema.class_order),
        }


def predict(
    arrays: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, Any], pixels: npt.NDArray[np.uint8]
) -> npt.NDArray[np.float64]:
    """Apply a released model.

    Args:
        arrays: The released arrays, by the names of the layers that ``build`` makes.
        metadata: What was released with them.
        pixels: [records, channels, height, width].

    Returns:
        Probabilities, [records, classes], in the order of ``metadata["classes"]``.
    """
    parameters = {key: value for key, value in metadata["parameters"].items() if key != "schema"}
    module = build(ImageParameters.model_validate(parameters), ImageClassifier().schema(metadata["parameters"]))
    module.load_state_dict({name: torch.tensor(values) for name, values in arrays.items()})
    with torch.inference_mode():
        outputs = module(torch.tensor(pixels)).double()
        logits = torch.cat([torch.zeros_like(outputs), outputs], dim=1) if outputs.shape[1] == 1 else outputs
        probabilities: npt.NDArray[np.float64] = logits.softmax(dim=1).numpy()
    return probabilities


class _Unit(nn.Module):
    """Pixels as they are stored, 0 to 255, become -1 to 1."""

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.float() / 127.5 - 1.0


def build(parameters: ImageParameters, schema: ImageSchema) -> nn.Module:
    """Blocks of a 3 x 3 convolution, group norm, rectifier and a halving by maximum; then one linear layer."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(unit=_Unit())
    before: int = schema.channels
    for number, width in enumerate(parameters.filters, start=1):
        layers[f"convolution{number}"] = nn.Conv2d(before, width, kernel_size=3, padding=1)
        if parameters.normalisation == "group":
            layers[f"norm{number}"] = nn.GroupNorm(gcd(_GROUPS, width), width)
        layers[f"rectifier{number}"] = nn.ReLU()
        layers[f"halving{number}"] = nn.MaxPool2d(2)
        before = width
    halved = 2 ** len(parameters.filters)
    layers["flat"] = nn.Flatten()
    classes = len(schema.classes)
    inputs = before * (schema.height // halved) * (schema.width // halved)
    layers["last"] = nn.Linear(inputs, 1 if classes == 2 else classes)
    return nn.Sequential(layers)
