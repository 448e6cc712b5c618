"""How a study's updates become integers: the parameters that all of its sites share. Imports numpy."""

from __future__ import annotations

from quorate.privacy.update_noise import update_noise
from quorate.secagg.packing import Packing
from quorate.secagg.plain import PlainScheme
from quorate.study import Study


def packing_of(study: Study) -> Packing:
    """Under secure aggregation."""
    noise = update_noise(study)
    return Packing(min(study.protection.value_bound, noise.clip), len(study.sites), noise_std=noise.total)


def plain_scheme_of(study: Study) -> PlainScheme:
    """Without protection."""
    noise = update_noise(study)
    return PlainScheme(min(study.protection.value_bound, noise.clip), len(study.sites), noise.total)
