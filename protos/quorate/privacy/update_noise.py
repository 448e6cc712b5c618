"""How large the noise on a study's parameters is: before sending, and after averaging.

Sites count the same here, so a site's influence on the weighted sum is ``clip / n``. Noise before sending must reach
its size whoever is missing: a site votes for no fewer than ``floor`` survivors, of whom k may collude and know their
own noise (at least one: whoever looks), so each site adds sigma / sqrt(floor - k) (Kairouz, Liu, Steinke 2021,
https://arxiv.org/abs/2102.06387, with the survivors that are sure in the place of all). Without secure aggregation each
update is seen alone and each site adds it all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quorate.study.rules import Rules

if TYPE_CHECKING:
    from quorate.study.study import Study


@dataclass(frozen=True, slots=True)
class UpdateNoise:
    """Standard deviations, in the unit of the weighted sum of updates.

    Args:
        clip: A site's update is clipped to this L2 norm; infinite where it is not.
        share: Of what each site adds to its own weighted update.
        average: Of what is added to the opened sum.
        total: The most that the sum can carry, both together and all sites there.
    """

    clip: float = math.inf
    share: float = 0.0
    average: float = 0.0
    total: float = 0.0


def update_noise(study: Study) -> UpdateNoise:
    """The noise on a study's parameters; nothing where it asks for none."""
    privacy = study.privacy
    if privacy is None or privacy.update_clip is None:
        return UpdateNoise()
    sites = len(study.sites)
    influence = privacy.update_clip / sites
    share = noise_share(study) * privacy.update.noise_multiplier * influence if privacy.update is not None else 0.0
    average = privacy.average.noise_multiplier * influence if privacy.average is not None else 0.0
    return UpdateNoise(privacy.update_clip, share, average, math.hypot(share * math.sqrt(sites), average))


def noise_share(study: Study) -> float:
    """What part of the noise that a sum needs each site adds to what it sends."""
    if study.protection.mode == "none":
        return 1.0
    rules = Rules(len(study.sites), study.protection.colluders)
    return 1 / math.sqrt(rules.floor - max(1, rules.colluders))
