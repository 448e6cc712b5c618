"""flower_quickstart: a Flower / NumPy app."""

import json
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian, FedProx

from flower_quickstart.task import get_model

STRATEGIES = {
    "fedavg": FedAvg,
    "fedprox": lambda **nodes: FedProx(proximal_mu=0.5, **nodes),
    "fedadam": lambda **nodes: FedAdam(eta=0.3, **nodes),
    "fedmedian": FedMedian,
}

# Create ServerApp
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Main entry point for the ServerApp."""
    # Read run config
    num_rounds: int = context.run_config["num-server-rounds"]
    lr: float = context.run_config["learning-rate"]
    nodes: int = context.run_config["min-nodes"]

    # Load global model
    arrays = ArrayRecord(get_model())

    # Initialize strategy
    strategy = STRATEGIES[context.run_config["strategy"]](
        min_available_nodes=nodes, min_train_nodes=nodes, min_evaluate_nodes=nodes
    )

    # Start strategy, run for `num_rounds`
    result = strategy.start(
        grid=grid,
        initial_arrays=arrays,
        train_config=ConfigRecord({"lr": lr}),
        num_rounds=num_rounds,
    )

    # Save final model and metrics to disk
    np.savez("model.npz", *result.arrays.to_numpy_ndarrays())
    metrics = {str(rnd): dict(record) for rnd, record in result.evaluate_metrics_clientapp.items()}
    Path("metrics.json").write_text(json.dumps(metrics, indent=2), encoding="utf-8")
