"""Counts how a classifier's outputs compare with the truth: from arrays to a ``ClassificationTally``."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from quorate.tally import BINS, LOG_ODDS_SCALE, LOSS_CAP, LOSS_ONE, ClassificationTally

Floats = npt.NDArray[np.float64]
_LARGEST = 1e300


def tally(outputs: npt.NDArray[Any], losses: npt.NDArray[Any], labels: npt.NDArray[np.int64]) -> ClassificationTally:
    """Count over records.

    Args:
        outputs: [records, 1] the log odds of class 1, or [records, classes] logits.
        losses: [records] the loss of each.
        labels: [records] the true classes, from 0.

    Whatever the values are, they are counted: infinity is a very large score, what is no number says nothing of a class
    and has the largest loss. A refusal would say something of the records.
    """
    logits = np.clip(np.nan_to_num(np.asarray(outputs, dtype=np.float64), nan=0.0), -_LARGEST, _LARGEST)
    losses = np.nan_to_num(np.asarray(losses, dtype=np.float64), nan=LOSS_CAP)
    if logits.shape[1] <= 2:
        classes = 2
        odds = {1: logits[:, -1] - (logits[:, 0] if logits.shape[1] == 2 else 0.0)}
        predicted = (odds[1] > 0).astype(np.int64)
    else:
        classes = logits.shape[1]
        odds = {number: _log_odds(logits, number) for number in range(classes)}
        predicted = logits.argmax(axis=1)
    confusion = np.bincount(labels * classes + predicted, minlength=classes * classes)
    histograms: list[int] = []
    for number, scores in odds.items():
        bins = _bins(scores)
        for members in (labels == number, labels != number):
            histograms += np.bincount(bins[members], minlength=BINS).tolist()
    fixed = int(np.rint(np.clip(losses, 0.0, LOSS_CAP) * LOSS_ONE).astype(np.int64).sum())
    return ClassificationTally(classes, fixed, tuple(confusion.tolist()), tuple(histograms))


def _log_odds(logits: Floats, number: int) -> Floats:
    """Of one class against all others, computed from logits without forming probabilities that round to 0 or 1."""
    others = np.delete(logits, number, axis=1)
    highest = others.max(axis=1)
    rest: Floats = highest + np.log(np.exp(others - highest[:, None]).sum(axis=1))
    return logits[:, number] - rest


def _bins(log_odds: Floats) -> npt.NDArray[np.int64]:
    """The bin of each score, as ``quorate.tally`` defines it."""
    scaled = np.clip(log_odds / LOG_ODDS_SCALE, -700.0, 700.0)
    return np.minimum(BINS / (1.0 + np.exp(-scaled)), BINS - 1).astype(np.int64)
