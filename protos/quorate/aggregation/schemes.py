"""How a study's updates become integers: the parameters that all of its sites share. Imports numpy."""

from __future__ import annotations

from quorate.aggregation.packing import Packing
from quorate.aggregation.plain import PlainScheme
from quorate.errors import PrivacyRefusedError
from quorate.privacy.update_noise import UpdateNoise, update_noise
from quorate.study.study import Study

MIN_STEPS = 4
"""Least standard deviation of a site's noise, in steps of its integers. A sum of discrete Gaussians is accounted as
one: from here on that is wrong by less than 1e-50 of epsilon for any roster and model, below 1 by anything (Kairouz,
Liu, Steinke 2021, https://arxiv.org/abs/2102.06387, theorem 1)."""


def packing_of(study: Study) -> Packing:
    """Under secure aggregation.

    Raises:
        PrivacyRefusedError: the study's noise is too small for its integers.
    """
    noise = update_noise(study)
    packing = Packing(min(study.protection.value_bound, noise.clip), len(study.sites), noise_std=noise.total)
    _require_fine(noise, packing.step)
    return packing


def plain_scheme_of(study: Study) -> PlainScheme:
    """Without protection. Raises as ``packing_of`` does."""
    noise = update_noise(study)
    scheme = PlainScheme(min(study.protection.value_bound, noise.clip), len(study.sites), noise.total)
    _require_fine(noise, scheme.step)
    return scheme


def _require_fine(noise: UpdateNoise, step: float) -> None:
    smallest = min((std for std in (noise.share, noise.average) if std), default=None)
    if smallest is not None and smallest < MIN_STEPS * step:
        raise PrivacyRefusedError(
            "The study's noise on parameters is too small to be drawn exactly",
            expected=f"a standard deviation of at least {MIN_STEPS * step:.3g} in the sum",
            got=f"{smallest:.3g}",
            action="Have the operator raise its noise_multiplier",
        )
