"""A ServerApp that averages for some rounds, with a model that does not fit into one message."""

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from compat_app.client_app import SIZE

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    strategy = FedAvg(min_available_nodes=3, min_train_nodes=3, min_evaluate_nodes=3)
    result = strategy.start(
        grid=grid, initial_arrays=ArrayRecord([np.zeros(SIZE)]), num_rounds=context.run_config["rounds"]
    )
    np.savez("model.npz", *result.arrays.to_numpy_ndarrays())
