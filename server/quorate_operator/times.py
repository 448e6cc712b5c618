"""Moments and spans of time, for people."""

from __future__ import annotations

from datetime import UTC, datetime

_UNITS = ((86_400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


def span(seconds: float) -> str:
    """``3 days``: the largest unit that fits, rounded down."""
    for size, unit in _UNITS:
        count = int(seconds // size)
        if count >= 1:
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return "0 seconds"


def ago(unix_s: float, now: float) -> str:
    """How long ago a moment was; ``never`` for 0."""
    return f"{span(max(now - unix_s, 0))} ago" if unix_s else "never"


def until(unix_s: float, now: float) -> str:
    """A moment of expiry: its day and how long it is until then; empty for 0."""
    if not unix_s:
        return ""
    distance = f"in {span(unix_s - now)}" if unix_s > now else f"expired {span(now - unix_s)} ago"
    return f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%d} ({distance})"


def clock_time(unix_s: float) -> str:
    """``14:03:09Z``, for the lines of a log."""
    return f"{datetime.fromtimestamp(unix_s, UTC):%H:%M:%S}Z"
