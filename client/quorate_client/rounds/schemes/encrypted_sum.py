"""An encrypted sum as it is opened: piece by piece, and believed once all of it was read."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from quorate.aggregation import words
from quorate.aggregation.packing import Packing
from quorate.aggregation.weights import require_weight
from quorate.errors import QuorateError, SumRefusedError
from quorate.identity import SiteName
from quorate.privacy.noise import SeededRandomness, discrete_gaussian
from quorate.secagg.opening import Opener
from quorate.secagg.participant import Member
from quorate_client.rounds.sums.scheme import Average


class EncryptedSum:
    """One sum as it is read. The weight by which it is divided is checked with all the rest, at the end.

    Args:
        noise_steps: Standard deviation of the noise on the average, in steps of its integers; 0 without.
    """

    def __init__(self, opener: Opener, packing: Packing, noise_steps: float, member: Member) -> None:
        self._opener, self._packing, self._noise_steps, self._member = opener, packing, noise_steps, member

    @property
    def model(self) -> bytes:
        return self._opener.model

    @property
    def survivors(self) -> tuple[SiteName, ...]:
        return self._opener.survivors

    def averages(self, content: BinaryIO) -> Average:
        opener, member, packing = self._opener, self._member, self._packing
        weight = opener.claimed_counts()[0]
        require_weight(weight, len(opener.survivors), member.rules)
        # The same at every site that opens this sum, and at nobody else: who sees the model cannot subtract it.
        randomness = SeededRandomness(member.study_key.derive(b"average-noise", opener.identity))

        def average(count: int) -> npt.NDArray[np.float64]:
            size = packing.polynomials(count) * words.POLYNOMIAL_BYTES
            try:
                opened = opener.piece(words.unpack(content.read(size)), packing)
                sums = packing.decode(opened, count)
                packing.require_bounded(sums, weight)
                if self._noise_steps:
                    sums = sums + discrete_gaussian(randomness, self._noise_steps, count)
                return packing.average(sums, weight)
            except SumRefusedError:
                raise
            except QuorateError as error:
                raise SumRefusedError("A secure sum does not open, so the model stays as it was") from error

        return average

    def counts(self) -> tuple[int, ...]:
        return self._opener.counts()
