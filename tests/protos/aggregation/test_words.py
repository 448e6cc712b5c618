"""Words on the wire: what was packed comes back, and nothing else gets in."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorate.aggregation import ring, words
from quorate.aggregation.ring import DEGREE, MODULUS, Polynomials
from quorate.aggregation.words import POLYNOMIAL_BYTES, Words, pack_words, packed_bytes, unpack_words
from quorate.errors import FrameError
from tests.protos.secagg.kit import random_words


def packed_by_definition(polynomials: Polynomials) -> bytes:
    """Word i is the bits 52 i .. 52 i + 51, in the plainest way to say so."""
    rows = (sum(word << (52 * i) for i, word in enumerate(row)) for row in polynomials.tolist())
    return b"".join(row.to_bytes(POLYNOMIAL_BYTES, "little") for row in rows)


def row_by_definition(row: Words) -> bytes:
    return sum(word << (52 * i) for i, word in enumerate(row.tolist())).to_bytes(-(-52 * len(row) // 8), "little")


@pytest.mark.parametrize("count", [0, 1, 2, 65])
def test_words_survive_the_wire(count: int) -> None:
    polynomials = random_words(count, count, DEGREE)
    data = words.pack(polynomials)
    assert len(data) == count * 13_312
    for received in (data, memoryview(data), memoryview(bytearray(data))):
        assert np.array_equal(words.unpack(received), polynomials)


@pytest.mark.parametrize("word", [0, 1, (1 << 51) - 1, 1 << 51, MODULUS - 1])
def test_extreme_words_survive_beside_others(word: int) -> None:
    polynomials = random_words(3, 2, DEGREE)
    polynomials[0, ::3] = word
    polynomials[1, :] = word
    assert np.array_equal(words.unpack(words.pack(polynomials)), polynomials)


def test_the_bytes_are_the_bits_of_the_words_in_little_endian_order() -> None:
    polynomials = random_words(4, 3, DEGREE)
    assert words.pack(polynomials) == packed_by_definition(polynomials)


def test_the_bytes_never_change() -> None:
    data = words.pack((np.arange(2 * DEGREE, dtype=np.uint64) * np.uint64(1_099_511_627_791)).reshape(2, DEGREE))
    assert hashlib.sha256(data).hexdigest() == GOLDEN


def test_what_is_not_contiguous_is_packed_all_the_same() -> None:
    polynomials = random_words(5, 4, 2 * DEGREE)[::2, ::2]
    assert words.pack(polynomials) == words.pack(polynomials.copy())


@pytest.mark.parametrize("place", [0, 1, DEGREE - 2, DEGREE - 1])
@pytest.mark.parametrize("word", [MODULUS, MODULUS + 1, (1 << 52) - 1])
def test_a_word_that_is_not_below_the_modulus_is_refused(place: int, word: int) -> None:
    polynomials = random_words(6, 2, DEGREE)
    polynomials[1, place] = word
    with pytest.raises(FrameError):
        words.unpack(words.pack(polynomials))


@pytest.mark.parametrize("size", [1, 13, POLYNOMIAL_BYTES - 1, POLYNOMIAL_BYTES + 1, 2 * POLYNOMIAL_BYTES - 8])
def test_a_wrong_length_is_refused(size: int) -> None:
    with pytest.raises(FrameError):
        words.unpack(bytes(size))


@given(st.binary(max_size=64) | st.binary(min_size=13, max_size=13).map(lambda pair: pair * (DEGREE // 2)))
def test_whatever_bytes_come_they_are_words_or_a_bad_frame(data: bytes) -> None:
    try:
        polynomials = words.unpack(data)
    except FrameError:
        return
    assert np.all(polynomials < MODULUS)
    assert words.pack(polynomials) == data


@pytest.mark.parametrize("shape", [(DEGREE,), (1, DEGREE - 1), (1, 1, DEGREE)])
def test_only_polynomials_are_packed(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="shape"):
        words.pack(np.zeros(shape, dtype=np.uint64))


# --- any number of words ---


@pytest.mark.parametrize("count", [*range(8), 523, 2047, 2571, 2572])
def test_any_number_of_words_survives_in_as_many_bytes_as_their_bits_fill(count: int) -> None:
    row = random_words(count, count)
    row[-1:] = MODULUS - 1
    data = pack_words(row)
    assert data == row_by_definition(row)
    assert len(data) == packed_bytes(count) == -(-52 * count // 8)
    for received in (data, memoryview(data), memoryview(bytearray(data))):
        arrived = unpack_words(received)
        assert np.array_equal(arrived, row)
        assert arrived.dtype == np.uint64


@given(st.lists(st.integers(0, MODULUS - 1), max_size=60))
def test_whatever_words_are_packed_come_back(values: list[int]) -> None:
    row = np.array(values, np.uint64)
    assert unpack_words(pack_words(row)).tolist() == values
    assert pack_words(np.repeat(row, 2)[::2]) == pack_words(row), "what is not contiguous is packed all the same"


def test_a_row_is_packed_as_a_polynomial_is() -> None:
    polynomials = random_words(8, 2, DEGREE)
    assert pack_words(polynomials.reshape(-1)) == words.pack(polynomials)


def test_what_was_unpacked_can_be_added_to() -> None:
    row = unpack_words(pack_words(np.array([1, 2, 3], np.uint64)))
    ring.add(row, row.copy())
    assert row.tolist() == [2, 4, 6]


def test_no_two_numbers_of_words_have_one_length_and_other_lengths_are_refused() -> None:
    lengths = {packed_bytes(count): count for count in range(41)}
    assert len(lengths) == 41
    for size in range(packed_bytes(40) + 1):
        if size in lengths:
            assert len(unpack_words(bytes(size))) == lengths[size]
        else:
            with pytest.raises(FrameError, match="whole words"):
                unpack_words(bytes(size))


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("word", [MODULUS, MODULUS + 1, (1 << 52) - 1])
def test_a_word_that_is_not_below_the_modulus_is_refused_wherever_it_is(count: int, word: int) -> None:
    for place in range(count):
        row = random_words(9, count)
        row[place] = word
        with pytest.raises(FrameError, match="below the modulus"):
            unpack_words(row_by_definition(row))


@pytest.mark.parametrize("count", [1, 3, 523])
@pytest.mark.parametrize("bit", [4, 5, 6, 7])
def test_bits_behind_the_last_word_are_refused(count: int, bit: int) -> None:
    """They would be a second form of the same words: what is signed and hashed has one."""
    data = bytearray(pack_words(random_words(10, count)))
    data[-1] |= 1 << bit
    with pytest.raises(FrameError, match="zeros behind"):
        unpack_words(bytes(data))


@given(st.binary(max_size=80))
def test_whatever_bytes_come_they_are_a_row_of_words_or_a_bad_frame(data: bytes) -> None:
    try:
        row = unpack_words(data)
    except FrameError:
        return
    assert np.all(row < MODULUS)
    assert pack_words(row) == data


GOLDEN = "da41ce6328f1472d3a587990592d2cd82970aad534cbbbe2e2d74c99e1923159"
