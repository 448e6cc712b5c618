"""The report as a whole: generators that must be found out, an honest one that must not, and JSON that comes back."""

from __future__ import annotations

import json

import pytest

from quorate.errors import DataError
from quorate_client.synthetic.report import Report, assess
from tests.client.synthetic.report.population import (
    TABULAR,
    Generator,
    copying,
    honest,
    leaking,
    loose,
    people,
    split,
    telling,
)

LARGEST_RISK = 0.09
LARGEST_LOSS = 0.1


def report_on(generator: Generator, count: int = 1500, held_out: int = 300, seed: int = 7) -> Report:
    training, unseen = split(people(count, seed), held_out)
    return assess(TABULAR, training, unseen, generator(training, b"made"), generator, None, 1e-5, b"seed")


@pytest.fixture(scope="module")
def of_honest() -> Report:
    return report_on(honest)


def test_an_honest_generator_is_within_all_limits(of_honest: Report) -> None:
    assert max(of_honest.risks.values()) < LARGEST_RISK
    assert of_honest.utility_loss < LARGEST_LOSS
    assert of_honest.hygiene.is_clean


def test_a_copying_generator_is_found_by_every_attack() -> None:
    report = report_on(copying)
    assert report.membership.auc.found >= 0.98
    assert min(report.risks.values()) > LARGEST_RISK
    assert report.hygiene.copies == report.training
    assert not report.hygiene.is_clean


def test_one_column_that_is_the_records_own_is_found() -> None:
    report = report_on(leaking("income"))
    assert report.risks["singling_out"] > LARGEST_RISK
    assert report.singling_out.columns[0].name == "income"
    assert report.singling_out.columns[0].advantage.found == pytest.approx(1)


def test_a_column_that_stands_beside_blurred_ones_as_it_is_is_found() -> None:
    report = report_on(telling("premium"))
    assert report.hygiene.copies == 0
    disclosed = {column.name: column.advantage.counted for column in report.attribute.columns}
    assert disclosed["premium"] > LARGEST_RISK
    assert report.risks["membership"] > LARGEST_RISK


def test_a_label_that_came_loose_is_found() -> None:
    report = report_on(loose())
    assert report.utility_loss > LARGEST_LOSS


def test_the_same_arguments_give_the_same_report(of_honest: Report) -> None:
    assert report_on(honest) == of_honest


def test_a_report_comes_back_from_json(of_honest: Report) -> None:
    assert Report.from_json(json.loads(json.dumps(of_honest.to_json(), allow_nan=False))) == of_honest


def test_a_report_whose_risks_were_changed_is_refused(of_honest: Report) -> None:
    changed = of_honest.to_json()
    changed["risks"]["membership"] = 0.0123
    with pytest.raises(DataError, match="do not follow"):
        Report.from_json(changed)


def test_what_is_no_report_is_refused() -> None:
    with pytest.raises(DataError, match="no report"):
        Report.from_json({"format": "quorate.report/1"})


def test_thirty_records_are_measured_and_said_to_be_few() -> None:
    report = report_on(honest, count=30, held_out=6)
    assert report.is_small
    assert report.membership.members == 6


def test_a_copy_of_thirty_records_is_found() -> None:
    report = report_on(copying, count=30, held_out=6)
    assert report.risks["membership"] > LARGEST_RISK


def test_a_loss_that_cannot_be_measured_counts_as_all() -> None:
    training, unseen = split(people(60, 7), 20)
    one_class = unseen.part(unseen.labels == 0)
    report = assess(TABULAR, training, one_class, honest(training, b"made"), honest, None, 1e-5, b"seed")
    assert report.utility.loss is None
    assert report.utility_loss == 1.0


def test_a_part_of_one_record_cannot_be_measured() -> None:
    with pytest.raises(DataError, match="held-out part is too small"):
        report_on(honest, count=30, held_out=1)
