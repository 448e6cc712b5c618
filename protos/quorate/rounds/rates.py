"""Which rates follow from the counts that a sum holds beside the updates, and when they may be told.

The counts of sum r are those of the training of round r, and of the evaluation of the model that it started from: that
of round r - 1. Rates over few records are told to nobody, and what was computed from training records is not told where
privacy is promised.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from quorate.errors import ContributionError
from quorate.privacy.evaluation import tally_form
from quorate.study.study import Study
from quorate.tally import LOSS_ONE, MIN_RECORDS, ClassificationTally

OWN_COUNTS = 4
"""Weight, records, loss and clipped coordinates of a training; the counts of an evaluation follow."""


def pooled_rates(study: Study, number: int, counts: Sequence[int]) -> dict[int, dict[str, float]]:
    """What may be told of a sum's counts, by round.

    Args:
        number: Of the sum, 1 or above.
        counts: Of all sites together.
    """
    told: dict[int, dict[str, float]] = {}
    _, records, loss, _ = counts[:OWN_COUNTS]
    if records >= MIN_RECORDS and study.privacy is None:
        told[number] = {"train_loss": loss / LOSS_ONE / records}
    if study.evaluates(number - 1):
        with suppress(ContributionError):  # one site counted nonsense: the model is there all the same
            rates = ClassificationTally.decode(counts[OWN_COUNTS:], tally_form(study)).metrics()
            if rates:
                told[number - 1] = rates
    return told
