"""The key that all sites of a run have and the server has not.

Each site makes a random part and seals it to every site of the roster, itself too, under its pinned sealing key. The
study key is derived from all parts that the server collected: one honest part among them keeps it from the server. A
server that shows different sites different parts gets sites with different keys, whose hellos do not fit together.

What a site seals for itself is bound to its memory, too. A site that has forgotten votes has another memory from then
on, and joins only a key that its own part is in, under this one. The others join one key in a run and keep it: so the
run began after that.

What is derived from it: the keyed digest of a model, the keys of tags, reveals and checkpoints.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import BinaryIO, Final, NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from quorate.errors import (
    FrameError,
    KeyPartRefusedError,
    StudyKeyRefusedError,
    SumRefusedError,
    VotesForgottenError,
)
from quorate.identity import RunId, SiteName
from quorate.process.chunked_aead import CHUNK_BYTES, open_chunks, seal_chunks, sealed_bytes
from quorate.process.randomness import Randomness
from quorate.secagg.terms import Roster, Sign, bound, is_signed
from quorate.study.rules import Rules

KEY_BYTES: Final = 32
_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
# Every key that is derived here seals one message only.
_NONCE = bytes(12)


@dataclass(frozen=True, slots=True)
class SealedPart:
    """One site's part of the key, for one recipient."""

    sender: SiteName
    box: bytes
    signature: bytes


def make_parts(
    study: bytes,
    run: RunId,
    sender: SiteName,
    sealing_keys: Mapping[SiteName, bytes],
    sign: Sign,
    randomness: Randomness,
    memory: bytes = b"",
) -> dict[SiteName, SealedPart]:
    """A fresh part, sealed and signed for each site of the roster.

    Args:
        sealing_keys: The X25519 public keys that this site pinned when it approved the study.
        memory: What the sender's part for itself is bound to; empty at a site that has forgotten nothing.
    """
    part = randomness.draw(KEY_BYTES)
    parts = {}
    for recipient, key in sealing_keys.items():
        context = _context(study, run, sender, recipient)
        info = context + memory if recipient == sender else context
        box = _SUITE.encrypt(part, X25519PublicKey.from_public_bytes(key), info=info)
        parts[recipient] = SealedPart(sender, box, sign(context + box))
    return parts


def is_from_sender(part: SealedPart, study: bytes, run: RunId, recipient: SiteName, roster: Roster) -> bool:
    """Whether a site of the roster signed this part for this recipient: all that the server can see of it."""
    key = roster.get(part.sender, b"")
    return is_signed(key, part.signature, _context(study, run, part.sender, recipient) + part.box)


def join_parts(
    parts: Sequence[SealedPart],
    study: bytes,
    run: RunId,
    recipient: SiteName,
    sealing_key: X25519PrivateKey,
    roster: Roster,
    rules: Rules,
    memory: bytes = b"",
) -> StudyKey:
    """The study key, from the parts that were sealed for this site.

    Args:
        memory: The one that this site makes its own parts with.

    Raises:
        StudyKeyRefusedError: fewer parts than votes, a part twice or from a stranger, or one that is not signed.
        KeyPartRefusedError: a signed one does not open. VotesForgottenError: this site has forgotten votes, and did not
            begin this run since.
    """
    senders = [part.sender for part in parts]
    if senders != sorted(set(senders)) or not set(senders) <= set(roster) or len(senders) < rules.votes:
        _refuse(rules)
    if memory and recipient not in senders:
        raise _forgotten()
    material = bytearray()
    for part in parts:
        context = _context(study, run, part.sender, recipient)
        if not is_from_sender(part, study, run, recipient, roster):
            _refuse(rules)
        own = memory if part.sender == recipient else b""
        try:
            opened = _SUITE.decrypt(part.box, sealing_key, info=context + own)
        except (InvalidTag, ValueError) as error:
            raise (_forgotten() if own else _unopened(part.sender)) from error
        if len(opened) != KEY_BYTES:
            raise _unopened(part.sender)
        material += bound(b"part", part.sender.encode(), opened)
    info = bound(b"study key", study, run.encode())
    return StudyKey(HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(bytes(material)))


@dataclass(frozen=True, slots=True)
class StudyKey:
    """32 secret bytes, and what they are used for."""

    secret: bytes = field(repr=False)

    def model(self, digest: bytes) -> bytes:
        """The keyed digest of a model state: the server sees who agrees, and cannot test a guess."""
        return hmac.digest(self.secret, bound(b"model", digest), "sha256")

    def derive(self, purpose: bytes, *context: bytes) -> bytes:
        """A key for one purpose and context, 32 bytes."""
        info = bound(b"derive", purpose, *context)
        return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(self.secret)

    def seal_once(self, content: bytes, purpose: bytes, *context: bytes) -> bytes:
        """Seal the one message that this purpose and context ever has."""
        return ChaCha20Poly1305(self.derive(purpose, *context)).encrypt(_NONCE, content, None)

    def open_once(self, box: bytes, purpose: bytes, *context: bytes) -> bytes:
        """Raises SumRefusedError when it was not sealed so."""
        try:
            return ChaCha20Poly1305(self.derive(purpose, *context)).decrypt(_NONCE, box, None)
        except (InvalidTag, ValueError) as error:
            raise SumRefusedError("A sealed message of the other sites does not open") from error


_SALT_BYTES = 32


def seal_stream(content: Iterable[bytes], key: StudyKey, purpose: bytes) -> Iterator[bytes]:
    """Seal bytes, in pieces of any lengths: a random salt, then what ``seal_chunks`` makes under a key of its own."""
    salt = os.urandom(_SALT_BYTES)
    yield salt
    yield from seal_chunks(content, key.derive(b"stream", purpose, salt))


def stream_bytes(size_bytes: int) -> int:
    """How long so many bytes are when they are sealed."""
    return _SALT_BYTES + sealed_bytes(size_bytes)


def open_stream(sealed: BinaryIO, key: StudyKey, purpose: bytes) -> Iterator[bytes]:
    """What was sealed. Nothing that came out counts before the end is reached.

    Raises:
        SumRefusedError: it was not sealed so, or is not whole.
    """
    content_key = key.derive(b"stream", purpose, sealed.read(_SALT_BYTES))
    try:
        yield from open_chunks(_blocks(sealed), content_key)
    except FrameError as error:
        raise SumRefusedError("A checkpoint is not what a site of this study sealed") from error


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    return iter(partial(file.read, CHUNK_BYTES), b"")


def _context(study: bytes, run: RunId, sender: SiteName, recipient: SiteName) -> bytes:
    return bound(b"key part", study, run.encode(), sender.encode(), recipient.encode())


def _unopened(sender: SiteName) -> KeyPartRefusedError:
    """Its sender signed it for this site, and nobody else can have changed it: this site knows, the others have only
    its word."""
    error = KeyPartRefusedError(
        f"The part of the study key that {sender} signed for this site does not open",
        expected="what was sealed to the key that this site showed when it joined",
        action=f"Ask the administrator of {sender}: it seals wrongly, or to another key; then start the run anew",
    )
    error.alleged = sender
    return error


def _forgotten() -> VotesForgottenError:
    return VotesForgottenError(
        "An older database was put back at this site, and what it voted for in this run since is forgotten",
        expected="a run that began after that, with this site",
        action="Have the operator go on without this site, or stop the run and start another while it is connected",
    )


def _refuse(rules: Rules) -> NoReturn:
    raise _refusal(rules)


def _refusal(rules: Rules) -> StudyKeyRefusedError:
    return StudyKeyRefusedError(
        "The parts of the study key are not what the study's sites made for this one",
        expected=f"parts of at least {rules.votes} of them, each signed and sealed for this site",
        action="Start the run again; if this comes again, distrust the server",
    )
