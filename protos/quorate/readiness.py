"""Whether a site would work for a study, and what the study would cost it: what the site says before a run is started.

It is what a site said at a moment and binds nobody: the site decides anew at each instruction.
"""

from __future__ import annotations

from dataclasses import dataclass

from quorate.errors import FrameError, is_code

MOST_EPSILON = 1e6
"""Whoever says more says nothing; accountants call it infinite long before."""


@dataclass(frozen=True, slots=True)
class StudyCost:
    """What a study would cost a data set per record, at the study's delta.

    Args:
        epsilon: Of the study alone, all its rounds.
        epsilon_after: Of all that the data set has spent, with the study.
        left: What the site's policy leaves for ever then; None without a limit.

    Raises:
        FrameError: a figure is not a number, or out of range.
    """

    epsilon: float
    epsilon_after: float
    left: float | None = None

    def __post_init__(self) -> None:
        # A NaN is in no range.
        if not all(0 <= each <= MOST_EPSILON for each in (self.epsilon, self.epsilon_after, self.left or 0.0)):
            raise FrameError("What a site says of a study's cost is malformed")


@dataclass(frozen=True, slots=True)
class Readiness:
    """Args:
        code: Empty where the site would work for the study; else the code of the first thing against it.

    Raises:
        FrameError: the code is malformed.
    """

    code: str = ""
    cost: StudyCost | None = None

    def __post_init__(self) -> None:
        # A code is stored and shown on terminals, and may come from a hostile site.
        if self.code and not is_code(self.code):
            raise FrameError("The code of a site's report is malformed")

    @property
    def is_ready(self) -> bool:
        return not self.code
