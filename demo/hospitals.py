"""Splits scikit-learn's Wisconsin breast-cancer data (569 real records) over four hospitals of different sizes.

As a program: ``python demo/hospitals.py FOLDER`` writes FOLDER/north.csv and so on.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer

# Share of the malignant and of the benign records that each hospital sees: a cancer centre, a large general hospital,
# and two small ones.
SHARES = {"north": (0.40, 0.10), "south": (0.30, 0.50), "east": (0.20, 0.15), "west": (0.10, 0.25)}


def hospitals(seed: int = 7) -> dict[str, pd.DataFrame]:
    """One table per hospital; together they hold every record exactly once."""
    loaded = load_breast_cancer(as_frame=True)
    table = loaded.frame.rename(columns=_column_name)
    table["diagnosis"] = np.where(table.pop("target") == 0, "malignant", "benign")
    rng = np.random.default_rng(seed)
    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in SHARES}
    for index, diagnosis in enumerate(("malignant", "benign")):
        records = table[table["diagnosis"] == diagnosis]
        records = records.iloc[rng.permutation(len(records))]
        ends = np.round(np.cumsum([share[index] for share in SHARES.values()]) * len(records)).astype(int)
        for name, start, end in zip(SHARES, [0, *ends[:-1]], ends, strict=True):
            parts[name].append(records.iloc[start:end])
    return {name: pd.concat(part).sample(frac=1, random_state=seed) for name, part in parts.items()}


def _column_name(name: str) -> str:
    """``mean radius`` becomes ``radius_mean``, as the schema calls it."""
    words = name.split()
    kind = next((word for word in words if word in ("mean", "error", "worst")), "")
    return "_".join([word for word in words if word != kind] + ([kind] if kind else []))


def write(folder: Path) -> dict[str, Path]:
    """Write the tables as CSV files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, table in hospitals().items():
        paths[name] = folder / f"{name}.csv"
        table.to_csv(paths[name], index=False)
    return paths


if __name__ == "__main__":
    for name, path in write(Path(sys.argv[1])).items():
        print(f"{name}: {path}")  # noqa: T201  # this is its output
