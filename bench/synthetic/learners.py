"""What the bench trains: scikit-learn's models on a table, judged by AUC on held-out real records."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from quorate_client.tasks.data.schema import CategoryColumn, NumberColumn, TabularSchema
from quorate_client.tasks.data.table import Table

LEARNERS: dict[str, Callable[[], Any]] = {
    "logistic": lambda: make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)),
    "boosted trees": lambda: HistGradientBoostingClassifier(random_state=0),
}


def features(schema: TabularSchema, table: Table) -> npt.NDArray[np.float64]:
    """[records, features] words one by one, a missing value as the middle of the range and a column that says so."""
    found = []
    for column in schema.columns:
        values = table.columns[column.name]
        missing = np.isnan(values)
        match column:
            case CategoryColumn():
                found += [values == place for place in range(len(column.categories))]
            case NumberColumn():
                found.append(np.where(missing, sum(column.range) / 2, values))
            case _:
                found.append(np.where(missing, 0.5, values))
        if column.missing != "refuse":
            found.append(missing)
    return np.stack(found, axis=1).astype(np.float64)


def aucs(schema: TabularSchema, training: Table, held_out: Table) -> dict[str, float]:
    """By learner; a half where the training part has one class only."""
    if len(np.unique(training.labels)) < 2:
        return dict.fromkeys(LEARNERS, 0.5)
    known, asked = features(schema, training), features(schema, held_out)
    found = {}
    for name, learner in LEARNERS.items():
        # Small fits: threads that wait for each other cost more than they bring.
        with warnings.catch_warnings(), threadpool_limits(1):
            warnings.simplefilter("ignore", ConvergenceWarning)
            chances = learner().fit(known, training.labels).predict_proba(asked)
        found[name] = float(roc_auc_score(held_out.labels, chances[:, 1]))
    return found
