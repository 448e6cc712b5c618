"""Tokens of Google's Confidential Space, asked of the launcher of the container. NOT RUN ON HARDWARE.

Source: Google Cloud, *Confidential Space: connect external resources*, custom tokens of the type PKI.
"""

from __future__ import annotations

import json
import socket
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from quorate.attestation.binding import as_eat_nonce
from quorate.attestation.evidence import MAX_RAW_BYTES, Evidence, Kind
from quorate.errors import AttestationError, ConfigError

LAUNCHER = Path("/run/container_launcher/teeserver.sock")
_ANSWER_S = 15.0  # the server waits for evidence for 20


class ConfidentialSpaceAttester:
    """The virtual machine around this container, as Google's verifier sees it.

    Args:
        audience: For whom tokens are; the site's policy names it, too.
    """

    kind = Kind.CONFIDENTIAL_SPACE

    def __init__(self, audience: str, launcher: Path = LAUNCHER) -> None:
        """Raises ConfigError: this is no container of Confidential Space."""
        if not launcher.is_socket():
            raise ConfigError(
                "This is no container of Confidential Space",
                expected=f"the launcher's socket at {launcher}",
                action="Start the image on a Confidential Space machine (deploy/confidential-space)",
            )
        self._audience = audience
        self._launcher = launcher

    def attest(self, binding: bytes) -> Evidence:
        # One nonce: the claim is then a text, and no list.
        asked = {"audience": self._audience, "token_type": "PKI", "nonces": [as_eat_nonce(binding)]}
        try:
            status, said = self._post("/v1/token", json.dumps(asked).encode())
        except (OSError, HTTPException) as error:
            raise AttestationError("The launcher of the container does not answer", got=str(error)[:200]) from error
        if status != 200:
            raise AttestationError(
                "The launcher of the container gives no token",
                got=f"{status}: {said[:200].decode('utf-8', 'replace')}",
            )
        return Evidence(self.kind, said.strip())

    def _post(self, path: str, body: bytes) -> tuple[int, bytes]:
        connection = _LauncherConnection(self._launcher)
        try:
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read(MAX_RAW_BYTES + 1)
        finally:
            connection.close()


class _LauncherConnection(HTTPConnection):
    """HTTP over a socket of this machine."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_ANSWER_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_ANSWER_S)
        self.sock.connect(str(self._path))
