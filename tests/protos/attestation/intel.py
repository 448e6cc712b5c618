"""An Intel of our own: quotes of trust domains with their collateral, for what genuine samples do not show.

Layouts: Intel, *TDX DCAP Quoting Library API*, appendix A (quote formats 4 and 5); *PCK certificate and CRL
specification*, section 1.3.5 (the SGX extension); Provisioning Certification Service API, version 4.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ObjectIdentifier

from quorate.attestation.evidence import Evidence, Kind
from quorate.attestation.roots import Roots, pinned

from .authorities import BINDING, NOW, Authority, root

_SGX = "1.2.840.113741.1.13.1"
_FMSPC = bytes.fromhex("b0c06f000000")
_CPU_SVN = bytes((3,) * 16)
_QE_VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
_QE_SIGNER = b"\x51" * 32
SEPT_VE_DISABLE = 1 << 28


def _p256() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _signature(key: Any, signed: bytes) -> bytes:
    return b"".join(number.to_bytes(32) for number in decode_dss_signature(key.sign(signed, ec.ECDSA(SHA256()))))


class Intel:
    """A root, the authority of platforms, and who signs what is known of versions."""

    def __init__(self) -> None:
        self.root = root("SGX Root", _p256())
        self.platforms = self.root.issue("Intel SGX PCK Platform CA", _p256(), is_authority=True)
        self.tcb_signing = self.root.issue("TCB Signing", _p256())

    @property
    def roots(self) -> Roots:
        return replace(pinned(), intel=self.root.certificate)

    def evidence(
        self,
        *,
        signer: ec.EllipticCurvePrivateKey | None = None,
        issuer: Authority | None = None,
        revoked: bool = False,
        flags: Sequence[bool] = (True, True, True),
        service_td: bytes | None = None,
        tcb_signer: Authority | None = None,
        collateral: dict[str, Any] | None = None,
        fmspc: bytes = _FMSPC,
        behind: bytes = b"",
        until: datetime = NOW + timedelta(days=10),
        status: str = "UpToDate",
        qe_status: str = "UpToDate",
        number: int = 17,
        **body: bytes | int,
    ) -> Evidence:
        """A quote with its collateral, good but for what is changed.

        Args:
            flags: Dynamic platform, cached keys, SMT.
            service_td: With it, the quote is one of format 5 and version 1.5.
            until: When the collateral ends.
        """
        platform = (issuer or self.platforms).issue(
            "PCK", _p256(), extensions=[x509.UnrecognizedExtension(ObjectIdentifier(_SGX), _sgx_extension(flags))]
        )
        quote = self._quote(platform, _td_report(service_td, **body), 4 if service_td is None else 5, signer)
        said = _tcb_info(fmspc, status), _qe_identity(qe_status)
        beside = self._collateral(platform, tcb_signer or self.tcb_signing, revoked, until, said, number)
        return Evidence(Kind.TDX, quote + behind, json.dumps(beside | (collateral or {})).encode())

    def _quote(
        self, platform: Authority, report: bytes, version: int, signer: ec.EllipticCurvePrivateKey | None
    ) -> bytes:
        key = _p256()
        signed = struct.pack("<HHIHH16s20s", version, 2, 0x81, 0, 0, _QE_VENDOR, bytes(20))
        signed += report if version == 4 else struct.pack("<HI", 3, len(report)) + report
        public = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]
        auth = bytes(range(32))
        qe_report = _qe_report(hashlib.sha256(public + auth).digest())
        chain = "".join(_pem(one) for one in (platform, self.platforms, self.root)).encode()
        certified = qe_report + _signature(platform.key, qe_report) + struct.pack("<H", len(auth)) + auth
        certified += struct.pack("<HI", 5, len(chain)) + chain
        rest = _signature(signer or key, signed) + public + struct.pack("<HI", 6, len(certified)) + certified
        return signed + struct.pack("<I", len(rest)) + rest

    def _collateral(
        self,
        platform: Authority,
        tcb_signer: Authority,
        revoked: bool,
        until: datetime,
        said: tuple[dict[str, Any], dict[str, Any]],
        number: int,
    ) -> dict[str, str]:
        dates = {
            "issueDate": f"{NOW - timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}",
            "nextUpdate": f"{until:%Y-%m-%dT%H:%M:%SZ}",
            "tcbEvaluationDataNumber": number,
        }
        tcb_info = json.dumps(said[0] | dates)
        qe_identity = json.dumps(said[1] | dates)
        serials = [platform.certificate.serial_number] if revoked else []
        issuer = _pem(tcb_signer) + _pem(self.root)
        return {
            "pck_crl_issuer_chain": _pem(self.platforms) + _pem(self.root),
            "root_ca_crl": _crl(self.root, [], until).hex(),
            "pck_crl": _crl(self.platforms, serials, until).hex(),
            "tcb_info_issuer_chain": issuer,
            "tcb_info": tcb_info,
            "tcb_info_signature": _signature(tcb_signer.key, tcb_info.encode()).hex(),
            "qe_identity_issuer_chain": issuer,
            "qe_identity": qe_identity,
            "qe_identity_signature": _signature(tcb_signer.key, qe_identity.encode()).hex(),
        }


def _td_report(service_td: bytes | None, **changed: bytes | int) -> bytes:
    fields: dict[str, Any] = {
        "tee_tcb_svn": bytes((5, 0, 2)) + bytes(13),
        "mrseam": bytes(48),
        "mrsignerseam": bytes(48),
        "seam_attributes": bytes(8),
        "attributes": SEPT_VE_DISABLE,
        "xfam": bytes(8),
        "mrtd": b"\x01" * 48,
        "mrconfigid": bytes(48),
        "mrowner": bytes(48),
        "mrownerconfig": bytes(48),
        "rtmr0": b"\x02" * 48,
        "rtmr1": b"\x03" * 48,
        "rtmr2": b"\x04" * 48,
        "rtmr3": bytes(48),
        "report_data": BINDING,
    } | changed
    fields["attributes"] = fields["attributes"].to_bytes(8, "little")
    newer = b"" if service_td is None else fields["tee_tcb_svn"] + service_td
    return b"".join(fields.values()) + newer


def _qe_report(report_data: bytes) -> bytes:
    attributes = bytes.fromhex("1100000000000000e700000000000000")
    parts = (
        _CPU_SVN,
        bytes(4 + 28),
        attributes,
        bytes(32 + 32),
        _QE_SIGNER,
        bytes(96),
        struct.pack("<HH", 2, 4),
        bytes(60),
    )
    return b"".join(parts) + report_data + bytes(32)


def _tcb_info(fmspc: bytes, status: str) -> dict[str, Any]:
    module = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
    components = {
        "sgxtcbcomponents": [{"svn": svn} for svn in (2,) * 16],
        "tdxtcbcomponents": [{"svn": svn} for svn in (5, 0, 2, *(0,) * 13)],
        "pcesvn": 11,
    }
    return {
        "id": "TDX",
        "version": 3,
        "fmspc": fmspc.hex().upper(),
        "pceId": "0000",
        "tcbType": 0,
        "tdxModule": module,
        "tdxModuleIdentities": [],
        "tcbLevels": [{"tcb": components, "tcbDate": "2026-01-01T00:00:00Z", "tcbStatus": status}],
    }


def _qe_identity(status: str) -> dict[str, Any]:
    return {
        "id": "TD_QE",
        "version": 2,
        "miscselect": "00" * 4,
        "miscselectMask": "FF" * 4,
        "attributes": "11" + "00" * 15,
        "attributesMask": "FBFFFFFFFFFFFFFF" + "00" * 8,
        "mrsigner": _QE_SIGNER.hex().upper(),
        "isvprodid": 2,
        "tcbLevels": [{"tcb": {"isvsvn": 4}, "tcbDate": "2026-01-01T00:00:00Z", "tcbStatus": status}],
    }


def _crl(authority: Authority, serials: Sequence[int], until: datetime) -> bytes:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(NOW - timedelta(days=1))
        .next_update(until)
        .add_extension(x509.CRLNumber(1), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.certificate.public_key()),  # type: ignore[arg-type]  # EC
            critical=False,
        )
    )
    for serial in serials:
        revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW - timedelta(days=1))
        builder = builder.add_revoked_certificate(revoked.build())
    return builder.sign(authority.key, SHA256()).public_bytes(Encoding.DER)


def _pem(authority: Authority) -> str:
    return authority.certificate.public_bytes(Encoding.PEM).decode()


def _sgx_extension(flags: Sequence[bool]) -> bytes:
    svns = [_entry(f"2.{part}", _integer(svn)) for part, svn in enumerate(_CPU_SVN, start=1)]
    dynamic, cached, smt = (_der(0x01, b"\xff" if flag else b"\x00") for flag in flags)
    return _der(
        0x30,
        _entry("1", _der(0x04, bytes(16)))
        + _entry("2", _der(0x30, b"".join([*svns, _entry("2.17", _integer(11)), _entry("2.18", _der(0x04, _CPU_SVN))])))
        + _entry("3", _der(0x04, bytes(2)))
        + _entry("4", _der(0x04, _FMSPC))
        + _entry("5", _der(0x0A, b"\x01"))
        + _entry("6", _der(0x04, bytes(16)))
        + _entry("7", _der(0x30, _entry("7.1", dynamic) + _entry("7.2", cached) + _entry("7.3", smt))),
    )


def _entry(part: str, value: bytes) -> bytes:
    encoded = bytes.fromhex("2a864886f84d010d01") + bytes(int(number) for number in part.split("."))
    return _der(0x30, _der(0x06, encoded) + value)


def _integer(value: int) -> bytes:
    return _der(0x02, value.to_bytes(1))


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    if size < 0x100:
        return bytes((tag, 0x81, size)) + content
    return bytes((tag, 0x82)) + size.to_bytes(2) + content
