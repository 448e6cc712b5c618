"""SEAL and we have the same words: transforms, sums, keys and ciphertexts of either open with the other."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

import quorate
from quorate.aggregation import ntt, ring, rlwe, seal_reference
from quorate.aggregation.packing import Packing
from quorate.aggregation.plain import WEIGHT_ONE
from quorate.aggregation.ring import DEGREE, MODULUS
from quorate.aggregation.rlwe import NOISE_BOUND
from quorate.aggregation.seal_reference import Reference, SelfTestError
from tests.protos.secagg.kit import SeededRandomness, random_words

SEED = bytes(range(32))


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference()


@pytest.mark.parametrize("seed", range(5))
def test_the_transforms_equal_those_of_seal_word_for_word(reference: Reference, seed: int) -> None:
    polynomial = random_words(seed, DEGREE)
    assert np.array_equal(ntt.to_ntt(polynomial[None])[0], reference.to_ntt(polynomial))
    assert np.array_equal(ntt.from_ntt(polynomial[None])[0], reference.from_ntt(polynomial))


@pytest.mark.parametrize("word", [1, MODULUS // 2, MODULUS // 2 + 1, MODULUS - 1])
def test_extreme_words_transform_as_in_seal(reference: Reference, word: int) -> None:
    polynomial = np.full(DEGREE, word, dtype=np.uint64)
    assert np.array_equal(ntt.to_ntt(polynomial[None])[0], reference.to_ntt(polynomial))
    assert np.array_equal(ntt.from_ntt(polynomial[None])[0], reference.from_ntt(polynomial))


def test_addition_equals_that_of_seal(reference: Reference) -> None:
    a, b, public = random_words(1, DEGREE), random_words(2, DEGREE), random_words(3, DEGREE)
    by_seal = reference.add(a, b, public)
    ring.add(a, b)
    assert np.array_equal(a, by_seal)


def test_seals_own_key_opens_a_sum_of_our_one_time_ciphertexts(reference: Reference) -> None:
    packing, randomness = Packing(1.0, 4), SeededRandomness(1)
    public = rlwe.expand(SEED, 5, 1)[0]
    key_sum = np.zeros(DEGREE, dtype=np.uint64)
    total = np.zeros((1, DEGREE), dtype=np.uint64)
    wanted = np.zeros(packing.lanes * DEGREE, dtype=np.int64)
    for site in range(4):
        update = np.random.default_rng(site).uniform(-1, 1, packing.lanes * DEGREE)
        integers, _ = packing.quantise(update, WEIGHT_ONE // 4)
        key = rlwe.uniform(randomness, DEGREE)
        words = rlwe.encrypt(packing.combine(integers), key, SEED, 5, randomness)
        total[0] = reference.add(total[0], words[0], public)
        ring.add(key_sum, key)
        wanted += integers
    opened = reference.decrypt(total[0], public, key_sum)
    assert np.array_equal(packing.decode(opened[None], wanted.size), wanted)
    assert np.array_equal(opened, rlwe.open_sum(total, key_sum, SEED, 5)[0])


def test_we_open_what_seal_encrypts_under_our_key(reference: Reference) -> None:
    message = random_words(4, DEGREE).astype(np.int64) >> 2
    key = random_words(5, DEGREE)
    c0, c1 = reference.encrypt(message, key)
    ring.subtract(c0, ring.multiply(c1, key))
    error = ring.centred(ntt.from_ntt(c0[None])[0]) - message
    assert 0 < np.abs(error).max() <= NOISE_BOUND


def test_seal_does_not_open_with_another_key(reference: Reference) -> None:
    words = rlwe.encrypt(np.zeros((1, DEGREE), np.int64), random_words(6, DEGREE), SEED, 0, SeededRandomness(2))
    opened = reference.decrypt(words[0], rlwe.expand(SEED, 0, 1)[0], random_words(7, DEGREE))
    assert np.abs(opened).max() > MODULUS // 4


def test_seals_encoder_makes_of_the_slots_exactly_our_coefficients(reference: Reference) -> None:
    coefficients = np.random.default_rng(8).integers(-(2**48), 2**48, DEGREE)
    assert np.array_equal(reference.encode(coefficients), ntt.to_ntt(coefficients[None])[0])


@pytest.mark.parametrize("bits", [30, 49, 50])
def test_seals_decoder_opens_to_what_rounding_makes_exact(reference: Reference, bits: int) -> None:
    packing = Packing(1.0, 16)
    lanes = np.random.default_rng(9).integers(-(2**bits), 2**bits, DEGREE) >> packing.delta_bits
    noisy = (lanes << packing.delta_bits) + 16 * NOISE_BOUND
    decoded = np.rint(reference.decode(ntt.to_ntt(noisy[None])[0])).astype(np.int64)
    assert np.array_equal(packing.round_noise(decoded), lanes)


def test_the_self_test_passes_here() -> None:
    seal_reference.self_test()


def test_seal_refuses_words_that_are_not_below_the_modulus(reference: Reference) -> None:
    with pytest.raises(SelfTestError):
        reference.to_ntt(np.full(DEGREE, MODULUS, dtype=np.uint64))


def test_no_other_module_imports_tenseal() -> None:
    root = Path(quorate.__file__).parents[2]
    importers = set()
    for path in (p for folder in ("protos", "server", "client") for p in (root / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "tenseal" for name in names):
                importers.add(path.name)
    assert importers == {"seal_reference.py"}
