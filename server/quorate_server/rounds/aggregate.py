"""The streaming adders: one accumulator, whatever the number of sites; and the noise on a sum without protection.

An update is folded block by block from wherever it lies; only the accumulator (one word a parameter) is held. Where a
study has noise after averaging and no secure aggregation, the server draws it, before the sum goes out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, Protocol

import numpy as np

from quorate.aggregation import plain, ring, words
from quorate.aggregation.schemes import plain_scheme_of
from quorate.errors import ContributionError, FrameError
from quorate.privacy.update_noise import update_noise
from quorate.process.randomness import Randomness, SystemRandomness
from quorate.study.study import Study

BLOCK_BYTES = 1024 * 1024
BLOCK_POLYNOMIALS = 32
MAX_UNREDUCED = 4095
_UQ = np.uint64(ring.MODULUS)


Update = Callable[[], BinaryIO]
"""Opens an update, from its first byte on."""


class Adder(Protocol):
    """Adds the updates of one sum."""

    def fold(self, update: Update) -> None:
        """Add an update, in blocks. Raises FrameError, ContributionError: nothing was added."""
        ...

    def blocks(self) -> Iterator[bytes]:
        """The sum, as it travels."""
        ...


class PlainAdder:
    """Adds words (``aggregation/plain.py``), and noise to their sum where the study asks for it.

    Args:
        dimension: Parameters of the model.
    """

    def __init__(self, dimension: int, study: Study) -> None:
        self._study = study
        self._words: plain.Words = np.zeros(dimension, dtype=np.uint32)

    def fold(self, update: Update) -> None:
        """Add an update.

        Raises:
            ContributionError: its file has another length than was said. Nothing was added.
        """
        with update() as file:
            require_length(file, self._words.nbytes)
            _add_blocks(self._words, file)

    def blocks(self) -> Iterator[bytes]:
        """The sum's words, little-endian, in blocks."""
        yield from noised(self._words_in_blocks(), self._study, SystemRandomness())

    def _words_in_blocks(self) -> Iterator[bytes]:
        view = self._words.view(np.uint8).data
        for start in range(0, len(view), BLOCK_BYTES):
            yield bytes(view[start : start + BLOCK_BYTES])


class CipherAdder:
    """Adds ciphertexts modulo q, without knowing what they mean: four bytes of memory for each parameter.

    Words are below 2^52, so ``MAX_UNREDUCED`` of them add up to less than 2^64: they are reduced when the sum is
    taken, and on the way only where more sites than that add.

    Args:
        polynomials: Of each update.
    """

    def __init__(self, polynomials: int) -> None:
        self._total = np.zeros((polynomials, ring.DEGREE), np.uint64)
        self._added = 0  # words below 2^52 in each word of the total

    def fold(self, update: Update) -> None:
        """Add a ciphertext.

        Raises:
            FrameError: a word is not below q, or it is too short. What was read before it is taken out again.
        """
        with update() as file:
            self._fold(file)

    def _fold(self, update: BinaryIO) -> None:
        if self._added == MAX_UNREDUCED:
            np.remainder(self._total, _UQ, out=self._total)
            self._added = 1
        for start, block in self._pieces(len(self._total)):
            try:
                np.add(block, _unpacked(update, len(block)), out=block)
            except FrameError:
                update.seek(0)
                for _, before in self._pieces(start):
                    np.subtract(before, _unpacked(update, len(before)), out=before)
                raise
        self._added += 1

    def blocks(self) -> Iterator[bytes]:
        """The sum, as it travels."""
        for _, block in self._pieces(len(self._total)):
            yield words.pack(block % _UQ)

    def _pieces(self, end: int) -> Iterator[tuple[int, ring.Polynomials]]:
        """Views of the total up to a polynomial, with where they begin."""
        for start in range(0, end, BLOCK_POLYNOMIALS):
            yield start, self._total[start : start + BLOCK_POLYNOMIALS]


def require_length(file: BinaryIO, wanted: int) -> None:
    """And leave the file at its first byte. Raises ContributionError."""
    length = file.seek(0, os.SEEK_END)
    if length != wanted:
        raise ContributionError("An update was cut off", expected=f"{wanted} bytes", got=f"{length}")
    file.seek(0)


def noised(blocks: Iterable[bytes], study: Study, randomness: Randomness) -> Iterator[bytes]:
    """The words of a sum, with the study's noise on each; as they are where it asks for none.

    Args:
        blocks: Little-endian words of ``aggregation/plain.py``, a whole number of them in each block.
    """
    sigma = update_noise(study).average
    if not sigma:
        yield from blocks
        return
    from quorate.privacy.noise import discrete_gaussian

    scheme = plain_scheme_of(study)
    for block in blocks:
        noisy = np.frombuffer(block, "<u4").copy()
        plain.add(noisy, scheme.combine(discrete_gaussian(randomness, sigma / scheme.step, len(noisy))))
        yield noisy.tobytes()


def _unpacked(update: BinaryIO, count: int) -> ring.Polynomials:
    piece = words.unpack(update.read(count * words.POLYNOMIAL_BYTES))
    if len(piece) != count:  # numpy would add one polynomial to all of them
        raise FrameError("A ciphertext was cut off", expected=f"{count} polynomials", got=f"{len(piece)}")
    return piece


def _add_blocks(total: plain.Words, update: BinaryIO) -> None:
    start = 0
    buffer = bytearray(min(BLOCK_BYTES, total.nbytes))
    while start < len(total):
        wanted = min(BLOCK_BYTES, (len(total) - start) * plain.WORD_BYTES)
        count = update.readinto(memoryview(buffer)[:wanted])  # type: ignore[attr-defined]  # BinaryIO leaves it out
        if count != wanted:  # no refusal: part of it is already in the sum
            raise EOFError("an update became shorter while it was read")
        block = np.frombuffer(buffer, dtype="<u4", count=count // plain.WORD_BYTES)
        plain.add(total[start : start + len(block)], block)
        start += len(block)
