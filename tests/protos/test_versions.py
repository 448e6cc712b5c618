"""Which versions of a site are let in."""

from __future__ import annotations

import pytest

from quorate import __version__
from quorate.errors import VersionRefusedError
from quorate.versions import SERIES, Age, age_of, require_fits, series_of

RELEASED = ("0.9", "0.10", "1.0", "1.1")


def test_this_version_is_of_the_last_series_that_was_released() -> None:
    assert series_of(__version__) == SERIES[-1]


@pytest.mark.parametrize(
    ("version", "age"),
    [
        ("1.1.0", Age.CURRENT),
        ("1.1", Age.CURRENT),
        ("1.1.0rc1", Age.CURRENT),
        ("1.1.0.dev3+g12ab", Age.CURRENT),
        ("1.0.7", Age.PREVIOUS),
        ("0.10.0", Age.UNKNOWN),
        ("1.2.0", Age.UNKNOWN),
        ("1.10.0", Age.UNKNOWN),
        ("", Age.UNKNOWN),
        ("1", Age.UNKNOWN),
        ("one.two", Age.UNKNOWN),
        ("patient Müller", Age.UNKNOWN),
        ("9" * 5000 + ".0.0", Age.UNKNOWN),
    ],
)
def test_a_version_is_of_the_series_the_one_before_or_neither(version: str, age: Age) -> None:
    assert age_of(version, RELEASED) is age


@pytest.mark.parametrize("version", ["1.1.5", "1.0.0"])
def test_a_site_of_this_series_or_the_one_before_works(version: str) -> None:
    require_fits(version, RELEASED)


@pytest.mark.parametrize(
    ("version", "who"),
    [("1.2.0", "server upgraded first"), ("2.0.0", "server upgraded first"), ("0.10.3", "Install a version of 1.1")],
)
def test_a_site_too_far_away_is_told_who_has_to_be_upgraded(version: str, who: str) -> None:
    with pytest.raises(VersionRefusedError, match=who) as refused:
        require_fits(version, RELEASED)
    assert refused.value.expected == "a site of 1.1 or 1.0"
    assert refused.value.got == version


def test_what_is_no_version_is_refused() -> None:
    with pytest.raises(VersionRefusedError, match="got none"):
        require_fits("")
