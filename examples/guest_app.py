"""A complete stock Flower app in one file: logistic regression on a CSV file, averaged with FedAvg.

Nothing here knows of Quorate. ``server`` is the ServerApp, ``client`` the ClientApp; docs/tutorial.md runs them.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

FEATURES = ("radius_mean", "texture_mean", "concavity_mean")
CENTRE = np.array([14.0, 19.0, 0.09])
SCALE = np.array([3.5, 4.3, 0.08])

server = ServerApp()
client = ClientApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Run FedAvg over all sites and keep the model in the run's folder."""
    strategy = FedAvg(min_available_nodes=3, min_train_nodes=3, min_evaluate_nodes=3)
    start = ArrayRecord([np.zeros(len(FEATURES) + 1)])
    result = strategy.start(grid=grid, initial_arrays=start, num_rounds=int(context.run_config["rounds"]))
    np.savez("model.npz", weights=result.arrays.to_numpy_ndarrays()[0])


@client.train()
def train(message: Message, context: Context) -> Message:
    """A few hundred steps of gradient descent from the model that came."""
    x, y = records(context)
    weights = message.content["arrays"].to_numpy_ndarrays()[0]
    for _ in range(200):
        weights = weights - 0.5 * x.T @ (probability(x, weights) - y) / len(y)
    metrics = MetricRecord({"num-examples": len(y), "loss": loss(x, y, weights)})
    return Message(RecordDict({"arrays": ArrayRecord([weights]), "metrics": metrics}), reply_to=message)


@client.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """The share of records that the model that came gets right."""
    x, y = records(context)
    weights = message.content["arrays"].to_numpy_ndarrays()[0]
    accuracy = float(np.mean((probability(x, weights) > 0.5) == y))
    return Message(
        RecordDict({"metrics": MetricRecord({"num-examples": len(y), "accuracy": accuracy})}), reply_to=message
    )


def records(context: Context) -> tuple[np.ndarray, np.ndarray]:
    """The site's own file, which its administrator named when approving the study."""
    with Path(str(context.node_config["data"])).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    numbers = np.array([[float(row[name]) for name in FEATURES] for row in rows])
    x = np.hstack([(numbers - CENTRE) / SCALE, np.ones((len(rows), 1))])
    return x, np.array([row["diagnosis"] == "malignant" for row in rows], dtype=float)


def probability(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x @ weights))


def loss(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> float:
    p = np.clip(probability(x, weights), 1e-9, 1 - 1e-9)
    return float(-np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)))
