"""Who is who: names, roles, public keys and how certificates carry them.

A site has three key pairs, all made at the site: TLS (its certificate), Ed25519 (signs what it says) and X25519 (others
seal to it). The last two are listed in the roster that every site sees and pins, so that whatever passes between sites
does not depend on the server's certificate authority.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from quorate.errors import IdentityError, InputError, KeyMismatchError

SiteName = NewType("SiteName", str)
RunId = NewType("RunId", str)

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_SEALING_PROOF_CONTEXT = b"quorate/sealing-key/v1\x00"


def parse_name(text: str, what: str = "site") -> SiteName:
    """A valid name of a site, study or data set: lower-case letters, digits and inner hyphens, at most 63."""
    if not is_name(text):
        example = "north-hospital" if what == "site" else f"my-{what.replace(' ', '-')}"
        raise InputError(
            f"{text[:80]!r} cannot be the name of a {what}",
            expected="1 to 63 lower-case letters, digits and hyphens, not at the ends",
            action=f"Choose another name, for example {example}",
        )
    return SiteName(text)


def is_name(text: str) -> bool:
    """Whether a text can be the name of a site."""
    return _NAME.fullmatch(text) is not None


def is_run_id(text: str) -> bool:
    """Whether a text can name a run. On both sides it also names a folder or a file, whoever made it up."""
    return _RUN_ID.fullmatch(text) is not None


class Role(StrEnum):
    """What a certificate lets its holder call."""

    BOOTSTRAP = "bootstrap"
    SITE = "site"
    OPERATOR = "operator"
    SERVER = "server"


@dataclass(frozen=True, slots=True)
class Subject:
    """The identity in a certificate: ``quorate://CONSORTIUM/ROLE/NAME`` as its one URI alternative name."""

    consortium: str
    role: Role
    name: str

    def uri(self) -> str:
        return f"quorate://{self.consortium}/{self.role}/{self.name}"

    @classmethod
    def of(cls, certificate: x509.Certificate) -> Subject:
        """Read it from a certificate whose chain was already verified.

        Raises:
            IdentityError: the certificate does not carry exactly one well-formed identity.
        """
        try:
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        except x509.ExtensionNotFound:
            uris = []
        match = re.fullmatch(r"quorate://([a-z0-9-]+)/([a-z]+)/([a-z0-9-]+)", uris[0]) if len(uris) == 1 else None
        if match is None or match[2] not in set(Role):
            raise IdentityError(
                "The certificate does not say who its holder is",
                expected="one URI quorate://CONSORTIUM/ROLE/NAME",
                action="Use a certificate that this consortium's server issued",
            )
        return cls(match[1], Role(match[2]), match[3])


@dataclass(frozen=True, slots=True)
class Member:
    """A site as every other site sees it. Valid once built: the signing key vouches for the sealing key."""

    name: SiteName
    signing_key: bytes
    sealing_key: bytes
    sealing_proof: bytes

    def __post_init__(self) -> None:
        parse_name(self.name)
        if len(self.signing_key) != 32 or len(self.sealing_key) != 32:
            raise KeyMismatchError(f"The public keys of {self.name} are malformed", expected="32 bytes each")
        if not has_signed(self.signing_key, self.sealing_proof, _SEALING_PROOF_CONTEXT + self.sealing_key):
            raise KeyMismatchError(
                f"The signing key of {self.name} does not vouch for its sealing key",
                action="Have the site join again; if the server shows this for a site that did not change, distrust it",
            )

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.signing_key)


def has_signed(key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether this is a signature of the owner of an Ed25519 public key; not where one of the two is none."""
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def sealing_proof(signing_key: Ed25519PrivateKey, sealing_public_key: bytes) -> bytes:
    """The signature by which a site's Ed25519 key vouches for its X25519 key."""
    return signing_key.sign(_SEALING_PROOF_CONTEXT + sealing_public_key)


def fingerprint(signing_key: bytes) -> str:
    """A name for an Ed25519 public key that people can compare: 96 bits of SHA-256 in groups of four hex digits."""
    digits = hashlib.sha256(b"quorate/fingerprint/v1\x00" + signing_key).hexdigest()[:24]
    return "-".join(digits[start : start + 4] for start in range(0, 24, 4))
