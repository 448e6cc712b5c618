"""Holds evidence against what was asked and what the site allows. The one door to the verifiers of the kinds.

What decides whether something is released is here, once for all kinds: that the policy has the kind, the binding, the
age, the measurements. The kinds' own modules say what evidence claims, and check signatures, debugging and versions.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from importlib import import_module
from typing import Protocol, cast

from quorate.attestation.appraisal import Appraisal, Check, Claims
from quorate.attestation.binding import Expected, as_eat_nonce, require_zone
from quorate.attestation.evidence import Evidence, Kind
from quorate.attestation.policy import Allowed, AttestationPolicy, matching
from quorate.attestation.roots import Roots, pinned
from quorate.errors import (
    AttestationError,
    BindingMismatchError,
    EvidenceKindError,
    EvidenceStaleError,
    MeasurementRefusedError,
    SoftwareEvidenceError,
)

CLOCK_SKEW = timedelta(seconds=60)
"""How much the clocks of a site and of an attested machine may differ."""

_VERIFIERS = {
    Kind.TDX: "tdx",
    Kind.SEV_SNP: "sev_snp",
    Kind.CONFIDENTIAL_SPACE: "confidential_space",
    Kind.NITRO: "nitro",
    Kind.SOFTWARE: "software",
}


class _Verifier(Protocol):
    """What each module of ``kinds`` is. ``section`` is the policy's for this kind."""

    def claims(self, evidence: Evidence, section: object, now: datetime, roots: Roots) -> Claims:
        """What the evidence says. Raises AttestationError where no signature vouches for it."""


def appraise(evidence: Evidence, expected: Expected, policy: AttestationPolicy, now: datetime) -> Appraisal:
    """Whether something may be released to the machine that this evidence is of.

    Args:
        expected: What was asked; the evidence has to carry its binding.
        policy: What the site allows, read at this moment.
        now: The time, with its zone.

    Returns:
        An appraisal in which everything holds.

    Raises:
        AttestationError: something does not hold, of the kind of the first thing; nothing else is ever raised because
            of what is in the evidence. No other kind is tried instead.
    """
    found = examine(evidence, expected, policy, now)
    if found.refusal is not None:
        raise found.refusal
    return found


def examine(
    evidence: Evidence, expected: Expected, policy: AttestationPolicy, now: datetime, roots: Roots | None = None
) -> Appraisal:
    """The same, refused or not, with every check: for people and audits.

    Args:
        roots: In whom to believe. Others than the pinned ones are for tests.
    """
    require_zone(now)
    try:
        claims = _claims(evidence, policy, now, roots or pinned())
    except AttestationError as error:
        return _appraisal(evidence, policy, now, (_raised(error),), error)
    checks = (*claims.checks, *_common(evidence.kind, claims, expected, policy, now))
    refusal = next((check.error() for check in checks if not check.holds), None)
    return _appraisal(evidence, policy, now, checks, refusal, claims)


def _claims(evidence: Evidence, policy: AttestationPolicy, now: datetime, roots: Roots) -> Claims:
    kind = evidence.kind
    if kind is Kind.SOFTWARE and policy.environment != "development":
        raise SoftwareEvidenceError(
            "The evidence was made by software and proves nothing about a machine",
            expected='environment = "development" in the policy',
            got=f'environment = "{policy.environment}"',
        )
    section = getattr(policy, kind.section)
    if section is None:
        raise EvidenceKindError(
            f"The policy does not allow evidence of the kind {kind}",
            expected=" or ".join(policy.kinds) or "none: the policy allows no kind",
            action=f"If such machines shall be trusted, add [{kind.section}] to the policy",
        )
    # Only now: a kind's libraries are large, and none but its own are loaded.
    verifier = cast(_Verifier, import_module(f"quorate.attestation.kinds.{_VERIFIERS[kind]}"))
    try:
        return verifier.claims(evidence, section, now, roots)
    except AttestationError:
        raise
    except Exception as error:  # whatever a parser trips over, the evidence is none of its kind
        raise EvidenceKindError(
            f"The evidence cannot be read as {kind}", got=f"{type(error).__name__} while reading it"
        ) from error


def _common(
    kind: Kind, claims: Claims, expected: Expected, policy: AttestationPolicy, now: datetime
) -> Iterator[Check]:
    if kind is not Kind.SOFTWARE:  # there the key is what is allowed
        yield _measured_is_allowed(getattr(policy, kind.section).allow, claims, now)
    wanted = as_eat_nonce(expected.binding) if kind is Kind.CONFIDENTIAL_SPACE else expected.binding.hex()
    yield Check(
        "it is bound to this question: nonce, key, TLS certificate, study, run and configuration",
        claims.carried == wanted,
        BindingMismatchError,
        expected=wanted,
        got=claims.carried[:256] or "nothing",
    )
    oldest = timedelta(seconds=policy.oldest_evidence_s)
    age = now - expected.asked_at
    yield Check(
        f"the question was asked at most {policy.oldest_evidence_s:g} s ago",
        timedelta(0) <= age <= oldest,
        EvidenceStaleError,
        expected=f"0 to {policy.oldest_evidence_s:g} s",
        got=f"{age.total_seconds():.0f} s",
    )
    if claims.made_at is not None:
        age = now - claims.made_at
        yield Check(
            f"it was made at most {policy.oldest_evidence_s:g} s ago",
            -CLOCK_SKEW <= age <= oldest,
            EvidenceStaleError,
            expected=f"{-CLOCK_SKEW.total_seconds():.0f} to {policy.oldest_evidence_s:g} s",
            got=f"{age.total_seconds():.0f} s",
        )


def _measured_is_allowed(allow: tuple[Allowed, ...], claims: Claims, now: datetime) -> Check:
    found = matching(allow, claims.measured, now)
    which = f" ({found.name})" if found is not None else ""
    return Check(
        f"its software is one that the policy names{which}",
        found is not None,
        MeasurementRefusedError,
        expected=", ".join(f"{one.name}{_until(one)}" for one in allow) or "none: the policy names no software",
        got=", ".join(f"{name} {value}" for name, value in claims.measured.items()),
        action="If this software shall be trusted, add its measurements to the policy",
    )


def _until(version: Allowed) -> str:
    return f" (until {version.until})" if version.until is not None else ""


def _raised(error: AttestationError) -> Check:
    return Check(error.what, False, type(error), error.expected, error.got, error.action)


def _appraisal(
    evidence: Evidence,
    policy: AttestationPolicy,
    now: datetime,
    checks: tuple[Check, ...],
    refusal: AttestationError | None,
    claims: Claims | None = None,
) -> Appraisal:
    return Appraisal(
        kind=evidence.kind,
        appraised_at=now,
        policy_digest=policy.digest(),
        endorsements_digest=evidence.endorsements_digest,
        checks=checks,
        refusal=refusal,
        claims=claims,
    )
