"""Evidence on the wire, and its bounds."""

from __future__ import annotations

import pytest

from quorate.attestation.evidence import MAX_ENDORSEMENTS_BYTES, MAX_RAW_BYTES, Evidence, Kind
from quorate.errors import EvidenceKindError
from quorate.v1 import attestation_pb2
from quorate.wire.attestation_messages import evidence_from_proto, evidence_to_proto


@pytest.mark.parametrize("kind", Kind)
def test_evidence_comes_back_as_it_went(kind: Kind) -> None:
    evidence = Evidence(kind, b"raw", b"endorsements")
    assert evidence_from_proto(evidence_to_proto(evidence)) == evidence


def test_the_bytes_on_the_wire_do_not_change() -> None:
    assert (
        evidence_to_proto(Evidence(Kind.TDX, b"raw", b"more")).SerializeToString().hex()
        == "0a037464781203726177" + "1a046d6f7265"
    )


@pytest.mark.parametrize(
    ("kind", "raw", "endorsements"),
    [
        ("", b"raw", b""),
        ("TDX", b"raw", b""),
        ("any", b"raw", b""),
        ("tdx", b"", b""),
        ("tdx", bytes(MAX_RAW_BYTES + 1), b""),
        ("tdx", b"raw", bytes(MAX_ENDORSEMENTS_BYTES + 1)),
    ],
    ids=["no kind", "capitals", "unknown", "empty", "large", "large endorsements"],
)
def test_what_is_no_evidence_is_refused_before_anybody_parses_it(kind: str, raw: bytes, endorsements: bytes) -> None:
    with pytest.raises(EvidenceKindError):
        evidence_from_proto(attestation_pb2.Evidence(kind=kind, raw=raw, endorsements=endorsements))
