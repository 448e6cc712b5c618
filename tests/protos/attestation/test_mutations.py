"""Evidence that was changed at random: refused with the one error, or it says what the good piece says.

QUORATE_MUTATIONS sets how many changes each kind is tried with; 20,000 take about a minute.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from quorate.attestation.appraise import examine
from quorate.attestation.evidence import Evidence, Kind
from quorate.attestation.kinds.software import software_evidence
from quorate.attestation.policy import AttestationPolicy, SoftwarePolicy
from quorate.errors import AttestationError, EvidenceKindError

from .authorities import BINDING, EXPECTED, NOW
from .samples import GENOA, NITRO, POLICY, SPACE, TDX, Sample

TIMES = int(os.environ.get("QUORATE_MUTATIONS", "1000"))
KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))


def changed(source: random.Random, content: bytes) -> bytes:
    """Bits flipped, bytes replaced, cut out and put in, once or several times."""
    result = bytearray(content)
    for _ in range(source.choice((1, 1, 1, 2, 5, 20))):
        at = source.randrange(len(result) + 1)
        match source.randrange(5):
            case 0 | 1 if at < len(result):
                result[at] ^= 1 << source.randrange(8)
            case 2 if at < len(result):
                result[at] = source.randrange(256)
            case 3:
                del result[at : at + source.choice((1, 2, 8, 10_000))]
            case _:
                result[at:at] = source.randbytes(source.choice((1, 4, 64)))
    return bytes(result)


def changes(good: Evidence) -> Iterator[Evidence]:
    source = random.Random(20_261_201)
    for _ in range(TIMES):
        raw, endorsements = good.raw, good.endorsements
        if endorsements and source.random() < 0.4:
            endorsements = changed(source, endorsements)
        else:
            raw = changed(source, raw)
        try:
            yield Evidence(good.kind, raw, endorsements)
        except EvidenceKindError:
            continue  # nothing is left of it


@pytest.mark.parametrize("one", [TDX, GENOA, NITRO, SPACE], ids=lambda one: str(one.kind))
def test_genuine_evidence_that_was_changed_says_nothing_new(one: Sample) -> None:
    good = examine(one.evidence(), one.expected, POLICY, one.at)
    assert good.claims is not None
    for evidence in changes(one.evidence()):
        found = examine(evidence, one.expected, POLICY, one.at)  # raises nothing
        assert found.claims is None or found.claims == good.claims
        assert found.refusal is None or isinstance(found.refusal, AttestationError)


def test_evidence_made_by_software_that_was_changed_is_refused() -> None:
    policy = AttestationPolicy(
        environment="development", software=SoftwarePolicy(keys=(KEY.public_key().public_bytes_raw().hex(),))
    )
    good = software_evidence(KEY, BINDING, bytes(32), NOW)
    for evidence in changes(good):
        if evidence.raw != good.raw:
            assert examine(evidence, EXPECTED, policy, NOW).claims is None


@pytest.mark.parametrize("kind", Kind)
def test_bytes_at_random_are_refused_whatever_kind_they_are_said_to_be(kind: Kind) -> None:
    source = random.Random(1)
    policy = POLICY.model_copy(update={"environment": "development", "software": SoftwarePolicy(keys=())})
    for size in (1, 16, 189, 253, 0x4A0, 5000, 64 * 1024):
        evidence = Evidence(kind, source.randbytes(size), source.randbytes(size))
        found = examine(evidence, EXPECTED, policy, NOW)
        assert found.claims is None
        assert found.refusal is not None
