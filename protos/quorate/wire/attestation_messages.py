"""Evidence on the wire. Reading is strict: what is wrong is an ``AttestationError``."""

from __future__ import annotations

from quorate.attestation.evidence import Evidence, parse_kind
from quorate.v1 import attestation_pb2


def evidence_to_proto(evidence: Evidence) -> attestation_pb2.Evidence:
    return attestation_pb2.Evidence(kind=evidence.kind, raw=evidence.raw, endorsements=evidence.endorsements)


def evidence_from_proto(message: attestation_pb2.Evidence) -> Evidence:
    """Raises EvidenceKindError: of no known kind, empty, or larger than any evidence is."""
    return Evidence(parse_kind(message.kind), message.raw, message.endorsements)
