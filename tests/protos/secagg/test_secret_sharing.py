"""Shamir's shares: enough of them give the secret, fewer give nothing, and wrong ones are found and named."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorate.aggregation import ring, rlwe
from quorate.errors import ContributionError
from quorate.process.randomness import SystemRandomness
from quorate.secagg import secret_sharing
from quorate.secagg.secret_sharing import Words
from tests.protos.secagg.kit import SeededRandomness

Q = ring.MODULUS
seeds = st.integers(0, 2**64)


def words(*values: int) -> Words:
    return np.array(values, dtype=np.uint64)


def secret_of(seed: int, count: int) -> Words:
    return rlwe.uniform(SeededRandomness(seed + 2**100), count)


def dealt(secret: Words, threshold: int, places: int, seed: int = 0) -> dict[int, Words]:
    rows = secret_sharing.split(secret, threshold, places, SeededRandomness(seed))
    return {index + 1: row for index, row in enumerate(rows)}


def faulty(received: Mapping[int, Words], threshold: int) -> frozenset[int] | None:
    return secret_sharing.faulty(received, threshold, SeededRandomness(99))


def value_at(points: Mapping[int, int], x: int) -> int:
    """The polynomial through all points at x, by Lagrange's formula and Python's integers."""
    total = 0
    for i, y in points.items():
        numerator = denominator = 1
        for j in points:
            if j != i:
                numerator, denominator = numerator * (x - j) % Q, denominator * (i - j) % Q
        total += y * numerator * pow(denominator, -1, Q)
    return total % Q


@st.composite
def rosters(draw: st.DrawFn, extra: int = 0) -> tuple[int, int]:
    """A threshold and a number of places, at least ``extra`` more."""
    threshold = draw(st.integers(2, 7))
    return threshold, draw(st.integers(threshold + extra, threshold + extra + 7))


# --- splitting and combining -----------------------------------------------------------------------------------------


@given(rosters(), seeds, st.randoms(use_true_random=False))
def test_any_threshold_of_the_shares_give_the_secret(roster: tuple[int, int], seed: int, order: object) -> None:
    threshold, places = roster
    secret = secret_of(seed, 5)
    all_shares = dealt(secret, threshold, places, seed)
    chosen = order.sample(sorted(all_shares), threshold)  # type: ignore[attr-defined]
    assert np.array_equal(secret_sharing.combine({place: all_shares[place] for place in chosen}, threshold), secret)


def test_shares_are_the_values_of_polynomials_with_the_drawn_coefficients() -> None:
    secret = words(0, 1, Q - 1, 12345)
    drawn = rlwe.uniform(SeededRandomness(3), 3 * 4).reshape(3, 4).astype(object)
    for place, share in dealt(secret, 4, 6, seed=3).items():
        coefficients = [secret.astype(object), *drawn]
        expected = sum(row * place**power for power, row in enumerate(coefficients)) % Q
        assert share.tolist() == list(expected)
        assert share.dtype == np.uint64


def test_the_sum_of_shares_is_the_share_of_the_sum() -> None:
    threshold, places, sites = 5, 9, 9
    secrets = [secret_of(site, 40) for site in range(sites)]
    summed = {place: np.zeros(40, dtype=np.uint64) for place in range(1, places + 1)}
    for site, secret in enumerate(secrets):
        for place, share in dealt(secret, threshold, places, seed=site).items():
            ring.add(summed[place], share)
    exact = sum(secret.astype(object) for secret in secrets) % Q
    assert faulty(summed, threshold) == frozenset()
    assert secret_sharing.combine(summed, threshold).tolist() == list(exact)


def test_two_deals_of_one_secret_have_nothing_in_common() -> None:
    secret = secret_of(1, 50)
    first, second = dealt(secret, 3, 5, seed=1), dealt(secret, 3, 5, seed=2)
    assert not any((first[place] == second[place]).any() for place in first)


def test_all_sites_use_the_shares_of_the_lowest_places() -> None:
    secret = secret_of(2, 4)
    received = dealt(secret, 3, 5)
    received[5] = words(1, 2, 3, 4)
    in_another_order = dict(reversed(received.items()))
    assert np.array_equal(secret_sharing.combine(received, 3), secret)
    assert np.array_equal(secret_sharing.combine(in_another_order, 3), secret)
    received[1] = words(1, 2, 3, 4)
    assert not np.array_equal(secret_sharing.combine(received, 3), secret)


# --- fewer shares than the threshold ---------------------------------------------------------------------------------


@given(rosters(), seeds, st.integers(0, Q - 1), st.integers(0, Q - 1), st.randoms(use_true_random=False))
def test_fewer_shares_than_the_threshold_fit_every_secret_equally_well(
    roster: tuple[int, int], seed: int, one: int, other: int, order: object
) -> None:
    threshold, places = roster
    held = dealt(secret_of(seed, 1), threshold, places, seed)
    known = {place: int(held[place][0]) for place in order.sample(sorted(held), threshold - 1)}  # type: ignore[attr-defined]
    unknown = next(place for place in held if place not in known)
    for candidate in (one, other):
        # Exactly one polynomial has these shares and this secret, so all secrets are as likely as each other.
        polynomial = {0: candidate, **known}
        completed = {place: words(y) for place, y in known.items()}
        completed[unknown] = words(value_at(polynomial, unknown))
        assert secret_sharing.combine(completed, threshold).tolist() == [candidate]


@pytest.mark.parametrize("secret", [0, 1, Q - 1])
def test_a_share_is_uniform_whatever_the_secret(secret: int) -> None:
    count = 64_000
    rows = secret_sharing.split(np.full(count, secret, dtype=np.uint64), 2, 3, SeededRandomness(11))
    for row in rows:
        for bins in (row * np.uint64(64) // np.uint64(Q), row % np.uint64(64)):
            observed = np.bincount(bins.astype(np.int64), minlength=64)
            chi_square = float(((observed - count / 64) ** 2 / (count / 64)).sum())
            assert chi_square < 115.0  # 63 degrees of freedom: passed by chance with probability 7e-5


def test_two_shares_below_the_threshold_are_uniform_together() -> None:
    count = 64_000
    rows = secret_sharing.split(np.zeros(count, dtype=np.uint64), 3, 3, SeededRandomness(12))
    high = (rows * np.uint64(8) // np.uint64(Q)).astype(np.int64)
    observed = np.bincount(high[0] * 8 + high[1], minlength=64)
    assert float(((observed - count / 64) ** 2 / (count / 64)).sum()) < 115.0


def test_a_highest_coefficient_of_zero_is_not_ruled_out() -> None:
    class Zeros:
        def draw(self, count: int) -> bytes:
            return bytes(count)

    # Were it ruled out, threshold - 1 shares would exclude one secret.
    assert secret_sharing.split(words(7, 9), 3, 4, Zeros()).tolist() == [[7, 9]] * 4


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("threshold", "places"), [(1, 3), (0, 3), (-1, 3), (4, 3), (2, Q)])
def test_a_threshold_that_protects_nothing_or_cannot_be_reached_is_refused(threshold: int, places: int) -> None:
    with pytest.raises(ContributionError):
        secret_sharing.split(words(1), threshold, places, SeededRandomness(0))


@pytest.mark.parametrize(
    "secret",
    [words(Q), words(1, 2**64 - 1), words(), words(1).reshape(1, 1), np.array([1], dtype=np.int64), np.array([0.5])],
)
def test_a_secret_that_is_not_a_row_of_words_below_q_is_refused(secret: Words) -> None:
    with pytest.raises(ContributionError):
        secret_sharing.split(secret, 2, 3, SeededRandomness(0))


readers = pytest.mark.parametrize("read", [secret_sharing.combine, faulty])
Reader = Callable[[Mapping[int, Words], int], object]


@readers
def test_fewer_shares_than_the_threshold_are_refused(read: Reader) -> None:
    received = dealt(words(1, 2), 3, 4)
    with pytest.raises(ContributionError):
        read({1: received[1], 3: received[3]}, 3)
    with pytest.raises(ContributionError):
        read({}, 3)
    with pytest.raises(ContributionError):
        read({1: received[1]}, 1)


@readers
@pytest.mark.parametrize("place", [0, -1, Q, Q + 1, 2**64, 1.5, "1"])
def test_a_share_for_a_place_that_cannot_be_is_refused(read: Reader, place: int) -> None:
    # 0 is where the secret is; q + 1 would be place 1 a second time.
    received = dealt(words(1, 2), 3, 4)
    received[place] = words(5, 6)
    with pytest.raises(ContributionError):
        read(received, 3)


@readers
@pytest.mark.parametrize(
    "share",
    [words(1), words(1, 2, 3), words(), words(1, Q), words(2**64 - 1, 0), np.array([1, 2]), words(1, 2).reshape(2, 1)],
)
def test_a_share_of_another_form_is_refused_even_where_it_is_not_needed(read: Reader, share: Words) -> None:
    received = dealt(words(1, 2), 3, 5)
    received[5] = share
    with pytest.raises(ContributionError):
        read(received, 3)


def test_refusals_do_not_repeat_what_was_shared() -> None:
    telltale = 4242424242424242
    received = {1: words(telltale, telltale), 2: words(telltale, Q + 1)}
    for attempt in (
        lambda: secret_sharing.split(words(telltale, Q), 2, 3, SeededRandomness(0)),
        lambda: secret_sharing.combine(received, 2),
        lambda: secret_sharing.combine({0: received[1], 1: received[1]}, 2),
    ):
        with pytest.raises(ContributionError) as caught:
            attempt()
        assert "4242" not in str(caught.value)
        assert str(Q) not in str(caught.value)


# --- wrong shares ----------------------------------------------------------------------------------------------------


@given(rosters(extra=1), seeds, st.integers(0, 5), st.integers(1, Q - 1), st.data())
def test_a_single_wrong_word_makes_shares_inconsistent(
    roster: tuple[int, int], seed: int, word: int, error: int, data: st.DataObject
) -> None:
    threshold, places = roster
    received = dealt(secret_of(seed, 6), threshold, places, seed)
    assert faulty(received, threshold) == frozenset()
    liar = data.draw(st.sampled_from(sorted(received)))
    received[liar] = received[liar].copy()
    received[liar][word] = (int(received[liar][word]) + error) % Q
    assert faulty(received, threshold) != frozenset()


@given(rosters(extra=0), seeds, st.data())
def test_up_to_half_of_the_spare_shares_may_be_wrong_and_are_named_exactly(
    roster: tuple[int, int], seed: int, data: st.DataObject
) -> None:
    threshold, places = roster
    received = dealt(secret_of(seed, 6), threshold, places, seed)
    # Some sites did not answer.
    missing = data.draw(st.sets(st.sampled_from(sorted(received)), max_size=places - threshold))
    received = {place: share for place, share in received.items() if place not in missing}
    radius = (len(received) - threshold) // 2
    liars = data.draw(st.sets(st.sampled_from(sorted(received)), max_size=radius))
    for liar in liars:
        changed = data.draw(st.dictionaries(st.integers(0, 5), st.integers(1, Q - 1), min_size=1))
        received[liar] = received[liar].copy()
        for word, error in changed.items():
            received[liar][word] = (int(received[liar][word]) + error) % Q
    assert faulty(received, threshold) == liars


def test_liars_that_each_lie_about_another_word_are_all_named() -> None:
    received = dealt(secret_of(5, 8), 3, 9)
    for word, liar in enumerate((2, 4, 9)):
        received[liar][word] ^= np.uint64(1)
    assert faulty(received, 3) == {2, 4, 9}


def test_liars_that_agree_on_another_secret_are_named() -> None:
    received = dealt(secret_of(6, 8), 3, 9)
    other = dealt(secret_of(7, 8), 3, 9, seed=1)
    assert faulty(received | {place: other[place] for place in (1, 2, 3)}, 3) == {1, 2, 3}


def test_an_error_that_cancels_in_the_sum_of_all_words_is_found() -> None:
    received = dealt(secret_of(8, 4), 2, 4)
    received[3] = words(*[(int(y) + error) % Q for y, error in zip(received[3], (5, Q - 5, 0, 0), strict=True)])
    assert faulty(received, 2) == {3}


def test_the_secret_is_right_once_the_wrong_shares_are_left_out() -> None:
    secret = secret_of(9, 30)
    received = dealt(secret, 4, 8)
    received[1], received[2] = words(*range(30)), words(*range(30, 60))
    wrong = faulty(received, 4)
    assert wrong == {1, 2}
    assert np.array_equal(secret_sharing.combine({p: s for p, s in received.items() if p not in wrong}, 4), secret)


@pytest.mark.parametrize(("threshold", "places", "liars"), [(3, 4, 1), (3, 5, 2), (3, 7, 3), (5, 12, 4), (2, 3, 1)])
def test_nobody_is_named_when_too_many_shares_are_wrong(threshold: int, places: int, liars: int) -> None:
    for seed in range(20):
        received = dealt(secret_of(seed, 3), threshold, places, seed)
        for liar in range(1, liars + 1):
            received[liar] = secret_of(1000 * seed + liar, 3)
        assert faulty(received, threshold) is None


def test_nobody_is_named_when_too_many_lie_each_about_another_word() -> None:
    received = dealt(secret_of(10, 8), 3, 7)
    for word, liar in enumerate((1, 2, 3)):  # one wrong share in each word, which alone would decode
        received[liar][word] ^= np.uint64(1)
    assert faulty(received, 3) is None


def test_shares_of_a_higher_threshold_are_inconsistent_though_they_pass_the_first_checks() -> None:
    # A polynomial of one degree more, which colluders can aim at, passes all parity checks but the last.
    received = dealt(secret_of(15, 3), 4, 8)
    assert faulty(received, 4) == frozenset()
    assert faulty(received, 3) is None


def test_shares_that_agree_but_for_more_than_can_be_told_apart_are_not_decoded_by_their_combination() -> None:
    """Colluders who know the factors choose wrong shares whose combination is a code word but for one place: what the
    first combination shows decodes, and the second one, of factors that nobody knew, is what refuses it."""
    received = dealt(secret_of(16, 2), 2, 5)
    first, second = (int(factor) for factor in rlwe.uniform(SeededRandomness(99), 2))
    for liar, error in ((2, 1), (3, 7)):  # errors (second, -first) times anything cancel in the combination
        a, b = (int(word) for word in received[liar])
        received[liar] = words((a + error * second) % Q, (b - error * first) % Q)
    assert faulty(received, 2) == frozenset()  # known factors hide it ...
    received[4] = words(1, 2)  # ... and with one more that they show, the rest is looked at anew
    assert faulty(received, 2) is None
    assert secret_sharing.faulty(received, 2, SystemRandomness()) is None


def test_factors_that_nobody_knew_beforehand_show_what_known_ones_hide() -> None:
    received = dealt(secret_of(16, 2), 2, 5)
    first, second = (int(factor) for factor in rlwe.uniform(SeededRandomness(99), 2))
    a, b = (int(word) for word in received[2])
    received[2] = words((a + second) % Q, (b - first) % Q)
    assert faulty(received, 2) == frozenset()
    assert secret_sharing.faulty(received, 2, SystemRandomness()) == {2}


def test_a_word_decodes_only_to_a_polynomial_of_low_degree_that_agrees_often_enough() -> None:
    places = range(1, 10)
    quadratic = [x * x for x in places]
    assert secret_sharing._wrong_places_of_word(places, quadratic, 3) == frozenset()
    assert secret_sharing._wrong_places_of_word(places, [0, 0, 0, *quadratic[3:]], 3) == {1, 2, 3}
    assert secret_sharing._wrong_places_of_word(places, [0, 0, 0, 0, *quadratic[4:]], 3) is None
    assert secret_sharing._wrong_places_of_word(places, [x**3 for x in places], 3) is None
    assert secret_sharing._wrong_places_of_word(places, [0, *(x**3 for x in places[1:])], 3) is None


def test_with_exactly_the_threshold_there_is_nothing_to_compare() -> None:
    received = {place: secret_of(place, 4) for place in (2, 3, 7)}
    assert faulty(received, 3) == frozenset()


def test_enough_colluders_can_frame_an_honest_site_but_one_fewer_cannot() -> None:
    # Why a name counts only once the sum passes its tag: s - threshold + 1 - e colluders frame e honest sites.
    threshold, places = 4, 8
    honest = dealt(secret_of(11, 1), threshold, places)
    victims = (1, 2)
    for colluders in (3, 2):
        allies = range(places - colluders + 1, places + 1)
        kept = [place for place in honest if place not in victims and place not in allies][: threshold - 1]
        forged = {place: int(honest[place][0]) for place in kept} | {0: 4711}
        received = honest | {place: words(value_at(forged, place)) for place in allies}
        named = faulty(received, threshold)
        assert named == (set(victims) if colluders == 3 else set(allies))


def test_a_dealer_of_a_wrong_share_makes_its_recipient_look_guilty() -> None:
    # Why dealers sign their shares: the sum that place 2 reveals is honest.
    honest, spoiled = dealt(secret_of(12, 3), 2, 5), dealt(secret_of(13, 3), 2, 5, seed=1)
    spoiled[2] = words(1, 2, 3)
    for place, share in honest.items():
        ring.add(share, spoiled[place])
    assert faulty(honest, 2) == {2}


@pytest.mark.parametrize("read", [secret_sharing.combine, faulty])
def test_reading_shares_changes_none(read: Reader) -> None:
    received = dealt(secret_of(14, 3), 2, 5)
    received[4] = words(1, 2, 3)
    before = {place: share.copy() for place, share in received.items()}
    read(received, 2)
    assert all(np.array_equal(share, before[place]) for place, share in received.items())
