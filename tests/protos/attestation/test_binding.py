"""What evidence is bound to: a golden value, and every part counts."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

import pytest

from quorate.attestation.binding import Expected, as_eat_nonce, binding
from quorate.errors import InputError

PARTS: dict[str, Any] = {
    "nonce": bytes(range(32)),
    "public_key": bytes(range(32, 64)),
    "tls_spki": b"a key in DER",
    "study": b"{}",
    "run": "run-1",
}


def test_the_binding_is_the_hash_of_each_part_behind_its_length() -> None:
    def prefixed(part: bytes) -> bytes:
        return len(part).to_bytes(8, "big") + part

    by_hand = b"quorate/attest-binding/v1"
    by_hand += prefixed(bytes(range(32))) + prefixed(bytes(range(32, 64)))
    by_hand += prefixed(hashlib.sha256(b"a key in DER").digest())
    by_hand += prefixed(hashlib.sha256(b"{}").digest()) + prefixed(b"run-1")
    assert binding(**PARTS) == hashlib.sha512(by_hand).digest()


def test_the_binding_does_not_change_between_versions() -> None:
    assert binding(**PARTS).hex()[:32] == "b0baee0d1aa38151668f7de4e1921b89"
    assert as_eat_nonce(bytes(64)) == hashlib.sha256(bytes(64)).hexdigest()


@pytest.mark.parametrize(
    "other",
    [
        {"nonce": bytes(32)},
        {"public_key": bytes(32)},
        {"tls_spki": b"another key"},
        {"study": b"{ }"},
        {"run": "run-2"},
        {"study": b"", "run": "{}run-1"},
    ],
    ids=str,
)
def test_every_part_counts(other: dict[str, Any]) -> None:
    assert binding(**(PARTS | other)) != binding(**PARTS)


def test_a_nonce_or_a_binding_of_another_size_is_refused() -> None:
    with pytest.raises(InputError, match="32 bytes"):
        binding(**(PARTS | {"nonce": bytes(31)}))
    with pytest.raises(InputError, match="64 bytes"):
        Expected(bytes(63), datetime(2026, 12, 1, tzinfo=UTC))
