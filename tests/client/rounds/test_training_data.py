"""Who pays for a study on made records: whoever their source is, once, and nobody for training on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from quorate.privacy.events import Event
from quorate.study.study import Study
from quorate_client.approval.privacy_cost import account_of, account_of_test_part
from quorate_client.ledger.entries import Account, Registered, Unbounded
from quorate_client.ledger.ledger import open_ledger
from quorate_client.ledger.limits import shipped_accountants
from quorate_client.site.agreement import Agreement, for_study
from quorate_client.site.database import make_state

from ..ledger_kit import KEY
from ..synthetic_sets import SYNTHETIC
from .test_training import PER_RECORD, PER_SITE, RUN, Site, study

HELD_OUT = Account("visits", "record", "test")
NOISE = {"clip": 1.0, "noise_multiplier": 2.0}


def on(training_data: str, never: bool = False, **privacy: Any) -> Study:
    of = study().model_dump() | {"training_data": training_data}
    rounds = of["rounds"] | ({"evaluate": "never"} if never else {})
    return Study.model_validate(of | {"rounds": rounds, "privacy": {"delta": 1e-3} | privacy if privacy else None})


@dataclass
class MadeSite(Site):
    """A site with a set that was made from its records, for some epsilon or for none."""

    epsilon: float | None = 3.0

    def agreement(self, of: Study) -> Agreement:
        real = super().agreement(study())
        assert real.dataset is not None
        assert SYNTHETIC.origin is not None
        made = replace(SYNTHETIC, origin=replace(SYNTHETIC.origin, source=real.dataset, epsilon=self.epsilon))
        return replace(real, study=of, digest=of.digest(), dataset=for_study(made, of))

    def unbounded(self) -> list[Account | None]:
        contents = [entry.content for entry in self.ledger.entries.all()]
        return [each.account for each in contents if isinstance(each, Unbounded)]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[MadeSite]:
    make_state(tmp_path / "state.sqlite")
    ledger = open_ledger(tmp_path / "ledger.sqlite", tmp_path / "state.sqlite", KEY, shipped_accountants())
    yield MadeSite(tmp_path, ledger)
    ledger.close()


def test_the_accounts_of_a_made_set_are_its_source_s() -> None:
    assert account_of(SYNTHETIC) == PER_RECORD
    assert account_of_test_part(SYNTHETIC) == HELD_OUT


def test_of_a_source_with_units_the_account_is_per_unit() -> None:
    assert SYNTHETIC.origin is not None
    per_unit = replace(SYNTHETIC, origin=replace(SYNTHETIC.origin, source=replace(SYNTHETIC.source, units=40)))
    assert account_of(per_unit) == Account("visits", "unit")


@pytest.mark.parametrize(
    ("training_data", "epsilon", "never", "used"),
    [
        ("synthetic", 3.0, True, []),
        ("synthetic", 3.0, False, [HELD_OUT]),
        ("synthetic", None, True, [PER_RECORD]),
        ("mixed", 3.0, True, [PER_RECORD]),
        ("mixed", 3.0, False, [PER_RECORD, HELD_OUT]),
    ],
)
def test_what_no_epsilon_bounds_is_on_the_source_s_account(
    site: MadeSite, training_data: str, epsilon: float | None, never: bool, used: list[Account]
) -> None:
    site.epsilon = epsilon
    of = on(training_data, never)
    site.accounting().begin(site.agreement(of), RUN)
    site.train(of)
    assert (site.unbounded(), site.spent()) == (used, [])
    registered = [each.content for each in site.ledger.entries.all() if isinstance(each.content, Registered)]
    assert [each.dataset for each in registered] == ["visits"]


@pytest.mark.parametrize("training_data", ["synthetic", "mixed"])
def test_noise_on_updates_is_on_the_account_of_the_whole_site(site: MadeSite, training_data: str) -> None:
    site.train(on(training_data, update=NOISE))
    assert (site.ledger.events(PER_RECORD), site.ledger.events(PER_SITE)) == ([], [Event(2.0)])
    assert site.ledger.events(Account("visits-made", "site")) == []


def test_noise_on_the_evaluation_alone_charges_no_training(site: MadeSite) -> None:
    of = on("synthetic", evaluation={"noise_multiplier": 2.0})
    site.accounting().begin(site.agreement(of), RUN)
    site.foresee(of)
    assert site.train(of).loss == 0
    assert (site.unbounded(), site.spent(), site.task.asked) == ([], [], ["train"])
