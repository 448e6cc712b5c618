"""FedAvg over a vector, as in Flower's quickstart; writes down when it started and when each round ended."""

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    least = int(config["min-nodes"])
    times, norms = [], []

    def note(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        times.append(time.time())
        norms.append(float(np.linalg.norm(arrays.to_numpy_ndarrays()[0])))
        return MetricRecord({"norm": norms[-1]})

    FedAvg(min_train_nodes=least, min_evaluate_nodes=least, min_available_nodes=least).start(
        grid=grid,
        initial_arrays=ArrayRecord([np.zeros(int(config["parameters"]), dtype=np.float32)]),
        train_config=ConfigRecord({"step": 1.0}),
        num_rounds=int(config["num-server-rounds"]),
        evaluate_fn=note,
    )
    Path(str(config["result-file"])).write_text(json.dumps({"times": times, "norms": norms}), encoding="utf-8")
