"""``dpmm_peer.py FOLDER``, run in dpmm's own environment: reads table.npz, order.json, writes made.npz, prints seconds.

Imports nothing of ours. Numbers have their public range, words and flags their places, missing values stay missing.
"""

import json
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from dpmm.pipelines import MSTPipeline

BINS_EPSILON = 0.1
"""What dpmm spends on its bins, beside the model's epsilon: together they are the epsilon that was asked for."""

warnings.simplefilter("ignore")
folder = Path(sys.argv[1])
order = json.loads((folder / "order.json").read_text())
with np.load(folder / "table.npz") as table:
    values = {name: table[name] for name in table.files}
domain = {"/label": {"categories": [str(place) for place in range(order["classes"])]}}
frame = {"/label": pd.Series(values["/label"]).astype(str)}
for column in order["columns"]:
    cells = pd.Series(values[column["name"]])
    if "range" in column:
        domain[column["name"]] = {"lower": column["range"][0], "upper": column["range"][1]}
    else:
        words = [str(place) for place in range(len(column.get("categories", "01")))]
        if cells.isna().any():
            words.append("missing")
        domain[column["name"]] = {"categories": words}
        cells = cells.map(lambda place: "missing" if place != place else str(int(place)))
    frame[column["name"]] = cells

started = time.perf_counter()
pipeline = MSTPipeline(epsilon=order["epsilon"] - BINS_EPSILON, delta=order["delta"], proc_epsilon=BINS_EPSILON)
pipeline.fit(pd.DataFrame(frame), domain, random_state=order["seed"])
made = pipeline.generate(n_records=order["rows"], random_state=order["seed"])
spent = time.perf_counter() - started
np.savez(
    folder / "made.npz",
    **{
        name: pd.to_numeric(made[name].astype(object).replace("missing", np.nan), errors="coerce").to_numpy(float)
        for name in frame
    },
)
print(spent)
