"""A SEV-SNP attestation report and a VCEK's extensions, read into values. Nothing here is believed yet.

Sources: AMD 56860, *SEV Secure Nested Paging Firmware ABI*, tables 3 (TCB_VERSION), 9 (policy) and 23
(ATTESTATION_REPORT); AMD 57230, *VCEK certificate and KDS interface*, table 9 (extensions).
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509

from quorate.errors import EvidenceKindError, EvidenceSignatureError

REPORT_BYTES = 0x4A0
SIGNED_BYTES = 0x2A0
_COORDINATE_BYTES = 72
_VERSIONS = range(2, 6)
_ECDSA_P384_SHA384 = 1
_VCEK = 0
_AMD = "1.3.6.1.4.1.3704.1"
_PRODUCTS = {"Milan": "Milan", "Milan-B0": "Milan", "Genoa": "Genoa", "Turin": "Turin"}
_SVNS = {"bootloader": 1, "tee": 2, "snp": 3, "microcode": 8}
"""Last part of the OID of each version; Turin has its FMC beside them (9)."""
_CHIP_BYTES = 64
_TURIN_HWID_BYTES = 8


@dataclass(frozen=True, slots=True)
class Tcb:
    """Versions of a processor's parts. ``fmc`` is Turin's alone."""

    bootloader: int
    tee: int
    snp: int
    microcode: int
    fmc: int = 0

    def __str__(self) -> str:
        fmc = f"FMC {self.fmc}, " if self.fmc else ""
        return f"{fmc}boot loader {self.bootloader}, TEE {self.tee}, SNP {self.snp}, microcode {self.microcode}"


@dataclass(frozen=True, slots=True)
class Report:
    """The fields of a report that matter. ``policy``: as the guest was started; TCBs are still 8 bytes."""

    signed: bytes
    r: int
    s: int
    policy: int
    vmpl: int
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    reported_tcb: bytes
    launch_tcb: bytes
    cpuid: tuple[int, int] | None
    chip_id: bytes


@dataclass(frozen=True, slots=True)
class Endorsed:
    """What AMD says in a VCEK's extensions: for which product, chip and versions the key is."""

    product: str
    tcb: Tcb
    hwid: bytes

    @property
    def chip_id(self) -> bytes:
        """The hwid as reports have it: Turin's 8 bytes are followed by zeros."""
        return self.hwid.ljust(_CHIP_BYTES, b"\x00")


def read_report(raw: bytes) -> Report:
    """Raises EvidenceKindError: another size, version, algorithm or key, or bytes where there may be none."""
    if len(raw) != REPORT_BYTES:
        raise EvidenceKindError(
            "The SEV-SNP report has another size", expected=f"{REPORT_BYTES} bytes", got=f"{len(raw)}"
        )
    version, algorithm, key = _number(raw, 0x00, 4), _number(raw, 0x34, 4), _number(raw, 0x48, 4) >> 2 & 0b111
    if version not in _VERSIONS or algorithm != _ECDSA_P384_SHA384 or key != _VCEK:
        raise EvidenceKindError(
            "The SEV-SNP report is of another version or signed in another way",
            expected="version 2 to 5, ECDSA P-384 with SHA-384, signed by a VCEK",
            got=f"version {version}, algorithm {algorithm}, key {key}",
        )
    if any(raw[SIGNED_BYTES + 2 * _COORDINATE_BYTES :]):
        raise EvidenceKindError("Something is behind the signature of the SEV-SNP report")
    return Report(
        signed=raw[:SIGNED_BYTES],
        r=_number(raw, SIGNED_BYTES, _COORDINATE_BYTES),
        s=_number(raw, SIGNED_BYTES + _COORDINATE_BYTES, _COORDINATE_BYTES),
        policy=_number(raw, 0x08, 8),
        vmpl=_number(raw, 0x30, 4),
        report_data=raw[0x50:0x90],
        measurement=raw[0x90:0xC0],
        host_data=raw[0xC0:0xE0],
        id_key_digest=raw[0xE0:0x110],
        author_key_digest=raw[0x110:0x140],
        reported_tcb=raw[0x180:0x188],
        launch_tcb=raw[0x1F0:0x1F8],
        cpuid=(raw[0x188], raw[0x189]) if version >= 3 else None,
        chip_id=raw[0x1A0:0x1E0],
    )


def read_tcb(packed: bytes, product: str) -> Tcb:
    """Turin put its FMC in front (table 3 has both layouts). Raises EvidenceKindError: a reserved byte is set."""
    if product == "Turin":
        fmc, bootloader, tee, snp, *reserved, microcode = packed
    else:
        bootloader, tee, *reserved, snp, microcode = packed
        fmc = 0
    if any(reserved):
        raise EvidenceKindError("A reserved byte of a TCB version is set", got=packed.hex())
    return Tcb(bootloader, tee, snp, microcode, fmc)


def product_of(cpuid: tuple[int, int]) -> str | None:
    """The product of a processor's family and (extended) model (AMD 57230, section 1.5)."""
    family, model = cpuid
    if family == 0x19 and model <= 0x0F:
        return "Milan"
    if family == 0x19 and (0x10 <= model <= 0x1F or 0xA0 <= model <= 0xAF):
        return "Genoa"  # with Bergamo and Siena
    if family == 0x1A and model <= 0x1F:
        return "Turin"
    return None


def read_endorsed(vcek: x509.Certificate) -> Endorsed:
    """Raises EvidenceKindError: an extension is missing or malformed."""
    values = {
        each.oid.dotted_string: each.value.value
        for each in vcek.extensions
        if isinstance(each.value, x509.UnrecognizedExtension)
    }
    try:
        product = _PRODUCTS[_text(values[f"{_AMD}.2"])]
        svns = {name: _integer(values[f"{_AMD}.3.{part}"]) for name, part in _SVNS.items()}
        fmc = _integer(values[f"{_AMD}.3.9"]) if product == "Turin" else 0
        hwid = _octets(values[f"{_AMD}.4"], _TURIN_HWID_BYTES if product == "Turin" else _CHIP_BYTES)
    except (KeyError, ValueError) as error:
        raise EvidenceKindError("The certificate beside the SEV-SNP report is no VCEK of a known product") from error
    return Endorsed(product, Tcb(**svns, fmc=fmc), hwid)


def require_same_product(report: Report, endorsed: Endorsed) -> None:
    """Raises EvidenceSignatureError. Reports of version 2 do not tell their processor."""
    if report.cpuid is not None and product_of(report.cpuid) != endorsed.product:
        raise EvidenceSignatureError(
            "The report and the VCEK are of different products",
            expected=endorsed.product,
            got=f"family {report.cpuid[0]:#x}, model {report.cpuid[1]:#x}",
        )


def _number(raw: bytes, at: int, size: int) -> int:
    return int.from_bytes(raw[at : at + size], "little")


def _text(der: bytes) -> str:
    """A short IA5String."""
    return _content(der, 0x16).decode("ascii")


def _integer(der: bytes) -> int:
    """A byte as an INTEGER."""
    value = int.from_bytes(_content(der, 0x02), signed=True)
    if not 0 <= value <= 255:
        raise ValueError("not a byte")
    return value


def _octets(value: bytes, size: int) -> bytes:
    """KDS gives a hwid as it is; the specification puts it in an OCTET STRING."""
    content = value if len(value) == size else _content(value, 0x04)
    if len(content) != size:
        raise ValueError("not a hwid of this product")
    return content


def _content(der: bytes, tag: int) -> bytes:
    """Of a value whose length fits into one byte, with nothing behind it."""
    if len(der) < 3 or der[0] != tag or der[1] != len(der) - 2 or der[1] > 127:
        raise ValueError("another type or length")
    return der[2:]
