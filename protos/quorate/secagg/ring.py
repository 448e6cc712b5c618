"""Arithmetic in Z_q[X] / (X^2048 + 1), and the symmetric CKKS encryption under one-time keys that is built on it.

A polynomial is a row of 2048 words. In the *NTT domain* (SEAL's "NTT form": Harvey's order, bit-reversed powers of the
smallest primitive 4096th root of unity) products are word by word; every word here is bit for bit the one that SEAL
has, which ``seal`` checks before the first sum. What a coefficient means is ``packing``'s business, what the bytes on
the wire are is ``words``'s, who may open which sum is the round's.

A site with the fresh uniform key t sends c0_j = NTT(m_j + e_j) + a_j t for public uniform a_j: an ordinary symmetric
CKKS ciphertext (c0, c1 = a_j) under the secret key s = -t. Sums of c0 open with the sum of the keys and with nothing
less (RLWE with a_j shared by all sites: key- and message-additive, as in ACORN, https://eprint.iacr.org/2022/1461, and
Willow, https://eprint.iacr.org/2024/936).

How products modulo a 52-bit q work without 128-bit integers: for an integer x and a fixed word w with its precomputed
ratio w/q, k = x * ratio in float64, without its fraction, is nearly the quotient, and x*w - k*q, computed modulo 2^64,
is the exact value because that is small. For |w| <= q/2 and |x| <= X q (so X q < 2^63):

    three roundings (x to float64, the ratio, the product), each of relative size 2^-53, move x * ratio by at most
    X q * 1/2 * (3 * 2^-53 + 2^-104) <= 0.76 X, because q < 2^52;  the fraction is less than 1, so
    |x*w - k*q| < (1 + 0.76 X) q.                                                                                 (*)

Everything below is in units of q; a word may grow to 2^63 / q > 2048 of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from quorate.secagg.randomness import Randomness

Polynomials = npt.NDArray[np.uint64]
"""Shape (k, DEGREE), or any other shape for single words; every word is below MODULUS."""
Integers = npt.NDArray[np.int64]
_Reals = npt.NDArray[np.float64]

DEGREE = 2048
MODULUS = 4503599627366401
"""The prime that SEAL's CoeffModulus.Create(2048, [52]) gives; 1 modulo 4096."""
ROOT = 263727199427
"""The smallest primitive 4096th root of unity, which is the one that SEAL takes."""
NOISE_BOUND = 42
SEED_BYTES = 32

_HALF = MODULUS // 2
_WORD_BITS = 52
_WORD_MASK = np.uint64((1 << _WORD_BITS) - 1)
_Q = np.int64(MODULUS)
_UQ = np.uint64(MODULUS)

_BLOCK = 16
"""Polynomials worked on at a time: 256 KiB and as much again of scratch stay in a core's second-level cache."""
_FLAT_BLOCK = _BLOCK * DEGREE
_BLOCKS_OF_AES = DEGREE * 8 // 16
_REPLACEMENTS = 1 << 127


# --- words -----------------------------------------------------------------------------------------------------------


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
        np.minimum(total, np.subtract(total, _UQ, out=reduced[: total.size]), out=total)


def subtract(accumulator: Polynomials, words: Polynomials) -> None:
    """Subtract modulo q, in place; otherwise like ``add``."""
    reduced = np.empty(min(_FLAT_BLOCK, accumulator.size), dtype=np.uint64)
    for total, term in _flat_blocks(accumulator, words):
        np.subtract(total, term, out=total)
        np.minimum(total, np.add(total, _UQ, out=reduced[: total.size]), out=total)


def multiply(a: Polynomials, b: Polynomials) -> Polynomials:
    """The products modulo q, word by word, of words below MODULUS in shapes that broadcast (a key over polynomials)."""
    product = np.empty(np.broadcast_shapes(a.shape, b.shape), dtype=np.int64)
    _times(a.view(np.int64), _factor(b), product, _Scratch.of(product.shape))
    _lift(product)
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
        remainders = np.add.reduceat(x * y, edges) - np.add.reduceat(quotient, edges) * _UQ
        total += sum(remainders.view(np.int64).tolist())
    return total % MODULUS


def centred(words: Polynomials) -> Integers:
    """The representatives in [-(q-1)/2, (q-1)/2] of words below MODULUS."""
    signed = words.astype(np.int64)
    signed -= np.where(signed > _HALF, _Q, np.int64(0))
    return signed


def _flat_blocks(a: Polynomials, b: Polynomials) -> Iterator[tuple[Polynomials, Polynomials]]:
    """Matching pieces of two arrays that fit the cache; views, so that the first can be written to."""
    if a.shape != b.shape or not a.flags.c_contiguous:
        raise ValueError("words are added to a contiguous accumulator of their own shape")
    flat_a, flat_b = a.reshape(-1), b.reshape(-1)
    for start in range(0, flat_a.size, _FLAT_BLOCK):
        yield flat_a[start : start + _FLAT_BLOCK], flat_b[start : start + _FLAT_BLOCK]


@dataclass(frozen=True, slots=True, eq=False)
class _Factor:
    """Words to multiply by: centred, |w| <= q/2, each with w/q to the nearest float64."""

    words: Integers
    ratios: _Reals


def _factor(words: Polynomials) -> _Factor:
    # w is an integer below 2^53, so converting it is exact and the division rounds once.
    signed = centred(words)
    return _Factor(signed, signed / np.float64(MODULUS))


@dataclass(frozen=True, slots=True, eq=False)
class _Scratch:
    """Room for quotients and products of one block; made for each call, so threads share nothing."""

    reals: _Reals
    quotients: Integers
    products: Integers

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> _Scratch:
        return cls(np.empty(shape), np.empty(shape, dtype=np.int64), np.empty(shape, dtype=np.int64))

    def shaped(self, shape: tuple[int, ...]) -> _Scratch:
        """The same memory, or the beginning of it, in another shape."""
        count = int(np.prod(shape))
        return _Scratch(
            self.reals.reshape(-1)[:count].reshape(shape),
            self.quotients.reshape(-1)[:count].reshape(shape),
            self.products.reshape(-1)[:count].reshape(shape),
        )


def _times(x: Integers, factor: _Factor, out: Integers, scratch: _Scratch) -> None:
    """out = x * factor modulo q, of the size that (*) gives. ``out`` may be ``x``."""
    # Copies of what has gaps are cheap; arithmetic on it, and arithmetic of mixed types, takes twice as long.
    np.copyto(scratch.reals, x, casting="unsafe")
    np.multiply(scratch.reals, factor.ratios, out=scratch.reals)
    np.copyto(scratch.quotients, scratch.reals, casting="unsafe")
    np.multiply(scratch.quotients, _Q, out=scratch.quotients)
    if x is not scratch.products:
        np.copyto(scratch.products, x)
    np.multiply(scratch.products, factor.words, out=scratch.products)
    np.subtract(scratch.products, scratch.quotients, out=out)


def _shrink(x: Integers, scratch: _Scratch) -> None:
    """Bring words of up to 2048 q to at most (1/2 + 2^-40) q, in place.

    The quotient x/q is below 2^11 here, so its three roundings move it by less than 2^11 * 3 * 2^-53 < 2^-40.
    """
    np.copyto(scratch.reals, x, casting="unsafe")
    np.multiply(scratch.reals, 1 / MODULUS, out=scratch.reals)
    np.rint(scratch.reals, out=scratch.reals)
    np.copyto(scratch.quotients, scratch.reals, casting="unsafe")
    np.multiply(scratch.quotients, _Q, out=scratch.quotients)
    np.subtract(x, scratch.quotients, out=x)


def _lift(x: Integers) -> None:
    """Bring words of less than 2q in size to [0, q), in place: plus 2q, then minus 2q and minus q where they fit."""
    words = x.view(np.uint64)
    np.add(words, np.uint64(2 * MODULUS), out=words)
    np.minimum(words, words - np.uint64(2 * MODULUS), out=words)
    np.minimum(words, words - _UQ, out=words)


# --- the number-theoretic transform ----------------------------------------------------------------------------------


def to_ntt(polynomials: Polynomials | Integers) -> Polynomials:
    """Coefficients to the NTT domain.

    Args:
        polynomials: (k, DEGREE), as words below MODULUS or as signed integers of at most MODULUS in size.
    """
    words = np.empty(polynomials.shape, dtype=np.uint64)
    workspace = _Workspace()
    for block in _blocks(polynomials):
        x = workspace.polynomials(block.stop - block.start)
        np.copyto(x, polynomials[block], casting="unsafe")
        _canonical(_forward(x, workspace), words[block], workspace)
    return words


def from_ntt(polynomials: Polynomials) -> Polynomials:
    """From the NTT domain to coefficients; (k, DEGREE) words below MODULUS both."""
    words = np.empty(polynomials.shape, dtype=np.uint64)
    workspace = _Workspace()
    for block in _blocks(polynomials):
        x = workspace.polynomials(block.stop - block.start)
        np.copyto(x, polynomials[block], casting="unsafe")
        _canonical(_backward(x, workspace), words[block], workspace)
    return words


# The stages of the transform pair words that are 1024, 512, .. 1 places apart. numpy is fast only along long runs, so
# the first six stages (1024 .. 32 apart) work on a polynomial as it is, and the last five on its transpose: 32 places
# within a group by 64 groups, where words one place apart are 64 apart.
_GROUPS = 64
_PLACES = DEGREE // _GROUPS


def _root_powers(root: int) -> Polynomials:
    """root^i at place bit-reverse(i), for i < DEGREE."""
    powers, power = np.empty(DEGREE, dtype=np.uint64), 1
    for i in range(DEGREE):
        powers[int(f"{i:011b}"[::-1], 2)] = power
        power = power * root % MODULUS
    return powers


def _stages(root: int, scale: int = 1) -> tuple[list[_Factor], list[_Factor]]:
    """The factors of the stages on polynomials and on their transposes, in the shapes in which ``_halves`` cuts them.

    Args:
        root: Of unity. scale: what the factor of the first stage is multiplied by.
    """
    powers = _root_powers(root)
    on_rows, on_columns = [], []
    groups = 1
    while groups < DEGREE:
        here = powers[groups : 2 * groups]
        if groups == 1:
            here = multiply(here, np.array([scale], dtype=np.uint64))
        if groups < _GROUPS:
            on_rows.append(_factor(np.repeat(here, DEGREE // groups // 2).reshape(groups, -1)))
        else:
            # Group g of this stage lies in group g // inner of the first six stages. Repeated along the places, so
            # that numpy sees one long run.
            inner = groups // _GROUPS
            shape = (inner, _PLACES // inner // 2, _GROUPS)
            repeated = np.broadcast_to(here.reshape(_GROUPS, inner).T[:, None, :], shape)
            on_columns.append(_factor(repeated.reshape(inner, -1)))
        groups *= 2
    return on_rows, on_columns


_INVERSE_DEGREE = pow(DEGREE, -1, MODULUS)
_FORWARD_ROWS, _FORWARD_COLUMNS = _stages(ROOT)
# The last stage of the way back is the mirror of the first; the division by DEGREE is folded into it.
_BACKWARD_ROWS, _BACKWARD_COLUMNS = _stages(pow(ROOT, -1, MODULUS), _INVERSE_DEGREE)
_SCALE = _factor(np.array([_INVERSE_DEGREE], dtype=np.uint64))


class _Workspace:
    """The memory that transforming needs; made for each call, so that threads share nothing."""

    def __init__(self) -> None:
        self._polynomials = np.empty((_BLOCK, DEGREE), dtype=np.int64)
        self._other = np.empty((_BLOCK, DEGREE), dtype=np.int64)
        self._scratch = _Scratch.of((_BLOCK, DEGREE))

    def polynomials(self, count: int) -> Integers:
        return self._polynomials[:count]

    def other(self, count: int) -> Integers:
        return self._other[:count]

    def scratch(self, shape: tuple[int, ...]) -> _Scratch:
        return self._scratch.shaped(shape)


def _blocks(polynomials: Polynomials | Integers) -> Iterator[slice]:
    if polynomials.ndim != 2 or polynomials.shape[1] != DEGREE:
        raise ValueError(f"polynomials have the shape (k, {DEGREE})")
    for start in range(0, len(polynomials), _BLOCK):
        yield slice(start, min(start + _BLOCK, len(polynomials)))


def _halves(x: Integers, groups: int) -> tuple[Integers, Integers]:
    """The words that a stage pairs, as views: polynomials cut into groups of two halves each."""
    cut = x.reshape(len(x), groups, 2, -1)
    return cut[:, :, 0], cut[:, :, 1]


def _forward(x: Integers, workspace: _Workspace) -> Integers:
    """The transform (Cooley-Tukey butterflies u + wv, u - wv), without a single reduction; x is spoiled.

    From at most 1 q, eleven times X -> X + (1 + 0.76 X): at most 1162 q at the end, by (*).
    """
    here, there = x, workspace.other(len(x))
    for factor in _FORWARD_ROWS:
        _butterflies(here, there, factor, workspace)
        here, there = there, here
    here, there = _transpose(here, there, _GROUPS, _PLACES)
    for factor in _FORWARD_COLUMNS:
        _butterflies(here, there, factor, workspace)
        here, there = there, here
    here, _ = _transpose(here, there, _PLACES, _GROUPS)
    return here


def _backward(x: Integers, workspace: _Workspace) -> Integers:
    """The inverse (Gentleman-Sande butterflies u + v, w(u - v)) of words of up to 2048 q; x is spoiled.

    They are brought to (0.5 + 2^-40) q first. A stage makes at most max(2 X, 1 + 1.52 X) of X: 1.77 q, 3.69 q and then
    twice as much each time, 945 q after ten stages. In the last one u + v and u - v are at most 1890 q, which still
    fits, and their products are at most 1438 q.
    """
    _shrink(x, workspace.scratch(x.shape))
    here, there = _transpose(x, workspace.other(len(x)), _GROUPS, _PLACES)
    for factor in reversed(_BACKWARD_COLUMNS):
        _inverse_butterflies(here, there, factor, workspace)
        here, there = there, here
    here, there = _transpose(here, there, _PLACES, _GROUPS)
    for factor in reversed(_BACKWARD_ROWS):
        _inverse_butterflies(here, there, factor, workspace)
        here, there = there, here
    first, _ = _halves(here, 1)
    _times(first, _SCALE, first, workspace.scratch(first.shape))
    return here


def _transpose(here: Integers, there: Integers, rows: int, columns: int) -> tuple[Integers, Integers]:
    """Each polynomial as a matrix of so many rows, transposed into ``there``; then the two have changed places."""
    np.copyto(there.reshape(-1, columns, rows), here.reshape(-1, rows, columns).swapaxes(1, 2))
    return there, here


# From one array to another and not in place: where an output interleaves with an input, numpy spends as long proving
# that they share nothing as it does adding.


def _butterflies(here: Integers, there: Integers, factor: _Factor, workspace: _Workspace) -> None:
    u, v = _halves(here, len(factor.words))
    sums, differences = _halves(there, len(factor.words))
    scratch = workspace.scratch(u.shape)
    _times(v, factor, scratch.products, scratch)
    np.add(u, scratch.products, out=sums)
    np.subtract(u, scratch.products, out=differences)


def _inverse_butterflies(here: Integers, there: Integers, factor: _Factor, workspace: _Workspace) -> None:
    u, v = _halves(here, len(factor.words))
    sums, products = _halves(there, len(factor.words))
    scratch = workspace.scratch(u.shape)
    np.add(u, v, out=sums)
    np.subtract(u, v, out=scratch.products)
    _times(scratch.products, factor, products, scratch)


def _canonical(x: Integers, out: Polynomials, workspace: _Workspace) -> None:
    """Words of up to 2048 q to [0, q); x is spoiled. After shrinking, a negative word is one that q makes smaller."""
    _shrink(x, workspace.scratch(x.shape))
    words = x.view(np.uint64)
    np.add(words, _UQ, out=out)
    np.minimum(out, words, out=out)


# --- public and secret randomness ------------------------------------------------------------------------------------


def expand(seed: bytes, first: int, count: int) -> Polynomials:
    """The public uniform polynomials a_first, a_(first+1), .. in the NTT domain: (count, DEGREE).

    Word i of polynomial j depends on (seed, j, i) and on nothing else. With AES-256 under the seed as its key, blocks
    numbered by 128-bit big-endian counters, the blocks 1024 j .. 1024 j + 1023 are the polynomial's 2048 candidates:
    little-endian 64-bit words of which the low 52 bits count. A candidate of at least q (one in 2^40) is replaced.
    The replacements are the candidates below q of the blocks 2^127 + 2^64 j onward, in order, one for each place in
    order.

    Args:
        seed: SEED_BYTES bytes, public. first: at least 0; first + count at most 2^48.
    """
    if len(seed) != SEED_BYTES or first < 0 or count < 0 or first + count > 1 << 48:
        raise ValueError("polynomials are expanded from a seed of 32 bytes and numbered from 0 to 2^48")
    candidates = _keystream(seed, first * _BLOCKS_OF_AES, count * DEGREE).reshape(count, DEGREE)

    def replacements(row: int, wanted: int) -> Polynomials:
        return _keystream(seed, _REPLACEMENTS + ((first + row) << 64), wanted)

    return _replace_rejected(candidates, MODULUS, replacements)


def _keystream(seed: bytes, block: int, words: int) -> Polynomials:
    """52-bit words from an AES keystream that begins at a block's counter."""
    stream = Cipher(algorithms.AES(seed), modes.CTR(block.to_bytes(16, "big"))).encryptor()
    return _candidates(stream.update(bytes(8 * words)))


def _candidates(data: bytes) -> Polynomials:
    return np.frombuffer(data, dtype="<u8") & _WORD_MASK


def _replace_rejected(
    candidates: Polynomials, limit: int, replacements: Callable[[int, int], Polynomials]
) -> Polynomials:
    """Replace, in place, the words of each row that are not below a limit.

    Args:
        replacements: Of a row and a count: the first so many candidates of the row's stream of replacements.
    """
    # One pass finds whether there is any work; there is none but once in 2^29 polynomials.
    if candidates.size == 0 or int(candidates.max()) < limit:
        return candidates
    for row in np.flatnonzero((candidates >= limit).any(axis=1)).tolist():
        places = np.flatnonzero(candidates[row] >= limit)
        asked, good = places.size, candidates[row, :0]
        while good.size < places.size:
            asked *= 2
            stream = replacements(row, asked)
            good = stream[stream < limit]
        candidates[row, places] = good[: places.size]
    return candidates


def uniform(randomness: Randomness, count: int) -> Polynomials:
    """Secret uniform words below MODULUS, by rejection: (count,). DEGREE of them are a key in the NTT domain."""
    words = np.empty(0, dtype=np.uint64)
    while words.size < count:
        candidates = _candidates(randomness.draw(8 * (count - words.size)))
        words = np.concatenate([words, candidates[candidates < _UQ]])
    return words


def noise(randomness: Randomness, count: int) -> Integers:
    """Encryption noise, (count, DEGREE): sums of two centred binomials of parameter 21, at most NOISE_BOUND in size.

    A centred binomial is the difference of two counts of 21 random bits. Inverting the bits of the second turns two
    such differences into one count of 84 bits, minus 42: the same distribution, variance 21.
    """
    size = count * DEGREE
    data = randomness.draw(12 * size)
    ones = np.bitwise_count(np.frombuffer(data, dtype="<u8", count=size))
    ones += np.bitwise_count(np.frombuffer(data, dtype="<u4", offset=8 * size) & np.uint32((1 << 20) - 1))
    errors: Integers = np.subtract(ones, NOISE_BOUND, dtype=np.int64)
    return errors.reshape(count, DEGREE)


# --- encryption ------------------------------------------------------------------------------------------------------


def encrypt(messages: Integers, key: Polynomials, seed: bytes, first: int, randomness: Randomness) -> Polynomials:
    """NTT(m + e) + a t modulo q, the c0 of symmetric CKKS ciphertexts under -t with the public c1 = a.

    Args:
        messages: (k, DEGREE) coefficients, less than q/2 - NOISE_BOUND in size.
        key: (DEGREE,) uniform words below MODULUS, in the NTT domain, never used with another update.
        seed: Of the round's public polynomials. first: the number of the first one. No number is used twice under a
            key: two ciphertexts with one a would give the difference of their messages away.
    """
    words = np.empty(messages.shape, dtype=np.uint64)
    factor, workspace = _factor(key), _Workspace()
    for block in _blocks(messages):
        x = workspace.polynomials(block.stop - block.start)
        np.add(messages[block], noise(randomness, len(x)), out=x)
        x = _forward(x, workspace)
        # |x| <= 1162 q and the product is at most 1.76 q: there is room, and one reduction does for both.
        mask = expand(seed, first + block.start, len(x)).view(np.int64)
        _times(mask, factor, mask, workspace.scratch(mask.shape))
        np.add(x, mask, out=x)
        _canonical(x, words[block], workspace)
    return words


def open_sum(total: Polynomials, key_sum: Polynomials, seed: bytes, first: int) -> Integers:
    """The sum of messages and noise, centred, from the sum of ciphertexts and the sum of their keys.

    With a wrong key every coefficient is uniform; ``Packing.round_noise`` finds that out.

    Args:
        total: (k, DEGREE) words below MODULUS. key_sum: (DEGREE,) words below MODULUS, in the NTT domain.
        seed, first: as they were for ``encrypt``.
    """
    opened = np.empty(total.shape, dtype=np.int64)
    factor, workspace = _factor(key_sum), _Workspace()
    for block in _blocks(total):
        x = workspace.polynomials(block.stop - block.start)
        mask = expand(seed, first + block.start, len(x)).view(np.int64)
        _times(mask, factor, mask, workspace.scratch(mask.shape))
        np.subtract(total[block].view(np.int64), mask, out=x)
        _centre(_backward(x, workspace), opened[block], workspace)
    return opened


def _centre(x: Integers, out: Integers, workspace: _Workspace) -> None:
    """Words of up to 2048 q to [-(q-1)/2, (q-1)/2]; x is spoiled.

    Shrinking may miss that range by 2^-40 q on either side: shifted to [0, q), a word just below is huge as an
    unsigned number until q is added, one just above is huge once q is subtracted.
    """
    _shrink(x, workspace.scratch(x.shape))
    shifted = x.view(np.uint64)
    words = out.view(np.uint64)
    np.add(shifted, np.uint64(_HALF), out=shifted)
    np.add(shifted, _UQ, out=words)
    np.minimum(shifted, words, out=shifted)
    np.subtract(shifted, _UQ, out=words)
    np.minimum(shifted, words, out=words)
    np.subtract(words, np.uint64(_HALF), out=words)
