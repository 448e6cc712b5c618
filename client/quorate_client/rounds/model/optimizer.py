"""The federated optimisers, applied at every site to the average update.

Reddi et al. 2021, "Adaptive Federated Optimization", algorithm 2: the average update is the pseudo-gradient Delta, and

- FedAvg, FedProx: theta += lr * Delta (FedProx differs in the training at the sites only);
- FedAvgM (Hsu et al. 2019): m = momentum * m + Delta, theta += lr * m;
- FedAdam: m = b1 m + (1 - b1) Delta, v = b2 v + (1 - b2) Delta^2, theta += lr * m / (sqrt(v) + tau);
- FedYogi: the same with v = v - (1 - b2) Delta^2 sign(v - Delta^2).

v starts at tau^2, the least that the paper allows. Flower starts it at 0, and its FedAdam scales the learning rate by
sqrt(1 - b2^(r+1)) / (1 - b1^(r+1)) as Adam does, which the paper does not: the first rounds differ from Flower's.

All sites must arrive at the same bits: float64, one operation after the other (addition, multiplication, division and
square root are exactly rounded everywhere), and the caller stores float32 after each step.
"""

from __future__ import annotations

from typing import assert_never

import numpy as np
import numpy.typing as npt

from quorate.study.study import Optimizer

Vector = npt.NDArray[np.float64]


def moments_at_start(optimizer: Optimizer) -> tuple[float, ...]:
    """What each moment that the optimiser keeps beside the model starts with; as many as it keeps."""
    match optimizer.name:
        case "fedavg" | "fedprox":
            return ()
        case "fedavgm":
            return (0.0,)
        case "fedadam" | "fedyogi":
            return (0.0, optimizer.tau * optimizer.tau)
        case _:
            assert_never(optimizer.name)


def step(
    optimizer: Optimizer, theta: Vector, moments: tuple[Vector, ...], average: Vector
) -> tuple[Vector, tuple[Vector, ...]]:
    """The next piece of the model and of its moments, from the same piece of the average update. All [n]."""
    match optimizer.name:
        case "fedavg" | "fedprox":
            return theta + optimizer.learning_rate * average, ()
        case "fedavgm":
            momentum = optimizer.momentum * moments[0] + average
            return theta + optimizer.learning_rate * momentum, (momentum,)
        case "fedadam" | "fedyogi":
            first = optimizer.beta1 * moments[0] + (1 - optimizer.beta1) * average
            second = _second_moment(optimizer, moments[1], average * average)
            return theta + optimizer.learning_rate * first / (np.sqrt(second) + optimizer.tau), (first, second)
        case _:
            assert_never(optimizer.name)


def _second_moment(optimizer: Optimizer, second: Vector, square: Vector) -> Vector:
    if optimizer.name == "fedadam":
        return optimizer.beta2 * second + (1 - optimizer.beta2) * square
    return second - (1 - optimizer.beta2) * square * np.sign(second - square)
