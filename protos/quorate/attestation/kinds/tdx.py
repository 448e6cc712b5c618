"""Intel TDX: a quote, with Intel's collateral stapled to it.

dcap-qvl verifies the quote as Intel's own library does: the PCK chain up to the pinned root, revocation lists, TCB info
and QE identity with their signatures, the attestation key, the quote, and debugging. What the policy says of versions
is given to it, so that nothing is verified that the policy would not allow. Attributes are checked here once more.

Sources: Intel SGX and TDX DCAP Quoting Library API (quote formats 4 and 5); Intel TDX module 1.5 base architecture
(344425), section on ATTRIBUTES; Intel Provisioning Certification Service API, version 4.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import dcap_qvl
from cryptography.hazmat.primitives.serialization import Encoding

from quorate.attestation.appraisal import Check, Claims
from quorate.attestation.evidence import Evidence, require_size
from quorate.attestation.policy import TdxPolicy
from quorate.attestation.roots import Roots
from quorate.errors import (
    AttestationError,
    CollateralError,
    DebugModeError,
    EvidenceExpiredError,
    EvidenceKindError,
    EvidenceSignatureError,
    TcbRefusedError,
)

MAX_QUOTE_BYTES = 16 * 1024
MAX_COLLATERAL_BYTES = 128 * 1024
_TDX = 0x81
_REPORTS = (dcap_qvl.TdReport10, dcap_qvl.TdReport15, dcap_qvl.TdReport15Ex)
_REGISTERS = {
    "mrtd": "mr_td",
    "rtmr0": "rt_mr0",
    "rtmr1": "rt_mr1",
    "rtmr2": "rt_mr2",
    "rtmr3": "rt_mr3",
    "mrconfigid": "mr_config_id",
    "mrowner": "mr_owner",
    "mrownerconfig": "mr_owner_config",
}

# ATTRIBUTES of a trust domain. TUD, the lowest byte, is debugging: nothing in it may be set.
_TUD = 0xFF
_SEPT_VE_DISABLE = 1 << 28  # else the host may make the guest's memory raise exceptions as it pleases
_MIGRATABLE = 1 << 29
_HARMLESS = 1 << 30 | 1 << 31  # PKS, KL; not PERFMON, which counts what the guest does

# What dcap-qvl says, in the order in which it is looked for: it has no codes. All else is a signature.
_REASONS: tuple[tuple[str, type[AttestationError]], ...] = (
    ("Debug mode", DebugModeError),
    ("service TD", DebugModeError),
    ("SERVTD", DebugModeError),
    ("TD profiling", DebugModeError),
    ("TD migration", DebugModeError),
    ("TD attributes", DebugModeError),
    ("SEPT_VE_DISABLE", DebugModeError),
    ("Expired", EvidenceExpiredError),
    ("expired", EvidenceExpiredError),
    ("NotValidYet", EvidenceExpiredError),
    ("in the future", EvidenceExpiredError),
    ("TCB eval data number", CollateralError),
    ("Fmspc mismatch", CollateralError),
    ("in the collateral", CollateralError),
    ("Failed to decode TcbInfo", CollateralError),
    ("QE Identity", CollateralError),
    ("TCB status", TcbRefusedError),
    ("No matching", TcbRefusedError),
    ("TDX module", TcbRefusedError),
    ("allowed by policy", TcbRefusedError),
    ("Failed to decode quote", EvidenceKindError),
    ("Unsupported", EvidenceKindError),
)


def claims(evidence: Evidence, section: TdxPolicy, now: datetime, roots: Roots) -> Claims:
    """What the quote says.

    Raises:
        EvidenceKindError, EvidenceSignatureError, EvidenceExpiredError, CollateralError, TcbRefusedError,
        DebugModeError.
    """
    require_size(evidence.raw, 1, MAX_QUOTE_BYTES, "The TDX quote")
    if not evidence.endorsements:
        raise CollateralError("The collateral of Intel is missing beside the TDX quote")
    require_size(evidence.endorsements, 1, MAX_COLLATERAL_BYTES, "The collateral beside the TDX quote")
    said = _verified(evidence, section, now, roots)
    report = dcap_qvl.parse_quote(evidence.raw).report
    if said["tee_type"] != _TDX or not isinstance(report, _REPORTS):
        raise EvidenceKindError(
            "The quote is none of TDX", expected=f"TEE type {_TDX:#x}", got=f"{said['tee_type']:#x}"
        )
    return Claims(
        hardware="a virtual machine on an Intel processor (TDX trust domain)",
        carried=report.report_data.hex(),
        measured={name: getattr(report, field).hex() for name, field in _REGISTERS.items()},
        tcb=_tcb_in_words(said),
        made_at=None,
        checks=(
            *_vouched_for(said, section),
            *attribute_checks(
                int.from_bytes(report.td_attributes, "little"), getattr(report, "mr_service_td", bytes(48))
            ),
        ),
    )


def _verified(evidence: Evidence, section: TdxPolicy, now: datetime, roots: Roots) -> dict[str, Any]:
    now_s = int(now.timestamp())
    policy = (
        dcap_qvl.QuotePolicy.strict(now_s)
        .min_tcb_eval_data_number(section.least_evaluation_data_number)
        .allow_dynamic_platform(section.dynamic_platform)
        .allow_cached_keys(section.cached_keys)
        .allow_smt(section.smt)
    )
    for status in section.tcb_statuses:
        policy = policy.allow_status(status)
    try:
        collateral = dcap_qvl.QuoteCollateralV3.from_json(evidence.endorsements.decode())
    except ValueError as error:
        raise CollateralError("The collateral beside the TDX quote cannot be read") from error
    verifier = dcap_qvl.QuoteVerifier(roots.intel.public_bytes(Encoding.DER))
    try:
        verified = verifier.verify_with_policy(evidence.raw, collateral, now_s, policy)
    except ValueError as error:
        raise _refusal(str(error)) from error
    said: dict[str, Any] = json.loads(verified.to_json())
    return said


def _refusal(reason: str) -> AttestationError:
    refusal = next((cls for words, cls in _REASONS if words in reason), EvidenceSignatureError)
    return refusal("The TDX quote does not verify", got=reason[:300])


def _vouched_for(said: dict[str, Any], section: TdxPolicy) -> tuple[Check, ...]:
    status, number = said["tcb"]["status"], said["tcb"]["eval_data_number"]
    return (
        Check("the quote and its certificates are signed up to Intel's root", True, EvidenceSignatureError),
        Check(
            "Intel's word on the machine's firmware and microcode is one that the policy allows",
            status in section.tcb_statuses,
            TcbRefusedError,
            expected=" or ".join(sorted(section.tcb_statuses)) or "none: the policy allows no status",
            got=status,
        ),
        Check(
            "Intel's word is new enough",
            number >= section.least_evaluation_data_number,
            CollateralError,
            expected=f"evaluation data number {section.least_evaluation_data_number} or more",
            got=str(number),
        ),
    )


def attribute_checks(attributes: int, service_td: bytes) -> tuple[Check, ...]:
    """What a trust domain was started with: its ATTRIBUTES (64 bits) and the digest of the service domain beside it."""
    may_be_set = _TUD | _MIGRATABLE | _SEPT_VE_DISABLE | _HARMLESS  # the first two have checks of their own
    got = f"attributes {attributes:#x}"
    return (
        Check("debugging is off", not attributes & _TUD, DebugModeError, "no attribute of TUD", got),
        Check(
            "it cannot be moved to another machine",
            not attributes & _MIGRATABLE and not any(service_td),
            DebugModeError,
            "not MIGRATABLE, and no service domain",
            got if not any(service_td) else f"{got}, service domain {service_td.hex()}",
        ),
        Check(
            "no other attribute opens it",
            bool(attributes & _SEPT_VE_DISABLE) and not attributes & ~may_be_set,
            DebugModeError,
            "SEPT_VE_DISABLE, and none but PKS and KL beside it",
            got,
        ),
    )


def _tcb_in_words(said: dict[str, Any]) -> str:
    tcb, date = said["tcb"], str(said["platform"]["tcb_level"]["tcbDate"])[:10]
    advisories = ", ".join(tcb["advisory_ids"])
    known = f", open advisories {advisories}" if advisories else ""
    return f"{tcb['status']} (level of {date}, evaluation data number {tcb['eval_data_number']}{known})"
