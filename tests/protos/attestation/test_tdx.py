"""Quotes of Intel TDX: genuine ones, and ones of an Intel of our own for what genuine ones do not show."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from quorate.attestation.appraisal import Appraisal
from quorate.attestation.appraise import examine
from quorate.attestation.evidence import Evidence, Kind
from quorate.attestation.kinds.tdx import attribute_checks
from quorate.attestation.policy import AttestationPolicy, TdxPolicy, TdxVersion

from .authorities import EXPECTED, NOW, root
from .intel import SEPT_VE_DISABLE, Intel
from .samples import POLICY, SGX, TDX, TDX_OUTDATED, TODAY, Sample, found_in, refused, sample

ALLOWED = TdxPolicy(
    allow=(TdxVersion(name="one", mrtd="01" * 48, rtmr0="02" * 48, rtmr1="03" * 48, rtmr2="04" * 48),),
    least_evaluation_data_number=17,
)
SIGNED_BYTES = 48 + 584


@pytest.fixture(scope="module")
def intel() -> Intel:
    return Intel()


def appraised(intel: Intel, evidence: Evidence, section: TdxPolicy = ALLOWED) -> Appraisal:
    return examine(evidence, EXPECTED, AttestationPolicy(tdx=section), NOW, intel.roots)


def test_a_genuine_quote_is_accepted() -> None:
    found = found_in(TDX)
    assert found.refusal is None
    assert found.version == "sample"


def test_a_genuine_quote_of_a_machine_that_is_out_of_date_is_refused() -> None:
    assert found_in(TDX_OUTDATED).code == "attestation_tcb"


def test_a_genuine_quote_of_sgx_is_none_of_tdx_whatever_its_status() -> None:
    assert POLICY.tdx is not None
    wide = POLICY.tdx.model_copy(update={"tcb_statuses": frozenset({"ConfigurationAndSWHardeningNeeded"})})
    assert found_in(SGX).code == "attestation_tcb"
    found = found_in(SGX, AttestationPolicy(tdx=wide))
    assert found.code == "attestation_kind"
    assert "none of TDX" in str(found.refusal)


@pytest.mark.parametrize("one", [TDX, TDX_OUTDATED, SGX], ids=["good", "outdated", "SGX"])
def test_the_collateral_of_genuine_quotes_is_over_today(one: Sample) -> None:
    assert found_in(one, now=TODAY).code == "attestation_expired"


@pytest.mark.parametrize(
    ("quote", "code"),
    [
        ("go-tdx-guest/tdx_prod_quote_SPR_E4.dat", "attestation_collateral"),
        ("go-tdx-guest/cos-113-tdx-quote.dat", "attestation_collateral"),
        ("oak/tdx_oc_quote.bin", "attestation_collateral"),
        ("go-tdx-guest/quote_v5_sample.dat", "attestation_signature"),
    ],
)
def test_a_genuine_quote_with_genuine_collateral_of_another_machine_is_refused(quote: str, code: str) -> None:
    strange = Evidence(Kind.TDX, sample(quote), TDX.evidence().endorsements)
    assert examine(strange, TDX.expected, POLICY, TDX.at).code == code


@pytest.mark.parametrize("field", ["dynamic_platform", "cached_keys", "smt"])
def test_what_ordinary_servers_have_can_be_refused_by_name(intel: Intel, field: str) -> None:
    assert POLICY.tdx is not None
    strict = POLICY.tdx.model_copy(update={field: False})
    assert found_in(TDX, AttestationPolicy(tdx=strict)).code == "attestation_tcb"
    section = ALLOWED.model_copy(update={field: False})
    assert appraised(intel, intel.evidence(), section).code == "attestation_tcb"
    assert appraised(intel, intel.evidence(flags=(False, False, False)), section).refusal is None


def test_collateral_that_is_older_than_the_policy_demands_is_refused() -> None:
    assert POLICY.tdx is not None
    newer = POLICY.tdx.model_copy(update={"least_evaluation_data_number": 18})
    assert found_in(TDX, AttestationPolicy(tdx=newer)).code == "attestation_collateral"


def test_a_quote_of_our_own_intel_is_accepted_by_who_believes_in_it_and_by_nobody_else(intel: Intel) -> None:
    assert appraised(intel, intel.evidence()).refusal is None
    assert appraised(intel, intel.evidence(service_td=bytes(48))).refusal is None
    assert examine(intel.evidence(), EXPECTED, AttestationPolicy(tdx=ALLOWED), NOW).code == "attestation_signature"


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"attributes": SEPT_VE_DISABLE | 1}, "attestation_debug"),
        ({"attributes": SEPT_VE_DISABLE | 1 << 4}, "attestation_debug"),
        ({"attributes": SEPT_VE_DISABLE | 1 << 29}, "attestation_debug"),
        ({"attributes": SEPT_VE_DISABLE | 1 << 63}, "attestation_debug"),
        ({"attributes": 0}, "attestation_debug"),
        ({"service_td": b"\x01" * 48}, "attestation_debug"),
        ({"mrtd": b"\x09" * 48}, "attestation_measurement"),
        ({"rtmr3": b"\x09" * 48}, "attestation_measurement"),
        ({"mrconfigid": b"\x09" * 48}, "attestation_measurement"),
        ({"report_data": bytes(64)}, "attestation_binding"),
        ({"status": "SWHardeningNeeded"}, "attestation_tcb"),
        ({"status": "OutOfDate"}, "attestation_tcb"),
        ({"status": "Revoked"}, "attestation_tcb"),
        ({"qe_status": "OutOfDate"}, "attestation_tcb"),
        ({"tee_tcb_svn": bytes((4, 0, 2)) + bytes(13)}, "attestation_tcb"),
        ({"number": 16}, "attestation_collateral"),
        ({"fmspc": bytes(6)}, "attestation_collateral"),
        ({"revoked": True}, "attestation_signature"),
        ({"until": NOW - timedelta(hours=1)}, "attestation_expired"),
        ({"signer": ec.generate_private_key(ec.SECP256R1())}, "attestation_signature"),
        ({"collateral": {"tcb_info_signature": "00" * 64}}, "attestation_signature"),
        ({"collateral": {"qe_identity_signature": "00" * 64}}, "attestation_signature"),
        ({"collateral": {"tcb_info": "{}"}}, "attestation_collateral"),
        ({"collateral": {"tcb_info": 1}}, "attestation_collateral"),
    ],
)
def test_a_quote_that_is_wrong_in_one_thing_is_refused(intel: Intel, changed: dict[str, Any], code: str) -> None:
    assert appraised(intel, intel.evidence(**changed)).code == code


def test_certificates_of_another_authority_of_the_same_name_are_refused(intel: Intel) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    strange = root("Intel SGX PCK Platform CA", key)
    assert appraised(intel, intel.evidence(issuer=strange)).code == "attestation_signature"
    assert appraised(intel, intel.evidence(tcb_signer=root("TCB Signing", key))).code == "attestation_signature"


def test_a_status_that_the_policy_allows_is_accepted_and_told(intel: Intel) -> None:
    section = ALLOWED.model_copy(update={"tcb_statuses": frozenset({"SWHardeningNeeded", "UpToDate"})})
    found = appraised(intel, intel.evidence(status="SWHardeningNeeded"), section)
    assert found.refusal is None
    assert found.claims is not None
    assert found.claims.tcb.startswith("SWHardeningNeeded")


@pytest.mark.parametrize(
    ("attributes", "service_td", "holding"),
    [
        (SEPT_VE_DISABLE, bytes(48), [True, True, True]),
        (SEPT_VE_DISABLE | 1 << 30 | 1 << 31, bytes(48), [True, True, True]),
        (SEPT_VE_DISABLE | 1, bytes(48), [False, True, True]),
        (SEPT_VE_DISABLE | 1 << 29, bytes(48), [True, False, True]),
        (SEPT_VE_DISABLE, b"\1" + bytes(47), [True, False, True]),
        (SEPT_VE_DISABLE | 1 << 63, bytes(48), [True, True, False]),
        (SEPT_VE_DISABLE | 1 << 8, bytes(48), [True, True, False]),
        (0, bytes(48), [True, True, False]),
    ],
)
def test_attributes_are_checked_here_once_more(attributes: int, service_td: bytes, holding: list[bool]) -> None:
    assert [check.holds for check in attribute_checks(attributes, service_td)] == holding


def test_a_quote_without_collateral_is_refused(intel: Intel) -> None:
    alone = Evidence(Kind.TDX, intel.evidence().raw)
    assert appraised(intel, alone).code == "attestation_collateral"


def test_a_quote_is_malleable_so_nothing_may_be_keyed_on_its_hash(intel: Intel) -> None:
    good = intel.evidence()
    longer = Evidence(good.kind, good.raw + bytes(100), good.endorsements)
    assert appraised(intel, longer).refusal is None


def test_no_byte_that_is_signed_can_be_changed() -> None:
    good = TDX.evidence()
    for at in range(SIGNED_BYTES):
        raw = bytearray(good.raw)
        raw[at] ^= 0x01
        found = examine(Evidence(good.kind, bytes(raw), good.endorsements), TDX.expected, POLICY, TDX.at)
        assert found.refusal is not None, at
        assert found.claims is None, at


def test_nothing_that_intel_signed_in_the_collateral_can_be_changed() -> None:
    good = TDX.evidence()
    collateral = json.loads(good.endorsements)
    for name in ("tcb_info", "qe_identity"):
        for at in range(len(collateral[name])):
            text = collateral[name]
            other = text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :]
            beside = json.dumps(collateral | {name: other}).encode()
            found = examine(Evidence(good.kind, good.raw, beside), TDX.expected, POLICY, TDX.at)
            assert found.claims is None, (name, at)
    assert refused(found_in(TDX)) == []
