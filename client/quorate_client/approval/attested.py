"""Whether a site trusts the machine that adds: the study's policy, and the site's own, have to be met."""

from __future__ import annotations

from datetime import datetime

from quorate.attestation.appraisal import Appraisal
from quorate.attestation.appraise import appraise
from quorate.attestation.binding import Expected
from quorate.attestation.evidence import Evidence, Kind
from quorate.attestation.policy import AttestationPolicy
from quorate.errors import AttestationError, SoftwareEvidenceError
from quorate.study.study import Study
from quorate_client.approval.policy import Policy


def appraise_for(
    study: Study,
    evidence: Evidence,
    expected: Expected,
    now: datetime,
    policy: Policy,
    own: AttestationPolicy | None,
) -> Appraisal:
    """Hold evidence against all that has to be met.

    Args:
        own: The site's ``attestation.toml``, where there is one.

    Returns:
        The appraisal by the study's policy.

    Raises:
        AttestationError: something does not hold.
    """
    if study.attestation is None:
        raise AttestationError(f"The study {study.name} names no machine that may be trusted")
    if evidence.kind is Kind.SOFTWARE and not policy.attestation.software:
        raise SoftwareEvidenceError(
            "The evidence was made by software and proves nothing about a machine",
            expected="attestation.software = true in policy.toml, for development",
            got="attestation.software = false",
        )
    if own is not None:
        appraise(evidence, expected, own, now)
    return appraise(evidence, expected, study.attestation.policy, now)
