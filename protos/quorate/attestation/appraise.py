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
    evidence: Evidence, expected: Expected | None, policy: AttestationPolicy, now: datetime, roots: Roots | None = None
) -> Appraisal:
    """The same, refused or not, with every check: for people and audits.

    Args:
        expected: None where nobody knows what was asked. That is refused, whatever the evidence says.
        roots: In whom to believe. Others than the pinned ones are for tests.
    """
    require_zone(now)
    try:
        claims = _claims(evidence, policy, now, roots or pinned())
    except AttestationError as error:
        return _appraisal(evidence, policy, now, (_raised(error),), error)
    version, named = _version(evidence.kind, claims, policy, now)
    checks = (*claims.checks, *named, *_asked_now(evidence.kind, claims, expected, policy, now))
    refusal = next((check.error() for check in checks if not check.holds), None)
    return _appraisal(evidence, policy, now, checks, refusal, claims, version)


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
    try:
        # Only now: a kind's libraries are large, and none but its own are loaded. The module is called as the section.
        verifier = cast(_Verifier, import_module(f"quorate.attestation.kinds.{kind.section}"))
        return verifier.claims(evidence, section, now, roots)
    except AttestationError:
        raise
    except BaseException as error:  # whatever a parser trips over, or is missing: the evidence is none of its kind
        if not is_of_a_parser(error):
            raise
        raise EvidenceKindError(
            f"The evidence cannot be read as {kind}", got=f"{type(error).__name__} while reading it"
        ) from error


def is_of_a_parser(error: BaseException) -> bool:
    """Libraries in Rust that panic raise pyo3's ``PanicException``, which is no ``Exception`` and has no module."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _version(kind: Kind, claims: Claims, policy: AttestationPolicy, now: datetime) -> tuple[str, tuple[Check, ...]]:
    """The version of the software that the policy names, if it does. For evidence made by software the key is all."""
    if kind is Kind.SOFTWARE:
        return "", ()
    allow: tuple[Allowed, ...] = getattr(policy, kind.section).allow
    found = matching(allow, claims.measured, now)
    check = Check(
        "its software is one that the policy names",
        found is not None,
        MeasurementRefusedError,
        expected=", ".join(f"{one.name}{_until(one)}" for one in allow) or "none: the policy names no software",
        got=found.name if found else ", ".join(_not_zero(claims)),
        action="If this software shall be trusted, add its measurements to the policy",
    )
    return found.name if found else "", (check,)


def _not_zero(claims: Claims) -> Iterator[str]:
    return (f"{name} {value}" for name, value in claims.measured.items() if value.strip("0"))


def _until(version: Allowed) -> str:
    return f" (until {version.until})" if version.until is not None else ""


def _asked_now(
    kind: Kind, claims: Claims, expected: Expected | None, policy: AttestationPolicy, now: datetime
) -> Iterator[Check]:
    yield _bound(kind, claims, expected)
    if expected is not None:
        yield _young("the question was asked", now - expected.asked_at, timedelta(0), policy.oldest_evidence_s)
    if claims.made_at is not None:
        yield _young("it was made", now - claims.made_at, -CLOCK_SKEW, policy.oldest_evidence_s)


def _bound(kind: Kind, claims: Claims, expected: Expected | None) -> Check:
    if expected is None:
        wanted = ""
    elif kind is Kind.CONFIDENTIAL_SPACE:
        wanted = as_eat_nonce(expected.binding)
    else:
        wanted = expected.binding.hex()
    return Check(
        "it is bound to the question: nonce, keys, the server's door, study and run",
        wanted != "" and claims.carried == wanted,
        BindingMismatchError,
        expected=wanted or "a question; none is known",
        got=claims.carried[:256] or "nothing",
    )


def _young(what: str, age: timedelta, least: timedelta, most_s: float) -> Check:
    return Check(
        f"{what} at most {most_s:g} s ago",
        least <= age <= timedelta(seconds=most_s),
        EvidenceStaleError,
        expected=f"{least.total_seconds():.0f} to {most_s:g} s",
        got=f"{age.total_seconds():.0f} s",
    )


def _raised(error: AttestationError) -> Check:
    return Check(error.what, False, type(error), error.expected, error.got, error.action)


def _appraisal(
    evidence: Evidence,
    policy: AttestationPolicy,
    now: datetime,
    checks: tuple[Check, ...],
    refusal: AttestationError | None,
    claims: Claims | None = None,
    version: str = "",
) -> Appraisal:
    return Appraisal(
        kind=evidence.kind,
        appraised_at=now,
        policy_digest=policy.digest(),
        endorsements_digest=evidence.endorsements_digest,
        checks=checks,
        refusal=refusal,
        claims=claims,
        version=version,
    )
