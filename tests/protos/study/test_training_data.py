"""The study's word on what it trains on: new to sites of the version before, and nothing to studies without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError, create_model

from quorate.errors import StudyError
from quorate.study.study import Readable, Study
from quorate.study.study_file import StudyFile

from .test_study import GOLDEN_CANONICAL, GOOD, KEYS, TRAINING, digest_of, study, written

LIMITS = {"largest_epsilon": 3.0, "largest_risk": 0.05, "largest_utility_loss": 0.02}
NOISE = {"delta": 1e-5, "update": {"clip": 1.0, "noise_multiplier": 1.0}}
EQUAL = {"count": 3, "quorum": 2, "weights": "equal"}
GUEST = {"task": {"name": "flower:app:app", "digest": "cd" * 32}, "guest": {"server_app": "server:app"}}

_NEW = {"training_data", "synthetic"}
_KNOWN: dict[str, Any] = {
    name: (field.annotation, field) for name, field in Study.model_fields.items() if name not in _NEW
}
OlderStudy = create_model("OlderStudy", __base__=Readable, **_KNOWN)
"""As the version before reads a study."""


def test_a_study_that_trains_on_real_records_is_the_one_that_it_was() -> None:
    assert study(training_data="real", synthetic=None).canonical().decode() == GOLDEN_CANONICAL
    assert OlderStudy.model_validate_json(study().canonical())


@pytest.mark.parametrize("training_data", ["synthetic", "mixed"])
def test_a_site_of_the_version_before_refuses_what_it_would_train_on_real_records_for(training_data: str) -> None:
    made = study(training_data=training_data, synthetic=LIMITS)
    assert Study.from_canonical(made.canonical()) == made
    with pytest.raises(ValidationError, match="training_data\n  Extra inputs are not permitted"):
        OlderStudy.model_validate_json(made.canonical())


def test_what_is_absent_cannot_be_said_either() -> None:
    """Else one study would have two digests."""
    for said in (b'"training_data":"real","task"', b'"synthetic":null,"task"'):
        with pytest.raises(StudyError, match="not in canonical form"):
            Study.from_canonical(study().canonical().replace(b'"task"', said, 1))


def test_each_word_and_each_limit_makes_another_study() -> None:
    changes: list[dict[str, Any]] = [{}, {"training_data": "synthetic"}, {"training_data": "mixed"}]
    changes += [{"training_data": "synthetic", "synthetic": {name: limit}} for name, limit in LIMITS.items()]
    assert len({study(**each).digest() for each in changes}) == len(changes)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"training_data": "fake"}, "training_data"),
        ({"synthetic": LIMITS}, "goes with training_data"),
        ({"training_data": "synthetic", **GUEST}, "a guest app opens data by itself"),
        ({"training_data": "synthetic", "synthetic": {"largest_risk": 1.1}}, "largest_risk"),
        ({"training_data": "synthetic", "synthetic": {"largest_epsilon": 0}}, "largest_epsilon"),
        ({"training_data": "synthetic", "synthetic": {"smallest_risk": 0.1}}, "smallest_risk"),
    ],
)
def test_what_cannot_be_agreed_on_is_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        study(**changes)


@pytest.mark.parametrize("training_data", ["synthetic", "mixed"])
def test_noise_on_gradients_is_for_real_records(training_data: str) -> None:
    training = {"clip": 1.0, "batch_size": 32, "steps": 4, "noise_multiplier": 1.1}
    study(privacy={"delta": 1e-5, "training": training})
    with pytest.raises(ValidationError, match="noise on gradients of real records"):
        study(training_data=training_data, privacy={"delta": 1e-5, "training": training})
    study(training_data=training_data, privacy=NOISE, rounds=EQUAL)


def test_noise_on_the_evaluation_is_enough_where_training_was_paid_for_before() -> None:
    alone = {"delta": 1e-5, "evaluation": {"noise_multiplier": 1.0}}
    assert study(training_data="synthetic", privacy=alone).evaluations == 1
    for training_data in ("real", "mixed"):
        with pytest.raises(ValidationError, match="name at least one of"):
            study(training_data=training_data, privacy=alone)


def test_a_file_says_it_in_a_line_and_a_section(tmp_path: Path) -> None:
    text = GOOD.replace("seed = 7", 'seed = 7\ntraining_data = "synthetic"')
    text += "[synthetic]\nlargest_epsilon = 3.0\nlargest_risk = 0.05\n"
    made = StudyFile.read(written(tmp_path, text)).resolve("north-sea", KEYS, digest_of)
    assert made.training_data == "synthetic"
    assert made.synthetic is not None
    assert made.synthetic.summary == "largest_epsilon = 3, largest_risk = 0.05"
    private = StudyFile.read(written(tmp_path, f"{text}[privacy]\ndelta = 1e-5\n{TRAINING}"))
    with pytest.raises(StudyError, match="noise on gradients of real records"):
        private.resolve("north-sea", KEYS, digest_of)
