"""Evidence made by a program, for development: an Ed25519 signature by a key that the site's policy names.

It proves nothing about any machine.
"""

from __future__ import annotations

import struct
from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from quorate.attestation.appraisal import Claims
from quorate.attestation.evidence import Evidence, Kind, require_size
from quorate.attestation.policy import SoftwarePolicy
from quorate.attestation.roots import Roots
from quorate.errors import AttestedKeyUnknownError, EvidenceKindError, EvidenceSignatureError
from quorate.identity import has_signed

_MAGIC = b"quorate/software-evidence/v1\x00"
_BODY = struct.Struct(f">{len(_MAGIC)}sQ64s32s32s")
"""Magic, time in seconds, binding, digest of the code, public key. The signature is behind it."""
_SIGNATURE_BYTES = 64
_LAST_S = 253_402_300_799  # the year 9999


def software_evidence(key: Ed25519PrivateKey, binding: bytes, code_digest: bytes, made_at: datetime) -> Evidence:
    """Make such evidence.

    Args:
        binding: 64 bytes.
        code_digest: SHA-256 over what runs, as the program says itself.
    """
    body = _BODY.pack(_MAGIC, int(made_at.timestamp()), binding, code_digest, key.public_key().public_bytes_raw())
    return Evidence(Kind.SOFTWARE, body + key.sign(body))


def claims(evidence: Evidence, section: SoftwarePolicy, now: datetime, roots: Roots) -> Claims:
    """Raises EvidenceKindError, AttestedKeyUnknownError, EvidenceSignatureError."""
    require_size(
        evidence.raw, _BODY.size + _SIGNATURE_BYTES, _BODY.size + _SIGNATURE_BYTES, "Evidence made by software"
    )
    require_size(evidence.endorsements, 0, 0, "What comes with evidence made by software")
    body, signature = evidence.raw[: _BODY.size], evidence.raw[_BODY.size :]
    magic, made_s, carried, code, key = _BODY.unpack(body)
    if magic != _MAGIC or made_s > _LAST_S:
        raise EvidenceKindError("This is no evidence made by software")
    if key.hex() not in section.keys:
        raise AttestedKeyUnknownError(
            "The key that signed evidence made by software is none that the policy names",
            expected=", ".join(section.keys) or "none: the policy names no key",
            got=key.hex(),
        )
    if not has_signed(key, signature, body):
        raise EvidenceSignatureError("The signature under evidence made by software does not hold")
    return Claims(
        hardware="none: a program says so itself",
        carried=carried.hex(),
        measured={"code": code.hex()},
        tcb="none",
        made_at=datetime.fromtimestamp(made_s, UTC),
        checks=(),
    )
