"""The adder: exact, of one accumulator's size, and unmoved by what it refuses."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorate.aggregation import ring
from quorate.aggregation import words as packed
from quorate.errors import ContributionError, FrameError
from quorate_server.rounds.aggregate import (
    BLOCK_BYTES,
    BLOCK_POLYNOMIALS,
    MAX_UNREDUCED,
    Adder,
    CipherAdder,
    PlainAdder,
)
from tests.patience import PATIENCE_S
from tests.server.study_kit import a_study

STUDY = a_study()


def words(*values: int) -> bytes:
    return np.array(values, dtype=np.int64).astype(np.uint32).astype("<u4").tobytes()


def an_adder(dimension: int, *updates: bytes) -> PlainAdder:
    adder = PlainAdder(dimension, STUDY)
    for update in updates:
        adder.fold(partial(io.BytesIO, update))
    return adder


def total_of(adder: Adder) -> bytes:
    return b"".join(adder.blocks())


@given(st.permutations([0, 1, 2, 3]))
def test_the_sum_does_not_depend_on_the_order_of_arrival(order: Sequence[int]) -> None:
    updates = [words(1, -2, 2**31 - 1), words(0, 5, 1), words(-7, 2**31, 2**31 - 1), words(9, 9, 9)]
    adder = an_adder(3, *(updates[number] for number in order))
    assert total_of(adder) == words(3, 12 + 2**31, 2**32 + 8)


def test_an_update_of_many_blocks_is_added_whole() -> None:
    dimension = BLOCK_BYTES // 4 * 2 + 3
    update = np.arange(dimension, dtype="<u4")
    adder = an_adder(dimension, update.tobytes(), update.tobytes())
    assert np.array_equal(np.frombuffer(total_of(adder), dtype="<u4"), update * 2)


@pytest.mark.parametrize("length", [0, 4, 11, 13, 16])
def test_an_update_whose_file_is_not_as_long_as_it_was_said_changes_nothing(length: int) -> None:
    adder = an_adder(3, words(1, 2, 3))
    with pytest.raises(ContributionError):
        adder.fold(partial(io.BytesIO, b"\x01" * length))
    assert total_of(adder) == words(1, 2, 3)


# --- ciphertexts ---


def random_polynomials(seed: int, count: int) -> ring.Polynomials:
    return np.random.default_rng(seed).integers(0, ring.MODULUS, (count, ring.DEGREE), dtype=np.uint64)


def sum_of(adder: CipherAdder) -> ring.Polynomials:
    return packed.unpack(b"".join(adder.blocks()))


@pytest.mark.parametrize("count", [0, 1, BLOCK_POLYNOMIALS, BLOCK_POLYNOMIALS + 1, 2 * BLOCK_POLYNOMIALS + 3])
def test_ciphertexts_are_added_exactly_modulo_q_whatever_their_length(count: int) -> None:
    updates = [random_polynomials(seed, count) for seed in range(5)] + [
        np.full((count, ring.DEGREE), ring.MODULUS - 1, np.uint64)
    ]
    adder = CipherAdder(count)
    for update in updates:
        adder.fold(partial(io.BytesIO, packed.pack(update)))
    exact = sum(update.astype(object) for update in updates) % ring.MODULUS
    assert np.array_equal(sum_of(adder).astype(object), exact)
    assert sum(len(block) for block in adder.blocks()) == count * packed.POLYNOMIAL_BYTES


@pytest.mark.parametrize("updates", [MAX_UNREDUCED, MAX_UNREDUCED + 1, 2 * MAX_UNREDUCED + 1])
def test_the_largest_words_of_more_sites_than_fit_unreduced_are_added_exactly(updates: int) -> None:
    largest = packed.pack(np.full((1, ring.DEGREE), ring.MODULUS - 1, np.uint64))
    adder = CipherAdder(1)
    for _ in range(updates):
        adder.fold(partial(io.BytesIO, largest))
    assert set(sum_of(adder).reshape(-1).tolist()) == {-updates % ring.MODULUS}


def test_a_ciphertext_that_is_too_short_is_refused_and_leaves_the_sum_as_it_was() -> None:
    """One polynomial in the place of a block would be added to every polynomial of it."""
    count = 2 * BLOCK_POLYNOMIALS
    first = random_polynomials(1, count)
    adder = CipherAdder(count)
    adder.fold(partial(io.BytesIO, packed.pack(first)))
    for length in (0, 1, BLOCK_POLYNOMIALS + 1, count - 1):
        with pytest.raises(FrameError):
            adder.fold(partial(io.BytesIO, packed.pack(random_polynomials(2, length))))
    assert np.array_equal(sum_of(adder), first)


def test_the_sum_travels_in_blocks_that_are_the_packed_words_of_the_whole() -> None:
    update = random_polynomials(1, BLOCK_POLYNOMIALS + 2)
    adder = CipherAdder(len(update))
    adder.fold(partial(io.BytesIO, packed.pack(update)))
    blocks = list(adder.blocks())
    assert [len(block) // packed.POLYNOMIAL_BYTES for block in blocks] == [BLOCK_POLYNOMIALS, 2]
    assert b"".join(blocks) == packed.pack(update) == b"".join(adder.blocks())


def bad_word(data: bytes, polynomial: int) -> bytes:
    """The last word of a polynomial becomes the largest of 52 bits."""
    end = (polynomial + 1) * packed.POLYNOMIAL_BYTES
    return data[: end - 7] + b"\xff" * 7 + data[end:]


@pytest.mark.parametrize("place", [0, BLOCK_POLYNOMIALS - 1, BLOCK_POLYNOMIALS, 2 * BLOCK_POLYNOMIALS + 1])
def test_a_word_that_is_not_below_q_is_refused_and_leaves_the_sum_as_it_was(place: int) -> None:
    count = 2 * BLOCK_POLYNOMIALS + 2
    first, second, bad = (random_polynomials(seed, count) for seed in range(3))
    adder = CipherAdder(count)
    adder.fold(partial(io.BytesIO, packed.pack(first)))
    with pytest.raises(FrameError):
        adder.fold(partial(io.BytesIO, bad_word(packed.pack(bad), place)))
    assert np.array_equal(sum_of(adder), first)
    adder.fold(partial(io.BytesIO, packed.pack(second)))
    assert np.array_equal(sum_of(adder).astype(object), (first.astype(object) + second) % ring.MODULUS)


_MEMORY = """
import resource, sys
from functools import partial
from pathlib import Path
from quorate_server.rounds.aggregate import CipherAdder, PlainAdder
from tests.server.study_kit import a_study

update, kind = Path(sys.argv[1]), sys.argv[2]
size = update.stat().st_size
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
adder = PlainAdder(size // 4, a_study()) if kind == "plain" else CipherAdder(size // (2048 * 52 // 8))
for _ in range(8):
    adder.fold(partial(update.open, "rb"))
assert sum(len(block) for block in adder.blocks()) == size
print((peak() - before) / (size if kind == "plain" else size * 64 / 52))
"""


@pytest.mark.parametrize("kind", ["plain", "encrypted"])
def test_eight_updates_take_the_memory_of_one_accumulator(tmp_path: Path, kind: str) -> None:
    update = tmp_path / "update"
    update.write_bytes(packed.pack(random_polynomials(1, BLOCK_POLYNOMIALS)) * 48)
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY, str(update), kind],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1.3
