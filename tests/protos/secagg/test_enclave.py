"""Sums that an attested machine makes: what they are named by, and who has to vote for what."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from quorate.identity import RunId, SiteName
from quorate.secagg.enclave import (
    Added,
    SumSecret,
    are_acceptable,
    identity_of,
    is_voted,
    opening_purpose,
    voted_digest,
)
from quorate.secagg.terms import Layout, Terms, Vote, ballot
from quorate.study.rules import Rules
from quorate.wire.sum_messages import (
    PlainOpening,
    SumAnswer,
    plain_opening_from_bytes,
    plain_opening_to_bytes,
    sum_answer_from_bytes,
    sum_answer_to_bytes,
)

NAMES = tuple(map(SiteName, ("east", "north", "south", "west")))
KEYS = {name: Ed25519PrivateKey.generate() for name in NAMES}
ROSTER = {name: key.public_key().public_bytes_raw() for name, key in KEYS.items()}
RULES = Rules(4, 1)
TERMS = Terms(bytes(32), RunId("hearts-0a1b2c"), 1, 0)
IDENTITY = identity_of(TERMS, RULES, Layout(10, 4), b"m" * 32)
DIGEST = voted_digest(b"u" * 32, (1, 2), b"k" * 32)
ADDED = {name: Added(bytes([place]) * 32, (place, 2)) for place, name in enumerate(NAMES)}
CONTENTS = (b"a" * 32, b"b" * 32)


def votes(by: tuple[SiteName, ...], survivors: tuple[SiteName, ...] = NAMES, digest: bytes = DIGEST) -> list[Vote]:
    return [Vote(site, KEYS[site].sign(ballot(IDENTITY, survivors, digest))) for site in by]


def test_enough_of_the_survivors_have_to_vote_for_this_very_sum_over_them() -> None:
    enough, few = NAMES[:3], NAMES[:2]
    assert is_voted(votes(enough), IDENTITY, NAMES, DIGEST, ROSTER, RULES)
    assert not is_voted(votes(few), IDENTITY, NAMES, DIGEST, ROSTER, RULES)
    assert not is_voted(votes(few) * 3, IDENTITY, NAMES, DIGEST, ROSTER, RULES)
    assert not is_voted(votes(enough, NAMES[:3]), IDENTITY, NAMES, DIGEST, ROSTER, RULES)
    assert not is_voted(votes(enough, digest=b"d" * 32), IDENTITY, NAMES, DIGEST, ROSTER, RULES)
    assert not is_voted(votes(enough), b"i" * 32, NAMES, DIGEST, ROSTER, RULES)
    away = votes((NAMES[0], NAMES[1], NAMES[3]), NAMES[:3])
    assert not is_voted(away, IDENTITY, NAMES[:3], DIGEST, ROSTER, RULES), "of those who are not in it no vote counts"


@pytest.mark.parametrize(
    "survivors", [NAMES[:2], NAMES[::-1], (*NAMES[:2], NAMES[1]), (*NAMES[:3], SiteName("zoe"))], ids=str
)
def test_a_sum_is_over_sites_of_the_study_each_once_and_no_fewer_than_the_floor(
    survivors: tuple[SiteName, ...],
) -> None:
    assert are_acceptable(NAMES[:3], ROSTER, RULES)
    assert not are_acceptable(survivors, ROSTER, RULES)


def test_of_the_same_uploads_comes_the_same_secret_and_of_others_another() -> None:
    secret = SumSecret.of(TERMS, ADDED, CONTENTS)
    assert SumSecret.of(TERMS, dict(reversed(ADDED.items())), CONTENTS[::-1]) == secret
    fewer = {name: ADDED[name] for name in NAMES[:3]}
    salted = ADDED | {NAMES[0]: replace(ADDED[NAMES[0]], salt=b"s" * 32)}
    counted = ADDED | {NAMES[0]: replace(ADDED[NAMES[0]], counts=(0, 3))}
    others = [
        SumSecret.of(replace(TERMS, attempt=1), ADDED, CONTENTS),
        *(SumSecret.of(TERMS, added, CONTENTS) for added in (fewer, salted, counted)),
        SumSecret.of(TERMS, ADDED, CONTENTS[:1]),
    ]
    assert len({each.secret for each in [secret, *others]}) == 6
    assert len({secret.secret, secret.key, secret.noise}) == 3, "who is told the key has no noise to subtract"
    assert secret.secret.hex() not in repr(secret)


def test_a_vote_names_the_words_the_counts_and_the_key() -> None:
    others = [
        voted_digest(b"v" * 32, (1, 2), b"k" * 32),
        voted_digest(b"u" * 32, (1, 3), b"k" * 32),
        voted_digest(b"u" * 32, (1, 2), b"l" * 32),
        voted_digest(b"u" * 32, (1, 2, 0), b"k" * 32),
    ]
    assert len({DIGEST, *others}) == 5


def test_what_opens_one_sum_is_sealed_for_no_other() -> None:
    terms = [TERMS, *(replace(TERMS, **{name: 5}) for name in ("round_number", "attempt"))]
    assert len({opening_purpose(each) for each in [*terms, replace(TERMS, run=RunId("hearts-ffffff"))]}) == 4


def test_how_long_it_is_what_a_site_seals_does_not_tell_how_many_records_it_has() -> None:
    few, many = (SumAnswer(plain_counts=(n, -n, 0), study_key=b"s" * 32, salt=b"t" * 32) for n in (5, 2**40))
    assert len(sum_answer_to_bytes(few)) == len(sum_answer_to_bytes(many))
    assert sum_answer_from_bytes(sum_answer_to_bytes(many)) == many


def test_how_long_it_is_what_opens_a_sum_does_not_tell_what_was_counted() -> None:
    few, many = (PlainOpening(NAMES, (n, -n, 0), b"u" * 32, b"m" * 32, (), b"k" * 32) for n in (5, 2**40))
    assert len(plain_opening_to_bytes(few)) == len(plain_opening_to_bytes(many))
    assert plain_opening_from_bytes(plain_opening_to_bytes(many)) == many
