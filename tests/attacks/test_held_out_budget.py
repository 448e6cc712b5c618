"""What is said of held-out records, past the budget of the test part.

Its account went by a name of its own, "NAME, test part", which no registration ever joined: the same people under a
second name had a second budget. Exact counts left no trace on it, so that an epsilon was shown, and limits went by it,
for records that had been counted without any noise. And a study whose evaluation passed a limit trained all its rounds,
spent the budget of the training records, and was refused in its last sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quorate.errors import BudgetExhaustedError
from quorate.identity import RunId
from quorate.privacy.accounting import adaptive_epsilon
from quorate.privacy.events import Event
from quorate.study.study import Study
from quorate_client.approval.policy import PrivacyPolicy
from quorate_client.approval.privacy_cost import account_of_test_part
from quorate_client.approval.readiness import Assessor, Question
from quorate_client.ledger.entries import Account
from quorate_client.ledger.ledger import open_ledger
from quorate_client.ledger.limits import shipped_accountants
from quorate_client.site.database import make_state
from tests.client.ledger_kit import KEY
from tests.client.rounds.test_evaluation import DATASET, TRAINING, Site, noisy, study

TEST_PART, RECORDS = account_of_test_part(DATASET), Account("visits", "record")
AGAIN = replace(DATASET, name="again")
FINGERPRINTS = b"r" * 32


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    make_state(tmp_path / "state")
    ledger = open_ledger(tmp_path / "ledger", tmp_path / "state", KEY, shipped_accountants())
    yield Site(ledger)
    ledger.close()


def begin(site: Site, of: Study, run: str = "run-1") -> None:
    agreement = site.agreement(of)
    assert agreement.dataset is not None
    dataset = replace(agreement.dataset, index=Path(FINGERPRINTS.hex()))
    if (dataset.name, FINGERPRINTS) not in site.ledger.entries.sums().registered:
        site.ledger.register(dataset.name, "record", FINGERPRINTS, lambda _: [])
    site.accounting().begin(replace(agreement, dataset=dataset), RunId(run))


def named(of: Study, name: str) -> Study:
    return of.model_copy(update={"name": name})


# --- the same people under a second name ---


@pytest.mark.parametrize("is_joined_before", [True, False])
def test_a_copy_has_no_second_budget_for_its_held_out_records(site: Site, is_joined_before: bool) -> None:
    of = noisy(noise=4.0)
    alone = adaptive_epsilon([Event(4.0, count=2)], 1e-5)
    site.policy = PrivacyPolicy(epsilon_ever=1.2 * alone)
    if is_joined_before:
        register(site)
    site.evaluate(of)
    if not is_joined_before:
        register(site)
    site.dataset = AGAIN
    assert site.spent() == [Event(4.0)]
    site.refused(named(of, "another"), BudgetExhaustedError, run="run-2")


def test_the_accounts_of_one_data_sets_parts_stay_two(site: Site) -> None:
    register(site)
    site.evaluate(noisy())
    assert site.ledger.events(RECORDS) == []
    sums = site.ledger.entries.sums()
    assert [(each.dataset, each.part) for each in sums.accounts()] == [("again", "test")]
    assert "visits" in sums.names(sums.accounts()[0].dataset)
    site.ledger.record_unbounded(RECORDS, "plain", b"p" * 32, "run-0")
    assert [str(each) for each in site.ledger.entries.sums().accounts()] == [
        "again (per record)",
        "again (test part, per record)",
    ]
    assert (site.ledger.unbounded(TEST_PART), len(site.ledger.unbounded(RECORDS))) == ([], 1)


def register(site: Site) -> None:
    for name in (DATASET.name, AGAIN.name):
        shares = [DATASET.name] if name == AGAIN.name else []
        site.ledger.register(name, "record", FINGERPRINTS, lambda _, shares=shares: shares)  # type: ignore[misc]


# --- exact counts ---


@pytest.mark.parametrize(
    ("of", "is_told_exactly"),
    [
        (study(), True),
        (study("never"), False),
        (study(training=TRAINING), True),
        (study("never", training=TRAINING), False),
        (study(update={"clip": 1.0, "noise_multiplier": 2.0}), True),
        (noisy(), False),
    ],
    ids=["plain", "plain, never", "16 bins", "private, never", "noise on parameters", "noise"],
)
def test_a_run_that_counts_held_out_records_without_noise_is_on_the_test_parts_account(
    site: Site, of: Study, is_told_exactly: bool
) -> None:
    begin(site, of)
    begin(site, of)
    of_test_part = site.ledger.unbounded(TEST_PART)
    assert [each.run for each in of_test_part] == (["run-1"] if is_told_exactly else [])
    is_private = of.privacy is not None and of.privacy.training is not None
    assert len(site.ledger.unbounded(RECORDS)) == (0 if is_private else 1)


def test_limits_hold_after_exact_counts_under_each_name_of_the_records(site: Site) -> None:
    register(site)
    begin(site, study(training=TRAINING), "run-0")
    site.dataset = AGAIN
    site.policy = PrivacyPolicy(epsilon_ever=1e6)
    site.refused(noisy(), BudgetExhaustedError)
    with pytest.raises(BudgetExhaustedError, match="test part"):
        begin(site, noisy())
    site.policy = PrivacyPolicy(epsilon_ever=1e6, unbounded="set_aside")
    site.evaluate(noisy())


# --- an evaluation that passes a limit ---

DEAR: dict[str, Any] = {"noise": 0.5}


def test_a_study_whose_evaluation_does_not_fit_is_refused_before_anything_of_its_run(site: Site) -> None:
    site.policy = PrivacyPolicy(epsilon_ever=6.0)
    with pytest.raises(BudgetExhaustedError, match="test part"):
        begin(site, noisy(**DEAR))
    assert (site.ledger.entries.sums().accounts(), site.spent()) == ([], [])
    assert [code for *_, code in site.ledger.entries.sums().refusals] == ["budget_exhausted"]
    begin(site, noisy())
    site.evaluate(noisy())
    begin(site, noisy())  # once more, after a restart


def test_readiness_tells_of_an_evaluation_that_does_not_fit(site: Site) -> None:
    assessor = Assessor.__new__(Assessor)
    assessor._ledger = site.ledger
    policy = PrivacyPolicy(epsilon_ever=6.0, largest_delta=1e-2)

    def ask(of: Study) -> None:
        assessor.answer(Question(of, of.digest(), DATASET, policy))

    ask(noisy())
    with pytest.raises(BudgetExhaustedError):
        ask(noisy(**DEAR))
    with pytest.raises(BudgetExhaustedError):  # nothing per record is trained with privacy, but it is counted so
        ask(study(update={"clip": 1.0, "noise_multiplier": 2.0}, evaluation={"noise_multiplier": 0.5}))
    site.evaluate(noisy())
    ask(noisy())
    site.evaluate(noisy(), attempt=1)
    with pytest.raises(BudgetExhaustedError, match="Earlier runs"):
        ask(noisy())
    begin(site, study(training=TRAINING), "run-0")
    with pytest.raises(BudgetExhaustedError):
        ask(named(noisy(), "another"))
