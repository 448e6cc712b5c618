"""Tokens of Google's Confidential Space: genuine ones, and ones of a Google of our own."""

from __future__ import annotations

import base64
import json
from datetime import timedelta
from typing import Any

import pytest

from quorate.attestation.appraisal import Appraisal
from quorate.attestation.appraise import examine
from quorate.attestation.evidence import Evidence, Kind
from quorate.attestation.policy import AttestationPolicy, ConfidentialSpacePolicy, ConfidentialSpaceVersion

from .authorities import BINDING, EXPECTED, NOW, Google, der, p384, root, rsa_key
from .samples import SPACE, SPACE_DEBUG, TODAY, found_in, refused

ALLOWED = ConfidentialSpacePolicy(allow=(ConfidentialSpaceVersion(name="one", image_digest=f"sha256:{'ab' * 32}"),))
S = int(NOW.timestamp())


@pytest.fixture(scope="module")
def google() -> Google:
    return Google()


def appraised(google: Google, evidence: Evidence, section: ConfidentialSpacePolicy = ALLOWED) -> Appraisal:
    return examine(evidence, EXPECTED, AttestationPolicy(confidential_space=section), NOW, google.roots)


def test_a_genuine_token_holds_in_all_but_the_binding_whose_hash_it_carries() -> None:
    found = found_in(SPACE)
    assert refused(found) == ["attestation_binding"]
    assert found.version == "sample"


def test_a_genuine_token_of_a_machine_that_can_be_debugged_is_refused() -> None:
    assert found_in(SPACE_DEBUG).code == "attestation_debug"


@pytest.mark.parametrize("sample", [SPACE, SPACE_DEBUG])
def test_genuine_tokens_are_over_today(sample: Any) -> None:
    assert found_in(sample, now=TODAY).code == "attestation_expired"


def test_a_token_of_our_own_google_is_accepted_by_who_believes_in_it_and_by_nobody_else(google: Google) -> None:
    assert appraised(google, google.evidence()).refusal is None
    policy = AttestationPolicy(confidential_space=ALLOWED)
    assert examine(google.evidence(), EXPECTED, policy, NOW).code == "attestation_signature"


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"dbgstat": "enabled"}, "attestation_debug"),
        ({"dbgstat": None}, "attestation_debug"),
        ({"hwmodel": "GCP_AMD_SEV"}, "attestation_kind"),
        ({"secboot": False}, "attestation_config"),
        ({"secboot": 1}, "attestation_config"),
        ({"swname": "GCE"}, "attestation_config"),
        ({"submods": {"container": {"image_digest": f"sha256:{'ab' * 32}"}}}, "attestation_tcb"),
        ({"tdx": {"gcp_attester_tcb_status": "OutOfDate"}}, "attestation_tcb"),
        ({"tdx": None}, "attestation_tcb"),
        ({"aud": "another"}, "attestation_binding"),
        ({"aud": ["quorate"]}, "attestation_binding"),
        ({"container": {"cmd_override": ["--debug"]}}, "attestation_config"),
        ({"container": {"env_override": {"LOG": "all"}}}, "attestation_config"),
        ({"container": {"image_digest": f"sha256:{'cd' * 32}"}}, "attestation_measurement"),
        ({"submods": []}, "attestation_tcb"),
        ({"eat_nonce": "another nonce"}, "attestation_binding"),
        ({"eat_nonce": BINDING.hex()}, "attestation_binding"),
        ({"eat_nonce": ["a", "b"]}, "attestation_binding"),
        ({"eat_nonce": None}, "attestation_binding"),
        ({"iss": "https://another.example"}, "attestation_kind"),
        ({"exp": S}, "attestation_expired"),
        ({"nbf": S + 1}, "attestation_expired"),
        ({"iat": S - 301, "nbf": S - 301}, "attestation_stale"),
        ({"exp": None}, "attestation_kind"),
        ({"iat": None}, "attestation_kind"),
        ({"iat": "now"}, "attestation_expired"),
        ({"header": {"alg": "none"}}, "attestation_kind"),
        ({"header": {"alg": "HS256"}}, "attestation_kind"),
        ({"header": {"jku": "https://keys.example"}}, "attestation_kind"),
        ({"header": {"x5u": "https://keys.example"}}, "attestation_kind"),
        ({"header": {"crit": ["b64"], "b64": False}}, "attestation_kind"),
        ({"header": {"x5c": []}}, "attestation_kind"),
        ({"header": {"x5c": ["!!", "!!"]}}, "attestation_kind"),
        ({"header": {"x5c": None}}, "attestation_kind"),
        ({"signer": rsa_key(3)}, "attestation_signature"),
        ({"until": NOW - timedelta(seconds=1)}, "attestation_expired"),
    ],
)
def test_a_token_that_is_wrong_in_one_thing_is_refused(google: Google, changed: dict[str, Any], code: str) -> None:
    assert appraised(google, google.evidence(**changed)).code == code


def test_a_leaf_of_another_authority_of_the_same_name_is_refused(google: Google) -> None:
    strange = root("Space CA", rsa_key(3))
    assert appraised(google, google.evidence(issuer=strange)).code == "attestation_signature"


def test_a_key_of_another_type_is_refused(google: Google) -> None:
    leaf = google.between.issue("Space Leaf", p384())
    chain = [
        base64.b64encode(der(each)).decode()
        for each in (leaf.certificate, google.between.certificate, google.root.certificate)
    ]
    assert appraised(google, google.evidence(header={"x5c": chain})).code == "attestation_signature"


@pytest.mark.parametrize(
    ("named", "code"),
    [
        ({"projects": ("consortium",)}, ""),
        ({"projects": ("another",)}, "attestation_config"),
        ({"projects": ()}, "attestation_config"),
        ({"service_accounts": ("aggregator@consortium.example",)}, ""),
        ({"service_accounts": ("another@consortium.example",)}, "attestation_config"),
        ({"service_accounts": ()}, "attestation_config"),
    ],
)
def test_where_a_policy_names_operators_no_other_counts(google: Google, named: dict[str, Any], code: str) -> None:
    assert appraised(google, google.evidence(), ALLOWED.model_copy(update=named)).code == code


def test_a_token_with_one_more_service_account_is_refused(google: Google) -> None:
    both = google.evidence(google_service_accounts=["aggregator@consortium.example", "eve@example"])
    section = ALLOWED.model_copy(update={"service_accounts": ("aggregator@consortium.example",)})
    assert appraised(google, both, section).code == "attestation_config"


@pytest.mark.parametrize("raw", [b"x", b"..", b"e30.e30.e30", "ä.b.c".encode(), b"W10.e30.e30", b"[" * 30_000])
def test_what_is_no_token_is_refused(google: Google, raw: bytes) -> None:
    assert appraised(google, Evidence(Kind.CONFIDENTIAL_SPACE, raw)).code == "attestation_kind"


def test_a_header_as_deep_as_it_is_long_is_refused(google: Google) -> None:
    deep = base64.urlsafe_b64encode(b"[" * 20_000)
    assert appraised(google, Evidence(Kind.CONFIDENTIAL_SPACE, deep + b".e30.e30")).code == "attestation_kind"


def test_no_byte_that_is_signed_can_be_changed(google: Google) -> None:
    good = google.evidence().raw
    for at in range(len(good)):
        raw = bytearray(good)
        raw[at] ^= 0x01
        found = appraised(google, Evidence(Kind.CONFIDENTIAL_SPACE, bytes(raw)))
        if found.claims is not None:  # the last character of a part may have bits that mean nothing
            assert at in {good.index(b".") - 1, good.rindex(b".") - 1, len(good) - 1}
    header, payload, signature = good.split(b".")
    said = json.loads(base64.urlsafe_b64decode(payload + b"=="))
    said["hwmodel"] = "GCP_AMD_SEV"
    other = base64.urlsafe_b64encode(json.dumps(said).encode()).rstrip(b"=")
    forged = Evidence(Kind.CONFIDENTIAL_SPACE, b".".join((header, other, signature)))
    assert appraised(google, forged).code == "attestation_signature"
