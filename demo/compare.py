"""The federated model beside each hospital's own model and a pooled one, on the hospitals' held-out test parts.

The other models are scikit-learn's logistic regression: a neutral yardstick that shares no code with the product. They
see what no party of a real consortium could: the records of several hospitals at once.
"""

from __future__ import annotations

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
from demo.kit.models import held_out, scores, table_schema
from quorate_client.tasks.data.table import read_table


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
        tested = held_out(sites[name], DATASET)
        train[name], test[name] = table[~tested], table[tested]
        records = read_table(path, table_schema(schema)).part(tested)
        for model, found in federated.items():
            found.append(scores(model, records))
    everything = pd.concat(test.values())
    truth = (everything["diagnosis"] == "malignant").to_numpy()
    compared = {
        "federated, differentially private": np.concatenate(federated[private]),
        "federated, without noise": np.concatenate(federated[without_noise]),
    }
    compared["pooled (needs all records in one place)"] = _fit(pd.concat(train.values())).predict_proba(
        everything.drop(columns="diagnosis")
    )[:, 1]
    for name, table in train.items():
        local = _fit(table)
        compared[f"{name} alone ({len(table)} records)"] = local.predict_proba(everything.drop(columns="diagnosis"))[
            :, 1
        ]
    figures = {name: (roc_auc_score(truth, p), accuracy_score(truth, p > 0.5)) for name, p in compared.items()}
    printed = Table(title=f"On the {len(everything)} held-out records of all hospitals")
    printed.add_column("model")
    printed.add_column("AUC", justify="right")
    printed.add_column("accuracy", justify="right")
    for name, (auc, accuracy) in figures.items():
        printed.add_row(name, f"{auc:.4f}", f"{accuracy:.3f}")
    console.print(printed)


def _fit(table: pd.DataFrame) -> Pipeline:
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return model.fit(table.drop(columns="diagnosis"), table["diagnosis"] == "malignant")
