"""Appraisals of evidence made by software, of a study of two sites."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from quorate.attestation.binding import binding
from quorate.attestation.kinds.software import software_evidence
from quorate.attestation.policy import AttestationPolicy, SoftwarePolicy
from quorate.attestation.sealing import EnclaveIdentity
from quorate.identity import RunId, SiteName
from quorate.study.study import Study
from quorate_client.appraisals.record import AppraisalRecord

NOW = datetime(2026, 12, 1, 12, tzinfo=UTC)
RUN = RunId("malignancy-0a1b2c")
SITE_KEY = Ed25519PrivateKey.from_private_bytes(b"\x01" * 32)
MACHINE_KEY = Ed25519PrivateKey.from_private_bytes(b"\x02" * 32)
DEVELOPMENT = AttestationPolicy(
    environment="development", software=SoftwarePolicy(keys=(MACHINE_KEY.public_key().public_bytes_raw().hex(),))
)
STRICT = AttestationPolicy(environment="development", software=SoftwarePolicy(keys=()))
NONCE, DOOR_KEY = b"\x03" * 32, b"a key in DER"


def attested_study(policy: AttestationPolicy = DEVELOPMENT, **changes: Any) -> Study:
    keys = {"north": SITE_KEY.public_key().public_bytes_raw().hex(), "south": "05" * 32, "west": "06" * 32}
    content: dict[str, Any] = {
        "consortium": "nordverbund",
        "name": "malignancy",
        "purpose": "Tell malignant from benign",
        "task": {"name": "tabular-classifier", "digest": "ab" * 32, "parameters": {"model": "logistic"}},
        "rounds": {"count": 3, "quorum": 3},
        "protection": {"mode": "secagg"},
        "attestation": {"required": True, "policy": policy.model_dump(mode="json", exclude_none=True)},
        "sites": [{"name": name, "signing_key": key} for name, key in keys.items()],
    }
    return Study.model_validate(content | changes)


STUDY = attested_study()


def appraisal(
    after_s: float = 0.0, *, code: str = "", machine: int = 7, own_policy: AttestationPolicy | None = None
) -> AppraisalRecord:
    """An appraisal at ``NOW`` and some seconds, of one of several machines."""
    at = NOW + timedelta(seconds=after_s)
    identity = EnclaveIdentity(bytes([machine]) * 32, b"\x08" * 32)
    bound = binding(nonce=NONCE, public_key=identity.public_key, tls_spki=DOOR_KEY, study=STUDY.canonical(), run=RUN)
    return AppraisalRecord(
        site=SiteName("north"),
        run=RUN,
        study=STUDY,
        nonce=NONCE,
        door_key=DOOR_KEY,
        identity=identity,
        evidence=software_evidence(MACHINE_KEY, bound, b"\x05" * 32, at),
        asked_at=at,
        appraised_at=at + timedelta(seconds=1),
        software_allowed=True,
        own_policy=own_policy,
        code=code,
    )
