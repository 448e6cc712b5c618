"""Noise after averaging where the server does it: in a study without secure aggregation, before the sum goes out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from quorate.aggregation import plain
from quorate.aggregation.schemes import plain_scheme_of
from quorate.privacy.update_noise import update_noise
from quorate.process.randomness import SystemRandomness
from quorate.study.study import Study


def noised(blocks: Iterable[bytes], study: Study) -> Iterator[bytes]:
    """The words of a sum, with the study's noise on each; as they are where it asks for none.

    Args:
        blocks: Little-endian words of ``aggregation/plain.py``, a whole number of them in each block.
    """
    sigma = update_noise(study).average
    if not sigma:
        yield from blocks
        return
    from quorate.privacy.noise import discrete_gaussian

    scheme, randomness = plain_scheme_of(study), SystemRandomness()
    for block in blocks:
        words = np.frombuffer(block, "<u4").copy()
        plain.add(words, scheme.combine(discrete_gaussian(randomness, sigma / scheme.step, len(words))))
        yield words.tobytes()
