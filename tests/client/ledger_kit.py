"""A privacy ledger for tests, with an accountant of which everything can be said by head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from quorate.privacy.events import Event
from quorate_client.ledger.entries import Account, Charge, Limits
from quorate_client.ledger.ledger import Ledger, open_ledger
from quorate_client.ledger.limits import Accountants
from quorate_client.site.database import make_state

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(b"o" * 32)
VISITS = Account("visits", "record")
STUDY = b"s" * 32
NOW = 1_800_000_000.0
DAY_S = 86_400.0
DELTA = 1e-5


def cost(events: Iterable[Event], delta: float = DELTA) -> float:
    """Epsilon of the tests: one for each release with noise 1. It adds up and falls with the noise, as a true one."""
    return sum(each.count * each.sampling_rate / each.noise_multiplier for each in events)


ACCOUNTANTS = Accountants("head", cost, cost)
NO_LIMITS = Limits(DELTA)


def steps(count: int, noise: float = 1.0) -> tuple[Event, ...]:
    return (Event(noise, 1.0, count),)


def a_charge(
    round_number: int = 1,
    count: int = 10,
    *,
    account: Account = VISITS,
    run: str = "run-1",
    attempt: int = 0,
    events: Sequence[Event] | None = None,
) -> Charge:
    made = steps(count) if events is None else tuple(events)
    return Charge(account, "hearts", STUDY, run, round_number, attempt, made)


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@contextmanager
def opened(
    folder: Path, wall: Clock | None = None, key: Ed25519PrivateKey = KEY, accountants: Accountants = ACCOUNTANTS
) -> Iterator[Ledger]:
    """The ledger in a folder, as a process has it from its start to its end."""
    make_state(folder / "state.sqlite")
    ledger = open_ledger(folder / "ledger.sqlite", folder / "state.sqlite", key, accountants, wall or Clock())
    try:
        yield ledger
    finally:
        ledger.close()
