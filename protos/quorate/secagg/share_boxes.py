"""Shares on their way from one site to another, through a server that must not read, swap or replay them.

A dealt share on the wire has a fixed length; nothing in it is parsed::

    HPKE encapsulated key (32) | sealed: share (52 bits a word, as in ``words``), inner signature (64), tag (16)
    | outer signature (64)

- **HPKE** (RFC 9180, base mode; X25519, HKDF-SHA256, ChaCha20-Poly1305) to the key that the recipient made for this one
  round. Its info holds kind, round id, sender and recipient: a box opens nowhere else, so that a member who puts its
  own signature on another's box gains nothing.
- The **outer signature**, by the sender's Ed25519 key over the same context and the box: HPKE's base mode says nothing
  about who sealed. It is checked before anything is decrypted, so nobody but the sender ever gets a box tried.
- The **inner signature**, by the dealer over the same context with a kind of its own and SHA-256 of the share: a site
  that reveals a sum which turns out wrong can show what it was dealt. Otherwise a bad dealer could frame it.

Whatever is wrong with a message, the refusal is one error with one text. It says no more than that the message was
refused: telling apart a box that does not open from a share that is malformed would help only whoever made it up.

This module leaves to others: vouching for round keys (each site signs its own in its hello, with its Ed25519 key) and
what a round id binds.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from quorate.aggregation import ring
from quorate.aggregation.words import Words, pack_words, packed_bytes, unpack_words
from quorate.errors import ContributionError, FrameError, KeyMismatchError
from quorate.identity import SiteName, has_signed

ROUND_ID_BYTES = 32
SIGNATURE_BYTES = 64
BOX_OVERHEAD_BYTES = 32 + 16  # HPKE's encapsulated key and the tag
MESSAGE_OVERHEAD_BYTES = BOX_OVERHEAD_BYTES + 2 * SIGNATURE_BYTES

_CONTEXT = b"quorate/secagg/sealing/v2\x00"
_SHARE = b"share"
_DEALT = b"dealt"
_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)


class RoundKey:
    """A fresh X25519 key pair for one round, in memory only: with it go all shares of the round that anybody kept.

    It cannot be pickled or copied, and shows nothing when printed. (Python cannot wipe memory; ``forget`` drops the
    only reference.)
    """

    __slots__ = ("_private_key", "public_key")

    def __init__(self) -> None:
        # From the system, and not by ``generate``: OpenSSL's generator goes on alike in each copy of a process, such as
        # a virtual machine whose snapshot is resumed twice.
        self._private_key: X25519PrivateKey | None = X25519PrivateKey.from_private_bytes(os.urandom(32))
        self.public_key = self._private_key.public_key().public_bytes_raw()
        """32 bytes, for the others to seal to."""

    def __reduce__(self) -> NoReturn:
        raise TypeError("A round key stays in the memory of the process that made it")

    def forget(self) -> None:
        """At the end of the round. Nothing opens any more."""
        self._private_key = None

    def open(self, box: bytes, info: bytes) -> bytes:
        """What was sealed to this key under this info.

        Raises:
            FrameError: anything is wrong, or the key is forgotten.
        """
        if self._private_key is None:
            _refuse()
        return _open(box, self._private_key, info)


@dataclass(frozen=True, slots=True, eq=False)
class SignedShare:
    """A share with its dealer's word for it. Valid once built.

    Args:
        words: uint64[m], below q.
        round_id: 32 bytes.
        dealer, recipient: Whose secret, whose place.
        dealer_key: The dealer's Ed25519 public key, 32 bytes, from the pinned roster.
        signature: By that key over round, dealer, recipient and SHA-256 of the share.

    Raises:
        FrameError: the signature is not the dealer's, or a word is not below q.
    """

    words: Words = field(repr=False)
    round_id: bytes
    dealer: SiteName
    recipient: SiteName
    dealer_key: bytes
    signature: bytes

    def __post_init__(self) -> None:
        if self.words.dtype != np.uint64 or self.words.ndim != 1 or bool((self.words >= ring.MODULUS).any()):
            _refuse()
        signed = _dealt(pack_words(self.words), self.round_id, self.dealer, self.recipient)
        _check_signature(self.dealer_key, self.signature, signed)


def seal(share: Words, to: bytes, info: bytes) -> bytes:
    """A box of ``packed_bytes(m)`` + 48 bytes that only the holder of a key opens, and only under the same info.

    Args:
        share: uint64[m], below q.
        to: The recipient's X25519 public key, 32 bytes.
        info: What the box is bound to.

    Raises:
        ContributionError: a word is not below q. KeyMismatchError: the public key is none.
    """
    return _seal(_checked_bytes(share), to, info)


def open_sealed(box: bytes, key: X25519PrivateKey, info: bytes, words: int) -> Words:
    """The share in a box, uint64[words].

    Raises:
        FrameError: wrong length, another key or info, a bit that was changed, a word that is not below q; one text.
    """
    if len(box) != BOX_OVERHEAD_BYTES + packed_bytes(words):
        _refuse()
    return _unpacked(_open(box, key, info))


def message_bytes(words: int) -> int:
    """The length of a dealt share of so many words."""
    return MESSAGE_OVERHEAD_BYTES + packed_bytes(words)


def deal(
    share: Words,
    round_id: bytes,
    sender: SiteName,
    recipient: SiteName,
    signing_key: Ed25519PrivateKey,
    round_key_of_recipient: bytes,
) -> bytes:
    """A share as it travels, signed inside and outside; ``message_bytes(m)`` bytes.

    Args:
        share: uint64[m], below q.
        round_id: 32 bytes.
        sender: The dealer.
        recipient: Whose place the share belongs to.
        signing_key: The dealer's, the one in the roster.
        round_key_of_recipient: X25519 public key, 32 bytes, that the recipient vouched for in this round.

    Raises:
        ContributionError: a word is not below q. KeyMismatchError: the recipient's key is none.
        FrameError: the round's id or a name has an impossible length.
    """
    plain = _checked_bytes(share)
    context = _context(_SHARE, round_id, sender, recipient)
    box = _seal(plain + signing_key.sign(_dealt(plain, round_id, sender, recipient)), round_key_of_recipient, context)
    return box + signing_key.sign(context + box)


def receive(
    message: bytes,
    round_id: bytes,
    sender: SiteName,
    recipient: SiteName,
    verify_key: bytes,
    private_round_key: RoundKey,
    words: int,
) -> SignedShare:
    """The share that a dealer sent, checked in this order: length, outer signature, box, every word, inner signature.

    Args:
        message: What the server passed on.
        round_id: 32 bytes, as this site computed it.
        sender: Who is said to have sent it; a member of this site's roster.
        recipient: This site.
        verify_key: The sender's Ed25519 public key, from this site's roster.
        private_round_key: This site's for the round.
        words: How many words a share of this round has.

    Raises:
        FrameError: any of these fails; one text for all.
    """
    if len(message) != message_bytes(words):
        _refuse()
    context = _context(_SHARE, round_id, sender, recipient)
    box, signature = message[:-SIGNATURE_BYTES], message[-SIGNATURE_BYTES:]
    _check_signature(verify_key, signature, context + box)
    plain = private_round_key.open(box, context)
    share = _unpacked(plain[:-SIGNATURE_BYTES])
    return SignedShare(share, round_id, sender, recipient, verify_key, plain[-SIGNATURE_BYTES:])


def _context(kind: bytes, round_id: bytes, sender: str, recipient: str) -> bytes:
    """What a signature or a box is bound to: each part has a fixed length or says its length, so none runs over."""
    names = [sender.encode(), recipient.encode()]
    if len(round_id) != ROUND_ID_BYTES or not all(0 < len(name) < 256 for name in names):
        _refuse()
    parts = (kind, round_id, *names)
    return _CONTEXT + b"".join(bytes([len(part)]) + part for part in parts)


def _dealt(share: bytes, round_id: bytes, dealer: str, recipient: str) -> bytes:
    return _context(_DEALT, round_id, dealer, recipient) + hashlib.sha256(share).digest()


def _check_signature(verify_key: bytes, signature: bytes, signed: bytes) -> None:
    if not has_signed(verify_key, signature, signed):
        _refuse()


def _seal(plain: bytes, to: bytes, info: bytes) -> bytes:
    try:
        return _SUITE.encrypt(plain, X25519PublicKey.from_public_bytes(to), info=info)
    except ValueError as error:  # not 32 bytes, or a point of small order, with which anybody could read the box
        raise KeyMismatchError("The key that a site gave for this round is not an X25519 public key") from error


def _open(box: bytes, key: X25519PrivateKey, info: bytes) -> bytes:
    try:
        return _SUITE.decrypt(box, key, info=info)
    except (InvalidTag, ValueError):
        _refuse()


def _checked_bytes(share: Words) -> bytes:
    if share.dtype != np.uint64 or share.ndim != 1 or bool((share >= ring.MODULUS).any()):
        raise ContributionError("A share to be sealed has the wrong form", expected="a row of words below q")
    return pack_words(share)


def _unpacked(plain: bytes) -> Words:
    try:
        return unpack_words(plain)
    except FrameError:
        _refuse()


def _refuse() -> NoReturn:
    # ``from None``: the cause would be the oracle that the one text avoids, in a log or over the wire.
    raise FrameError(
        "A sealed share was refused",
        expected="what its sender sealed for this site in this round",
        action="Ask the sender's administrator whether both sites see the same round",
    ) from None
