"""The tags: exact, linear, and different for every sum that was tampered with."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from quorate.aggregation import one_time_pad, ring
from quorate.errors import ContributionError
from quorate.secagg import linear_mac
from quorate.secagg.linear_mac import MAX_VALUE, Coefficients, Tagger, TagKey, tags, verify

Q, N = ring.MODULUS, ring.DEGREE
STUDY_KEY, ROUND_ID = bytes(range(32)), bytes(range(100, 132))
KEY = TagKey.derive(STUDY_KEY, ROUND_ID)


def coefficients_of(seed: int, polynomials: int, size: int = 2**42) -> Coefficients:
    return np.random.default_rng(seed).integers(-size, size, (polynomials, N), endpoint=True)


def r_of(which: int, kind: int, count: int, key: TagKey = KEY) -> list[int]:
    """The multipliers as the format defines them, block by block with plain AES: nothing of the module is used."""
    aes = Cipher(algorithms.AES(key.aes_key), modes.ECB()).encryptor()  # noqa: S305 - one block at a time is CTR
    stream = b"".join(
        aes.update((2 * kind + which).to_bytes(8, "big") + block.to_bytes(8, "big")) for block in range(-(-count // 2))
    )
    return [int.from_bytes(stream[8 * j : 8 * j + 8], "little") % 2**52 for j in range(count)]


def reference(coefficients: Coefficients, extras: list[int], key: TagKey = KEY) -> list[int]:
    flat = coefficients.reshape(-1).tolist()
    return [
        sum(r * v for r, v in zip(r_of(which, 0, len(flat), key), flat, strict=True))
        + sum(r * v for r, v in zip(r_of(which, 1, len(extras), key), extras, strict=True))
        for which in (0, 1)
    ]


def same(claimed: tuple[int, int], expected: list[int]) -> bool:
    return all((a - b) % Q == 0 for a, b in zip(claimed, expected, strict=True))


# --- what a tag is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("polynomials", [0, 1, 15, 16, 17, 33])
@pytest.mark.parametrize("size", [1, 2**42, MAX_VALUE])
def test_tags_are_the_inner_products_exactly(polynomials: int, size: int) -> None:
    coefficients, extras = coefficients_of(1, polynomials, size), [5, -7, MAX_VALUE, -MAX_VALUE, 0]
    assert same(tags(KEY, coefficients, extras), reference(coefficients, extras))


@pytest.mark.parametrize("value", [MAX_VALUE, -MAX_VALUE, 1, -1])
def test_tags_of_the_largest_values_are_exact(value: int) -> None:
    coefficients = np.full((17, N), value)
    assert same(tags(KEY, coefficients, [value] * 200), reference(coefficients, [value] * 200))


@pytest.mark.parametrize("signs", ["same", "alternating", "random"])
def test_inner_products_are_exact_even_where_all_multipliers_are_the_largest(signs: str) -> None:
    r = np.full(16 * N, 2**52 - 1)
    values = np.full(16 * N, MAX_VALUE)
    if signs == "alternating":
        values[::2] = -MAX_VALUE
    if signs == "random":
        values *= np.random.default_rng(2).choice([-1, 1], values.size)
        values += np.random.default_rng(3).integers(-(2**20), 1, values.size) * np.sign(values)
        values = np.clip(values, -MAX_VALUE, MAX_VALUE)
    exact = sum(a * b for a, b in zip(r.tolist(), values.tolist(), strict=True))
    assert linear_mac._exact_dot(r, r.astype(float), values, values.astype(float)) == exact


def test_the_key_is_derived_as_the_format_says() -> None:
    derived = HKDF(algorithm=SHA256(), length=32, salt=ROUND_ID, info=b"quorate/secagg/tag/v1").derive(STUDY_KEY)
    assert KEY.aes_key == derived


def test_tags_never_change() -> None:
    assert tags(KEY, np.arange(-N, N).reshape(2, N), [1, -2, 3]) == GOLDEN


def test_tags_fit_a_padded_word() -> None:
    for seed in range(20):
        claimed = tags(KEY, coefficients_of(seed, 1), [seed])
        assert all(abs(value) <= MAX_VALUE for value in claimed)
        key = np.array([seed, Q - 1 - seed], dtype=np.uint64)
        assert one_time_pad.unmask(one_time_pad.mask(claimed, key), key) == claimed


def test_every_position_of_every_stream_has_a_multiplier_of_its_own() -> None:
    tagger_inputs = [(position, kind) for kind in (0, 1) for position in range(70)]
    seen = set()
    for position, kind in tagger_inputs:
        unit = np.zeros((1, N), dtype=np.int64)
        extras = [0] * 70
        if kind == 0:
            unit[0, position] = 1
        else:
            extras[position] = 1
        seen.update(tags(KEY, unit, extras))
    assert len(seen) == 2 * len(tagger_inputs)


def test_neighbouring_polynomials_share_no_multiplier() -> None:
    assert len({r for which in (0, 1) for kind in (0, 1) for r in r_of(which, kind, 4 * N)}) == 16 * N


# --- pieces ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 40), max_size=4), st.randoms(use_true_random=False))
def test_pieces_in_any_order_give_the_tags_of_the_whole(cuts: list[int], order: object) -> None:
    coefficients = coefficients_of(4, 40)
    edges = [0, *sorted(cuts), 40]
    pieces = list(itertools.pairwise(edges))
    order.shuffle(pieces)  # type: ignore[attr-defined]
    tagger = Tagger(KEY)
    for start, end in pieces:
        tagger.update(start, coefficients[start:end])
    tagger.extras([1, 2, 3])
    assert tagger.result() == tags(KEY, coefficients, [1, 2, 3])


def test_columns_and_rows_of_a_larger_array_are_read_as_they_stand() -> None:
    wide = coefficients_of(5, 8)
    assert tags(KEY, wide[::2], []) == tags(KEY, wide[::2].copy(), [])
    turned = np.asfortranarray(wide)
    assert tags(KEY, turned, []) == tags(KEY, wide, [])


def test_tagging_changes_nothing_that_it_is_given() -> None:
    coefficients = coefficients_of(6, 3)
    before = coefficients.copy()
    tags(KEY, coefficients, [1])
    assert np.array_equal(coefficients, before)


# --- linear ----------------------------------------------------------------------------------------------------------


def test_the_tags_of_the_sum_are_the_sums_of_the_tags_of_many_sites() -> None:
    sites = [(coefficients_of(seed, 3, 2**36), [seed * 17, -seed, 2**40 - seed]) for seed in range(64)]
    total = sum(coefficients for coefficients, _ in sites)
    extras = [sum(column) for column in zip(*(words for _, words in sites), strict=True)]
    each = [tags(KEY, coefficients, words) for coefficients, words in sites]
    claimed = (sum(first for first, _ in each), sum(second for _, second in each))
    assert verify(KEY, total, extras, claimed)
    assert verify(KEY, total, extras, (claimed[0] % Q, claimed[1] % Q))


def test_tags_of_sums_agree_after_they_were_padded_and_added_by_the_server() -> None:
    key_sum, total_words = np.zeros(2, dtype=np.uint64), np.zeros(2, dtype=np.uint64)
    total = np.zeros((2, N), dtype=np.int64)
    for seed in range(10):
        coefficients = coefficients_of(seed, 2, 2**38)
        key = np.array([seed * 10**14, Q - 1 - seed * 10**13], dtype=np.uint64)
        ring.add(total_words, one_time_pad.mask(tags(KEY, coefficients, []), key))
        ring.add(key_sum, key)
        total += coefficients
    first, second = one_time_pad.unmask(total_words, key_sum)
    assert verify(KEY, total, [], (first, second))


# --- attacks ---------------------------------------------------------------------------------------------------------


@given(
    st.dictionaries(
        st.integers(0, 2 * N - 1),
        st.sampled_from([1, -1, 256, -512, 1 << 20, 1 << 41]) | st.integers(1, 2**48),
        min_size=1,
        max_size=5,
    )
)
def test_a_sum_with_changed_coefficients_has_other_tags(changes: dict[int, int]) -> None:
    # Also by multiples of Delta, which the residue check passes: tags are computed before the multiplication by it.
    coefficients = coefficients_of(7, 2)
    claimed = tags(KEY, coefficients, [1, 2])
    tampered = coefficients.copy()
    for position, change in changes.items():
        tampered.reshape(-1)[position] += change
    assert verify(KEY, coefficients, [1, 2], claimed)
    both = tags(KEY, tampered, [1, 2])
    assert both[0] != claimed[0]
    assert both[1] != claimed[1]
    assert not verify(KEY, tampered, [1, 2], claimed)


@pytest.mark.parametrize(("one", "other"), [(0, 1), (0, 2047), (0, 2048), (1, 2), (63, 64), (2047, 4095)])
def test_swapped_coefficients_have_other_tags(one: int, other: int) -> None:
    coefficients = coefficients_of(8, 2)
    claimed = tags(KEY, coefficients, [])
    swapped = coefficients.copy()
    swapped.reshape(-1)[[one, other]] = swapped.reshape(-1)[[other, one]]
    assert not verify(KEY, swapped, [], claimed)


def test_swapped_scaled_left_out_and_repeated_polynomials_have_other_tags() -> None:
    coefficients = coefficients_of(9, 3)
    claimed = tags(KEY, coefficients, [])
    zeroed, doubled = coefficients.copy(), coefficients.copy()
    zeroed[1], doubled[2] = 0, coefficients[1]
    for tampered in (coefficients[[1, 0, 2]], coefficients[:2], 2 * coefficients, -coefficients, zeroed, doubled):
        assert not verify(KEY, tampered, [], claimed)


def test_changed_swapped_and_left_out_extra_words_have_other_tags() -> None:
    coefficients = coefficients_of(10, 1)
    claimed = tags(KEY, coefficients, [10, 20, 30])
    for tampered in ([11, 20, 30], [20, 10, 30], [10, 20], [10, 20, 30, 1], [0, 10, 20, 30], [-10, 20, 30]):
        assert not verify(KEY, coefficients, tampered, claimed)


def test_a_value_cannot_move_from_the_coefficients_to_the_extra_words() -> None:
    coefficients = np.zeros((1, N), dtype=np.int64)
    coefficients[0, 0] = 5
    claimed = tags(KEY, coefficients, [0])
    assert not verify(KEY, np.zeros_like(coefficients), [5], claimed)


def test_tags_of_another_round_or_another_study_do_not_fit() -> None:
    coefficients = coefficients_of(11, 1)
    claimed = tags(KEY, coefficients, [1])
    for other in (TagKey.derive(STUDY_KEY, bytes(32)), TagKey.derive(bytes(32), ROUND_ID)):
        assert not verify(other, coefficients, [1], claimed)


def test_one_right_tag_is_not_enough() -> None:
    coefficients = coefficients_of(12, 1)
    first, second = tags(KEY, coefficients, [])
    for claimed in ((first, second + 1), (first + 1, second), (second, first), (0, 0), (-first, -second)):
        assert not verify(KEY, coefficients, [], claimed)


def test_knowing_the_multipliers_of_one_tag_does_not_help_to_forge_the_other() -> None:
    first = r_of(0, 0, 2)
    ratio = -first[0] * pow(first[1], -1, Q) % Q
    change = ratio - Q if ratio > MAX_VALUE else ratio
    coefficients = np.zeros((1, N), dtype=np.int64)
    claimed = tags(KEY, coefficients, [])
    coefficients[0, :2] = 1, change
    tampered = tags(KEY, coefficients, [])
    assert tampered[0] == claimed[0]
    assert tampered[1] != claimed[1]
    assert not verify(KEY, coefficients, [], claimed)


def test_a_server_that_guesses_is_never_accepted() -> None:
    guesses = random.Random(0)
    coefficients = np.zeros((1, N), dtype=np.int64)
    first, second = tags(KEY, coefficients, [])
    hits = 0
    for _ in range(2000):
        coefficients[0, 0] = guesses.choice([1, -1, 2, 1 << 30])
        # Half the time the server knows, or guessed, the high half of the multiplier.
        near = [r_of(which, 0, 1)[0] * int(coefficients[0, 0]) for which in (0, 1)]
        shift = [guesses.randrange(Q), guesses.randrange(Q)]
        if guesses.random() < 0.5:
            shift = [(value >> 26 << 26) + guesses.randrange(2**26) for value in near]
        hits += verify(KEY, coefficients, [], (first + shift[0], second + shift[1]))
    assert hits == 0


def test_whoever_knows_the_key_can_forge() -> None:
    # The limit that the documentation states: a server with a colluding site.
    coefficients = coefficients_of(13, 1)
    first, second = tags(KEY, coefficients, [])
    forged = coefficients.copy()
    forged[0, 0] += 1000
    assert verify(KEY, forged, [], (first + 1000 * r_of(0, 0, 1)[0], second + 1000 * r_of(1, 0, 1)[0]))


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "coefficients"),
    [
        (0, np.zeros(N, dtype=np.int64)),
        (0, np.zeros((1, N - 1), dtype=np.int64)),
        (0, np.zeros((1, 1, N), dtype=np.int64)),
        (0, np.zeros((1, N), dtype=np.uint64)),
        (0, np.zeros((1, N))),
        (-1, np.zeros((1, N), dtype=np.int64)),
        (2**32, np.zeros((1, N), dtype=np.int64)),
        (2**32 - 1, np.zeros((2, N), dtype=np.int64)),
        (0, np.full((1, N), MAX_VALUE + 1)),
        (0, np.full((1, N), -MAX_VALUE - 1)),
        (0, np.full((1, N), -(2**63))),
        (0, np.full((1, N), Q)),
    ],
)
def test_coefficients_that_cannot_be_are_refused_and_not_counted(first: int, coefficients: Coefficients) -> None:
    tagger = Tagger(KEY)
    tagger.update(0, coefficients_of(14, 1))
    before = tagger.result()
    with pytest.raises(ContributionError) as caught:
        tagger.update(first, coefficients)
    assert tagger.result() == before
    assert str(MAX_VALUE + 1) not in str(caught.value)


@pytest.mark.parametrize("value", [MAX_VALUE + 1, -MAX_VALUE - 1, Q, 2**64, 0.5, float("nan"), "1", None])
def test_an_extra_word_that_cannot_be_is_refused_and_not_counted(value: int) -> None:
    tagger = Tagger(KEY)
    with pytest.raises(ContributionError) as caught:
        tagger.extras([424242, value])
    assert tagger.result() == (0, 0)
    assert "424242" not in str(caught.value)


@pytest.mark.parametrize(("study_key", "round_id"), [(bytes(31), bytes(32)), (bytes(32), bytes(33)), (b"", b"")])
def test_keys_of_another_length_are_refused(study_key: bytes, round_id: bytes) -> None:
    with pytest.raises(ContributionError):
        TagKey.derive(study_key, round_id)
    with pytest.raises(ContributionError):
        TagKey(study_key + b"\x00\x01")


def test_a_key_does_not_show_when_printed() -> None:
    assert KEY.aes_key.hex()[:8] not in repr(KEY)
    assert repr(KEY) == "TagKey()"


GOLDEN = (-965714913667094, 69474153966998)
