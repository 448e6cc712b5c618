"""What passes between a site and the attested machine that adds: instructions signed there, replies sealed to it.

The machine makes an ``EnclaveKeys`` in its memory for each run. Evidence is bound to their public halves, so whoever
appraised it knows to whom it seals and whose word an instruction is. A reply is sealed with HPKE (RFC 9180, base mode;
X25519, HKDF-SHA256, ChaCha20-Poly1305) under all that it belongs to, with the site's signature inside: base mode says
nothing about who sealed. Bulk data is sealed beside it, in chunks, under keys that only the sealed reply holds.
"""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass
from typing import NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from quorate.attestation.binding import length_prefixed
from quorate.errors import SiteSignatureError, UnsealError
from quorate.identity import has_signed

KEY_BYTES = 32
SIGNATURE_BYTES = 64
_REPLY = b"quorate/attested-reply/v1\x00"
_SECRET = b"quorate/attested-bulk/v1\x00"
_INSTRUCTION = b"quorate/attested-instruction/v1\x00"
_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)


@dataclass(frozen=True, slots=True)
class EnclaveIdentity:
    """The public halves of a machine's keys for one run, 32 bytes each: to seal to it, to know its word."""

    sealing: bytes
    signing: bytes

    @property
    def public_key(self) -> bytes:
        """What evidence is bound to: both."""
        return self.sealing + self.signing

    def has_signed(self, instruction: bytes, signature: bytes) -> bool:
        """Whether an instruction (``signed_part``) is this machine's."""
        return has_signed(self.signing, signature, _INSTRUCTION + instruction)


class EnclaveKeys:
    """A machine's keys for one run, in memory only: with the process goes all that was sealed to it.

    They cannot be pickled or copied, and show nothing when printed.
    """

    __slots__ = ("_sealing", "_signing", "identity")

    def __init__(self) -> None:
        # From the system: OpenSSL's generator goes on alike in each copy of a process, such as a machine's snapshot.
        self._sealing = X25519PrivateKey.from_private_bytes(os.urandom(KEY_BYTES))
        self._signing = Ed25519PrivateKey.from_private_bytes(os.urandom(KEY_BYTES))
        self.identity = EnclaveIdentity(
            self._sealing.public_key().public_bytes_raw(), self._signing.public_key().public_bytes_raw()
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError("An enclave's keys stay in the memory of the process that made them")

    def sign(self, instruction: bytes) -> bytes:
        """64 bytes under an instruction (``signed_part``)."""
        return self._signing.sign(_INSTRUCTION + instruction)

    def open(self, sealed: bytes, context: bytes, site_key: bytes) -> bytes:
        """What a site sealed to this machine.

        Args:
            context: As it was sealed under (``reply_context``).
            site_key: The Ed25519 public key of the site that it is said to be from, as the study names it.

        Raises:
            UnsealError: sealed to another key or under another context, or changed. SiteSignatureError: not by this
                site.
        """
        try:
            opened = _SUITE.decrypt(sealed, self._sealing, context)
        except (InvalidTag, ValueError) as error:
            raise UnsealError("What a site sent does not open in the attested machine") from error
        content, signature = opened[:-SIGNATURE_BYTES], opened[-SIGNATURE_BYTES:]
        if not has_signed(site_key, signature, _signed_reply(self.identity, context, content)):
            raise SiteSignatureError("What was sealed to the attested machine is not signed by the site that it names")
        return content


def seal(content: bytes, to: EnclaveIdentity, context: bytes, site: Ed25519PrivateKey) -> bytes:
    """A reply that only this machine opens, only in its place, and of which it knows who sealed it.

    Args:
        context: What it belongs to (``reply_context``).
        site: The site's signing key.

    Raises:
        UnsealError: the machine's key is none.
    """
    signature = site.sign(_signed_reply(to, context, content))
    try:
        return bytes(_SUITE.encrypt(content + signature, X25519PublicKey.from_public_bytes(to.sealing), context))
    except ValueError as error:
        raise UnsealError("The attested machine's key is none") from error


def reply_context(study: bytes, run: str, message: bytes, site: str) -> bytes:
    """What a sealed reply belongs to.

    Args:
        study: The study's digest.
        message: The id of the instruction that it answers, which names round, phase and attempt.
    """
    return _REPLY + length_prefixed(study, run.encode(), message, site.encode())


def reply_secret(content: bytes, context: bytes, site: Ed25519PrivateKey) -> bytes:
    """32 bytes that only the site can make, for whoever opens the reply: from them come the keys of its bulk data.

    Another reply has others, since what it says names its bulk data by content; the same one has the same, so that what
    was sealed in an earlier life of the site comes out alike.

    Args:
        content: What the reply says.
        context: What it belongs to (``reply_context``).
    """
    info = _SECRET + length_prefixed(context, hashlib.sha256(content).digest())
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=info).derive(site.private_bytes_raw())


def blob_key(secret: bytes, number: int) -> bytes:
    """The key of a reply's bulk data, by its place among them.

    Args:
        secret: Of this reply (``reply_secret``); it travels inside of it.
    """
    return hashlib.sha256(_REPLY + length_prefixed(b"blob", secret, struct.pack("!I", number))).digest()


def signed_part(
    message: bytes, study: bytes, deadline_s: float, body: bytes, blobs: tuple[tuple[bytes, int], ...]
) -> bytes:
    """All of an instruction that a site heeds; its id names run, round, phase, attempt and site.

    Args:
        blobs: Name and size of what it refers to; names are digests of the content.
    """
    named = b"".join(name + struct.pack("!Q", size) for name, size in blobs)
    return length_prefixed(message, study, struct.pack("!d", deadline_s), body, named)


def _signed_reply(to: EnclaveIdentity, context: bytes, content: bytes) -> bytes:
    return length_prefixed(context, to.public_key, hashlib.sha256(content).digest())
