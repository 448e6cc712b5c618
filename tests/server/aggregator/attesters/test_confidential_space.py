"""Tokens asked of a launcher that the tests stand in for. What the one at Google does was not seen."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from quorate.attestation.appraise import examine
from quorate.attestation.binding import Expected, as_eat_nonce
from quorate.attestation.evidence import Kind
from quorate.attestation.policy import AttestationPolicy, ConfidentialSpacePolicy, ConfidentialSpaceVersion
from quorate.errors import AttestationError, ConfigError, EvidenceKindError
from quorate_server.aggregator.attesters.confidential_space import ConfidentialSpaceAttester
from tests.protos.attestation.authorities import BINDING, EXPECTED, NOW, Google
from tests.protos.attestation.samples import POLICY, SPACE, refused

SPACE_POLICY = AttestationPolicy(
    confidential_space=ConfidentialSpacePolicy(
        allow=(ConfidentialSpaceVersion(name="one", image_digest=f"sha256:{'ab' * 32}"),)
    )
)
Answer = Callable[[dict[str, Any]], tuple[int, bytes]]


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


@contextmanager
def launcher(folder: Path, answer: Answer) -> Iterator[Path]:
    """The launcher's socket: it refuses what the real one refuses; ``answer`` says the rest."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            known = set(asked) <= {"audience", "nonces", "token_type"} and self.path == "/v1/token"
            status, said = answer(asked) if known else (400, b"failed to parse POST body")
            self.send_response(status)
            self.end_headers()
            self.wfile.write(said)

        def address_string(self) -> str:
            return "unix"

        def log_message(self, format: str, *args: object) -> None:
            pass

    path = folder / "teeserver.sock"
    with _Server(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield path
        finally:
            server.shutdown()
            thread.join()


def test_a_container_makes_evidence_that_a_site_accepts(tmp_path: Path) -> None:
    google = Google()
    asked: list[dict[str, Any]] = []

    def answer(question: dict[str, Any]) -> tuple[int, bytes]:
        asked.append(question)
        (nonce,) = question["nonces"]
        return 200, google.evidence(eat_nonce=nonce, aud=question["audience"]).raw + b"\n"

    with launcher(tmp_path, answer) as path:
        evidence = ConfidentialSpaceAttester("quorate", path).attest(BINDING)
    assert asked == [{"audience": "quorate", "token_type": "PKI", "nonces": [as_eat_nonce(BINDING)]}]
    assert evidence.kind is Kind.CONFIDENTIAL_SPACE
    assert examine(evidence, EXPECTED, SPACE_POLICY, NOW, google.roots).refusal is None


def test_a_genuine_token_of_before_parses_and_is_refused_for_its_binding(tmp_path: Path) -> None:
    token = SPACE.evidence().raw
    with launcher(tmp_path, lambda question: (200, token)) as path:
        evidence = ConfidentialSpaceAttester("quorate", path).attest(BINDING)
    assert refused(examine(evidence, Expected(BINDING, SPACE.at), POLICY, SPACE.at)) == ["attestation_binding"]


def test_a_launcher_that_refuses_is_an_answer_that_is_withheld(tmp_path: Path) -> None:
    with launcher(tmp_path, lambda question: (500, b"quota exceeded")) as path:
        attester = ConfidentialSpaceAttester("quorate", path)
        with pytest.raises(AttestationError, match="500: quota exceeded"):
            attester.attest(BINDING)


@pytest.mark.parametrize("said", [b"", b"x" * 70_000], ids=["nothing", "too much"])
def test_an_answer_of_no_tokens_size_is_refused(said: bytes, tmp_path: Path) -> None:
    with launcher(tmp_path, lambda question: (200, said)) as path:
        attester = ConfidentialSpaceAttester("quorate", path)
        with pytest.raises(EvidenceKindError):
            attester.attest(BINDING)


def test_a_launcher_that_is_gone_is_an_answer_that_is_withheld(tmp_path: Path) -> None:
    with launcher(tmp_path, lambda question: (200, b"")) as path:
        attester = ConfidentialSpaceAttester("quorate", path)
    with pytest.raises(AttestationError, match="does not answer"):
        attester.attest(BINDING)


def test_what_is_no_container_of_confidential_space_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no container of Confidential Space"):
        ConfidentialSpaceAttester("quorate", tmp_path / "teeserver.sock")
