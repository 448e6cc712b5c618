"""What the pages may say of their figures: no more than the intervals show."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import demo
from demo.collaborative.page import in_words
from demo.collaborative.variants import VARIANTS, Variant
from demo.fraud.measures import Figure, Quality
from demo.fraud.page import verdict
from quorate.study.study_file import StudyFile

SOME = Figure(0.3, 0.2, 0.4)
BETTER, OPEN, WORSE = Figure(0.1, 0.05, 0.2), Figure(0.1, -0.05, 0.2), Figure(-0.1, -0.2, -0.05)


def ways(**against: Figure) -> dict[str, Quality]:
    return {name: Quality(SOME, SOME, SOME, SOME, SOME, apart) for name, apart in against.items()}


def test_better_than_every_insurer_is_said_if_every_interval_lies_above_zero() -> None:
    state, headline, _ = verdict(ways(each=BETTER, atlas=BETTER))
    assert (state, headline) == ("passed", "The model of synthetic claims is better than every insurer alone.")


def test_a_difference_that_may_be_chance_is_called_that() -> None:
    state, headline, text = verdict(ways(atlas=OPEN, dune=BETTER))
    assert state == "warned"
    assert headline == "The model of synthetic claims is not better than every insurer alone."
    assert "against atlas alone the difference may be chance; it is better than dune alone" in text


def test_worse_is_said_first() -> None:
    _, headline, text = verdict(ways(each=WORSE, atlas=OPEN))
    assert headline == "The model of synthetic claims is not better than an insurer alone."
    assert text.index("it is worse than each insurer with its own model") < text.index("against atlas alone")


@pytest.mark.parametrize(("epsilon", "factor"), [(1.0, "2.7"), (3.0, "20"), (9.0, "8,103"), (24.0, "10¹⁰")])
def test_the_factor_of_an_epsilon_is_written_so_that_it_can_be_read(epsilon: float, factor: str) -> None:
    assert in_words(epsilon) == factor


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_each_variant_is_a_study_that_differs_in_what_it_says(variant: Variant, tmp_path: Path) -> None:
    shutil.copy(Path(demo.__file__).with_name("schema.toml"), tmp_path)
    (tmp_path / "study.toml").write_text(variant.study(3))
    study = StudyFile.read(tmp_path / "study.toml")
    assert study.training_data == ("synthetic" if variant.is_synthetic else "real")
    assert study.protection.mode == "secagg"
    privacy = study.privacy
    noises = (privacy.update, privacy.average) if privacy is not None else (None, None)
    assert [noise and noise.noise_multiplier for noise in noises] == [variant.update, variant.average]
