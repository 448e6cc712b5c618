"""Names, roles and keys: what may be a name, and who vouches for what."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from quorate.errors import IdentityError, InputError, KeyMismatchError
from quorate.identity import Member, Role, SiteName, Subject, fingerprint, parse_name, sealing_proof

SIGNING = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
SEALING = bytes(range(32, 64))


def public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


@pytest.mark.parametrize("name", ["a", "north", "north-2", "0", "x" * 63])
def test_a_name_that_is_allowed(name: str) -> None:
    assert parse_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "x" * 64, "North", "-north", "north-", "no rth", "north\n", "../x", "a/b", "a.b", "a_b", "ñ", "a\x00", "a:b"],
)
def test_a_name_that_could_mean_something_else_is_refused(name: str) -> None:
    with pytest.raises(InputError):
        parse_name(name)


def test_the_example_of_a_name_is_a_name() -> None:
    for what in ("site", "study", "data set"):
        with pytest.raises(InputError) as refused:
            parse_name("no name", what)
        assert parse_name(refused.value.action.removeprefix("Choose another name, for example "))


def certificate(*names: x509.GeneralName) -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([])
    start = datetime(2026, 1, 1, tzinfo=UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=1))
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, hashes.SHA256())


def uri(text: str) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier(text)


@pytest.mark.parametrize("role", Role)
def test_a_certificate_says_who_its_holder_is(role: Role) -> None:
    subject = Subject("north-sea", role, "north")
    assert Subject.of(certificate(uri(subject.uri()))) == subject
    assert Subject.of(certificate(x509.DNSName("localhost"), uri(subject.uri()))) == subject


@pytest.mark.parametrize(
    "names",
    [
        (),
        (x509.DNSName("quorate"),),
        (uri("quorate://north-sea/site/north"), uri("quorate://north-sea/operator/north")),
        (uri("quorate://north-sea/admin/north"),),
        (uri("quorate://north-sea/site/north/more"),),
        (uri("quorate://north-sea/site/"),),
        (uri("https://north-sea/site/north"),),
        (uri("quorate://north-sea/site/north?x"),),
        (uri("quorate://north-sea/site/north\n"),),
    ],
    ids=["nothing", "no URI", "two", "role", "longer", "no name", "scheme", "query", "line end"],
)
def test_a_certificate_that_does_not_say_exactly_one_thing_says_nothing(names: tuple[x509.GeneralName, ...]) -> None:
    with pytest.raises(IdentityError):
        Subject.of(certificate(*names))


def test_a_member_s_signing_key_vouches_for_its_sealing_key() -> None:
    member = Member(SiteName("north"), public(SIGNING), SEALING, sealing_proof(SIGNING, SEALING))
    assert member.fingerprint == fingerprint(public(SIGNING))


@pytest.mark.parametrize(
    ("signing", "sealing", "proof"),
    [
        (public(SIGNING), b"\x00" * 32, sealing_proof(SIGNING, SEALING)),
        (public(Ed25519PrivateKey.from_private_bytes(bytes(32))), SEALING, sealing_proof(SIGNING, SEALING)),
        (public(SIGNING), SEALING, SIGNING.sign(SEALING)),
        (public(SIGNING), SEALING, b""),
        (public(SIGNING)[:31], SEALING, sealing_proof(SIGNING, SEALING)),
        (public(SIGNING), SEALING + b"\x00", sealing_proof(SIGNING, SEALING)),
        (b"\xff" * 32, SEALING, sealing_proof(SIGNING, SEALING)),
    ],
    ids=["swapped sealing key", "swapped signing key", "signed without context", "no proof", "short", "long", "no key"],
)
def test_keys_that_do_not_vouch_for_each_other_make_no_member(signing: bytes, sealing: bytes, proof: bytes) -> None:
    with pytest.raises(KeyMismatchError):
        Member(SiteName("north"), signing, sealing, proof)


def test_a_member_has_a_valid_name() -> None:
    with pytest.raises(InputError):
        Member(SiteName("../north"), public(SIGNING), SEALING, sealing_proof(SIGNING, SEALING))


def test_a_fingerprint_never_changes_and_differs_between_keys() -> None:
    assert fingerprint(public(SIGNING)) == "8215-f145-9218-1195-1cde-dd5f"
    assert fingerprint(bytes(32)) != fingerprint(bytes(31) + b"\x01")
