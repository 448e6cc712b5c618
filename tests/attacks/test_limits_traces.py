"""A policy that is loosened, used and tightened again, so that the ledger tells nobody.

Only the three epsilons were noted. A limit that is held at another delta, or that sets runs without a bound aside, left
no entry; an evaluation noted nothing at all; and the policy was read once for the entry and again for the reservation,
so that who exchanged the file in between had one noted and the other used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from quorate.errors import BudgetExhaustedError
from quorate_client.approval.policy import PrivacyPolicy
from quorate_client.ledger.ledger import Ledger, open_ledger
from quorate_client.ledger.limits import shipped_accountants
from quorate_client.rounds.training import Accounting
from quorate_client.site.database import make_state
from tests.client.ledger_kit import KEY
from tests.client.rounds import test_evaluation
from tests.client.rounds.test_training import PER_RECORD, TRAINING, Site, study

TIGHT = PrivacyPolicy(epsilon_ever=6.0, largest_delta=1e-2)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    make_state(tmp_path / "state")
    with closing(open_ledger(tmp_path / "ledger", tmp_path / "state", KEY, shipped_accountants())) as made:
        yield made


def noted(ledger: Ledger, key: str) -> list[Any]:
    return [entry.limits.get(key) for entry in ledger.entries.sums().limits]


def loosened(ledger: Ledger) -> list[list[str]]:
    entries = ledger.entries.sums().limits
    return [after.loosened(before.limits) for before, after in pairwise(entries)]


@pytest.mark.parametrize(("key", "loose"), [("delta", 0.09), ("unbounded", "set_aside")])
def test_how_limits_are_held_is_noted_as_they_are(tmp_path: Path, ledger: Ledger, key: str, loose: object) -> None:
    site = Site(tmp_path, ledger, TIGHT)
    for number, policy in enumerate((TIGHT, TIGHT.model_copy(update={key: loose}), TIGHT), 1):
        site.policy = policy
        site.train(study(training=TRAINING), number)
    assert noted(ledger, key) == [getattr(TIGHT, key), loose, getattr(TIGHT, key)]
    assert loosened(ledger) == [[key], []]
    ledger.entries.verify()


def test_a_site_without_limits_notes_nothing_of_how_they_would_be_held(tmp_path: Path, ledger: Ledger) -> None:
    Site(tmp_path, ledger, PrivacyPolicy(delta=1e-3, largest_delta=1e-2)).train(study(training=TRAINING))
    assert noted(ledger, "delta") == []


def test_limits_are_noted_before_an_evaluation_too(ledger: Ledger) -> None:
    site = test_evaluation.Site(ledger, TIGHT)
    of = test_evaluation.noisy(noise=0.5)
    with pytest.raises(BudgetExhaustedError):
        site.evaluate(of)
    site.policy = TIGHT.model_copy(update={"epsilon_ever": 1000.0})
    site.evaluate(of)
    assert noted(ledger, "epsilon_ever") == [6.0, 1000.0]
    assert loosened(ledger) == [["epsilon_ever"]]


@dataclass
class Exchanged:
    """A policy file that is another one each time that it is read."""

    later: PrivacyPolicy
    read: list[PrivacyPolicy] = field(default_factory=list)

    def __call__(self) -> PrivacyPolicy:
        self.read.append(self.later if self.read else TIGHT)
        return self.read[-1]


@dataclass
class Racing(Site):
    exchanged: Callable[[], PrivacyPolicy] = PrivacyPolicy

    def accounting(self) -> Accounting:
        return Accounting(self.ledger, self.exchanged, lambda: 1.7e9)


def test_what_is_noted_is_what_is_reserved_under(tmp_path: Path, ledger: Ledger) -> None:
    policy = Exchanged(TIGHT.model_copy(update={"epsilon_ever": 1000.0}))
    dear = study(training=TRAINING | {"epsilon": 30.0})
    with pytest.raises(BudgetExhaustedError):
        Racing(tmp_path, ledger, exchanged=policy).train(dear)
    assert (noted(ledger, "epsilon_ever"), ledger.events(PER_RECORD)) == ([6.0], [])
