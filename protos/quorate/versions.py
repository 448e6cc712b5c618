"""Which versions of a site work with a server: those of its own series, and of the one before.

So the server is upgraded first and the sites follow, one after the other, until the next series. What is further away
is refused at the connection, with one line that says who has to be upgraded: nobody tries whether it works.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum
from typing import Final

from quorate.errors import VersionRefusedError

SERIES: Final = ("0.1",)
"""All that were released, oldest first, and the one that this is of. A release that begins a series appends it."""

_VERSION = re.compile(r"(\d{1,4})\.(\d{1,4})(?:[.a-z+-][0-9a-z.+-]*)?")


class Age(StrEnum):
    """How a site's version stands to this one. ``unknown`` has not connected yet, or is refused."""

    CURRENT = "current"
    PREVIOUS = "previous"
    UNKNOWN = "unknown"


def series_of(version: str) -> str | None:
    """``0.1`` of ``0.1.3``; None of what is no version."""
    found = _VERSION.fullmatch(version)
    return f"{int(found[1])}.{int(found[2])}" if found else None


def age_of(version: str, series: Sequence[str] = SERIES) -> Age:
    """How a version stands to the last of ``series``."""
    match series_of(version):
        case None:
            return Age.UNKNOWN
        case own if own == series[-1]:
            return Age.CURRENT
        case earlier if earlier in series[-2:]:
            return Age.PREVIOUS
        case _:
            return Age.UNKNOWN


def require_fits(version: str, series: Sequence[str] = SERIES) -> None:
    """Refuse a site that is too far away.

    Raises:
        VersionRefusedError: it is older than the series before, newer than this one, or no version.
    """
    if age_of(version, series) is not Age.UNKNOWN:
        return
    found = series_of(version)
    if found is not None and _number(found) > _number(series[-1]):
        action = "Have the server upgraded first; sites follow it. The site tries again by itself"
    else:
        action = f"Install a version of {series[-1]} at the site"
    raise VersionRefusedError(
        "The versions of the site and of the server are too far apart",
        expected=f"a site of {' or '.join(reversed(series[-2:]))}",
        got=version or "none",
        action=action,
    )


def _number(series: str) -> tuple[int, ...]:
    return tuple(int(part) for part in series.split("."))
