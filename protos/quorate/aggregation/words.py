"""Words of 52 bits on the wire: m of them are exactly ceil(6.5 m) bytes, so a polynomial is 13,312.

Word i is the bits 52 i .. 52 i + 51 of the bytes, the least significant bit of a byte first. Two words are 13 bytes:
the first is the low 52 bits of the little-endian 64-bit number at offset 0, the second the high 52 bits of the one at
offset 5. A last word without a second has 7 bytes, whose upper four bits are zero. Every string of the right length has
one meaning or none, and no word of q or more gets in.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from quorate.aggregation.ring import DEGREE, MODULUS, Polynomials
from quorate.errors import FrameError

Words = npt.NDArray[np.uint64]

POLYNOMIAL_BYTES = DEGREE * 52 // 8

_PAIR_BYTES = 13
_MASK = np.uint64((1 << 52) - 1)
_LITTLE = np.dtype("<u8")


def pack(polynomials: Polynomials) -> bytes:
    """Polynomials as bytes.

    Args:
        polynomials: (k, DEGREE) words below MODULUS.
    """
    if polynomials.ndim != 2 or polynomials.shape[1] != DEGREE:
        raise ValueError(f"polynomials have the shape (k, {DEGREE})")
    return pack_words(polynomials.reshape(-1))


def unpack(data: bytes | memoryview) -> Polynomials:
    """Bytes as polynomials, (k, DEGREE).

    Raises:
        FrameError: the length is not a multiple of POLYNOMIAL_BYTES, or a word is not below MODULUS.
    """
    size = memoryview(data).nbytes
    if size % POLYNOMIAL_BYTES:
        raise FrameError(
            "Encrypted words have a wrong length", expected=f"a multiple of {POLYNOMIAL_BYTES} bytes", got=str(size)
        )
    return unpack_words(data).reshape(-1, DEGREE)


def packed_bytes(count: int) -> int:
    """The length of so many words on the wire."""
    return (_PAIR_BYTES * count + 1) // 2


def pack_words(words: Words) -> bytes:
    """Any number of words as bytes.

    Args:
        words: uint64[m], below MODULUS.
    """
    size = packed_bytes(len(words))
    if len(words) % 2:
        words = np.append(words, np.uint64(0))
    data = bytearray(len(words) // 2 * _PAIR_BYTES)
    if data:
        first, second = words[0::2], words[1::2]
        low, high = _pairs(data)
        # The two numbers of a pair overlap in 24 bits, on which they agree.
        np.bitwise_or(first, second << np.uint64(52), out=low)
        np.bitwise_or(first >> np.uint64(40), second << np.uint64(12), out=high)
    return bytes(memoryview(data)[:size])


def unpack_words(data: bytes | memoryview) -> Words:
    """Bytes as words, uint64[m].

    Raises:
        FrameError: no number of words has this length, a word is not below MODULUS, or what fills up the last byte is
            not zero.
    """
    size = memoryview(data).nbytes
    count = 2 * size // _PAIR_BYTES
    if packed_bytes(count) != size:
        raise FrameError("Words have a wrong length", expected="whole words of 52 bits", got=f"{size} bytes")
    if count % 2:
        data = bytes(data) + bytes(_PAIR_BYTES * (count + 1) // 2 - size)
    words = np.empty(count + count % 2, dtype=np.uint64)
    if count:
        low, high = _pairs(data)
        np.bitwise_and(low, _MASK, out=words[0::2])
        np.right_shift(high, np.uint64(12), out=words[1::2])
        if int(words.max()) >= MODULUS:
            raise FrameError("A word is out of range", expected="words below the modulus")
        if words[count:].any():
            raise FrameError("Words have a wrong form", expected="zeros behind the last of them")
    return words[:count]


def _pairs(data: bytes | bytearray | memoryview) -> tuple[Words, Words]:
    """The 64-bit numbers at the offsets 0 and 5 of each pair, in place."""
    shape, strides = (memoryview(data).nbytes // _PAIR_BYTES,), (_PAIR_BYTES,)
    low: Words = np.ndarray(shape, dtype=_LITTLE, buffer=data, offset=0, strides=strides)
    high: Words = np.ndarray(shape, dtype=_LITTLE, buffer=data, offset=5, strides=strides)
    return low, high
