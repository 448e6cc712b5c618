"""Use of records that the ledger forgets: behind a new key, in a copy that is put back, under a joined name, in a year.

The site's own guides led there: a folder that was deleted is joined anew, its data are added, and only then does it
connect; a ledger that lost entries is restored from the newest copy, which knows nothing of what was done meanwhile.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from quorate.errors import BudgetExhaustedError, DataError, LedgerRolledBackError
from quorate.identity import RunId
from quorate_client.approval.datasets import open_account
from quorate_client.ledger.entries import Account, Limits, PolicyLimits, Reserved, Spent, Unbounded
from quorate_client.ledger.ledger import Ledger
from quorate_client.ledger.sums import YEAR_S
from quorate_client.ledger.witness import Witness
from quorate_client.rounds.training import Accounting
from quorate_client.site.agreement import Dataset
from quorate_client.tasks.data.datasets import register
from tests.client.data_kit import a_site
from tests.client.ledger_kit import (
    DAY_S,
    DELTA,
    KEY,
    NO_LIMITS,
    NOW,
    OTHER_KEY,
    STUDY,
    VISITS,
    Clock,
    a_charge,
    opened,
    steps,
)
from tests.client.rounds.test_training import TRAINING, Site, study
from tests.client.rounds.test_training import site as private_site

__all__ = ["private_site"]

SCANS = Account("scans", "record")
IN_A_YEAR, FOR_EVER = Limits(DELTA, epsilon_per_year=100.0), Limits(DELTA, epsilon_ever=1e9)
SCHEMA = {
    "kind": "tabular",
    "columns": [{"name": "age", "type": "number", "range": [0, 120]}],
    "label": {"name": "ill", "classes": ["no", "yes"]},
}
OPEN = b"o" * 32


def copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


@pytest.fixture(name="lived")
def lived_fixture(tmp_path: Path) -> Path:
    """A site that has spent."""
    folder = tmp_path / "lived"
    folder.mkdir()
    with opened(folder) as ledger:
        ledger.reserve(a_charge(1), NO_LIMITS, NOW)
    return folder


# --- behind a new key ---

UNPAID: dict[str, Callable[[Ledger], object]] = {
    "a data set": lambda ledger: ledger.register("visits", "record", bytes(32), lambda _: ()),
    "limits": lambda ledger: ledger.note_limits(cast(PolicyLimits, {"epsilon_ever": 3.0})),
    "a refusal": lambda ledger: ledger.refuse(STUDY, "run-1", 1, "policy_refused"),
    "no bound": lambda ledger: ledger.record_unbounded(VISITS, "open", OPEN, "run-0"),
}


@pytest.mark.parametrize("first", UNPAID)
def test_a_ledger_that_paid_for_nothing_believes_what_a_server_saw_of_its_earlier_key(
    lived: Path, tmp_path: Path, first: str
) -> None:
    with opened(lived) as ledger:
        seen = ledger.entries.head()
    assert seen is not None
    anew = tmp_path / "anew"
    anew.mkdir()
    with opened(anew, key=OTHER_KEY) as ledger:
        UNPAID[first](ledger)
    with opened(anew, key=OTHER_KEY) as ledger:
        ledger.entries.check_witness(seen, is_earlier=True)
        with pytest.raises(LedgerRolledBackError):
            ledger.reserve(a_charge(2), NO_LIMITS, NOW)


def test_a_ledger_whose_signatures_are_strange_to_the_other_database_pays_for_nothing(
    lived: Path, tmp_path: Path
) -> None:
    """An older copy, beside a state.sqlite that was made anew with the new key: nobody saw what it lacks."""
    anew = tmp_path / "anew"
    anew.mkdir()
    shutil.copy(lived / "ledger.sqlite", anew)
    with opened(anew, key=OTHER_KEY) as ledger:
        with pytest.raises(LedgerRolledBackError, match=r"state\.sqlite"):
            ledger.reserve(a_charge(2), NO_LIMITS, NOW)
        ledger.record_unbounded(VISITS, "open", OPEN, "run-1")  # what says the most is written all the same
        assert ledger.entries.head() is None
    with opened(anew, key=OTHER_KEY) as ledger, pytest.raises(LedgerRolledBackError):
        ledger.entries.require_newest()


def test_with_the_database_that_knows_the_earlier_key_it_goes_on(lived: Path) -> None:
    with opened(lived, key=OTHER_KEY) as ledger:
        ledger.reserve(a_charge(2), NO_LIMITS, NOW)
    with opened(lived, key=KEY) as ledger:
        ledger.reserve(a_charge(3), NO_LIMITS, NOW)


# --- in a copy that is put back ---


def test_what_was_used_while_the_ledger_lacked_entries_is_on_the_newest_copy_too(lived: Path, tmp_path: Path) -> None:
    older = copy(lived, tmp_path / "older")
    with opened(lived) as ledger:
        ledger.reserve(a_charge(2), NO_LIMITS, NOW)
    newest = copy(lived, tmp_path / "newest")
    shutil.copy(older / "ledger.sqlite", lived)
    clock = Clock()
    clock.now += DAY_S
    with opened(lived, clock) as ledger:
        for run in ("run-7", "run-7", "run-8"):
            ledger.record_unbounded(VISITS, "open", OPEN, run)
    shutil.copy(newest / "ledger.sqlite", lived)
    for _ in range(2):
        with opened(lived) as ledger:
            assert [each.run for each in ledger.entries.sums().unbounded(VISITS)] == ["run-7", "run-8"]
            assert [entry.content.unix_s for entry in ledger.entries.all()][2:4] == [NOW + DAY_S] * 2
            with pytest.raises(BudgetExhaustedError, match="without a bound"):
                ledger.reserve(a_charge(3), FOR_EVER, NOW)
            ledger.entries.verify()
    with closing(Witness(lived / "state.sqlite")) as witness:
        assert witness.kept() == []
    shutil.copy(newest / "ledger.sqlite", lived)  # what was put back is one of the entries that may not be missing
    with opened(lived) as ledger, pytest.raises(LedgerRolledBackError):
        ledger.entries.require_newest()


def test_a_use_is_kept_where_the_older_copy_holds_that_of_the_same_day(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        ledger.record_unbounded(VISITS, "open", OPEN, "run-0")
    shutil.copy(tmp_path / "ledger.sqlite", tmp_path / "older")
    with opened(tmp_path) as ledger:
        ledger.reserve(a_charge(), NO_LIMITS, NOW)
    shutil.copy(tmp_path / "older", tmp_path / "ledger.sqlite")
    with opened(tmp_path) as ledger, closing(Witness(tmp_path / "state.sqlite")) as witness:
        assert witness.kept() == []
        ledger.record_unbounded(VISITS, "open", OPEN, "run-0")
        assert [each.run for each in witness.kept()] == ["run-0"]


# --- in a year ---


def test_a_year_counts_from_the_last_use_of_a_run(tmp_path: Path) -> None:
    clock = Clock()
    with opened(tmp_path, clock) as ledger:
        ledger.record_unbounded(VISITS, "open", OPEN, "run-0")
        clock.now += YEAR_S + DAY_S
        ledger.record_unbounded(VISITS, "open", OPEN, "run-0")
        with pytest.raises(BudgetExhaustedError, match="without a bound"):
            ledger.reserve(a_charge(), IN_A_YEAR, clock.now)
        clock.now += DAY_S / 2
        ledger.record_unbounded(VISITS, "open", OPEN, "run-0")
        assert [entry.content.kind for entry in ledger.entries.all()] == ["unbounded", "unbounded", "refused"]


def test_of_names_that_are_joined_the_newest_use_counts(tmp_path: Path) -> None:
    clock = Clock()
    with opened(tmp_path, clock) as ledger:
        ledger.record_unbounded(VISITS, "other", b"x" * 32, "run-0")
        ledger.record_unbounded(SCANS, "open", OPEN, "run-1")
        clock.now += YEAR_S + DAY_S
        ledger.record_unbounded(VISITS, "open", OPEN, "run-1")
        ledger.register("visits", "record", bytes(32), lambda _: ())
        ledger.register("scans", "record", bytes(32), lambda _: ("visits",))
        assert [each.unix_s for each in ledger.entries.sums().unbounded(SCANS, clock.now - YEAR_S)] == [clock.now]
        with pytest.raises(BudgetExhaustedError, match="without a bound"):
            ledger.reserve(a_charge(account=SCANS), IN_A_YEAR, clock.now)


def test_each_round_of_a_long_run_is_a_use(private_site: Site) -> None:
    private_site.train(study())
    assert [entry.content.kind for entry in private_site.ledger.entries.all()][-1] == "unbounded"


# --- under stock Flower, where nobody adds data sets ---


def table(path: Path, ages: list[float]) -> Path:
    path.write_text("\n".join(["age,ill", *(f"{age},{'yes' if age > 60 else 'no'}" for age in ages)]))
    return path


def begin(site: Site, dataset: Dataset, name: str) -> None:
    of = study(training=TRAINING).model_copy(update={"name": name})
    agreement = replace(site.agreement(of), digest=of.digest(), dataset=dataset)
    site.accounting().begin(agreement, RunId("run-1"))


def test_a_copy_that_only_a_site_file_names_has_the_account_of_its_records(private_site: Site, tmp_path: Path) -> None:
    folder, ages = a_site(tmp_path), [number % 119 + number / 1000 for number in range(400)]
    for name, rows in (("cells", ages), ("copy", ages[::-1]), ("most", ages[20:])):
        begin(private_site, register(name, table(tmp_path / f"{name}.csv", rows), SCHEMA, 0.2, folder), name)
    sums = private_site.ledger.entries.sums()
    assert sums.names("cells") == {"cells", "copy", "most"}
    assert len(sums.registered) == 3


def test_records_with_other_words_for_their_classes_are_others_as_the_documentation_says(tmp_path: Path) -> None:
    folder, ages = a_site(tmp_path), [number % 119 + number / 1000 for number in range(400)]
    path = table(tmp_path / "words.csv", ages)
    recoded = tmp_path / "numbers.csv"
    recoded.write_text(path.read_text().replace("yes", "1").replace("no", "0"))
    with opened(tmp_path) as ledger:
        open_account(register("words", path, SCHEMA, 0.2, folder), ledger)
        numbers = SCHEMA | {"label": {"name": "ill", "classes": ["0", "1"]}}
        assert open_account(register("numbers", recoded, numbers, 0.2, folder), ledger) == {"numbers"}


def test_an_account_that_is_open_is_not_opened_again(private_site: Site, tmp_path: Path) -> None:
    folder = a_site(tmp_path)
    dataset = register("cells", table(tmp_path / "cells.csv", [float(age) for age in range(100)]), SCHEMA, 0.2, folder)
    open_account(dataset, private_site.ledger)
    begin(private_site, dataset, "hearts")
    assert len(private_site.ledger.entries.sums().registered) == 1
    begin(private_site, replace(dataset, name="beats"), "hearts")  # the same fingerprints under another name
    assert private_site.ledger.entries.sums().names("beats") == {"beats", "cells"}


def test_records_without_fingerprints_are_touched_in_no_study(private_site: Site) -> None:
    dataset = private_site.agreement(study()).dataset
    assert dataset is not None
    with pytest.raises(DataError, match="fingerprints"):
        begin(private_site, replace(dataset, index=None), "hearts")


@pytest.mark.parametrize("is_private", [False, True])
def test_an_account_that_was_lost_stops_private_studies_alone(private_site: Site, is_private: bool) -> None:
    private_site.ledger.reserve(a_charge(), NO_LIMITS, NOW)
    private_site.ledger.entries.file.database.execute("DELETE FROM entries")
    with opened(private_site.folder) as ledger:
        accounting: Accounting = replace(private_site.accounting(), ledger=ledger)
        agreement = private_site.agreement(study(training=TRAINING) if is_private else study())
        if is_private:
            with pytest.raises(LedgerRolledBackError):
                accounting.begin(agreement, RunId("run-1"))
        else:
            accounting.begin(agreement, RunId("run-1"))
        assert len(ledger.unbounded(VISITS)) == (not is_private)


# --- on a receipt ---


def test_no_receipt_says_an_epsilon_of_records_that_were_used_without_a_bound(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        ledger.record_unbounded(VISITS, "open", OPEN, "run-0")
        ledger.spend(ledger.reserve(a_charge(count=10), NO_LIMITS, NOW), steps(7))
        told = [entry.content for entry in ledger.entries.all() if not isinstance(entry.content, Unbounded)]
    for content in told:
        assert isinstance(content, Reserved | Spent)
        assert (content.epsilon_before, content.epsilon_after) == (None, None)
    assert len(told) == 2
