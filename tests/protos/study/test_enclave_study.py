"""What a study has to say where an attested machine opens updates, and where it takes a robust value of them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from quorate.study.robust_section import Robust
from quorate.study.study import Study

POLICY = {"environment": "development", "software": {"keys": ["ab" * 32]}}
NOISE = {"delta": 1e-5, "average": {"clip": 1.0, "noise_multiplier": 1.0}}


def enclave(**changes: Any) -> Study:
    """Of four sites, of which one may collude."""
    content: dict[str, Any] = {
        "consortium": "north-sea",
        "name": "malignancy",
        "purpose": "Tell malignant from benign",
        "task": {"name": "tabular-classifier", "digest": "ab" * 32},
        "rounds": {"count": 3, "quorum": 3, "weights": "equal"},
        "protection": {"mode": "enclave"},
        "attestation": {"required": True, "policy": POLICY},
        "sites": [{"name": name, "signing_key": f"{at:064x}"} for at, name in enumerate("abcd", 1)],
    }
    return Study.model_validate(content | changes)


def test_it_says_itself_and_comes_back_as_it_was() -> None:
    study = enclave(robust={"rule": "median", "largest_norm": 2.0})
    assert Study.from_canonical(study.canonical()) == study
    assert b'"robust"' not in enclave().canonical(), "studies without it keep their digests"
    assert study.protection.summary == "enclave, stands 1 colluding site(s)"


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no machine is named": ({"attestation": None}, r"needs \[attestation\]"),
    "too few sites": ({"rounds": {"count": 3, "quorum": 2}}, "enclave among 4 sites .* needs 3"),
    "the server could read the model": ({"release": {"model": "operator"}}, "operator_key goes with"),
    "robust under secure aggregation": (
        {"protection": {"mode": "secagg"}, "robust": {"rule": "median"}},
        "looks at single updates",
    ),
    "robust without protection": (
        {"protection": {"mode": "none"}, "attestation": None, "robust": {"rule": "median"}},
        "looks at single updates",
    ),
    "robust by records": ({"rounds": {"count": 3, "quorum": 3}, "robust": {"rule": "median"}}, "compares sites"),
    "robust with noise per site": ({"privacy": NOISE, "robust": {"rule": "median"}}, "accounted for averages only"),
}


@pytest.mark.parametrize(("changes", "reason"), BAD.values(), ids=BAD)
def test_what_does_not_go_together_is_no_study(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        enclave(**changes)


@pytest.mark.parametrize(
    "said",
    [{}, {"rule": "mean"}, {"rule": "trimmed_mean"}, {"rule": "median", "trim": 0.1}, {"largest_norm": 0}],
    ids=str,
)
def test_a_section_that_does_nothing_or_contradicts_itself_is_refused(said: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Robust.model_validate(said)


def test_a_trimmed_mean_leaves_something_of_the_quorum() -> None:
    pair: dict[str, Any] = {
        "protection": {"mode": "enclave", "colluders": 0},
        "sites": [{"name": name, "signing_key": f"{at:064x}"} for at, name in enumerate("ab", 1)],
        "rounds": {"count": 3, "quorum": 2, "weights": "equal"},
    }
    assert enclave(**pair, robust={"rule": "median"}).robust is not None
    with pytest.raises(ValidationError, match="leaves nothing of 2 sites"):
        enclave(**pair, robust={"rule": "trimmed_mean", "trim": 0.25})


def test_how_many_a_trimmed_mean_leaves_out() -> None:
    trimmed = Robust(rule="trimmed_mean", trim=0.25)
    assert [trimmed.left_out(sites) for sites in (3, 4, 7, 8)] == [1, 1, 1, 2]
    assert Robust(rule="median").left_out(8) == 0
    assert trimmed.summary == "trimmed mean (0.25 at either end)"
    assert Robust(largest_norm=2.5).summary == "mean, norms up to 2.5"
