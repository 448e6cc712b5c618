"""The consortium's certificate authority: who may connect.

It vouches for names on TLS certificates and for nothing else: which sites belong to a study, and with which signing
keys, is part of the study that each site approves. Whoever holds this authority can pretend to be the server or a
site towards the transport, but cannot sign what a site says.

Certificates start three days before they are issued, because clocks in hospitals are off by days and a certificate
that is not valid yet looks like a dead server.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from quorate.errors import AlreadyExistsError, CertificateExpiredError, ConfigError, InputError, KeyMismatchError
from quorate.identity import Role, SiteName, Subject
from quorate.process.private_files import write_new
from quorate.process.storage_errors import os_refusal

SERVER_NAME = "quorate-server"
"""The name that every client expects in the server's certificate, whatever address it dialled."""

AUTHORITY_DAYS = 3650
AUTHORITY_WARN_DAYS = 90
"""Before its end: sites have to be invited into the next consortium by then."""
OPERATOR_DAYS = 365
SERVER_DAYS = 30
DAY_S = 86_400
FOUND_ANEW = "found the consortium anew and invite all sites, for the authority cannot be extended"
_BACKDATED = timedelta(days=3)
# An invitation that is over must still get through the handshake, so that its bearer can be told.
_BOOTSTRAP_GRACE_S = 30 * DAY_S
_CURVES = (ec.SECP256R1, ec.SECP384R1)


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that was just made."""

    subject: Subject
    serial: int
    pem: bytes
    expires_unix_s: int


@dataclass(frozen=True, slots=True)
class Credential:
    """A certificate with the key that was made for it here."""

    issued: Issued
    key_pem: bytes


class Authority:
    """Issues certificates. Keeps no record of them: that is the registry's part.

    Each ``issue_…`` but the server's raises CertificateExpiredError once the authority's own time is over: nobody would
    accept what it made. A server shows something all the same, for it may be the clock that is wrong.
    """

    def __init__(self, consortium: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.consortium = consortium
        self.certificate = certificate
        self._key = key

    @classmethod
    def create(cls, folder: Path, consortium: str, now: float) -> Self:
        """Make a new authority in ``folder``.

        Raises:
            AlreadyExistsError: there is one. Replacing it would lock every site out.
        """
        if (folder / "ca.key").exists() or (folder / "ca.pem").exists():
            raise AlreadyExistsError(
                f"There is a certificate authority in {folder}",
                action="Choose another folder; replacing it would lock out everybody who has joined",
            )
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _self_signed(consortium, key, datetime.fromtimestamp(now, UTC))
        write_new(folder / "ca.key", _key_pem(key))
        (folder / "ca.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
        return cls(consortium, certificate, key)

    @classmethod
    def load(cls, folder: Path, consortium: str) -> Self:
        """Open the authority of ``consortium``.

        Raises:
            ConfigError: it is not there, not whole, another consortium's, or others may read its key. StorageError: it
                is not this user's to read.
        """
        try:
            certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
            key = load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
        except PermissionError as error:
            raise os_refusal(error) from error
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"Cannot read the certificate authority in {folder}",
                expected="ca.pem and ca.key",
                action="Restore the folder from its backup, or create a server with `quorate-server init`",
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise ConfigError(
                f"ca.key and ca.pem in {folder} do not belong together",
                action="Restore both from the same backup",
            )
        names = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        if [name.value for name in names] != [consortium]:
            raise ConfigError(
                f"The certificate authority in {folder} is another consortium's",
                expected=consortium,
                got=", ".join(str(name.value) for name in names),
                action="Correct `consortium` in server.toml, or restore the right folder",
            )
        if (folder / "ca.key").stat().st_mode & 0o077:
            raise ConfigError(
                f"Others on this machine may read {folder / 'ca.key'}",
                expected="mode 0600",
                action=f"Run `chmod 600 {folder / 'ca.key'}` and consider who could have copied it",
            )
        return cls(consortium, certificate, key)

    @property
    def ca_pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def starts_unix_s(self) -> int:
        return int(self.certificate.not_valid_before_utc.timestamp())

    @property
    def expires_unix_s(self) -> int:
        return int(self.certificate.not_valid_after_utc.timestamp())

    def issue_server(self, host: str, now: float) -> Credential:
        """The server's own certificate, for its fixed name, this machine, and the host of its public address."""
        hosts = [SERVER_NAME, "localhost", "127.0.0.1", *([host] if host not in ("localhost", "127.0.0.1") else [])]
        names = [_host_name(name) for name in hosts]
        return self._issue_with_key(Role.SERVER, SERVER_NAME, now, SERVER_DAYS * DAY_S, names)

    def issue_operator(self, name: str, now: float) -> Credential:
        return self._issue_with_key(Role.OPERATOR, name, now, OPERATOR_DAYS * DAY_S)

    def issue_bootstrap(self, site: SiteName, now: float, valid_s: int) -> Credential:
        """The certificate in an invitation. The registry refuses it after ``valid_s``, the handshake later."""
        return self._issue_with_key(Role.BOOTSTRAP, site, now, valid_s + _BOOTSTRAP_GRACE_S)

    def issue_site(self, site: SiteName, csr_pem: bytes, now: float, days: int) -> Issued:
        """A site's certificate for the key in its request. What else the request asks for counts for nothing.

        Raises:
            InputError: not a request, or a key of another kind. KeyMismatchError: the request was not made by the
                holder of its key.
        """
        return self._issue(Subject(self.consortium, Role.SITE, site), requested_key(csr_pem), now, days * DAY_S)

    def _issue_with_key(
        self, role: Role, name: str, now: float, valid_s: int, names: list[x509.GeneralName] | None = None
    ) -> Credential:
        key = ec.generate_private_key(ec.SECP256R1())
        issued = self._issue(Subject(self.consortium, role, name), key.public_key(), now, valid_s, names)
        return Credential(issued, _key_pem(key))

    def _issue(
        self,
        subject: Subject,
        public_key: ec.EllipticCurvePublicKey,
        now: float,
        valid_s: int,
        names: list[x509.GeneralName] | None = None,
    ) -> Issued:
        start = datetime.fromtimestamp(now, UTC)
        last = self.certificate.not_valid_after_utc
        if start >= last and subject.role is not Role.SERVER:
            raise CertificateExpiredError(
                f"The certificate authority of {self.consortium} ended on {last:%Y-%m-%d}, by this machine's clock",
                action=f"Check the clock; if it is right: {FOUND_ANEW}",
            )
        end = min(start + timedelta(seconds=valid_s), last)
        usage = ExtendedKeyUsageOID.SERVER_AUTH if subject.role is Role.SERVER else ExtendedKeyUsageOID.CLIENT_AUTH
        serial = secrets.randbits(128) | 1 << 127
        # The common name holds a space, so that it is no host name: a site called like a server stays a site.
        common_name = x509.NameAttribute(NameOID.COMMON_NAME, f"{subject.role} {subject.name}"[:64])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, self.consortium), common_name]))
            .issuer_name(self.certificate.subject)
            .public_key(public_key)
            .serial_number(serial)
            .not_valid_before(min(start, end) - _BACKDATED)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(subject.uri()), *(names or [])]),
                critical=False,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        return Issued(subject, serial, certificate.public_bytes(Encoding.PEM), int(end.timestamp()))


def requested_key(csr_pem: bytes) -> ec.EllipticCurvePublicKey:
    """The public key of a certificate request whose signature proves that the sender holds it.

    Raises:
        InputError: not a request, or a key of another kind. KeyMismatchError: the signature is wrong.
    """
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        key = request.public_key()
        signed = request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError("The certificate request cannot be read", expected="PKCS #10 in PEM") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, _CURVES):
        raise InputError(
            "The certificate request is for a key of the wrong kind",
            expected="an elliptic curve key on P-256 or P-384",
            action="Have the site join again with the key that quorate-client makes",
        )
    if not signed:
        raise KeyMismatchError("The certificate request was not signed with the key that it asks to certify")
    return key


def public_key_bytes(key: ec.EllipticCurvePublicKey) -> bytes:
    """The key's SubjectPublicKeyInfo, DER."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _self_signed(consortium: str, key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, consortium),
            x509.NameAttribute(NameOID.COMMON_NAME, "Quorate certificate authority"),
        ]
    )
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(secrets.randbits(128) | 1 << 127)
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
