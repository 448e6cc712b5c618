"""The federated optimisers against the paper's algorithm by hand, and against Flower's strategies."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvgM, FedYogi
from flwr.supercore.task_identity import TaskIdentity

from quorate.study.study import Optimizer
from quorate_client.rounds.model.optimizer import Vector, moments_at_start, step

AVERAGES = np.random.default_rng(3).normal(scale=0.1, size=(4, 5))
START = np.random.default_rng(4).normal(size=5)


def ours(optimizer: Optimizer) -> list[Vector]:
    theta = START
    moments = tuple(np.full(5, value) for value in moments_at_start(optimizer))
    path = []
    for average in AVERAGES:
        theta, moments = step(optimizer, theta, moments, average)
        path.append(theta)
    return path


def flowers(strategy: Any) -> list[Vector]:
    """A Flower strategy on one client that is ``average`` away from the model."""
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    theta = START
    path = []
    for number, average in enumerate(AVERAGES, start=1):
        strategy.current_arrays = (
            ArrayRecord([theta]) if isinstance(strategy, FedAvgM) else {"0": theta}  # what configure_train keeps
        )
        metrics = MetricRecord({"num-examples": 1})
        content = RecordDict({"arrays": ArrayRecord([theta + average]), "metrics": metrics})
        reply = Message(content, dst_node_id=1, message_type="train")
        reply.metadata.__dict__["_src_node_id"] = 1
        arrays, _ = strategy.aggregate_train(number, [reply])
        theta = arrays.to_numpy_ndarrays()[0]
        path.append(theta)
    return path


@pytest.mark.parametrize("name", ["fedavg", "fedprox"])
def test_fedavg_and_fedprox_add_the_average_times_the_learning_rate(name: Any) -> None:
    optimizer = Optimizer(name=name, learning_rate=0.5, proximal_mu=0.1 if name == "fedprox" else 0)
    np.testing.assert_array_equal(ours(optimizer)[0], START + 0.5 * AVERAGES[0])
    assert moments_at_start(optimizer) == ()


def test_fedavgm_is_flowers() -> None:
    path = ours(Optimizer(name="fedavgm", learning_rate=0.5, momentum=0.8))
    for one, other in zip(path, flowers(FedAvgM(server_learning_rate=0.5, server_momentum=0.8)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


@pytest.mark.parametrize("name", ["fedadam", "fedyogi"])
def test_adaptive_optimisers_follow_algorithm_2_of_the_paper_to_the_bit(name: Any) -> None:
    optimizer = Optimizer(name=name, learning_rate=0.03, beta1=0.8, beta2=0.95, tau=0.01)
    x, m, v = float(START[2]), 0.0, 0.01 * 0.01
    for theta, average in zip(ours(optimizer), AVERAGES[:, 2].tolist(), strict=True):
        square = average * average
        m = 0.8 * m + (1 - 0.8) * average
        if name == "fedadam":
            v = 0.95 * v + (1 - 0.95) * square
        else:
            v = v - (1 - 0.95) * square * math.copysign(1, v - square)
        x = x + 0.03 * m / (math.sqrt(v) + 0.01)
        assert theta[2] == x


def test_fedyogi_is_flowers_once_that_starts_with_tau_squared() -> None:
    strategy = FedYogi(eta=0.03, beta_1=0.8, beta_2=0.95, tau=0.01)
    strategy.v_t = {"0": np.full(5, 0.01**2)}
    path = ours(Optimizer(name="fedyogi", learning_rate=0.03, beta1=0.8, beta2=0.95, tau=0.01))
    for one, other in zip(path, flowers(strategy), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)


def test_fedadam_is_flowers_without_its_correction_of_the_learning_rate() -> None:
    strategy = FedAdam(eta=0.03, beta_1=0.8, beta_2=0.95, tau=0.01)
    strategy.v_t = {"0": np.full(5, 0.01**2)}
    optimizer = Optimizer(name="fedadam", learning_rate=0.03, beta1=0.8, beta2=0.95, tau=0.01)
    corrections = [math.sqrt(1 - 0.95 ** (r + 1)) / (1 - 0.8 ** (r + 1)) for r in (1, 2, 3, 4)]
    ours_steps = np.diff([START, *ours(optimizer)], axis=0)
    flowers_steps = np.diff([START, *flowers(strategy)], axis=0)
    for one, other, correction in zip(ours_steps, flowers_steps, corrections, strict=True):
        np.testing.assert_allclose(one * correction, other, rtol=1e-9)
