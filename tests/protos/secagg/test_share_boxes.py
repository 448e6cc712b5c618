"""Sealed shares: what travels opens only for whom, in which round and from whom it says, and is refused in one way."""

from __future__ import annotations

import copy
import hashlib
import pickle

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from hypothesis import given
from hypothesis import strategies as st

from quorate.aggregation import ring, rlwe
from quorate.aggregation.words import pack_words, packed_bytes
from quorate.errors import ContributionError, FrameError, KeyMismatchError
from quorate.identity import SiteName
from quorate.secagg.share_boxes import RoundKey, SignedShare, Words, deal, message_bytes, open_sealed, receive, seal
from tests.protos.secagg.kit import SeededRandomness

Q = ring.MODULUS
ROUND, OTHER_ROUND = bytes(range(32)), bytes(range(1, 33))
NORTH, SOUTH, EAST = SiteName("north"), SiteName("south"), SiteName("east")
SIGNING = {site: Ed25519PrivateKey.from_private_bytes(bytes([i]) * 32) for i, site in enumerate((NORTH, SOUTH, EAST))}
VERIFY = {site: key.public_key().public_bytes_raw() for site, key in SIGNING.items()}
ROUND_KEY, OTHER_ROUND_KEY = RoundKey(), RoundKey()
WORDS = 3
SHARE = np.array([0, 1234567890123456, Q - 1], dtype=np.uint64)
REFUSAL = (
    "A sealed share was refused. Expected what its sender sealed for this site in this round. "
    "Ask the sender's administrator whether both sites see the same round."
)


def dealt(share: Words = SHARE) -> bytes:
    return deal(share, ROUND, NORTH, SOUTH, SIGNING[NORTH], ROUND_KEY.public_key)


def received(message: bytes) -> SignedShare:
    return receive(message, ROUND, NORTH, SOUTH, VERIFY[NORTH], ROUND_KEY, WORDS)


def refused(message: bytes, **changes: object) -> None:
    """The one refusal: one class, one text, no cause."""
    arguments: dict[str, object] = {
        "round_id": ROUND,
        "sender": NORTH,
        "recipient": SOUTH,
        "verify_key": VERIFY[NORTH],
        "private_round_key": ROUND_KEY,
        "words": WORDS,
    }
    with pytest.raises(FrameError) as caught:
        receive(message, **(arguments | changes))  # type: ignore[arg-type]
    check_refusal(caught.value)


def check_refusal(error: FrameError) -> None:
    assert type(error) is FrameError
    assert str(error) == REFUSAL
    assert error.__suppress_context__
    assert error.__cause__ is None


def context(kind: bytes, round_id: bytes = ROUND, sender: bytes = b"north", recipient: bytes = b"south") -> bytes:
    """What boxes and signatures are bound to, written down a second time."""
    fields = b"".join(bytes([len(part)]) + part for part in (kind, round_id, sender, recipient))
    return b"quorate/secagg/sealing/v2\x00" + fields


def crafted(
    plain_share: bytes,
    *,
    inner: bytes | None = None,
    info: bytes | None = None,
    dealer: Ed25519PrivateKey = SIGNING[NORTH],
    outer: Ed25519PrivateKey = SIGNING[NORTH],
    outer_context: bytes | None = None,
) -> bytes:
    """A message as a member would forge it, who can seal and sign whatever he likes."""
    if inner is None:
        inner = dealer.sign(context(b"dealt") + hashlib.sha256(plain_share).digest())
    suite = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
    to = X25519PublicKey.from_public_bytes(ROUND_KEY.public_key)
    box = suite.encrypt(plain_share + inner, to, info=context(b"share") if info is None else info)
    return box + outer.sign((context(b"share") if outer_context is None else outer_context) + box)


PLAIN = pack_words(SHARE)


# --- what works ------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, Q - 1), min_size=1, max_size=50))
def test_a_dealt_share_arrives_as_it_was(numbers: list[int]) -> None:
    share = np.array(numbers, dtype=np.uint64)
    message = dealt(share)
    assert len(message) == message_bytes(len(numbers)) == packed_bytes(len(numbers)) + 176
    signed = receive(message, ROUND, NORTH, SOUTH, VERIFY[NORTH], ROUND_KEY, len(numbers))
    assert np.array_equal(signed.words, share)
    assert signed.words.dtype == np.uint64
    assert (signed.round_id, signed.dealer, signed.recipient) == (ROUND, NORTH, SOUTH)


def test_a_share_of_a_whole_key_is_about_thirteen_kibibytes() -> None:
    share = rlwe.uniform(SeededRandomness(1), ring.DEGREE + 30)
    message = dealt(share)
    assert len(message) < 13_800
    assert np.array_equal(receive(message, ROUND, NORTH, SOUTH, VERIFY[NORTH], ROUND_KEY, share.size).words, share)


def test_the_format_is_the_documented_one() -> None:
    assert np.array_equal(received(crafted(PLAIN)).words, SHARE)
    key = RoundKey()
    message = deal(SHARE, ROUND, NORTH, SOUTH, SIGNING[NORTH], key.public_key)
    SIGNING[NORTH].public_key().verify(message[-64:], context(b"share") + message[:-64])
    plain = key.open(message[:-64], context(b"share"))
    assert plain[:-64] == PLAIN
    SIGNING[NORTH].public_key().verify(plain[-64:], context(b"dealt") + hashlib.sha256(PLAIN).digest())


def test_a_box_from_an_earlier_version_still_opens() -> None:
    key = X25519PrivateKey.from_private_bytes(bytes(range(32)))
    assert open_sealed(bytes.fromhex(GOLDEN_BOX), key, b"golden", 3).tolist() == SHARE.tolist()


def test_the_same_share_is_never_sealed_to_the_same_bytes() -> None:
    first, second = dealt(), dealt()
    assert first[:32] != second[:32]
    assert first[32:-64] != second[32:-64]


def test_neither_share_nor_inner_signature_shows_in_a_message() -> None:
    message = dealt(np.full(WORDS, 0x000ABBCCDDEEFF11, dtype=np.uint64))
    inner = receive(message, ROUND, NORTH, SOUTH, VERIFY[NORTH], ROUND_KEY, WORDS).signature
    assert pack_words(np.full(2, 0x000ABBCCDDEEFF11, dtype=np.uint64)) not in message
    assert inner not in message
    assert inner[:32] not in message


# --- replay and misdirection -----------------------------------------------------------------------------------------


def test_a_share_of_another_round_is_refused() -> None:
    refused(dealt(), round_id=OTHER_ROUND)


def test_a_share_for_another_recipient_is_refused() -> None:
    refused(dealt(), recipient=EAST)


def test_a_share_for_another_round_key_is_refused() -> None:
    refused(dealt(), private_round_key=OTHER_ROUND_KEY)


def test_a_share_under_the_name_of_another_sender_is_refused() -> None:
    refused(dealt(), sender=EAST)
    refused(dealt(), sender=EAST, verify_key=VERIFY[EAST])


def test_a_member_who_signs_the_box_of_another_gains_nothing() -> None:
    box = dealt()[:-64]
    stolen = box + SIGNING[EAST].sign(context(b"share", sender=b"east") + box)
    refused(stolen, sender=EAST, verify_key=VERIFY[EAST])


def test_a_box_of_another_round_signed_anew_for_this_one_is_refused() -> None:
    message = crafted(PLAIN, info=context(b"share", round_id=OTHER_ROUND))
    refused(message)


@pytest.mark.parametrize("kind", [b"dealt", b"vote", b"reveal", b""])
def test_a_box_or_a_signature_of_another_kind_is_refused(kind: bytes) -> None:
    refused(crafted(PLAIN, info=context(kind)))
    refused(crafted(PLAIN, outer_context=context(kind)))
    inner = SIGNING[NORTH].sign(context(b"share" if kind == b"dealt" else kind) + hashlib.sha256(PLAIN).digest())
    refused(crafted(PLAIN, inner=inner))


def test_names_that_run_into_each_other_are_not_confused() -> None:
    one = deal(SHARE, ROUND, SiteName("ab"), SiteName("c"), SIGNING[NORTH], ROUND_KEY.public_key)
    refused(one, sender=SiteName("a"), recipient=SiteName("bc"))
    assert receive(one, ROUND, SiteName("ab"), SiteName("c"), VERIFY[NORTH], ROUND_KEY, WORDS).dealer == "ab"


def test_sender_and_recipient_cannot_be_exchanged() -> None:
    refused(dealt(), sender=SOUTH, recipient=NORTH)


# --- tampering -------------------------------------------------------------------------------------------------------


def test_every_flipped_bit_is_refused() -> None:
    message = dealt()
    for bit in range(8 * len(message)):
        flipped = bytearray(message)
        flipped[bit // 8] ^= 1 << bit % 8
        refused(bytes(flipped))


def test_every_flipped_bit_of_a_box_is_refused_even_under_a_fresh_signature() -> None:
    box = dealt()[:-64]
    for bit in range(0, 8 * len(box), 3):
        flipped = bytearray(box)
        flipped[bit // 8] ^= 1 << bit % 8
        # The top bit of a curve point is masked (RFC 7748), yet the encapsulated key is hashed as it stands.
        refused(bytes(flipped) + SIGNING[NORTH].sign(context(b"share") + flipped))


@pytest.mark.parametrize("length", [0, 1, 31, 32, 63, 64, 112, 175, 176])
def test_a_truncated_message_is_refused(length: int) -> None:
    refused(dealt()[:length])
    refused(dealt()[-length:] if length else b"")


def test_a_message_that_is_a_byte_or_a_word_too_long_or_short_is_refused() -> None:
    message = dealt()
    for wrong in (message[:-1], message[1:], message + b"\x00", message + bytes(8), message[:-8], b"\x00" + message):
        refused(wrong)


def test_more_or_fewer_words_than_the_round_has_are_refused() -> None:
    for count in (1, 2, 4, 1000):
        refused(dealt(np.zeros(count, dtype=np.uint64)))
        refused(dealt(), words=count)


def test_a_message_of_wrong_length_is_refused_before_anything_is_decrypted() -> None:
    class Untouched(RoundKey):
        def open(self, box: bytes, info: bytes) -> bytes:
            raise AssertionError("decrypted")

    refused(dealt()[:-1], private_round_key=Untouched())
    refused(bytes(message_bytes(WORDS)), private_round_key=Untouched())


@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f"])
def test_an_encapsulated_key_of_small_order_is_refused(point: bytes) -> None:
    box = point + dealt()[32:-64]
    refused(box + SIGNING[NORTH].sign(context(b"share") + box))


# --- a bad dealer ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [Q, Q + 1, 2**52 - 1])
@pytest.mark.parametrize("position", range(WORDS))
def test_a_word_that_is_not_below_q_is_refused(value: int, position: int) -> None:
    share = SHARE.copy()
    share[position] = value
    refused(crafted(pack_words(share)))


def test_a_share_with_bits_behind_its_last_word_is_refused() -> None:
    refused(crafted(PLAIN[:-1] + bytes([PLAIN[-1] | 0x80])))


def test_a_bad_inner_signature_is_refused() -> None:
    good = SIGNING[NORTH].sign(context(b"dealt") + hashlib.sha256(PLAIN).digest())
    refused(crafted(PLAIN, inner=bytes(64)))
    refused(crafted(PLAIN, inner=good[:-1] + bytes([good[-1] ^ 1])))
    refused(crafted(PLAIN, dealer=SIGNING[EAST]))
    another_share = hashlib.sha256(bytes(len(PLAIN))).digest()
    refused(crafted(PLAIN, inner=SIGNING[NORTH].sign(context(b"dealt") + another_share)))
    for elsewhere in (
        context(b"dealt", round_id=OTHER_ROUND),
        context(b"dealt", recipient=b"east"),
        context(b"dealt", sender=b"east"),
        b"",
    ):
        refused(crafted(PLAIN, inner=SIGNING[NORTH].sign(elsewhere + hashlib.sha256(PLAIN).digest())))


def test_a_foreign_outer_signature_is_refused() -> None:
    refused(crafted(PLAIN, outer=SIGNING[EAST]))
    refused(dealt(), verify_key=VERIFY[EAST])
    refused(dealt()[:-64] + bytes(64))


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33), b"\xff" * 32])
def test_a_malformed_verification_key_is_refused(key: bytes) -> None:
    refused(dealt(), verify_key=key)


def test_a_received_share_is_evidence_that_others_can_check() -> None:
    signed = received(dealt())
    SignedShare(signed.words, ROUND, NORTH, SOUTH, VERIFY[NORTH], signed.signature)
    other = SHARE.copy()
    other[1] ^= np.uint64(1)
    for changed in (
        (other, ROUND, NORTH, SOUTH, VERIFY[NORTH]),
        (SHARE, OTHER_ROUND, NORTH, SOUTH, VERIFY[NORTH]),
        (SHARE, ROUND, EAST, SOUTH, VERIFY[NORTH]),
        (SHARE, ROUND, NORTH, EAST, VERIFY[NORTH]),
        (SHARE, ROUND, NORTH, SOUTH, VERIFY[EAST]),
        (SHARE[:2], ROUND, NORTH, SOUTH, VERIFY[NORTH]),
        (SHARE.astype(np.int64), ROUND, NORTH, SOUTH, VERIFY[NORTH]),
        (SHARE.reshape(1, -1), ROUND, NORTH, SOUTH, VERIFY[NORTH]),
        (SHARE, ROUND[:31], NORTH, SOUTH, VERIFY[NORTH]),
    ):
        with pytest.raises(FrameError) as caught:
            SignedShare(*changed, signed.signature)  # type: ignore[arg-type]
        check_refusal(caught.value)


def test_a_share_that_a_dealer_signed_with_a_word_beyond_q_is_no_evidence() -> None:
    share = np.array([Q], dtype=np.uint64)
    signature = SIGNING[NORTH].sign(context(b"dealt") + hashlib.sha256(pack_words(share)).digest())
    with pytest.raises(FrameError):
        SignedShare(share, ROUND, NORTH, SOUTH, VERIFY[NORTH], signature)


# --- fuzzing ---------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused_in_the_one_way(message: bytes) -> None:
    refused(message)


@given(st.binary(min_size=message_bytes(WORDS), max_size=message_bytes(WORDS)))
def test_arbitrary_bytes_of_the_right_length_are_refused_in_the_one_way(message: bytes) -> None:
    refused(message)
    box = message[:-64]
    refused(box + SIGNING[NORTH].sign(context(b"share") + box))
    with pytest.raises(FrameError) as caught:
        open_sealed(box, X25519PrivateKey.generate(), b"info", WORDS + 8)
    check_refusal(caught.value)


@given(st.binary(min_size=len(PLAIN) + 64, max_size=len(PLAIN) + 64))
def test_arbitrary_contents_of_a_box_are_refused_in_the_one_way(plain: bytes) -> None:
    refused(crafted(plain[:-64], inner=plain[-64:]))


@given(st.binary(max_size=40), st.text(max_size=300), st.text(max_size=300), st.binary(max_size=40))
def test_arbitrary_names_rounds_and_keys_are_refused_in_the_one_way(
    round_id: bytes, sender: str, recipient: str, key: bytes
) -> None:
    refused(dealt(), round_id=round_id)
    refused(dealt(), sender=sender)
    refused(dealt(), recipient=recipient)
    refused(dealt(), verify_key=key)


# --- boxes by themselves ---------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, Q - 1), max_size=20), st.binary(max_size=60))
def test_a_box_opens_with_the_key_and_the_info_it_was_sealed_under(numbers: list[int], info: bytes) -> None:
    key = X25519PrivateKey.generate()
    share = np.array(numbers, dtype=np.uint64)
    box = seal(share, key.public_key().public_bytes_raw(), info)
    assert len(box) == packed_bytes(len(numbers)) + 48
    assert open_sealed(box, key, info, len(numbers)).tolist() == numbers


def test_a_box_that_does_not_open_or_holds_no_share_is_refused_in_the_one_way() -> None:
    key = X25519PrivateKey.generate()
    to = key.public_key()
    box = seal(SHARE, to.public_bytes_raw(), b"info")
    suite = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
    beyond = suite.encrypt(pack_words(np.full(WORDS, Q, np.uint64)), to, info=b"info")
    other_suite = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM).encrypt(PLAIN, to, info=b"info")
    for attempt in (
        lambda: open_sealed(box, X25519PrivateKey.generate(), b"info", WORDS),
        lambda: open_sealed(box, key, b"other", WORDS),
        lambda: open_sealed(box, key, b"", WORDS),
        lambda: open_sealed(box, key, b"info", WORDS + 1),
        lambda: open_sealed(box[:-1], key, b"info", WORDS),
        lambda: open_sealed(bytes(32) + box[32:], key, b"info", WORDS),
        lambda: open_sealed(beyond, key, b"info", WORDS),
        lambda: open_sealed(other_suite, key, b"info", WORDS),
        lambda: open_sealed(b"", key, b"info", WORDS),
    ):
        with pytest.raises(FrameError) as caught:
            attempt()
        check_refusal(caught.value)


@pytest.mark.parametrize(
    "share",
    [
        np.array([Q], dtype=np.uint64),
        np.array([2**64 - 1], dtype=np.uint64),
        np.array([1], dtype=np.int64),
        np.array([[1]], dtype=np.uint64),
    ],
)
def test_a_share_that_is_none_is_not_sealed_and_not_repeated(share: Words) -> None:
    with pytest.raises(ContributionError) as caught:
        seal(share, ROUND_KEY.public_key, b"")
    assert str(int(share.reshape(-1)[0])) not in str(caught.value).replace("below q", "")
    with pytest.raises(ContributionError):
        dealt(share)


@pytest.mark.parametrize("to", [b"", bytes(31), bytes(33), bytes(32), b"\x01" + bytes(31)])
def test_nothing_is_sealed_to_a_key_with_which_anybody_could_open_it(to: bytes) -> None:
    with pytest.raises(KeyMismatchError):
        seal(SHARE, to, b"info")
    with pytest.raises(KeyMismatchError):
        deal(SHARE, ROUND, NORTH, SOUTH, SIGNING[NORTH], to)


@pytest.mark.parametrize(
    ("round_id", "sender"), [(bytes(31), "north"), (bytes(33), "north"), (ROUND, ""), (ROUND, "n" * 256)]
)
def test_nothing_is_dealt_under_a_round_or_a_name_that_cannot_be(round_id: bytes, sender: str) -> None:
    with pytest.raises(FrameError):
        deal(SHARE, round_id, SiteName(sender), SOUTH, SIGNING[NORTH], ROUND_KEY.public_key)


# --- round keys ------------------------------------------------------------------------------------------------------


def test_each_round_key_is_fresh() -> None:
    assert len({RoundKey().public_key for _ in range(50)}) == 50


def test_a_round_key_that_was_forgotten_opens_nothing() -> None:
    key = RoundKey()
    message = deal(SHARE, ROUND, NORTH, SOUTH, SIGNING[NORTH], key.public_key)
    assert np.array_equal(receive(message, ROUND, NORTH, SOUTH, VERIFY[NORTH], key, WORDS).words, SHARE)
    key.forget()
    refused(message, private_round_key=key)


@pytest.mark.parametrize("leave", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_round_key_cannot_leave_the_memory_it_was_made_in(leave: object) -> None:
    with pytest.raises(TypeError):
        leave(ROUND_KEY)  # type: ignore[operator]


def test_nothing_secret_shows_when_printed() -> None:
    signed = received(dealt())
    assert "1234567890123456" not in repr(signed)
    assert "words" not in repr(signed)
    assert "X25519" not in repr(ROUND_KEY)
    assert not hasattr(ROUND_KEY, "__dict__")


def test_a_received_share_can_be_added_to_others_in_place() -> None:
    total = received(dealt()).words
    ring.add(total, received(dealt()).words)
    assert total.tolist() == [2 * int(word) % Q for word in SHARE]


GOLDEN_BOX = (
    "ed31e85672ddbb0dadc57ce51d47168f33704badf7f13cd38dbf281a341b0e30c5b717e8"
    "9913de7bdbe696d5c66b05623b00606825b56cfc7ff0ae669165be9f28608e67"
)
