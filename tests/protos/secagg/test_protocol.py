"""Secure sums from hello to opening: exact for honest sites, and refused for every lie that the design names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from quorate.aggregation import ntt, ring
from quorate.aggregation.plain import WEIGHT_ONE
from quorate.errors import (
    FrameError,
    QuorateError,
    RosterRefusedError,
    StudyError,
    SumRefusedError,
    VoteRefusedError,
)
from quorate.identity import SiteName
from quorate.secagg.opening import Opening
from quorate.secagg.study_key import StudyKey
from quorate.secagg.terms import Hello, Terms, say_hello, sum_digest
from quorate.study.rules import Rules
from quorate.wire.sum_messages import opening_from_bytes, opening_to_bytes
from tests.protos.secagg.parties import MODEL, Consortium, Sum


@pytest.fixture
def consortium() -> Consortium:
    return Consortium(5)


def uploaded(consortium: Consortium) -> Sum:
    run = consortium.begin(consortium.terms())
    run.upload_all()
    return run


def no_lock(_: object) -> None:
    """A site that would write down anything."""


# --- honest sites ---


@pytest.mark.parametrize("sites", [2, 3, 4, 5, 16, 40])
@pytest.mark.parametrize("dimension", [1, 4096, 5000])
def test_the_sum_is_exactly_the_integers_of_the_survivors(sites: int, dimension: int) -> None:
    consortium = Consortium(sites, dimension=dimension)
    run = consortium.begin(consortium.terms())
    updates = run.upload_all(seed=sites)
    sums, counts = run.open(run.opening())
    weight = WEIGHT_ONE // sites
    exact = sum(consortium.packing.quantise(update, weight)[0] for update in updates.values())
    np.testing.assert_array_equal(sums, exact)
    assert counts == (sites, 2 * sites, 3 * sites)


def test_counts_alone_are_summed_without_ciphertext(consortium: Consortium) -> None:
    run = consortium.begin(consortium.terms(), ciphertext=False, counts=2)
    for number, name in enumerate(run.sites):
        run.upload(name, np.zeros(0, np.float32), [number, -(2**40)])
    assert run.open(run.opening())[1] == (10, -5 * 2**40)


def test_a_site_that_is_lost_before_its_upload_costs_its_part_only(consortium: Consortium) -> None:
    run = consortium.begin(consortium.terms())
    zeros = np.zeros(consortium.dimension, np.float32)
    for name in list(run.sites)[:-1]:
        run.upload(name, zeros, [1, 2, 3])
    assert run.open(run.opening())[1] == (4, 8, 12)


def test_voters_may_die_as_long_as_enough_shares_are_revealed() -> None:
    consortium = Consortium(5)
    run = uploaded(consortium)
    opening = run.opening()
    assert consortium.rules.threshold < consortium.rules.votes < len(run.sites)
    fewer = replace(opening, reveals=opening.reveals[-consortium.rules.threshold :])
    np.testing.assert_array_equal(run.open(fewer)[0], run.open(opening)[0])
    with pytest.raises(SumRefusedError):
        run.open(replace(opening, reveals=opening.reveals[: consortium.rules.threshold - 1]))


def test_an_opening_survives_its_journey(consortium: Consortium) -> None:
    opening = uploaded(consortium).opening()
    assert opening_from_bytes(opening_to_bytes(opening)) == opening


def test_the_numbers_are_those_of_the_design() -> None:
    found = {n: (rules.votes, rules.threshold, rules.floor) for n in (3, 4, 5, 8) for rules in [Rules(n, 1)]}
    assert found == {3: (3, 2, 3), 4: (3, 2, 3), 5: (4, 3, 4), 8: (5, 4, 5)}
    assert (Rules(2, 0).votes, Rules(2, 0).threshold, Rules(2, 0).floor) == (2, 2, 2)
    for rules in (Rules(n, k) for n in range(2, 40) for k in range(n - 1)):
        assert 2 * rules.votes - rules.sites > rules.colluders, "two quorums share an honest site"
        assert rules.threshold > rules.colluders
    for sites, colluders in ((1, 0), (3, 2), (4, -1)):
        with pytest.raises(StudyError):
            Rules(sites, colluders)


# --- who takes part ---


def stranger(run: Sum) -> tuple[Hello, ...]:
    """The server enrols a site of its own."""
    key = Ed25519PrivateKey.generate()
    return (*run.hellos, say_hello(run.terms, SiteName("zz"), b"x" * 32, key.sign))


def one_key_twice(run: Sum) -> tuple[Hello, ...]:
    first, second, *rest = run.hellos
    signing = run.here[1].signing
    return (first, say_hello(run.terms, second.site, first.round_key, signing.sign), *rest)


def forged_key(run: Sum) -> tuple[Hello, ...]:
    """The server puts its own round key in the place of a site's, to read the shares."""
    return (run.hellos[0], replace(run.hellos[1], round_key=b"e" * 32), *run.hellos[2:])


def of_another_sum(run: Sum) -> tuple[Hello, ...]:
    other = replace(run.terms, attempt=run.terms.attempt + 1)
    signing = run.here[1].signing
    replayed = say_hello(other, run.hellos[1].site, run.hellos[1].round_key, signing.sign)
    return (run.hellos[0], replayed, *run.hellos[2:])


ROSTERS: list[Callable[[Sum], tuple[Hello, ...]]] = [
    stranger,
    one_key_twice,
    forged_key,
    of_another_sum,
    lambda run: run.hellos[::-1],
    lambda run: (*run.hellos, run.hellos[-1]),
    lambda run: run.hellos[:3],
    lambda run: run.hellos[1:],
]


@pytest.mark.parametrize("change", ROSTERS)
def test_a_lying_roster_gets_nothing(consortium: Consortium, change: Callable[[Sum], tuple[Hello, ...]]) -> None:
    """Strangers, one key twice, a swapped key, a replay, another order, twice, too few, not me."""
    run = consortium.begin(consortium.terms())
    site = run.sites[run.here[0].name]
    with pytest.raises(RosterRefusedError):
        site.begin_upload(change(run), MODEL, run.layout)
    site.begin_upload(run.hellos, MODEL, run.layout)


def test_sites_that_were_told_different_things_have_nothing_that_fits(consortium: Consortium) -> None:
    """Each subset of hellos is a sum of its own: the shares that were dealt in one do not open in the other."""
    run = consortium.begin(consortium.terms())
    zeros = np.zeros(consortium.dimension, np.float32)
    first = run.sites[run.here[0].name]
    first.begin_upload(run.hellos[:4], MODEL, run.layout)
    first.encrypt(0, np.zeros((1, ring.DEGREE), np.int64), consortium.packing.delta_bits)
    run.boxes[run.here[0].name] = first.finish_upload([1, 2, 3])[1]
    for party in run.here[1:]:
        run.upload(party.name, zeros, [1, 2, 3])
    voter = run.here[1]
    with pytest.raises(FrameError):
        run.sites[voter.name].vote(run.survivors, run.digest, run.boxes_for(voter.name), no_lock)


def test_a_site_that_holds_another_model_is_in_a_sum_of_its_own(consortium: Consortium) -> None:
    """With the very same hellos: model inconsistency ends here, whoever brought the other model about."""
    run = consortium.begin(consortium.terms())
    odd, *others = run.here
    for party in run.here:
        run.model = b"o" * 32 if party is odd else MODEL
        run.upload(party.name, np.zeros(consortium.dimension, np.float32), [1, 2, 3])
    assert len({run.sites[party.name].identity for party in others}) == 1
    assert run.sites[odd.name].identity != run.sites[others[0].name].identity
    assert run.sites[odd.name].model != run.sites[others[0].name].model
    for party in run.here:
        with pytest.raises(FrameError):
            run.sites[party.name].vote(run.survivors, run.digest, run.boxes_for(party.name), no_lock)
    honest = tuple(party.name for party in others)
    with pytest.raises(FrameError):
        run.sites[odd.name].vote(honest, run.digest, run.boxes_for(odd.name), no_lock)
    for name in honest:
        run.sites[name].vote(honest, run.digest, run.boxes_for(name), no_lock)


# --- votes ---


def test_a_site_votes_for_nothing_below_the_floor_or_beyond_the_hellos(consortium: Consortium) -> None:
    run = uploaded(consortium)
    voter = run.here[0]
    site, boxes = run.sites[voter.name], run.boxes_for(voter.name)
    for survivors in (run.survivors[:3], run.survivors[::-1], (*run.survivors, SiteName("zz")), ()):
        with pytest.raises(VoteRefusedError):
            site.vote(survivors, run.digest, boxes, voter.ballots.append)
    assert voter.ballots == []


def test_a_site_votes_once(consortium: Consortium) -> None:
    run = uploaded(consortium)
    voter = run.here[0]
    site = run.sites[voter.name]
    site.vote(run.survivors, run.digest, run.boxes_for(voter.name), voter.ballots.append)
    with pytest.raises(VoteRefusedError):
        site.vote(run.survivors[:4], run.digest, run.boxes_for(voter.name), voter.ballots.append)
    assert len(voter.ballots) == 1


def test_a_vote_that_cannot_be_written_down_is_not_given(consortium: Consortium) -> None:
    run = uploaded(consortium)
    voter = run.here[0]

    def full(_: object) -> None:
        raise VoteRefusedError("no")

    with pytest.raises(VoteRefusedError):
        run.sites[voter.name].vote(run.survivors, run.digest, run.boxes_for(voter.name), full)
    with pytest.raises(VoteRefusedError):
        run.sites[voter.name].reveal([])


def test_after_the_upload_a_site_keeps_its_own_share_and_not_the_key(consortium: Consortium) -> None:
    """As many shares as a threshold are the key: not even the memory that the others lay in may stay."""
    run = uploaded(consortium)
    for site in run.sites.values():
        share = site._own_share
        assert share is not None
        assert share.base is None


def test_a_withheld_or_swapped_share_is_noticed_before_the_vote(consortium: Consortium) -> None:
    run = uploaded(consortium)
    voter, other = run.here[0], run.here[1].name
    boxes = run.boxes_for(voter.name)
    damaged = bytes([boxes[other][0] ^ 1]) + boxes[other][1:]
    for wrong in ({}, {**boxes, other: boxes[run.here[2].name]}, {**boxes, other: damaged}):
        with pytest.raises(FrameError):
            run.sites[voter.name].vote(run.survivors, run.digest, wrong, voter.ballots.append)
    assert voter.ballots == []


def test_nothing_is_revealed_without_a_quorum_for_exactly_this(consortium: Consortium) -> None:
    """Votes for other survivors or another sum, of strangers, or one of them repeated, do not count."""
    run = uploaded(consortium)
    votes = [
        run.sites[party.name].vote(run.survivors, run.digest, run.boxes_for(party.name), no_lock) for party in run.here
    ]
    site = run.sites[run.here[0].name]
    other = uploaded(consortium)
    foreign = [
        other.sites[p.name].vote(other.survivors, other.digest, other.boxes_for(p.name), no_lock) for p in other.here
    ]
    for given in (votes[:3], [votes[0]] * 5, foreign, [*votes[:3], replace(votes[3], site=run.here[4].name)]):
        with pytest.raises(VoteRefusedError):
            site.reveal(given)
    site.reveal(votes[:4])
    with pytest.raises(VoteRefusedError):
        site.reveal(votes)


def test_steps_out_of_order_are_refused(consortium: Consortium) -> None:
    run = consortium.begin(consortium.terms())
    site = run.sites[run.here[0].name]
    with pytest.raises(VoteRefusedError):
        site.hello()
    with pytest.raises(VoteRefusedError):
        site.vote(tuple(run.sites), b"d" * 32, {}, no_lock)
    with pytest.raises(VoteRefusedError):
        site.reveal([])
    with pytest.raises(VoteRefusedError):
        site.encrypt(0, np.zeros((1, ring.DEGREE), np.int64), 9)
    site.begin_upload(run.hellos, MODEL, run.layout)
    with pytest.raises(VoteRefusedError):
        site.begin_upload(run.hellos, MODEL, run.layout)
    with pytest.raises(VoteRefusedError):
        site.encrypt(1, np.zeros((1, ring.DEGREE), np.int64), 9)
    with pytest.raises(QuorateError):
        site.finish_upload([1])


# --- what is opened ---


def tampered(run: Sum, opening: Opening) -> Opening:
    """A multiple of Delta on one coefficient: the residue check cannot see it."""
    ring.add(run.total[:1], ntt.to_ntt(np.eye(1, ring.DEGREE, dtype=np.int64) << run.consortium.packing.delta_bits))
    return opening


def noisy(run: Sum, opening: Opening) -> Opening:
    run.total[0, 0] ^= np.uint64(1)
    return opening


def other_counts(run: Sum, opening: Opening) -> Opening:
    return replace(opening, counts=bytes([opening.counts[0] ^ 1]) + opening.counts[1:])


def without_a_site(run: Sum, opening: Opening) -> Opening:
    return replace(opening, survivors=opening.survivors[1:])


def with_a_wrong_share(run: Sum, opening: Opening) -> Opening:
    """A site reveals something else than it should, and signs it."""
    first = opening.reveals[0]
    wrong = replace(first, sealed=opening.reveals[1].sealed)
    return replace(opening, reveals=(wrong, *opening.reveals[1:]))


def with_few_votes(run: Sum, opening: Opening) -> Opening:
    return replace(opening, votes=opening.votes[:3])


def without_hello(run: Sum, opening: Opening) -> Opening:
    return replace(opening, hellos=opening.hellos[1:])


def other_model(run: Sum, opening: Opening) -> Opening:
    return replace(opening, model=b"o" * 32)


def other_ciphertext(run: Sum, opening: Opening) -> Opening:
    return replace(opening, ciphertext=b"d" * 32)


LIES: list[Callable[[Sum, Opening], Opening]] = [
    tampered,
    noisy,
    other_counts,
    without_a_site,
    with_a_wrong_share,
    with_few_votes,
    without_hello,
    other_ciphertext,
    other_model,
]


@pytest.mark.parametrize("lie", LIES)
def test_what_the_server_changes_does_not_open_and_says_no_more_than_that(
    consortium: Consortium, lie: Callable[[Sum, Opening], Opening]
) -> None:
    run = uploaded(consortium)
    opening = run.opening()
    honest = run.open(opening)
    before = run.total.copy()
    with pytest.raises(SumRefusedError) as refused:
        run.open(lie(run, opening))
    assert str(refused.value).startswith("A secure sum does not open, so the model stays as it was")
    run.total[:] = before
    np.testing.assert_array_equal(run.open(opening)[0], honest[0])


@pytest.mark.parametrize("form", ["a word of q", "a word fewer", "a word more", "none"])
def test_counts_of_another_form_do_not_open_though_all_voted_for_them(consortium: Consortium, form: str) -> None:
    """A vote is about a digest: what it is of shows only when the sum is opened."""
    run = uploaded(consortium)
    if form == "a word of q":
        run.counts[1] = ring.MODULUS
    else:
        run.counts = np.resize(
            run.counts, {"a word fewer": len(run.counts) - 1, "none": 0}.get(form, len(run.counts) + 1)
        )
    with pytest.raises(SumRefusedError, match="A secure sum does not open"):
        run.open(run.opening())


def test_an_opening_of_one_sum_does_not_open_another(consortium: Consortium) -> None:
    run = uploaded(consortium)
    opening = run.opening()
    for field in ("round_number", "attempt"):
        run.terms = replace(run.terms, **{field: 7})
        with pytest.raises(SumRefusedError):
            run.open(opening)


def test_without_the_study_key_the_server_gets_nothing_from_the_reveals(consortium: Consortium) -> None:
    run = uploaded(consortium)
    opening = run.opening()
    consortium.study_key = StudyKey(b"g" * 32)
    with pytest.raises(SumRefusedError):
        run.open(opening)


def test_a_single_upload_does_not_open_with_what_opens_the_sum(consortium: Consortium) -> None:
    """The votes of all are about one sum: what was made for it opens neither one site's upload nor the difference."""
    run = uploaded(consortium)
    opening = run.opening()
    victim = run.survivors[0]
    run.total = run.uploads[victim].copy()
    with pytest.raises(SumRefusedError):
        run.open(opening)


def test_nothing_of_a_sum_can_be_read_from_an_opening_that_was_refused(consortium: Consortium) -> None:
    with pytest.raises(QuorateError):
        Terms(b"short", consortium.terms().run, 1, 0)
    digest = sum_digest(b"c" * 32, b"counts")
    assert digest != sum_digest(b"c" * 31, b"ccounts"), "what is hashed can be read in one way only"
