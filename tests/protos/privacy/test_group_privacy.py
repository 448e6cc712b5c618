"""What a promise per record is worth to somebody with several of them: the figures that the documents state."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from dp_accounting import NeighboringRelation, dp_event
from dp_accounting.pld import PLDAccountant
from scipy.stats import binom

from quorate.privacy.accounting import noise_multiplier_for

DOCS = Path(__file__).parents[3] / "docs"
RECORDS, BATCH, STEPS, ROUNDS, SPARE, DELTA = 1000, 32, 20, 20, 1, 1e-5
RATE, COUNT = BATCH / RECORDS, STEPS * (ROUNDS + SPARE)
COARSE = 2e-2
"""Of the distributions; rounding is upwards, and by less than a digit that is stated."""


def epsilon_of_person(records: int, noise: float) -> float:
    """A step draws each of them with the same chance, and moves by a clip for each that it drew."""
    drawn = list(range(records + 1))
    event = dp_event.MixtureOfGaussiansDpEvent(noise, drawn, [float(binom.pmf(k, records, RATE)) for k in drawn])
    accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=COARSE)
    return float(accountant.compose(event, COUNT).get_epsilon(DELTA))


@pytest.mark.parametrize(("records", "stated"), [(2, "6.7"), (5, "20.7"), (10, "52.8")])
def test_the_epsilon_of_a_person_with_several_records_is_as_stated(records: int, stated: str) -> None:
    noise = noise_multiplier_for(epsilon=3.0, delta=DELTA, sampling_rate=RATE, count=COUNT)
    assert f"{epsilon_of_person(records, noise):.1f}" == stated
    page = (DOCS / "concepts" / "differential-privacy.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith(("| records of one", "| epsilon for the person"))]
    said = [re.findall(r"[\d.]+", row) for row in rows]
    assert dict(zip(*said, strict=True))[str(records)] == stated
    assert f"noise multiplier {noise}" in " ".join(page.split())


def test_the_page_on_choosing_says_the_same() -> None:
    page = " ".join((DOCS / "guides" / "choosing-epsilon.md").read_text().split())
    assert '"epsilon 3" is 20.7 for who has five and 52.8 for who has [ten]' in page
