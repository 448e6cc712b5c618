"""What a data set must be before a study may use it: each refusal has both figures, and no demand can be loosened."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quorate.errors import SyntheticRefusedError
from quorate.study.study import Study
from quorate_client.approval.policy import Policy, SyntheticPolicy
from quorate_client.approval.usable import RISKS, Found, look_at, require_usable
from quorate_client.site.agreement import Dataset, Origin, for_study

from ..synthetic_sets import REAL, SYNTHETIC, made_from
from .test_policy import OPEN, study

assert SYNTHETIC.origin is not None
ORIGIN: Origin = SYNTHETIC.origin
AS_IT_WAS = Found(REAL, ORIGIN.report)


def on(training_data: str = "synthetic", **limits: float) -> Study:
    return study(training_data=training_data, **({"synthetic": limits} if limits else {}))


def with_(**origin: Any) -> Dataset:
    return replace(SYNTHETIC, origin=replace(ORIGIN, **origin))


def site(**synthetic: Any) -> Policy:
    return OPEN.model_copy(update={"synthetic": SyntheticPolicy(**synthetic)})


def refused(dataset: Dataset, of: Study, policy: Policy = OPEN, found: Found = AS_IT_WAS) -> tuple[str, str]:
    with pytest.raises(SyntheticRefusedError) as caught:
        require_usable(dataset, of, policy, found)
    return caught.value.expected, caught.value.got


@pytest.mark.parametrize("training_data", ["synthetic", "mixed"])
def test_a_set_that_is_good_enough_passes(training_data: str) -> None:
    limits = {"largest_epsilon": 3.0, "largest_risk": 0.03, "largest_utility_loss": 0.04}
    require_usable(SYNTHETIC, on(training_data, **limits), site(**limits), AS_IT_WAS)


def test_real_records_come_from_nothing() -> None:
    require_usable(REAL, study(), OPEN, look_at(REAL, lambda _: None))


@pytest.mark.parametrize("training_data", ["synthetic", "mixed"])
def test_a_real_set_is_not_used_where_a_made_one_is_meant_nor_the_other_way_round(training_data: str) -> None:
    assert refused(REAL, on(training_data)) == (f'a synthetic one, for training_data = "{training_data}"', "a real one")
    assert refused(SYNTHETIC, study()) == ('a real one, for training_data = "real"', "a synthetic one")
    for dataset, of in ((REAL, on(training_data)), (SYNTHETIC, study())):
        with pytest.raises(SyntheticRefusedError):
            for_study(dataset, of)


@pytest.mark.parametrize(
    ("origin", "limit", "got"),
    [
        ({}, ("largest_epsilon", 2.9), "epsilon 3"),
        ({}, ("largest_utility_loss", 0.039), "utility loss 0.04"),
        *(({"risks": ORIGIN.risks | {risk: 0.06}}, ("largest_risk", 0.05), f"{risk} 0.06") for risk in RISKS),
        ({"utility_loss": math.nan}, ("largest_utility_loss", 1.0), "utility loss nan"),
        ({"risks": ORIGIN.risks | {"linkability": math.nan}}, ("largest_risk", 1.0), "linkability nan"),
    ],
)
def test_each_limit_holds_whoever_sets_it(origin: dict[str, Any], limit: tuple[str, float], got: str) -> None:
    name, most = limit
    open_ = {"without_privacy": True, "largest_risk": 1.0, "largest_utility_loss": 1.0}
    dataset, demand = with_(**origin), f"synthetic.{name} = {most:g} in "
    assert refused(dataset, on(), site(**open_ | {name: most})) == (f"{demand}this site's policy", got)
    by_study = refused(dataset, on(**{name: most}), site(**open_))
    assert by_study[1] == got
    assert by_study[0] in (
        f"{demand}the study",
        f"{demand}this site's policy",
    )  # of no figure the site's own comes first


def test_a_study_cannot_loosen_what_the_site_says() -> None:
    loose = on(largest_epsilon=1000.0, largest_risk=1.0, largest_utility_loss=1.0)
    for name, most in (("largest_epsilon", 2.0), ("largest_risk", 0.02), ("largest_utility_loss", 0.01)):
        assert (
            refused(SYNTHETIC, loose, site(**{name: most}))[0] == f"synthetic.{name} = {most:g} in this site's policy"
        )


def test_a_report_that_lacks_a_figure_is_not_enough() -> None:
    for risk in RISKS:
        few = {name: value for name, value in ORIGIN.risks.items() if name != risk}
        assert refused(with_(risks=few), on(), site(largest_risk=1.0)) == (f"a report with {risk}", "none")


def test_a_set_without_privacy_needs_the_site_s_word_and_no_limit_on_epsilon() -> None:
    unbounded = with_(epsilon=None)
    assert refused(unbounded, on())[0] == "synthetic.without_privacy = true in this site's policy"
    allowing = site(without_privacy=True)
    require_usable(unbounded, on(), allowing, AS_IT_WAS)
    of_study = refused(unbounded, on(largest_epsilon=99.0), allowing)
    assert of_study == ("synthetic.largest_epsilon = 99 in the study", "a set that was made without privacy")
    budget = allowing.model_copy(update={"privacy": allowing.privacy.model_copy(update={"epsilon_ever": 9.0})})
    assert refused(unbounded, on(), budget)[0] == "privacy.epsilon_ever = 9 in this site's policy"
    require_usable(SYNTHETIC, on(), budget, AS_IT_WAS)


@pytest.mark.parametrize("source", [None, replace(REAL, content="c1"), replace(REAL, test_fraction=0.3), SYNTHETIC])
def test_a_source_that_is_gone_or_another_one_is_refused(source: Dataset | None) -> None:
    expected, got = refused(SYNTHETIC, on(), found=Found(source, ORIGIN.report))
    assert expected == "the data set that it was made from, as it was then"
    assert got == ("none of that name" if source is None else "another one")


def test_a_report_that_is_gone_or_another_one_is_refused(tmp_path: Path) -> None:
    made = made_from(REAL, tmp_path / "made", "")
    require_usable(made, on(), OPEN, look_at(made, {"visits": REAL}.get))
    report = made.path.parent / "report.json"
    report.write_text('{"risks": {}}')
    assert "one with the digest" in refused(made, on(), found=look_at(made, {"visits": REAL}.get))[1]
    report.unlink()
    assert refused(made, on(), found=look_at(made, {"visits": REAL}.get))[1] == "no such file"
