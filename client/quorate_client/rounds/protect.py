"""The last code before an update leaves the site: check it, turn it into words, put them into the spool.

It runs in the daemon, not in the task's process, and does not trust what that process wrote: the file must be a plain
file (a link could name one that the task itself may not read), of exactly the study's size, with finite values only.
Another process may rewrite it at any time. So nothing that was found in one reading counts in the next: every bound is
held against the integers that leave, as they leave.

The update is read, encoded and written in blocks: memory does not grow with the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from quorate.errors import TaskFailedError
from quorate.privacy.update_noise import UpdateNoise, update_noise
from quorate.rounds.blobs import Blob
from quorate.rounds.spool import Spool
from quorate.study.study import Study
from quorate_client.rounds.model.plain_files import open_plain, read_blocks, require_size, store_pieces

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from quorate.aggregation.packing import Packing
    from quorate.aggregation.plain import PlainScheme
    from quorate.secagg.participant import Participant

FLOAT_BYTES = 4
_ROUNDING = 1e-9
"""More than adding up a block's squares in double precision, and then those of all blocks, may be wrong by: at most
2^-52 for each value of a block and for each block (Higham 2002, section 3.1)."""


@dataclass(frozen=True, slots=True)
class Protected:
    """An update that may leave: its words (inline if they are few, else in the spool) and what is told of it."""

    blob: Blob
    weight: int
    clipped: int


def protect(update: Path, dimension: int, weight: int, study: Study, spool: Spool) -> Protected:
    """Turn an update into words that the server reads, where the study protects nothing.

    Args:
        update: float32[dimension], little-endian, as the task wrote it.
        weight: The site's share in the average, see ``aggregation/plain.py``.

    Raises:
        TaskFailedError: not an update of this study, or it changed meanwhile. UpdateNotFiniteError: it holds NaN or
            infinity. ContributionError: an impossible weight. Nothing is left in the spool then.
    """
    from quorate.aggregation.schemes import plain_scheme_of  # imports numpy

    scheme = plain_scheme_of(study)
    integers = _Integers(scheme, weight, update_noise(study))

    def words(file: BinaryIO) -> Iterator[bytes]:
        for piece in integers.of(file, dimension):
            yield scheme.combine(piece).astype("<u4").tobytes()

    size = dimension * FLOAT_BYTES
    with open_plain(update) as file:
        require_size(file, size)
        return Protected(store_pieces(words(file), size, spool), weight, integers.clipped)


def protect_secretly(
    update: Path, dimension: int, weight: int, study: Study, participant: Participant, spool: Spool
) -> Protected:
    """Turn an update into ciphertext that only the sum of enough sites opens.

    Args:
        update: float32[dimension], little-endian, as the task wrote it.
        weight: The site's share in the average, see ``aggregation/plain.py``.
        participant: This site's part in the sum; it is where all hellos are checked and the key is drawn.

    Raises:
        TaskFailedError: not an update of this study, or it changed meanwhile. UpdateNotFiniteError: it holds NaN or
            infinity. Nothing is left in the spool then.
    """
    from quorate.aggregation import words
    from quorate.aggregation.schemes import packing_of  # imports numpy

    packing = packing_of(study)
    integers = _Integers(packing, weight, update_noise(study))
    first = 0

    def ciphertext(file: BinaryIO) -> Iterator[bytes]:
        nonlocal first
        for piece in integers.of(file, dimension):
            lanes = packing.join(piece)
            yield words.pack(participant.encrypt(first, lanes, packing.delta_bits))
            first += len(lanes)

    with open_plain(update) as file:
        require_size(file, dimension * FLOAT_BYTES)
        size = packing.polynomials(dimension) * words.POLYNOMIAL_BYTES
        return Protected(store_pieces(ciphertext(file), size, spool), weight, integers.clipped)


class _Integers:
    """An update as weighted integers, with this site's noise on them where the study asks for it.

    The noise is added to integers, so that what leaves holds none of the low bits by which floating-point noise is told
    from what it hides (Mironov 2012). Rounding toward zero keeps the clipped update within its norm.
    """

    def __init__(self, scheme: Packing | PlainScheme, weight: int, noise: UpdateNoise) -> None:
        self._scheme, self._weight, self._noise = scheme, weight, noise
        self.clipped = 0

    def of(self, file: BinaryIO, dimension: int) -> Iterator[npt.NDArray[np.int64]]:
        """The pieces, in order. ``file`` is read twice where the norm of the whole counts.

        Raises:
            TaskFailedError: what was read the second time is longer than the norm that is allowed. The pieces that came
                out before may not leave.
        """
        import numpy as np  # the idle daemon does without it

        from quorate.aggregation.plain import WEIGHT_ONE

        size, bounded = dimension * FLOAT_BYTES, math.isfinite(self._noise.clip)
        clip = self._noise.clip * (1 - _ROUNDING)
        scale = _scale_to(clip * (1 - _ROUNDING), file, size) if bounded else 1.0
        longest = clip * self._weight / WEIGHT_ONE / self._scheme.step
        squares = 0.0
        share = self._share() if self._noise.share else None
        file.seek(0)
        for block in read_blocks(file, size):
            values = np.frombuffer(block, "<f4")
            if bounded:
                with np.errstate(invalid="ignore"):  # nothing times infinity
                    values = values.astype(np.float64) * scale
            integers, outside = self._scheme.quantise(values, self._weight, toward_zero=bounded)
            if bounded:
                squares += _squares(integers)
                if math.sqrt(squares) > longest:
                    raise TaskFailedError(
                        "The task's update changed while it was read, so nothing was sent",
                        expected="a file that nobody writes to once the task has answered",
                    )
            self.clipped += outside
            if share is not None:
                integers += share(len(integers))
            yield integers

    def _share(self) -> Callable[[int], npt.NDArray[np.int64]]:
        from quorate.privacy.noise import discrete_gaussian
        from quorate.process.randomness import SystemRandomness

        return partial(discrete_gaussian, SystemRandomness(), self._noise.share / self._scheme.step)


def _scale_to(norm: float, file: BinaryIO, size: int) -> float:
    """What brings an update's L2 norm to ``norm`` or below; of one that is not finite nothing is left."""
    import numpy as np

    found = math.sqrt(sum(_squares(np.frombuffer(block, "<f4")) for block in read_blocks(file, size)))
    if not math.isfinite(found):
        return 0.0
    return norm / found if norm < found else 1.0


def _squares(values: npt.NDArray[np.float32] | npt.NDArray[np.int64]) -> float:
    """The sum of the squares, in double precision."""
    exact = values.astype("<f8")
    return float(exact @ exact)
