"""A study without privacy beside private ones, so that the ledger's epsilon for its records is not true.

It left no trace: an epsilon of 3 was shown for records that another study had used without any noise, and a limit that
was set afterwards started from a false zero.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quorate.errors import BudgetExhaustedError, LedgerError, PrivacyUnsupportedError, TaskFailedError
from quorate.identity import RunId, SiteName
from quorate.rounds.blobs import Blob
from quorate.rounds.instruction import Instruction, Phase, message_id
from quorate.study.study import Rounds, Study
from quorate_client.approval.policy import PrivacyPolicy
from quorate_client.ledger.entries import Account, Unbounded
from quorate_client.ledger.ledger import Ledger, open_ledger
from quorate_client.ledger.limits import shipped_accountants
from quorate_client.rounds.training import Accounting
from quorate_client.site.database import make_state
from tests.client.engine_kit import RUN, ServerPart, make_study, site
from tests.client.ledger_kit import KEY
from tests.client.rounds.test_training import PER_RECORD, TRAINING, Site, study
from tests.client.rounds.test_training import site as private_site
from tests.client.run_kit import engines
from tests.server.study_kit import RUN as SECURE_RUN

__all__ = ["private_site"]

RECORDS, HELD_OUT = Account("records", "record"), Account("records", "record", "test")
VISITS, HELD_OUT_VISITS = Account("visits", "record"), Account("visits", "record", "test")
ON_PARAMETERS: dict[str, Any] = {
    "rounds": Rounds(count=3, quorum=1, weights="equal"),
    "privacy": {"delta": 1e-3, "update": {"clip": 1.0, "noise_multiplier": 2.0}},
}


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    make_state(tmp_path / "state.sqlite")
    made = open_ledger(tmp_path / "ledger.sqlite", tmp_path / "state.sqlite", KEY, shipped_accountants())
    yield made
    made.close()


def accounting(ledger: Ledger) -> Accounting:
    return Accounting(ledger, PrivacyPolicy, lambda: 1.7e9)


def unbounded(ledger: Ledger) -> list[tuple[str, Account | None]]:
    contents = [entry.content for entry in ledger.entries.all()]
    return [(each.run, each.account) for each in contents if isinstance(each, Unbounded)]


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("changes", [{}, ON_PARAMETERS], ids=["no noise", "noise on parameters"])
async def test_every_run_that_uses_records_without_an_epsilon_is_on_the_ledger_once(
    tmp_path: Path, ledger: Ledger, changes: dict[str, Any]
) -> None:
    server = ServerPart(make_study(**changes), tmp_path / "server")
    for _ in range(2):  # the second time after a restart
        async with site(server, tmp_path / "site", accounting=accounting(ledger)) as east:
            for _ in range(2):
                with suppress(PrivacyUnsupportedError):  # beside noise the task's exact sums are refused, once made
                    await east.do(Phase.UPLOAD)
    assert unbounded(ledger) == [(RUN, RECORDS), (RUN, HELD_OUT)]
    async with site(server, tmp_path / "site", accounting=accounting(ledger)) as east:
        name = message_id(RunId("run-2"), 0, Phase.UPLOAD, 0, SiteName("north"))
        with suppress(PrivacyUnsupportedError):
            await east.perform(replace(server.instruction(Phase.UPLOAD), message_id=name, run=RunId("run-2")))
    assert unbounded(ledger)[2:] == [("run-2", RECORDS), ("run-2", HELD_OUT)]


@pytest.mark.usefixtures("installed")
def test_secure_aggregation_hides_no_record_and_its_runs_are_on_the_ledger_too(tmp_path: Path, ledger: Ledger) -> None:
    with engines(tmp_path / "sites") as exchange:
        east = exchange.sites[SiteName("east")]
        east.accounting = accounting(ledger)
        east.restart()
        exchange.loop().run()
    assert unbounded(ledger) == [(SECURE_RUN, RECORDS), (SECURE_RUN, HELD_OUT)]


@pytest.mark.usefixtures("installed")
async def test_a_guest_app_may_read_any_records_of_the_site(tmp_path: Path, ledger: Ledger) -> None:
    server = ServerPart(make_study(guest=True), tmp_path / "server")
    name = message_id(RUN, 1, Phase.GUEST, 0, SiteName("north"))
    asked = Instruction(name, RUN, 1, Phase.GUEST, 0, server.study.digest(), 60.0, blobs=(Blob.of(b"?"),))
    async with site(server, tmp_path / "site", accounting=accounting(ledger)) as east:
        with pytest.raises(TaskFailedError):  # it was no message of Flower's; the app was asked all the same
            await east.perform(asked)
    assert unbounded(ledger) == [(RUN, None)]
    assert [len(ledger.unbounded(account)) for account in (VISITS, HELD_OUT_VISITS)] == [1, 1]


@pytest.mark.usefixtures("installed")
async def test_no_record_is_touched_before_it_is_on_the_ledger(tmp_path: Path, ledger: Ledger) -> None:
    ledger.refuse(b"s" * 32, "run-0", 1, "policy_refused")
    ledger.refuse(b"s" * 32, "run-0", 2, "policy_refused")
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as database, database:
        database.execute("DELETE FROM entries WHERE number = 1")
    broken = open_ledger(tmp_path / "ledger.sqlite", tmp_path / "state.sqlite", KEY, shipped_accountants())
    server = ServerPart(make_study(), tmp_path / "server")
    async with site(server, tmp_path / "site", accounting=accounting(broken)) as east:
        Path(east.agreement.dataset.path).unlink()  # type: ignore[union-attr]  # whoever opened it would fail otherwise
        for _ in range(2):
            with pytest.raises(LedgerError):
                await east.do(Phase.UPLOAD)
    broken.close()


def plainly(private_site: Site, of: Study) -> None:
    private_site.accounting().begin(private_site.agreement(of), RunId("run-0"))


@pytest.mark.parametrize("limit", ["epsilon_per_year", "epsilon_ever"])
def test_a_limit_that_is_set_afterwards_does_not_start_from_zero(private_site: Site, limit: str) -> None:
    plainly(private_site, study())
    private_site.policy = PrivacyPolicy.model_validate({limit: 100.0})
    refusal = private_site.refused(study(training=TRAINING), BudgetExhaustedError)
    assert "released without a bound" in refusal.got
    private_site.policy = PrivacyPolicy.model_validate({limit: 100.0, "unbounded": "set_aside"})
    private_site.train(study(training=TRAINING))
    # What the site's metrics show is not an epsilon either.
    assert private_site.ledger.spent(PER_RECORD, 1e-5) == float("inf")


def test_a_study_with_an_epsilon_for_each_record_needs_no_such_entry(private_site: Site) -> None:
    plainly(private_site, study(training=TRAINING, evaluation={"noise_multiplier": 2.0}))
    assert unbounded(private_site.ledger) == []
