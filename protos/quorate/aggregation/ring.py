"""Words modulo q, of which the polynomials in Z_q[X] / (X^2048 + 1) are made: add, subtract, multiply, inner product.

A polynomial is a row of 2048 words. What a coefficient means is ``packing``'s business, what the bytes on the wire
are is ``words``'s.

How products modulo a 52-bit q work without 128-bit integers: for an integer x and a fixed word w with its precomputed
ratio w/q, k = x * ratio in float64, without its fraction, is nearly the quotient, and x*w - k*q, computed modulo 2^64,
is the exact value because that is small. For |w| <= q/2 and |x| <= X q (so X q < 2^63):

    three roundings (x to float64, the ratio, the product), each of relative size 2^-53, move x * ratio by at most
    X q * 1/2 * (3 * 2^-53 + 2^-104) <= 0.76 X, because q < 2^52;  the fraction is less than 1, so
    |x*w - k*q| < (1 + 0.76 X) q.                                                                                 (*)

Everything below is in units of q; a word may grow to 2^63 / q > 2048 of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Polynomials = npt.NDArray[np.uint64]
"""Shape (k, DEGREE), or any other shape for single words; every word is below MODULUS."""
Integers = npt.NDArray[np.int64]
_Reals = npt.NDArray[np.float64]

DEGREE = 2048
MODULUS = 4503599627366401
"""The prime that SEAL's CoeffModulus.Create(2048, [52]) gives; 1 modulo 4096."""
ROOT = 263727199427
"""The smallest primitive 4096th root of unity, which is the one that SEAL takes."""

HALF = MODULUS // 2
_WORD_BITS = 52
WORD_MASK = np.uint64((1 << _WORD_BITS) - 1)
Q = np.int64(MODULUS)
UQ = np.uint64(MODULUS)

BLOCK = 16
"""Polynomials worked on at a time: 256 KiB and as much again of scratch stay in a core's second-level cache."""
_FLAT_BLOCK = BLOCK * DEGREE


def add(accumulator: Polynomials, words: Polynomials) -> None:
    """Add modulo q, in place.

    Args:
        accumulator: Contiguous, of any shape. words: of the same shape. All words below MODULUS.
    """
    # Sums stay below 2^53. Where a sum is below q its difference with q wraps to nearly 2^64, so the smaller of the
    # two is the reduced word: no branch, no mask.
    reduced = np.empty(min(_FLAT_BLOCK, accumulator.size), dtype=np.uint64)
    for total, term in _flat_blocks(accumulator, words):
        np.add(total, term, out=total)
        np.minimum(total, np.subtract(total, UQ, out=reduced[: total.size]), out=total)


def subtract(accumulator: Polynomials, words: Polynomials) -> None:
    """Subtract modulo q, in place; otherwise like ``add``."""
    reduced = np.empty(min(_FLAT_BLOCK, accumulator.size), dtype=np.uint64)
    for total, term in _flat_blocks(accumulator, words):
        np.subtract(total, term, out=total)
        np.minimum(total, np.add(total, UQ, out=reduced[: total.size]), out=total)


def multiply(a: Polynomials, b: Polynomials) -> Polynomials:
    """The products modulo q, word by word, of words below MODULUS in shapes that broadcast (a key over polynomials)."""
    product = np.empty(np.broadcast_shapes(a.shape, b.shape), dtype=np.int64)
    times(a.view(np.int64), as_factor(b), product, Scratch.of(product.shape))
    lift(product)
    return product.view(np.uint64)


def dot(a: Polynomials, b: Polynomials) -> int:
    """The exact inner product modulo q of two vectors of one length; words below MODULUS."""
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError("an inner product needs two vectors of one length")
    total = 0
    for x, y in _flat_blocks(np.ascontiguousarray(a), np.ascontiguousarray(b)):
        # As in (*), but with uncentred words: |x*y/q| < 2^52 and three roundings move the quotient by at most 1.5, so
        # a remainder is at most 2q in size. 256 of them add up to less than 2^62: their sum is known modulo 2^64,
        # which is to know it.
        quotient = np.rint((x.astype(np.float64) * (1 / MODULUS)) * y.astype(np.float64)).astype(np.uint64)
        edges = np.arange(0, x.size, 256)
        remainders = np.add.reduceat(x * y, edges) - np.add.reduceat(quotient, edges) * UQ
        total += sum(remainders.view(np.int64).tolist())
    return total % MODULUS


def centred(words: Polynomials) -> Integers:
    """The representatives in [-(q-1)/2, (q-1)/2] of words below MODULUS."""
    signed = words.astype(np.int64)
    signed -= np.where(signed > HALF, Q, np.int64(0))
    return signed


def _flat_blocks(a: Polynomials, b: Polynomials) -> Iterator[tuple[Polynomials, Polynomials]]:
    """Matching pieces of two arrays that fit the cache; views, so that the first can be written to."""
    if a.shape != b.shape or not a.flags.c_contiguous:
        raise ValueError("words are added to a contiguous accumulator of their own shape")
    flat_a, flat_b = a.reshape(-1), b.reshape(-1)
    for start in range(0, flat_a.size, _FLAT_BLOCK):
        yield flat_a[start : start + _FLAT_BLOCK], flat_b[start : start + _FLAT_BLOCK]


@dataclass(frozen=True, slots=True, eq=False)
class Factor:
    """Words to multiply by: centred, |w| <= q/2, each with w/q to the nearest float64."""

    words: Integers
    ratios: _Reals


def as_factor(words: Polynomials) -> Factor:
    # w is an integer below 2^53, so converting it is exact and the division rounds once.
    signed = centred(words)
    return Factor(signed, signed / np.float64(MODULUS))


@dataclass(frozen=True, slots=True, eq=False)
class Scratch:
    """Room for quotients and products of one block; made for each call, so threads share nothing."""

    reals: _Reals
    quotients: Integers
    products: Integers

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> Scratch:
        return cls(np.empty(shape), np.empty(shape, dtype=np.int64), np.empty(shape, dtype=np.int64))

    def shaped(self, shape: tuple[int, ...]) -> Scratch:
        """The same memory, or the beginning of it, in another shape."""
        count = int(np.prod(shape))
        return Scratch(
            self.reals.reshape(-1)[:count].reshape(shape),
            self.quotients.reshape(-1)[:count].reshape(shape),
            self.products.reshape(-1)[:count].reshape(shape),
        )


def times(x: Integers, factor: Factor, out: Integers, scratch: Scratch) -> None:
    """out = x * factor modulo q, of the size that (*) gives. ``out`` may be ``x``."""
    # Copies of what has gaps are cheap; arithmetic on it, and arithmetic of mixed types, takes twice as long.
    np.copyto(scratch.reals, x, casting="unsafe")
    np.multiply(scratch.reals, factor.ratios, out=scratch.reals)
    np.copyto(scratch.quotients, scratch.reals, casting="unsafe")
    np.multiply(scratch.quotients, Q, out=scratch.quotients)
    if x is not scratch.products:
        np.copyto(scratch.products, x)
    np.multiply(scratch.products, factor.words, out=scratch.products)
    np.subtract(scratch.products, scratch.quotients, out=out)


def shrink(x: Integers, scratch: Scratch) -> None:
    """Bring words of up to 2048 q to at most (1/2 + 2^-40) q, in place.

    The quotient x/q is below 2^11 here, so its three roundings move it by less than 2^11 * 3 * 2^-53 < 2^-40.
    """
    np.copyto(scratch.reals, x, casting="unsafe")
    np.multiply(scratch.reals, 1 / MODULUS, out=scratch.reals)
    np.rint(scratch.reals, out=scratch.reals)
    np.copyto(scratch.quotients, scratch.reals, casting="unsafe")
    np.multiply(scratch.quotients, Q, out=scratch.quotients)
    np.subtract(x, scratch.quotients, out=x)


def lift(x: Integers) -> None:
    """Bring words of less than 2q in size to [0, q), in place: plus 2q, then minus 2q and minus q where they fit."""
    words = x.view(np.uint64)
    np.add(words, np.uint64(2 * MODULUS), out=words)
    np.minimum(words, words - np.uint64(2 * MODULUS), out=words)
    np.minimum(words, words - UQ, out=words)
