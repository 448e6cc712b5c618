"""The federated model beside each hospital's own model and a pooled one, on the hospitals' held-out test parts.

The other models are scikit-learn's logistic regression: a neutral yardstick that shares no code with the product. They
see what no party of a real consortium could: the records of several hospitals at once.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from demo.consortium import DATASET
from quorate_client.approval.datasets import Datasets
from quorate_client.site.database import site_state
from quorate_client.site.folder import SiteFolder
from quorate_client.tasks.data.datasets import unchanged_index
from quorate_client.tasks.data.schema import parse_schema, read_schema
from quorate_client.tasks.data.table import read_table
from quorate_client.tasks.models.tabular import predict


def show(
    console: Console,
    tables: dict[str, Path],
    sites: dict[str, Path],
    schema: Path,
    private: Path,
    without_noise: Path,
) -> None:
    """Print AUC and accuracy of each model on all test records together."""
    train, test = {}, {}
    federated: dict[Path, list[np.ndarray]] = {private: [], without_noise: []}
    for name, path in tables.items():
        table = pd.read_csv(path)
        held_out = _held_out(sites[name])
        train[name], test[name] = table[~held_out], table[held_out]
        for model, found in federated.items():
            found.append(_released_scores(model, schema, path)[held_out])
    everything = pd.concat(test.values())
    truth = (everything["diagnosis"] == "malignant").to_numpy()
    scores = {
        "federated, differentially private": np.concatenate(federated[private]),
        "federated, without noise": np.concatenate(federated[without_noise]),
    }
    scores["pooled (needs all records in one place)"] = _fit(pd.concat(train.values())).predict_proba(
        everything.drop(columns="diagnosis")
    )[:, 1]
    for name, table in train.items():
        local = _fit(table)
        scores[f"{name} alone ({len(table)} records)"] = local.predict_proba(everything.drop(columns="diagnosis"))[:, 1]
    figures = {name: (roc_auc_score(truth, p), accuracy_score(truth, p > 0.5)) for name, p in scores.items()}
    printed = Table(title=f"On the {len(everything)} held-out records of all hospitals")
    printed.add_column("model")
    printed.add_column("AUC", justify="right")
    printed.add_column("accuracy", justify="right")
    for name, (auc, accuracy) in figures.items():
        printed.add_row(name, f"{auc:.4f}", f"{accuracy:.3f}")
    console.print(printed)


def _held_out(site: Path) -> np.ndarray:
    """Which of a hospital's records are for evaluation."""
    with site_state(SiteFolder(site).database) as state:
        return unchanged_index(Datasets(state, time.time).get(DATASET)).held_out


def _released_scores(model: Path, schema: Path, table: Path) -> np.ndarray:
    """The released model's probability that a record is malignant, [records]: what a recipient of the file would do."""
    with np.load(model, allow_pickle=False) as arrays:
        metadata = json.loads(arrays["__metadata__"].tobytes())
        parsed = parse_schema(read_schema(schema), str(schema))
        probabilities = predict(arrays, metadata, read_table(table, parsed))
    return probabilities[:, metadata["classes"].index("malignant")]


def _fit(table: pd.DataFrame) -> Pipeline:
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return model.fit(table.drop(columns="diagnosis"), table["diagnosis"] == "malignant")
