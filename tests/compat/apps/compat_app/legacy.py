"""An app of the generation before: a NumPyClient, and a strategy that asks each client in a thread of its own."""

import numpy as np
from flwr.app import Context
from flwr.client import Client, NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.serverapp import ServerApp


class Adder(NumPyClient):
    def __init__(self, number: int) -> None:
        self.number = number

    def fit(self, parameters: list[np.ndarray], config: dict[str, object]) -> tuple[list[np.ndarray], int, dict]:
        return [array + self.number for array in parameters], 10 * (1 + self.number), {}

    def evaluate(self, parameters: list[np.ndarray], config: dict[str, object]) -> tuple[float, int, dict]:
        return float(parameters[0][0]), 10, {}


def client_fn(context: Context) -> Client:
    return Adder(int(context.node_config["number"])).to_client()


class Saving(FedAvg):
    def aggregate_fit(self, server_round, results, failures):  # type: ignore[no-untyped-def]
        parameters, metrics = super().aggregate_fit(server_round, results, failures)
        np.savez("model.npz", *parameters_to_ndarrays(parameters))
        return parameters, metrics


def server_fn(context: Context) -> ServerAppComponents:
    start = ndarrays_to_parameters([np.zeros(3)])
    strategy = Saving(initial_parameters=start, min_fit_clients=3, min_evaluate_clients=3, min_available_clients=3)
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=int(context.run_config["rounds"])))


client = ClientApp(client_fn)
server = ServerApp(server_fn=server_fn)
