"""``tabular-classifier`` on loaded data. Imports torch: only task workers import this module."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from quorate.errors import ContributionError, InputError
from quorate_client.tasks.data.schema import TabularSchema, parse_schema, schema_dict
from quorate_client.tasks.data.table import Table
from quorate_client.tasks.models.classifier import ClassifierSession
from quorate_client.tasks.models.tabular_features import (
    Standardisation,
    column_sums,
    feature_names,
    features,
    range_standardisation,
    standardisation,
)
from quorate_client.tasks.tabular import NAME, TabularParameters


class TabularSession(ClassifierSession):
    """A table, its standardisation and a model."""

    def __init__(
        self, parameters: TabularParameters, schema: TabularSchema, training: Table, test: Table, seed: int
    ) -> None:
        super().__init__(parameters, seed)
        self._parameters = parameters
        self._schema = schema
        self._tables = training, test
        self._by = Standardisation((), ())

    @property
    def records(self) -> int:
        return self._tables[0].records

    @property
    def unit_numbers(self) -> npt.NDArray[np.int64] | None:
        return self._tables[0].units

    def statistics(self) -> tuple[int, ...]:
        return () if self._by_range else column_sums(self._schema, self._tables[0])

    def begin(self, statistics: tuple[int, ...]) -> None:
        if self._by_range and statistics:
            raise ContributionError("The ranges need no statistics", expected="none", got=f"{len(statistics)} integers")
        self._by = range_standardisation(self._schema) if self._by_range else standardisation(self._schema, statistics)
        classes = len(self._schema.label.classes)
        module = build(len(self._by.means), self._parameters.hidden_widths, 1 if classes == 2 else classes)
        training, test = ((features(self._schema, table, self._by), table.labels) for table in self._tables)
        self.start(module, training, test)

    @property
    def _by_range(self) -> bool:
        return self._parameters.standardise == "range"

    def metadata(self) -> dict[str, Any]:
        parameters = self._parameters.model_dump(mode="json", exclude_none=True)
        return {
            "task": NAME,
            "parameters": {**parameters, "schema": schema_dict(self._schema)},
            "classes": list(self._schema.label.class_order),
            "features": list(feature_names(self._schema)),
            "means": list(self._by.means),
            "scales": list(self._by.scales),
        }


def build(inputs: int, hidden: tuple[int, ...], outputs: int) -> nn.Module:
    """Linear layers with rectifiers between them, named layer1, layer2 and so on."""
    widths = [inputs, *hidden, outputs]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number in range(1, len(widths)):
        layers[f"layer{number}"] = nn.Linear(widths[number - 1], widths[number])
        if number < len(widths) - 1:
            layers[f"rectifier{number}"] = nn.ReLU()
    return nn.Sequential(layers)


def predict(
    arrays: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, Any], table: Table
) -> npt.NDArray[np.float64]:
    """Apply a released model with nothing but numpy.

    Args:
        arrays: The released arrays: ``layer1.weight`` [out, in], ``layer1.bias`` [out] and so on.
        metadata: What was released with them.
        table: Records that were read with the schema in ``metadata["parameters"]["schema"]``.

    Returns:
        Probabilities, [records, classes], in the order of ``metadata["classes"]``.
    """
    schema = parse_schema(metadata["parameters"]["schema"], "The schema of the released model")
    if not isinstance(schema, TabularSchema):
        raise InputError("The released model is not one of a table", expected="a model of the task tabular-classifier")
    by = Standardisation(tuple(metadata["means"]), tuple(metadata["scales"]))
    values = features(schema, table, by).astype(np.float64)
    layers = sum(name.endswith(".weight") for name in arrays)
    for layer in range(1, layers + 1):
        values = values @ arrays[f"layer{layer}.weight"].T.astype(np.float64) + arrays[f"layer{layer}.bias"]
        if layer < layers:
            values = np.maximum(values, 0.0)
    if values.shape[1] == 1:
        values = np.concatenate([np.zeros_like(values), values], axis=1)
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    probabilities: npt.NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return probabilities
