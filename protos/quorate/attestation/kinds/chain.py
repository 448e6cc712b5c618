"""Certificates behind evidence, up to a pinned root. No network: what is not in the evidence is not looked for."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    Policy,
    PolicyBuilder,
    Store,
    VerificationError,
)

from quorate.attestation.evidence import require_size
from quorate.errors import EvidenceExpiredError, EvidenceSignatureError

MAX_CERTIFICATES = 8
MAX_CERTIFICATE_BYTES = 8 * 1024


def load_certificate(der: bytes, what: str) -> x509.Certificate:
    """One certificate of evidence. Raises EvidenceKindError: its size; ValueError: it is none."""
    require_size(der, 1, MAX_CERTIFICATE_BYTES, what)
    with warnings.catch_warnings():
        # AMD gives every VCEK the serial number 0; of the other kinds none is accepted with it (require_chain).
        warnings.filterwarnings("ignore", "Parsed a serial number", CryptographyDeprecationWarning)
        return x509.load_der_x509_certificate(der)


def require_chain(
    leaf: x509.Certificate, between: Sequence[x509.Certificate], root: x509.Certificate, now: datetime
) -> None:
    """Whether this leaf is signed, over those in between, by this root, and all of them hold now (RFC 5280).

    Raises:
        EvidenceExpiredError, EvidenceSignatureError.
    """
    for certificate in (leaf, *between, root):
        require_valid(certificate, now)
    verifier = (
        PolicyBuilder()
        .store(Store([root]))
        .time(now)
        .max_chain_depth(MAX_CERTIFICATES)
        .extension_policies(ca_policy=_CA, ee_policy=ExtensionPolicy.permit_all())
        .build_client_verifier()
    )
    try:
        verifier.verify(leaf, list(between))
    except VerificationError as error:
        raise EvidenceSignatureError(
            "The certificates behind the evidence do not end in the vendor's root",
            expected=root.subject.rfc4514_string(),
            got=leaf.issuer.rfc4514_string()[:200],
        ) from error


def require_valid(certificate: x509.Certificate, now: datetime) -> None:
    """Raises EvidenceExpiredError."""
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not start <= now <= end:
        raise EvidenceExpiredError(
            "A certificate behind the evidence does not hold at this time",
            expected=f"{start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC",
            got=f"{now:%Y-%m-%d %H:%M}",
        )


def _may_sign(policy: Policy, certificate: x509.Certificate, usage: x509.KeyUsage) -> None:
    if not usage.key_cert_sign:
        raise ValueError("not for signing certificates")


# The vendors' leaves carry no names of hosts and no purposes of TLS. That an issuer is an authority at all is
# demanded by the verifier itself, once the extension has to be there.
_CA = (
    ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, Criticality.CRITICAL, None)
    .require_present(x509.KeyUsage, Criticality.AGNOSTIC, _may_sign)
)
