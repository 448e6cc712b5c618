"""The aggregator from the daemon's side: its bulk data, its evidence, its absence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from quorate.errors import AggregatorUnreachableError, AttestationError, DiskFullError
from quorate.identity import SiteName
from quorate.process.cancellation import cancel
from quorate.rounds.blobs import FRAME_BYTES, Blob, blob_id
from quorate.rounds.instruction import Instruction, Phase, Reply, message_id
from quorate.rounds.run import RunState
from quorate.rounds.spool import Spool
from quorate.wire.messages import instruction_to_bytes
from quorate.wire.refusal import error_from_text
from quorate_server.reporting.metrics import ServerMetrics
from quorate_server.rounds.pipe import Note, Verb, read_note, referred_to
from quorate_server.runs import aggregator
from quorate_server.runs.aggregator import MAX_PIECE_BYTES, MAX_WAITING, Aggregator, EvidenceDesk, SpoolDesk
from quorate_server.runs.blobs_in_use import BlobsInUse
from quorate_server.runs.live_run import SEALED_BYTES, End, LiveRun, Shared, max_reply_bytes
from quorate_server.runs.mailbox import Mailbox
from quorate_server.runs.sessions import Sessions
from quorate_server.runs.views import RunViews
from quorate_server.storage.journal import Journal
from tests.attested_machine import attested_study
from tests.patience import PATIENCE_S
from tests.server.databases import made_database
from tests.server.study_kit import RUN, a_study

EAST, WEST = SiteName("east"), SiteName("west")
NONCE = b"n" * 32
STUDY = attested_study()


# --- bulk data ---


class Desk:
    def __init__(self, folder: Path) -> None:
        self.spool = Spool(folder)
        self.desk = SpoolDesk(self.spool)
        self.said: list[Note] = []

    async def ask(self, verb: Verb, payload: bytes = b"") -> list[Note]:
        self.said.clear()
        await self.desk.serve(Note(verb, payload), self.said.append)
        return self.said

    async def read(self, blob: Blob, start: int, length: int) -> Note:
        (note,) = await self.ask(Verb.READ, blob.id + start.to_bytes(8, "big") + length.to_bytes(4, "big"))
        return note


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


async def test_what_an_aggregator_puts_it_can_read(desk: Desk) -> None:
    content = bytes(range(256)) * (2 * FRAME_BYTES // 256) + b"end"
    for start in range(0, len(content), 100_000):
        assert await desk.ask(Verb.PUT, content[start : start + 100_000]) == []
    (stored,) = await desk.ask(Verb.STORE)
    blob = Blob(blob_id(content), len(content))
    assert (stored.verb, referred_to(stored.payload)) == (Verb.STORED, blob)
    assert await desk.read(blob, 5, 1000) == Note(Verb.PIECE, content[5:1005])
    assert await desk.read(blob, len(content) - 1, 1000) == Note(Verb.PIECE, b"d")
    (room,) = await desk.ask(Verb.ROOM)
    assert int.from_bytes(room.payload, "big") > 0


async def test_what_is_not_there_or_no_part_of_anything_is_refused(desk: Desk) -> None:
    gone = Blob(blob_id(b"gone"), 4)
    for length, code in ((4, "blob_missing"), (MAX_PIECE_BYTES + 1, "bad_frame")):
        note = await desk.read(gone, 0, length)
        assert note.verb is Verb.FAILED
        assert error_from_text(note.payload.decode()).code == code
    (note,) = await desk.ask(Verb.READ, b"../../etc/passwd")
    assert note.verb is Verb.FAILED


async def test_a_full_disk_is_the_one_answer_when_all_has_come(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __init__(self, spool: Spool) -> None:
            raise DiskFullError("Full")

    with monkeypatch.context() as changed:
        changed.setattr(aggregator, "NewBlob", Full)
        for _ in range(3):
            assert await desk.ask(Verb.PUT, b"piece") == []
        (note,) = await desk.ask(Verb.STORE)
    assert isinstance(error_from_text(note.payload.decode()), DiskFullError)
    await desk.ask(Verb.PUT, b"piece")
    (note,) = await desk.ask(Verb.STORE)
    assert note.verb is Verb.STORED


async def test_what_was_not_finished_is_dropped(desk: Desk) -> None:
    await desk.ask(Verb.PUT, b"piece" * FRAME_BYTES)
    desk.desk.close()
    assert list(desk.spool.folder.iterdir()) == []


# --- evidence ---


async def test_evidence_reaches_whoever_asked_for_it() -> None:
    desk = EvidenceDesk()
    assert await desk.ask(EAST, NONCE, lambda: desk.arrived(NONCE + b"evidence")) == b"evidence"
    desk.arrived(NONCE + b"late")
    desk.arrived(b"")


@pytest.mark.parametrize("nonce", [b"", NONCE[:-1], NONCE + b"a door of the site's own choice"])
async def test_what_is_no_nonce_does_not_reach_the_machine(nonce: bytes) -> None:
    told: list[None] = []
    with pytest.raises(AttestationError):
        await EvidenceDesk().ask(EAST, nonce, lambda: told.append(None))
    assert told == []


async def test_a_site_that_asks_without_end_keeps_no_other_from_asking() -> None:
    desk = EvidenceDesk()
    waiting = [asyncio.create_task(desk.ask(EAST, bytes([number]) * 32, lambda: None)) for number in range(MAX_WAITING)]
    await asyncio.sleep(0)
    with pytest.raises(AttestationError):
        await desk.ask(EAST, NONCE, lambda: None)
    assert await desk.ask(WEST, NONCE, lambda: desk.arrived(NONCE + b"evidence")) == b"evidence"
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)


async def test_a_machine_that_shows_nothing_is_waited_for_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregator, "EVIDENCE_S", 0.01)
    desk = EvidenceDesk()
    with pytest.raises(AttestationError):
        await desk.ask(EAST, NONCE, lambda: None)
    assert await desk.ask(EAST, NONCE, lambda: desk.arrived(NONCE + b"evidence")) == b"evidence"


# --- a run ---


class Kit:
    """A run whose aggregator does as a test says."""

    def __init__(self, folder: Path, address: str) -> None:
        self.engine = made_database(f"sqlite:///{folder / 'server.sqlite'}")
        self.journal = Journal(self.engine)
        self.journal.create_run(RUN, STUDY.digest())
        self.spool = Spool(folder / "spool")
        sessions = Sessions(self.journal, 6.0)
        self.mailbox = Mailbox(sessions, self.journal, self.spool)
        metrics = ServerMetrics(CollectorRegistry())
        views = RunViews(metrics)
        views.add(self.journal.run(RUN), STUDY, [], model_available=False)
        blobs = BlobsInUse(self.spool)
        shared = Shared(self.journal, self.mailbox, sessions, self.spool, blobs, views, metrics, address)
        self.ended: asyncio.Future[End] = asyncio.get_running_loop().create_future()
        self.live = LiveRun(RUN, STUDY, folder / "run", shared, self._end)

    async def _end(self, live: LiveRun, end: End) -> None:
        self.ended.set_result(end)

    async def end(self) -> End:
        async with asyncio.timeout(PATIENCE_S):
            return await self.ended

    async def close(self) -> None:
        await self.live.end()
        self.journal.close()
        self.engine.dispose()


Behave = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(behave: Behave) -> AsyncIterator[str]:
    """The address of an aggregator that does as a test says."""
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await behave(reader, writer)
        finally:
            writer.transport.abort()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.create_task(serve(reader, writer)))

    server = await asyncio.start_server(begin, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await cancel(serving)


@asynccontextmanager
async def a_run(folder: Path, behave: Behave) -> AsyncIterator[Kit]:
    async with listening(behave) as address:
        kit = Kit(folder, address)
        try:
            yield kit
        finally:
            await kit.close()


async def say_nothing(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()


async def heard(reader: asyncio.StreamReader, verb: Verb) -> Note:
    while (note := await read_note(reader)) is not None:
        if note.verb is verb:
            return note
    raise AssertionError("the server hung up")


async def test_a_connection_that_breaks_again_and_again_pauses_the_run_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aggregator, "BROKEN_S", 0.01)
    times: list[Note] = []

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        times.append(await heard(reader, Verb.BEGIN))
        writer.close()

    async with a_run(tmp_path, hang_up) as kit:
        state, reason = await kit.end()
    assert state is RunState.PAUSED
    assert isinstance(reason, AggregatorUnreachableError)
    assert len(times) == 3


async def test_an_aggregator_that_does_not_answer_pauses_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aggregator, "CONNECT_FOR_S", 0.0)
    kit = Kit(tmp_path, "127.0.0.1:1")
    state, reason = await kit.end()
    await kit.close()
    assert state is RunState.PAUSED
    assert isinstance(reason, AggregatorUnreachableError)


async def test_a_reply_that_nobody_can_read_any_more_is_forgotten_and_asked_for_again(tmp_path: Path) -> None:
    name = message_id(RUN, 1, Phase.UPLOAD, 0, EAST)
    asked = Instruction(name, RUN, 1, Phase.UPLOAD, 0, STUDY.digest(), 60.0, b"work", signature=b"s" * 64)
    replies: asyncio.Queue[Note] = asyncio.Queue()

    async def machine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await heard(reader, Verb.BEGIN)
        writer.write(Note(Verb.SEND, instruction_to_bytes(asked), EAST).to_bytes())
        replies.put_nowait(await heard(reader, Verb.REPLY))
        writer.write(Note(Verb.AGAIN, name).to_bytes() + Note(Verb.SEND, instruction_to_bytes(asked), EAST).to_bytes())
        replies.put_nowait(await heard(reader, Verb.REPLY))

    async with a_run(tmp_path, machine) as kit, asyncio.timeout(PATIENCE_S):

        async def owed() -> None:
            while kit.mailbox.owed_by(EAST) != [asked]:
                await asyncio.sleep(0.01)

        bulk = kit.spool.put([b"sealed to the machine before"])
        await owed()
        await kit.mailbox.take(EAST, Reply(name, blobs=(bulk,)))
        await replies.get()
        await owed()
        assert not kit.spool.has(bulk)
        assert not kit.journal.has_reply(EAST, name)
        bulk = kit.spool.put([b"sealed to this one"])
        await kit.mailbox.take(EAST, Reply(name, blobs=(bulk,)))
        await replies.get()
        assert kit.journal.replies(RUN) == {name: Reply(name, blobs=(bulk,))}


async def test_evidence_is_asked_of_the_run_s_own_machine_with_the_key_of_the_door(tmp_path: Path) -> None:
    questions: list[bytes] = []
    is_there = asyncio.Event()

    async def machine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await heard(reader, Verb.PRESENCE)
        is_there.set()
        while (note := await read_note(reader)) is not None:
            questions.append(note.payload)
            writer.write(Note(Verb.ATTESTED, note.payload[:32] + b"evidence").to_bytes())

    async with a_run(tmp_path, machine) as kit, asyncio.timeout(PATIENCE_S):
        await is_there.wait()
        assert await kit.live.attest(EAST, NONCE, b"door") == b"evidence"
        with pytest.raises(AttestationError):
            await kit.live.attest(EAST, NONCE + b"door of mine", b"door")
    assert questions == [NONCE + b"door"]


async def test_the_released_model_leaves_the_spool_for_the_run_s_folder(tmp_path: Path) -> None:
    async with a_run(tmp_path, say_nothing) as kit:
        kit.live._keep_model(kit.spool.put([b"model"]))
    assert (tmp_path / "run" / "model.npz").read_bytes() == b"model"
    assert (tmp_path / "run" / "model.npz.part").exists() is False


async def test_who_asks_and_does_not_read_the_answers_is_heard_no_further() -> None:
    """Its answers would fill the server's memory."""

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not writer.is_closing():
            writer.write(Note(Verb.ROOM).to_bytes())
            await asyncio.sleep(0.001)

    answered = 0
    async with listening(deaf) as address:
        peer = await Aggregator.connect(address)
        with pytest.raises(TimeoutError):
            while answered < 200:
                async with asyncio.timeout(0.5):
                    assert await peer.receive() is not None
                peer.send(Note(Verb.PIECE, bytes(1024 * 1024)))
                answered += 1
    await peer.kill()
    assert answered < 200


@pytest.mark.parametrize("phase", [Phase.KEYS, Phase.HELLO, Phase.VOTE, Phase.REVEAL])
def test_a_sealed_reply_may_be_uploaded_where_the_reply_itself_has_room_otherwise(phase: Phase) -> None:
    assert max_reply_bytes(STUDY, 10, phase) == SEALED_BYTES
    assert max_reply_bytes(a_study(), 10, phase) == 0
