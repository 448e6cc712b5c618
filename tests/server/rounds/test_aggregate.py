"""The adder: exact, of one accumulator's size, and unmoved by what it refuses."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorate.aggregation import ring
from quorate.aggregation import words as packed
from quorate.aggregation.plain import MAX_TOTAL_WEIGHT, WEIGHT_ONE
from quorate.errors import ContributionError, FrameError
from quorate.rounds.instruction import StudyContribution
from quorate_server.rounds.aggregate import BLOCK_BYTES, BLOCK_POLYNOMIALS, MAX_UNREDUCED, Adder, SecureAdder
from tests.patience import PATIENCE_S
from tests.server.study_kit import words

DIGEST = bytes(32)


def contribution(**changes: Any) -> StudyContribution:
    return StudyContribution(**{"model_digest": DIGEST, "dimension": 3, "weight": 5, "extras": (1, 2)} | changes)


def add(adder: Adder, what: StudyContribution, update: bytes | None) -> None:
    adder.admit(what, len(update) if update is not None else 0)
    adder.fold(what, io.BytesIO(update) if update is not None else None)


def state(adder: Adder) -> tuple[bytes, int, tuple[int, ...] | None, int]:
    return b"".join(adder.blocks()), adder.weight, adder.extras, adder.contributors


@given(st.permutations([0, 1, 2, 3]))
def test_the_sum_does_not_depend_on_the_order_of_arrival(order: Sequence[int]) -> None:
    updates = [words(1, -2, 2**31 - 1), words(0, 5, 1), words(-7, 2**31, 2**31 - 1), words(9, 9, 9)]
    adder = Adder(3, 4)
    for number in order:
        add(adder, contribution(weight=number + 1, extras=(number, -number)), updates[number])
    assert state(adder) == (words(3, 12 + 2**31, 2**32 + 8), 10, (6, -6), 4)


def test_an_update_of_many_blocks_is_added_whole() -> None:
    dimension = BLOCK_BYTES // 4 * 2 + 3
    update = np.arange(dimension, dtype="<u4")
    adder = Adder(dimension, 2)
    for _ in range(2):
        add(adder, contribution(dimension=dimension), update.tobytes())
    assert np.array_equal(np.frombuffer(b"".join(adder.blocks()), dtype="<u4"), update * 2)


def test_counts_alone_are_added_without_an_update() -> None:
    adder = Adder(0, 2)
    for extras in ((2**60, -1), (1, 1)):
        add(adder, StudyContribution(dimension=9, extras=extras), None)
    assert state(adder) == (b"", 0, (2**60 + 1, 0), 2)


@pytest.mark.parametrize(
    ("what", "update_bytes"),
    [
        (contribution(dimension=4), 12),
        (contribution(dimension=4), 16),
        (contribution(), 11),
        (contribution(), 16),
        (contribution(), 0),
        (contribution(weight=0), 12),
        (contribution(weight=WEIGHT_ONE + 1), 12),
        (contribution(weight=2**64 - 1), 12),
        (contribution(extras=(1,)), 12),
        (contribution(extras=()), 12),
        (contribution(extras=(1, 2, 3)), 12),
        (contribution(extras=(2**62, 0)), 12),
        (contribution(extras=(0, -(2**62))), 12),
    ],
    ids=[
        "another dimension", "a larger model", "short", "long", "no update", "no weight", "too heavy", "far too heavy",
        "fewer counts", "no counts", "more counts", "a count that could overflow", "a negative one",
    ],
)  # fmt: skip
def test_a_contribution_of_another_form_is_refused_and_nothing_changes(
    what: StudyContribution, update_bytes: int
) -> None:
    adder = Adder(3, 4)
    add(adder, contribution(), words(1, 2, 3))
    before = state(adder)
    with pytest.raises(ContributionError):
        adder.admit(what, update_bytes)
    assert state(adder) == before
    add(adder, contribution(), words(1, 2, 3))
    assert state(adder) == (words(2, 4, 6), 10, (2, 4), 2)


def test_weights_never_add_up_to_more_than_the_words_can_hold() -> None:
    adder = Adder(1, 4)
    one = contribution(dimension=1, weight=WEIGHT_ONE)
    for _ in range(2):
        add(adder, one, words(1))
    assert adder.weight == MAX_TOTAL_WEIGHT
    with pytest.raises(ContributionError):
        adder.admit(contribution(dimension=1, weight=1), 4)
    assert state(adder) == (words(2), MAX_TOTAL_WEIGHT, (2, 4), 2)


@pytest.mark.parametrize("length", [0, 4, 11, 13, 16])
def test_an_update_whose_file_is_not_as_long_as_it_was_said_changes_nothing(length: int) -> None:
    adder = Adder(3, 4)
    add(adder, contribution(), words(1, 2, 3))
    before = state(adder)
    adder.admit(contribution(), 12)
    with pytest.raises(ContributionError):
        adder.fold(contribution(), io.BytesIO(b"\x01" * length))
    assert state(adder) == before


_MEMORY = """
import resource, sys
from pathlib import Path
from quorate.rounds.instruction import StudyContribution
from quorate_server.rounds.aggregate import Adder

update = Path(sys.argv[1])
dimension = update.stat().st_size // 4
what = StudyContribution(bytes(32), dimension, 1, ())
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
adder = Adder(dimension, 16)
for _ in range(8):
    adder.admit(what, dimension * 4)
    with update.open("rb") as file:
        adder.fold(what, file)
total = sum(len(block) for block in adder.blocks())
assert total == dimension * 4
print((peak() - before) / (dimension * 4))
"""


def test_eight_updates_take_the_memory_of_one_accumulator(tmp_path: Path) -> None:
    update = tmp_path / "update"
    update.write_bytes(bytes(48 * 1024 * 1024))
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY, str(update)], capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1.3


# --- ciphertexts ---


def random_polynomials(seed: int, count: int) -> ring.Polynomials:
    return np.random.default_rng(seed).integers(0, ring.MODULUS, (count, ring.DEGREE), dtype=np.uint64)


def sum_of(adder: SecureAdder) -> ring.Polynomials:
    return packed.unpack(b"".join(adder.blocks()))


@pytest.mark.parametrize("count", [0, 1, BLOCK_POLYNOMIALS, BLOCK_POLYNOMIALS + 1, 2 * BLOCK_POLYNOMIALS + 3])
def test_ciphertexts_are_added_exactly_modulo_q_whatever_their_length(count: int) -> None:
    updates = [random_polynomials(seed, count) for seed in range(5)] + [
        np.full((count, ring.DEGREE), ring.MODULUS - 1, np.uint64)
    ]
    adder = SecureAdder(count)
    for update in updates:
        adder.fold(io.BytesIO(packed.pack(update)))
    exact = sum(update.astype(object) for update in updates) % ring.MODULUS
    assert np.array_equal(sum_of(adder).astype(object), exact)
    assert sum(len(block) for block in adder.blocks()) == count * packed.POLYNOMIAL_BYTES


@pytest.mark.parametrize("updates", [MAX_UNREDUCED, MAX_UNREDUCED + 1, 2 * MAX_UNREDUCED + 1])
def test_the_largest_words_of_more_sites_than_fit_unreduced_are_added_exactly(updates: int) -> None:
    largest = io.BytesIO(packed.pack(np.full((1, ring.DEGREE), ring.MODULUS - 1, np.uint64)))
    adder = SecureAdder(1)
    for _ in range(updates):
        largest.seek(0)
        adder.fold(largest)
    assert set(sum_of(adder).reshape(-1).tolist()) == {-updates % ring.MODULUS}


def test_a_ciphertext_that_is_too_short_is_refused_and_leaves_the_sum_as_it_was() -> None:
    """One polynomial in the place of a block would be added to every polynomial of it."""
    count = 2 * BLOCK_POLYNOMIALS
    first = random_polynomials(1, count)
    adder = SecureAdder(count)
    adder.fold(io.BytesIO(packed.pack(first)))
    for length in (0, 1, BLOCK_POLYNOMIALS + 1, count - 1):
        with pytest.raises(FrameError):
            adder.fold(io.BytesIO(packed.pack(random_polynomials(2, length))))
    assert np.array_equal(sum_of(adder), first)


def test_the_sum_travels_in_blocks_that_are_the_packed_words_of_the_whole() -> None:
    update = random_polynomials(1, BLOCK_POLYNOMIALS + 2)
    adder = SecureAdder(len(update))
    adder.fold(io.BytesIO(packed.pack(update)))
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
    adder = SecureAdder(count)
    adder.fold(io.BytesIO(packed.pack(first)))
    with pytest.raises(FrameError):
        adder.fold(io.BytesIO(bad_word(packed.pack(bad), place)))
    assert np.array_equal(sum_of(adder), first)
    adder.fold(io.BytesIO(packed.pack(second)))
    assert np.array_equal(sum_of(adder).astype(object), (first.astype(object) + second) % ring.MODULUS)


_SECURE_MEMORY = """
import resource, sys
from pathlib import Path
from quorate.aggregation import words
from quorate_server.rounds.aggregate import SecureAdder

update = Path(sys.argv[1])
polynomials = update.stat().st_size // words.POLYNOMIAL_BYTES
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
adder = SecureAdder(polynomials)
for _ in range(8):
    with update.open("rb") as file:
        adder.fold(file)
assert sum(len(block) for block in adder.blocks()) == polynomials * words.POLYNOMIAL_BYTES
print((peak() - before) / (polynomials * 2048 * 8))
"""


def test_eight_ciphertexts_take_the_memory_of_one_accumulator(tmp_path: Path) -> None:
    update = tmp_path / "update"
    update.write_bytes(packed.pack(random_polynomials(1, BLOCK_POLYNOMIALS)) * 48)
    done = subprocess.run(
        [sys.executable, "-c", _SECURE_MEMORY, str(update)],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1.3
