"""Shamir's secret sharing over Z_q, word by word, and finding out which shares are wrong.

Each word of the secret is the constant term of a polynomial of degree threshold - 1 whose other coefficients are
uniform; place x (1, 2, ..., a site's place in the roster) gets its value at x. Any ``threshold`` shares give the
secret, fewer give nothing at all (Shamir, How to share a secret, 1979). Shares are linear: the sum of shares is the
share of the sum, which is all that a site ever reveals.

**Wrong shares.** The shares of one word are a Reed-Solomon code word (McEliece and Sarwate, On sharing secrets and
Reed-Solomon codes, 1981), so s shares with at most (s - threshold) / 2 wrong ones among them decode uniquely, and
``faulty`` names exactly the wrong ones. With more wrong ones than that it cannot be trusted: s - threshold + 1 - e
colluders can frame e honest sites, by agreeing on another polynomial through threshold - 1 honest shares. So a name
counts only if the sum then opened passes its residues and its tag; and a dealer who handed out wrong shares makes
honest sites reveal wrong sums, hence the dealer's signature on each share (``share_boxes``).

This module leaves to others: how shares travel (``share_boxes``), and what they are shares of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from quorate.aggregation import ring, rlwe
from quorate.errors import ContributionError
from quorate.process.randomness import Randomness

Words = npt.NDArray[np.uint64]
Polynomial = list[int]  # over Z_q, lowest coefficient first, without leading zeros: [] is zero


def split(secret: Words, threshold: int, places: int, randomness: Randomness) -> Words:
    """Shares of a secret, uint64[places, m]; row i belongs to place i + 1.

    Args:
        secret: uint64[m], below q.
        threshold: How many shares give the secret; at least 2, for with 1 each share is the secret.
        places: The size of the roster.
        randomness: For (threshold - 1) * m uniform coefficients.

    Raises:
        ContributionError: a word is not below q, or threshold and places do not fit.
    """
    if not 2 <= threshold <= places < ring.MODULUS:
        raise ContributionError(
            "A secret cannot be split like this",
            expected="2 <= threshold <= places",
            got=f"threshold {threshold}, places {places}",
        )
    _check_words(secret, secret.size)
    # The highest coefficient may be zero too: were it not, threshold - 1 shares would rule out one secret in q.
    drawn = rlwe.uniform(randomness, (threshold - 1) * secret.size).reshape(threshold - 1, secret.size)
    x = np.arange(1, places + 1, dtype=np.uint64)[:, np.newaxis]
    shares = np.tile(drawn[-1], (places, 1))
    for coefficients in (*reversed(drawn[:-1]), secret):
        shares = ring.multiply(shares, x)
        ring.add(shares, np.broadcast_to(coefficients, shares.shape))
    return shares


def combine(shares: Mapping[int, Words], threshold: int) -> Words:
    """The secret, uint64[m], from the shares at the ``threshold`` lowest places, so that all sites use the same ones.

    Args:
        shares: From place to share, uint64[m]. More than ``threshold`` may be there. A mapping has no place twice.
        threshold: As in ``split``.

    Raises:
        ContributionError: too few shares, a place that is not in 1 ... q - 1, unequal lengths, a word not below q.
    """
    places, rows = _checked(shares, threshold)
    chosen = places[:threshold]
    secret: Words = np.zeros_like(rows[0])
    for place, row in zip(chosen, rows, strict=False):
        factor = np.array([_lagrange_at_zero(place, chosen)], dtype=np.uint64)
        ring.add(secret, ring.multiply(row, factor))
    return secret


def faulty(shares: Mapping[int, Words], threshold: int, randomness: Randomness) -> frozenset[int] | None:
    """The places of the wrong shares, if at most (s - threshold) / 2 of the s shares are wrong; None if more are.

    The empty set says that all shares agree (with exactly ``threshold`` of them: that there is nothing to compare).
    Why a name is not yet a proof is in the module's docstring.

    A share may be wrong in one word only, and looking at each word takes a minute and a half for 1,000 sites. So one
    random combination of all words is looked at, and decoded where it does not agree: a wrong share is wrong in it too
    but once in q draws. With more wrong shares than can be decoded the combination may look as if it could, for words
    that do not go together; a second combination, of the shares that are left, shows that, but once in q draws.

    Args:
        randomness: For 2 m words, which nobody may know before the shares are there: who does makes a wrong share that
            the combination does not show. So each site draws its own, and all name the same but once in q / s draws.

    Raises:
        ContributionError: as in ``combine``.
    """
    places, rows = _checked(shares, threshold)
    combined = _combined(rows, randomness)
    if _is_code_word(places, combined, threshold):
        return frozenset()
    wrong = _wrong_places_of_word(places, [int(value) for value in combined], threshold)
    if wrong is None:
        return None
    kept = [index for index, place in enumerate(places) if place not in wrong]
    agree = _is_code_word([places[index] for index in kept], _combined(rows[kept], randomness), threshold)
    return wrong if agree else None


def _checked(shares: Mapping[int, Words], threshold: int) -> tuple[list[int], Words]:
    """The places in rising order and their shares, uint64[s, m]."""
    if threshold < 2 or len(shares) < threshold:
        raise ContributionError(
            "There are too few shares", expected=f"at least {max(threshold, 2)}", got=f"{len(shares)}"
        )
    if not all(isinstance(place, int) and 1 <= place < ring.MODULUS for place in shares):
        # Place 0 would be the secret itself, and q + 1 would be place 1 a second time.
        raise ContributionError("A share is for a place that cannot be", expected="a place from 1 to q - 1")
    places = sorted(shares)
    count = shares[places[0]].size
    for place in places:
        _check_words(shares[place], count)
    return places, np.stack([shares[place] for place in places])


def _check_words(words: Words, count: int) -> None:
    if words.dtype != np.uint64 or words.shape != (count,) or count == 0 or bool((words >= ring.MODULUS).any()):
        raise ContributionError("A secret or a share of it has the wrong form", expected=f"{count} words below q")


def _lagrange_at_zero(place: int, places: Sequence[int]) -> int:
    numerator = denominator = 1
    for other in places:
        if other != place:
            numerator = numerator * other % ring.MODULUS
            denominator = denominator * (other - place) % ring.MODULUS
    return numerator * pow(denominator, -1, ring.MODULUS) % ring.MODULUS


def _barycentric_weights(places: Sequence[int]) -> list[int]:
    """1 / product of (x_i - x_j) over j != i, for each i."""
    weights = []
    for place in places:
        product = 1
        for other in places:
            if other != place:
                product = product * (place - other) % ring.MODULUS
        weights.append(pow(product, -1, ring.MODULUS))
    return weights


def _combined(rows: Words, randomness: Randomness) -> Words:
    """The same random combination of the words of each share, uint64[s]."""
    factors = rlwe.uniform(randomness, rows.shape[1])
    return np.array([ring.dot(row, factors) for row in rows], dtype=np.uint64)


def _is_code_word(places: Sequence[int], values: Words, threshold: int) -> bool:
    """Whether the shares of one word, uint64[s], lie on a polynomial of degree below ``threshold``.

    The dual of a Reed-Solomon code: y is a code word if and only if sum_i w_i x_i^k y_i = 0 for k < s - threshold,
    with the barycentric weights w (MacWilliams and Sloane, The Theory of Error-Correcting Codes, section 10.8).
    """
    x = np.array(places, dtype=np.uint64)
    check = np.array(_barycentric_weights(places), dtype=np.uint64)
    for _ in range(len(places) - threshold):
        if ring.dot(check, values):
            return False
        check = ring.multiply(check, x)
    return True


def _wrong_places_of_word(places: Sequence[int], values: Sequence[int], threshold: int) -> frozenset[int] | None:
    """Where one word is wrong; None if that is in more than (s - threshold) / 2 places.

    Gao, A new algorithm for decoding Reed-Solomon codes, 2003: divide by Euclid's algorithm, from the polynomial that
    vanishes at all places and the one through all values, until the degree is below (s + threshold) / 2. What comes out
    is checked by what it has to be: two polynomials of degree below the threshold cannot both agree so often.
    """
    vanishing: Polynomial = [1]
    for place in places:
        vanishing = _product(vanishing, [-place % ring.MODULUS, 1])
    through: Polynomial = []
    for place, value, weight in zip(places, values, _barycentric_weights(places), strict=True):
        others, _ = _divided(vanishing, [-place % ring.MODULUS, 1])
        through = _difference(through, _product(others, [-value * weight % ring.MODULUS]))

    previous, current = vanishing, through
    previous_factor: Polynomial = []
    factor: Polynomial = [1]
    while 2 * (len(current) - 1) >= len(places) + threshold:
        quotient, remainder = _divided(previous, current)
        previous, current = current, remainder
        previous_factor, factor = factor, _difference(previous_factor, _product(quotient, factor))
    message, _ = _divided(current, factor)
    if len(message) > threshold:
        return None
    wrong = frozenset(p for p, value in zip(places, values, strict=True) if _value(message, p) != value)
    return wrong if 2 * len(wrong) <= len(places) - threshold else None


def _trimmed(polynomial: Polynomial) -> Polynomial:
    while polynomial and polynomial[-1] == 0:
        polynomial.pop()
    return polynomial


def _difference(a: Polynomial, b: Polynomial) -> Polynomial:
    length = max(len(a), len(b))
    wide_a, wide_b = a + [0] * (length - len(a)), b + [0] * (length - len(b))
    return _trimmed([(x - y) % ring.MODULUS for x, y in zip(wide_a, wide_b, strict=True)])


def _product(a: Polynomial, b: Polynomial) -> Polynomial:
    result = [0] * max(len(a) + len(b) - 1, 0)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            result[i + j] += x * y
    return _trimmed([coefficient % ring.MODULUS for coefficient in result])


def _divided(dividend: Polynomial, divisor: Polynomial) -> tuple[Polynomial, Polynomial]:
    """Quotient and remainder; the divisor is not zero."""
    remainder = list(dividend)
    inverse = pow(divisor[-1], -1, ring.MODULUS)
    quotient = [0] * max(len(dividend) - len(divisor) + 1, 0)
    for shift in reversed(range(len(quotient))):
        quotient[shift] = remainder[shift + len(divisor) - 1] * inverse % ring.MODULUS
        for index, coefficient in enumerate(divisor):
            remainder[shift + index] = (remainder[shift + index] - quotient[shift] * coefficient) % ring.MODULUS
    return _trimmed(quotient), _trimmed(remainder)


def _value(polynomial: Polynomial, x: int) -> int:
    result = 0
    for coefficient in reversed(polynomial):
        result = (result * x + coefficient) % ring.MODULUS
    return result
