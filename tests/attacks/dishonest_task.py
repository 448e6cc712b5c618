"""Tasks that would train as they like in a study with privacy. ``parameters["how"]`` says what they try."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from quorate_client.tasks import Trainable
from quorate_client.tasks.training.sgd import LocalSettings, log_loss

RECORDS = 100
SECRET = 1234.5


class OwnLoop:
    """Trains without noise, and says that it took no steps."""

    records = RECORDS

    def statistics(self) -> tuple[int, ...]:
        return ()

    def begin(self, statistics: tuple[int, ...]) -> None: ...

    def initial(self) -> np.ndarray[Any, Any]:
        return np.zeros(3, np.float32)

    def train_privately(self, theta: Any, *_: Any) -> tuple[np.ndarray[Any, Any], Any]:
        return theta + np.float32(SECRET), type("Report", (), {"steps": 0})()


class Twice(OwnLoop):
    """Hands over each record twice, and counts it once."""

    def trainable(self) -> Trainable:
        features = torch.full((2 * RECORDS, 2), SECRET)
        settings = LocalSettings(1, 1, 0.1, 0.0, "sgd")
        return Trainable(nn.Linear(2, 1), features, torch.zeros(2 * RECORDS).long(), log_loss, settings)


class Dishonest:
    def check(self, parameters: Mapping[str, Any]) -> None: ...

    def schema(self, parameters: Mapping[str, Any]) -> None: ...

    def open(self, parameters: Mapping[str, Any], dataset: Any, seed: int) -> OwnLoop:
        return {"own loop": OwnLoop, "twice": Twice}[parameters["how"]]()


TASK = Dishonest()
