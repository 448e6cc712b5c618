"""The model on its way to the operator: who can read it, who can make it, and what the operator believes."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import BinaryIO, cast

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from quorate.errors import ContributionError, FrameError, KeyMismatchError
from quorate.identity import RunId, SiteName
from quorate.process.chunked_aead import CHUNK_BYTES, TAG_BYTES
from quorate.rounds.blobs import FRAME_BYTES, blob_id
from quorate.secagg.release import (
    KEY_BYTES,
    OpenedRelease,
    ReleaseKey,
    ReleaseTerms,
    pack_release,
    released,
    seal_release,
)
from quorate.secagg.study_key import StudyKey
from quorate.secagg.terms import Vote
from quorate.study.rules import Rules
from tests.protos.secagg.kit import SeededRandomness
from tests.protos.secagg.parties import RUN, STUDY, Party

SITES = tuple(Party(SiteName(name)) for name in ("east", "north", "south", "west"))
EAST, NORTH, SOUTH, WEST = SITES
ROSTER = {party.name: party.key for party in SITES}
RULES = Rules(4, 1)
OPERATOR = ReleaseKey(X25519PrivateKey.from_private_bytes(bytes(range(32))))
TERMS = ReleaseTerms(STUDY, RUN, OPERATOR.public_key)
STUDY_KEY = StudyKey(b"k" * 32)
MODEL = SeededRandomness(7).draw(2 * CHUNK_BYTES + 5000)
SMALL = MODEL[:5000]
SMALL_ORDER = bytes(32)


def sealed(model: bytes = SMALL, key: StudyKey = STUDY_KEY, terms: ReleaseTerms = TERMS) -> bytes:
    return b"".join(seal_release(io.BytesIO(model), key, terms))


def votes_for(content: bytes, voters: Sequence[Party] = SITES, terms: ReleaseTerms = TERMS) -> list[Vote]:
    return [Vote(party.name, party.signing.sign(released(terms, blob_id(content)))) for party in voters]


def packed(content: bytes, votes: Sequence[Vote] | None = None) -> bytes:
    return b"".join(pack_release(votes_for(content) if votes is None else votes, [content]))


def opening(
    content: bytes, key: ReleaseKey = OPERATOR, terms: ReleaseTerms = TERMS, piece: int = 1000
) -> OpenedRelease:
    pieces = (content[at : at + piece] for at in range(0, len(content), piece))
    return OpenedRelease(pieces, key, terms, ROSTER, RULES)


# --- what is sealed ---


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, len(MODEL)])
@pytest.mark.parametrize("piece", [4099, 3 * CHUNK_BYTES])
def test_the_operator_opens_a_model_of_any_length_whatever_the_pieces_that_it_comes_in(size: int, piece: int) -> None:
    content = sealed(MODEL[:size])
    model = opening(packed(content), piece=piece)
    assert b"".join(model) == MODEL[:size]
    assert model.signers == tuple(ROSTER)
    chunks = max(1, -(-size // CHUNK_BYTES))
    assert len(content) == KEY_BYTES + size + chunks * TAG_BYTES


def test_all_sites_make_the_same_bytes_and_nothing_of_the_model_is_in_them() -> None:
    content = sealed(MODEL)
    assert content == sealed(MODEL)
    assert not any(MODEL[at : at + 16] in content for at in range(0, len(MODEL), CHUNK_BYTES // 8))


def test_no_key_ever_seals_two_contents() -> None:
    """Equal keystream would show where two models are equal."""
    other = bytes([SMALL[0] ^ 1]) + SMALL[1:]
    terms = [replace(TERMS, study=b"t" * 32), replace(TERMS, run=RunId("run-2"))]
    made = [sealed(), sealed(other), sealed(key=StudyKey(b"l" * 32)), *(sealed(terms=each) for each in terms)]
    assert len({content[:KEY_BYTES] for content in made}) == len(made)
    assert len({content[KEY_BYTES + 64 : KEY_BYTES + 96] for content in made}) == len(made)


def test_a_model_that_changes_while_it_is_sealed_is_not_released() -> None:
    """A task's process may write to the file: one key would have sealed two contents."""

    class Changing(io.BytesIO):
        def seek(self, offset: int, whence: int = 0) -> int:
            self.getbuffer()[0] ^= 1
            return super().seek(offset, whence)

    with pytest.raises(ContributionError, match="changed"):
        b"".join(seal_release(cast(BinaryIO, Changing(SMALL)), STUDY_KEY, TERMS))


@pytest.mark.parametrize("key", [SMALL_ORDER, b"\x01" + bytes(31), b"short"])
def test_nothing_is_sealed_to_a_key_that_everybody_could_open(key: bytes) -> None:
    with pytest.raises(KeyMismatchError):
        sealed(terms=replace(TERMS, operator_key=key))


# --- who opens it ---


def test_another_operators_key_opens_nothing() -> None:
    stranger = ReleaseKey(X25519PrivateKey.from_private_bytes(b"s" * 32))
    with pytest.raises(FrameError):
        b"".join(opening(packed(sealed()), stranger))


def test_a_key_shows_nothing_of_itself() -> None:
    assert bytes(range(32)).hex() not in repr(OPERATOR)


@pytest.mark.parametrize("terms", [replace(TERMS, study=b"t" * 32), replace(TERMS, run=RunId("run-2"))])
def test_a_model_of_another_run_or_study_does_not_open(terms: ReleaseTerms) -> None:
    content = sealed(terms=terms)
    with pytest.raises(FrameError):
        b"".join(opening(packed(content, votes_for(content, terms=terms))))


# --- what the server does with it ---


def changes() -> Iterator[tuple[str, bytes]]:
    whole, body = packed(sealed(MODEL)), sealed(MODEL)
    header, size = len(whole) - len(body), CHUNK_BYTES + TAG_BYTES
    first, second, last = body[KEY_BYTES:][:size], body[KEY_BYTES + size :][:size], body[KEY_BYTES + 2 * size :]
    start = whole[: header + KEY_BYTES]
    for name, at in (("magic", 0), ("ephemeral key", header), ("first chunk", header + 40), ("last tag", -1)):
        changed = bytearray(whole)
        changed[at] ^= 1
        yield f"a bit of the {name}", bytes(changed)
    yield "swapped", start + second + first + last
    yield "one left out", start + first + last
    yield "the last one left out", start + first + second
    yield "a byte left out", whole[:-1]
    yield "a byte more", whole + b"\x00"
    yield "a chunk twice", start + first + first + second + last
    yield "nothing", b""
    yield "no body", whole[:header]
    yield "half a key", whole[: header + 16]
    yield "half the votes", whole[: header // 2]
    yield "an ephemeral key of small order", whole[:header] + SMALL_ORDER + body[KEY_BYTES:]
    yield "the model in the clear", MODEL


TAMPERED = dict(changes())


@pytest.mark.parametrize("what", TAMPERED)
def test_what_was_changed_cut_off_or_put_in_another_order_is_refused(what: str) -> None:
    model = opening(TAMPERED[what], piece=FRAME_BYTES)
    with pytest.raises(FrameError):
        b"".join(model)
    assert model.signers == ()


def forged() -> bytes:
    """A model of the server's own, which it may seal to the operator as well as anybody."""
    return sealed(b"a model with a back door", StudyKey(b"of the server" + bytes(19)))


def test_a_model_that_the_server_sealed_itself_is_refused_though_it_opens() -> None:
    """The operator's key is public. What the server has are signatures of other models, and its own keys."""
    content, honest = forged(), sealed()
    own = Party(SiteName("east"))
    attacks = {
        "no signatures": [],
        "those of the sites' model": votes_for(honest),
        "of another run": votes_for(content, terms=replace(TERMS, run=RunId("run-2"))),
        "of another study": votes_for(content, terms=replace(TERMS, study=b"t" * 32)),
        "of a stranger": votes_for(content, [Party(SiteName(name)) for name in ("mallory", "oscar", "trudy")]),
        "in a site's name": votes_for(content, [own]) * 3,
        "of the colluders, repeated": votes_for(content, [WEST]) * 4,
        "of the colluders, in others' names": [
            replace(votes_for(content, [WEST])[0], site=party.name) for party in SITES
        ],
        "too few": votes_for(content, SITES[: RULES.votes - 1]),
    }
    for name, votes in attacks.items():
        model = opening(packed(content, votes))
        with pytest.raises(KeyMismatchError, match="not signed by enough"):
            b"".join(model)
        assert model.signers == (), name


def test_as_many_signatures_as_votes_are_enough_and_wrong_ones_beside_them_do_no_harm() -> None:
    content = sealed()
    wrong = [Vote(SiteName("west"), bytes(64)), Vote(SiteName("nobody"), bytes(64))]
    model = opening(packed(content, [*votes_for(content, SITES[: RULES.votes]), *wrong]))
    assert b"".join(model) == SMALL
    assert model.signers == ("east", "north", "south")


def test_a_name_that_is_no_text_is_nobodys() -> None:
    content = sealed()
    start = b"quorate.release/1\n" + (1).to_bytes(2, "big") + b"\x02\xff\xfe" + bytes(64)
    with pytest.raises(KeyMismatchError):
        b"".join(opening(start + content))


# --- the mark of a study ---


def test_a_mark_is_of_one_study_and_one_key() -> None:
    stranger = ReleaseKey(X25519PrivateKey.from_private_bytes(b"s" * 32))
    assert len({OPERATOR.mark(b"a"), OPERATOR.mark(b"b"), stranger.mark(b"a"), OPERATOR.mark(b"")}) == 4
    assert OPERATOR.mark(b"a") == OPERATOR.mark(b"a")


def test_the_form_never_changes() -> None:
    """Golden: sites and operator may have different versions."""
    content = sealed(b"model")
    assert content.hex() == GOLDEN_SEALED
    assert OPERATOR.mark(b"study").hex() == GOLDEN_MARK


GOLDEN_SEALED = (
    "1ae0138a3f255c387e35a3ba4aebeb3033352f96782a34606f6f43d5886aea685f57afb19f1f09117c87ffd7a673ec2761ac05deb0"
)
GOLDEN_MARK = "3108f9706a1c5b99776431d78ceb092ba1df8a90d8442679de1e8a336665aaae"
