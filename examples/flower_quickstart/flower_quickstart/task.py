"""flower_quickstart: a Flower / NumPy app."""

import numpy as np

FEATURES = 8
RECORDS = 600


def get_model():
    """Weights and bias of a logistic regression."""
    return [np.zeros(FEATURES), np.zeros(1)]


def load_data(partition_id: int, num_partitions: int):
    """This partition's training and test part of a data set that everybody can make."""
    rng = np.random.default_rng(42)
    x = rng.normal(size=(RECORDS, FEATURES))
    y = (x @ np.linspace(-2.0, 2.0, FEATURES) + rng.normal(size=RECORDS) > 0.5).astype(float)
    # Partitions of different sizes and different mixes.
    order = np.argsort(y + rng.normal(scale=1.5, size=RECORDS))
    ends = (RECORDS * (np.arange(1, num_partitions) / num_partitions) ** 1.5).astype(int)
    part = np.split(order, ends)[partition_id]
    part = rng.permutation(part)
    train, test = np.split(part, [int(0.8 * len(part))])
    return (x[train], y[train]), (x[test], y[test])


def train(model, data, epochs: int, lr: float, proximal_mu: float):
    """Gradient descent; with a pull towards the model that came where the strategy asks for it (FedProx)."""
    x, y = data
    weights, bias = model
    for _ in range(epochs):
        error = predict([weights, bias], x) - y
        weights = weights - lr * (x.T @ error / len(y) + proximal_mu * (weights - model[0]))
        bias = bias - lr * (np.mean(error, keepdims=True) + proximal_mu * (bias - model[1]))
    return [weights, bias], loss([weights, bias], data)


def predict(model, x):
    weights, bias = model
    return 1.0 / (1.0 + np.exp(-(x @ weights + bias)))


def loss(model, data) -> float:
    x, y = data
    p = np.clip(predict(model, x), 1e-9, 1 - 1e-9)
    return float(-np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)))


def accuracy(model, data) -> float:
    x, y = data
    return float(np.mean((predict(model, x) > 0.5) == y))
