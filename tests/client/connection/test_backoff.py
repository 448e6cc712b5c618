"""How long a site waits before it tries again."""

from __future__ import annotations

from itertools import accumulate

from quorate_client.connection.backoff import LONGEST_S, Backoff


def waits(count: int, random: float) -> list[float]:
    backoff = Backoff(lambda: random)
    return [backoff.next_s() for _ in range(count)]


def test_the_first_attempts_come_quickly() -> None:
    assert waits(4, 1.0) == [0.1, 0.2, 0.4, 0.8]


def test_half_of_a_wait_is_jitter() -> None:
    assert waits(4, 0.0) == [0.05, 0.1, 0.2, 0.4]


def test_a_wait_is_never_longer_than_a_second_or_a_tenth_of_the_outage() -> None:
    found = waits(200, 1.0)

    for wait, waited_before in zip(found[1:], accumulate(found), strict=False):
        assert wait <= max(1.0, waited_before / 10) + 1e-9
    assert max(found) == found[-1] == LONGEST_S


def test_a_new_outage_begins_quickly_again() -> None:
    backoff = Backoff(lambda: 1.0)
    for _ in range(100):
        backoff.next_s()
    backoff.reset()

    assert backoff.next_s() == 0.1
