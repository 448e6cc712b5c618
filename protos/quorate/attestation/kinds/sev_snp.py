"""AMD SEV-SNP: a report of the secure processor, signed by its VCEK, whose certificate AMD signed.

The chain is ARK, ASK, VCEK; the first two are pinned, the third is stapled. The VCEK is derived from the chip and from
the versions of its firmware: a certificate for other versions is another key.

Sources: AMD 56860, *SEV Secure Nested Paging Firmware ABI*, tables 9 and 23; AMD 57230, *VCEK certificate and KDS
interface*, section 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP384R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from quorate.attestation.appraisal import Check, Claims
from quorate.attestation.evidence import Evidence, require_size
from quorate.attestation.kinds.chain import load_certificate, require_valid
from quorate.attestation.kinds.snp_report import (
    REPORT_BYTES,
    Endorsed,
    Report,
    Tcb,
    read_endorsed,
    read_report,
    read_tcb,
    require_same_product,
)
from quorate.attestation.policy import LeastTcb, SnpPolicy
from quorate.attestation.roots import AmdAuthority, Roots
from quorate.errors import (
    AttestedConfigError,
    CollateralError,
    DebugModeError,
    EvidenceSignatureError,
    TcbRefusedError,
)

# Bits of the policy with which a guest was started (table 9).
_MIGRATE_MA = 1 << 18
_DEBUG = 1 << 19


def claims(evidence: Evidence, section: SnpPolicy, now: datetime, roots: Roots) -> Claims:
    """What the report says.

    Raises:
        EvidenceKindError, EvidenceSignatureError, EvidenceExpiredError, CollateralError.
    """
    require_size(evidence.raw, REPORT_BYTES, REPORT_BYTES, "The SEV-SNP report")
    if not evidence.endorsements:
        raise CollateralError("The VCEK certificate is missing beside the SEV-SNP report")
    report, vcek = read_report(evidence.raw), load_certificate(evidence.endorsements, "The VCEK certificate")
    endorsed = read_endorsed(vcek)
    _require_chain(vcek, roots.amd[endorsed.product], now)
    _require_signed(vcek, report)
    require_same_product(report, endorsed)
    reported = read_tcb(report.reported_tcb, endorsed.product)
    return Claims(
        hardware=f"a virtual machine on an AMD EPYC processor ({endorsed.product}, SEV-SNP guest)",
        carried=report.report_data.hex(),
        measured={
            "measurement": report.measurement.hex(),
            "host_data": report.host_data.hex(),
            "id_key_digest": report.id_key_digest.hex(),
            "author_key_digest": report.author_key_digest.hex(),
        },
        tcb=str(reported),
        made_at=None,
        checks=(
            Check("the report and its VCEK are signed up to AMD's root", True, EvidenceSignatureError),
            *_same_machine(report, endorsed, reported),
            *_started_closed(report),
            *_allowed_machine(report, endorsed, reported, section),
        ),
    )


def _require_chain(vcek: x509.Certificate, authority: AmdAuthority, now: datetime) -> None:
    """ARK and ASK may issue: they are pinned. Raises EvidenceSignatureError, EvidenceExpiredError."""
    for issued, issuer in ((authority.ark, authority.ark), (authority.ask, authority.ark), (vcek, authority.ask)):
        require_valid(issued, now)
        try:
            issued.verify_directly_issued_by(issuer)
        except (InvalidSignature, ValueError, TypeError) as error:
            raise EvidenceSignatureError(
                "The VCEK certificate does not end in AMD's root",
                expected=issuer.subject.rfc4514_string(),
                got=issued.issuer.rfc4514_string()[:200],
            ) from error


def _require_signed(vcek: x509.Certificate, report: Report) -> None:
    key = vcek.public_key()
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP384R1):
        raise EvidenceSignatureError("The key of the VCEK certificate is none of P-384")
    try:
        key.verify(encode_dss_signature(report.r, report.s), report.signed, ECDSA(SHA384()))
    except InvalidSignature as error:
        raise EvidenceSignatureError("The signature under the SEV-SNP report does not hold") from error


def _same_machine(report: Report, endorsed: Endorsed, reported: Tcb) -> Iterator[Check]:
    yield Check(
        "the VCEK is of this chip",
        report.chip_id == endorsed.chip_id,
        EvidenceSignatureError,
        expected=endorsed.chip_id.hex(),
        got=report.chip_id.hex(),
    )
    yield Check(
        "the VCEK is of these versions of the firmware",
        reported == endorsed.tcb,
        TcbRefusedError,
        expected=str(endorsed.tcb),
        got=str(reported),
    )


def _started_closed(report: Report) -> Iterator[Check]:
    policy = f"policy {report.policy:#x}"
    yield Check("debugging is off", not report.policy & _DEBUG, DebugModeError, "bit 19 clear", policy)
    yield Check(
        "it cannot be moved to another machine", not report.policy & _MIGRATE_MA, DebugModeError, "bit 18 clear", policy
    )
    yield Check(
        "the report is the most privileged level's", report.vmpl == 0, AttestedConfigError, "VMPL 0", f"{report.vmpl}"
    )


def _allowed_machine(report: Report, endorsed: Endorsed, reported: Tcb, section: SnpPolicy) -> Iterator[Check]:
    # The product's name is AMD's word: it was looked up in the policy's keys as text.
    least = {str(product): tcb for product, tcb in section.least_tcb.items()}.get(endorsed.product)
    yield Check(
        "the policy allows this product",
        least is not None,
        TcbRefusedError,
        expected=" or ".join(section.least_tcb) or "none: the policy names no product",
        got=endorsed.product,
    )
    if least is not None:
        launched = read_tcb(report.launch_tcb, endorsed.product)
        for when, tcb in (("now", reported), ("when it was started", launched)):
            yield Check(
                f"firmware and microcode {when} are new enough",
                _at_least(tcb, least),
                TcbRefusedError,
                expected=str(Tcb(**least.model_dump())),
                got=str(tcb),
            )
    if section.chips is not None:
        yield Check(
            "the policy names this chip",
            report.chip_id.hex() in section.chips,
            TcbRefusedError,
            expected=f"one of {len(section.chips)} chips",
            got=report.chip_id.hex(),
        )


def _at_least(tcb: Tcb, least: LeastTcb) -> bool:
    return all(getattr(tcb, name) >= value for name, value in least.model_dump().items())
