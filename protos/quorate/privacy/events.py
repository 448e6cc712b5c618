"""What was released, as events that an accountant can compose: not numbers, so that a better accountant may come later.

Every mechanism here is a Gaussian one, with or without Poisson sampling: DP-SGD's steps, noise before sending, noise
after averaging. Neighbouring data sets differ by one unit that is added or removed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from quorate.errors import ConfigError, FrameError


@dataclass(frozen=True, slots=True)
class Event:
    """``count`` releases of a Gaussian mechanism.

    Args:
        noise_multiplier: The noise's standard deviation over the sensitivity of what it hides.
        sampling_rate: The chance of a unit to be in a release (Poisson sampling); 1 without sampling.
        count: How many releases.
    """

    noise_multiplier: float
    sampling_rate: float = 1.0
    count: int = 1

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0):
            raise ConfigError("A release without noise has no epsilon", expected="a noise multiplier above 0")
        if not 0 < self.sampling_rate <= 1 or self.count < 0:
            raise ConfigError("A release is malformed", expected="a sampling rate in (0, 1] and a count from 0")


@dataclass(frozen=True, slots=True)
class Spending:
    """What a site tells of one data set, as far as its policy allows.

    Args:
        epsilon: Spent per record (or unit, where the data set names units) over all studies, at ``delta``.
        left: What the site's policy leaves for ever; None without a limit.
    """

    epsilon: float
    delta: float
    left: float | None = None

    def __post_init__(self) -> None:
        if not (0 <= self.epsilon < math.inf and 0 < self.delta < 1 and 0 <= (self.left or 0) < math.inf):
            raise FrameError("What a site says of its privacy budget is malformed")
