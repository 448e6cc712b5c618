"""For the first machine that has the hardware: makes evidence and appraises it as a site would.

    python -m deploy.attestation.hardware_smoke [FOLDER [ENDORSEMENTS]]        `make hardware-smoke` does it

Asks whichever attester works here for evidence with a random binding, and appraises it by a policy that names what it
measured and allows all versions of firmware. Prints all of it, and keeps the evidence in FOLDER. What it shows is that
evidence is made and verified; which software and which firmware may run is for a real policy to say.

NOT RUN ON HARDWARE until somebody has.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from quorate.attestation.appraisal import PROTECTS, Appraisal
from quorate.attestation.appraise import examine
from quorate.attestation.binding import BINDING_BYTES, Expected
from quorate.attestation.evidence_file import write_evidence_file
from quorate.attestation.policy import (
    Allowed,
    AttestationPolicy,
    ConfidentialSpaceVersion,
    SnpVersion,
    TdxVersion,
)
from quorate.attestation.roots import Roots
from quorate.errors import ConfigError, QuorateError
from quorate_server.aggregator.attesters import Attester
from quorate_server.aggregator.attesters.choice import attester_of

_VERSIONS: dict[str, type[Allowed]] = {
    "tdx": TdxVersion,
    "sev_snp": SnpVersion,
    "confidential_space": ConfidentialSpaceVersion,
}
_AUDIENCE = "quorate"
_ALL_STATUSES = ["UpToDate", "SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded"]
_ALL_VERSIONS = dict.fromkeys(("bootloader", "tee", "snp", "microcode"), 0)
_ANY_FIRMWARE: dict[str, dict[str, Any]] = {
    "tdx": {"tcb_statuses": _ALL_STATUSES, "least_evaluation_data_number": 1},
    "sev_snp": {"least_tcb": dict.fromkeys(("Milan", "Genoa", "Turin"), _ALL_VERSIONS)},
    "confidential_space": {"audience": _AUDIENCE},
}


def main(folder: Path, endorsements: str) -> None:
    """Exits with 1 where there is no hardware, and where something does not hold."""
    attester = attester_here(endorsements)
    if attester is None:
        sys.exit("hardware-smoke: NOTHING WAS TESTED. This machine has no hardware that makes evidence; see above.")
    try:
        found = smoke(attester, folder, lambda: datetime.now(UTC))
    except QuorateError as error:
        sys.exit(f"hardware-smoke: the machine made no evidence. {error}")
    if found.refusal is not None:
        sys.exit(f"hardware-smoke: FAILED. {found.refusal}")
    print(f"hardware-smoke: evidence was made and holds. It {PROTECTS}.")


def attester_here(endorsements: str) -> Attester | None:
    """The first attester that works on this machine; says why the others do not."""
    for name, detail in (("tsm", endorsements), ("confidential-space", _AUDIENCE)):
        try:
            return attester_of(name, detail)
        except ConfigError as error:
            print(f"{name}: {error}\n")
    return None


def smoke(attester: Attester, folder: Path, now: Callable[[], datetime], roots: Roots | None = None) -> Appraisal:
    """Make evidence, keep it, appraise it by what it measured, print all.

    Raises:
        AttestationError: the machine makes none.
    """
    expected = Expected(os.urandom(BINDING_BYTES), now())
    evidence = attester.attest(expected.binding)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "evidence.json"
    file.write_bytes(write_evidence_file(evidence, expected))
    print(f"evidence   {evidence.kind}: {len(evidence.raw)} bytes, {len(evidence.endorsements)} beside it, in {file}")
    section = evidence.kind.section
    looked = examine(evidence, expected, naming(section, None), now(), roots)
    measured = looked.claims.measured if looked.claims is not None else None
    found = examine(evidence, expected, naming(section, measured), now(), roots)
    for line in _told(found):
        print(line)
    return found


def naming(section: str, measured: Mapping[str, str] | None) -> AttestationPolicy:
    """A policy that allows any firmware, and of software what was measured; none without."""
    registers = _VERSIONS[section].model_fields.keys() - Allowed.model_fields.keys()
    software = [] if measured is None else [{"name": "this machine"} | {name: measured[name] for name in registers}]
    return AttestationPolicy.model_validate({section: {**_ANY_FIRMWARE[section], "allow": software}})


def _told(found: Appraisal) -> Iterator[str]:
    if found.claims is not None:
        yield f"machine    {found.claims.hardware}"
        yield f"versions   {found.claims.tcb}"
        yield from (f"{name:<10} {value}" for name, value in found.claims.measured.items())
    yield from (f"{'holds' if check.holds else 'FAILS':<10} {check.name}" for check in found.checks)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/hardware-smoke"), sys.argv[2] if len(sys.argv) > 2 else "")
