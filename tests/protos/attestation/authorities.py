"""Vendors of our own: certificates and evidence for what genuine samples do not show."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID, ObjectIdentifier

from quorate.attestation.binding import Expected, as_eat_nonce
from quorate.attestation.evidence import Evidence, Kind
from quorate.attestation.roots import AmdAuthority, Roots, pinned

NOW = datetime(2026, 12, 1, 12, 0, tzinfo=UTC)
BINDING = bytes(range(64))
EXPECTED = Expected(BINDING, NOW)
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True)
class Authority:
    """A key with its certificate, which may sign others."""

    key: Key
    certificate: x509.Certificate

    def issue(
        self,
        name: str,
        key: Key,
        *,
        is_authority: bool = False,
        may_sign: bool | None = None,
        extensions: Sequence[x509.ExtensionType] = (),
        until: datetime = NOW + timedelta(days=30),
    ) -> Authority:
        """Sign a certificate. ``may_sign``: what its key usage says; as ``is_authority`` if it is not given."""
        usage = is_authority if may_sign is None else may_sign
        return Authority(key, _certificate(name, key, self, (is_authority, usage), extensions, until))


def _certificate(
    name: str,
    key: Key,
    issuer: Authority | None,
    authority: tuple[bool, bool],
    extensions: Sequence[x509.ExtensionType] = (),
    until: datetime = NOW + timedelta(days=30),
) -> x509.Certificate:
    is_authority, may_sign = authority
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer is not None else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=30))
        .not_valid_after(until)
        .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
    )
    others = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    usage = dict.fromkeys((*others, "encipher_only", "decipher_only"), False)
    usage |= {"digital_signature": not may_sign, "key_cert_sign": may_sign, "crl_sign": may_sign}
    builder = builder.add_extension(x509.KeyUsage(**usage), critical=True)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    signer = issuer.key if issuer is not None else key
    is_p384 = isinstance(signer, ec.EllipticCurvePrivateKey) and isinstance(signer.curve, ec.SECP384R1)
    return builder.sign(signer, SHA384() if is_p384 else SHA256())


def p384() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


@cache
def rsa_key(number: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def root(name: str, key: Key) -> Authority:
    return Authority(key, _certificate(name, key, None, (True, True)))


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def fixed_signature(key: ec.EllipticCurvePrivateKey, signed: bytes, size: int, order: str) -> bytes:
    """r and s, each of this size."""
    r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(SHA384())))
    return b"".join(number.to_bytes(size, order) for number in (r, s))  # type: ignore[arg-type]  # big or little


# --- AMD --------------------------------------------------------------------------------------------------------------

CHIP = bytes(range(100, 164))


class Amd:
    """An AMD of our own with one product."""

    def __init__(self, product: str = "Genoa") -> None:
        self.product = product
        self.ark = root("ARK", p384())
        self.ask = self.ark.issue("ASK", p384(), is_authority=True)

    @property
    def roots(self) -> Roots:
        return replace(pinned(), amd={self.product: AmdAuthority(self.ask.certificate, self.ark.certificate)})

    def evidence(self, **changed: Any) -> Evidence:
        """A report with its VCEK, good but for what is changed."""
        spec = _Snp(product=self.product, **changed)
        vcek = (spec.issuer or self.ask).issue("VCEK", spec.key, extensions=spec.extensions(), until=spec.until)
        report = spec.report()
        signature = fixed_signature(spec.signer or spec.key, report, 72, "little")
        return Evidence(Kind.SEV_SNP, report + signature + spec.tail, der(vcek.certificate))


@dataclass(frozen=True)
class _Snp:
    product: str
    key: Any = field(default_factory=p384)
    signer: ec.EllipticCurvePrivateKey | None = None
    issuer: Authority | None = None
    until: datetime = NOW + timedelta(days=30)
    version: int = 5
    algorithm: int = 1
    policy: int = 0x30000
    vmpl: int = 0
    flags: int = 0
    measurement: bytes = b"\x11" * 48
    host_data: bytes = bytes(32)
    chip: bytes = CHIP
    hwid: bytes = CHIP
    tcb: bytes = bytes((10, 0, 0, 0, 0, 0, 25, 84))
    launch_tcb: bytes = bytes((10, 0, 0, 0, 0, 0, 25, 84))
    endorsed: tuple[int, int, int, int, int] = (10, 0, 25, 84, 0)
    """Boot loader, TEE, SNP, microcode, FMC."""
    cpuid: tuple[int, int] = (0x19, 0x11)
    named: bytes | None = None
    without: str = ""
    tail: bytes = bytes(0x4A0 - 0x330)

    def report(self) -> bytes:
        body = bytearray(0x2A0)
        body[0x00:0x04] = self.version.to_bytes(4, "little")
        body[0x08:0x10] = self.policy.to_bytes(8, "little")
        body[0x30:0x34] = self.vmpl.to_bytes(4, "little")
        body[0x34:0x38] = self.algorithm.to_bytes(4, "little")
        body[0x48:0x4C] = self.flags.to_bytes(4, "little")
        body[0x50:0x90] = BINDING
        body[0x90:0xC0] = self.measurement
        body[0xC0:0xE0] = self.host_data
        body[0x180:0x188] = self.tcb
        body[0x188:0x18A] = bytes(self.cpuid)
        body[0x1A0:0x1E0] = self.chip
        body[0x1F0:0x1F8] = self.launch_tcb
        return bytes(body)

    def extensions(self) -> list[x509.ExtensionType]:
        bootloader, tee, snp, microcode, fmc = self.endorsed
        name = self.named if self.named is not None else self.product.encode()
        values = {"2": b"\x16" + bytes((len(name),)) + name, "4": self.hwid}
        for part, number in (("1", bootloader), ("2", tee), ("3", snp), ("8", microcode), ("9", fmc)):
            content = number.to_bytes(2) if number > 127 else number.to_bytes(1)
            values[f"3.{part}"] = b"\x02" + bytes((len(content),)) + content
        return [
            x509.UnrecognizedExtension(ObjectIdentifier(f"1.3.6.1.4.1.3704.1.{part}"), value)
            for part, value in values.items()
            if part != self.without
        ]


# --- Amazon -----------------------------------------------------------------------------------------------------------


class Amazon:
    """An Amazon of our own."""

    def __init__(self) -> None:
        self.root = root("Nitro", p384())
        self.zone = self.root.issue("zone", p384(), is_authority=True)

    @property
    def roots(self) -> Roots:
        return replace(pinned(), amazon=self.root.certificate)

    def evidence(
        self,
        *,
        issuer: Authority | None = None,
        signer: ec.EllipticCurvePrivateKey | None = None,
        leaf_key: Any = None,
        until: datetime = NOW + timedelta(hours=3),
        header: bytes = b"\xa1\x01\x38\x22",
        unprotected: dict[Any, Any] | None = None,
        behind: bytes = b"",
        **fields: Any,
    ) -> Evidence:
        """A document, good but for what is changed; a field that is ``...`` is left out."""
        key = leaf_key or p384()
        leaf = (issuer or self.zone).issue("enclave", key, until=until)
        document = {
            "module_id": "i-1-enc1",
            "digest": "SHA384",
            "timestamp": int(NOW.timestamp() * 1000),
            "pcrs": {number: bytes((number + 1,)) * 48 if number < 3 else bytes(48) for number in range(16)},
            "certificate": der(leaf.certificate),
            "cabundle": [der(self.root.certificate), der(self.zone.certificate)],
            "public_key": None,
            "user_data": BINDING,
            "nonce": None,
        } | fields
        payload = cbor2.dumps({name: value for name, value in document.items() if value is not ...})
        signed = cbor2.dumps(["Signature1", header, b"", payload])
        signature = fixed_signature(signer or key, signed, 48, "big")
        return Evidence(Kind.NITRO, cbor2.dumps([header, unprotected or {}, payload, signature]) + behind)


# --- Google -----------------------------------------------------------------------------------------------------------


class Google:
    """A Google of our own."""

    def __init__(self) -> None:
        self.root = root("Space Root", rsa_key(0))
        self.between = self.root.issue("Space CA", rsa_key(1), is_authority=True)

    @property
    def roots(self) -> Roots:
        return replace(pinned(), google=self.root.certificate)

    def evidence(
        self,
        *,
        issuer: Authority | None = None,
        until: datetime = NOW + timedelta(days=30),
        signer: rsa.RSAPrivateKey | None = None,
        header: dict[str, Any] | None = None,
        container: dict[str, Any] | None = None,
        **said: Any,
    ) -> Evidence:
        """A token, good but for what is changed."""
        leaf = (issuer or self.between).issue("Space Leaf", rsa_key(2), until=until)
        chain = (leaf.certificate, self.between.certificate, self.root.certificate)
        head = {"alg": "RS256", "typ": "JWT", "x5c": [base64.b64encode(der(each)).decode() for each in chain]}
        claims = {
            "iss": "https://confidentialcomputing.googleapis.com",
            "aud": "quorate",
            "iat": int(NOW.timestamp()),
            "nbf": int(NOW.timestamp()),
            "exp": int(NOW.timestamp()) + 3600,
            "eat_nonce": as_eat_nonce(BINDING),
            "secboot": True,
            "hwmodel": "GCP_INTEL_TDX",
            "swname": "CONFIDENTIAL_SPACE",
            "swversion": ["250800"],
            "dbgstat": "disabled-since-boot",
            "tdx": {"gcp_attester_tcb_status": "UpToDate", "gcp_attester_tcb_date": "2024-03-13T00:00:00Z"},
            "google_service_accounts": ["aggregator@consortium.example"],
            "submods": {
                "confidential_space": {"support_attributes": ["LATEST", "STABLE", "USABLE"]},
                "container": {"image_digest": f"sha256:{'ab' * 32}"} | (container or {}),
                "gce": {"project_id": "consortium"},
            },
        } | said
        first = ".".join(_base64url(json.dumps(part).encode()) for part in (head | (header or {}), claims))
        signature = (signer or rsa_key(2)).sign(first.encode(), padding.PKCS1v15(), SHA256())
        return Evidence(Kind.CONFIDENTIAL_SPACE, f"{first}.{_base64url(signature)}".encode())


def _base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
