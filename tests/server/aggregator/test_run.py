"""One run's process in the attested machine, at the end of a real connection."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from quorate.attestation.appraise import appraise
from quorate.attestation.binding import Expected, binding
from quorate.identity import SiteName
from quorate.rounds.instruction import Phase, message_id
from quorate.v1 import attestation_pb2
from quorate.wire.attestation_messages import answer_from_proto
from quorate.wire.messages import instruction_from_bytes
from quorate_server.rounds.order import Order
from quorate_server.rounds.pipe import Note, Verb, receive_note
from tests.attested_machine import ATTESTER, attested_study
from tests.patience import PATIENCE_S
from tests.server.study_kit import RUN

STUDY = attested_study()
DOOR = b"a key of a door"


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("attester") / "software.pem"
    path.write_bytes(ATTESTER.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path


@contextmanager
def running(key: Path) -> Iterator[tuple[socket.socket, subprocess.Popen[bytes]]]:
    """The daemon's end of the connection, and the process at the other one."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        ours = socket.create_connection(door.getsockname())
        theirs, _ = door.accept()
    with ours, theirs:
        ours.settimeout(PATIENCE_S)
        command = [sys.executable, "-m", "quorate_server.aggregator.run", str(theirs.fileno()), "software", str(key)]
        process = subprocess.Popen(command, pass_fds=(theirs.fileno(),), stdout=subprocess.DEVNULL)
        theirs.close()
        try:
            yield ours, process
        finally:
            process.kill()
            process.wait()


def begin(sock: socket.socket) -> None:
    sock.sendall(Note(Verb.BEGIN, Order(RUN, STUDY, "", {}).to_json()).to_bytes())


def heard(sock: socket.socket, verb: Verb) -> Note:
    while (note := receive_note(sock)) is not None:
        if note.verb is verb:
            return note
    raise AssertionError("the aggregator hung up")


def test_a_run_asks_with_the_word_of_the_machine_that_evidence_is_bound_to(key: Path) -> None:
    with running(key) as (sock, process):
        begin(sock)
        asked = [heard(sock, Verb.SEND) for _ in STUDY.sites]
        nonce = b"n" * 32
        sock.sendall(Note(Verb.ATTEST, nonce + DOOR).to_bytes())
        shown = heard(sock, Verb.ATTESTED).payload
        sock.sendall(Note(Verb.ATTEST, b"short").to_bytes())
        sock.sendall(Note(Verb.ATTEST, b"m" * 32 + DOOR).to_bytes())
        assert heard(sock, Verb.ATTESTED).payload[:32] == b"m" * 32, "what is no question gets no answer"
        sock.shutdown(socket.SHUT_WR)
        assert process.wait(PATIENCE_S) == 0, "who has no daemon ends"
    assert shown[:32] == nonce
    evidence, identity = answer_from_proto(attestation_pb2.AttestReply.FromString(shown[32:]))
    now = datetime.now(UTC)
    bound = binding(nonce=nonce, public_key=identity.public_key, tls_spki=DOOR, study=STUDY.canonical(), run=RUN)
    assert STUDY.attestation is not None
    appraise(evidence, Expected(bound, now), STUDY.attestation.policy, now)
    for note in asked:
        instruction = instruction_from_bytes(note.payload)
        assert instruction.message_id == message_id(RUN, 0, Phase.KEYS, 0, SiteName(note.site))
        assert identity.has_signed(instruction.signed_part, instruction.signature)


@pytest.mark.parametrize("said", [Note(Verb.PRESENCE, b"{}").to_bytes(), b"\xff" * 100], ids=["no order", "nonsense"])
def test_who_gives_no_order_gets_no_machine(key: Path, said: bytes) -> None:
    with running(key) as (sock, process):
        sock.sendall(said)
        sock.shutdown(socket.SHUT_WR)
        process.wait(PATIENCE_S)
        assert receive_note(sock) is None


def test_a_run_to_which_something_unreadable_is_said_ends(key: Path) -> None:
    with running(key) as (sock, process):
        begin(sock)
        heard(sock, Verb.SEND)
        sock.sendall(Note(Verb.REPLY, b"\xff\xff", "east").to_bytes())
        process.wait(PATIENCE_S)
