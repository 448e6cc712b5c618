"""How a site opens the sums of a run under secure aggregation, piece by piece, for ``Head`` to apply."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from quorate.errors import BaseModelMismatchError, QuorateError, SumRefusedError
from quorate.exchange import SumRef
from quorate.identity import SiteName
from quorate.privacy.noise import SeededRandomness, discrete_gaussian
from quorate.secagg import words
from quorate.secagg.opening import Opener
from quorate.secagg.packing import Packing
from quorate.secagg.study_key import StudyKey
from quorate_client.head import Fetch
from quorate_client.model_state import ModelState, OpenedSum

MakeOpener = Callable[[int, int], Awaitable[Opener]]
"""Checks everything about a round's sum but its ciphertext, of so many polynomials."""
Learn = Callable[[int, tuple[SiteName, ...], tuple[int, ...]], None]
"""Takes what a round's sum says beside the model: the survivors and their summed counts."""


@dataclass(frozen=True, slots=True)
class SecureSums:
    """The sums of one run.

    Args:
        noise_steps: Standard deviation of the noise after averaging, in steps of the sum; 0 without.
    """

    packing: Packing
    noise_steps: float
    study_key: StudyKey
    opener: MakeOpener
    learn: Learn

    def size_bytes(self, dimension: int) -> int:
        return self.packing.polynomials(dimension) * words.POLYNOMIAL_BYTES

    async def open(self, state: ModelState, ref: SumRef, content: BinaryIO, fetch: Fetch) -> OpenedSum:
        opener = await self.opener(ref.round_number, self.packing.polynomials(state.dimension))
        if opener.model != self.study_key.model(state.digest):
            raise BaseModelMismatchError("The sites trained on another model than the one that is here")
        return _SecureSum(self, ref.round_number, opener, content)


class _SecureSum:
    """One sum as it is read. The weight by which it is divided is checked with all the rest, at the end."""

    def __init__(self, sums: SecureSums, round_number: int, opener: Opener, content: BinaryIO) -> None:
        self._sums, self._round_number = sums, round_number
        self._opener, self._content = opener, content
        self._weight = opener.claimed_counts()[0]
        # The same at every site that opens this sum, and at nobody else: who sees the model cannot subtract it.
        self._randomness = SeededRandomness(sums.study_key.derive(b"average-noise", opener.identity))

    def average(self, count: int) -> npt.NDArray[np.float64]:
        packing = self._sums.packing
        size = packing.polynomials(count) * words.POLYNOMIAL_BYTES
        try:
            opened = self._opener.piece(words.unpack(self._content.read(size)), packing)
            sums = packing.decode(opened, count)
            if self._sums.noise_steps:
                sums = sums + discrete_gaussian(self._randomness, self._sums.noise_steps, count)
            return packing.average(sums, self._weight)
        except SumRefusedError:
            raise
        except QuorateError as error:
            raise SumRefusedError("A secure sum does not open, so the model stays as it was") from error

    def finish(self) -> None:
        self._sums.learn(self._round_number, self._opener.survivors, self._opener.counts())
