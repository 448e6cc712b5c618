"""Arithmetic modulo q against plain Python integers, and the distributions of what is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorate.aggregation import ntt, ring, rlwe
from quorate.aggregation.ring import DEGREE, MODULUS, ROOT, Polynomials
from quorate.aggregation.rlwe import NOISE_BOUND
from tests.protos.secagg.kit import SeededRandomness, looks_uniform, random_words, surprise

SEED = bytes(range(32))
EXTREMES = [0, 1, 2, MODULUS // 2 - 1, MODULUS // 2, MODULUS // 2 + 1, MODULUS // 2 + 2, MODULUS - 2, MODULUS - 1]
words = st.sampled_from(EXTREMES) | st.integers(0, MODULUS - 1)


def negacyclic(a: list[int], b: list[int]) -> list[int]:
    """The product modulo X^DEGREE + 1 by definition; the second factor may be short."""
    product = [0] * DEGREE
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            place = (i + j) % DEGREE
            product[place] += x * y if i + j < DEGREE else -x * y
    return [word % MODULUS for word in product]


# --- words ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(words, words), min_size=1, max_size=50))
def test_words_add_subtract_and_multiply_as_integers_do(pairs: list[tuple[int, int]]) -> None:
    a, b = (np.array(column, dtype=np.uint64) for column in zip(*pairs, strict=True))
    total, difference = a.copy(), a.copy()
    ring.add(total, b)
    ring.subtract(difference, b)
    assert total.tolist() == [(x + y) % MODULUS for x, y in pairs]
    assert difference.tolist() == [(x - y) % MODULUS for x, y in pairs]
    assert ring.multiply(a, b).tolist() == [x * y % MODULUS for x, y in pairs]
    assert ring.dot(a, b) == sum(x * y for x, y in pairs) % MODULUS
    assert ring.centred(a).tolist() == [x if x <= MODULUS // 2 else x - MODULUS for x, _ in pairs]


def test_every_pair_of_extreme_words_multiplies_exactly() -> None:
    near = [*range(50), *range(MODULUS // 2 - 25, MODULUS // 2 + 25), *range(MODULUS - 50, MODULUS)]
    grid = np.array(near, dtype=np.uint64)
    assert ring.multiply(grid[:, None], grid[None, :]).tolist() == [[x * y % MODULUS for y in near] for x in near]


def test_large_arrays_are_worked_on_in_pieces_to_the_same_end() -> None:
    a, b = random_words(1, 5, 3, 20_001), random_words(2, 5, 3, 20_001)
    total = a.copy()
    ring.add(total, b)
    assert np.array_equal(total, (a + b) % np.uint64(MODULUS))
    ring.subtract(total, b)
    assert np.array_equal(total, a)
    x, y = a.reshape(-1), b.reshape(-1)
    assert ring.dot(x, y) == sum(map(int.__mul__, x.tolist(), y.tolist())) % MODULUS


def test_an_inner_product_of_largest_words_does_not_overflow() -> None:
    largest = np.full(100_000, MODULUS - 1, dtype=np.uint64)
    assert ring.dot(largest, largest) == 100_000
    middle = np.full(100_000, MODULUS // 2, dtype=np.uint64)
    assert ring.dot(middle, middle) == 100_000 * (MODULUS // 2) ** 2 % MODULUS
    assert ring.dot(largest[:0], largest[:0]) == 0


def test_words_are_added_only_where_they_fit() -> None:
    with pytest.raises(ValueError, match="contiguous"):
        ring.add(random_words(1, 4, 4)[:, ::2], random_words(1, 4, 2))
    with pytest.raises(ValueError, match="shape"):
        ring.add(random_words(1, 4), random_words(1, 5))
    with pytest.raises(ValueError, match="length"):
        ring.dot(random_words(1, 4), random_words(1, 5))


# --- the transform ----------------------------------------------------------------------------------------------------


def test_the_root_is_the_smallest_of_its_kind_and_the_modulus_is_what_it_must_be() -> None:
    assert MODULUS % (2 * DEGREE) == 1
    assert MODULUS < 1 << 52
    assert all(pow(base, MODULUS - 1, MODULUS) == 1 for base in (2, 3, 5, 7))
    assert pow(ROOT, DEGREE, MODULUS) == MODULUS - 1
    assert min(pow(ROOT, odd, MODULUS) for odd in range(1, 2 * DEGREE, 2)) == ROOT


@pytest.mark.parametrize("place", [0, 1, 2, 31, 32, 1000, DEGREE - 1])
def test_a_word_of_the_transform_is_the_value_at_its_power_of_the_root(place: int) -> None:
    polynomial = random_words(1, 1, DEGREE)
    point = pow(ROOT, 2 * int(f"{place:011b}"[::-1], 2) + 1, MODULUS)
    value = 0
    for coefficient in reversed(polynomial[0].tolist()):
        value = (value * point + coefficient) % MODULUS
    assert int(ntt.to_ntt(polynomial)[0, place]) == value


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 40])
def test_transforming_there_and_back_changes_nothing(count: int) -> None:
    polynomials = random_words(count, count, DEGREE)
    before = polynomials.copy()
    assert np.array_equal(ntt.from_ntt(ntt.to_ntt(polynomials)), polynomials)
    assert np.array_equal(ntt.to_ntt(ntt.from_ntt(polynomials)), polynomials)
    assert np.array_equal(polynomials, before)


@pytest.mark.parametrize("word", EXTREMES)
@pytest.mark.parametrize("pattern", [(1, 1), (1, 0), (0, 1)])
def test_polynomials_of_extreme_words_come_back(word: int, pattern: tuple[int, int]) -> None:
    polynomials = np.resize(np.array(pattern, dtype=np.uint64), (1, DEGREE)) * np.uint64(word)
    assert np.array_equal(ntt.from_ntt(ntt.to_ntt(polynomials)), polynomials)
    assert np.array_equal(ntt.to_ntt(ntt.from_ntt(polynomials)), polynomials)


def test_signed_coefficients_transform_like_the_words_that_they_are_modulo_q() -> None:
    signed = np.random.default_rng(2).integers(-(MODULUS // 2), MODULUS // 2 + 1, (3, DEGREE))
    signed[0, :4] = [-(MODULUS // 2), MODULUS // 2, -1, 0]
    assert np.array_equal(ntt.to_ntt(signed), ntt.to_ntt((signed % MODULUS).astype(np.uint64)))


def test_the_sizes_of_words_stay_below_what_the_comments_prove() -> None:
    """Unreduced words at the end of each way, for the inputs that make the largest sums that we can build."""
    workspace = ntt._Workspace()
    ones = np.full((1, DEGREE), MODULUS - 1, dtype=np.int64)
    rng = np.random.default_rng(3)
    signs = MODULUS * rng.choice([-1, 1], (16, DEGREE))
    for polynomials in (ones, signs, rng.integers(-MODULUS, MODULUS, (16, DEGREE))):
        assert np.abs(ntt._forward(polynomials.copy(), workspace) / MODULUS).max() <= 1162
        assert np.abs(ntt._backward(polynomials.copy(), workspace) / MODULUS).max() <= 1438


@given(st.lists(words, min_size=1, max_size=8), st.integers(0, 2**32))
def test_products_of_transforms_are_negacyclic_products(short: list[int], seed: int) -> None:
    a = random_words(seed, DEGREE)
    b = np.zeros(DEGREE, dtype=np.uint64)
    b[: len(short)] = short
    product = ntt.from_ntt(ring.multiply(ntt.to_ntt(a[None]), ntt.to_ntt(b[None])))
    assert product[0].tolist() == negacyclic(a.tolist(), short)


@pytest.mark.parametrize("transform", [ntt.to_ntt, ntt.from_ntt])
def test_only_polynomials_are_transformed(transform: Callable[[Polynomials], Polynomials]) -> None:
    for shape in ((DEGREE,), (1, DEGREE // 2)):
        with pytest.raises(ValueError, match="shape"):
            transform(np.zeros(shape, dtype=np.uint64))


# --- public randomness ------------------------------------------------------------------------------------------------


def test_a_public_polynomial_depends_on_the_seed_and_its_number_only() -> None:
    together = rlwe.expand(SEED, 3, 40)
    assert np.array_equal(rlwe.expand(SEED, 20, 5), together[17:22])
    assert np.array_equal(np.concatenate([rlwe.expand(SEED, j, 1) for j in range(3, 43)]), together)
    assert not np.any(rlwe.expand(SEED[::-1], 3, 40) == together)
    assert len({row.tobytes() for row in together}) == 40
    assert rlwe.expand(SEED, 0, 0).shape == (0, DEGREE)


def test_the_public_polynomials_never_change() -> None:
    assert rlwe.expand(SEED, 0, 1)[0, :3].tolist() == GOLDEN_FIRST
    assert rlwe.expand(SEED, 2**40, 1)[0, -3:].tolist() == GOLDEN_LAST


def test_public_polynomials_look_uniform() -> None:
    assert looks_uniform(rlwe.expand(SEED, 0, 256))
    assert not looks_uniform(rlwe.expand(SEED, 0, 256) >> np.uint64(1))


def test_a_rejected_candidate_is_replaced_from_its_rows_own_stream() -> None:
    """With q one word in 2^40 is rejected, so the rule is tested with a limit that rejects half."""
    limit = 1 << 51
    candidates = np.random.default_rng(6).integers(0, 1 << 52, (4, 100), dtype=np.uint64)
    candidates[2] %= np.uint64(limit)
    streams = np.random.default_rng(7).integers(0, 1 << 52, (4, 1000), dtype=np.uint64)
    wanted = [
        by_definition(row, (word for word in stream if word < limit), limit)
        for row, stream in zip(candidates.tolist(), streams.tolist(), strict=True)
    ]
    replaced = rlwe._replace_rejected(candidates, limit, lambda row, count: streams[row, :count])
    assert replaced.tolist() == wanted
    assert int(replaced.max()) < limit


def test_a_replacement_stream_of_little_use_is_read_further() -> None:
    stream = np.array([9, 9, 9, 9, 9, 1, 9, 9, 9, 2], dtype=np.uint64)
    candidates = np.array([[9, 3, 9]], dtype=np.uint64)
    assert rlwe._replace_rejected(candidates, 5, lambda _, count: stream[:count]).tolist() == [[1, 3, 2]]


def by_definition(row: list[int], replacements: object, limit: int) -> list[int]:
    return [word if word < limit else next(replacements) for word in row]  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("seed", "first", "count"), [(bytes(31), 0, 1), (SEED, -1, 1), (SEED, 1 << 48, 1), (SEED, 0, -1)]
)
def test_what_is_no_polynomials_number_is_refused(seed: bytes, first: int, count: int) -> None:
    with pytest.raises(ValueError, match="seed"):
        rlwe.expand(seed, first, count)


# --- secret randomness ------------------------------------------------------------------------------------------------


class Replay:
    """Gives prepared 64-bit words, to see what becomes of each."""

    def __init__(self, *words: int) -> None:
        self._data = b"".join(word.to_bytes(8, "little") for word in words)

    def draw(self, count: int) -> bytes:
        drawn, self._data = self._data[:count], self._data[count:]
        assert len(drawn) == count
        return drawn


def test_secret_words_are_uniform_below_the_modulus() -> None:
    assert looks_uniform(rlwe.uniform(SeededRandomness(1), 1 << 18))
    assert not np.array_equal(*rlwe.uniform(SeededRandomness(1), 2 * DEGREE).reshape(2, DEGREE))


def test_a_secret_word_that_is_not_below_the_modulus_is_drawn_again() -> None:
    source = Replay(5, MODULUS, (1 << 64) - 1, (1 << 60) + 7, MODULUS, MODULUS - 1)
    assert rlwe.uniform(source, 3).tolist() == [5, 7, MODULUS - 1]


def test_noise_is_two_centred_binomials_of_21() -> None:
    errors = rlwe.noise(SeededRandomness(2), 128)
    assert errors.shape == (128, DEGREE)
    assert errors.dtype == np.int64
    assert np.abs(errors).max() <= NOISE_BOUND
    # A sum of two differences of 21-bit counts: the coefficients of (1 + x)^84 / 2^84, centred.
    mass = np.array([math.comb(84, 42 + e) / 2**84 for e in range(-42, 43)])
    inner = slice(42 - 18, 42 + 19)  # beyond that a cell expects fewer than ten
    counts = np.bincount(errors.reshape(-1) + 42, minlength=85)
    assert surprise(counts[inner], mass[inner] * errors.size) < 4
    assert abs(errors.var() - 21) < 4 * 21 * math.sqrt(2 / errors.size)
    assert abs(errors.mean()) < 4 * math.sqrt(21 / errors.size)


@pytest.mark.parametrize(("byte", "error"), [(b"\x00", -NOISE_BOUND), (b"\xff", NOISE_BOUND)])
def test_the_largest_noise_is_the_bound_exactly(byte: bytes, error: int) -> None:
    class Constant:
        def draw(self, count: int) -> bytes:
            return byte * count

    assert np.all(rlwe.noise(Constant(), 1) == error)


# --- encryption -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 16, 35])
def test_a_sum_opens_to_the_messages_and_bounded_noise(count: int) -> None:
    randomness = SeededRandomness(3)
    total, key_sum = np.zeros((count, DEGREE), dtype=np.uint64), np.zeros(DEGREE, dtype=np.uint64)
    exact = np.zeros((count, DEGREE), dtype=np.int64)
    for site in range(5):
        message = np.random.default_rng([site, count]).integers(-(2**47), 2**47, (count, DEGREE))
        key = rlwe.uniform(randomness, DEGREE)
        ring.add(total, rlwe.encrypt(message, key, SEED, 11, randomness))
        ring.add(key_sum, key)
        exact += message
    noise = rlwe.open_sum(total, key_sum, SEED, 11) - exact
    assert 0 < np.abs(noise).max() <= 5 * NOISE_BOUND


@pytest.mark.parametrize("message", [MODULUS // 2 - NOISE_BOUND, -(MODULUS // 2) + NOISE_BOUND, 0, -1])
def test_the_largest_messages_open_with_their_sign(message: int) -> None:
    key = random_words(4, DEGREE)
    sent = rlwe.encrypt(np.full((2, DEGREE), message), key, SEED, 0, SeededRandomness(5))
    assert np.abs(rlwe.open_sum(sent, key, SEED, 0) - message).max() <= NOISE_BOUND


@pytest.mark.parametrize("coefficient", [MODULUS // 2, MODULUS // 2 + 1, MODULUS // 2 - 1, MODULUS // 2 + 2])
def test_the_middle_of_the_range_is_centred_exactly(coefficient: int) -> None:
    total = ntt.to_ntt(np.full((1, DEGREE), coefficient, dtype=np.uint64))
    wanted = coefficient if coefficient <= MODULUS // 2 else coefficient - MODULUS
    assert np.all(rlwe.open_sum(total, np.zeros(DEGREE, dtype=np.uint64), SEED, 0) == wanted)


def test_encrypting_piece_by_piece_uses_the_same_public_polynomials() -> None:
    key, message = random_words(6, DEGREE), np.random.default_rng(6).integers(-(2**40), 2**40, (20, DEGREE))
    randomness = SeededRandomness(7)
    pieces = [rlwe.encrypt(message[i : i + 7], key, SEED, i, randomness) for i in range(0, 20, 7)]
    opened = rlwe.open_sum(np.concatenate(pieces), key, SEED, 0)
    assert np.abs(opened - message).max() <= NOISE_BOUND


def test_encrypting_changes_neither_the_message_nor_the_key() -> None:
    key, message = random_words(8, DEGREE), np.random.default_rng(8).integers(-9, 9, (1, DEGREE))
    before = key.tobytes(), message.tobytes()
    rlwe.encrypt(message, key, SEED, 0, SeededRandomness(9))
    assert (key.tobytes(), message.tobytes()) == before


def test_one_update_is_never_encrypted_to_the_same_words_twice() -> None:
    randomness, message, key = SeededRandomness(10), np.zeros((1, DEGREE), dtype=np.int64), random_words(9, DEGREE)
    first, second = (rlwe.encrypt(message, key, SEED, 0, randomness) for _ in range(2))
    assert not np.array_equal(first, second)


GOLDEN_FIRST = [4302572441604338, 2021853348164521, 4425855056371184]
GOLDEN_LAST = [2302424035827796, 3172042663561357, 2101282731431591]
