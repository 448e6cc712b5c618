"""Who holds a real certificate, or none, and does not keep to the rules: refused by code, and no sum is touched."""

from __future__ import annotations

import hashlib
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from quorate.aggregation.plain import WEIGHT_ONE, PlainScheme
from quorate.aggregation.weights import record_weight
from quorate.errors import QuorateError, ServerUnreachableError
from quorate.identity import Role, SiteName
from quorate.rounds.blobs import Blob, Frame, blob_id, cut
from quorate.rounds.instruction import Instruction, MessageId, Phase, Reply, message_id
from quorate.tally import BINS, ClassificationTally
from quorate.v1 import rounds_pb2, rounds_pb2_grpc
from quorate.wire.messages import (
    blob_to_proto,
    frame_to_proto,
    instruction_from_proto,
    reply_to_proto,
)
from quorate.wire.refusal import error_from_call, error_of
from quorate.wire.sum_messages import SumAnswer, sum_answer_to_bytes
from quorate_server.consortium.ca import Authority
from quorate_server.services.access import METHODS
from tests.consortium.processes import eventually
from tests.integration.crash_kit import ALL, DIMENSION, NAME, OTHERS, RECORDS, SITES, UPDATE_FRAMES, CrashTest
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.integration

REVOKED = 12
NAME_OVERRIDE = (("grpc.ssl_target_name_override", "quorate-server"), ("grpc.enable_retries", 0))
Found = Callable[..., CrashTest]


class HandSite:
    """A site's side of the rounds service, written by hand and with the site's own certificate."""

    def __init__(self, consortium: CrashTest, name: str) -> None:
        self.name = SiteName(name)
        self._channel = grpc.secure_channel(consortium.address, site_credential(consortium, name), NAME_OVERRIDE)
        self.stub: Any = rounds_pb2_grpc.RoundsStub(self._channel)
        self._outgoing: queue.SimpleQueue[rounds_pb2.SiteEvent | None] = queue.SimpleQueue()
        self._kept: list[rounds_pb2.ServerEvent] = []

    def close(self) -> None:
        self._outgoing.put(None)
        self._channel.close()

    def connect(self, session: int) -> None:
        self._events = self.stub.Connect(iter(self._outgoing.get, None), timeout=PATIENCE_S)
        self.say(hello=rounds_pb2.SiteHello(session=session, version="0.1.0"))
        self.next("welcome")

    def say(self, **event: Any) -> None:
        self._outgoing.put(rounds_pb2.SiteEvent(**event))

    def reply(self, reply: Reply) -> None:
        self.say(reply=reply_to_proto(reply))

    def next(self, kind: str) -> Any:
        """The next event of a kind; others are kept. Each heartbeat of the server is answered on the way."""
        for event in self._kept:
            if event.WhichOneof("event") == kind:
                self._kept.remove(event)
                return getattr(event, kind)
        for event in self._events:
            found = event.WhichOneof("event")
            if found == kind:
                return getattr(event, kind)
            if found == "heartbeat":
                self.say(heartbeat=rounds_pb2.Heartbeat(sequence=event.heartbeat.sequence))
            else:
                self._kept.append(event)
        raise AssertionError(f"the stream ended before a {kind} came")

    def asked(self, phase: Phase, round_number: int) -> Instruction:
        while True:
            instruction = instruction_from_proto(self.next("instruction"))
            if (instruction.phase, instruction.round_number) == (phase, round_number):
                return instruction

    def count_records(self) -> None:
        """Answer the first question of a run."""
        counted = SumAnswer(dimension=DIMENSION, plain_counts=(RECORDS[self.name],))
        self.reply(Reply(self.asked(Phase.UPLOAD, 0).message_id, body=sum_answer_to_bytes(counted)))

    def refuse(self, round_number: int) -> None:
        self.reply(Reply(self.asked(Phase.UPLOAD, round_number).message_id, "task_failed"))

    def await_ack(self, message: MessageId) -> None:
        while message not in self.next("ack").message_ids:
            pass

    def announce(self, message: MessageId, blob: Blob) -> Any:
        request = rounds_pb2.OpenUploadRequest(message_id=message, blob=blob_to_proto(blob))
        return self.stub.OpenUpload(request, timeout=PATIENCE_S)

    def upload(self, blob: Blob, frames: Sequence[Frame]) -> Any:
        pieces = [
            rounds_pb2.UploadFrame(blob_id=b"" if number else blob.id, frame=frame_to_proto(frame))
            for number, frame in enumerate(frames)
        ]
        return self.stub.Upload(iter(pieces), timeout=PATIENCE_S)


@contextmanager
def hand_site(consortium: CrashTest, name: str) -> Iterator[HandSite]:
    site = HandSite(consortium, name)
    try:
        yield site
    finally:
        site.close()


def site_credential(consortium: CrashTest, name: str) -> grpc.ChannelCredentials:
    keys = consortium.sites[name].folder / "keys"
    return grpc.ssl_channel_credentials(
        *((keys / file).read_bytes() for file in ("ca.pem", "tls.pem", "certificate.pem"))
    )


@contextmanager
def refused(code: str) -> Iterator[None]:
    """The call inside is refused with this code."""
    with pytest.raises(grpc.RpcError) as caught:
        yield
    error = error_from_call(caught.value, "")
    assert error.code == code, error


def an_update(value: float) -> tuple[Blob, list[Frame], int]:
    """The words of an update as east would send it, the same value everywhere but in its own coordinate."""
    weight = record_weight(RECORDS["east"], sum(RECORDS.values()), len(SITES), 0, is_counted=True)
    update = np.full(DIMENSION, value, np.float32)
    update[: len(SITES)] = (1.0, 0.0, 0.0)
    words = PlainScheme(4.0, len(SITES)).encode(update, weight)[0].astype("<u4").tobytes()
    return Blob(blob_id(words), len(words)), list(cut([words])), weight


def an_answer(consortium: CrashTest, asked: Instruction, weight: int) -> SumAnswer:
    """What belongs to such an update, from a site that holds the model of the others."""
    states = consortium.sites["north"].folder / "work" / "runs" / asked.run
    pattern = f"model-{asked.round_number - 1}-*.state"
    eventually(lambda: list(states.glob(pattern)), "a model of the others")
    (state,) = states.glob(pattern)
    digest = bytes.fromhex(state.stem.rpartition("-")[2])
    # No held-out records are at this site: an evaluation of none.
    tally = ClassificationTally(2, 0, (0,) * 4, (0,) * 2 * BINS).encode() if asked.round_number > 1 else ()
    return SumAnswer(plain_counts=(weight, RECORDS["east"], 0, 0, *tally), has_update=True, model=digest)


# --- bulk data ---


def test_broken_frames_are_refused_and_the_sum_is_the_one_of_what_was_announced(found: Found) -> None:
    """Corrupted, truncated, reordered, missing, foreign and surplus frames; repeated ones are passed over.

    After all of that the site uploads what it announced, and the released model is exactly the one without attacks.
    """
    consortium = found()
    consortium.start("east")
    with hand_site(consortium, "east") as east:
        east.connect(session=1000)
        run = consortium.run("brisk")
        east.count_records()
        east.refuse(1)
        train = east.asked(Phase.UPLOAD, 2)
        blob, frames, weight = an_update(0.0)
        assert len(frames) == UPDATE_FRAMES

        with refused("message_unknown"):  # nothing was announced
            east.upload(blob, frames)
        with refused("message_unknown"):  # somebody else's work
            east.announce(message_id(train.run, 2, Phase.UPLOAD, 0, SiteName("north")), blob)
        assert east.announce(train.message_id, blob).next_frame == 0
        first, second, last = frames[0], frames[1], frames[-1]
        damaged = bytes([first.data[0] ^ 1]) + first.data[1:]
        attacks = {
            "corrupted": [Frame(0, damaged, first.sha256), *frames[1:]],
            "truncated": [Frame(0, first.data[:-1], hashlib.sha256(first.data[:-1]).digest()), *frames[1:]],
            "empty": [Frame(0, b"", hashlib.sha256(b"").digest()), *frames[1:]],
            "reordered": [second, first],
            "with a gap": [first, frames[2]],
            "broken off": frames[:3],
        }
        for attack in attacks.values():
            with refused("bad_frame"):
                east.upload(blob, attack)
        foreign, other_frames, _ = an_update(1.0)
        assert east.announce(train.message_id, foreign).next_frame == 0
        with refused("blob_mismatch"):
            east.upload(foreign, [*other_frames[:-1], last])
        with refused("bad_frame"):  # more than was announced
            east.upload(foreign, [*other_frames, Frame(UPDATE_FRAMES, last.data, last.sha256)])

        body = sum_answer_to_bytes(an_answer(consortium, train, weight))
        east.reply(Reply(train.message_id, body=body, blobs=(foreign,)))
        refusal = east.next("refused_reply")
        assert (refusal.message_id, error_of(refusal.reason).code) == (train.message_id, "blob_missing")

        assert east.announce(train.message_id, blob).next_frame == 3  # what was whole of the one that was broken off
        assert east.upload(blob, [*frames[:2], *frames[:2], *frames[1:], frames[0], frames[-1]]).complete
        good = Reply(train.message_id, body=body, blobs=(blob,))
        for _ in range(2):
            east.reply(good)
            east.await_ack(train.message_id)
        assert east.asked(Phase.UPLOAD, 3)
        east.say(goodbye=rounds_pb2.Goodbye())
    consortium.require_shares(run, OTHERS, ALL, OTHERS)


def test_a_contribution_that_does_not_fit_is_left_out(found: Found) -> None:
    """A weight that nobody has, a model that nobody holds: the bytes arrived well, the round counts without them."""
    consortium = found()
    consortium.start("east")
    wrong = {2: "weight", 3: "model"}
    with hand_site(consortium, "east") as east:
        east.connect(session=1000)
        run = consortium.run("brisk")
        east.count_records()
        east.refuse(1)
        for round_number, what in wrong.items():
            train = east.asked(Phase.UPLOAD, round_number)
            blob, frames, weight = an_update(float(round_number))
            east.announce(train.message_id, blob)
            assert east.upload(blob, frames).complete
            answer = an_answer(consortium, train, 2 * WEIGHT_ONE if what == "weight" else weight)
            answer = replace(answer, model=bytes(32)) if what == "model" else answer
            east.reply(Reply(train.message_id, body=sum_answer_to_bytes(answer), blobs=(blob,)))
        east.refuse(4)
    view = consortium.require_shares(run, OTHERS, OTHERS, OTHERS)
    codes = [dict(result.missing)["east"] for result in view.results]
    assert codes == ["task_failed", "bad_contribution", "base_model_mismatch"]


def test_a_stream_that_does_not_keep_to_the_form_is_ended(consortium: CrashTest) -> None:
    """No hello, a second hello, a reply to nobody's question: refused by code. The site's own daemon goes on."""
    with hand_site(consortium, "east") as east:
        events = east.stub.Connect(iter([rounds_pb2.SiteEvent(heartbeat=rounds_pb2.Heartbeat())]), timeout=PATIENCE_S)
        with refused("bad_frame"):
            next(events)
        hello = rounds_pb2.SiteEvent(hello=rounds_pb2.SiteHello(session=2**63))
        with refused("bad_frame"):
            next(east.stub.Connect(iter([hello]), timeout=PATIENCE_S))
    assert consortium.presence() == dict.fromkeys(SITES, "online")
    consortium.require_whole(consortium.run("patient"), ALL, ALL, ALL)


# --- certificates ---


def attempt(channel: grpc.Channel, method: str) -> QuorateError | None:
    """Call a method with an empty message. None when it was not refused for who calls."""
    call = channel.stream_stream(method)
    try:
        for _ in call(iter([b""]), timeout=PATIENCE_S):
            return None
    except grpc.RpcError as failure:
        return error_from_call(failure, "")
    return None


def test_each_certificate_opens_its_own_calls_and_no_others(consortium: CrashTest) -> None:
    """A site cannot act as the operator nor the reverse; an invitation can be redeemed and nothing else."""
    invited = consortium.operator.invite(SiteName("south"), valid_s=0, keep_keys=False)
    folder = consortium.profile
    credentials = {
        Role.OPERATOR: grpc.ssl_channel_credentials(
            *((folder / file).read_bytes() for file in ("ca.pem", "operator.key", "operator.pem"))
        ),
        Role.SITE: site_credential(consortium, "east"),
        Role.BOOTSTRAP: grpc.ssl_channel_credentials(invited.ca_pem, invited.key_pem, invited.certificate_pem),
    }
    assert set(METHODS.values()) == set(credentials)
    for role, credential in credentials.items():
        with grpc.secure_channel(consortium.address, credential, NAME_OVERRIDE) as channel:
            for method, allowed in METHODS.items():
                if allowed is not role:
                    error = attempt(channel, method)
                    assert error is not None, f"{role} made {method}"
                    assert error.code == "wrong_role"
                    assert error.action
            error = attempt(channel, "/quorate.v1.Operator/DropEverything")
            assert error is not None
            assert error.code == "wrong_role"


def test_without_a_certificate_nothing_can_be_called(consortium: CrashTest) -> None:
    """The handshake lets nobody in who shows none, or one that another authority issued."""
    ca_pem = (consortium.profile / "ca.pem").read_bytes()
    stranger = Authority.create(consortium.root / "stranger", NAME, 1_700_000_000.0).issue_operator("alice", 1.7e9)
    credentials = [
        grpc.ssl_channel_credentials(ca_pem),
        grpc.ssl_channel_credentials(ca_pem, stranger.key_pem, stranger.issued.pem),
    ]
    for method in METHODS:
        for credential in credentials:
            with grpc.secure_channel(consortium.address, credential, NAME_OVERRIDE) as channel:
                assert isinstance(attempt(channel, method), ServerUnreachableError)
        with grpc.insecure_channel(consortium.address) as channel:
            assert isinstance(attempt(channel, method), ServerUnreachableError)


def test_a_revocation_ends_a_sites_part_at_once_and_the_run_goes_on(consortium: CrashTest) -> None:
    """The site's daemon ends with exit code 12 and says whom to ask; the others' round counts; it stays out."""
    east = consortium.sites["east"]
    run = consortium.run("brisk", east="train-2")
    east.await_step("train-2")
    consortium.operator.revoke(SiteName("east"))
    assert east.running.exit_code() == REVOKED
    assert "Ask the operator" in east.running.log.read_text()
    again = consortium.start_site("east")
    view = consortium.require_shares(run, ALL, OTHERS, OTHERS)
    assert dict(view.results[1].missing) == {"east": "absent"}
    assert again.exit_code() == REVOKED


# --- a server that is not the server ---


class Impostor:
    """Answers on a port with the certificate of another consortium's server, and keeps what it is told."""

    def __init__(self, port: int, folder: Path) -> None:
        authority = Authority.create(folder / "ca", NAME, 1_700_000_000.0)
        made = authority.issue_server("127.0.0.1", time.time())
        (folder / "server.pem").write_bytes(made.issued.pem)
        (folder / "server.key").write_bytes(made.key_pem)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(folder / "server.pem", folder / "server.key")
        self._context.set_alpn_protocols(["h2"])
        self._listener = socket.create_server(("127.0.0.1", port))
        self.visits = 0
        self.heard = b""
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            self.visits += 1
            try:
                with self._context.wrap_socket(plain, server_side=True) as secure:
                    self.heard += secure.recv(65536)
            except OSError:
                plain.close()


def test_a_site_tells_nothing_to_a_server_that_its_authority_did_not_certify(consortium: CrashTest) -> None:
    """It refuses in the handshake, says what to do, and goes on by itself when the right server is back."""
    run = consortium.run("patient")
    consortium.sites["east"].await_step("train-1")
    consortium.running.kill()
    folder = consortium.root / "impostor"
    folder.mkdir()
    impostor = Impostor(consortium.port, folder)
    try:
        for name in SITES:
            eventually(lambda site=consortium.sites[name]: "server_identity" in site.log, f"{name} to refuse")
        assert impostor.visits >= len(SITES)
        assert impostor.heard == b""
        assert all(consortium.sites[name].running.runs for name in SITES)
        assert "quorate-client doctor" in consortium.sites["east"].log
    finally:
        impostor.close()
    consortium.start_server()
    consortium.require_whole(run, ALL, ALL, ALL)
