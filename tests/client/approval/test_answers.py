"""What the daemon finds of the administrator's decisions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from quorate.errors import AlreadyExistsError, DatasetMissingError, NotFoundError, StudyNotApprovedError
from quorate_client.approval.answers import Answer, Answers, AnswerWord
from quorate_client.approval.datasets import Datasets
from quorate_client.site.agreement import Dataset
from quorate_client.site.database import SiteDatabase
from quorate_client.site.folder import SiteFolder

from ..conftest import OTHERS, SITE, make_study
from ..consortium import Server
from ..databases import state_made
from ..synthetic_sets import SYNTHETIC

VISITS = Dataset("visits", "tabular", Path("/data/visits.csv"), {"kind": "tabular"}, 0.25, 120)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[SiteDatabase]:
    with state_made(tmp_path / "state.sqlite") as opened:
        yield opened


def answer(services: Server, word: AnswerWord = "approved", dataset: str | None = None) -> Answer:
    study = make_study(services)
    return Answer(study, study.digest(), word, b"signature", dataset, {"k": 1}, tuple(services.members.values()))


@pytest.mark.parametrize("dataset", [VISITS, SYNTHETIC])
def test_a_registered_data_set_comes_back_as_it_was(state: SiteDatabase, dataset: Dataset) -> None:
    datasets = Datasets(state, lambda: 0.0)
    datasets.add(dataset)

    assert datasets.get(dataset.name) == dataset
    assert datasets.all() == [dataset]
    with pytest.raises(AlreadyExistsError):
        datasets.add(dataset)


def test_a_data_set_that_is_not_there_is_not_removed(state: SiteDatabase) -> None:
    with pytest.raises(NotFoundError, match="data add"):
        Datasets(state, lambda: 0.0).remove("visits")


def test_an_approved_study_becomes_an_agreement(state: SiteDatabase, services: Server, joined: SiteFolder) -> None:
    Datasets(state, lambda: 0.0).add(VISITS)
    given = answer(services, dataset="visits")
    Answers(state, lambda: 7.0).record(given)

    agreement = Answers(state, lambda: 0.0).agreement(given.digest, SITE)

    assert (agreement.study, agreement.dataset, agreement.node_config) == (given.study, VISITS, {"k": 1})


def test_the_last_answer_counts(state: SiteDatabase, services: Server, joined: SiteFolder) -> None:
    answers = Answers(state, lambda: 0.0)
    given = answer(services)
    answers.record(given)
    answers.record(answer(services, "rejected"))

    with pytest.raises(StudyNotApprovedError):
        answers.agreement(given.digest, SITE)
    assert [each.answer for each in answers.all()] == ["rejected"]


def test_a_study_whose_data_set_was_removed_is_refused(
    state: SiteDatabase, services: Server, joined: SiteFolder
) -> None:
    datasets, answers = Datasets(state, lambda: 0.0), Answers(state, lambda: 0.0)
    datasets.add(VISITS)
    given = answer(services, dataset="visits")
    answers.record(given)
    datasets.remove("visits")

    with pytest.raises(DatasetMissingError, match="no longer registered"):
        answers.agreement(given.digest, SITE)


def test_the_keys_of_an_approved_roster_are_pinned(state: SiteDatabase, services: Server, joined: SiteFolder) -> None:
    answers = Answers(state, lambda: 0.0)
    answers.record(answer(services))
    east = services.members[OTHERS[0]]

    assert answers.pinned_keys(east.name) == {east.signing_key}
    answers.record(answer(services, "rejected"))
    assert answers.pinned_keys(east.name) == set()
