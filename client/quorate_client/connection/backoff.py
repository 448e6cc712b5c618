"""How long to wait before the next attempt: short while an outage is young, never more than a tenth of its length.

A server that restarts is found again within a second or two, while a consortium that lost its server for a night does
not hammer it in the morning. The jitter spreads the sites.
"""

from __future__ import annotations

from collections.abc import Callable

FIRST_S = 0.1
SHORT_S = 1.0
LONGEST_S = 15.0


class Backoff:
    """The waits of one outage.

    Args:
        random: Uniform in [0, 1).
    """

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self.reset()

    def reset(self) -> None:
        """The outage is over."""
        self._next_s = FIRST_S
        self._waited_s = 0.0

    def next_s(self) -> float:
        """Seconds to wait now: half of it certain, half of it jitter."""
        longest_s = min(LONGEST_S, max(SHORT_S, self._waited_s / 10))
        delay_s = min(self._next_s, longest_s) * (0.5 + self._random() / 2)
        self._next_s = min(2 * self._next_s, LONGEST_S)
        self._waited_s += delay_s
        return delay_s
