"""What an attested aggregator costs: verifying evidence, sealing updates, and a round with it beside one without.

Genuine evidence is not part of the repository: it is looked for below ``attestation-samples/`` of the folder
QUORATE_SHARED, and a kind without it is left out, loudly.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bench.demo_rounds import Way, medians_s
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
from quorate.process.chunked_aead import seal_chunks
from quorate.process.sealed_file import SealedFile
from quorate.study.study import Study

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
    """How often each piece is verified; bytes that are sealed; sites and bytes of an update that are added in the
    machine; rounds of the demo, and how many of them are not looked at."""

    times: int
    sealed: int
    sites: int
    update: int
    rounds: int
    warm_up: int


FULL = Size(times=300, sealed=100 * 2**20, sites=8, update=100 * 2**20, rounds=60, warm_up=10)
SMALL = Size(times=3, sealed=2**20, sites=2, update=2**20, rounds=2, warm_up=1)

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
    return [*found, *_sealing(size.sealed), *_memory(size), *_rounds(size)]


def _sealing(size: int) -> list[Row]:
    """An update as a site seals it, and as the machine reads it, on one core; CPU time."""
    piece, key = os.urandom(2**20), os.urandom(32)
    began = time.process_time()
    sealed = b"".join(seal_chunks(itertools.repeat(piece, size // 2**20), key))
    seal_s = time.process_time() - began
    file = SealedFile(lambda start, length: sealed[start : start + length], size, key)
    began = time.process_time()
    while file.read(2**20):
        pass
    open_s = time.process_time() - began
    megabytes = size / 1e6
    return [
        Row("seal an update", "MB/s", megabytes / seal_s, 300.0, more_is_better=True),
        Row("open it again", "MB/s", megabytes / open_s, 300.0, more_is_better=True),
    ]


def _memory(size: Size) -> list[Row]:
    """What the machine needs beside its code to add updates that it opens, in updates."""
    found = []
    for name, robust in (("their sum", None), ("their median", {"rule": "median"})):
        command = [sys.executable, "-c", _MEMORY, str(size.sites), str(size.update), json.dumps(robust)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        what = f"memory for {name}, {size.sites} sites of {size.update / 2**20:.0f} MiB, in updates"
        found.append(Row(what, "x", float(done.stdout), 1.5))
    return found


_MEMORY = """
import json, sys, tempfile
from functools import partial
from pathlib import Path
from bench.attestation import peak, peak_anew, study_of
from quorate.process.chunked_aead import seal_chunks
from quorate.process.sealed_file import SealedFile
from quorate_server.rounds.robust import RobustAdder

sites, size, robust = int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
with tempfile.TemporaryDirectory() as folder:
    path, key = Path(folder) / "update", bytes(32)
    with path.open("wb") as file:
        file.writelines(seal_chunks((bytes(2**20) for _ in range(size // 2**20)), key))
    adder = RobustAdder(size // 4, study_of(sites, robust))

    def opened():
        file = path.open("rb")
        return SealedFile(lambda start, length: (file.seek(start), file.read(length))[1], size, key)

    before = peak_anew()
    for _ in range(sites):
        adder.fold(opened)
    for block in adder.blocks():
        pass
    print((peak() - before) / size)
"""


def peak_anew() -> int:
    """Bytes that this process has in memory; what it had before does not count any more (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    """Most bytes that this process had in memory since ``peak_anew``."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def study_of(sites: int, robust: dict[str, str] | None) -> Study:
    """A study in which an attested machine opens the updates of so many sites."""
    names = [f"site-{number:02}" for number in range(max(sites, 3))]
    content = {
        "consortium": "bench",
        "name": "bench",
        "purpose": "To be measured",
        "task": {"name": "tabular-classifier", "digest": "ab" * 32},
        "rounds": {"count": 1, "quorum": len(names), "weights": "equal"},
        "protection": {"mode": "enclave"},
        "attestation": {"required": True, "policy": POLICY.model_dump(mode="json")},
        "robust": robust,
        "sites": [{"name": name, "signing_key": f"{place:064x}"} for place, name in enumerate(names, 1)],
    }
    return Study.model_validate(content)


def _rounds(size: Size) -> list[Row]:
    """A round of the demo's study with four real sites: under secure aggregation, the same with an attested machine,
    and in an attested machine alone."""
    ways = {
        "secagg": Way("secagg"),
        "both": Way("secagg", is_attested=True),
        "enclave": Way("enclave", is_attested=True),
    }
    seconds = medians_s(ways, size.rounds, size.warm_up)
    secagg = seconds["secagg"]
    return [
        Row("a secure round of the demo, attested, beside one that is not", "s", seconds["both"], 1.1 * secagg, secagg),
        Row("a round of the demo in an attested machine alone", "s", seconds["enclave"], None, secagg),
    ]


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
