from __future__ import annotations

import pytest

from quorate_operator.times import ago, clock_time, span, until

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 seconds"),
        (1, "1 second"),
        (59.9, "59 seconds"),
        (60, "1 minute"),
        (7199, "1 hour"),
        (172_800, "2 days"),
    ],
)
def test_a_span_is_told_in_its_largest_unit(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_moments_are_told_from_now() -> None:
    assert ago(NOW - 90, NOW) == "1 minute ago"
    assert ago(0, NOW) == "never"
    assert ago(NOW + 5, NOW) == "0 seconds ago"
    assert until(NOW + 86_400 * 3, NOW) == "2027-01-18 (in 3 days)"
    assert until(NOW - 3600, NOW) == "2027-01-15 (expired 1 hour ago)"
    assert until(0, NOW) == ""
    assert clock_time(NOW) == "08:00:00Z"
