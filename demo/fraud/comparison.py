"""The ways to train, side by side, on real claims of all insurers that no model was trained on.

Nobody in a real consortium could do this: it needs the held-out claims of all insurers in one place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

from demo import claims
from demo.fraud.measures import Quality, Scores, Stakes, Truth, quality
from demo.kit import models
from quorate_client.tasks.data.schema import TabularSchema
from quorate_client.tasks.data.table import Table, read_table
from quorate_client.tasks.models.tabular_features import column_sums, features, standardisation

SYNTHETIC, NEURAL, PRIVATE, REAL = "synthetic-logistic", "synthetic-mlp", "private", "real"
POOLED, EACH = "pooled", "each"
"""Beside the federated ways: all real claims in one place; and no consortium, each insurer with its own model."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was found.

    Args:
        ways: By name: the four studies, POOLED, EACH, and each insurer's name for its own model on everybody's claims.
            ``against`` is the study on synthetic claims less that insurer's model, for insurers and EACH.
        sizes: Claims of each insurer, to train on and held out.
        frauds: Among the claims that were held out.
    """

    ways: Mapping[str, Quality]
    sizes: Mapping[str, tuple[int, int]]
    frauds: int
    stakes: Stakes

    @property
    def held_out(self) -> int:
        return sum(tested for _, tested in self.sizes.values())


def compare(
    tables: Mapping[str, Path], held_out: Mapping[str, np.ndarray], schema: Path, released: Mapping[str, Path]
) -> Comparison:
    """
    Args:
        tables: The insurers' files. held_out: Which of their claims no model was trained on.
        released: The model of each study.
    """
    form = models.table_schema(schema)
    everything = {name: read_table(path, form) for name, path in tables.items()}
    training = {name: table.part(~held_out[name]) for name, table in everything.items()}
    tested = {name: table.part(held_out[name]) for name, table in everything.items()}
    together = models.joined(list(tested.values()))
    scores: dict[str, Scores] = {name: models.scores(model, together) for name, model in released.items()}
    scores[POOLED] = _fitted(form, models.joined(list(training.values())), together)
    scores[EACH] = np.concatenate([_fitted(form, training[name], tested[name]) for name in tables])
    scores |= {name: _fitted(form, table, together) for name, table in training.items()}
    truth, stakes = together.labels == 1, Stakes()
    return Comparison(
        ways=_measured(truth, scores, together.columns["sum_insured"], stakes, {EACH, *tables}),
        sizes={name: (training[name].records, tested[name].records) for name in tables},
        frauds=int(truth.sum()),
        stakes=stakes,
    )


def _measured(
    truth: Truth, scores: Mapping[str, Scores], sums: np.ndarray, stakes: Stakes, alone: set[str]
) -> dict[str, Quality]:
    synthetic = scores[SYNTHETIC]
    return {
        name: quality(truth, each, sums, stakes, synthetic if name in alone else None) for name, each in scores.items()
    }


def _fitted(schema: TabularSchema, training: Table, tested: Table) -> Scores:
    """scikit-learn's logistic regression: a yardstick that shares no code with the product but how columns are read."""
    by = standardisation(schema, column_sums(schema, training))
    model = LogisticRegression(max_iter=1000).fit(features(schema, training, by), training.labels)
    found: Scores = model.predict_proba(features(schema, tested, by))[:, 1]
    return found


def write(folder: Path, share: float = 1.0) -> dict[str, Path]:
    """The insurers' claims as CSV files.

    Args:
        share: Of the claims that each insurer has; a hundred at least.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for number, (name, (records, book)) in enumerate(claims.insurers().items()):
        paths[name] = folder / f"{name}.csv"
        claims.write(paths[name], claims.simulate(max(100, round(share * records)), number, book))
    return paths
