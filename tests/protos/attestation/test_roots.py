"""The vendors' roots: the pinned ones, and a warning a year before one of them ends."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from quorate.attestation.roots import pinned


@pytest.mark.parametrize("certificate", pinned().certificates, ids=lambda one: one.subject.rfc4514_string()[:40])
def test_no_root_ends_within_a_year(certificate: x509.Certificate) -> None:
    """When this fails, see whether the vendor has published the next one."""
    assert certificate.not_valid_after_utc > datetime.now(UTC) + timedelta(days=365)


def test_every_root_signed_itself_and_every_ask_is_its_arks() -> None:
    roots = pinned()
    for root in (roots.intel, roots.google, roots.amazon, *(authority.ark for authority in roots.amd.values())):
        root.verify_directly_issued_by(root)
    for authority in roots.amd.values():
        authority.ask.verify_directly_issued_by(authority.ark)
