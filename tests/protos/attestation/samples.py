"""Genuine evidence, which is not part of the repository, and what was asked when it was made."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from quorate.attestation.appraisal import Appraisal
from quorate.attestation.appraise import examine
from quorate.attestation.binding import Expected
from quorate.attestation.evidence import Evidence, Kind
from quorate.attestation.policy import (
    AttestationPolicy,
    ConfidentialSpacePolicy,
    ConfidentialSpaceVersion,
    LeastTcb,
    NitroPolicy,
    NitroVersion,
    SnpPolicy,
    SnpVersion,
    TdxPolicy,
    TdxVersion,
)

TODAY = datetime(2026, 12, 1, tzinfo=UTC)
_SHARED = Path(os.environ.get("QUORATE_SHARED", Path(__file__).parents[4] / "shared"))
_OLD = LeastTcb(bootloader=0, tee=0, snp=0, microcode=0)


@dataclass(frozen=True)
class Sample:
    """A piece of genuine evidence, the time at which it was good, and the binding in it (hex, or a token's nonce)."""

    kind: Kind
    raw: str
    endorsements: str
    at: datetime
    binding: str = "00" * 64

    def evidence(self) -> Evidence:
        raw = sample(self.raw)
        if self.raw.endswith(".hex"):
            raw = bytes.fromhex(raw.decode())
        return Evidence(self.kind, raw, sample(self.endorsements) if self.endorsements else b"")

    @property
    def expected(self) -> Expected:
        return Expected(bytes.fromhex(self.binding), self.at)


def sample(name: str) -> bytes:
    """A file below ``attestation-samples/`` of the folder QUORATE_SHARED; the test is skipped, and says so, without."""
    path = _SHARED / "attestation-samples" / name
    if not path.is_file():
        pytest.skip(f"GENUINE EVIDENCE ABSENT: {path} is not there; set QUORATE_SHARED to the folder with it")
    return path.read_bytes()


def _at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


TDX = Sample(
    Kind.TDX,
    "dcap-qvl/tdx_quote",
    "dcap-qvl/tdx_quote_collateral.json",
    _at("2025-06-20"),
    "9a9d48e7f6799642d3d1b34e1e5e1742d4bb02dd6ddd551862c1211d35c304f9"
    "eca3efdbb481601c163cf52493d6e44aed55d51ec39b7e518fadb92c2b523f20",
)
TDX_OUTDATED = Sample(
    Kind.TDX, "dcap-qvl/tdx_quote_outdated", "dcap-qvl/tdx_quote_outdated_collateral.json", _at("2026-02-20")
)
SGX = Sample(Kind.TDX, "dcap-qvl/sgx_quote", "dcap-qvl/sgx_quote_collateral.json", _at("2025-06-20"))
GENOA = Sample(
    Kind.SEV_SNP,
    "oak/genoa_report.bin",
    "oak/genoa_vcek.der",
    _at("2025-10-01"),
    "8100555af0ad8e7525be6dffeed0af83e30bbacbf03b76e175e6894d1ed057ce" + "00" * 32,
)
TURIN = Sample(
    Kind.SEV_SNP,
    "oak/turin_report.bin",
    "oak/turin_vcek.der",
    _at("2025-10-01"),
    "e0fd0bdb6aa4030a6ddea9073e1fcec5be6c782a2c8075a0825dfb3d9a81b924" + "00" * 32,
)
MILAN = Sample(
    Kind.SEV_SNP,
    "virtee-sev/report_milan.hex",
    "virtee-sev/vcek_milan.der",
    _at("2024-01-01"),
    "d447b55d197491bfe15cf298f9de9986b7a7c4be2468b4f6e2d53b71d7c64581"
    "0b0f2cdfca0040433be063fc1a8293f0f3f8dae7b79fecb3d1cd82bd6a93ebfd",
)
SNP_DEBUG = Sample(
    Kind.SEV_SNP,
    "go-sev-guest/attestation.bin",
    "go-sev-guest/vcek.testcer",
    _at("2024-01-01"),
    "0102030405" + "00" * 59,
)
NITRO = Sample(Kind.NITRO, "evervault-nitro/valid-attestation-doc-bytes", "", _at("2022-10-13T08:58:32"))
NITRO_DEBUG = Sample(Kind.NITRO, "evervault-nitro/debug-mode-attestation-doc-bytes", "", _at("2022-10-12T14:00:00"))
SPACE = Sample(Kind.CONFIDENTIAL_SPACE, "oak/ctf_sha2_sample.jwt", "", _at("2025-09-05T08:18:00"))
SPACE_DEBUG = Sample(Kind.CONFIDENTIAL_SPACE, "oak/oak_session_echo_debug.jwt", "", _at("2025-06-23T14:25:00"))

POLICY = AttestationPolicy(
    tdx=TdxPolicy(
        allow=(
            TdxVersion(
                name="sample",
                mrtd="91eb2b44d141d4ece09f0c75c2c53d247a3c68edd7fafe8a3520c942a604a407de03ae6dc5f87f27428b2538873118b7",
                rtmr0="44c0197b39157fdd7a4dcc44767f9d6b0bb3977c7a8e347b8492f827fe9d9e5c48aca29b220b80b6a540cf994b9bc9c0",
                rtmr1="0084452c01668329d4bc06acdf58a7205c26743304509973949e5619bf81a6a7aea8c323c173019b3093d54e579e9378",
                rtmr2="d833feef2cd945148aa38ead2c53e9b7f138190aaaebfc551dccd829fc207aa3ba80b70870d7330733642e01d48c3132",
            ),
        ),
        least_evaluation_data_number=17,
    ),
    sev_snp=SnpPolicy(
        allow=tuple(
            SnpVersion(name=name, measurement=measurement, until=None if name == "Genoa" else TODAY.date())
            for name, measurement in (
                (
                    "Genoa",
                    "c57729018b0a6fb90dc17bb138b0aa35e4401004283ff4a2c24d3739ff3750f52384370e77b7032862a08c440a9bc4dc",
                ),
                (
                    "Turin",
                    "f924dd18f168df60fbea937f0b086284d51b1b376de872bac43694f61134d57967c318018de7335503023dbb50dee624",
                ),
                (
                    "Milan",
                    "7a1e5c266c0108dbc9bb94fa926951320940915d0aafb42464bd88b579ea158d3e1a0dc39b2c60bd95b9c480cd81841f",
                ),
            )
        ),
        least_tcb={"Genoa": _OLD, "Turin": _OLD},
    ),
    nitro=NitroPolicy(
        allow=(
            NitroVersion(
                name="sample",
                pcr0="f4d48b81a460c9916d1e685119074bf24660afd3e34fae9fca0a0d28d9d5599936332687e6f66fc890ac8cf150142d8b",
                pcr1="bcdf05fefccaa8e55bf2c8d6dee9e79bbff31e34bf28a99aa19e6b29c37ee80b214a414b7607236edf26fcb78654e63f",
                pcr2="d8f114da658de5481f8d9ec73907feb553560787522f705c92d7d96beed8e15e2aa611984e098c576832c292e8dc469a",
            ),
        )
    ),
    confidential_space=ConfidentialSpacePolicy(
        allow=(
            ConfidentialSpaceVersion(
                name="sample",
                image_digest="sha256:e2e5e3672f416ac9ca71aa639abf86db0b713729a48c125a925af6c808b20b5d",
            ),
        ),
        audience="z08381475938604996746",
    ),
)
"""Allows what the good samples measure, and no Milan."""
WITH_MILAN = POLICY.model_copy(
    update={"sev_snp": POLICY.sev_snp.model_copy(update={"least_tcb": {"Genoa": _OLD, "Turin": _OLD, "Milan": _OLD}})}
    if POLICY.sev_snp is not None
    else {}
)


def found_in(one: Sample, policy: AttestationPolicy = POLICY, now: datetime | None = None) -> Appraisal:
    return examine(one.evidence(), one.expected, policy, now or one.at)


def refused(found: Appraisal) -> list[str]:
    """The codes of all checks that do not hold."""
    return [check.refusal.code for check in found.checks if not check.holds]
