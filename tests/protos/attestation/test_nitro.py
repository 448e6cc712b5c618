"""Documents of AWS Nitro Enclaves: genuine ones, and ones of an Amazon of our own."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from quorate.attestation.appraisal import Appraisal
from quorate.attestation.appraise import examine
from quorate.attestation.evidence import Evidence, Kind
from quorate.attestation.policy import AttestationPolicy, NitroPolicy, NitroVersion

from .authorities import BINDING, EXPECTED, NOW, Amazon, der, p384, root
from .samples import NITRO, NITRO_DEBUG, TODAY, found_in, refused

VERSION = NitroVersion(name="one", pcr0="01" * 48, pcr1="02" * 48, pcr2="03" * 48)
POLICY = AttestationPolicy(nitro=NitroPolicy(allow=(VERSION,)))
MS = int(NOW.timestamp() * 1000)


@pytest.fixture(scope="module")
def amazon() -> Amazon:
    return Amazon()


def appraised(amazon: Amazon, evidence: Evidence) -> Appraisal:
    return examine(evidence, EXPECTED, POLICY, NOW, amazon.roots)


def test_a_genuine_document_holds_in_all_but_the_binding_for_it_carries_none() -> None:
    found = found_in(NITRO)
    assert refused(found) == ["attestation_binding"]
    assert found.version == "sample"


def test_a_genuine_document_of_an_enclave_that_can_be_debugged_is_refused() -> None:
    assert found_in(NITRO_DEBUG).code == "attestation_debug"


@pytest.mark.parametrize("sample", [NITRO, NITRO_DEBUG])
def test_the_certificates_of_genuine_documents_are_over_today(sample: Any) -> None:
    assert found_in(sample, now=TODAY).code == "attestation_expired"


def test_a_document_of_our_own_amazon_is_accepted_by_who_believes_in_it_and_by_nobody_else(amazon: Amazon) -> None:
    assert appraised(amazon, amazon.evidence()).refusal is None
    assert examine(amazon.evidence(), EXPECTED, POLICY, NOW).code == "attestation_signature"


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"pcrs": {0: bytes(48), 1: b"\2" * 48, 2: b"\3" * 48}}, "attestation_debug"),
        ({"pcrs": {0: b"\1" * 48, 1: bytes(48), 2: b"\3" * 48}}, "attestation_debug"),
        ({"pcrs": {0: b"\1" * 48, 1: b"\2" * 48, 2: b"\4" * 48}}, "attestation_measurement"),
        ({"pcrs": {0: b"\1" * 48, 1: b"\2" * 48}}, "attestation_kind"),
        ({"pcrs": {0: b"\1" * 48, 1: b"\2" * 48, 2: b"\3" * 32}}, "attestation_kind"),
        ({"pcrs": {0: b"\1" * 48, 1: b"\2" * 48, 2: b"\3" * 48, 32: bytes(48)}}, "attestation_kind"),
        ({"pcrs": []}, "attestation_kind"),
        ({"user_data": BINDING[::-1]}, "attestation_binding"),
        ({"user_data": None}, "attestation_binding"),
        ({"user_data": None, "nonce": BINDING}, "attestation_binding"),
        ({"user_data": "text"}, "attestation_kind"),
        ({"digest": "SHA256"}, "attestation_kind"),
        ({"module_id": 1}, "attestation_kind"),
        ({"timestamp": 0}, "attestation_kind"),
        ({"timestamp": True}, "attestation_kind"),
        ({"timestamp": 1 << 60}, "attestation_kind"),
        ({"timestamp": MS - 301_000}, "attestation_stale"),
        ({"timestamp": MS + 61_000}, "attestation_stale"),
        ({"cabundle": []}, "attestation_kind"),
        ({"cabundle": [b""] * 8}, "attestation_kind"),
        ({"cabundle": [b"", b""]}, "attestation_kind"),
        ({"cabundle": [b""]}, "attestation_signature"),
        ({"certificate": b"no certificate"}, "attestation_kind"),
        ({"certificate": ...}, "attestation_kind"),
        ({"extra": 1}, "attestation_kind"),
        ({"header": b"\xa0"}, "attestation_kind"),
        ({"header": b"\xa1\x01\x26"}, "attestation_kind"),
        ({"header": b"\xa2\x01\x38\x22\x02\x80"}, "attestation_kind"),
        ({"unprotected": {1: -35}}, "attestation_kind"),
        ({"behind": b"\x00"}, "attestation_kind"),
        ({"signer": p384()}, "attestation_signature"),
        ({"until": NOW - timedelta(seconds=1)}, "attestation_expired"),
    ],
)
def test_a_document_that_is_wrong_in_one_thing_is_refused(amazon: Amazon, changed: dict[str, Any], code: str) -> None:
    assert appraised(amazon, amazon.evidence(**changed)).code == code


def test_a_leaf_of_another_authority_of_the_same_name_is_refused(amazon: Amazon) -> None:
    assert appraised(amazon, amazon.evidence(issuer=root("zone", p384()))).code == "attestation_signature"


@pytest.mark.parametrize("authority", [{"may_sign": True}, {"is_authority": True, "may_sign": False}], ids=str)
def test_who_is_no_authority_cannot_vouch_for_another_enclave(amazon: Amazon, authority: dict[str, bool]) -> None:
    """Whoever has one enclave would otherwise be any other."""
    between = amazon.zone.issue("enclave", p384(), **authority)
    bundle = [der(each.certificate) for each in (amazon.root, amazon.zone, between)]
    assert appraised(amazon, amazon.evidence(issuer=between, cabundle=bundle)).code == "attestation_signature"
    sound = amazon.zone.issue("rack", p384(), is_authority=True)
    bundle = [der(each.certificate) for each in (amazon.root, amazon.zone, sound)]
    assert appraised(amazon, amazon.evidence(issuer=sound, cabundle=bundle)).refusal is None


def test_a_signature_of_another_curve_or_length_is_refused(amazon: Amazon) -> None:
    small = ec.generate_private_key(ec.SECP256R1())
    assert appraised(amazon, amazon.evidence(leaf_key=small, signer=small)).code == "attestation_signature"
    header, unprotected, payload, signature = cbor2.loads(amazon.evidence().raw)
    longer = cbor2.dumps([header, unprotected, payload, signature + b"\0"])
    assert appraised(amazon, Evidence(Kind.NITRO, longer)).code == "attestation_kind"


@pytest.mark.parametrize(
    "raw", [b"\xd2\x84\x41\xa0\xa0\x40\x40", b"\x80", b"\xf6", b"\x9f\xff", b"\xa0", b"\x84" * 400]
)
def test_what_is_no_cose_object_is_refused(amazon: Amazon, raw: bytes) -> None:
    assert appraised(amazon, Evidence(Kind.NITRO, raw)).code == "attestation_kind"


def test_a_key_twice_in_a_document_is_refused(amazon: Amazon) -> None:
    header, unprotected, payload, signature = cbor2.loads(amazon.evidence().raw)
    assert payload.startswith(b"\xa9\x69module_id")
    twice = payload.replace(b"\xa9\x69module_id", b"\xaa\x69module_id\x60\x69module_id", 1)
    changed = cbor2.dumps([header, unprotected, twice, signature])
    assert appraised(amazon, Evidence(Kind.NITRO, changed)).code == "attestation_kind"


def test_nothing_may_come_beside_a_document(amazon: Amazon) -> None:
    assert appraised(amazon, Evidence(Kind.NITRO, amazon.evidence().raw, b"x")).code == "attestation_kind"


def test_no_byte_that_is_signed_can_be_changed(amazon: Amazon) -> None:
    good = amazon.evidence().raw
    for at in range(len(good)):
        raw = bytearray(good)
        raw[at] ^= 0x01
        found = appraised(amazon, Evidence(Kind.NITRO, bytes(raw)))
        assert found.refusal is not None, at
        assert found.claims is None, at
