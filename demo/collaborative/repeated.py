"""The same studies many times in one process, to tell what noise costs from what luck does.

One run of noisy training is one draw, and the next may be far off. So each variant is trained again as its sites would
train it, on the same records and sets, with as much noise as its study asks for. Only encryption is left out, which
changes no sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from sklearn.metrics import roc_auc_score

from demo.kit.models import registered
from quorate.identity import parse_name
from quorate.privacy.update_noise import update_noise
from quorate.secagg.release import ReleaseKey
from quorate.study.study import Study
from quorate.study.study_file import StudyFile
from quorate.study.task_digest import task_digest
from quorate_client.tasks.data.table import Table
from quorate_client.tasks.models.tabular import TabularSession, predict
from quorate_client.tasks.tabular import TASK


@dataclass(frozen=True, slots=True)
class Luck:
    """The AUC of many trainings that differ in their luck only."""

    median: float
    lowest: float
    highest: float


def read_study(file: Path) -> Study:
    """As it would be published, but for the keys of sites and operator, which no figure depends on."""
    written = StudyFile.read(file)
    keys = {parse_name(name): bytes([number]) * 32 for number, name in enumerate(written.sites)}
    return written.resolve("demo", keys, task_digest, ReleaseKey(X25519PrivateKey.generate()))


def train_again(study: Study, sites: Sequence[Path], dataset: str, tested: Table, times: int) -> Luck:
    """
    Args:
        sites: Folders of those that take part. dataset: That each approved for the study.
        tested: Records that no model was trained on.
    """
    torch.set_num_threads(1)  # several for so little work hinder each other
    sessions = []
    for folder in sites:
        chosen = replace(registered(folder, dataset), training=study.training_data)
        session: TabularSession = TASK.open(study.task.parameters, chosen, study.seed)
        session.begin(())
        sessions.append(session)
    found = [_auc(study, sessions, tested, np.random.default_rng(number)) for number in range(times)]
    return Luck(float(np.median(found)), min(found), max(found))


def _auc(study: Study, sessions: Sequence[TabularSession], tested: Table, rng: np.random.Generator) -> float:
    noise, theta, sites = update_noise(study), sessions[0].initial(), len(study.sites)
    for number in range(1, study.rounds.count + 1):
        total = rng.normal(0.0, 1.0, len(theta)) * noise.average
        for session in sessions:
            update, _ = session.train(theta, number, int(rng.integers(2**31)), 0.0)
            clipped = update * min(1.0, noise.clip / float(np.linalg.norm(update)))
            total += clipped / sites + rng.normal(0.0, 1.0, len(theta)) * noise.share
        # The sum is divided by the weights that are in it.
        theta = (theta + total * sites / len(sessions)).astype(np.float32)
    arrays, metadata = sessions[0].export(theta)
    return float(roc_auc_score(tested.labels, predict(arrays, metadata, tested)[:, 1]))
