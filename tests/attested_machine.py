"""An attested machine for tests, whose evidence is made by software, and a study that demands it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from quorate.attestation.binding import binding
from quorate.attestation.kinds.software import software_evidence
from quorate.attestation.sealing import EnclaveKeys
from quorate.study.study import Site, Study
from quorate.v1 import attestation_pb2
from quorate.wire.attestation_messages import answer_to_proto
from tests.server.study_kit import NAMES, RUN, a_study

NOW = datetime(2026, 12, 1, 8, 0, tzinfo=UTC)
ATTESTER = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
"""Whose word its evidence is."""
DOOR = b"the key that the server's door shows"
SIGNING = {name: Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number, name in enumerate(NAMES, 1)}
"""The sites' keys."""


def public(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes_raw().hex()


def demanding(*keys: Ed25519PrivateKey) -> dict[str, Any]:
    """The section ``[attestation]`` of a study that counts evidence of these attesters."""
    named = [public(key) for key in keys or (ATTESTER,)]
    return {"required": True, "policy": {"environment": "development", "software": {"keys": named}}}


def attested_study(**changes: Any) -> Study:
    """A study of the sites of ``SIGNING`` whose sums an attested machine adds."""
    content: dict[str, Any] = {
        "protection": {"mode": "secagg"},
        "attestation": demanding(),
        "release": {"model": "sites"},
    }
    keyed = tuple(Site(name=name, signing_key=public(key)) for name, key in SIGNING.items())
    return a_study(**(content | changes)).model_copy(update={"sites": keyed})


@dataclass
class Machine:
    """One life of an attested machine, for one run; ``asked`` counts the questions."""

    study: Study = field(default_factory=attested_study)
    run: str = RUN
    attester: Ed25519PrivateKey = ATTESTER
    door: bytes = DOOR
    now: datetime = NOW
    keys: EnclaveKeys = field(default_factory=EnclaveKeys)
    asked: int = 0

    def answer(self, nonce: bytes) -> attestation_pb2.AttestReply:
        self.asked += 1
        bound = binding(
            nonce=nonce,
            public_key=self.keys.identity.public_key,
            tls_spki=self.door,
            study=self.study.canonical(),
            run=self.run,
        )
        return answer_to_proto(software_evidence(self.attester, bound, bytes(32), self.now), self.keys.identity)
