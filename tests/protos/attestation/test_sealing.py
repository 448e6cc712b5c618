"""What passes between a site and an attested machine: sealed there, signed here, and nothing of it elsewhere."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from quorate.attestation.sealing import (
    _SUITE,
    KEY_BYTES,
    EnclaveIdentity,
    EnclaveKeys,
    blob_key,
    reply_context,
    reply_secret,
    seal,
    signed_part,
)
from quorate.errors import SiteSignatureError, UnsealError

SITE, OTHER = (Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2))
KEY = SITE.public_key().public_bytes_raw()
CONTEXT = reply_context(b"d" * 32, "malignancy-0a1b2c", b"m" * 32, "east")
MACHINE = EnclaveKeys()
CONTENT = b"counts" * 100
SEALED = seal(CONTENT, MACHINE.identity, CONTEXT, SITE)


def test_the_machine_opens_what_was_sealed_to_it_and_nobody_else() -> None:
    assert MACHINE.open(SEALED, CONTEXT, KEY) == CONTENT
    assert MACHINE.open(seal(b"", MACHINE.identity, CONTEXT, SITE), CONTEXT, KEY) == b""
    assert CONTENT[:12] not in SEALED
    with pytest.raises(UnsealError):
        EnclaveKeys().open(SEALED, CONTEXT, KEY)


def test_no_byte_can_be_changed_left_out_or_added() -> None:
    for at in (0, 1, 31, 32, 40, len(SEALED) - 70, len(SEALED) - 1):
        changed = bytearray(SEALED)
        changed[at] ^= 1
        with pytest.raises(UnsealError):
            MACHINE.open(bytes(changed), CONTEXT, KEY)
    for length in (0, 1, 31, 32, 33, 48, 111, 112, len(SEALED) - 1):
        with pytest.raises(UnsealError):
            MACHINE.open(SEALED[:length], CONTEXT, KEY)
        with pytest.raises(UnsealError):
            MACHINE.open(os.urandom(length), CONTEXT, KEY)
    with pytest.raises(UnsealError):
        MACHINE.open(SEALED + b"\0", CONTEXT, KEY)


@pytest.mark.parametrize(
    "other",
    [
        reply_context(b"e" * 32, "malignancy-0a1b2c", b"m" * 32, "east"),
        reply_context(b"d" * 32, "malignancy-other", b"m" * 32, "east"),
        reply_context(b"d" * 32, "malignancy-0a1b2c", b"n" * 32, "east"),
        reply_context(b"d" * 32, "malignancy-0a1b2c", b"m" * 32, "west"),
    ],
    ids=["study", "run", "message", "site"],
)
def test_what_was_sealed_in_one_place_does_not_open_in_another(other: bytes) -> None:
    with pytest.raises(UnsealError):
        MACHINE.open(SEALED, other, KEY)


def test_parts_that_run_together_are_another_place() -> None:
    assert reply_context(b"d", "ab", b"m", "c") != reply_context(b"d", "a", b"bm", "c")


def test_what_another_site_sealed_is_not_this_site_s() -> None:
    forged = seal(CONTENT, MACHINE.identity, CONTEXT, OTHER)
    with pytest.raises(SiteSignatureError):
        MACHINE.open(forged, CONTEXT, KEY)
    with pytest.raises(SiteSignatureError):
        MACHINE.open(SEALED, CONTEXT, b"no key")


def test_a_machine_cannot_pass_on_what_a_site_sealed_to_it_as_if_it_were_for_another() -> None:
    """Its signature is for one machine: another one that is shown the content refuses it."""
    second = EnclaveKeys()
    stolen = _SUITE.decrypt(SEALED, MACHINE._sealing, CONTEXT)
    passed_on = _SUITE.encrypt(stolen, X25519PublicKey.from_public_bytes(second.identity.sealing), CONTEXT)
    with pytest.raises(SiteSignatureError):
        second.open(bytes(passed_on), CONTEXT, KEY)


@pytest.mark.parametrize("key", [bytes(32), b"\x01" + bytes(31), b"short", b""], ids=["zero", "one", "short", "none"])
def test_nothing_is_sealed_to_a_key_that_is_none(key: bytes) -> None:
    with pytest.raises(UnsealError):
        seal(CONTENT, EnclaveIdentity(key, MACHINE.identity.signing), CONTEXT, SITE)


@pytest.mark.parametrize("leave", [pickle.dumps, copy.copy, copy.deepcopy])
def test_the_keys_do_not_leave_the_process(leave: Callable[[object], object]) -> None:
    with pytest.raises(TypeError):
        leave(MACHINE)
    assert not hasattr(MACHINE, "__dict__")


def test_no_two_machines_have_a_key_in_common() -> None:
    first, second = EnclaveKeys().identity, EnclaveKeys().identity
    assert len({first.sealing, first.signing, second.sealing, second.signing}) == 4
    assert first.public_key == first.sealing + first.signing


# --- instructions ---


def test_an_instruction_is_the_machine_s_word_whole() -> None:
    blobs = ((b"a" * 32, 5), (b"b" * 32, 6))
    asked = signed_part(b"m" * 32, b"d" * 32, 60.0, b"work", blobs)
    signature = MACHINE.sign(asked)
    assert MACHINE.identity.has_signed(asked, signature)
    for other in (
        signed_part(b"n" * 32, b"d" * 32, 60.0, b"work", blobs),
        signed_part(b"m" * 32, b"e" * 32, 60.0, b"work", blobs),
        signed_part(b"m" * 32, b"d" * 32, 60.1, b"work", blobs),
        signed_part(b"m" * 32, b"d" * 32, 60.0, b"more", blobs),
        signed_part(b"m" * 32, b"d" * 32, 60.0, b"work", blobs[::-1]),
        signed_part(b"m" * 32, b"d" * 32, 60.0, b"work", blobs[:1]),
        signed_part(b"m" * 32, b"d" * 32, 60.0, b"work", ((b"a" * 32, 6), blobs[1])),
    ):
        assert not MACHINE.identity.has_signed(other, signature)
    assert not MACHINE.identity.has_signed(asked, b"")
    assert not EnclaveKeys().identity.has_signed(asked, signature)


def test_a_signature_under_a_reply_is_none_under_an_instruction() -> None:
    """Each is signed behind a name of its own."""
    assert not EnclaveIdentity(bytes(32), KEY).has_signed(CONTENT, SITE.sign(CONTENT))


# --- keys of bulk data ---


def test_the_keys_of_bulk_data_differ_by_reply_place_and_site() -> None:
    secrets = [
        reply_secret(CONTENT, CONTEXT, SITE),
        reply_secret(CONTENT + b"x", CONTEXT, SITE),
        reply_secret(CONTENT, CONTEXT + b"x", SITE),
        reply_secret(CONTENT, CONTEXT, OTHER),
    ]
    keys = {blob_key(secret, number) for secret in secrets for number in range(16)}
    assert len(keys) == 64
    assert {len(key) for key in keys} == {KEY_BYTES}
    assert reply_secret(CONTENT, CONTEXT, SITE) == secrets[0], (
        "what the server has of a reply need not be brought again"
    )
