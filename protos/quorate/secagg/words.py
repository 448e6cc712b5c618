"""Words of 52 bits on the wire: a polynomial is exactly 13,312 bytes.

Word i of a polynomial is the bits 52 i .. 52 i + 51 of its bytes, the least significant bit of a byte first. Two words
are 13 bytes: the first is the low 52 bits of the little-endian 64-bit number at offset 0, the second the high 52 bits
of the one at offset 5. Every string of the right length has one meaning or none, and no word of q or more gets in.
"""

from __future__ import annotations

import numpy as np

from quorate.errors import FrameError
from quorate.secagg.ring import DEGREE, MODULUS, Polynomials

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
    data = bytearray(len(polynomials) * POLYNOMIAL_BYTES)
    if data:
        first, second = polynomials[:, 0::2], polynomials[:, 1::2]
        low, high = _pairs(data)
        # The two numbers of a pair overlap in 24 bits, on which they agree.
        np.bitwise_or(first, second << np.uint64(52), out=low)
        np.bitwise_or(first >> np.uint64(40), second << np.uint64(12), out=high)
    return bytes(data)


def unpack(data: bytes | memoryview) -> Polynomials:
    """Bytes as polynomials, (k, DEGREE).

    Raises:
        FrameError: the length is not a multiple of POLYNOMIAL_BYTES, or a word is not below MODULUS.
    """
    size = len(data) if isinstance(data, bytes) else data.nbytes
    if size % POLYNOMIAL_BYTES:
        raise FrameError(
            "Encrypted words have a wrong length", expected=f"a multiple of {POLYNOMIAL_BYTES} bytes", got=str(size)
        )
    polynomials = np.empty((size // POLYNOMIAL_BYTES, DEGREE), dtype=np.uint64)
    if size:
        low, high = _pairs(data)
        np.bitwise_and(low, _MASK, out=polynomials[:, 0::2])
        np.right_shift(high, np.uint64(12), out=polynomials[:, 1::2])
        if int(polynomials.max()) >= MODULUS:
            raise FrameError("An encrypted word is out of range", expected="words below the modulus")
    return polynomials


def _pairs(data: bytes | bytearray | memoryview) -> tuple[Polynomials, Polynomials]:
    """The 64-bit numbers at the offsets 0 and 5 of each pair, in place: (k, DEGREE / 2) each."""
    count = memoryview(data).nbytes // POLYNOMIAL_BYTES
    shape, strides = (count, DEGREE // 2), (POLYNOMIAL_BYTES, _PAIR_BYTES)
    low: Polynomials = np.ndarray(shape, dtype=_LITTLE, buffer=data, offset=0, strides=strides)
    high: Polynomials = np.ndarray(shape, dtype=_LITTLE, buffer=data, offset=5, strides=strides)
    return low, high
