"""How far a site's privacy ledger has come, signed by the site: what servers keep and repeat to it.

A ledger that was put back to an older state does not hold the newest head that a server was shown. Only the site's own
signature counts, so a server can repeat a head and cannot make one up.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from quorate.errors import FrameError
from quorate.identity import has_signed

MAX_NUMBER = 2**63 - 1
_CONTEXT = b"quorate/ledger-head/v1\x00"


@dataclass(frozen=True, slots=True)
class SignedHead:
    """The number (from 1) and the hash of a ledger's entry, and the site's Ed25519 signature under both.

    The hash covers all entries up to this one.
    """

    number: int
    hash: bytes
    signature: bytes

    def __post_init__(self) -> None:
        if not 0 < self.number <= MAX_NUMBER or len(self.hash) != 32 or len(self.signature) != 64:
            raise FrameError("The head of a privacy ledger is malformed")

    def is_signed_by(self, signing_key: bytes) -> bool:
        """Whether this Ed25519 public key (32 bytes) signed it."""
        return has_signed(signing_key, self.signature, _signed(self.number, self.hash))


def sign_head(signing_key: Ed25519PrivateKey, number: int, entry_hash: bytes) -> SignedHead:
    return SignedHead(number, entry_hash, signing_key.sign(_signed(number, entry_hash)))


def _signed(number: int, entry_hash: bytes) -> bytes:
    return _CONTEXT + number.to_bytes(8, "big") + entry_hash
