"""The pipe to a run's worker: small framed messages, parsed as strictly as anything from outside."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorate.errors import BlobMissingError, FrameError
from quorate.identity import SiteName
from quorate.process.frames import framed, header
from quorate.rounds.blobs import Blob, BlobId, blob_id
from quorate.rounds.instruction import Instruction, MessageId, Phase, Reply, message_id
from quorate.rounds.run import Progress, RoundResult, SiteProgress, SumOutcome, SumStep
from quorate.rounds.spool import Spool
from quorate.wire.messages import instruction_from_bytes, reply_to_bytes
from quorate_server.rounds.phases import Arrived, Presence, Status
from quorate_server.rounds.pipe import MAX_NOTE_BYTES, Note, Verb, read_note, receive_note, referred_to
from quorate_server.rounds.pipe_exchange import PipeExchange
from quorate_server.rounds.progress import StudyProgress, result_from_json
from quorate_server.rounds.sum_figures import SumFigures
from tests.patience import PATIENCE_S
from tests.server.study_kit import RUN

EAST = SiteName("east")
notes = st.builds(
    Note, st.sampled_from(Verb), st.binary(max_size=300), st.sampled_from(["", "east", "x" * 63, "bö" * 60])
)


def received_blocking(data: bytes) -> list[Note]:
    """Everything that the worker's end makes of these bytes."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)
        return list(iter(lambda: receive_note(theirs), None))


def received_by_daemon(data: bytes) -> list[Note]:
    async def read() -> list[Note]:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        found = []
        while (note := await read_note(reader)) is not None:
            found.append(note)
        return found

    return asyncio.run(read())


ENDS = pytest.mark.parametrize("receive", [received_blocking, received_by_daemon], ids=["worker", "daemon"])


@ENDS
@given(sent=st.lists(notes, max_size=5))
def test_what_is_sent_arrives(receive: Any, sent: list[Note]) -> None:
    assert receive(b"".join(note.to_bytes() for note in sent)) == sent


@ENDS
@given(data=st.binary(max_size=100))
def test_bytes_that_mean_nothing_are_refused_or_incomplete(receive: Any, data: bytes) -> None:
    with contextlib.suppress(FrameError):
        receive(data)


@ENDS
@given(sent=notes, cut=st.integers(1, 1000))
def test_a_message_that_is_cut_off_is_none(receive: Any, sent: Note, cut: int) -> None:
    data = sent.to_bytes()
    assert receive(data[: max(0, len(data) - cut)]) == []


@ENDS
@pytest.mark.parametrize(
    "data",
    [
        header(MAX_NOTE_BYTES + 1),
        framed(b""),
        framed(b"\x04"),
        framed(b"\x00\x00"),
        framed(b"\x63\x00"),
        framed(b"\x04\x02\xff"),
        framed(b"\x04\x02\xff\xfe"),
    ],
    ids=["too long", "empty", "too short", "no verb", "unknown verb", "half a name", "a name that is no text"],
)
def test_what_is_not_a_message_is_refused(receive: Any, data: bytes) -> None:
    with pytest.raises(FrameError):
        receive(data)


def test_the_bytes_on_the_pipe() -> None:
    assert Note(Verb.SEND, b"payload", "east").to_bytes() == framed(b"\x04\x04eastpayload")


# --- the worker's end ---


class Daemon:
    """The other end of a worker's pipe."""

    def __init__(self, folder: Path) -> None:
        self.sock, theirs = socket.socketpair()
        self.theirs = theirs
        self.spool = Spool(folder / "spool")
        self.gone = threading.Event()
        self.exchange = PipeExchange(theirs, self.spool, self.gone.set)
        self.exchange.start()

    def heard(self) -> Note:
        self.sock.settimeout(PATIENCE_S)
        note = receive_note(self.sock)
        assert note is not None
        return note

    def say(self, note: Note) -> None:
        self.sock.sendall(note.to_bytes())

    def close(self) -> None:
        self.sock.close()
        assert self.gone.wait(PATIENCE_S)
        self.theirs.close()


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    daemon = Daemon(tmp_path)
    yield daemon
    daemon.close()


def test_the_worker_asks_withdraws_and_refuses(daemon: Daemon) -> None:
    name = message_id(RUN, 1, Phase.UPLOAD, 0, EAST)
    asked = Instruction(name, RUN, 1, Phase.UPLOAD, 0, bytes(32), 60.0, b"body", (Blob.of(b"x"),))
    daemon.exchange.send(EAST, asked)
    note = daemon.heard()
    assert (note.verb, note.site, instruction_from_bytes(note.payload)) == (Verb.SEND, EAST, asked)
    daemon.exchange.withdraw([name, MessageId(bytes(32))])
    assert daemon.heard() == Note(Verb.WITHDRAW, name + bytes(32))
    daemon.exchange.withdraw([])
    daemon.exchange.refuse(name, "bad_contribution")
    assert daemon.heard() == Note(Verb.REFUSE, name + b"bad_contribution")


def test_the_worker_hears_replies_and_who_is_gone_in_their_order(daemon: Daemon) -> None:
    reply = Reply(MessageId(bytes(32)), body=b"work")
    daemon.say(Note(Verb.PRESENCE, json.dumps({"west": 2.5}).encode()))
    daemon.say(Note(Verb.REPLY, reply_to_bytes(reply), EAST))
    assert daemon.exchange.next_event(PATIENCE_S) == Presence({SiteName("west"): 2.5})
    assert daemon.exchange.next_event(PATIENCE_S) == Arrived(EAST, reply)
    assert daemon.exchange.next_event(0.0) is None


def test_a_commit_carries_all_that_a_successor_needs(daemon: Daemon) -> None:
    progress = StudyProgress(prepared=True, dimension=3, trained=1, agreed_digest=bytes(32))
    result = RoundResult(1, (EAST,), {"auc": 0.5})
    obsolete = {BlobId(b"\x02" * 32), BlobId(b"\x01" * 32)}
    daemon.exchange.commit(progress, result, obsolete)
    step = json.loads(daemon.heard().payload)
    assert StudyProgress.model_validate_json(step["progress"]) == progress
    assert result_from_json(step["result"]) == result
    assert {bytes.fromhex(name) for name in step["obsolete"]} == obsolete
    daemon.exchange.commit(progress, None, set())
    assert json.loads(daemon.heard().payload)["result"] is None


def test_a_report_names_the_sites_and_how_far_they_are(daemon: Daemon) -> None:
    daemon.exchange.report(Status(2, "train", (SiteProgress(EAST, Progress.REFUSED, "task_failed"),)))
    note = daemon.heard()
    assert note.verb is Verb.STATUS
    assert json.loads(note.payload) == {"round": 2, "phase": "train", "sites": [["east", "refused", "task_failed"]]}


def test_figures_of_sums_arrive_as_they_were_measured(daemon: Daemon) -> None:
    figures = SumFigures((SumOutcome.BEGUN_ANEW, SumOutcome.NOT_OPENED), {SumStep.PARSE: 0.5, SumStep.ADD: 0.0})
    daemon.exchange.measured(figures)
    note = daemon.heard()
    assert (note.verb, SumFigures.from_json(note.payload)) == (Verb.FIGURES, figures)


def test_bulk_data_goes_through_the_spool(daemon: Daemon) -> None:
    blob = daemon.exchange.put([b"su", b"m"])
    assert daemon.spool.content(blob) == b"sum"
    with daemon.exchange.open(blob) as content:
        assert content.read() == b"sum"
    with daemon.exchange.open(Blob.of(b"inline")) as content:
        assert content.read() == b"inline"
    assert daemon.exchange.free_bytes() > 0


@pytest.mark.parametrize("blob", [Blob(blob_id(b"gone"), 4), Blob(blob_id(b"here"), 3)], ids=["gone", "another size"])
def test_bulk_data_that_is_not_there_is_refused(daemon: Daemon, blob: Blob) -> None:
    daemon.exchange.put([b"here"])
    with pytest.raises(BlobMissingError):
        daemon.exchange.open(blob)


def test_the_daemon_is_told_to_keep_the_released_model(daemon: Daemon) -> None:
    model = daemon.exchange.put([b"model"])
    daemon.exchange.keep_model(model)
    note = daemon.heard()
    assert (note.verb, referred_to(note.payload)) == (Verb.KEEP, model)


@pytest.mark.parametrize("last", [b"", Note(Verb.COMMIT).to_bytes()], ids=["closed", "nonsense"])
def test_a_worker_without_its_daemon_ends(daemon: Daemon, last: bytes) -> None:
    daemon.sock.sendall(last)
    daemon.sock.shutdown(socket.SHUT_WR)
    assert daemon.gone.wait(PATIENCE_S)
