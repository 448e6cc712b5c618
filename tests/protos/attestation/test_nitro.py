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
        ({"leaf_key": ec.generate_private_key(ec.SECP256R1())}, "attestation_signature"),
        ({"until": NOW - timedelta(seconds=1)}, "attestation_expired"),
    ],
    ids=str,
)
def test_a_document_that_is_wrong_in_one_thing_is_refused(amazon: Amazon, changed: dict[str, Any], code: str) -> None:
    assert appraised(amazon, amazon.evidence(**changed)).code == code


def test_a_leaf_of_another_authority_of_the_same_name_is_refused(amazon: Amazon) -> None:
    assert appraised(amazon, amazon.evidence(issuer=root("zone", p384()))).code == "attestation_signature"


def test_a_leaf_that_issues_another_is_no_authority(amazon: Amazon) -> None:
    """Whoever has one enclave would otherwise vouch for any other."""
    leaf = amazon.zone.issue("enclave", p384())
    forged = amazon.evidence(issuer=leaf)
    document = cbor2.loads(cbor2.loads(forged.raw)[2])
    longer = [*document["cabundle"], der(leaf.certificate)]
    assert appraised(amazon, amazon.evidence(issuer=leaf, cabundle=longer)).code == "attestation_signature"


@pytest.mark.parametrize(
    "raw", [b"\xd2\x84\x41\xa0\xa0\x40\x40", b"\x80", b"\xf6", b"\x9f\xff", b"\xa0", b"\x84" * 400]
)
def test_what_is_no_cose_object_is_refused(amazon: Amazon, raw: bytes) -> None:
    assert appraised(amazon, Evidence(Kind.NITRO, raw)).code == "attestation_kind"


def test_a_key_twice_in_a_document_is_refused(amazon: Amazon) -> None:
    good = amazon.evidence().raw
    assert b"\xa9\x69module_id" in good
    twice = good.replace(b"\xa9\x69module_id", b"\xaa\x69module_id\x60\x69module_id")
    assert appraised(amazon, Evidence(Kind.NITRO, twice)).code == "attestation_kind"


def test_nothing_may_come_beside_a_document(amazon: Amazon) -> None:
    assert appraised(amazon, Evidence(Kind.NITRO, amazon.evidence().raw, b"x")).code == "attestation_kind"


def test_no_byte_that_is_signed_can_be_changed(amazon: Amazon) -> None:
    good = amazon.evidence().raw
    for at in range(0, len(good), 3):
        raw = bytearray(good)
        raw[at] ^= 0x01
        found = appraised(amazon, Evidence(Kind.NITRO, bytes(raw)))
        assert found.refusal is not None, at
        assert found.claims is None, at
