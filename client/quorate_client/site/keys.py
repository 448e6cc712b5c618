"""The site's identity on disk: three key pairs made here, the certificate issued for one of them, and the pinned CA.

The keys never leave ``keys/``; task workers do not get them. ``identity.json`` is written last when a site joins, so
its presence means that everything else is there.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.x509.oid import NameOID

from quorate.errors import IdentityError, KeyMismatchError, ServerIdentityError, WrongStateError
from quorate.identity import Member, Role, SiteName, Subject, sealing_proof
from quorate.process.private_files import write_private
from quorate.study.approval import signed_answer

_FORMAT = "quorate.identity/1"
_GET_BACK = (
    "Restore keys/ from a backup, or ask the operator for `quorate site reinvite NAME` and run "
    "`quorate-client join --keep-keys FILE`"
)
_TLS, _SIGNING, _SEALING = "tls.pem", "signing.pem", "sealing.pem"
_CERTIFICATE, _CA, _IDENTITY = "certificate.pem", "ca.pem", "identity.json"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this site is, in which consortium, and where the server was when it joined (``host:port``)."""

    consortium: str
    site: SiteName
    address: str


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a TLS connection of this site needs, as PEM."""

    ca_pem: bytes
    certificate_pem: bytes
    key_pem: bytes


@dataclass(frozen=True, slots=True)
class SiteKeys:
    """The site's key pairs. ``member`` and ``request`` are all that leaves the site of them."""

    tls: ec.EllipticCurvePrivateKey
    signing: Ed25519PrivateKey
    sealing: X25519PrivateKey

    def member(self, site: SiteName) -> Member:
        """The public keys as the roster lists them."""
        sealing = self.sealing.public_key().public_bytes_raw()
        return Member(site, self.signing.public_key().public_bytes_raw(), sealing, sealing_proof(self.signing, sealing))

    def for_secure_sums(self) -> tuple[Ed25519PrivateKey, X25519PrivateKey]:
        """The signing and the sealing key."""
        return self.signing, self.sealing

    def request(self, site: SiteName) -> bytes:
        """A certificate signing request for the TLS key, PEM. The server decides what the certificate says."""
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, site)])
        csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(self.tls, hashes.SHA256())
        return csr.public_bytes(serialization.Encoding.PEM)

    def sign_answer(self, answer: str, digest: bytes) -> bytes:
        """The site's signature under its answer (``approved`` or ``rejected``) to the study with this digest."""
        return self.signing.sign(signed_answer(answer, digest))


def make_or_load_keys(folder: Path) -> SiteKeys:
    """The keys in ``folder``; those that are missing are made, those that are there stay."""
    for name, make in (
        (_TLS, lambda: ec.generate_private_key(ec.SECP256R1())),
        (_SIGNING, Ed25519PrivateKey.generate),
        (_SEALING, X25519PrivateKey.generate),
    ):
        if not (folder / name).exists():
            pem = make().private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            write_private(folder / name, pem)
    return load_keys(folder)


def load_keys(folder: Path) -> SiteKeys:
    """Read the site's keys.

    Raises:
        WrongStateError: they are not there. IdentityError: one is damaged or others may read it.
    """
    tls, signing, sealing = (_load_key(folder / name) for name in (_TLS, _SIGNING, _SEALING))
    if (
        isinstance(tls, ec.EllipticCurvePrivateKey)
        and isinstance(signing, Ed25519PrivateKey)
        and isinstance(sealing, X25519PrivateKey)
    ):
        return SiteKeys(tls, signing, sealing)
    raise IdentityError(f"A key in {folder} is of the wrong kind", action="Restore keys/ from a backup")


def owner_of(folder: Path) -> int:
    """The id of the user whose site this is: the one that its private key belongs to.

    The owner of a folder would be whoever put another in its place, with links to these keys in it; nobody else can
    make this file theirs. Where there are no keys yet, it is who asks.
    """
    try:
        return (folder / _SIGNING).stat().st_uid
    except FileNotFoundError:
        return os.geteuid()


def save_certificate(folder: Path, certificate_pem: bytes) -> None:
    write_private(folder / _CERTIFICATE, certificate_pem)


def save_identity(folder: Path, identity: Identity, ca_pem: bytes, certificate_pem: bytes) -> None:
    """The last step of joining; ``identity.json`` comes last and makes it count."""
    write_private(folder / _CA, ca_pem)
    save_certificate(folder, certificate_pem)
    write_private(folder / _IDENTITY, json.dumps({"format": _FORMAT} | asdict(identity), indent=2).encode() + b"\n")


def has_identity(folder: Path) -> bool:
    return (folder / _IDENTITY).exists()


def load_identity(folder: Path) -> Identity:
    """Who this site is.

    Raises:
        WrongStateError: it has not joined a consortium. IdentityError: the file is damaged.
    """
    path = folder / _IDENTITY
    if not path.exists():
        raise WrongStateError(
            f"This site has not joined a consortium: {path} is not there",
            action="Run `quorate-client join FILE` with the operator's invitation, or name the folder with --state",
        )
    try:
        content = json.loads(path.read_bytes())
        if content.pop("format") != _FORMAT:
            raise ValueError
        return Identity(**content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IdentityError(
            f"The identity in {path} cannot be read", expected=_FORMAT, action="Restore it from a backup, or join again"
        ) from error


def load_credentials(folder: Path) -> Credentials:
    """Certificate, its key and the pinned CA. Read at each connection, so that a renewed certificate is taken up.

    Raises:
        WrongStateError: the site has not joined, or a file is gone. IdentityError: others may read the key, or one is
            damaged.
    """
    load_identity(folder)
    keys = load_keys(folder)
    (ca_pem, _), (certificate_pem, certified) = (_load_certificate(folder / name) for name in (_CA, _CERTIFICATE))
    if certified != keys.tls.public_key():
        raise IdentityError(f"{folder / _CERTIFICATE} is not for the key in {folder / _TLS}", action=_GET_BACK)
    return Credentials(ca_pem, certificate_pem, (folder / _TLS).read_bytes())


def own_certificate_files(folder: Path) -> tuple[Path, Path]:
    """Certificate and key as files, for what reads nothing else."""
    return folder / _CERTIFICATE, folder / _TLS


def check_certificate(certificate_pem: bytes, ca_pem: bytes, keys: SiteKeys, expected: Subject) -> None:
    """What a site demands of a certificate before it puts it in place.

    Raises:
        ServerIdentityError: the pinned CA did not issue it. KeyMismatchError: it is for another key.
        IdentityError: it names somebody else.
    """
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(ca_pem))
    except (ValueError, TypeError, InvalidSignature) as error:
        raise ServerIdentityError(
            "The certificate that the server sent was not issued by the consortium's pinned authority",
            action="Do not use it; ask the operator over another channel what answers at this address",
        ) from error
    if certificate.public_key() != keys.tls.public_key():
        raise KeyMismatchError("The certificate that the server sent is for a key that is not this site's")
    subject = Subject.of(certificate)
    if subject != expected:
        raise IdentityError(
            "The certificate that the server sent is not this site's", expected=expected.uri(), got=subject.uri()
        )


def site_subject(identity: Identity) -> Subject:
    return Subject(identity.consortium, Role.SITE, identity.site)


def certificate_life(certificate_pem: bytes) -> tuple[datetime, datetime]:
    """From when to when a certificate is valid (UTC)."""
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    return certificate.not_valid_before_utc, certificate.not_valid_after_utc


def _load_certificate(path: Path) -> tuple[bytes, object]:
    """Its bytes, and the key that it is for. Of a damaged one the transport says that the server is down."""
    try:
        content = path.read_bytes()
        return content, x509.load_pem_x509_certificate(content).public_key()
    except FileNotFoundError as error:
        raise WrongStateError(f"The certificate {path} is not there", action=_GET_BACK) from error
    except ValueError as error:
        raise IdentityError(f"The certificate {path} is damaged", action=_GET_BACK) from error


def _load_key(path: Path) -> object:
    try:
        mode = path.stat().st_mode
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise WrongStateError(
            f"The key {path} is not there", action="Join the consortium, or restore keys/ from a backup"
        ) from error
    if mode & 0o077:
        raise IdentityError(
            f"Others on this machine may read the key {path}",
            expected="mode 0600",
            got=f"mode {mode & 0o777:04o}",
            action=f"Run `chmod 600 {path}`; if others did read it, have the site revoked and join with new keys",
        )
    try:
        return serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError) as error:
        raise IdentityError(f"The key {path} is damaged", action="Restore keys/ from a backup") from error
