"""Normal noise from secret bytes, for the gradients of differentially private training.

Not torch's generator: on a processor it has 2^32 streams, so that all of a training's noise can be found by trying them
and taken off again. Imports torch: only task workers import this module.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from quorate.process.randomness import Randomness

_SUMMED = 4
"""Samples in each value, Opacus' choice: 2n of n = 2, in Holohan and Braghin (2021), section 5.1. A floating-point
number reveals which pairs of uniform numbers can have led to it; with four samples too many can."""


def standard_normal(randomness: Randomness, count: int) -> Tensor:
    """Independent values of mean 0 and variance 1, [count] in double precision on the processor (Box and Muller 1958).

    The uniform numbers have 53 bits, so that a sample is below 8.6 standard deviations; beyond lie 10^-17 of all.
    """
    pairs = count * _SUMMED // 2
    words = np.frombuffer(randomness.draw(16 * pairs), dtype="<u8") >> np.uint64(11)
    uniform = torch.from_numpy(words.astype(np.float64)).mul_(2.0**-53).view(2, pairs)
    radius = uniform[0].neg_().log1p_().mul_(-2).sqrt_()  # 1 - u is never 0, where a logarithm has no value
    angle = uniform[1].mul_(2 * math.pi)
    first = (radius * angle.cos()).view(2, count)
    # The two samples of a pair are shifted against each other, so as not to end in one sum.
    second = (radius * angle.sin()).roll(1).view(2, count)
    return (first + second).sum(dim=0).mul_(_SUMMED**-0.5)
