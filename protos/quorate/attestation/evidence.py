"""What came: a piece of evidence, as a value. Nothing in it is believed before ``appraise``."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum

from quorate.errors import EvidenceKindError

MAX_RAW_BYTES = 64 * 1024
MAX_ENDORSEMENTS_BYTES = 256 * 1024


class Kind(StrEnum):
    """Who vouches for the machine, and in which form."""

    TDX = "tdx"
    SEV_SNP = "sev-snp"
    CONFIDENTIAL_SPACE = "confidential-space"
    NITRO = "nitro"
    SOFTWARE = "software"

    @property
    def section(self) -> str:
        """The section of a policy that allows it."""
        return self.value.replace("-", "_")


@dataclass(frozen=True, slots=True)
class Evidence:
    """A piece of evidence.

    Two pieces that say the same may differ in their bytes (a TDX quote can be changed without breaking it): never key
    anything on a hash of them.

    Args:
        kind: What it is said to be. No other kind is ever tried.
        raw: TDX: the quote; SEV-SNP: the report; Nitro: the attestation document; Confidential Space: the token.
        endorsements: What the vendor signed beside it, stapled so that a site needs no internet. TDX: the collateral as
            JSON; SEV-SNP: the VCEK certificate (DER). The others carry theirs within.

    Raises:
        EvidenceKindError: it is empty or larger than any evidence is.
    """

    kind: Kind
    raw: bytes
    endorsements: bytes = b""

    def __post_init__(self) -> None:
        require_size(self.raw, 1, MAX_RAW_BYTES, "The evidence")
        require_size(self.endorsements, 0, MAX_ENDORSEMENTS_BYTES, "What comes with the evidence")

    @property
    def endorsements_digest(self) -> bytes:
        """SHA-256, for the audit."""
        return hashlib.sha256(self.endorsements).digest()


def parse_kind(text: str) -> Kind:
    """Raises EvidenceKindError."""
    try:
        return Kind(text)
    except ValueError as error:
        raise EvidenceKindError(
            "Evidence is of an unknown kind", expected=" or ".join(Kind), got=repr(text[:40])
        ) from error


def require_size(content: bytes, least: int, most: int, what: str) -> None:
    """Before anything is parsed. Raises EvidenceKindError."""
    if not least <= len(content) <= most:
        expected = f"{least} bytes" if least == most else f"{least} to {most} bytes"
        raise EvidenceKindError(f"{what} has not the size of its kind", expected=expected, got=f"{len(content)} bytes")
