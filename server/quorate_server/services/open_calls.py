"""How many calls one identity may have open. Each costs memory and time, also one on which nothing is said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from quorate.errors import TooManyCallsError
from quorate.identity import Subject

MAX_CALLS = 100
"""A site has its stream, and an upload and a download for each run."""


class OpenCalls:
    """The open calls of everybody, counted by identity: whoever has several certificates has no more for that."""

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self._open: Counter[Subject] = Counter()

    @contextmanager
    def one_more(self, caller: Subject) -> Iterator[None]:
        """Raises TooManyCallsError: this identity has as many as it may have."""
        if self._open[caller] >= self._maximum:
            raise TooManyCallsError(
                f"The {caller.role} {caller.name} has too many calls open",
                expected=f"at most {self._maximum} at a time",
                action="The daemon tries again by itself; if nothing of yours opens so many, the key was copied",
            )
        self._open[caller] += 1
        try:
            yield
        finally:
            self._open[caller] -= 1
            if not self._open[caller]:
                del self._open[caller]
