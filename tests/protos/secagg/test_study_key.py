"""The key that sites have and the server has not: who gets to it, and who is kept from it."""

from __future__ import annotations

import hashlib
import hmac
import io
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from quorate.errors import KeyPartRefusedError, StudyKeyRefusedError, SumRefusedError, VotesForgottenError
from quorate.identity import RunId, SiteName
from quorate.secagg.study_key import (
    CHUNK_BYTES,
    SealedPart,
    StudyKey,
    _context,
    is_from_sender,
    join_parts,
    make_parts,
    open_stream,
    seal_stream,
)
from quorate.study.rules import Rules
from tests.protos.secagg.kit import SeededRandomness
from tests.protos.secagg.parties import RUN, STUDY, Party

RULES = Rules(4, 1)
SITES = tuple(Party(SiteName(name)) for name in ("east", "north", "south", "west"))
EAST, NORTH, SOUTH, WEST = SITES
ROSTER = {party.name: party.key for party in SITES}
SEALING_KEYS = {party.name: party.sealing.public_key().public_bytes_raw() for party in SITES}
STRANGER = Party(SiteName("stranger"))

Parts = tuple[SealedPart, ...]


def made_by(party: Party, study: bytes = STUDY, run: RunId = RUN, seed: int = 0) -> dict[SiteName, SealedPart]:
    randomness = SeededRandomness(1000 * seed + sum(party.name.encode()))
    return make_parts(study, run, party.name, SEALING_KEYS, party.signing.sign, randomness)


def parts_for(recipient: Party, senders: Sequence[Party] = SITES) -> Parts:
    return tuple(made_by(sender)[recipient.name] for sender in senders)


def joined(parts: Sequence[SealedPart], recipient: Party = NORTH, study: bytes = STUDY, run: RunId = RUN) -> StudyKey:
    return join_parts(parts, study, run, recipient.name, recipient.sealing, ROSTER, RULES)


# --- who has it ---


def test_all_sites_join_their_parts_to_one_key() -> None:
    everybodys = [made_by(sender) for sender in SITES]  # made once: each box is sealed anew
    keys = {joined([parts[site.name] for parts in everybodys], site).secret for site in SITES}
    assert len(keys) == 1
    assert len(keys.pop()) == 32


def test_the_key_is_another_for_every_part_that_is_in_it_and_for_every_run_and_study() -> None:
    def key(senders: Sequence[Party] = SITES, study: bytes = STUDY, run: RunId = RUN, seed: int = 0) -> bytes:
        parts = tuple(made_by(sender, study, run, seed)[NORTH.name] for sender in senders)
        return joined(parts, study=study, run=run).secret

    keys = [key(), key([EAST, NORTH, SOUTH]), key([EAST, NORTH, WEST]), key(seed=1)]
    keys += [key(run=RunId("run-2")), key(study=b"t" * 32)]
    assert len(set(keys)) == len(keys)


def test_a_quorum_of_parts_is_enough_for_those_too_who_made_none() -> None:
    assert RULES.votes == 3
    three = [EAST, NORTH, SOUTH]
    assert joined(parts_for(WEST, three), WEST) == joined(parts_for(EAST, three), EAST)


def test_every_part_is_fresh_and_sealed_anew_for_everybody() -> None:
    parts = made_by(EAST)
    assert set(parts) == set(ROSTER)
    assert len({part.box for part in parts.values()}) == len(parts)
    assert all(len(part.box) == 32 + 32 + 16 for part in parts.values())


def test_the_server_has_no_sealing_key_and_opens_none_of_the_parts() -> None:
    """It has all boxes and all public keys, and may try keys of its own."""
    for site in SITES:
        for key in (X25519PrivateKey.generate(), X25519PrivateKey.from_private_bytes(SEALING_KEYS[site.name])):
            with pytest.raises(StudyKeyRefusedError):
                join_parts(parts_for(site), STUDY, RUN, site.name, key, ROSTER, RULES)


def test_colluders_among_the_sites_do_not_give_the_server_the_part_of_an_honest_one() -> None:
    with pytest.raises(StudyKeyRefusedError):
        joined(parts_for(NORTH), WEST)


def test_the_key_is_not_shown() -> None:
    key = StudyKey(b"\x2a" * 32)
    assert "2a" not in repr(key).lower()
    assert "**" not in repr(key)


# --- what is refused ---


def signed_by_another(parts: Parts) -> Parts:
    """The server puts a part of its own in the place of a site's: then it would know all parts."""
    box = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305).encrypt(
        b"s" * 32,
        X25519PublicKey.from_public_bytes(SEALING_KEYS[NORTH.name]),
        info=_context(STUDY, RUN, EAST.name, NORTH.name),
    )
    context = _context(STUDY, RUN, EAST.name, NORTH.name)
    return (SealedPart(EAST.name, box, Ed25519PrivateKey.generate().sign(context + box)), *parts[1:])


def of_another_length(parts: Parts) -> Parts:
    """A site signs a part of no length, so that there is nothing secret in it."""
    context = _context(STUDY, RUN, EAST.name, NORTH.name)
    suite = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
    box = suite.encrypt(b"", X25519PublicKey.from_public_bytes(SEALING_KEYS[NORTH.name]), info=context)
    return (SealedPart(EAST.name, box, EAST.signing.sign(context + box)), *parts[1:])


def truncated(parts: Parts) -> Parts:
    """With a signature that fits, so that it is the box itself that is looked at."""
    box = parts[0].box[:-1]
    context = _context(STUDY, RUN, EAST.name, NORTH.name)
    return (SealedPart(EAST.name, box, EAST.signing.sign(context + box)), *parts[1:])


def emptied(parts: Parts) -> Parts:
    context = _context(STUDY, RUN, EAST.name, NORTH.name)
    return (SealedPart(EAST.name, b"", EAST.signing.sign(context)), *parts[1:])


def from_a_stranger(parts: Parts) -> Parts:
    return (*parts, made_by(STRANGER)[NORTH.name])


def under_anothers_name(parts: Parts) -> Parts:
    return (replace(parts[1], sender=EAST.name), *parts[1:])


def for_another(parts: Parts) -> Parts:
    return (made_by(EAST)[SOUTH.name], *parts[1:])


def of_another_run(parts: Parts) -> Parts:
    return (made_by(EAST, run=RunId("run-2"))[NORTH.name], *parts[1:])


def of_another_study(parts: Parts) -> Parts:
    return (made_by(EAST, study=b"t" * 32)[NORTH.name], *parts[1:])


def with_a_bit_of_the_signature_changed(parts: Parts) -> Parts:
    signature = bytearray(parts[0].signature)
    signature[5] ^= 1
    return (replace(parts[0], signature=bytes(signature)), *parts[1:])


def with_a_bit_of_the_box_changed(parts: Parts) -> Parts:
    return (replace(parts[0], box=parts[0].box[:-1] + bytes([parts[0].box[-1] ^ 1])), *parts[1:])


LIES: list[Callable[[Parts], Parts]] = [
    lambda parts: (),
    lambda parts: parts[:2],
    lambda parts: (*parts[:2], parts[1]),
    lambda parts: (*parts, parts[-1]),
    lambda parts: parts[::-1],
    from_a_stranger,
    under_anothers_name,
    signed_by_another,
    for_another,
    of_another_run,
    of_another_study,
    with_a_bit_of_the_signature_changed,
    with_a_bit_of_the_box_changed,
    truncated,
    emptied,
    of_another_length,
    lambda parts: (replace(parts[0], signature=b""), *parts[1:]),
]
NAMES = [
    "none", "fewer than votes", "twice instead", "twice", "another order", "a stranger", "another name",
    "signed by another", "for another", "another run", "another study", "a bit of the signature", "a bit of the box",
    "truncated", "emptied", "another length", "no signature",
]  # fmt: skip


@pytest.mark.parametrize("lie", LIES, ids=NAMES)
def test_parts_that_the_sites_did_not_make_for_this_one_give_no_key_and_name_only_who_signed_what_does_not_open(
    lie: Callable[[Parts], Parts],
) -> None:
    parts = parts_for(NORTH)
    with pytest.raises(StudyKeyRefusedError) as caught:
        joined(lie(parts))
    # What its sender did not sign anybody may have changed: then nobody is named.
    is_easts_own = lie in (truncated, emptied, of_another_length)
    assert caught.value.alleged == (EAST.name if is_easts_own else "")
    assert (f"that {EAST.name} signed" in str(caught.value)) is is_easts_own
    assert isinstance(caught.value, KeyPartRefusedError) is is_easts_own
    joined(parts)


def test_a_server_that_shows_sites_different_parts_gets_sites_with_different_keys() -> None:
    everybodys = {sender.name: made_by(sender) for sender in SITES}
    at_north = joined([everybodys[name][NORTH.name] for name in ("east", "north", "south")], NORTH)
    at_south = joined([everybodys[name][SOUTH.name] for name in ("north", "south", "west")], SOUTH)
    assert at_north != at_south
    assert at_north.model(b"m" * 32) != at_south.model(b"m" * 32)


def test_the_server_sees_who_signed_a_part_and_nothing_else_of_it() -> None:
    part = made_by(EAST)[NORTH.name]
    assert is_from_sender(part, STUDY, RUN, NORTH.name, ROSTER)
    assert not is_from_sender(part, STUDY, RUN, SOUTH.name, ROSTER)
    assert not is_from_sender(part, STUDY, RunId("run-2"), NORTH.name, ROSTER)
    assert not is_from_sender(replace(part, box=b""), STUDY, RUN, NORTH.name, ROSTER)
    assert not is_from_sender(made_by(STRANGER)[NORTH.name], STUDY, RUN, NORTH.name, ROSTER)


# --- a site that has forgotten votes ---


def joined_at_north(parts: Sequence[SealedPart], memory: bytes) -> StudyKey:
    return join_parts(parts, STUDY, RUN, NORTH.name, NORTH.sealing, ROSTER, RULES, memory)


def made_by_north(memory: bytes) -> dict[SiteName, SealedPart]:
    return make_parts(STUDY, RUN, NORTH.name, SEALING_KEYS, NORTH.signing.sign, SeededRandomness(1), memory)


def test_a_memory_changes_nothing_for_the_others() -> None:
    made = made_by_north(b"since then")
    others = [made_by(sender) for sender in (EAST, SOUTH)]
    at_north, at_west = ([others[0][name], made[name], others[1][name]] for name in (NORTH.name, WEST.name))
    assert joined_at_north(at_north, b"since then") == joined(at_west, WEST)
    assert len(made[NORTH.name].box) == len(made[WEST.name].box)


def test_who_has_forgotten_votes_joins_no_key_but_with_its_own_part_that_it_made_since() -> None:
    east, south, west = (made_by(sender)[NORTH.name] for sender in (EAST, SOUTH, WEST))
    for old in (b"", b"before", b"since then and more"):
        with pytest.raises(VotesForgottenError, match="start another"):
            joined_at_north([east, made_by_north(old)[NORTH.name], south], b"since then")
    with pytest.raises(VotesForgottenError):
        joined_at_north([east, south, west], b"since then")
    with pytest.raises(KeyPartRefusedError):  # somebody else's does not open for another reason
        joined_at_north([*truncated((east,)), made_by_north(b"since then")[NORTH.name], south], b"since then")


# --- what is derived from it ---


def test_keyed_digests_differ_by_key_and_by_model_and_are_not_the_plain_ones() -> None:
    models = [b"", b"m" * 32, b"n" * 32]
    keyed = [StudyKey(key).model(model) for key in (b"k" * 32, b"l" * 32) for model in models]
    assert len(set(keyed)) == len(keyed)
    assert {len(digest) for digest in keyed} == {32}
    assert not {hashlib.sha256(model).digest() for model in models} & set(keyed)
    assert StudyKey(b"k" * 32).model(b"m" * 32) == StudyKey(b"k" * 32).model(b"m" * 32)
    assert hmac.digest(b"k" * 32, b"m" * 32, "sha256") not in keyed, "bound to what it is for"


def test_what_is_sealed_once_opens_only_under_its_key_purpose_and_context() -> None:
    key = StudyKey(b"k" * 32)
    box = key.seal_once(b"content", b"reveal", b"round", b"north")
    assert key.open_once(box, b"reveal", b"round", b"north") == b"content"
    for other, purpose, context in (
        (StudyKey(b"l" * 32), b"reveal", (b"round", b"north")),
        (key, b"checkpoint", (b"round", b"north")),
        (key, b"reveal", (b"other", b"north")),
        (key, b"reveal", (b"round", b"south")),
        (key, b"reveal", (b"round",)),
        (key, b"reveal", (b"roundnorth", b"")),
        (key, b"revealround", (b"north",)),
    ):
        with pytest.raises(SumRefusedError):
            other.open_once(box, purpose, *context)


@pytest.mark.parametrize("length", [0, 1, 15, 16, 22])
def test_a_sealed_message_that_was_cut_is_refused(length: int) -> None:
    key = StudyKey(b"k" * 32)
    box = key.seal_once(b"content", b"reveal")
    assert len(box) == 23
    with pytest.raises(SumRefusedError):
        key.open_once(box[:length], b"reveal")


def test_keys_for_different_purposes_and_contexts_are_different_keys() -> None:
    key = StudyKey(b"k" * 32)
    derived = [key.derive(b"a"), key.derive(b"b"), key.derive(b"a", b""), key.derive(b"a", b"b"), key.derive(b"ab")]
    derived += [StudyKey(b"l" * 32).derive(b"a"), key.secret]
    assert len(set(derived)) == len(derived)


# --- checkpoints ---

KEY = StudyKey(b"k" * 32)
LENGTHS = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES]


def sealed(content: bytes, purpose: bytes = b"checkpoint-1", key: StudyKey = KEY) -> bytes:
    return b"".join(seal_stream(io.BytesIO(content), key, purpose))


def opened(box: bytes, purpose: bytes = b"checkpoint-1", key: StudyKey = KEY) -> bytes:
    return b"".join(open_stream(io.BytesIO(box), key, purpose))


def some_content(length: int) -> bytes:
    return SeededRandomness(length).draw(length)


@pytest.mark.parametrize("length", LENGTHS)
def test_a_checkpoint_of_any_length_comes_back_as_it_was(length: int) -> None:
    content = some_content(length)
    box = sealed(content)
    assert opened(box) == content
    assert len(box) == 32 + length + 16 * max(1, -(-length // CHUNK_BYTES))
    assert sealed(content) != box, "sealed anew each time"


@pytest.mark.parametrize("length", [1, CHUNK_BYTES, 2 * CHUNK_BYTES + 5])
def test_a_checkpoint_that_was_cut_swapped_extended_or_changed_does_not_open(length: int) -> None:
    box = sealed(some_content(length))
    salt, piece = 32, CHUNK_BYTES + 16
    changed = bytearray(box)
    changed[-1] ^= 1
    lies = [b"", box[:salt], box[:-1], box + b"\x00", bytes(changed), box[1:]]
    lies += [bytes(salt) + box[salt:], box[:salt] + box[salt + 16 :], box + box[salt:]]
    if length > CHUNK_BYTES:
        first, second, rest = box[salt : salt + piece], box[salt + piece : salt + 2 * piece], box[salt + 2 * piece :]
        lies += [
            box[: salt + piece - 1],
            box[:salt] + second + first + rest,
            box[:salt] + first + rest,
            box[:salt] + first,
            box[: -len(rest)],
        ]
    for lie in lies:
        with pytest.raises(SumRefusedError):
            opened(lie)


def test_a_checkpoint_opens_only_as_the_one_of_its_round_and_under_its_key() -> None:
    box = sealed(b"model")
    for purpose, key in ((b"checkpoint-2", KEY), (b"checkpoint-1", StudyKey(b"l" * 32))):
        with pytest.raises(SumRefusedError):
            opened(box, purpose, key)
