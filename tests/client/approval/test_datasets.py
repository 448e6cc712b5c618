"""Which registered data set is meant for a study."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from quorate.errors import InputError, NotFoundError
from quorate_client.approval.datasets import Datasets
from quorate_client.site.database import site_state
from quorate_client.site.folder import SiteFolder

from ..synthetic_sets import REAL, SYNTHETIC
from .test_policy import study


@pytest.fixture
def datasets(joined: SiteFolder) -> Iterator[Datasets]:
    with site_state(joined.database) as state:
        yield Datasets(state, lambda: 0.0)


def test_the_only_one_of_the_kind_is_taken_and_a_named_one_whatever_it_is(datasets: Datasets) -> None:
    for each in (REAL, SYNTHETIC):
        datasets.add(each)
    assert datasets.choose(study(), None) == REAL
    assert datasets.choose(study(training_data="synthetic"), None) == SYNTHETIC
    assert datasets.choose(study(), SYNTHETIC.name) == SYNTHETIC, "whether it may be used is another question"
    with pytest.raises(NotFoundError, match="no data set none"):
        datasets.choose(study(), "none")


def test_none_and_several_are_two_questions_with_two_answers(datasets: Datasets) -> None:
    with pytest.raises(InputError, match=r"There is no synthetic data set here .* `quorate-client synthetic make`\.$"):
        datasets.choose(study(training_data="synthetic"), None)
    with pytest.raises(InputError, match=r"no data set of real records here .* `quorate-client data add`\.$"):
        datasets.choose(study(), None)
    for each in (REAL, replace(REAL, name="wards")):
        datasets.add(each)
    with pytest.raises(InputError, match=rf"Which .* to use\? Expected {REAL.name}, wards. Name it with --dataset\.$"):
        datasets.choose(study(), None)
