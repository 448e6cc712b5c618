"""Evidence that a program makes of itself, for development. It proves nothing about any machine."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

import quorate
import quorate_server
from quorate.attestation.evidence import Evidence
from quorate.attestation.kinds.software import software_evidence
from quorate.errors import ConfigError


class SoftwareAttester:
    """Signs with a key that a site's policy has to name."""

    def __init__(self, key_file: Path) -> None:
        """Raises ConfigError: the file holds no Ed25519 key."""
        try:
            key = load_pem_private_key(key_file.read_bytes(), password=None)
        except (OSError, ValueError, TypeError) as error:
            raise _no_key(key_file) from error
        if not isinstance(key, Ed25519PrivateKey):
            raise _no_key(key_file)
        self._key = key
        self._code = _digest_of_code()

    def attest(self, binding: bytes) -> Evidence:
        return software_evidence(self._key, binding, self._code, datetime.now(UTC))


def _digest_of_code() -> bytes:
    """SHA-256 over this program's own files: what hardware would have measured, said by the program itself."""
    digest = hashlib.sha256()
    for package in (quorate, quorate_server):
        (root,) = map(Path, package.__path__)
        for path in sorted(root.rglob("*.py")):
            content = path.read_bytes()
            digest.update(str(path.relative_to(root.parent)).encode() + b"\x00" + len(content).to_bytes(8, "big"))
            digest.update(content)
    return digest.digest()


def _no_key(path: Path) -> ConfigError:
    return ConfigError(
        f"{path} holds no key for evidence made by software",
        expected="an Ed25519 private key in PEM, readable for this user",
        action="Make one with `quorate-aggregator make-key FILE`",
    )
