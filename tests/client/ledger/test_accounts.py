"""Accounts that are about the same people are one, from the entry on that says so, and for ever."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from quorate.errors import BudgetExhaustedError, DataError
from quorate.privacy.events import Event
from quorate_client.ledger.entries import Account, Limits, Registered
from quorate_client.ledger.ledger import Ledger
from tests.client.ledger_kit import DELTA, NO_LIMITS, NOW, STUDY, a_charge, opened, steps

NORTH, SOUTH, EAST = (Account(name, "record") for name in ("north", "south", "east"))


def register(ledger: Ledger, name: str, *shares: str, digest: bytes = bytes(32)) -> set[str]:
    return ledger.register(name, "record", digest, lambda _: shares)


def pay(ledger: Ledger, account: Account, run: str, count: int = 10) -> None:
    charge = a_charge(count=count, account=account, run=run)
    ledger.spend(ledger.reserve(charge, NO_LIMITS, NOW), charge.events)


def test_joined_accounts_are_one_under_all_their_names(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        for name in ("north", "south", "east"):
            assert register(ledger, name) == {name}
        pay(ledger, NORTH, "run-1")
        pay(ledger, SOUTH, "run-2", 7)
        assert register(ledger, "both", "north", "south") == {"both", "north", "south"}
        for account in (NORTH, SOUTH, Account("both", "record")):
            assert ledger.events(account) == [Event(1.0, 1.0, 17)]
            assert ledger.events(account, "run-2") == [Event(1.0, 1.0, 7)]
            assert ledger.events_of_study(account, STUDY) == [Event(1.0, 1.0, 17)]
        assert ledger.events(EAST) == []
        assert register(ledger, "bridge", "both", "east") == {"both", "bridge", "east", "north", "south"}
        assert ledger.events(EAST) == [Event(1.0, 1.0, 17)]


def test_what_is_joined_stays_joined_when_the_ledger_is_opened_again(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        pay(ledger, NORTH, "run-1")
        register(ledger, "south", "north")
        register(ledger, "south")  # anew, with other records
    with opened(tmp_path) as ledger:
        assert ledger.entries.sums().names("south") == {"north", "south"}
        assert ledger.events(SOUTH) == [Event(1.0, 1.0, 10)]
        assert [str(account) for account in ledger.entries.sums().accounts()] == ["north (per record)"]
        ledger.entries.verify()


def test_a_limit_holds_for_all_names_together(tmp_path: Path) -> None:
    limits = Limits(DELTA, epsilon_ever=25.0)
    with opened(tmp_path) as ledger:
        pay(ledger, NORTH, "run-1")
        pay(ledger, SOUTH, "run-2")
        register(ledger, "north", "south")
        with pytest.raises(BudgetExhaustedError):
            ledger.reserve(a_charge(account=SOUTH, run="run-3"), limits, NOW)
        ledger.reserve(a_charge(account=SOUTH, run="run-4", count=5), limits, NOW)


def test_a_reservation_that_was_open_when_accounts_were_joined_is_settled_in_the_joined_one(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        pay(ledger, NORTH, "run-1")
        reservation = ledger.reserve(a_charge(account=SOUTH, run="run-2"), NO_LIMITS, NOW)
        register(ledger, "south", "north")
        assert ledger.events(NORTH) == [Event(1.0, 1.0, 20)]
        ledger.spend(reservation, steps(3))
        assert ledger.events(NORTH) == [Event(1.0, 1.0, 13)]
        (first, second) = ledger.entries.sums().runs(NORTH)
        assert (first.open, second.open, second.run) == (0, 0, "run-2")


def test_what_is_per_unit_and_what_is_per_record_of_the_same_people_is_one_sum(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        pay(ledger, Account("visits", "unit"), "run-1")
        assert [str(account) for account in ledger.entries.sums().accounts()] == ["visits (per unit)"]
        pay(ledger, Account("visits", "record"), "run-2")
        pay(ledger, Account("visits", "site"), "run-3", 4)
        assert ledger.events(Account("visits", "unit")) == [Event(1.0, 1.0, 20)]
        assert ledger.events(Account("visits", "site")) == [Event(1.0, 1.0, 4)]
        assert [str(account) for account in ledger.entries.sums().accounts()] == [
            "visits (per record)",
            "visits (per site)",
        ]


def test_whoever_compares_is_shown_all_that_was_ever_registered(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        register(ledger, "north", digest=b"a" * 32)
        register(ledger, "north", digest=b"b" * 32)
        shown: list[tuple[str, bytes]] = []

        def compare(known: Sequence[tuple[str, bytes]]) -> list[str]:
            shown.extend(known)
            raise DataError("It cannot be compared")

        with pytest.raises(DataError, match="cannot be compared"):
            ledger.register("south", "record", bytes(32), compare)
        assert shown == [("north", b"a" * 32), ("north", b"b" * 32)]
        assert [entry.content.dataset for entry in ledger.entries.all() if isinstance(entry.content, Registered)] == [
            "north",
            "north",
        ]
