"""What the server accepts in a secure sum: of honest sites everything, of one that lies nothing.

``LIAR`` lies in its own name and with its own signature where it can: a server that took that in would spoil the sum
for all, and nobody could say whose fault it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from quorate.aggregation import ring
from quorate.aggregation.words import pack, pack_words
from quorate.errors import ContributionError, FrameError, KeyMismatchError, QuorumMissingError, VoteRefusedError
from quorate.identity import RunId, SiteName
from quorate.process.randomness import SystemRandomness
from quorate.rounds.blobs import Blob, BlobId, blob_id
from quorate.secagg import aggregator
from quorate.secagg.aggregator import AddedSum, Aggregator, Members, Upload
from quorate.secagg.release import ReleaseTerms, released
from quorate.secagg.share_boxes import message_bytes
from quorate.secagg.study_key import SealedPart, make_parts
from quorate.secagg.terms import Hello, Reveal, Vote, ballot, checkpointed, revealed, say_hello
from quorate.wire.sum_messages import box_places, shares_to_bytes
from tests.protos.secagg.parties import MODEL, RUN, STUDY, Consortium, Sum

SITES = tuple(SiteName(f"site-{number:03}") for number in range(4))
A, B, C, LIAR = SITES
THREE = (A, B, C)
STRANGER = SiteName("site-999")
ROUND_KEY = bytes([9]) * 32


@dataclass
class Sent:
    """What four sites send in one sum. ``blobs`` is the server's spool; ``sign`` signs as the liar."""

    given: Sum
    members: Members
    sign: Callable[[bytes], bytes]
    uploads: dict[SiteName, Upload] = field(default_factory=dict)
    votes: dict[SiteName, Vote] = field(default_factory=dict)
    reveals: dict[SiteName, Reveal] = field(default_factory=dict)
    following: dict[SiteName, Hello] = field(default_factory=dict)
    blobs: dict[BlobId, bytes] = field(default_factory=dict)

    @property
    def hellos(self) -> dict[SiteName, Hello]:
        return {hello.site: hello for hello in self.given.hellos}

    def put(self, content: bytes) -> Blob:
        blob = Blob(blob_id(content), len(content))
        self.blobs[blob.id] = content
        return blob

    def places_in(self, shares: Blob) -> Mapping[SiteName, range]:
        return box_places(self.blobs[shares.id])

    # --- the server, after a step that all but some took ---

    def greeted(self, *without: SiteName) -> Aggregator:
        server = Aggregator(self.given.terms, self.members, self.given.layout.polynomials)
        for site in sorted({*SITES} - {*without}):
            server.hello(site, self.hellos[site])
        return server

    def uploaded(self, *without: SiteName) -> Aggregator:
        server = self.greeted()
        for site in sorted({*SITES} - {*without}):
            server.upload(site, self.uploads[site], self.places_in)
        return server

    def added(self) -> AddedSum:
        return AddedSum(self.uploaded(), SITES, self.put(pack(self.given.total)))

    def voted(self, *without: SiteName) -> AddedSum:
        added = self.added()
        for site in sorted({*SITES} - {*without}):
            added.vote(site, self.votes[site])
        return added

    # --- what the liar says, properly signed ---

    def hello(self, key: bytes = ROUND_KEY, name: SiteName = LIAR, **changes: Any) -> Hello:
        return say_hello(replace(self.given.terms, **changes), name, key, self.sign)

    def vote(self, **changes: Any) -> Vote:
        added = self.added()
        said = {"identity": added.identity, "survivors": SITES, "digest": added.digest} | changes
        return Vote(LIAR, self.sign(ballot(**said)))

    def reveal(self, sealed: bytes, identity: bytes | None = None) -> Reveal:
        return Reveal(LIAR, sealed, self.sign(revealed(identity or self.added().identity, LIAR, sealed)))

    def upload(self, ciphertext: Callable[[bytes], bytes] = bytes, shares: bytes | None = None) -> Upload:
        was = self.uploads[LIAR]
        encrypted, dealt = (self.blobs[blob.id] for blob in was.blobs)
        return replace(was, blobs=(self.put(ciphertext(encrypted)), self.put(dealt if shares is None else shares)))

    def dealing(self, change: Callable[[dict[SiteName, bytes]], Mapping[SiteName, bytes]]) -> Upload:
        return self.upload(shares=shares_to_bytes(change(dict(self.given.boxes[LIAR]))))

    def bringing(self, blobs: Callable[[tuple[Blob, ...]], tuple[Blob, ...]], **changes: Any) -> Upload:
        return replace(self.uploads[LIAR], blobs=blobs(self.uploads[LIAR].blobs), **changes)

    def counting(self, change: Callable[[bytes], bytes]) -> Upload:
        return replace(self.uploads[LIAR], counts=change(self.uploads[LIAR].counts))


@pytest.fixture(scope="module")
def sent() -> Sent:
    consortium = Consortium(4)
    given = consortium.begin(consortium.terms())
    given.upload_all()
    signing = {party.name: party.signing.sign for party in consortium.parties}
    sent = Sent(given, Members(STUDY, RUN, consortium.roster, consortium.rules, quorum=3), signing[LIAR])
    model = consortium.study_key.model(MODEL)
    for site in SITES:
        blobs = (sent.put(pack(given.uploads[site])), sent.put(shares_to_bytes(given.boxes[site])))
        sent.uploads[site] = Upload(pack_words(given.masked[site]), True, blobs, model)
        key = bytes([SITES.index(site) + 10]) * 32
        sent.following[site] = say_hello(replace(given.terms, round_number=2), site, key, signing[site])
    added = sent.added()
    for site, participant in given.sites.items():
        sent.votes[site] = participant.vote(added.survivors, added.digest, given.boxes_for(site), lambda _: None)
    for site, participant in given.sites.items():
        sent.reveals[site] = participant.reveal(tuple(sent.votes.values()))
    return sent


# --- honest sites ---


def test_what_honest_sites_send_opens_to_what_they_added(sent: Sent) -> None:
    added = sent.voted()
    for site in SITES:
        added.reveal(site, sent.reveals[site], sent.following[site] if site != LIAR else None)
    opening = added.opening()
    assert opening.survivors == added.survivors == tuple(sorted(added.voters)) == SITES
    assert tuple(hello.site for hello in opening.following) == THREE
    assert sent.given.open(opening)[1] == (4, 8, 12)


def test_the_hellos_of_the_sum_before_count_and_the_others_are_still_to_be_heard(sent: Sent) -> None:
    server = Aggregator(sent.given.terms, sent.members, 1, [sent.hellos[B], sent.hellos[A]])
    assert server.unheard == {C, LIAR}
    server.hello(C, sent.hellos[C])
    assert tuple(hello.site for hello in server.hellos) == THREE


# --- lies, each in its step ---

HELLOS: dict[str, Callable[[Sent], Hello | None]] = {
    "none": lambda sent: None,
    "another's": lambda sent: sent.hellos[A],
    "in another's name": lambda sent: sent.hello(name=A),
    "with another key": lambda sent: replace(sent.hellos[LIAR], round_key=ROUND_KEY),
    # No site takes part in a sum in which two show one key.
    "with the key of another's": lambda sent: sent.hello(sent.hellos[A].round_key),
    "with another's signature": lambda sent: replace(sent.hellos[LIAR], signature=sent.hellos[A].signature),
    "for another attempt": lambda sent: sent.hello(attempt=1),
    "for another sum": lambda sent: sent.hello(round_number=2),
    "for another run": lambda sent: sent.hello(run=RunId("run-2")),
    "for another study": lambda sent: sent.hello(study=bytes(32)),
    # To which nobody can seal: every honest site would fail to deal its shares.
    "without a key": lambda sent: sent.hello(b""),
    "with a short key": lambda sent: sent.hello(b"short"),
    "with the key zero": lambda sent: sent.hello(bytes(32)),
    "with the key one": lambda sent: sent.hello(b"\x01" + bytes(31)),
}
UPLOADS: dict[str, Callable[[Sent], Upload]] = {
    "a shorter ciphertext": lambda sent: sent.upload(lambda content: content[:-1]),
    "a longer ciphertext": lambda sent: sent.upload(lambda content: content * 2),
    "no ciphertext": lambda sent: sent.bringing(lambda blobs: blobs[1:], has_update=False),
    "no ciphertext, but said": lambda sent: sent.bringing(lambda blobs: blobs[1:]),
    "a ciphertext that is not said": lambda sent: sent.bringing(lambda blobs: blobs, has_update=False),
    "two ciphertexts": lambda sent: sent.bringing(lambda blobs: (blobs[0], *blobs)),
    "no shares": lambda sent: sent.bringing(lambda blobs: blobs[:1]),
    "nothing": lambda sent: sent.bringing(lambda blobs: ()),
    "a share missing": lambda sent: sent.dealing(lambda b: {A: b[A], B: b[B]}),
    "a share for itself": lambda sent: sent.dealing(lambda b: {**b, LIAR: b[A]}),
    "a share for itself and not for all": lambda sent: sent.dealing(lambda b: {A: b[A], B: b[B], LIAR: b[C]}),
    "a share for a stranger": lambda sent: sent.dealing(lambda b: {A: b[A], B: b[B], STRANGER: b[C]}),
    "a share too short": lambda sent: sent.dealing(lambda b: {**b, A: b[A][:-8]}),
    "one too short as another is long": lambda sent: sent.dealing(lambda b: {**b, A: b[A][:-8], B: b[B] + bytes(8)}),
    "shares too long": lambda sent: sent.dealing(lambda b: {site: box * 8 for site, box in b.items()}),
    "a share twice": lambda sent: sent.upload(
        shares=shares_to_bytes(sent.given.boxes[LIAR]) + shares_to_bytes({A: sent.given.boxes[LIAR][A]})
    ),
    "shares that are none": lambda sent: sent.upload(shares=b"\xff" * sent.uploads[LIAR].blobs[1].size),
    "more sets of survivors than it may have voted for": lambda sent: replace(
        sent.uploads[LIAR], opened=((A, B, C), (A, B, LIAR), (A, C, LIAR))
    ),
    "no counts": lambda sent: sent.counting(lambda counts: b""),
    "counts cut": lambda sent: sent.counting(lambda counts: counts[:-1]),
    "counts out of range": lambda sent: sent.counting(
        lambda counts: pack_words(np.full(2, ring.MODULUS, np.uint64)) + counts[13:]
    ),
}
VOTES: dict[str, Callable[[Sent], Vote | None]] = {
    "none": lambda sent: None,
    "another's": lambda sent: sent.votes[A],
    "in another's name": lambda sent: replace(sent.votes[LIAR], site=A),
    "with another's signature": lambda sent: replace(sent.votes[A], site=LIAR),
    "for another sum": lambda sent: sent.vote(identity=bytes(32)),
    "over other sites": lambda sent: sent.vote(survivors=(A, B, LIAR)),
    "for another total": lambda sent: sent.vote(digest=bytes(32)),
}
REVEALS: dict[str, Callable[[Sent], tuple[Reveal | None, Hello | None]]] = {
    "none": lambda sent: (None, None),
    "another's": lambda sent: (sent.reveals[A], None),
    "in another's name": lambda sent: (replace(sent.reveals[LIAR], site=A), None),
    "with another's signature": lambda sent: (replace(sent.reveals[A], site=LIAR), None),
    "with another share": lambda sent: (replace(sent.reveals[LIAR], sealed=sent.reveals[A].sealed), None),
    "of another sum": lambda sent: (sent.reveal(sent.reveals[LIAR].sealed, bytes(32)), None),
    "shorter": lambda sent: (sent.reveal(sent.reveals[LIAR].sealed[:-1]), None),
    "longer": lambda sent: (sent.reveal(sent.reveals[LIAR].sealed + bytes(500_000)), None),
    "with another's hello": lambda sent: (sent.reveals[LIAR], sent.following[A]),
    "with a hello for this sum": lambda sent: (sent.reveals[LIAR], sent.hellos[LIAR]),
    "with a hello for another attempt": lambda sent: (sent.reveals[LIAR], sent.hello(round_number=2, attempt=1)),
    "with a hello of the key zero": lambda sent: (sent.reveals[LIAR], sent.hello(bytes(32), round_number=2)),
}
LIES: dict[str, dict[str, Callable[[Sent], tuple[Any, ...]]]] = {
    "hello": {what: lambda sent, lie=lie: (lie(sent),) for what, lie in HELLOS.items()},
    "upload": {what: lambda sent, lie=lie: (lie(sent), sent.places_in) for what, lie in UPLOADS.items()},
    "vote": {what: lambda sent, lie=lie: (lie(sent),) for what, lie in VOTES.items()},
    "reveal": dict(REVEALS),
}
ERRORS = dict.fromkeys(("shares that are none", "counts cut", "counts out of range"), FrameError) | dict.fromkeys(
    [*list(HELLOS)[-4:], "with a hello of the key zero"], KeyMismatchError
)


@pytest.mark.parametrize(("step", "what"), [(step, what) for step in LIES for what in LIES[step]])
def test_a_lie_is_refused_and_leaves_the_server_as_it_was(sent: Sent, step: str, what: str) -> None:
    server, honest = {
        "hello": lambda: (sent.greeted(LIAR), (sent.hellos[LIAR],)),
        "upload": lambda: (sent.uploaded(LIAR), (sent.uploads[LIAR], sent.places_in)),
        "vote": lambda: (sent.voted(LIAR), (sent.votes[LIAR],)),
        "reveal": lambda: (sent.voted(), (sent.reveals[LIAR], sent.following[LIAR])),
    }[step]()
    take = partial(getattr(server, step), LIAR)
    with pytest.raises(ERRORS.get(what, ContributionError)):
        take(*LIES[step][what](sent))
    take(*honest)
    with pytest.raises(ContributionError, match="twice"):
        take(*honest)


def test_a_hello_for_the_next_sum_with_the_key_of_another_one_is_refused(sent: Sent) -> None:
    added = sent.voted()
    added.reveal(A, sent.reveals[A], sent.following[A])
    with pytest.raises(ContributionError, match="key of another"):
        added.reveal(LIAR, sent.reveals[LIAR], sent.hello(sent.following[A].round_key, round_number=2))
    added.reveal(LIAR, sent.reveals[LIAR], sent.following[LIAR])


def test_who_did_not_take_a_step_does_not_take_the_next_one(sent: Sent) -> None:
    with pytest.raises(ContributionError, match="not signed"):
        sent.greeted().hello(STRANGER, sent.hello(name=STRANGER))
    with pytest.raises(ContributionError, match="no part"):
        sent.greeted(LIAR).upload(LIAR, sent.uploads[LIAR], sent.places_in)
    added = AddedSum(sent.uploaded(), THREE, None)
    with pytest.raises(ContributionError, match="no vote"):
        added.vote(LIAR, sent.vote(identity=added.identity, survivors=THREE, digest=added.digest))
    with pytest.raises(ContributionError, match="nothing to reveal"):
        sent.voted(LIAR).reveal(LIAR, sent.reveals[LIAR], None)


def test_shares_of_another_length_than_those_of_the_sum_are_not_even_read(sent: Sent) -> None:
    def read(_: Blob) -> Mapping[SiteName, range]:
        raise AssertionError("read")

    with pytest.raises(ContributionError, match="wrong length"):
        sent.uploaded(LIAR).upload(LIAR, UPLOADS["shares too long"](sent), read)


def test_a_sum_of_counts_alone_takes_no_ciphertext(sent: Sent) -> None:
    server = Aggregator(sent.given.terms, sent.members, 0, sent.given.hellos)
    ciphertext, _ = sent.uploads[LIAR].blobs
    words = len(sent.given.masked[LIAR])
    shares = sent.put(shares_to_bytes(dict.fromkeys(THREE, bytes(message_bytes(words)))))
    for blobs, said in (((ciphertext, shares), True), ((ciphertext, shares), False), ((shares,), True)):
        with pytest.raises(ContributionError, match="what this sum is made of"):
            server.upload(LIAR, replace(sent.uploads[LIAR], blobs=blobs, has_update=said), sent.places_in)
    server.upload(LIAR, replace(sent.uploads[LIAR], blobs=(shares,), has_update=False), sent.places_in)


# --- survivors ---

Sets = list[tuple[SiteName, ...]]
FOR_ALL: Sets = [SITES]
FOR_THREE: Sets = [THREE]
SURVIVORS: dict[str, tuple[Mapping[SiteName, Sets], tuple[SiteName, ...], int, tuple[SiteName, ...] | None]] = {
    "nobody voted": ({}, SITES, 3, SITES),
    "three are here": ({}, THREE, 3, THREE),
    "three voted without the fourth": ({A: FOR_THREE, B: FOR_THREE, C: FOR_THREE}, SITES, 3, THREE),
    "all voted for all": ({A: FOR_ALL, B: FOR_ALL, C: FOR_ALL, LIAR: FOR_ALL}, SITES, 3, SITES),
    "the word of one": ({LIAR: FOR_THREE}, SITES, 3, SITES),
    "the word of one for fewer than a sum takes": ({A: FOR_ALL, LIAR: [(A, B)]}, SITES, 3, SITES),
    "one voted with who is away": ({A: FOR_ALL}, THREE, 3, None),
    "all voted with who is away": ({A: FOR_ALL, B: FOR_ALL, C: FOR_ALL}, THREE, 3, None),
    "split votes": ({A: FOR_ALL, B: FOR_THREE, C: FOR_THREE}, SITES, 3, None),
    "fewer than the quorum voted": ({A: FOR_THREE, B: FOR_THREE, C: FOR_THREE}, SITES, 4, None),
}


@pytest.mark.parametrize("case", SURVIVORS)
def test_the_largest_set_for_which_enough_may_vote_is_added_and_else_none_is_asked_for(sent: Sent, case: str) -> None:
    """A vote that cannot open anything would only bind those who give it."""
    told, here, quorum, chosen = SURVIVORS[case]
    server = Aggregator(sent.given.terms, replace(sent.members, quorum=quorum), 1, sent.given.hellos)
    for site in here:
        server.upload(site, replace(sent.uploads[site], opened=tuple(told.get(site, ()))), sent.places_in)
    if chosen is not None:
        assert server.survivors(here) == set(chosen)
        return
    with pytest.raises(QuorumMissingError, match="may vote for a sum over them") as caught:
        server.survivors(here)
    assert caught.value.codes == (VoteRefusedError.code,)


# --- the study key, checkpoints, the release ---

PARTS: dict[str, Callable[[Mapping[SiteName, SealedPart]], Mapping[SiteName, SealedPart]]] = {
    "none": lambda parts: {},
    "one missing": lambda parts: {site: part for site, part in parts.items() if site != A},
    "one for a stranger": lambda parts: {**parts, STRANGER: parts[A]},
    "in another's name": lambda parts: {site: replace(part, sender=A) for site, part in parts.items()},
    "one in another's name": lambda parts: {**parts, A: replace(parts[A], sender=A)},
    "swapped": lambda parts: {**parts, A: parts[B], B: parts[A]},
    "one unsigned": lambda parts: {**parts, A: replace(parts[A], signature=bytes(64))},
}


@pytest.mark.parametrize("what", PARTS)
def test_parts_of_the_study_key_that_the_others_could_not_use_are_refused(sent: Sent, what: str) -> None:
    sealing = {party.name: party.sealing.public_key().public_bytes_raw() for party in sent.given.here}
    parts = make_parts(STUDY, RUN, LIAR, sealing, sent.sign, SystemRandomness())
    aggregator.check_parts(LIAR, parts, sent.members)
    for site, wrong in ((LIAR, PARTS[what](parts)), (A, parts)):
        with pytest.raises(ContributionError):
            aggregator.check_parts(site, wrong, sent.members)


SEALED = Blob.of(b"sealed by the liar")
TERMS = ReleaseTerms(STUDY, RUN, bytes([7]) * 32)
Check = Callable[[tuple[Blob, ...], Vote | None, Members], tuple[Blob, Vote]]
CHECKS: dict[str, tuple[Check, bytes, bytes, tuple[Blob, ...]]] = {
    "a state": (
        lambda blobs, vote, members: aggregator.checked_checkpoint(LIAR, blobs, vote, 2, members),
        checkpointed(STUDY, RUN, 2, SEALED.id),
        checkpointed(STUDY, RUN, 3, SEALED.id),
        (SEALED, SEALED),
    ),
    "the model": (
        lambda blobs, vote, members: aggregator.checked_release(LIAR, blobs, vote, TERMS, members),
        released(TERMS, SEALED.id),
        released(replace(TERMS, operator_key=bytes(32)), SEALED.id),
        (),
    ),
}


@pytest.mark.parametrize("what", CHECKS)
def test_what_a_site_seals_counts_with_its_signature_under_these_bytes_only(sent: Sent, what: str) -> None:
    check, message, other, others = CHECKS[what]
    vote, elsewhere = Vote(LIAR, sent.sign(message)), Vote(LIAR, sent.sign(other))
    assert check((SEALED,), vote, sent.members) == (SEALED, vote)
    for wrong in (None, elsewhere, replace(vote, site=A), Vote(LIAR, bytes(64))):
        with pytest.raises(ContributionError, match="did not sign"):
            check((SEALED,), wrong, sent.members)
    with pytest.raises(ContributionError, match="did not sign"):
        check((Blob.of(b"something else"),), vote, sent.members)
    for blobs in ((), others):
        with pytest.raises(ContributionError, match=r"did not send one|sent no model"):
            check(blobs, vote, sent.members)
