"""Packing: sums of integers are exact for whatever honest sites send, and a sum that does not open is refused."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.aggregation import ntt, ring, rlwe, words
from quorate.aggregation.packing import MAX_SITES, Packing
from quorate.aggregation.plain import WEIGHT_ONE, Floats, weight_of
from quorate.aggregation.ring import DEGREE, Integers, Polynomials
from quorate.aggregation.rlwe import NOISE_BOUND
from quorate.errors import ContributionError
from tests.protos.secagg.kit import SeededRandomness, looks_uniform, random_words

SEED = bytes(range(32))
PERMITTED = [
    (sites, lanes) for lanes in (1, 2, 3) for sites in (1, 2, 3, 4, 16, 17, 64, 256, 1024) if lanes < 3 or sites <= 16
]


def summed(packing: Packing, updates: Sequence[Floats], weights: list[int], seed: int) -> tuple[Integers, Integers]:
    """The sum as it travels - encrypted, packed, added, opened, decoded - and as the integers add up."""
    randomness = SeededRandomness(seed)
    shape = (packing.polynomials(updates[0].size), DEGREE)
    total, key_sum = np.zeros(shape, dtype=np.uint64), np.zeros(DEGREE, dtype=np.uint64)
    exact = np.zeros(updates[0].size, dtype=np.int64)
    for update, weight in zip(updates, weights, strict=True):
        key = rlwe.uniform(randomness, DEGREE)
        coefficients, _ = packing.encode(update, weight)
        sent = words.pack(rlwe.encrypt(coefficients, key, SEED, 7, randomness))
        ring.add(total, words.unpack(sent))
        ring.add(key_sum, key)
        exact += np.rint(
            np.clip(update.astype(np.float64), -packing.bound, packing.bound) * (weight / WEIGHT_ONE / packing.step)
        ).astype(np.int64)
    return packing.decode(rlwe.open_sum(total, key_sum, SEED, 7), exact.size), exact


@pytest.mark.parametrize(("sites", "lanes"), [(1, 1), (2, 2), (3, 2), (5, 1), (16, 3), (17, 2), (40, 2)])
@pytest.mark.parametrize("dimension", [1, DEGREE * 6, DEGREE * 6 + 17])
def test_the_sum_of_encrypted_updates_is_exactly_the_sum_of_the_integers(
    sites: int, lanes: int, dimension: int
) -> None:
    rng = np.random.default_rng([sites, lanes, dimension])
    records = rng.integers(1, 10_000, sites).tolist()
    weights = [weight_of(count, sum(records)) for count in records]
    packing = Packing(0.5, sites, lanes)
    updates = [rng.normal(0, 0.3, dimension).astype(np.float32) for _ in range(sites)]
    sums, exact = summed(packing, updates, weights, sites)
    assert np.array_equal(sums, exact)

    wanted = sum(np.clip(u.astype(np.float64), -0.5, 0.5) * w for u, w in zip(updates, weights, strict=True))
    error = np.abs(packing.average(sums, sum(weights)) - wanted / sum(weights)).max()
    assert error <= sites * packing.step / 2 * WEIGHT_ONE / sum(weights) * (1 + 1e-9)


@pytest.mark.parametrize(("sites", "lanes"), PERMITTED)
@pytest.mark.parametrize(
    "pattern", [(1.0, 1.0, 1.0), (-1.0, -1.0, -1.0), (1.0, -1.0, 1.0), (-1.0, 1.0, -1.0), (0.0, -1.0, 1.0)]
)
def test_no_lane_overflows_when_every_site_sends_extreme_values(
    sites: int, lanes: int, pattern: tuple[float, float, float]
) -> None:
    """All sites at the bound, with weights that round up as far as a round allows."""
    packing = Packing(3.0, sites, lanes)
    integers = np.repeat(3.0 * np.array(pattern[:lanes]), DEGREE)
    weights = [-(-WEIGHT_ONE // sites)] * sites
    coefficients = np.sum([packing.encode(integers, weight)[0] for weight in weights], axis=0)
    exact = np.sum([packing.quantise(integers, weight)[0] for weight in weights], axis=0)
    for noise in (-sites * NOISE_BOUND, 0, sites * NOISE_BOUND):
        assert np.array_equal(packing.decode(coefficients + noise, exact.size), exact)
    assert packing.average(exact, sum(weights)) == pytest.approx(integers, abs=sites * packing.step)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_lanes_come_apart_as_they_were_put_together(data: st.DataObject) -> None:
    sites, lanes = data.draw(st.sampled_from(PERMITTED))
    packing = Packing(1.0, sites, lanes)
    largest = (1 << (packing.lane_bits - 1)) - 1
    value = st.sampled_from([-largest, -1, 0, 1, largest]) | st.integers(-largest, largest)
    integers = np.resize(np.array(data.draw(st.lists(value, min_size=1, max_size=40))), lanes * DEGREE)
    limit = sites * NOISE_BOUND
    noise = np.resize(np.array(data.draw(st.lists(st.integers(-limit, limit), min_size=1, max_size=20))), DEGREE)
    coefficients = packing.combine(integers)
    assert np.abs(coefficients).max() < ring.MODULUS // 2 - limit
    assert np.array_equal(packing.decode(coefficients + noise, integers.size), integers)


def test_values_sit_in_runs_of_a_polynomials_length_lane_by_lane() -> None:
    packing = Packing(1.0, 2, 2)
    coefficients = packing.combine(np.arange(5 * DEGREE))
    assert coefficients.shape == (3, DEGREE)
    lanes = coefficients >> packing.delta_bits
    assert lanes[0, 3] == 3 + ((DEGREE + 3) << packing.lane_bits)
    assert lanes[1, 3] == 2 * DEGREE + 3 + ((3 * DEGREE + 3) << packing.lane_bits)
    assert lanes[2, 3] == 4 * DEGREE + 3


@pytest.mark.parametrize("lanes", [1, 2, 3])
@pytest.mark.parametrize("dimension", [1, 3 * DEGREE - 1, 3 * DEGREE, 3 * DEGREE + 1, 40 * DEGREE + 5])
def test_pieces_encode_to_what_the_whole_encodes_to(lanes: int, dimension: int) -> None:
    packing = Packing(1.0, 3, lanes)
    update = np.random.default_rng(dimension).uniform(-1.1, 1.1, dimension)
    whole, clipped = packing.encode(update, 12345)
    piece = 2 * lanes * DEGREE
    parts = [packing.encode(update[start : start + piece], 12345) for start in range(0, dimension, piece)]
    assert np.array_equal(np.concatenate([coefficients for coefficients, _ in parts]), whole)
    assert sum(count for _, count in parts) == clipped
    assert len(whole) == packing.polynomials(dimension)


def test_an_empty_update_has_no_polynomials() -> None:
    packing = Packing(1.0, 3)
    coefficients, clipped = packing.encode(np.zeros(0, dtype=np.float32), 1)
    assert coefficients.shape == (0, DEGREE)
    assert (packing.polynomials(0), clipped) == (0, 0)
    assert packing.decode(coefficients, 0).shape == (0,)


@pytest.mark.parametrize(("sites", "d", "b"), [(4, 9, 21), (16, 11, 20), (64, 13, 19), (256, 15, 18), (1024, 17, 17)])
def test_the_bits_are_those_of_the_reviewed_table(sites: int, d: int, b: int) -> None:
    packing = Packing(1.0, sites, 2)
    assert (packing.delta_bits, packing.lane_bits) == (d, b)
    assert packing.step == 1 / (2 ** (b - 1) - 1 - sites / 2)


def test_every_permitted_packing_has_room_for_noise_lanes_and_sums() -> None:
    for lanes in (1, 2, 3):
        for sites in range(1, 17 if lanes == 3 else MAX_SITES + 1):
            packing = Packing(1.0, sites, lanes)
            assert packing.step > 0
            assert 2 * (sites * NOISE_BOUND + 64) <= 1 << packing.delta_bits
            assert packing.lane_bits * lanes + packing.delta_bits <= 51


def test_privacy_noise_of_nine_standard_deviations_fits_a_lane() -> None:
    packing = Packing(1.0, 4, 2, noise_std=0.25)
    integers, _ = packing.quantise(np.full(4, 1.0), WEIGHT_ONE)
    noise = round(9 * 0.25 / packing.step)
    assert integers[0] + noise + 2 <= (1 << (packing.lane_bits - 1)) - 1


def test_what_lies_beyond_the_bound_is_clipped_and_counted() -> None:
    packing = Packing(1.0, 2)
    update = np.array([0.5, 1.0, -1.0, 1.001, -7.0], dtype=np.float32)
    integers, clipped = packing.quantise(update, WEIGHT_ONE)
    assert clipped == 2
    assert packing.average(integers, WEIGHT_ONE) == pytest.approx([0.5, 1, -1, 1, -1], abs=packing.step)
    assert packing.encode(update, WEIGHT_ONE)[1] == 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 70_000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_not_finite_becomes_a_bound_or_nothing(value: float, place: int, dtype: type) -> None:
    """Whether an update is refused would say something of the records that it was trained on."""
    packing, update = Packing(1.0, 2), np.full(70_001, 0.5, dtype=dtype)
    update[place] = value
    integers, clipped = packing.quantise(update, WEIGHT_ONE)
    assert clipped == 1
    bounded = {np.inf: 1.0, -np.inf: -1.0}.get(value, 0.0)
    assert packing.average(integers[[place, 1]], WEIGHT_ONE) == pytest.approx([bounded, 0.5], abs=packing.step)


def test_a_sum_that_clipped_updates_cannot_have_is_refused_and_any_that_they_can_is_not() -> None:
    packing, weight = Packing(1.0, 4), WEIGHT_ONE // 8
    most = np.full(10, 4.0)
    packing.require_bounded(4 * packing.quantise(most, weight)[0], 4 * weight)
    packing.require_bounded(-4 * packing.quantise(most, weight)[0], 4 * weight)
    packing.require_bounded(np.zeros(0, np.int64), weight)
    for sign in (1, -1):
        with pytest.raises(ContributionError, match="larger than"):
            packing.require_bounded(sign * 4 * packing.quantise(most, weight)[0], 3 * weight)


@pytest.mark.parametrize("weight", [0, -1, WEIGHT_ONE + 1])
def test_a_weight_that_a_site_cannot_have_is_refused(weight: int) -> None:
    with pytest.raises(ContributionError):
        Packing(1.0, 2).encode(np.array([0.5]), weight)


@pytest.mark.parametrize("weight", [0, -1, WEIGHT_ONE + 3])
def test_a_sum_whose_weight_cannot_be_is_refused(weight: int) -> None:
    with pytest.raises(ContributionError):
        Packing(1.0, 2).average(np.zeros(1, dtype=np.int64), weight)


@pytest.mark.parametrize(
    "parameters",
    [
        (0.0, 2, 2, 0.0),
        (-1.0, 2, 2, 0.0),
        (math.nan, 2, 2, 0.0),
        (math.inf, 2, 2, 0.0),
        (1.0, 0, 2, 0.0),
        (1.0, 1025, 2, 0.0),
        (1.0, 2, 0, 0.0),
        (1.0, 2, 4, 0.0),
        (1.0, 17, 3, 0.0),
        (1.0, 2, 2, -0.1),
        (1.0, 2, 2, math.nan),
    ],
)
def test_parameters_that_would_break_a_promise_are_refused(parameters: tuple[float, int, int, float]) -> None:
    with pytest.raises(ContributionError):
        Packing(*parameters)


# --- opening ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sites", [1, 16, 1024])
def test_noise_beyond_that_of_all_sites_is_refused_and_up_to_it_is_not(sites: int) -> None:
    packing = Packing(1.0, sites)
    honest, limit = sites * NOISE_BOUND, sites * NOISE_BOUND + 16
    for message in (-5 << packing.delta_bits, 0, 7 << packing.delta_bits):
        for noise in (-limit, -honest, honest, limit):
            assert packing.round_noise(np.array([message + noise])) == message >> packing.delta_bits
        for noise in (-limit - 1, limit + 1):
            with pytest.raises(ContributionError):
                packing.round_noise(np.array([0, message + noise]))


@pytest.mark.parametrize("sites", [3, 16, 100])
def test_a_wrong_key_does_not_open_the_sum(sites: int) -> None:
    packing, key = Packing(1.0, sites), random_words(1, DEGREE)
    coefficients, _ = packing.encode(np.full(10, 0.5), WEIGHT_ONE)
    total = rlwe.encrypt(coefficients, key, SEED, 0, SeededRandomness(1))
    assert packing.decode(rlwe.open_sum(total, key, SEED, 0), 10)[0] > 0
    for wrong in (random_words(2, DEGREE), np.zeros(DEGREE, dtype=np.uint64), one_word_off(key)):
        with pytest.raises(ContributionError):
            packing.decode(rlwe.open_sum(total, wrong, SEED, 0), 10)
    for seed, first in ((bytes(32), 0), (SEED, 1)):
        with pytest.raises(ContributionError):
            packing.decode(rlwe.open_sum(total, key, seed, first), 10)


def test_a_sum_of_another_size_is_refused() -> None:
    with pytest.raises(ContributionError):
        Packing(1.0, 2).decode(np.zeros((2, DEGREE), dtype=np.int64), 2 * DEGREE)


# --- attacks ----------------------------------------------------------------------------------------------------------


def test_masked_words_look_uniform_and_unmasked_ones_do_not() -> None:
    packing = Packing(1.0, 4)
    coefficients, _ = packing.encode(np.zeros(64 * 2 * DEGREE, dtype=np.float32), WEIGHT_ONE)
    no_key = np.zeros(DEGREE, dtype=np.uint64)
    assert looks_uniform(rlwe.encrypt(coefficients, random_words(3, DEGREE), SEED, 0, SeededRandomness(4)))
    # In the NTT domain small noise alone looks uniform too; what an observer can invert are the coefficients.
    bare = ntt.from_ntt(rlwe.encrypt(coefficients, no_key, SEED, 0, SeededRandomness(4)))
    assert not looks_uniform(bare)
    masked = ntt.from_ntt(rlwe.encrypt(coefficients, random_words(3, DEGREE), SEED, 0, SeededRandomness(4)))
    assert looks_uniform(masked)


def test_exact_rounding_leaves_nothing_for_the_attack_of_li_and_micciancio() -> None:
    """https://eprint.iacr.org/2020/1533: whoever knows the plaintext learns the key from what decryption adds to it.

    The attacker sees c0, knows a and the true message and gets the decrypted output. Of an approximate decryption that
    is m + e, so that t = (c0 - NTT(output)) / a is the key. Of ours it is the true sum of integers, whatever the noise:
    the output minus what he knew is identically zero, and his equations give a wrong key.
    """
    packing, randomness = Packing(1.0, 3), SeededRandomness(5)
    key = rlwe.uniform(randomness, DEGREE)
    update = np.random.default_rng(5).uniform(-1, 1, packing.lanes * DEGREE)
    integers, _ = packing.quantise(update, WEIGHT_ONE)
    message = packing.combine(integers)
    sent = rlwe.encrypt(message, key, SEED, 0, randomness)

    approximate = rlwe.open_sum(sent, key, SEED, 0)
    assert np.array_equal(recovered_key(sent, approximate), key)

    exact = packing.decode(approximate, integers.size)
    assert np.array_equal(exact - integers, np.zeros_like(integers))
    assert np.count_nonzero(recovered_key(sent, packing.combine(exact)) == key) <= 1


def recovered_key(sent: Polynomials, output: Integers) -> Polynomials:
    """The key that the attacker's linear system gives, if ``output`` is the message with its noise."""
    masks = sent.copy()
    ring.subtract(masks, ntt.to_ntt(output))
    inverses = np.array([pow(word, -1, ring.MODULUS) for word in rlwe.expand(SEED, 0, 1)[0].tolist()], dtype=np.uint64)
    return ring.multiply(masks[0], inverses)


def one_word_off(key: Polynomials) -> Polynomials:
    other = key.copy()
    other[17] = (other[17] + np.uint64(1)) % np.uint64(ring.MODULUS)
    return other
