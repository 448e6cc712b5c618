"""The final model on its way to the operator, through a server that must neither read nor replace it.

**Sealing.** The server takes only what a quorum sends alike, so nothing is drawn: every site that holds the model makes
the same bytes::

    ephemeral X25519 public key (32) | the model in chunks (``process.chunked_aead``)

It is ECIES: the chunks' key comes by HKDF from the exchange of ephemeral and operator's key, under the study, the run
and both public keys. RFC 9180 is the same thing, but its implementations draw the ephemeral key. Here that is derived
from the study key, which the server has not, and SHA-256 of the model: another model has another key, so no key ever
seals two contents.

**Signing.** The operator's key is public: the server can seal a model of its own to it. So each site signs the name of
the sealed bytes, and the operator believes what as many sites signed as it takes to open a sum (``Rules.votes``). The
keys of those sites are in the study, and the study comes from the server as well; its *mark*, made with the operator's
private key when the study was published, tells that it is the one.

**What the server hands out** (``pack_release``) is the signatures and then the sealed bytes.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final, NoReturn, Self

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from quorate.errors import ContributionError, FrameError, KeyMismatchError, StudyError
from quorate.identity import RunId, SiteName
from quorate.process.chunked_aead import CHUNK_BYTES, open_chunks, seal_chunks
from quorate.rounds.blobs import BlobId, cut, name_of
from quorate.secagg.study_key import StudyKey
from quorate.secagg.terms import SIGNATURE_BYTES, Roster, Vote, bound, valid_votes
from quorate.study.rules import Rules

if TYPE_CHECKING:
    from quorate.study.study import Study

KEY_BYTES: Final = 32
_MAGIC: Final = b"quorate.release/1\n"


@dataclass(frozen=True, slots=True)
class ReleaseTerms:
    """Which model, and for whom.

    Args:
        study: The study's digest, 32 bytes.
        operator_key: The X25519 public key in the study, 32 bytes.
    """

    study: bytes
    run: RunId
    operator_key: bytes

    @classmethod
    def of(cls, study: Study, run: RunId) -> Self:
        """Raises StudyError: the study releases no sealed model."""
        if study.release.operator_key is None:
            raise StudyError("The study names no key to which its model is sealed")
        return cls(study.digest(), run, bytes.fromhex(study.release.operator_key))

    def encoded(self) -> bytes:
        return bound(b"release terms", self.study, self.run.encode(), self.operator_key)


class ReleaseKey:
    """The operator's X25519 key pair. It shows nothing when printed."""

    def __init__(self, private_key: X25519PrivateKey) -> None:
        self._private_key = private_key
        self.public_key = private_key.public_key().public_bytes_raw()
        """32 bytes, for the study."""

    def mark(self, unmarked: bytes) -> bytes:
        """What only the holder of this key can say of a study, 32 bytes.

        Args:
            unmarked: The study's canonical form without its mark.
        """
        key = _derived(self._private_key.private_bytes_raw(), bound(b"study mark"))
        return hmac.digest(key, unmarked, "sha256")

    def content_key(self, ephemeral: bytes, terms: ReleaseTerms) -> bytes:
        """The key of the chunks. Raises FrameError: this is no ephemeral key."""
        try:
            return _content_key(self._private_key, ephemeral, ephemeral, terms)
        except ValueError as error:
            raise FrameError("The sealed model is malformed", expected="an ephemeral X25519 key") from error


def seal_release(model: BinaryIO, key: StudyKey, terms: ReleaseTerms) -> Iterator[bytes]:
    """Seal a model to the operator: the same bytes at every site that holds it.

    Args:
        model: A file that can be read twice.

    Raises:
        KeyMismatchError: the operator's key in the study is none. ContributionError: the file changed meanwhile, so
            what was made is not to be used.
    """
    before, passed = hashlib.sha256(), hashlib.sha256()
    model.seek(0)
    while block := model.read(CHUNK_BYTES):
        before.update(block)
    digest = before.digest()
    ephemeral = X25519PrivateKey.from_private_bytes(key.derive(b"release", terms.encoded(), digest))
    public = ephemeral.public_key().public_bytes_raw()
    try:
        content_key = _content_key(ephemeral, terms.operator_key, public, terms)
    except ValueError as error:  # not 32 bytes, or a point of small order, with which anybody could read the model
        raise KeyMismatchError("The operator's key in the study is not an X25519 public key") from error

    def content() -> Iterator[bytes]:
        model.seek(0)
        while block := model.read(CHUNK_BYTES):
            passed.update(block)
            yield block

    yield public
    yield from seal_chunks(content(), content_key)
    if passed.digest() != digest:
        raise ContributionError("The model changed while it was sealed")


def released(terms: ReleaseTerms, sealed: BlobId) -> bytes:
    """What a site signs: that these bytes are the run's model, sealed."""
    return bound(b"release", terms.encoded(), sealed)


def pack_release(votes: Sequence[Vote], sealed: Iterable[bytes]) -> Iterator[bytes]:
    """The sealed model with the signatures under it, as the server keeps it and hands it out."""
    signed = (bytes([len(vote.site)]) + vote.site.encode() + vote.signature for vote in votes)
    yield _MAGIC + len(votes).to_bytes(2, "big") + b"".join(signed)
    yield from sealed


class OpenedRelease:
    """A model as it is opened, piece by piece. Nothing that came out counts before the end is reached.

    Args:
        packed: What the server handed out, in pieces of any lengths.
        key: The operator's, whose public key is in the terms.
        roster: The study's sites. rules: how many of them have to have signed.
    """

    def __init__(
        self, packed: Iterable[bytes], key: ReleaseKey, terms: ReleaseTerms, roster: Roster, rules: Rules
    ) -> None:
        self._packed, self._key, self._terms = packed, key, terms
        self._roster, self._rules = roster, rules
        self.signers: tuple[SiteName, ...] = ()
        """The sites that signed the model, once it is open."""

    def __iter__(self) -> Iterator[bytes]:
        """The model's bytes, in pieces of at most ``CHUNK_BYTES``.

        Raises:
            FrameError: it is not what a site sealed for this operator, or is not whole.
            KeyMismatchError: too few of the study's sites signed it.
        """
        packed = _Pieces(self._packed)
        votes = _read_votes(packed)
        sealed = _Named(packed.rest())
        body = _Pieces(sealed)
        content_key = self._key.content_key(body.take(KEY_BYTES), self._terms)
        yield from open_chunks(body.rest(), content_key)
        signers = valid_votes(votes, released(self._terms, sealed.name), self._roster, set(self._roster))
        if len(signers) < self._rules.votes:
            raise KeyMismatchError(
                "The sealed model is not signed by enough sites of the study",
                expected=f"signatures of at least {self._rules.votes} of {self._rules.sites} sites",
                got=f"{len(signers)}",
                action="Distrust the server: it may have put a model of its own in the place of the sites' "
                "(theirs: `quorate-client model export RUN`)",
            )
        self.signers = tuple(sorted(signers))


class _Pieces:
    """A stream of pieces of which the first bytes are taken by their number."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._held = b""

    def take(self, count: int) -> bytes:
        while len(self._held) < count:
            piece = next(self._pieces, None)
            if piece is None:
                _refuse()
            self._held += piece
        taken, self._held = self._held[:count], self._held[count:]
        return taken

    def rest(self) -> Iterator[bytes]:
        yield self._held
        yield from self._pieces


class _Named:
    """A blob that passes by; at its end its name is known."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = pieces
        self._size, self._digests = 0, bytearray()

    def __iter__(self) -> Iterator[bytes]:
        for frame in cut(self._pieces):
            self._size += len(frame.data)
            self._digests += frame.sha256
            yield frame.data

    @property
    def name(self) -> BlobId:
        return name_of(self._size, bytes(self._digests))


def _read_votes(packed: _Pieces) -> list[Vote]:
    if packed.take(len(_MAGIC)) != _MAGIC:
        _refuse()
    votes = []
    for _ in range(int.from_bytes(packed.take(2), "big")):
        name = packed.take(packed.take(1)[0])
        # A name that is not ASCII is nobody's.
        votes.append(Vote(SiteName(name.decode("ascii", "replace")), packed.take(SIGNATURE_BYTES)))
    return votes


def _content_key(private_key: X25519PrivateKey, to: bytes, ephemeral: bytes, terms: ReleaseTerms) -> bytes:
    """Raises ValueError for what is no key, or of small order."""
    shared = private_key.exchange(X25519PublicKey.from_public_bytes(to))
    return _derived(shared, bound(b"release key", terms.encoded(), ephemeral))


def _derived(secret: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(secret)


def _refuse() -> NoReturn:
    raise FrameError(
        "This is not a sealed model",
        expected="signatures and what they are under, whole",
        action="Fetch it again; if this comes again, ask the server's administrator",
    )
