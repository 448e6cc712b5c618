"""The tables of the bench: real ones and a simulated one, with schemas whose ranges come from what the columns mean."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_breast_cancer

from demo import claims
from quorate_client.tasks.data.schema import TabularSchema, parse_schema, read_schema
from quorate_client.tasks.data.table import Table, read_table

SHARED = Path(os.environ.get("QUORATE_SHARED", Path(__file__).parents[3] / "shared"))
CREDIT = SHARED / "data" / "credit_default" / "credit_default.csv"

CELLS = {
    # Of nuclei under a microscope: lengths in pixels of an image some hundred pixels wide, areas in squares of them,
    # the other features without a unit. A nucleus of a breast cell is 5 to 40 pixels in radius; the rest follows from
    # that, or from the feature's definition (a symmetry or a concavity is a share).
    "radius": (5.0, 40.0),
    "texture": (5.0, 50.0),
    "perimeter": (30.0, 300.0),
    "area": (100.0, 5000.0),
    "smoothness": (0.0, 0.3),
    "compactness": (0.0, 1.5),
    "concavity": (0.0, 1.5),
    "concave points": (0.0, 0.5),
    "symmetry": (0.0, 1.0),
    "fractal dimension": (0.0, 0.3),
}
SHARE_OF_ERROR = 0.1
"""An error of a mean of many nuclei is at most so much of the feature's upper end: so it is written into the ranges."""


@dataclass(frozen=True, slots=True)
class Case:
    """A table to make others from.

    Args:
        splits: How many; more where a class is rare.
        allowed: By epsilon, the loss of AUC that is allowed: of logistic regression, of boosted trees.
    """

    name: str
    schema: TabularSchema
    table: Table
    delta: float
    splits: int
    allowed: Mapping[float, tuple[float, float]]

    def split(self, number: int, test: float = 0.3) -> tuple[Table, Table]:
        """The training and the held-out part, each with its share of every class."""
        lot = np.random.default_rng(number)
        is_held_out = np.zeros(self.table.records, bool)
        for label in np.unique(self.table.labels):
            places = np.flatnonzero(self.table.labels == label)
            is_held_out[lot.choice(places, round(test * len(places)), replace=False)] = True
        return self.table.part(~is_held_out), self.table.part(is_held_out)

    def widened(self, by: float) -> TabularSchema:
        """The schema with ranges that are wider by a share, upward."""
        content = self.schema.model_dump(mode="json")
        for column in content["columns"]:
            if "range" in column:
                low, high = column["range"]
                column["range"] = [low, low + (1 + by) * (high - low)]
        return _schema(content)


def breast_cancer(splits: int) -> Case:
    """569 records, 30 measured columns (scikit-learn's copy of the Wisconsin data)."""
    loaded = load_breast_cancer()
    columns = []
    for name in loaded.feature_names:
        low, high = CELLS[name.removeprefix("mean ").removeprefix("worst ").removesuffix(" error")]
        if name.endswith(" error"):
            low, high = 0.0, SHARE_OF_ERROR * high
        columns.append({"name": name, "type": "number", "range": [low, high]})
    schema = _schema(_tabular(columns, "diagnosis", ["benign", "malignant"]))
    values = {name: loaded.data[:, place].copy() for place, name in enumerate(loaded.feature_names)}
    allowed = {1.0: (0.02, 0.04), 3.0: (0.02, 0.02)}
    return Case("breast cancer", schema, _clipped(schema, values, 1 - loaded.target), 1e-3, splits, allowed)


def simulated_claims(splits: int, records: int = 10_000) -> Case:
    """The demo's simulator of death claims, about 3 % of them fraudulent."""
    allowed = {1.0: (0.08, 0.09), 3.0: (0.04, 0.05)}
    return Case("claims", CLAIMS, claims_of(records, seed=1), 1e-5, splits, allowed)


def claims_of(records: int, seed: int) -> Table:
    """So many simulated claims."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "claims.csv"
        claims.write(path, claims.simulate(records, seed))
        return read_table(path, CLAIMS)


def credit_default(splits: int) -> Case | None:
    """30,000 customers of a bank; None where the file is absent. Limits and bills in New Taiwan dollars."""
    if not CREDIT.is_file():
        return None
    raw = np.genfromtxt(CREDIT, delimiter=",", skip_header=1)
    values = {f"X{number}": raw[:, number].copy() for number in range(1, 24)}
    values["X2"] -= 1  # 1 and 2 become the places 0 and 1
    columns: list[dict[str, Any]] = [
        _integer("X1", 0, 1_000_000),
        {"name": "X2", "type": "category", "categories": ["1", "2"]},
        {"name": "X3", "type": "category", "categories": [str(word) for word in range(7)]},
        {"name": "X4", "type": "category", "categories": [str(word) for word in range(4)]},
        _integer("X5", 18, 100),
        *(_integer(f"X{number}", -2, 9) for number in range(6, 12)),  # months of delay
        *(_integer(f"X{number}", -500_000, 2_000_000) for number in range(12, 18)),  # bills
        *(_integer(f"X{number}", 0, 2_000_000) for number in range(18, 24)),  # payments
    ]
    schema = _schema(_tabular(columns, "Y", ["0", "1"]))
    allowed = {1.0: (0.02, 0.03), 3.0: (0.02, 0.025)}
    return Case("credit default", schema, _clipped(schema, values, raw[:, 24]), 1e-5, splits, allowed)


def _integer(name: str, low: int, high: int) -> dict[str, Any]:
    return {"name": name, "type": "integer", "range": [float(low), float(high)]}


def _tabular(columns: list[dict[str, Any]], label: str, classes: list[str]) -> dict[str, Any]:
    return {"kind": "tabular", "columns": columns, "label": {"name": label, "classes": classes}}


def _schema(content: dict[str, Any]) -> TabularSchema:
    schema = parse_schema(content, "The bench's schema")
    if not isinstance(schema, TabularSchema):
        raise TypeError("the bench's tables have columns")
    return schema


def _clipped(schema: TabularSchema, values: dict[str, npt.NDArray[np.float64]], labels: npt.NDArray[Any]) -> Table:
    """A table of the schema: what lies outside of a range is put on its end, as a site would have to."""
    for column in schema.columns:
        if column.type in ("number", "integer"):
            values[column.name] = np.clip(values[column.name], *column.range)
    return Table(values, labels.astype(np.int64))


CLAIMS = _schema(read_schema(Path(claims.__file__).with_name("claims.toml")))
