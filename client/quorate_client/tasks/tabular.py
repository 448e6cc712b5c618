"""``tabular-classifier``: logistic regression or a multilayer perceptron on a table.

Numbers are standardised with the mean and the variance over all sites' training records, which are summed as exact
integers before the first round; or with the public ranges of the schema, which say nothing of anybody's records.
Classes are not weighted: a weight that depends on how often a class occurs would couple the records of a batch, and
differential privacy bounds the influence of each record alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from quorate_client.site.agreement import Dataset
from quorate_client.tasks.data.schema import TabularSchema
from quorate_client.tasks.parameters import LocalTraining, Width, parse_parameters, schema_parameter

if TYPE_CHECKING:
    from quorate_client.tasks.models.tabular import TabularSession

NAME = "tabular-classifier"


class TabularParameters(LocalTraining):
    """What a study may set beside the schema."""

    model: Literal["logistic", "mlp"] = Field(
        default="logistic", description="logistic regression or a multilayer perceptron"
    )
    hidden: tuple[Width, ...] | None = Field(
        default=None, min_length=1, max_length=8, description="widths of an mlp's hidden layers, (32,) if not given"
    )
    standardise: Literal["data", "range"] = Field(
        default="data",
        description="numbers by their mean and deviation over all sites' records, or by the schema's public ranges, "
        "which differentially private training needs",
    )

    @model_validator(mode="after")
    def _hidden_is_of_an_mlp(self) -> Self:
        if self.model == "logistic" and self.hidden is not None:
            raise ValueError("hidden goes with model = 'mlp'; a logistic regression has no hidden layers")
        return self

    @property
    def hidden_widths(self) -> tuple[int, ...]:
        if self.model == "logistic":
            return ()
        return self.hidden or (32,)


class TabularClassifier:
    """The installed task."""

    def check(self, parameters: Mapping[str, Any]) -> None:
        self._parse(parameters)

    def schema(self, parameters: Mapping[str, Any]) -> TabularSchema:
        return self._parse(parameters)[1]

    def open(self, parameters: Mapping[str, Any], dataset: Dataset, seed: int) -> TabularSession:
        from quorate_client.tasks.data.datasets import load_table
        from quorate_client.tasks.models.tabular import TabularSession

        settings, schema = self._parse(parameters)
        training, test = load_table(dataset, schema)
        return TabularSession(settings, schema, training, test, seed)

    def _parse(self, parameters: Mapping[str, Any]) -> tuple[TabularParameters, TabularSchema]:
        settings = parse_parameters(TabularParameters, parameters, NAME)
        schema = schema_parameter(TabularSchema, parameters, NAME)
        return settings, schema


TASK = TabularClassifier()
