"""A whole sum in this process before the first one that counts: three sites, planted values, and a server that looks.

It shows on this machine, with this installation, that what would leave a site is encrypted and opens only for sites.
"""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from quorate.aggregation import ring, rlwe, seal_reference
from quorate.aggregation.packing import Packing
from quorate.aggregation.plain import WEIGHT_ONE
from quorate.aggregation.words import pack_words
from quorate.errors import ContributionError, QuorateError, SumRefusedError
from quorate.identity import RunId, SiteName
from quorate.process.randomness import SystemRandomness
from quorate.secagg.opening import Opener, Opening
from quorate.secagg.participant import Member, Participant
from quorate.secagg.study_key import KEY_BYTES, StudyKey
from quorate.secagg.terms import Layout, Terms, sum_digest
from quorate.study.rules import Rules

SITES = 3
CANARY = 0.7071
COUNT = 7919


def rehearse() -> None:
    """Compare our arithmetic with SEAL's, then run a sum of planted values.

    Raises:
        SelfTestError: the sum is not exact, or the server could read it.
    """
    seal_reference.self_test()
    try:
        _rehearse()
    except QuorateError as error:
        raise seal_reference.SelfTestError("A rehearsed sum was refused by its own sites") from error


def _rehearse() -> None:
    randomness, rules, packing = SystemRandomness(), Rules(SITES, 1), Packing(1.0, SITES)
    signing = {SiteName(f"rehearsal-{number}"): Ed25519PrivateKey.generate() for number in range(SITES)}
    roster = {site: key.public_key().public_bytes_raw() for site, key in signing.items()}
    study_key = StudyKey(randomness.draw(KEY_BYTES))
    terms = Terms(bytes(32), RunId("rehearsal"), 1, 0)
    members = {site: Member(site, roster, rules, key, study_key) for site, key in signing.items()}
    sites = {site: Participant(terms, member, randomness) for site, member in members.items()}
    hellos = tuple(site.hello() for site in sites.values())
    lanes = packing.encode(np.full(ring.DEGREE, CANARY, np.float32), WEIGHT_ONE // SITES)[0] >> packing.delta_bits
    total, counts = np.zeros((1, ring.DEGREE), np.uint64), np.zeros(3, np.uint64)
    boxes: dict[SiteName, dict[SiteName, bytes]] = {}
    for name, site in sites.items():
        site.begin_upload(hellos, b"", Layout(1, 1))
        ring.add(total, site.encrypt(0, lanes, packing.delta_bits))
        masked, boxes[name] = site.finish_upload([COUNT])
        ring.add(counts, masked)
        if COUNT in masked:
            raise seal_reference.SelfTestError("A count left a site as it is")
    survivors, digest = tuple(sites), sum_digest(b"", pack_words(counts))
    votes = tuple(
        site.vote(
            survivors, digest, {dealer: dealt[name] for dealer, dealt in boxes.items() if dealer != name}, _accept
        )
        for name, site in sites.items()
    )
    reveals = tuple(site.reveal(votes) for site in sites.values())
    opening = Opening(hellos, study_key.model(b""), survivors, pack_words(counts), b"", votes, reveals)
    opener = Opener(opening, terms, 1, roster, rules, study_key)
    opened = opener.piece(total, packing)
    if not np.array_equal(opened, SITES * lanes << packing.delta_bits) or opener.counts() != (SITES * COUNT,):
        raise seal_reference.SelfTestError("A rehearsed sum is not what the sites sent")
    _look(total, terms, opening, roster, rules, packing)


def _look(
    total: ring.Polynomials,
    terms: Terms,
    opening: Opening,
    roster: dict[SiteName, bytes],
    rules: Rules,
    packing: Packing,
) -> None:
    """What the server can try with what it has: open without the key, and open with a study key of its own."""
    try:
        packing.round_noise(rlwe.open_sum(total, np.zeros(ring.DEGREE, np.uint64), bytes(32), 0))
    except ContributionError:
        pass
    else:
        raise seal_reference.SelfTestError("A rehearsed sum can be read without its key")
    try:
        Opener(opening, terms, 1, roster, rules, StudyKey(bytes(KEY_BYTES)))
    except SumRefusedError:
        return
    raise seal_reference.SelfTestError("A rehearsed sum opens with a key that is not the study's")


def _accept(_: object) -> None:
    """In a rehearsal votes are not written down."""
