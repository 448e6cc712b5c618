"""What a study promises in words is what its terms say."""

from __future__ import annotations

from typing import Any

import pytest

from quorate.privacy.accounting import epsilon
from quorate.privacy.events import Event
from quorate.privacy.statement import NO_PRIVACY, evaluation_statement, privacy_statement
from quorate.study.study import Rounds, Study

TRAINING = {"clip": 1.5, "batch_size": 32, "steps": 4, "epsilon": 3.0}
NOISE = {"clip": 0.5, "noise_multiplier": 2.0}


def study(mode: str = "secagg", **privacy: Any) -> Study:
    return Study.model_validate(
        {
            "consortium": "testers",
            "name": "hearts",
            "purpose": "To see whether it works",
            "task": {"name": "tabular-classifier", "digest": "0" * 64},
            "rounds": {"count": 10, "quorum": 4, "weights": "equal"},
            "protection": {"mode": mode, "colluders": 1},
            "privacy": {"delta": 1e-4, "spare_rounds": 2} | privacy if privacy else None,
            "sites": [{"name": f"site-{i}", "signing_key": f"{i:064x}"} for i in range(5)],
        }
    )


def test_a_study_without_privacy_says_so() -> None:
    assert privacy_statement(study()) == NO_PRIVACY


def test_the_promise_about_records_names_unit_delta_accountant_sampling_and_adversary() -> None:
    statement = privacy_statement(study(training=TRAINING))
    exact = statement.exact[0]
    for said in ("epsilon <= 3", "delta = 0.0001", "PLD", "Poisson sampling", "32 expected", "4 steps", "12 rounds"):
        assert said in exact
    for said in ("L2 norm of 1.5", "one training record", "added or removed", "against everybody"):
        assert said in exact
    assert "20.1 times the probability" in " ".join(statement.plain)  # e^3


def test_without_a_target_no_epsilon_is_claimed() -> None:
    given = {"clip": 1.0, "batch_size": 32, "steps": 4, "noise_multiplier": 1.1}
    statement = privacy_statement(study(training=given))
    assert "epsilon at delta = 0.0001 depends on a site's number of records" in statement.exact[0]
    assert "times the probability" not in " ".join(statement.plain)


@pytest.mark.parametrize("mechanism", ["update", "average"])
def test_noise_on_parameters_promises_for_a_site_and_nothing_for_records(mechanism: str) -> None:
    statement = privacy_statement(study(**{mechanism: NOISE}))
    cost = epsilon([Event(2.0, 1.0, 12)], 1e-4)
    assert f"epsilon {cost:.3g} at delta = 0.0001 over 12 rounds" in statement.exact[0]
    assert "Unit: one site" in statement.exact[0]
    assert any(each.startswith("No statement is made about single records") for each in statement.exact)
    assert "Nothing was done to hide single records." in statement.plain


def test_whom_the_noise_before_sending_holds_against_depends_on_the_protection() -> None:
    assert "up to 1 colluding sites" in privacy_statement(study(update=NOISE)).exact[0]
    assert "everybody who sees an update" in privacy_statement(study("none", update=NOISE)).exact[0]


def test_each_mechanism_that_is_on_has_its_sentences() -> None:
    alone = [privacy_statement(study(**{name: value})) for name, value in _ALL.items()]
    together = privacy_statement(study(**_ALL, evaluation={"noise_multiplier": 2.0}))
    assert [each.exact[0] for each in alone] == list(together.exact[:3])
    assert "Noise on the evaluation" in together.exact[3]
    assert not any(each.startswith("No statement is made about single records") for each in together.exact)


def test_the_promise_about_held_out_records_is_made_where_there_is_noise_on_what_is_counted() -> None:
    noisy = {"training": TRAINING, "evaluation": {"noise_multiplier": 2.0}}
    cost = epsilon([Event(2.0, 1.0, 3)], 1e-4)
    said = privacy_statement(study(**noisy)).exact[1]
    assert f"epsilon {cost:.3g} at delta = 0.0001 over 3 evaluations" in said
    assert "Unit: one held-out record" in said
    assert "up to 1 colluding sites" in said
    assert "Holds against everybody" in privacy_statement(study("none", **noisy)).exact[1]
    outside = "evaluation on held-out records"
    assert outside in " ".join(privacy_statement(study(training=TRAINING)).exact)
    assert outside not in " ".join(privacy_statement(study(**noisy)).exact)


@pytest.mark.parametrize("mode", ["secagg", "none"])
def test_every_study_says_what_its_evaluation_tells_and_whom(mode: str) -> None:
    said = {
        name: " ".join(evaluation_statement(made))
        for name, made in {
            "plain": study(mode),
            "private": study(mode, training=TRAINING),
            "noisy": study(mode, training=TRAINING, evaluation={"noise_multiplier": 2.0}),
        }.items()
    }
    attack = {"secagg": "can look up the person's bin", "none": "choose the models that are tried"}[mode]
    assert [attack in text for text in said.values()] == [True, True, False]
    assert ["no epsilon covers them" in text for text in said.values()] == [True, True, False]
    assert ["summed loss" in text for text in said.values()] == [True, True, False]
    assert ["each round" in text for text in said.values()] == [True, False, False]
    assert ["in 16 bins" in text for text in said.values()] == [False, True, True]
    never = study(mode).model_copy(update={"rounds": Rounds(count=10, quorum=4, evaluate="never")})
    assert evaluation_statement(never) == ("The model is not tried on held-out records: nothing is told of them.",)


_ALL: dict[str, Any] = {"training": TRAINING, "update": NOISE, "average": NOISE}
