"""The symmetric CKKS encryption under one-time keys, what it draws, and opening a sum of it.

A site with the fresh uniform key t sends c0_j = NTT(m_j + e_j) + a_j t for public uniform a_j: an ordinary symmetric
CKKS ciphertext (c0, c1 = a_j) under the secret key s = -t. Sums of c0 open with the sum of the keys and with nothing
less (RLWE with a_j shared by all sites: key- and message-additive, as in ACORN, https://eprint.iacr.org/2022/1461, and
Willow, https://eprint.iacr.org/2024/936).
Who may open which sum is the round's business.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from quorate.aggregation.ntt import _backward, _blocks, _canonical, _forward, _Workspace
from quorate.aggregation.ring import (
    DEGREE,
    HALF,
    MODULUS,
    UQ,
    WORD_MASK,
    Integers,
    Polynomials,
    as_factor,
    shrink,
    times,
)
from quorate.process.randomness import Randomness

NOISE_BOUND = 42
SEED_BYTES = 32
_BLOCKS_OF_AES = DEGREE * 8 // 16
_REPLACEMENTS = 1 << 127


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
    return np.frombuffer(data, dtype="<u8") & WORD_MASK


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
        words = np.concatenate([words, candidates[candidates < UQ]])
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


def encrypt(messages: Integers, key: Polynomials, seed: bytes, first: int, randomness: Randomness) -> Polynomials:
    """NTT(m + e) + a t modulo q, the c0 of symmetric CKKS ciphertexts under -t with the public c1 = a.

    Args:
        messages: (k, DEGREE) coefficients, less than q/2 - NOISE_BOUND in size.
        key: (DEGREE,) uniform words below MODULUS, in the NTT domain, never used with another update.
        seed: Of the round's public polynomials. first: the number of the first one. No number is used twice under a
            key: two ciphertexts with one a would give the difference of their messages away.
    """
    words = np.empty(messages.shape, dtype=np.uint64)
    factor, workspace = as_factor(key), _Workspace()
    for block in _blocks(messages):
        x = workspace.polynomials(block.stop - block.start)
        np.add(messages[block], noise(randomness, len(x)), out=x)
        x = _forward(x, workspace)
        # |x| <= 1162 q and the product is at most 1.76 q: there is room, and one reduction does for both.
        mask = expand(seed, first + block.start, len(x)).view(np.int64)
        times(mask, factor, mask, workspace.scratch(mask.shape))
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
    factor, workspace = as_factor(key_sum), _Workspace()
    for block in _blocks(total):
        x = workspace.polynomials(block.stop - block.start)
        mask = expand(seed, first + block.start, len(x)).view(np.int64)
        times(mask, factor, mask, workspace.scratch(mask.shape))
        np.subtract(total[block].view(np.int64), mask, out=x)
        _centre(_backward(x, workspace), opened[block], workspace)
    return opened


def _centre(x: Integers, out: Integers, workspace: _Workspace) -> None:
    """Words of up to 2048 q to [-(q-1)/2, (q-1)/2]; x is spoiled.

    Shrinking may miss that range by 2^-40 q on either side: shifted to [0, q), a word just below is huge as an
    unsigned number until q is added, one just above is huge once q is subtracted.
    """
    shrink(x, workspace.scratch(x.shape))
    shifted = x.view(np.uint64)
    words = out.view(np.uint64)
    np.add(shifted, np.uint64(HALF), out=shifted)
    np.add(shifted, UQ, out=words)
    np.minimum(shifted, words, out=shifted)
    np.subtract(shifted, UQ, out=words)
    np.minimum(shifted, words, out=words)
    np.subtract(words, np.uint64(HALF), out=words)
