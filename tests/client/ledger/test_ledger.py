"""The privacy ledger: paid before, settled after, never too low, and never forgotten."""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from quorate.errors import (
    BudgetExhaustedError,
    DiskFullError,
    FrameError,
    LedgerError,
    LedgerRolledBackError,
    SiteInterruptedError,
    WrongStateError,
)
from quorate.privacy.events import Event
from quorate.privacy.ledger_head import SignedHead, sign_head
from quorate_client.ledger.entries import (
    GENESIS,
    Account,
    Limits,
    Refused,
    Reserved,
    Spent,
    entry_hash,
    from_json,
    make_entry,
    to_json,
)
from quorate_client.ledger.file import LedgerFile, open_file
from quorate_client.ledger.ledger import MAX_REFUSALS_A_DAY, Ledger, Reservation
from quorate_client.ledger.limits import Accountants, shipped_accountants
from quorate_client.ledger.sums import verify
from quorate_client.ledger.witness import Witness
from quorate_client.ledger.witnessed import WitnessedEntries
from quorate_client.site.database import make_state
from tests.patience import PATIENCE_S

from ..ledger_kit import (
    ACCOUNTANTS,
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
    cost,
    opened,
    steps,
)

PUBLIC = KEY.public_key().public_bytes_raw()
WHOLE_SITE = Account("visits", "site")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[Ledger]:
    with opened(tmp_path, clock) as made:
        yield made


def kinds(ledger: Ledger) -> list[str]:
    return [entry.content.kind for entry in ledger.entries.all()]


# --- paying and settling ---


def test_a_reservation_counts_in_full_until_it_is_settled(ledger: Ledger) -> None:
    reservation = ledger.reserve(a_charge(count=10), NO_LIMITS, NOW)
    assert ledger.spent(VISITS, DELTA) == 10
    receipt = ledger.spend(reservation, steps(7))

    assert ledger.spent(VISITS, DELTA) == 7
    assert ledger.events(VISITS) == list(steps(7))
    content = receipt.content
    assert isinstance(content, Spent)
    assert (content.run, content.round_number, content.study_digest) == ("run-1", 1, STUDY)
    assert (content.epsilon_before, content.epsilon_after, content.accountant, content.delta) == (10, 7, "head", DELTA)
    assert receipt.head.is_signed_by(PUBLIC)


def test_a_reservation_that_nobody_settles_counts_for_ever(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        ledger.reserve(a_charge(count=10), NO_LIMITS, NOW)
    with opened(tmp_path) as ledger:
        assert ledger.spent(VISITS, DELTA) == 10
        reservation = ledger.reserve(a_charge(2, count=5), NO_LIMITS, NOW)
        ledger.spend(reservation, steps(5))
        assert ledger.spent(VISITS, DELTA) == 15


def test_what_was_reserved_and_not_used_at_all_costs_nothing(ledger: Ledger) -> None:
    ledger.spend(ledger.reserve(a_charge(), NO_LIMITS, NOW), ())
    assert ledger.spent(VISITS, DELTA) == 0
    assert ledger.events(VISITS) == []


@pytest.mark.parametrize(
    "released",
    [steps(11), steps(5) + steps(6), steps(10, noise=0.9), steps(1, noise=2.0), (Event(1.0, 0.5, 10),)],
    ids=["more", "more in parts", "less noise", "noise that was not reserved", "another rate"],
)
def test_more_than_was_reserved_cannot_be_settled_and_goes_on_counting(
    ledger: Ledger, released: tuple[Event, ...]
) -> None:
    reservation = ledger.reserve(a_charge(count=10), NO_LIMITS, NOW)
    with pytest.raises(LedgerError, match="released more than was reserved"):
        ledger.spend(reservation, released)
    assert kinds(ledger) == ["reserve"]
    assert ledger.spent(VISITS, DELTA) == 10
    ledger.spend(reservation, steps(10))  # still open


def test_a_reservation_is_settled_once(ledger: Ledger) -> None:
    reservation = ledger.reserve(a_charge(), NO_LIMITS, NOW)
    ledger.spend(reservation, steps(9))
    with pytest.raises(LedgerError, match="closed once"):
        ledger.spend(reservation, ())
    assert ledger.spent(VISITS, DELTA) == 9


def test_a_reservation_of_another_ledger_settles_nothing(ledger: Ledger) -> None:
    reservation = ledger.reserve(a_charge(), NO_LIMITS, NOW)
    for other in (Reservation(reservation.number, bytes(32)), Reservation(7, reservation.hash)):
        with pytest.raises(LedgerError, match="no such reservation"):
            ledger.spend(other, ())
    assert ledger.spent(VISITS, DELTA) == 10


@pytest.mark.parametrize("settled", [False, True])
def test_a_computation_is_paid_for_once_and_asking_again_pays_for_nothing(tmp_path: Path, settled: bool) -> None:
    """After a crash nobody knows whether it was begun: the old reservation is not given again."""
    with opened(tmp_path) as ledger:
        reservation = ledger.reserve(a_charge(count=10), NO_LIMITS, NOW)
        if settled:
            ledger.spend(reservation, steps(10))
    with opened(tmp_path) as ledger:
        before = kinds(ledger)
        with pytest.raises(SiteInterruptedError, match="paid for before"):
            ledger.reserve(a_charge(count=10), NO_LIMITS, NOW)
        assert kinds(ledger) == before
        ledger.reserve(a_charge(count=10, attempt=1), NO_LIMITS, NOW)
        assert ledger.spent(VISITS, DELTA) == 20


def test_statements_for_a_record_and_for_the_whole_site_are_not_added(ledger: Ledger) -> None:
    ledger.reserve(a_charge(count=10), NO_LIMITS, NOW)
    ledger.reserve(a_charge(count=3, account=WHOLE_SITE), Limits(DELTA, epsilon_ever=3), NOW)
    assert (ledger.spent(VISITS, DELTA), ledger.spent(WHOLE_SITE, DELTA)) == (10, 3)


def test_events_are_told_by_run(ledger: Ledger) -> None:
    ledger.reserve(a_charge(count=1), NO_LIMITS, NOW)
    ledger.reserve(a_charge(2, count=2), NO_LIMITS, NOW)
    ledger.reserve(a_charge(count=4, run="run-2"), NO_LIMITS, NOW)
    assert ledger.events(VISITS) == list(steps(7))
    assert ledger.events(VISITS, "run-1") == list(steps(3))
    assert ledger.events(VISITS, "run-3") == []
    assert ledger.events(Account("other", "record")) == []


def test_what_paid_for_a_computation_is_found_again_open_or_settled(tmp_path: Path) -> None:
    """For one that gives the same bytes each time; nothing else is taken for it."""
    with opened(tmp_path) as ledger:
        assert ledger.paid(a_charge()) is None
        reservation = ledger.reserve(a_charge(), NO_LIMITS, NOW)
        assert ledger.paid(a_charge()) == reservation
        for other in (a_charge(2), a_charge(run="run-2"), a_charge(attempt=1), a_charge(count=11)):
            assert ledger.paid(other) is None
        ledger.spend(reservation, steps(10))
        settled = ledger.paid(a_charge())
        assert settled == replace(reservation, is_open=False)
        assert len(ledger.entries.all()) == 2
    with opened(tmp_path) as ledger:
        assert ledger.paid(a_charge()) == settled


# --- limits ---


@pytest.mark.parametrize(
    ("limits", "name"),
    [
        (Limits(DELTA, epsilon_per_run=10), "epsilon_per_run = 10"),
        (Limits(DELTA, epsilon_per_year=10), "epsilon_per_year = 10"),
        (Limits(DELTA, epsilon_ever=10), "epsilon_ever = 10"),
        (Limits(DELTA, plan=steps(10)), "10 x .noise 1"),
    ],
)
def test_what_would_pass_a_limit_is_refused_before_and_only_the_refusal_is_written(
    ledger: Ledger, limits: Limits, name: str
) -> None:
    ledger.spend(ledger.reserve(a_charge(count=6), limits, NOW), steps(6))
    with pytest.raises(BudgetExhaustedError, match=name) as caught:
        ledger.reserve(a_charge(2, count=5), limits, NOW)

    assert "11" in caught.value.got
    assert kinds(ledger) == ["reserve", "spend", "refused"]
    assert ledger.spent(VISITS, DELTA) == 6
    ledger.reserve(a_charge(2, count=4), limits, NOW)  # as far as the limit goes, and the round was not paid for before
    assert ledger.spent(VISITS, DELTA) == 10


def test_what_was_not_released_is_given_back_to_the_budget(ledger: Ledger) -> None:
    limits = Limits(DELTA, plan=steps(10), epsilon_per_run=10, epsilon_per_year=10, epsilon_ever=10)
    ledger.spend(ledger.reserve(a_charge(count=10), limits, NOW), steps(4))
    ledger.reserve(a_charge(2, count=6), limits, NOW)
    with pytest.raises(BudgetExhaustedError):
        ledger.reserve(a_charge(3, count=1), limits, NOW)


def test_a_run_s_limit_looks_at_that_run_only(ledger: Ledger) -> None:
    limits = Limits(DELTA, epsilon_per_run=10)
    ledger.reserve(a_charge(count=10), limits, NOW)
    ledger.reserve(a_charge(count=10, run="run-2"), limits, NOW)
    assert ledger.spent(VISITS, DELTA) == 20


def test_all_runs_of_a_study_together_stay_within_its_plan(ledger: Ledger) -> None:
    limits = Limits(DELTA, plan=steps(10))
    ledger.spend(ledger.reserve(a_charge(count=6), limits, NOW), steps(5))
    ledger.reserve(a_charge(count=5, run="run-2"), limits, NOW)
    with pytest.raises(BudgetExhaustedError, match="more than the study hearts plans"):
        ledger.reserve(a_charge(count=1, run="run-3"), limits, NOW)
    other = replace(a_charge(count=10, run="run-4"), study_digest=b"t" * 32)
    ledger.reserve(other, limits, NOW)


def test_a_study_counts_with_its_whole_plan_from_its_first_round_on(ledger: Ledger) -> None:
    limits = Limits(DELTA, plan=steps(10), epsilon_ever=19)
    other = replace(a_charge(count=1, run="run-2"), study_digest=b"t" * 32)
    ledger.spend(ledger.reserve(a_charge(count=2), limits, NOW), steps(1))
    with pytest.raises(BudgetExhaustedError, match="epsilon_ever"):
        ledger.reserve(other, limits, NOW)
    ledger.reserve(other, replace(limits, plan=steps(9)), NOW)
    ledger.reserve(a_charge(2, count=9), limits, NOW)  # as planned: nothing that began since is in its way
    assert ledger.committed(VISITS, besides=STUDY) == list(steps(9))


def test_in_a_year_without_a_round_of_it_a_study_leaves_the_year(ledger: Ledger) -> None:
    limits = Limits(DELTA, plan=steps(10), epsilon_per_year=15)
    other = replace(a_charge(count=1, run="run-2"), study_digest=b"t" * 32)
    later = NOW + 365 * DAY_S
    ledger.reserve(a_charge(1, count=1), limits, NOW)
    ledger.reserve(a_charge(2, count=1), limits, NOW + DAY_S)
    with pytest.raises(BudgetExhaustedError, match="epsilon_per_year"):
        ledger.reserve(other, limits, later)
    ledger.reserve(other, limits, later + DAY_S)


# --- what no epsilon bounds ---


def test_what_is_released_without_a_bound_is_written_once_for_a_run(tmp_path: Path) -> None:
    for _ in range(2):
        with opened(tmp_path) as ledger:
            for _ in range(2):
                ledger.record_unbounded(VISITS, "hearts", STUDY, "run-1")
            ledger.record_unbounded(VISITS, "hearts", STUDY, "run-2")
            ledger.record_unbounded(None, "app", b"a" * 32, "run-1")
    with opened(tmp_path) as ledger:
        assert [each.run for each in ledger.unbounded(VISITS)] == ["run-1", "run-2", "run-1"]
        assert [each.study for each in ledger.unbounded(Account("scans", "record"))] == ["app"]
        assert ledger.unbounded(WHOLE_SITE) == []
        assert kinds(ledger) == ["unbounded"] * 3
        assert ledger.spent(VISITS, DELTA) == float("inf")
        ledger.entries.verify()


def test_a_use_that_is_written_waits_for_nobody_who_writes(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger, opened(tmp_path) as other:
        ledger.record_unbounded(VISITS, "hearts", STUDY, "run-1")
        ledger.entries.file.database.execute("PRAGMA busy_timeout = 0")
        with other.entries.file.alone():
            ledger.record_unbounded(VISITS, "hearts", STUDY, "run-1")
            with pytest.raises(LedgerError):
                ledger.record_unbounded(VISITS, "hearts", STUDY, "run-2")


@pytest.mark.parametrize("limit", ["epsilon_per_year", "epsilon_ever"])
@pytest.mark.parametrize("account", [VISITS, None])
def test_a_limit_refuses_records_that_were_released_without_a_bound(
    ledger: Ledger, limit: str, account: Account | None
) -> None:
    ledger.record_unbounded(account, "hearts", STUDY, "run-0")
    limits = Limits(DELTA, **{limit: 1e9})
    with pytest.raises(BudgetExhaustedError, match="without a bound") as caught:
        ledger.reserve(a_charge(), limits, NOW)
    assert "set_aside" in caught.value.action
    assert kinds(ledger) == ["unbounded", "refused"]
    ledger.reserve(a_charge(), replace(limits, counts_unbounded=False), NOW)
    ledger.reserve(a_charge(2), Limits(DELTA, epsilon_per_run=1e9), NOW)  # a run's limit is about that run


def test_a_year_forgets_what_was_released_without_a_bound_and_ever_does_not(ledger: Ledger) -> None:
    ledger.record_unbounded(VISITS, "hearts", STUDY, "run-0")
    later = NOW + 365 * DAY_S
    ledger.reserve(a_charge(), Limits(DELTA, epsilon_per_year=10), later)
    with pytest.raises(BudgetExhaustedError):
        ledger.reserve(a_charge(2), Limits(DELTA, epsilon_ever=1e9), later)


def test_a_ledger_that_lost_entries_takes_what_has_no_bound_and_pays_for_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        ledger.reserve(a_charge(), NO_LIMITS, NOW)
    (tmp_path / "ledger.sqlite").unlink()
    with opened(tmp_path) as ledger:
        ledger.record_unbounded(VISITS, "hearts", STUDY, "run-0")
        ledger.record_unbounded(VISITS, "hearts", STUDY, "run-1")
        assert kinds(ledger) == ["unbounded", "unbounded"]
        with pytest.raises(LedgerRolledBackError):
            ledger.reserve(a_charge(), NO_LIMITS, NOW)
        # Nor does it become the newest for a server: the one with more entries would take the place of the lost one.
        assert ledger.entries.head() is None
    with opened(tmp_path) as ledger:
        assert ledger.entries.head() is None


def test_a_year_is_365_days_and_for_ever_is_longer(ledger: Ledger) -> None:
    limits = Limits(DELTA, epsilon_per_year=10, epsilon_ever=25)
    later = NOW + 365 * DAY_S
    ledger.reserve(a_charge(1, count=10), limits, NOW)
    with pytest.raises(BudgetExhaustedError, match="epsilon_per_year"):
        ledger.reserve(a_charge(2, count=1), limits, later - 1)
    ledger.reserve(a_charge(2, count=10), limits, later)
    with pytest.raises(BudgetExhaustedError, match="epsilon_ever"):
        ledger.reserve(a_charge(3, count=6), limits, later + 365 * DAY_S)
    ledger.reserve(a_charge(3, count=5), limits, later + 365 * DAY_S)


def test_a_clock_set_back_makes_no_year_younger_and_no_entry_older(tmp_path: Path, clock: Clock) -> None:
    limits = Limits(DELTA, epsilon_per_year=10)
    with opened(tmp_path, clock) as ledger:
        reservation = ledger.reserve(a_charge(count=10), limits, NOW)
        clock.now = NOW - 500 * DAY_S
        ledger.spend(reservation, steps(10))
    with opened(tmp_path, clock) as ledger:
        for now in (NOW - 500 * DAY_S, 0.0, -1e12):
            with pytest.raises(BudgetExhaustedError):
                ledger.reserve(a_charge(2, count=1), limits, now)
        ledger.refuse(STUDY, "run-1", 3, "policy_refused")
        times = [entry.content.unix_s for entry in ledger.entries.all()]
        assert times == [NOW] * len(times)
        # With the clock right again the year ends when it would have ended.
        with pytest.raises(BudgetExhaustedError):
            ledger.reserve(a_charge(3, count=1), limits, NOW + 365 * DAY_S - 1)
        ledger.reserve(a_charge(4, count=10), limits, NOW + 365 * DAY_S)


def test_an_epsilon_that_is_no_number_passes_no_limit(tmp_path: Path) -> None:
    for number, bad in enumerate((float("nan"), float("inf"))):
        accountants = Accountants("bad", lambda *_, bad=bad: bad, lambda *_, bad=bad: bad)
        (tmp_path / str(number)).mkdir()
        with opened(tmp_path / str(number), accountants=accountants) as ledger:
            with pytest.raises(BudgetExhaustedError):
                ledger.reserve(a_charge(), Limits(DELTA, epsilon_ever=1e300), NOW)
            ledger.reserve(a_charge(), NO_LIMITS, NOW)
            content = ledger.entries.all()[-1].content
            assert isinstance(content, Reserved)
            assert content.epsilon_after is None


def test_the_accountant_is_not_asked_the_same_twice(tmp_path: Path) -> None:
    asked: Counter[tuple[Event, ...]] = Counter()

    def counting(events: Any, delta: float) -> float:
        asked[tuple(events)] += 1
        return cost(events)

    with opened(tmp_path, accountants=Accountants("counting", counting, counting)) as ledger:
        for number in range(1, 9):
            limits = Limits(DELTA, epsilon_per_year=1000, epsilon_ever=1000)
            ledger.spend(ledger.reserve(a_charge(number), limits, NOW), steps(9))
    assert set(asked.values()) == {1}
    assert all(len(events) == 1 for events in asked)  # merged by noise and rate


# --- refusals ---


def test_a_refusal_is_written_once_and_costs_nothing(ledger: Ledger) -> None:
    for _ in range(3):
        ledger.refuse(STUDY, "run-1", 4, "policy_refused")
    (entry,) = ledger.entries.all()
    assert isinstance(entry.content, Refused)
    assert (entry.content.code, entry.content.run, entry.content.round_number) == ("policy_refused", "run-1", 4)
    assert ledger.events(VISITS) == []


def test_a_server_that_goes_on_asking_does_not_fill_the_disk(ledger: Ledger, clock: Clock) -> None:
    for number in range(MAX_REFUSALS_A_DAY + 20):
        ledger.refuse(STUDY, "run-1", number, "policy_refused")
    assert len(ledger.entries.all()) == MAX_REFUSALS_A_DAY
    with pytest.raises(BudgetExhaustedError):
        ledger.reserve(a_charge(), Limits(DELTA, epsilon_ever=1), NOW)
    assert len(ledger.entries.all()) == MAX_REFUSALS_A_DAY
    clock.now += DAY_S
    ledger.refuse(STUDY, "run-2", 1, "policy_refused")
    assert len(ledger.entries.all()) == MAX_REFUSALS_A_DAY + 1


# --- the file ---


def test_the_ledger_survives_power_cuts_and_is_private(tmp_path: Path, ledger: Ledger) -> None:
    assert ledger.entries.file.database.execute("PRAGMA synchronous").fetchone() == (2,)
    assert (tmp_path / "ledger.sqlite").stat().st_mode & 0o777 == 0o600


def test_a_ledger_of_another_version_is_not_touched(tmp_path: Path, ledger: Ledger) -> None:
    ledger.entries.file.database.execute("PRAGMA user_version=99")
    with pytest.raises(LedgerError, match="newer version"):
        open_file(tmp_path / "ledger.sqlite")


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(LedgerError, match="cannot be read"), opened(tmp_path):
        pass


def full(database: sqlite3.Connection) -> None:
    """As if the disk had no room for one more page."""
    (pages,) = database.execute("PRAGMA page_count").fetchone()
    database.execute(f"PRAGMA max_page_count={pages}")


def test_on_a_full_disk_nothing_is_reserved_and_what_was_reserved_goes_on_counting(ledger: Ledger) -> None:
    reservation = ledger.reserve(a_charge(count=10), NO_LIMITS, NOW)
    full(ledger.entries.file.database)
    many = tuple(Event(1 + number / 1000, 1.0, 1) for number in range(500))
    with pytest.raises(DiskFullError):
        ledger.reserve(a_charge(2, events=many), NO_LIMITS, NOW)
    assert (ledger.spent(VISITS, DELTA), kinds(ledger)) == (10, ["reserve"])
    head = ledger.entries.head()
    assert head is not None
    assert head.number == 1
    ledger.entries.file.database.execute("PRAGMA max_page_count=100000")
    ledger.spend(reservation, steps(10))
    ledger.reserve(a_charge(2, events=many), NO_LIMITS, NOW)


def test_on_a_full_disk_nothing_is_settled(ledger: Ledger) -> None:
    many = tuple(Event(1 + number / 1000, 1.0, 2) for number in range(500))
    reservation = ledger.reserve(a_charge(events=many), NO_LIMITS, NOW)
    full(ledger.entries.file.database)
    with pytest.raises(DiskFullError):
        ledger.spend(reservation, many)
    assert ledger.spent(VISITS, DELTA) == pytest.approx(cost(many))


class FullAtTheEnd(LedgerFile):
    """A file whose disk is found full when what was written is to be kept."""

    is_full = False

    @contextmanager
    def alone(self) -> Iterator[None]:
        with super().alone():
            yield
            if self.is_full:
                raise DiskFullError("The disk is full")


def test_what_could_not_be_kept_is_forgotten_and_the_ledger_goes_on(tmp_path: Path) -> None:
    file = FullAtTheEnd(open_file(tmp_path / "ledger.sqlite").database)
    make_state(tmp_path / "state.sqlite")
    ledger = Ledger(WitnessedEntries(file, Witness(tmp_path / "state.sqlite"), KEY), ACCOUNTANTS, Clock())
    reservation = ledger.reserve(a_charge(), NO_LIMITS, NOW)
    file.is_full = True
    with pytest.raises(DiskFullError):
        ledger.reserve(a_charge(2), NO_LIMITS, NOW)
    with pytest.raises(DiskFullError):
        ledger.spend(reservation, ())
    assert (ledger.spent(VISITS, DELTA), kinds(ledger)) == (10, ["reserve"])
    file.is_full = False
    ledger.reserve(a_charge(2), NO_LIMITS, NOW)
    ledger.spend(reservation, steps(3))
    assert ledger.spent(VISITS, DELTA) == 13
    ledger.entries.verify()
    ledger.close()


def test_a_reservation_that_cannot_be_witnessed_is_refused_and_counts(tmp_path: Path) -> None:
    make_state(tmp_path / "state.sqlite")
    witness = Witness(tmp_path / "state.sqlite")
    ledger = Ledger(WitnessedEntries(open_file(tmp_path / "ledger.sqlite"), witness, KEY), ACCOUNTANTS, Clock())
    ledger.reserve(a_charge(), NO_LIMITS, NOW)
    witness.database.execute("PRAGMA query_only=ON")
    with pytest.raises(WrongStateError):
        ledger.reserve(a_charge(2), NO_LIMITS, NOW)
    assert ledger.spent(VISITS, DELTA) == 20
    witness.database.execute("PRAGMA query_only=OFF")
    ledger.reserve(a_charge(3), NO_LIMITS, NOW)
    assert [seen.number for seen in witness.heads()] == [3]
    ledger.close()


def test_threads_share_a_ledger(ledger: Ledger) -> None:
    limits = Limits(DELTA, epsilon_ever=20)
    refused: list[int] = []

    def spend(first: int) -> None:
        for number in range(first, first + 10):
            try:
                ledger.spend(ledger.reserve(a_charge(number, count=1), limits, NOW), steps(1))
            except BudgetExhaustedError:
                refused.append(number)

    threads = [threading.Thread(target=spend, args=(10 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.spent(VISITS, DELTA) == 20
    assert len(refused) == 20
    ledger.entries.verify()


# --- an older ledger ---


def copy(folder: Path, to: Path) -> Path:
    """A backup of the whole site."""
    shutil.copytree(folder, to)
    return to


def after(folder: Path, rounds: int) -> SignedHead:
    """Spend one for each of so many more rounds; gives the head."""
    with opened(folder) as ledger:
        newest = ledger.entries.head()
        first = newest.number if newest else 0
        for number in range(first, first + rounds):
            ledger.reserve(a_charge(number, count=1), NO_LIMITS, NOW)
        head = ledger.entries.head()
    assert head is not None
    return head


@pytest.fixture
def site(tmp_path: Path) -> Path:
    made = tmp_path / "site"
    made.mkdir()
    after(made, 3)
    return made


def refuses(folder: Path) -> bool:
    """Whether nothing can be spent, now and after another start."""
    found = []
    for number in (98, 99):
        with opened(folder) as ledger:
            before = kinds(ledger)
            try:
                ledger.reserve(a_charge(number), NO_LIMITS, NOW)
            except LedgerRolledBackError:
                assert kinds(ledger) == before
                found.append(True)
            else:
                found.append(False)
    assert len(set(found)) == 1
    return found[0]


@pytest.mark.parametrize("how", ["older", "gone", "emptied"])
def test_an_older_ledger_is_found_out_by_the_site_s_other_database(site: Path, tmp_path: Path, how: str) -> None:
    backup = copy(site, tmp_path / "backup")
    after(site, 2)
    assert not refuses(copy(site, tmp_path / "untouched"))
    match how:
        case "older":
            shutil.copy(backup / "ledger.sqlite", site / "ledger.sqlite")
        case "gone":
            (site / "ledger.sqlite").unlink()
        case "emptied":
            (site / "ledger.sqlite").write_bytes(b"")
    assert refuses(site)


def test_settling_on_an_older_ledger_is_refused_too(site: Path, tmp_path: Path) -> None:
    with opened(site) as ledger:
        reservation = ledger.reserve(a_charge(9), NO_LIMITS, NOW)
    backup = copy(site, tmp_path / "backup")
    after(site, 1)
    shutil.copy(backup / "ledger.sqlite", site / "ledger.sqlite")
    with opened(site) as ledger:
        with pytest.raises(LedgerRolledBackError):
            ledger.spend(reservation, ())
        with pytest.raises(LedgerRolledBackError):
            ledger.refuse(STUDY, "run-1", 1, "policy_refused")
        with pytest.raises(LedgerRolledBackError):
            ledger.entries.verify()


def test_the_right_ledger_put_back_is_used_again(site: Path, tmp_path: Path) -> None:
    older = copy(site, tmp_path / "older")
    head = after(site, 2)
    newest = copy(site, tmp_path / "newest")
    shutil.copy(older / "ledger.sqlite", site / "ledger.sqlite")
    with opened(site) as ledger:
        ledger.entries.check_witness(head)
    assert refuses(site)
    shutil.copy(newest / "ledger.sqlite", site / "ledger.sqlite")
    assert not refuses(site)


def test_an_older_ledger_that_went_on_is_found_out_though_it_is_as_long(site: Path, tmp_path: Path) -> None:
    """The number is the same and the entry another one."""
    backup = copy(site, tmp_path / "backup")
    after(site, 2)
    with opened(backup) as ledger:
        for number in range(50, 60):
            ledger.reserve(a_charge(number), NO_LIMITS, NOW)
    shutil.copy(backup / "ledger.sqlite", site / "ledger.sqlite")
    assert refuses(site)


def test_a_ledger_that_is_replaced_under_a_running_daemon_is_found_out(site: Path, tmp_path: Path) -> None:
    with opened(site) as ledger:
        ledger.reserve(a_charge(50), NO_LIMITS, NOW)
        ledger.entries.file.database.execute("DELETE FROM entries WHERE number > 2")
        with pytest.raises(LedgerRolledBackError):
            ledger.reserve(a_charge(51), NO_LIMITS, NOW)
        with pytest.raises(LedgerRolledBackError):
            ledger.reserve(a_charge(51), NO_LIMITS, NOW)


def test_an_older_site_is_found_out_by_what_the_server_repeats(site: Path, tmp_path: Path) -> None:
    """The whole folder was put back, the local witness with it."""
    backup = copy(site, tmp_path / "backup")
    head = after(site, 2)
    assert not refuses(copy(backup, tmp_path / "nobody told"))
    with opened(backup) as ledger:
        ledger.entries.check_witness(head)
    assert refuses(backup)


def test_a_site_that_went_on_from_a_backup_is_found_out_by_what_the_server_repeats(site: Path, tmp_path: Path) -> None:
    backup = copy(site, tmp_path / "backup")
    head = after(site, 2)
    with opened(backup) as ledger:
        for number in range(50, 60):
            ledger.reserve(a_charge(number), NO_LIMITS, NOW)
        ledger.entries.check_witness(head)
    assert refuses(backup)


def test_a_server_that_was_put_back_repeats_an_older_head_and_that_is_fine(site: Path) -> None:
    with opened(site) as ledger:
        older = ledger.entries.all()[0].head
        newest = ledger.entries.head()
        assert newest is not None
        for head in (older, newest):
            ledger.entries.check_witness(head)
    assert not refuses(site)


@pytest.mark.parametrize("number", [1, 3, 4, 10**9])
def test_a_head_that_a_server_made_up_is_passed_over(site: Path, number: int) -> None:
    with opened(site) as ledger:
        true = ledger.entries.all()[0].head
        forged = [
            sign_head(OTHER_KEY, number, b"x" * 32),
            SignedHead(number, b"x" * 32, true.signature),
            SignedHead(number + 7, true.hash, true.signature),
        ]
        with capture_logs() as logs:
            for head in forged:
                ledger.entries.check_witness(head)
        assert [line["log_level"] for line in logs] == ["warning"] * 3
    assert not refuses(site)


@pytest.mark.parametrize(
    "fields",
    [(0, bytes(32), bytes(64)), (2**63, bytes(32), bytes(64)), (1, bytes(31), bytes(64)), (1, bytes(32), b"")],
)
def test_a_malformed_head_is_refused(fields: tuple[int, bytes, bytes]) -> None:
    with pytest.raises(FrameError):
        SignedHead(*fields)


# --- proof ---


def change(folder: Path, statement: str, *values: object) -> None:
    database = sqlite3.connect(folder / "ledger.sqlite")
    database.execute(statement, values)
    database.commit()
    database.close()


TAMPERING = {
    "content": "UPDATE entries SET content = CAST(replace(CAST(content AS TEXT), '\"count\":1', '\"count\":0') "
    "AS BLOB) WHERE number = 2",
    "hash": "UPDATE entries SET hash = zeroblob(32) WHERE number = 2",
    "short hash": "UPDATE entries SET hash = zeroblob(3) WHERE number = 2",
    "left out": "DELETE FROM entries WHERE number = 2",
}


@pytest.mark.parametrize("how", TAMPERING)
def test_a_changed_entry_is_named_and_nothing_is_spent_on_it(site: Path, how: str) -> None:
    change(site, TAMPERING[how])
    with opened(site) as ledger:
        with pytest.raises(LedgerError, match="Entry 2 "):
            ledger.entries.verify()
        with pytest.raises(LedgerError, match="Entry 2 "):
            ledger.reserve(a_charge(50), NO_LIMITS, NOW)


def test_an_entry_signed_by_another_is_named(site: Path) -> None:
    with opened(site) as ledger:
        head = sign_head(OTHER_KEY, 2, ledger.entries.all()[1].head.hash)
    change(site, "UPDATE entries SET signature = ? WHERE number = 2", head.signature)
    with opened(site) as ledger, pytest.raises(LedgerError, match=r"Entry 2 .*not signed"):
        ledger.entries.verify()


def test_a_ledger_rewritten_whole_by_somebody_without_the_key_does_not_verify(site: Path) -> None:
    with opened(site) as ledger:
        contents = [entry.content for entry in ledger.entries.all()]
    previous, forged = GENESIS, []
    for content in contents:
        forged.append(make_entry(content, previous, OTHER_KEY))
        previous = forged[-1].head.hash
    with pytest.raises(LedgerError, match=r"Entry 1 .*not signed"):
        verify(forged, [PUBLIC])


def test_a_site_that_has_other_keys_now_names_the_earlier_ones(site: Path) -> None:
    with opened(site, key=OTHER_KEY) as ledger:
        ledger.reserve(a_charge(50), NO_LIMITS, NOW)
        with pytest.raises(LedgerError, match=r"Entry 1 .*not signed"):
            ledger.entries.verify()
        assert ledger.entries.verify([PUBLIC]).number == 4


def test_an_entry_that_cannot_follow_does_not_verify_though_it_is_signed(ledger: Ledger) -> None:
    """As a faulty or dishonest program at the site might write it."""
    reservation = ledger.reserve(a_charge(count=10), NO_LIMITS, NOW)
    receipt = ledger.spend(reservation, steps(7))
    entries, spent = ledger.entries.all(), receipt.content
    assert isinstance(spent, Spent)
    for changes in (
        {"events": steps(11)},
        {"events": steps(1, noise=2.0)},
        {"reservation": 5},
        {"run": "run-2"},
        {"unix_s": NOW - 1},
        {"number": 3},
    ):
        wrong = make_entry(spent.model_copy(update=changes), entries[0].head.hash, KEY)
        with pytest.raises(LedgerError, match=r"Entry [23] "):
            verify([entries[0], wrong], [PUBLIC])
    twice = make_entry(spent.model_copy(update={"number": 3}), receipt.head.hash, KEY)
    with pytest.raises(LedgerError, match="Entry 3 "):
        verify([*entries, twice], [PUBLIC])


def test_entries_are_the_same_bytes_for_ever(ledger: Ledger) -> None:
    """Receipts are shown to others: what is signed must not change between versions."""
    ledger.spend(ledger.reserve(a_charge(count=10), NO_LIMITS, NOW), steps(7, noise=1.0))
    ledger.refuse(STUDY, "run-1", 2, "policy_refused")
    ledger.record_unbounded(VISITS, "hearts", STUDY, "run-2")
    salted = [entry.content.model_copy(update={"salt": bytes(range(16))}) for entry in ledger.entries.all()]
    entries, previous = [], GENESIS
    for content in salted:
        entries.append(make_entry(content, previous, KEY))
        previous = entries[-1].head.hash
    reserve, spend, refused, unbounded = entries
    digest, salt = b"73" * 32, b"000102030405060708090a0b0c0d0e0f"
    assert reserve.text == (
        b'{"account":{"dataset":"visits","part":"training","unit":"record"},"accountant":"head","attempt":0,"delta":0.00001,'
        b'"epsilon_after":10,"epsilon_before":0,"events":[{"count":10,"noise_multiplier":1,"sampling_rate":1}],'
        b'"kind":"reserve","number":1,"plan":[],"purpose":"train","round_number":1,"run":"run-1","salt":"'
        + salt
        + b'","study":"hearts","study_digest":"'
        + digest
        + b'","unix_s":1800000000}'
    )
    assert b'"kind":"spend"' in spend.text
    assert b'"reservation":1' in spend.text
    assert refused.text == (
        b'{"account":null,"code":"policy_refused","kind":"refused","number":3,"round_number":2,"run":"run-1",'
        b'"salt":"' + salt + b'","study_digest":"' + digest + b'","unix_s":1800000000}'
    )
    assert unbounded.text == (
        b'{"account":{"dataset":"visits","part":"training","unit":"record"},"kind":"unbounded","number":4,"round_number":0,"run":"run-2",'
        b'"salt":"' + salt + b'","study":"hearts","study_digest":"' + digest + b'","unix_s":1800000000}'
    )
    assert unbounded.head.hash.hex() == "3e072828998de31ebad2b87b1f9fc2c54378b5da034b3dfdce382a270ba65691"
    assert unbounded.head.signature.hex().startswith("bfc5dab8936b8d4aeef4fe810956569c")


def test_what_is_exported_is_read_back_and_changed_nowhere(ledger: Ledger) -> None:
    ledger.spend(ledger.reserve(a_charge(count=10), NO_LIMITS, NOW), steps(7))
    ledger.refuse(STUDY, "run-1", 2, "policy_refused")
    previous = GENESIS
    for entry in ledger.entries.all():
        line = json.loads(json.dumps(to_json(entry)))
        assert from_json(line, previous, entry.number) == entry
        for broken in ({}, None, line | {"hash": "zz"}, line | {"entry": line["entry"] | {"run": "run-2"}}):
            with pytest.raises(LedgerError, match=f"Entry {entry.number} "):
                from_json(broken, previous, entry.number)
        previous = entry.head.hash


# --- whatever happens, the account is right ---

accounts = st.sampled_from([VISITS, WHOLE_SITE, Account("scans", "record")])
kinds_of_events = st.builds(Event, st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from([0.25, 1.0]), st.integers(1, 20))
operations = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "spend", "crash", "refuse"]),
        accounts,
        st.sampled_from(["run-1", "run-2"]),
        st.lists(kinds_of_events, min_size=1, max_size=3),
        st.integers(0, 100),
    ),
    max_size=25,
)


@settings(max_examples=40)
@given(operations)
def test_an_auditor_with_the_export_comes_to_the_ledger_s_epsilon(
    tmp_path_factory: pytest.TempPathFactory, made: list[tuple[str, Account, str, list[Event], int]]
) -> None:
    """Recomputed from the JSON alone, by a program of its own: chain, sums, epsilon before and after."""
    folder = tmp_path_factory.mktemp("site")
    limits = Limits(DELTA, epsilon_per_run=150, epsilon_ever=300)
    open_reservations: list[tuple[Reservation, list[Event]]] = []
    with opened(folder) as ledger:
        for number, (operation, account, run, events, percent) in enumerate(made):
            match operation:
                case "reserve":
                    try:
                        charge = a_charge(number, account=account, run=run, events=events)
                        open_reservations.append((ledger.reserve(charge, limits, NOW + number), events))
                    except BudgetExhaustedError:
                        pass
                case "spend" if open_reservations:
                    reservation, reserved = open_reservations.pop(percent % len(open_reservations))
                    released = [Event(e.noise_multiplier, e.sampling_rate, e.count * percent // 100) for e in reserved]
                    ledger.spend(reservation, released)
                case "crash":
                    open_reservations.clear()
                case _:
                    ledger.refuse(STUDY, run, number, "policy_refused")
        lines = [json.dumps(to_json(entry)) for entry in ledger.entries.all()]
        told = {account: ledger.spent(account, DELTA) for account in ledger.entries.sums().accounts()}
        by_run = {(a, run): cost(ledger.events(a, run)) for a in told for run in ("run-1", "run-2")}
        ledger.entries.verify()

    previous, charged = bytes(32), {}
    for text in lines:
        line = json.loads(text)
        entry = line["entry"]
        previous = entry_hash(previous, rfc8785.dumps(entry))
        assert line["hash"] == previous.hex()
        if entry["kind"] == "refused":
            continue
        account, run = Account(**entry["account"]), entry["run"]
        epsilon = sum(e["count"] * e["sampling_rate"] / e["noise_multiplier"] for e in entry["events"])
        sums = [value for (_, owner, _), value in charged.items() if owner == account]
        assert entry["epsilon_before"] == pytest.approx(sum(sums))
        charged[(entry.get("reservation", entry["number"]), account, run)] = epsilon
        sums = [value for (_, owner, _), value in charged.items() if owner == account]
        assert entry["epsilon_after"] == pytest.approx(sum(sums))
    for account, epsilon in told.items():
        assert epsilon == pytest.approx(sum(value for (_, owner, _), value in charged.items() if owner == account))
        assert epsilon <= 300
    for (account, run), epsilon in by_run.items():
        assert epsilon == pytest.approx(
            sum(value for (_, owner, name), value in charged.items() if (owner, name) == (account, run))
        )


def test_with_the_shipped_accountants_the_ledger_s_epsilon_is_theirs(tmp_path: Path) -> None:
    from quorate.privacy.accounting import adaptive_epsilon

    event = Event(1.1, 32 / 199, 35)
    with opened(tmp_path, accountants=shipped_accountants()) as ledger:
        limits = Limits(1e-3, epsilon_per_run=7.5, epsilon_per_year=9, epsilon_ever=9)
        for number in (1, 2, 3):
            ledger.spend(ledger.reserve(a_charge(number, events=[event]), limits, NOW), [event])
        assert ledger.spent(VISITS, 1e-3) == pytest.approx(adaptive_epsilon([event] * 3, 1e-3))
        with pytest.raises(BudgetExhaustedError, match="epsilon_per_run"):
            ledger.reserve(a_charge(4, events=[event]), limits, NOW)


def test_it_is_closed_once_nobody_reads_it(ledger: Ledger) -> None:
    """SQLite brings the whole process down otherwise; a daemon that ends may still compare it in a thread."""
    closing = threading.Thread(target=ledger.close)
    with ledger.entries.reading() as sums:
        closing.start()
        closing.join(0.2)
        assert closing.is_alive()
        assert sums.number == 0
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
