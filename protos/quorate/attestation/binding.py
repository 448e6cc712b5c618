"""What evidence is bound to: the site's question and all that is not measured as code."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime

from quorate.errors import InputError

NONCE_BYTES = 32
BINDING_BYTES = 64
_CONTEXT = b"quorate/attest-binding/v1"


@dataclass(frozen=True, slots=True)
class Expected:
    """What a site asked. Evidence that carries the binding was made after the nonce in it.

    Args:
        binding: The 64 bytes of ``binding``.
        asked_at: When the nonce was made, with its zone: evidence without a time of its own is at most so old.
    """

    binding: bytes
    asked_at: datetime

    def __post_init__(self) -> None:
        if len(self.binding) != BINDING_BYTES:
            raise InputError(
                "The expected binding is malformed", expected=f"{BINDING_BYTES} bytes", got=f"{len(self.binding)}"
            )
        require_zone(self.asked_at)


def binding(*, nonce: bytes, public_key: bytes, tls_spki: bytes, study: bytes, run: str) -> bytes:
    """SHA-512 over all that evidence has to be bound to, each part behind its length.

    Args:
        nonce: 32 bytes of the site's.
        public_key: To which the site is going to seal (X25519, 32 bytes).
        tls_spki: The subject public key info (DER) of the TLS certificate at the other end of the connection.
        study: The study in canonical form: all that is not measured as code, roster and keys, least sites, protection,
            parameters.
        run: The run's id.

    Returns:
        64 bytes: the size of ``report_data`` of TDX (Intel TDX module 1.5 ABI, TDREPORT) and SEV-SNP (AMD 56860,
        table 23), which carry it as it is; so does ``user_data`` of Nitro.
    """
    if len(nonce) != NONCE_BYTES:
        raise InputError("The nonce is malformed", expected=f"{NONCE_BYTES} bytes", got=f"{len(nonce)}")
    parts = (
        nonce,
        public_key,
        hashlib.sha256(tls_spki).digest(),
        hashlib.sha256(study).digest(),
        run.encode(),
    )
    return hashlib.sha512(_CONTEXT + length_prefixed(*parts)).digest()


def as_eat_nonce(binding: bytes) -> str:
    """The binding as Confidential Space carries it: a nonce there has 10 to 74 characters, so its SHA-256 in hex."""
    return hashlib.sha256(binding).hexdigest()


def require_zone(moment: datetime) -> None:
    """Raises InputError: a time without a zone could be any of several."""
    if moment.tzinfo is None:
        raise InputError("A time of an appraisal has no zone", expected="a time with its zone, such as UTC")


def length_prefixed(*parts: bytes) -> bytes:
    """Each part behind its length: no two rows of parts make the same bytes."""
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)
