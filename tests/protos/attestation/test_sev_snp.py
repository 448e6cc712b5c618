"""Reports of AMD SEV-SNP: genuine ones, and ones of an AMD of our own for what genuine ones do not show."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from quorate.attestation.appraisal import Appraisal
from quorate.attestation.appraise import examine
from quorate.attestation.evidence import Evidence
from quorate.attestation.policy import AttestationPolicy, LeastTcb, SnpPolicy, SnpVersion

from .authorities import CHIP, EXPECTED, NOW, Amd, p384, root
from .samples import GENOA, MILAN, POLICY, SNP_DEBUG, TODAY, TURIN, WITH_MILAN, Sample, found_in, refused

LEAST = LeastTcb(bootloader=10, tee=0, snp=25, microcode=84)
ALLOWED = SnpPolicy(allow=(SnpVersion(name="one", measurement="11" * 48),), least_tcb={"Genoa": LEAST})


@pytest.fixture(scope="module")
def amd() -> Amd:
    return Amd()


def appraised(amd: Amd, evidence: Evidence, section: SnpPolicy = ALLOWED) -> Appraisal:
    return examine(evidence, EXPECTED, AttestationPolicy(sev_snp=section), NOW, amd.roots)


@pytest.mark.parametrize("sample", [GENOA, TURIN], ids=["Genoa", "Turin"])
def test_a_genuine_report_is_accepted(sample: Sample) -> None:
    found = found_in(sample)
    assert found.refusal is None
    assert found.version in {"Genoa", "Turin"}


def test_a_genuine_report_of_milan_is_refused_unless_the_policy_names_milan() -> None:
    assert found_in(MILAN).code == "attestation_tcb"
    assert found_in(MILAN, WITH_MILAN).refusal is None


def test_a_genuine_report_of_a_guest_that_can_be_debugged_is_refused() -> None:
    assert found_in(SNP_DEBUG, WITH_MILAN).code == "attestation_debug"


@pytest.mark.parametrize("sample", [GENOA, TURIN, MILAN], ids=["Genoa", "Turin", "Milan"])
def test_a_genuine_report_is_stale_today_though_its_certificates_hold(sample: Sample) -> None:
    assert refused(found_in(sample, WITH_MILAN, TODAY)) == ["attestation_stale"]


def test_a_genuine_report_with_a_genuine_vcek_of_another_chip_is_refused() -> None:
    swapped = Evidence(GENOA.kind, GENOA.evidence().raw, TURIN.evidence().endorsements)
    assert examine(swapped, GENOA.expected, POLICY, GENOA.at).code == "attestation_signature"


def test_a_report_of_our_own_amd_is_accepted_by_who_believes_in_it_and_by_nobody_else(amd: Amd) -> None:
    assert appraised(amd, amd.evidence()).refusal is None
    assert examine(amd.evidence(), EXPECTED, AttestationPolicy(sev_snp=ALLOWED), NOW).code == "attestation_signature"


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"policy": 0x30000 | 1 << 19}, "attestation_debug"),
        ({"policy": 0x30000 | 1 << 18}, "attestation_debug"),
        ({"vmpl": 1}, "attestation_config"),
        ({"host_data": b"\x01" + bytes(31)}, "attestation_measurement"),
        ({"measurement": b"\x12" * 48}, "attestation_measurement"),
        ({"hwid": CHIP[::-1]}, "attestation_signature"),
        ({"chip": bytes(64)}, "attestation_signature"),
        ({"tcb": bytes((10, 0, 0, 0, 0, 0, 26, 84))}, "attestation_tcb"),
        ({"endorsed": (10, 0, 25, 85, 0)}, "attestation_tcb"),
        ({"tcb": bytes((9, 0, 0, 0, 0, 0, 25, 84)), "endorsed": (9, 0, 25, 84, 0)}, "attestation_tcb"),
        ({"launch_tcb": bytes((10, 0, 0, 0, 0, 0, 24, 84))}, "attestation_tcb"),
        ({"tcb": bytes((10, 0, 1, 0, 0, 0, 25, 84))}, "attestation_kind"),
        ({"cpuid": (0x1A, 0x02)}, "attestation_signature"),
        ({"cpuid": (0x17, 0x31)}, "attestation_signature"),
        ({"version": 6}, "attestation_kind"),
        ({"version": 1}, "attestation_kind"),
        ({"algorithm": 2}, "attestation_kind"),
        ({"flags": 1 << 2}, "attestation_kind"),
        ({"flags": 7 << 2}, "attestation_kind"),
        ({"tail": bytes(0x4A0 - 0x331) + b"\x01"}, "attestation_kind"),
        ({"tail": bytes(0x4A0 - 0x331)}, "attestation_kind"),
        ({"named": b"Rome"}, "attestation_kind"),
        ({"without": "3.8"}, "attestation_kind"),
        ({"without": "4"}, "attestation_kind"),
        ({"until": NOW - timedelta(seconds=1)}, "attestation_expired"),
        ({"signer": p384()}, "attestation_signature"),
    ],
)
def test_a_report_that_is_wrong_in_one_thing_is_refused(amd: Amd, changed: dict[str, Any], code: str) -> None:
    assert appraised(amd, amd.evidence(**changed)).code == code


def test_a_vcek_of_another_authority_of_the_same_name_is_refused(amd: Amd) -> None:
    assert appraised(amd, amd.evidence(issuer=root("ASK", p384()))).code == "attestation_signature"


def test_a_vcek_of_another_curve_is_refused(amd: Amd) -> None:
    small = ec.generate_private_key(ec.SECP256R1())
    assert appraised(amd, amd.evidence(key=small)).code == "attestation_signature"


def test_an_ask_that_the_ark_did_not_sign_is_refused(amd: Amd) -> None:
    strange = Amd()
    strange.ark = root("ARK", p384())  # of the same name
    assert appraised(strange, strange.evidence()).code == "attestation_signature"


def test_a_version_above_127_is_read_as_what_it_is(amd: Amd) -> None:
    evidence = amd.evidence(
        tcb=bytes((10, 0, 0, 0, 0, 0, 25, 200)),
        endorsed=(10, 0, 25, 200, 0),
        launch_tcb=bytes((10, 0, 0, 0, 0, 0, 25, 200)),
    )
    assert appraised(amd, evidence).refusal is None


def test_turin_has_its_own_layout_and_a_short_chip_id() -> None:
    turin = Amd("Turin")
    tcb = bytes((1, 10, 0, 25, 0, 0, 0, 84))
    short = bytes(range(1, 9))
    parts: dict[str, Any] = {"tcb": tcb, "launch_tcb": tcb, "endorsed": (10, 0, 25, 84, 1), "cpuid": (0x1A, 2)}
    section = ALLOWED.model_copy(update={"least_tcb": {"Turin": LEAST.model_copy(update={"fmc": 1})}})
    good = turin.evidence(**parts, hwid=short, chip=short + bytes(56))
    assert appraised(turin, good, section).refusal is None
    other = turin.evidence(**parts, hwid=short, chip=short + bytes(55) + b"\x01")
    assert appraised(turin, other, section).code == "attestation_signature"
    long = turin.evidence(**parts, hwid=CHIP, chip=CHIP)
    assert appraised(turin, long, section).code == "attestation_kind"
    older = section.model_copy(update={"least_tcb": {"Turin": LEAST.model_copy(update={"fmc": 2})}})
    assert appraised(turin, good, older).code == "attestation_tcb"


def test_a_hwid_in_an_octet_string_is_the_same_hwid(amd: Amd) -> None:
    assert appraised(amd, amd.evidence(hwid=b"\x04\x40" + CHIP)).refusal is None


@pytest.mark.parametrize(
    ("chips", "code"), [((CHIP.hex(),), ""), (("00" * 64,), "attestation_tcb"), ((), "attestation_tcb")]
)
def test_where_a_policy_names_chips_no_other_counts(amd: Amd, chips: tuple[str, ...], code: str) -> None:
    assert appraised(amd, amd.evidence(), ALLOWED.model_copy(update={"chips": chips})).code == code


def test_a_policy_that_names_no_product_refuses_all(amd: Amd) -> None:
    assert appraised(amd, amd.evidence(), ALLOWED.model_copy(update={"least_tcb": {}})).code == "attestation_tcb"


def test_a_report_without_its_vcek_is_refused(amd: Amd) -> None:
    alone = Evidence(GENOA.kind, amd.evidence().raw)
    assert appraised(amd, alone).code == "attestation_collateral"


def test_no_byte_that_is_signed_can_be_changed(amd: Amd) -> None:
    good = amd.evidence()
    for at in range(0x2A0 + 48):
        raw = bytearray(good.raw)
        raw[at] ^= 0x01
        found = appraised(amd, Evidence(good.kind, bytes(raw), good.endorsements))
        assert found.claims is None, hex(at)
        assert found.code in {"attestation_signature", "attestation_kind"}, hex(at)
