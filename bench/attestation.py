"""How long a site takes to verify evidence of an attested machine, kind by kind.

Genuine evidence is not part of the repository: it is looked for below ``attestation-samples/`` of the folder
QUORATE_SHARED, and a kind without it is left out, loudly.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bench.table import Row
from quorate.attestation.appraise import examine
from quorate.attestation.binding import Expected
from quorate.attestation.evidence import Evidence, Kind
from quorate.attestation.kinds.software import software_evidence
from quorate.attestation.policy import (
    AttestationPolicy,
    ConfidentialSpacePolicy,
    LeastTcb,
    NitroPolicy,
    SnpPolicy,
    SoftwarePolicy,
    TdxPolicy,
)

SAMPLES = Path(os.environ.get("QUORATE_SHARED", Path(__file__).parents[2] / "shared")) / "attestation-samples"
GOAL_MS = 20.0
BINDING = bytes(64)
KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
LEAST = LeastTcb(bootloader=0, tee=0, snp=0, microcode=0)
POLICY = AttestationPolicy(
    environment="development",
    tdx=TdxPolicy(allow=(), least_evaluation_data_number=1),
    sev_snp=SnpPolicy(allow=(), least_tcb={"Genoa": LEAST, "Turin": LEAST}),
    confidential_space=ConfidentialSpacePolicy(allow=()),
    nitro=NitroPolicy(allow=()),
    software=SoftwarePolicy(keys=(KEY.public_key().public_bytes_raw().hex(),)),
)
"""All signatures and rules are gone through; what then refuses (no software is named) costs nothing."""


@dataclass(frozen=True)
class Size:
    """How often each piece is verified."""

    times: int


FULL = Size(times=300)
SMALL = Size(times=3)

_GENUINE = (
    ("TDX", Kind.TDX, "dcap-qvl/tdx_quote", "dcap-qvl/tdx_quote_collateral.json", datetime(2025, 6, 20, tzinfo=UTC)),
    ("SEV-SNP, Genoa", Kind.SEV_SNP, "oak/genoa_report.bin", "oak/genoa_vcek.der", datetime(2025, 10, 1, tzinfo=UTC)),
    ("SEV-SNP, Turin", Kind.SEV_SNP, "oak/turin_report.bin", "oak/turin_vcek.der", datetime(2025, 10, 1, tzinfo=UTC)),
    (
        "Confidential Space",
        Kind.CONFIDENTIAL_SPACE,
        "oak/ctf_sha2_sample.jwt",
        "",
        datetime(2025, 9, 5, 8, 20, tzinfo=UTC),
    ),
    (
        "Nitro",
        Kind.NITRO,
        "evervault-nitro/valid-attestation-doc-bytes",
        "",
        datetime(2022, 10, 13, 8, 58, 32, tzinfo=UTC),
    ),
)


def rows(size: Size) -> list[Row]:
    found = []
    for name, kind, raw, endorsements, at in _GENUINE:
        paths = [SAMPLES / each for each in (raw, endorsements) if each]
        absent = [str(path) for path in paths if not path.is_file()]
        if absent:
            print(f"GENUINE EVIDENCE ABSENT, so {name} is left out: {', '.join(absent)}", file=sys.stderr)
            continue
        contents = [path.read_bytes() for path in paths]
        found.append(_verified(name, Evidence(kind, contents[0], b"".join(contents[1:])), at, size.times))
    now = datetime(2026, 12, 1, tzinfo=UTC)
    found.append(_verified("made by software", software_evidence(KEY, BINDING, bytes(32), now), now, size.times))
    return found


def _verified(name: str, evidence: Evidence, at: datetime, times: int) -> Row:
    took_ms = []
    for _ in range(times + 1):
        began = time.perf_counter()
        appraisal = examine(evidence, Expected(BINDING, at), POLICY, at)
        took_ms.append(1000 * (time.perf_counter() - began))
        if appraisal.claims is None:
            raise RuntimeError(f"the evidence of {name} does not verify: {appraisal.refusal}")
    # The first loads the kind's libraries.
    return Row(f"verify evidence of {name}, median of {times}", "ms", statistics.median(took_ms[1:]), GOAL_MS)
