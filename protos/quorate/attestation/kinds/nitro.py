"""AWS Nitro Enclaves: an attestation document, a COSE_Sign1 object signed by a key of the Nitro hypervisor.

Amazon makes the hardware and runs it: this kind protects against whoever rents it, not against Amazon.

Sources: AWS Nitro Enclaves, *Attestation document specification* (NSM API, docs/attestation_process.md), sections 3.1
(syntax) and 3.2 (validation); RFC 9052, section 4.4.
"""

from __future__ import annotations

from datetime import UTC, datetime
from io import BytesIO
from typing import Any

import cbor2
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP384R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from quorate.attestation.appraisal import Check, Claims
from quorate.attestation.evidence import Evidence, require_size
from quorate.attestation.kinds.chain import MAX_CERTIFICATES, load_certificate, require_chain
from quorate.attestation.policy import NitroPolicy
from quorate.attestation.roots import Roots
from quorate.errors import DebugModeError, EvidenceKindError, EvidenceSignatureError

MAX_DOCUMENT_BYTES = 16 * 1024
_ES384 = b"\xa1\x01\x38\x22"
"""The one protected header: {1: -35}, ECDSA with SHA-384 (RFC 9053, table 1)."""
_COORDINATE_BYTES = 48
_PCR_BYTES = 48
_FIELDS = {"module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle"}
_OPTIONAL_FIELDS = {"public_key", "user_data", "nonce"}


def claims(evidence: Evidence, section: NitroPolicy, now: datetime, roots: Roots) -> Claims:
    """What the document says.

    Raises:
        EvidenceKindError, EvidenceSignatureError, EvidenceExpiredError.
    """
    require_size(evidence.raw, 1, MAX_DOCUMENT_BYTES, "The Nitro document")
    require_size(evidence.endorsements, 0, 0, "What comes with a Nitro document")
    payload, signature = _cose_sign1(evidence.raw)
    document = _document(payload)
    ders = (document["certificate"], *document["cabundle"][1:])  # the first of the bundle is the root itself
    leaf, *between = (load_certificate(der, "A certificate of the Nitro document") for der in ders)
    require_chain(leaf, between, roots.amazon, now)
    _require_signed(leaf, payload, signature)
    pcrs = document["pcrs"]
    return Claims(
        hardware="a Nitro enclave at Amazon",
        carried=(document.get("user_data") or b"").hex(),
        measured={f"pcr{number}": pcrs[number].hex() for number in sorted(pcrs) if number < 3 or any(pcrs[number])},
        tcb="not told: Amazon keeps hypervisor and hardware up to date itself",
        made_at=datetime.fromtimestamp(document["timestamp"] / 1000, UTC),
        checks=(
            Check("the document and its certificates are signed up to Amazon's root", True, EvidenceSignatureError),
            Check(
                "debugging is off",
                all(any(pcrs[number]) for number in range(3)),
                DebugModeError,
                expected="PCR0, PCR1 and PCR2 that are not zero",
                got=", ".join(f"PCR{number} zero" for number in range(3) if not any(pcrs[number])),
            ),
        ),
    )


def _cose_sign1(raw: bytes) -> tuple[bytes, bytes]:
    """Payload and signature. Nothing is left to choose in the headers (RFC 9052, section 4.2)."""
    match _read(raw, depth=2):
        case [bytes(protected), dict(unprotected), bytes(payload), bytes(signature)]:
            pass
        case _:
            raise EvidenceKindError("This is no COSE_Sign1 object")
    if protected != _ES384 or unprotected:
        raise EvidenceKindError(
            "The header of the Nitro document is another one", expected=_ES384.hex(), got=protected[:32].hex()
        )
    if len(signature) != 2 * _COORDINATE_BYTES:
        raise EvidenceKindError("The signature of the Nitro document has another length")
    return payload, signature


def _require_signed(leaf: x509.Certificate, payload: bytes, signature: bytes) -> None:
    key = leaf.public_key()
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP384R1):
        raise EvidenceSignatureError("The key of the Nitro document is none of P-384")
    r, s = (int.from_bytes(signature[at : at + _COORDINATE_BYTES]) for at in (0, _COORDINATE_BYTES))
    signed = cbor2.dumps(["Signature1", _ES384, b"", payload])
    try:
        key.verify(encode_dss_signature(r, s), signed, ECDSA(SHA384()))
    except InvalidSignature as error:
        raise EvidenceSignatureError("The signature under the Nitro document does not hold") from error


def _document(payload: bytes) -> dict[str, Any]:
    """The document with the types and bounds of section 3.1. Not believed yet: its certificate is within."""
    document = _read(payload, depth=3)
    if not isinstance(document, dict) or not _FIELDS <= set(document) <= _FIELDS | _OPTIONAL_FIELDS:
        raise EvidenceKindError("The Nitro document has not the fields of one")
    pcrs, bundle = document["pcrs"], document["cabundle"]
    if not (
        isinstance(document["module_id"], str)
        and document["digest"] == "SHA384"
        and type(document["timestamp"]) is int
        and 0 < document["timestamp"] < 1 << 48
        and isinstance(pcrs, dict)
        and {0, 1, 2} <= set(pcrs) <= set(range(32))
        and all(isinstance(pcr, bytes) and len(pcr) == _PCR_BYTES for pcr in pcrs.values())
        and isinstance(bundle, list)
        and 1 <= len(bundle) < MAX_CERTIFICATES
        and all(isinstance(each, bytes) for each in (document["certificate"], *bundle))
        and all(isinstance(document.get(name), bytes | None) for name in _OPTIONAL_FIELDS)
    ):
        raise EvidenceKindError("A field of the Nitro document has another type or size")
    return document


def _read(content: bytes, depth: int) -> Any:
    """One CBOR item of definite lengths without duplicate keys, and nothing behind it."""
    stream = BytesIO(content)
    decoder = cbor2.CBORDecoder(
        stream, max_depth=depth, allow_indefinite=False, allow_duplicate_keys=False, read_size=1
    )
    item = decoder.decode()
    if stream.tell() != len(content):
        raise EvidenceKindError("Something is behind the Nitro document")
    return item
