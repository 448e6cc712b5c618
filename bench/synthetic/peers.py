"""Other ways to the same end: a private generator of others, a Gaussian copula, and private gradients on real records.

dpmm (Apache-2.0) pins old versions of what we use, so it lives in an environment of its own below build/, made here
when pip can have it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from bench.synthetic.learners import features
from quorate.privacy.accounting import noise_multiplier_for
from quorate_client.tasks import PrivateSettings, Trainable
from quorate_client.tasks.data.schema import CategoryColumn, FlagColumn, NumberColumn, TabularSchema
from quorate_client.tasks.data.table import Table
from quorate_client.tasks.models import tabular
from quorate_client.tasks.training.dp_sgd import PrivateTraining
from quorate_client.tasks.training.sgd import LocalSettings, log_loss

DPMM = "dpmm==0.1.9"
ENVIRONMENT = Path("build/peers/dpmm")
PROGRAM = Path(__file__).with_name("dpmm_peer.py")
INSTALL_TIMEOUT_S = 300.0
DPMM_TIMEOUT_S = 120.0
"""For a table: all of the bench is to take ten minutes."""
RATE, STEPS, CLIP, LEARNING_RATE = 0.05, 200, 1.0, 1.0


class NotMeasuredError(Exception):
    """A peer cannot be had here, or failed."""


class NotEndedError(Exception):
    """A peer was stopped: it takes more seconds than are given to it."""


def dpmm_python() -> Path:
    """The Python that has dpmm, installed on first use.

    Raises:
        NotMeasuredError
    """
    python = ENVIRONMENT / "bin" / "python"
    try:
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", ENVIRONMENT], check=True, timeout=INSTALL_TIMEOUT_S)
        install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", DPMM]
        subprocess.run(install, check=True, capture_output=True, timeout=INSTALL_TIMEOUT_S)
    except (subprocess.SubprocessError, OSError) as error:
        raise NotMeasuredError(f"pip cannot have {DPMM} here ({type(error).__name__})") from error
    return python


def dpmm(
    python: Path, schema: TabularSchema, table: Table, rows: int, epsilon: float, delta: float, seed: int
) -> tuple[Table, float]:
    """A table of dpmm's MST, and the seconds it took to fit and to draw.

    Raises:
        NotMeasuredError
        NotEndedError
    """
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "table.npz", **{"/label": table.labels}, **table.columns)
        order = {
            "columns": [column.model_dump(mode="json") for column in schema.columns],
            "classes": len(schema.label.classes),
            "epsilon": epsilon,
            "delta": delta,
            "seed": seed,
            "rows": rows,
        }
        (Path(folder) / "order.json").write_text(json.dumps(order), encoding="utf-8")
        try:
            done = subprocess.run(
                [python, PROGRAM, folder], capture_output=True, text=True, check=True, timeout=DPMM_TIMEOUT_S
            )
        except subprocess.CalledProcessError as error:
            raise NotMeasuredError(f"dpmm failed: {error.stderr.strip().splitlines()[-1:]}") from error
        except subprocess.TimeoutExpired as error:
            raise NotEndedError from error
        with np.load(Path(folder) / "made.npz") as made:
            columns = {column.name: made[column.name].astype(np.float64) for column in schema.columns}
            return Table(columns, made["/label"].astype(np.int64)), float(done.stdout.split()[-1])


def copula(schema: TabularSchema, table: Table, rows: int, seed: int) -> Table:
    """A Gaussian copula of all columns and the label, with the records' own values as margins: no privacy at all."""
    lot = np.random.default_rng(seed)
    everything = [*(table.columns[column.name] for column in schema.columns), table.labels.astype(np.float64)]
    ranked = [np.sort(values) for values in everything]
    scores = [_scores(values, lot) for values in everything]
    drawn = norm.cdf(lot.multivariate_normal(np.zeros(len(scores)), np.corrcoef(scores), rows).T)
    made = [values[(uniform * len(values)).astype(int)] for values, uniform in zip(ranked, drawn, strict=True)]
    columns = {column.name: values for column, values in zip(schema.columns, made, strict=False)}
    return Table(columns, made[-1].astype(np.int64))


def _scores(values: npt.NDArray[np.float64], lot: np.random.Generator) -> npt.NDArray[np.float64]:
    """Normal scores; equal values, and missing ones, in any order."""
    order = np.lexsort((lot.random(len(values)), values))
    ranks = np.empty(len(values))
    ranks[order] = np.arange(len(values))
    scores: npt.NDArray[np.float64] = norm.ppf((ranks + 0.5) / len(values))
    return scores


def private_gradients(schema: TabularSchema, training: Table, held_out: Table, epsilon: float, delta: float) -> float:
    """AUC of a logistic regression with the project's DP-SGD on the real records, scaled by the schema's ranges."""
    noise = noise_multiplier_for(epsilon, delta, RATE, STEPS)
    known, asked = (_scaled(schema, features(schema, table)) for table in (training, held_out))
    module = tabular.build(known.shape[1], (), 1)
    labels = torch.from_numpy(training.labels)
    settings = LocalSettings(epochs=1, batch_size=1, learning_rate=LEARNING_RATE, weight_decay=0.0, optimizer="sgd")
    trainable = Trainable(module, torch.from_numpy(known), labels, log_loss, settings)
    theta = np.zeros(known.shape[1] + 1, np.float32)
    private = PrivateSettings(CLIP, noise, RATE, STEPS, training.records)
    theta += PrivateTraining(trainable).train(theta, private, 0.0)
    return float(roc_auc_score(held_out.labels, asked @ theta[:-1]))


def _scaled(schema: TabularSchema, found: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Numbers from -1 to 1 over their range."""
    place = 0
    for column in schema.columns:
        match column:
            case CategoryColumn():
                place += len(column.categories)
            case NumberColumn():
                low, high = column.range
                found[:, place] = 2 * (found[:, place] - low) / (high - low) - 1
                place += 1
            case FlagColumn():
                place += 1
        place += column.missing != "refuse"
    return found.astype(np.float32)
