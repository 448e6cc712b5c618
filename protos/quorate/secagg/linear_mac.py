"""Two linear tags that show whether the server changed a sum.

A site computes, under a key that only sites have, sigma_a = sum_j r_aj * value_j mod q for a = 0 and 1, over all
coefficients of its update and its extra words, and sends both tags one-time padded (``pad``) beside the update. The
tags are linear: the tags of a sum are the sums of the tags. So the sites compute the tags of the sum that they opened
and compare. The residue check of the encryption cannot do this: whatever is a multiple of Delta passes it.

**Forging.** r_aj is uniform over [0, 2^52), the low 52 bits of a word of an AES-256-CTR keystream. Say a server without
the key changes coefficients and extras by delta, not all zero, and the padded tags by c_0 and c_1. It is accepted only
if sum_j r_aj * delta_j = c_a mod q for both a. Values are refused beyond q/2, so some delta_j is not 0 mod q; whatever
the other r are, r_aj must have one certain residue, and as 2^52 < 2q at most two of its 2^52 values have it. Hence at
most 2^-51 a tag and **2^-102 for both**, plus the advantage against AES. (r uniform below q would give 2^-104 and cost
a rejection that no test ever meets.) A site knows r: whoever colludes with one forges at will (design, Extra words).

This module leaves to others: padding the tags (``pad``) and what is done about a sum that was changed.

**Exact and fast.** Products have up to 103 bits. For rows of 64 products the sum S is computed twice: modulo 2^64 with
wrapping integers, and in floating point. r and the values are exact in binary64, so that by the standard bound for dot
products in any order (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1) the latter is off by at most
about 64 * 2^-53 * 64 * 2^52 * 2^51 = 2^62. That is less than 2^63, so both together determine S, an integer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from quorate.aggregation import ring
from quorate.errors import ContributionError

Coefficients = npt.NDArray[np.int64]
Tags = tuple[int, int]

KEY_INFO = b"quorate/secagg/tag/v1"
TAGS = 2
MAX_VALUE = (ring.MODULUS - 1) // 2
MAX_POLYNOMIALS = 1 << 32

_R_MASK = (1 << 52) - 1
_WORD_BYTES = 8
_WORDS_PER_AES_BLOCK = 2
_ROW = 64
_BLOCK = 16 * ring.DEGREE  # 256 KiB an array: a block and its scratch stay in the second-level cache
_ZEROS = bytes(_BLOCK * _WORD_BYTES)


@dataclass(frozen=True, slots=True)
class TagKey:
    """The key of one round's tags. Only sites can derive it.

    Args:
        aes_key: 32 bytes, for AES-256-CTR.
    """

    aes_key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.aes_key) != 32:
            raise ContributionError("The key of a round's tags has the wrong length", expected="32 bytes")

    @classmethod
    def derive(cls, study_key: bytes, round_id: bytes) -> TagKey:
        """HKDF-SHA256 (RFC 5869) of the study key with the round's id as salt.

        Raises:
            ContributionError: one of them has not 32 bytes.
        """
        if len(study_key) != 32 or len(round_id) != 32:
            raise ContributionError("The study key or the round's id has the wrong length", expected="32 bytes each")
        return cls(HKDF(algorithm=SHA256(), length=32, salt=round_id, info=KEY_INFO).derive(study_key))


class Tagger:
    """Tags of values that come in pieces, in any order. What is given twice at one position is added.

    Not safe for use by several threads at once: pieces share their scratch memory.
    """

    def __init__(self, key: TagKey) -> None:
        self._key = key
        self._tags = [0] * TAGS
        self._stream = bytearray(_BLOCK * _WORD_BYTES)
        self._stream_words = np.frombuffer(self._stream, dtype="<i8")
        self._r = np.empty(_BLOCK, dtype=np.int64)
        self._r_float = np.empty(_BLOCK, dtype=np.float64)
        self._values_float = np.empty(_BLOCK, dtype=np.float64)

    def update(self, first_polynomial: int, coefficients: Coefficients) -> None:
        """Take in polynomials.

        Args:
            first_polynomial: The position in the update of the first of them.
            coefficients: int64[p, DEGREE], the plaintext integers before the multiplication by Delta, lanes joined.

        Raises:
            ContributionError: wrong shape or type, a position beyond MAX_POLYNOMIALS, a value beyond q/2.
        """
        if coefficients.dtype != np.int64 or coefficients.ndim != 2 or coefficients.shape[1] != ring.DEGREE:
            raise ContributionError("Coefficients have the wrong form", expected=f"int64 in rows of {ring.DEGREE}")
        if not 0 <= first_polynomial <= MAX_POLYNOMIALS - len(coefficients):
            raise ContributionError("A polynomial's position is out of range", expected=f"below {MAX_POLYNOMIALS}")
        # min and max, for abs(-2^63) is negative
        if coefficients.size and (coefficients.max() > MAX_VALUE or coefficients.min() < -MAX_VALUE):
            raise ContributionError("A coefficient is out of range", expected="at most q/2 in size")
        self._add(0, first_polynomial * ring.DEGREE, coefficients.reshape(-1))

    def extras(self, values: Sequence[int]) -> None:
        """Take in all the extra words of the round: weights and counts, at their positions from 0.

        Raises:
            ContributionError: a value beyond q/2, or not an integer.
        """
        if not all(isinstance(value, int) and abs(value) <= MAX_VALUE for value in values):
            raise ContributionError("An extra word is out of range", expected="an integer of at most q/2 in size")
        padded = np.zeros(-(-len(values) // _ROW) * _ROW, dtype=np.int64)
        padded[: len(values)] = values
        self._add(1, 0, padded)

    def result(self) -> Tags:
        """Both tags, in the range -q/2 to q/2, which ``pad.mask`` takes as they are."""
        first, second = ((tag + MAX_VALUE) % ring.MODULUS - MAX_VALUE for tag in self._tags)
        return first, second

    def agrees(self, claimed: Tags) -> bool:
        """Whether the tags are these, modulo q: a sum of tags need not be reduced."""
        return all((own - other) % ring.MODULUS == 0 for own, other in zip(self._tags, claimed, strict=True))

    def _add(self, kind: int, position: int, values: Coefficients) -> None:
        """Add r * value, for values from an even position of one kind (0 coefficients, 1 extras) in whole rows."""
        streams = [self._keystream(tag, kind, position) for tag in range(TAGS)]
        for start in range(0, len(values), _BLOCK):
            piece = values[start : start + _BLOCK]
            count = len(piece)
            as_float = self._values_float[:count]
            np.copyto(as_float, piece)
            for tag, stream in enumerate(streams):
                size = count * _WORD_BYTES
                stream.update_into(memoryview(_ZEROS)[:size], memoryview(self._stream)[:size])
                r = np.bitwise_and(self._stream_words[:count], _R_MASK, out=self._r[:count])
                r_float = self._r_float[:count]
                np.copyto(r_float, r)
                self._tags[tag] = (self._tags[tag] + _exact_dot(r, r_float, piece, as_float)) % ring.MODULUS

    def _keystream(self, tag: int, kind: int, position: int) -> CipherContext:
        # The counter's upper half names the stream, its lower half the block in it, so no two streams ever meet.
        stream, block = 2 * kind + tag, position // _WORDS_PER_AES_BLOCK
        counter = stream.to_bytes(8, "big") + block.to_bytes(8, "big")
        return Cipher(algorithms.AES256(self._key.aes_key), modes.CTR(counter)).encryptor()


def tags(key: TagKey, coefficients: Coefficients, extras: Sequence[int]) -> Tags:
    """The two tags of an update and its extra words.

    Args:
        key: The round's.
        coefficients: int64[p, DEGREE], the plaintext integers before the multiplication by Delta, lanes joined.
        extras: Integers of at most q/2 in size.

    Raises:
        ContributionError: what ``Tagger`` refuses.
    """
    return _tagged(key, coefficients, extras).result()


def verify(key: TagKey, coefficients: Coefficients, extras: Sequence[int], claimed: Tags) -> bool:
    """Whether an opened sum is the one that the sum of the sites' tags is for. Arguments and errors as in ``tags``."""
    return _tagged(key, coefficients, extras).agrees(claimed)


def _tagged(key: TagKey, coefficients: Coefficients, extras: Sequence[int]) -> Tagger:
    tagger = Tagger(key)
    tagger.update(0, coefficients)
    tagger.extras(extras)
    return tagger


def _exact_dot(
    r: Coefficients, r_float: npt.NDArray[np.float64], values: Coefficients, values_float: npt.NDArray[np.float64]
) -> int:
    """sum of r * values over whole rows, not reduced; why it is exact is in the module's docstring."""
    low = np.vecdot(r.reshape(-1, _ROW), values.reshape(-1, _ROW))
    near = np.vecdot(r_float.reshape(-1, _ROW), values_float.reshape(-1, _ROW))
    high = np.rint((near - low) * 2.0**-64).astype(np.int64)
    # At most 512 rows: |high| <= 2^45, and halves of low, can be added up in 64 bits; low itself cannot.
    return (int(high.sum()) << 64) + (int((low >> 32).sum()) << 32) + int((low & 0xFFFFFFFF).sum())
