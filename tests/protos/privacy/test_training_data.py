"""What is said of made records is what the study demands of them, and no more."""

from __future__ import annotations

import math

import pytest

from quorate.privacy.statement import NO_PRIVACY, privacy_statement
from quorate.privacy.training_data import training_data_statement
from quorate.study.study import Study

from .test_statement import NOISE, study


def on(training_data: str, like: Study | None = None, **limits: float) -> Study:
    changes = {"training_data": training_data} | ({"synthetic": limits} if limits else {})
    return Study.model_validate((like or study()).model_dump() | changes)


def test_on_what_a_model_is_trained_and_tried_is_said_first() -> None:
    assert training_data_statement(study()) == ("Each site trains on real records.",)
    synthetic = " ".join(training_data_statement(on("synthetic")))
    assert synthetic.startswith("Each site trains on synthetic records only, and on no real one.")
    assert "made by each site itself" in synthetic
    assert "tried on real records that were held out" in synthetic
    assert "demands no differential privacy of them" in synthetic
    mixed = " ".join(training_data_statement(on("mixed")))
    assert mixed.startswith("Each site trains on real records and on synthetic ones beside them.")


def test_each_limit_of_the_study_is_in_it_with_its_figure() -> None:
    said = " ".join(training_data_statement(on("synthetic", largest_epsilon=3, largest_risk=0.05)))
    assert "epsilon 3 at most" in said
    assert "by whose report an attacker gains more than 0.05." in said
    assert "loses" not in said
    said = " ".join(training_data_statement(on("synthetic", largest_utility_loss=0.02)))
    assert "loses more than 0.02 of area under the curve" in said


def test_training_on_made_records_promises_what_making_them_did() -> None:
    bounded = privacy_statement(on("synthetic", largest_epsilon=3))
    assert f"{math.exp(3):.3g} times the probability" in " ".join(bounded.plain)
    assert "epsilon <= 3" in bounded.exact[0]
    unbounded = privacy_statement(on("synthetic"))
    assert "times the probability" not in " ".join(unbounded.plain)
    assert "does not demand" in " ".join(unbounded.plain)
    assert "the study sets no epsilon" in unbounded.exact[0]
    for statement in (bounded, unbounded):
        assert "told without noise" in " ".join(statement.plain)  # the evaluation
        assert any("Outside of every epsilon" in each for each in statement.exact)


def test_real_records_beside_made_ones_are_promised_nothing() -> None:
    assert privacy_statement(on("mixed", largest_epsilon=3)) == NO_PRIVACY


@pytest.mark.parametrize("training_data", ["synthetic", "mixed"])
def test_noise_on_updates_stands_beside_it(training_data: str) -> None:
    statement = privacy_statement(on(training_data, study(update=NOISE), largest_epsilon=3))
    assert "Unit: one site" in statement.exact[0]
    is_paid = training_data == "synthetic"
    assert any("post-processing" in each for each in statement.exact) == is_paid
    assert any(each.startswith("No statement is made about single records") for each in statement.exact) != is_paid
    assert ("Nothing was done to hide single records." in statement.plain) != is_paid
