"""The certificates in which all trust in evidence ends: public facts, kept as files here, pinned by their digests.

From the vendors: AMD's key distribution service (``ark`` and ``ask`` of each product), Intel's SGX Root CA, Google's
Confidential Space Root CA, Amazon's Nitro Enclaves Root G1. Whoever can change these files can change this program.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

_FILES = {
    "intel_sgx": ("44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3",),
    "google_confidential_space": ("148b293821bb0c6a317f413c8ba475814091cb22d49b9e3c94198db8e8f86c39",),
    "aws_nitro": ("641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b",),
    "amd_milan": (
        "67d303bd3905fd38db8b20e0793699870e7fa612eaad5dec358293fd8c0bac1b",
        "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd",
    ),
    "amd_genoa": (
        "5464738c1546aed5f2cecf1dc98c5c960a92e8913238a61711bc90ec6e828521",
        "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1",
    ),
    "amd_turin": (
        "5b77ef5fe7a7a004fd9032668fba9d0fda22f88c4442069a479636a6ae3b3185",
        "1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a",
    ),
}
"""SHA-256 of the DER form of the certificates of each file, in its order (AMD: ASK, ARK)."""


@dataclass(frozen=True, slots=True)
class AmdAuthority:
    """Who signs the VCEKs of one product: the ASK, signed by the ARK."""

    ask: x509.Certificate
    ark: x509.Certificate


@dataclass(frozen=True, slots=True)
class Roots:
    """In whom to believe."""

    intel: x509.Certificate
    google: x509.Certificate
    amazon: x509.Certificate
    amd: Mapping[str, AmdAuthority]

    @property
    def certificates(self) -> tuple[x509.Certificate, ...]:
        return (self.intel, self.google, self.amazon, *(c for one in self.amd.values() for c in (one.ask, one.ark)))


@lru_cache(maxsize=1)
def pinned() -> Roots:
    """The vendors' roots. A file that is not what was pinned ends the program: it was not read from evidence."""
    return Roots(
        intel=_read("intel_sgx")[0],
        google=_read("google_confidential_space")[0],
        amazon=_read("aws_nitro")[0],
        amd=MappingProxyType(
            {product: AmdAuthority(*_read(f"amd_{product.lower()}")) for product in ("Milan", "Genoa", "Turin")}
        ),
    )


def _read(name: str) -> list[x509.Certificate]:
    certificates = x509.load_pem_x509_certificates((Path(__file__).parent / f"{name}.pem").read_bytes())
    digests = tuple(hashlib.sha256(one.public_bytes(Encoding.DER)).hexdigest() for one in certificates)
    if digests != _FILES[name]:
        raise RuntimeError(f"The certificates in {name}.pem are not the pinned ones: this installation was changed")
    return certificates
