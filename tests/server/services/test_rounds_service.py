"""The gRPC door of rounds, over real mutual TLS on loopback: who may say what, and what a broken line costs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry

from quorate.attestation.evidence import Evidence, Kind
from quorate.attestation.sealing import EnclaveKeys
from quorate.errors import (
    AttestationError,
    BlobMismatchError,
    BlobMissingError,
    CertificateRevokedError,
    FrameError,
    IdentityClonedError,
    KeyMismatchError,
    MessageUnknownError,
    QuorateError,
    SupersededError,
    TransportError,
    WrongRoleError,
)
from quorate.identity import RunId, SiteName
from quorate.rounds.blobs import FRAME_BYTES, Blob, Frame, blob_id, cut
from quorate.rounds.instruction import Instruction, MessageId, Phase, Reply, message_id
from quorate.rounds.spool import Spool
from quorate.v1 import attestation_pb2, common_pb2, rounds_pb2, rounds_pb2_grpc
from quorate.versions import SERIES
from quorate.wire.attestation_messages import answer_from_proto, answer_to_proto
from quorate.wire.messages import (
    blob_to_proto,
    frame_from_proto,
    frame_to_proto,
    instruction_from_proto,
    reply_to_proto,
)
from quorate.wire.refusal import error_from_call
from quorate_server.consortium.ca import Authority
from quorate_server.consortium.registry import Registry
from quorate_server.consortium.server_certificate import ServerIdentity
from quorate_server.reporting.metrics import ServerMetrics, UploadOutcome
from quorate_server.runs.mailbox import Mailbox
from quorate_server.runs.sessions import Sessions
from quorate_server.services.access import AccessGuard
from quorate_server.services.rounds_service import RoundsService
from quorate_server.storage.journal import Journal
from tests.patience import PATIENCE_S
from tests.server.databases import made_database
from tests.server.door import CONSORTIUM, NAME_OVERRIDE, Clock, SiteKeys, a_study
from tests.server.study_kit import RUN

EAST, WEST = SiteName("east"), SiteName("west")
CONTENT = bytes(range(256)) * (5 * FRAME_BYTES // 512) + b"and a short last frame"
UPDATE = Blob(blob_id(CONTENT), len(CONTENT))
FRAMES = list(cut([CONTENT]))


@dataclass
class Client:
    """A site, as far as the line goes."""

    keys: SiteKeys
    serial: int
    stub: Any

    async def connect(self, session: int = 1, version: str = "0.1.0") -> Stream:
        stream = Stream(self.stub.Connect())
        await stream.say(hello=rounds_pb2.SiteHello(session=session, version=version))
        assert (await stream.hear()).HasField("welcome")
        return stream

    async def open_upload(self, message: MessageId, blob: Blob = UPDATE) -> rounds_pb2.OpenUploadReply:
        request = rounds_pb2.OpenUploadRequest(message_id=message, blob=blob_to_proto(blob))
        with refusals():
            return await self.stub.OpenUpload(request, timeout=PATIENCE_S)

    async def upload(self, frames: Iterable[Frame], blob: Blob = UPDATE) -> rounds_pb2.UploadReply:
        messages = [rounds_pb2.UploadFrame(frame=frame_to_proto(frame)) for frame in frames]
        if messages:
            messages[0].blob_id = blob.id
        with refusals():
            return await self.stub.Upload(iter(messages), timeout=PATIENCE_S)

    async def download(self, blob: Blob, first_frame: int = 0) -> list[Frame]:
        request = rounds_pb2.DownloadRequest(blob_id=blob.id, first_frame=first_frame)
        with refusals():
            return [frame_from_proto(proto) async for proto in self.stub.Download(request, timeout=PATIENCE_S)]


class Stream:
    """An open control stream of a site."""

    def __init__(self, call: Any) -> None:
        self.call = call

    async def say(self, **event: Any) -> None:
        await self.call.write(rounds_pb2.SiteEvent(**event))

    async def hear(self) -> rounds_pb2.ServerEvent:
        """The next event that is no heartbeat."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with refusals():
                    event = await self.call.read()
                if event is grpc.aio.EOF:
                    raise EOFError
                if not event.HasField("heartbeat"):
                    return event  # type: ignore[no-any-return]

    async def refusal(self) -> str:
        """The code of the refusal with which the server ends the stream."""
        event = await self.hear()
        assert event.HasField("refused"), event
        with pytest.raises(EOFError):
            await self.hear()
        return str(event.refused.code)


class refusals:  # noqa: N801  # reads as a statement
    """A refusal of the server, as our own error."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, grpc.aio.AioRpcError):
            raise error_from_call(error, "localhost") from error


@dataclass
class Server:
    registry: Registry
    authority: Authority
    clock: Clock
    journal: Journal
    sessions: Sessions
    spool: Spool
    mailbox: Mailbox
    prometheus: CollectorRegistry
    port: int
    channels: list[grpc.aio.Channel]
    taken: list[tuple[SiteName, Reply]]

    def client(self, name: str) -> Client:
        """A site that has joined."""
        keys, now = SiteKeys.make(name), self.clock()
        bootstrap = self.authority.issue_bootstrap(keys.name, now, 86_400)
        self.registry.invite(keys.name, bootstrap.issued, now + 86_400, keep_keys=False)
        issued = self.authority.issue_site(keys.name, keys.csr(), now, 30)
        self.registry.redeem(bootstrap.issued.serial, keys.member, keys.tls_digest(), issued)
        return self._client(keys, issued.serial, issued.pem, keys.key_pem())

    def operator(self) -> Client:
        made = self.authority.issue_operator("alice", self.clock())
        self.registry.record_certificate(made.issued)
        return self._client(SiteKeys.make("alice"), made.issued.serial, made.issued.pem, made.key_pem)

    def _client(self, keys: SiteKeys, serial: int, certificate_pem: bytes, key_pem: bytes) -> Client:
        credentials = grpc.ssl_channel_credentials(self.authority.ca_pem, key_pem, certificate_pem)
        channel = grpc.aio.secure_channel(f"localhost:{self.port}", credentials, options=NAME_OVERRIDE)
        self.channels.append(channel)
        return Client(keys, serial, rounds_pb2_grpc.RoundsStub(channel))

    def ask(self, site: SiteName, number: int = 1, blobs: tuple[Blob, ...] = ()) -> MessageId:
        name = message_id(RUN, number, Phase.UPLOAD, 0, site)
        asked = Instruction(name, RUN, number, Phase.UPLOAD, 0, bytes(32), 60.0, blobs=blobs)
        self.mailbox.send(
            site, asked, frozenset(blob.id for blob in blobs), lambda site, reply: self.taken.append((site, reply))
        )
        return name

    def metric(self, name: str, **labels: str) -> float:
        value = self.prometheus.get_sample_value(f"quorate_server_{name}", labels)
        assert value is not None
        return value

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # what is waited for happens behind the line
                await asyncio.sleep(0.005)


MACHINE = EnclaveKeys()


async def attest(site: SiteName, run: RunId, nonce: bytes) -> bytes:
    """A machine that shows who asked for what."""
    if run != RUN:
        raise AttestationError("There is no such run")
    evidence = Evidence(Kind.SOFTWARE, site.encode() + nonce)
    return answer_to_proto(evidence, MACHINE.identity).SerializeToString()


@asynccontextmanager
async def open_server(
    folder: Path, *, slots: int = 4, idle_s: float = PATIENCE_S, series: Sequence[str] = SERIES
) -> AsyncIterator[Server]:
    clock = Clock()
    authority = Authority.create(folder / "ca", CONSORTIUM, clock())
    engine = made_database(f"sqlite:///{folder / 'server.sqlite'}")
    journal = Journal(engine)
    journal.create_run(RUN, bytes(32))
    registry, spool = Registry(engine, clock), Spool(folder / "spool")
    sessions = Sessions(journal, 6.0, series=series)
    mailbox, prometheus = Mailbox(sessions, journal, spool), CollectorRegistry()
    service = RoundsService(
        consortium=CONSORTIUM,
        heartbeat_s=3600.0,
        upload_slots=slots,
        sessions=sessions,
        mailbox=mailbox,
        registry=registry,
        spool=spool,
        metrics=ServerMetrics(prometheus),
        attest=attest,
        upload_idle_s=idle_s,
    )
    door = grpc.aio.server(interceptors=[AccessGuard(CONSORTIUM, registry)])
    rounds_pb2_grpc.add_RoundsServicer_to_server(service, door)  # type: ignore[no-untyped-call]
    port = door.add_secure_port("127.0.0.1:0", ServerIdentity(authority, "localhost", clock).server_credentials())
    await door.start()
    server = Server(registry, authority, clock, journal, sessions, spool, mailbox, prometheus, port, [], [])
    try:
        yield server
    finally:
        for channel in server.channels:
            await channel.close()
        await door.stop(None)
        journal.close()
        engine.dispose()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with open_server(tmp_path) as server:
        yield server


# --- control ---


async def test_a_site_says_hello_gets_its_work_replies_and_is_acknowledged(server: Server) -> None:
    east = server.client("east")
    owed = server.ask(EAST, 1)
    stream = await east.connect()
    assert (await stream.hear()).instruction.message_id == owed
    fresh = server.ask(EAST, 2)
    event = await stream.hear()
    assert instruction_from_proto(event.instruction).message_id == fresh
    await stream.say(reply=reply_to_proto(Reply(fresh, body=b"work")))
    assert (await stream.hear()).ack.message_ids == [fresh]
    assert server.taken == [(EAST, Reply(fresh, body=b"work"))]
    await stream.say(goodbye=rounds_pb2.Goodbye())
    with pytest.raises(EOFError):
        await stream.hear()
    assert server.sessions.state(EAST) == "offline"
    # A reply with a name and a body, a goodbye; a welcome, two instructions, an acknowledgement.
    assert 40 < server.metric("received_bytes_total", kind="control") < 200
    assert 200 < server.metric("sent_bytes_total", kind="control") < 2000


@pytest.mark.parametrize(
    "first",
    [
        {"heartbeat": rounds_pb2.Heartbeat()},
        {"reply": rounds_pb2.Reply(message_id=bytes(32))},
        {"goodbye": rounds_pb2.Goodbye()},
        {},
    ],
    ids=["heartbeat", "reply", "goodbye", "nothing in it"],
)
async def test_a_connection_that_does_not_begin_with_hello_ends(server: Server, first: dict[str, Any]) -> None:
    stream = Stream(server.client("east").stub.Connect())
    await stream.say(**first)
    with pytest.raises(FrameError):
        await stream.hear()
    assert server.sessions.state(EAST) == "offline"


async def test_a_connection_that_says_nothing_and_ends_is_refused(server: Server) -> None:
    stream = Stream(server.client("east").stub.Connect())
    await stream.call.done_writing()
    with pytest.raises(FrameError):
        await stream.hear()


async def test_a_second_hello_ends_the_connection(server: Server) -> None:
    stream = await server.client("east").connect()
    await stream.say(hello=rounds_pb2.SiteHello(session=2, version="0.1.0"))
    assert await stream.refusal() == FrameError.code


@pytest.mark.parametrize("first", [True, False], ids=["instead of hello", "after hello"])
async def test_bytes_that_are_no_message_end_the_connection(server: Server, first: bool) -> None:
    east = server.client("east")
    channel = server.channels[-1]
    call = channel.stream_stream(
        "/quorate.v1.Rounds/Connect",
        request_serializer=lambda data: data,
        response_deserializer=rounds_pb2.ServerEvent.FromString,
    )()
    stream = Stream(call)
    if not first:
        hello = rounds_pb2.SiteEvent(hello=rounds_pb2.SiteHello(session=1, version="0.1.0"))
        await call.write(hello.SerializeToString())
        assert (await stream.hear()).HasField("welcome")
    await call.write(b"\xff\xff\xff")
    if first:
        with pytest.raises(QuorateError):
            await stream.hear()
    else:
        assert await stream.refusal() == FrameError.code
    await server.until(lambda: server.sessions.state(EAST) == "offline")
    assert east.keys.name == EAST


async def test_an_operator_s_certificate_opens_no_site_s_stream(server: Server) -> None:
    operator = server.operator()
    server.ask(EAST)
    stream = Stream(operator.stub.Connect())
    with pytest.raises(WrongRoleError):
        await stream.hear()
    with pytest.raises(WrongRoleError):
        await operator.download(UPDATE)


async def test_a_newer_connection_takes_over_and_a_copy_is_refused(server: Server) -> None:
    east = server.client("east")
    older = await east.connect(1)
    newer = await east.connect(2)
    assert await older.refusal() == SupersededError.code
    copy = Stream(east.stub.Connect())
    await copy.say(hello=rounds_pb2.SiteHello(session=2, version="0.1.0"))
    with pytest.raises(IdentityClonedError):
        await copy.hear()
    message = server.ask(EAST)
    assert (await newer.hear()).instruction.message_id == message


async def test_heartbeats_keep_a_site_here_and_say_whether_it_is_paused(server: Server) -> None:
    stream = await server.client("east").connect()
    await stream.say(heartbeat=rounds_pb2.Heartbeat(sequence=1, paused=True))
    await server.until(lambda: server.sessions.state(EAST) == "paused")
    await stream.say(heartbeat=rounds_pb2.Heartbeat(sequence=2))
    await server.until(lambda: server.sessions.state(EAST) == "online")


@pytest.mark.parametrize("how", ["revoked", "expired"])
async def test_a_certificate_that_ends_closes_the_open_stream_at_the_next_heartbeat(server: Server, how: str) -> None:
    stream = await server.client("east").connect()
    await stream.say(heartbeat=rounds_pb2.Heartbeat(sequence=1))
    if how == "revoked":
        server.registry.revoke_site(EAST)
    else:
        server.clock.forward(days=31)
    await stream.say(heartbeat=rounds_pb2.Heartbeat(sequence=2))
    assert await stream.refusal() == {"revoked": CertificateRevokedError.code, "expired": "certificate_expired"}[how]
    await server.until(lambda: server.sessions.state(EAST) == "offline")


async def test_a_line_that_breaks_leaves_the_site_gone_and_its_work_owed(server: Server) -> None:
    east = server.client("east")
    stream = await east.connect(1)
    message = server.ask(EAST)
    await stream.hear()
    stream.call.cancel()
    await server.until(lambda: server.sessions.state(EAST) == "offline")
    again = await east.connect(2)
    assert (await again.hear()).instruction.message_id == message


# --- replies ---


async def test_a_reply_to_another_site_s_work_is_refused_and_the_stream_goes_on(server: Server) -> None:
    stream = await server.client("west").connect()
    message = server.ask(EAST)
    await stream.say(reply=reply_to_proto(Reply(message, body=b"stolen")))
    event = await stream.hear()
    assert event.refused_reply.message_id == message
    assert event.refused_reply.reason.code == MessageUnknownError.code
    assert server.taken == []
    mine = server.ask(WEST)
    assert (await stream.hear()).instruction.message_id == mine


async def test_a_reply_whose_upload_is_missing_is_refused_until_it_is_there(server: Server) -> None:
    east = server.client("east")
    stream = await east.connect()
    message = server.ask(EAST)
    await stream.hear()
    reply = Reply(message, blobs=(UPDATE,))
    await stream.say(reply=reply_to_proto(reply))
    event = await stream.hear()
    assert event.refused_reply.reason.code == BlobMissingError.code
    await east.open_upload(message)
    assert (await east.upload(FRAMES)).complete
    await stream.say(reply=reply_to_proto(reply))
    assert (await stream.hear()).ack.message_ids == [message]
    assert server.taken == [(EAST, reply)]


async def test_a_reply_that_is_malformed_ends_the_stream_and_nothing_is_taken(server: Server) -> None:
    stream = await server.client("east").connect()
    message = server.ask(EAST)
    await stream.hear()
    await stream.say(reply=rounds_pb2.Reply(message_id=message, blobs=[common_pb2.Blob(id=b"x", size=1)]))
    assert await stream.refusal() == FrameError.code
    assert server.taken == []


async def test_a_reply_that_was_just_sent_counts_although_the_line_breaks(server: Server) -> None:
    east = server.client("east")
    stream = await east.connect(1)
    message = server.ask(EAST)
    await stream.hear()
    await stream.say(reply=reply_to_proto(Reply(message, body=b"work")))
    await stream.call.done_writing()
    await server.until(lambda: server.taken)
    again = await east.connect(2)
    await again.say(reply=reply_to_proto(Reply(message, body=b"work")))
    assert (await again.hear()).ack.message_ids == [message]
    assert len(server.taken) == 1


# --- uploads ---


async def begun(client: Client) -> Any:
    """An upload of two frames that then stands still."""
    call = client.stub.Upload()
    for number, frame in enumerate(FRAMES[:2]):
        blob = UPDATE.id if number == 0 else b""
        await call.write(rounds_pb2.UploadFrame(blob_id=blob, frame=frame_to_proto(frame)))
    return call


async def test_an_upload_goes_on_where_it_was_broken_off(server: Server) -> None:
    east = server.client("east")
    message = server.ask(EAST)
    assert (await east.open_upload(message)).next_frame == 0
    with pytest.raises(FrameError):
        await east.upload(FRAMES[:2])
    assert (await east.open_upload(message)).next_frame == 2
    assert (await east.upload(FRAMES[2:])).complete
    assert server.spool.content(UPDATE) == CONTENT
    again = await east.open_upload(message)
    assert (again.complete, again.next_frame) == (True, UPDATE.frames)
    assert server.prometheus.get_sample_value("quorate_server_frames_resumed_total") == 2
    assert server.prometheus.get_sample_value("quorate_server_received_bytes_total", {"kind": "blob"}) == len(CONTENT)


async def test_a_line_that_breaks_in_an_upload_costs_no_frame_that_was_kept(server: Server) -> None:
    east = server.client("east")
    message = server.ask(EAST)
    await east.open_upload(message)
    call = await begun(east)
    part = server.spool.folder / f"{UPDATE.id.hex()}.{EAST}.part.frames"
    await server.until(lambda: part.exists() and part.stat().st_size == 64)
    call.cancel()
    assert (await east.open_upload(message)).next_frame == 2
    await east.upload(FRAMES[2:])
    assert server.spool.content(UPDATE) == CONTENT


CORRUPTED = replace(FRAMES[1], data=b"\xff" + FRAMES[1].data[1:])
TRUNCATED = replace(FRAMES[1], data=FRAMES[1].data[:-1])


@pytest.mark.parametrize(
    ("frames", "kept"),
    [
        ([FRAMES[0], CORRUPTED, FRAMES[2]], 1),
        ([FRAMES[0], TRUNCATED, FRAMES[2]], 1),
        ([FRAMES[0], FRAMES[2], FRAMES[1]], 1),
        ([FRAMES[1], FRAMES[0]], 0),
        ([FRAMES[0], FRAMES[1], FRAMES[1], FRAMES[0]], 2),
    ],
    ids=["corrupted", "truncated", "out of order", "from the middle", "repeated and cut off"],
)
async def test_a_broken_upload_is_refused_and_keeps_what_was_right(
    server: Server, frames: list[Frame], kept: int
) -> None:
    east = server.client("east")
    message = server.ask(EAST)
    await east.open_upload(message)
    with pytest.raises(FrameError):
        await east.upload(frames)
    assert (await east.open_upload(message)).next_frame == kept
    await east.upload(FRAMES[kept:])
    assert server.spool.content(UPDATE) == CONTENT


async def test_an_upload_of_something_else_than_announced_is_refused_and_dropped(server: Server) -> None:
    east = server.client("east")
    message = server.ask(EAST)
    lie = Blob(blob_id(b"another"), len(CONTENT))
    await east.open_upload(message, lie)
    with pytest.raises(BlobMismatchError):
        await east.upload(FRAMES, lie)
    assert list(server.spool.folder.iterdir()) == []


async def test_nobody_uploads_for_another_site_s_work_or_without_announcing_it(server: Server) -> None:
    east, west = server.client("east"), server.client("west")
    message = server.ask(EAST)
    with pytest.raises(MessageUnknownError):
        await west.open_upload(message)
    with pytest.raises(MessageUnknownError):
        await east.upload(FRAMES)
    await east.open_upload(message)
    with pytest.raises(MessageUnknownError):
        await west.upload(FRAMES)
    with pytest.raises(MessageUnknownError):
        await east.open_upload(MessageId(b"\x07" * 32))
    with pytest.raises(FrameError):
        await east.upload([])
    assert list(server.spool.folder.iterdir()) == []


async def test_a_malformed_announcement_is_refused(server: Server) -> None:
    east = server.client("east")
    message = server.ask(EAST)
    for blob in (common_pb2.Blob(id=b"x", size=1), common_pb2.Blob(id=bytes(32), size=2**60)):
        with pytest.raises(FrameError), refusals():
            await east.stub.OpenUpload(rounds_pb2.OpenUploadRequest(message_id=message, blob=blob))


async def test_an_upload_that_ends_after_its_round_leaves_nothing(server: Server) -> None:
    east = server.client("east")
    message = server.ask(EAST)
    await east.open_upload(message)
    call = await begun(east)
    await server.until(lambda: list(server.spool.folder.glob("*.part")))
    await server.mailbox.withdraw([message])
    for frame in FRAMES[2:]:
        await call.write(rounds_pb2.UploadFrame(frame=frame_to_proto(frame)))
    await call.done_writing()
    with pytest.raises(QuorateError), refusals():
        await call
    assert list(server.spool.folder.iterdir()) == []


async def test_a_site_cannot_have_removed_what_it_uploads_a_second_time(server: Server) -> None:
    east = server.client("east")
    needed = server.spool.put([CONTENT])
    message = server.ask(EAST, blobs=(needed,))
    await east.open_upload(message)
    assert (await east.upload(FRAMES[-1:])).complete
    await server.mailbox.withdraw([message])
    assert server.spool.has(needed)


async def test_uploads_wait_for_a_slot_and_a_stalled_one_gives_its_slot_back(tmp_path: Path) -> None:
    async with open_server(tmp_path, slots=1, idle_s=0.3) as server:
        east, west = server.client("east"), server.client("west")
        other = bytes(1000) + CONTENT
        first, second = server.ask(EAST), server.ask(WEST)
        await east.open_upload(first)
        await west.open_upload(second, Blob(blob_id(other), len(other)))
        stalled = east.stub.Upload()
        await stalled.write(rounds_pb2.UploadFrame(blob_id=UPDATE.id, frame=frame_to_proto(FRAMES[0])))
        waiting = asyncio.create_task(west.upload(cut([other]), Blob(blob_id(other), len(other))))
        with pytest.raises(TransportError, match="stood still"), refusals():
            await stalled
        async with asyncio.timeout(PATIENCE_S):
            assert (await waiting).complete
        ended = {outcome: server.metric("uploads_total", outcome=outcome) for outcome in UploadOutcome}
        assert ended == {"complete": 1, "stalled": 1, "broken_off": 0}


async def test_no_more_uploads_than_slots_are_taken_at_once(tmp_path: Path) -> None:
    async with open_server(tmp_path, slots=2) as server:
        clients = [server.client(f"site-{number}") for number in range(4)]
        calls = []
        for client in clients:
            message = server.ask(client.keys.name)
            await client.open_upload(message)
            calls.append(await begun(client))

        def arriving() -> int:
            return len(list(server.spool.folder.glob("*.part")))

        await server.until(lambda: arriving() == 2)
        for call in calls:
            for frame in FRAMES[2:]:
                await call.write(rounds_pb2.UploadFrame(frame=frame_to_proto(frame)))
            await call.done_writing()
        async with asyncio.timeout(PATIENCE_S):
            assert all(await asyncio.gather(*calls))
        assert arriving() == 0
        assert server.spool.content(UPDATE) == CONTENT


async def test_a_site_that_comes_back_before_its_broken_upload_is_noticed_does_not_spoil_it(tmp_path: Path) -> None:
    async with open_server(tmp_path, idle_s=0.3) as server:
        east = server.client("east")
        message = server.ask(EAST)
        await east.open_upload(message)
        stalled = await begun(east)
        opened = await east.open_upload(message)
        assert opened.next_frame in (0, 2)
        assert (await east.upload(FRAMES[opened.next_frame :])).complete
        assert server.spool.content(UPDATE) == CONTENT
        stalled.cancel()


# --- downloads ---


async def test_a_site_downloads_what_its_work_refers_to_from_any_frame_on(server: Server) -> None:
    east = server.client("east")
    total = server.spool.put([CONTENT])
    server.ask(EAST, blobs=(total,))
    assert await east.download(total) == FRAMES
    assert await east.download(total, 2) == FRAMES[2:]
    assert await east.download(total, 99) == []


async def test_nobody_downloads_what_is_not_part_of_its_work(server: Server) -> None:
    east, west = server.client("east"), server.client("west")
    total, private = server.spool.put([CONTENT]), server.spool.put([b"west's own update"])
    message = server.ask(EAST, blobs=(total,))
    for client, blob in ((west, total), (east, private)):
        with pytest.raises(BlobMissingError):
            await client.download(blob)
    await server.mailbox.take(EAST, Reply(message))
    with pytest.raises(BlobMissingError):
        await east.download(total)


# --- studies ---


async def test_a_site_sees_its_studies_and_no_others_and_answers_with_its_own_key(server: Server) -> None:
    east, west = server.client("east"), server.client("west")
    mine = server.registry.publish(a_study(east.keys, west.keys, name="ours"))
    server.registry.publish(a_study(west.keys, name="theirs"))
    with refusals():
        listed = await east.stub.ListStudies(rounds_pb2.SiteStudiesRequest())
    assert [study.digest for study in listed.studies] == [mine.digest]
    assert [member.name for member in listed.studies[0].members] == ["east", "west"]

    signature = east.keys.signing.sign(b"quorate/answer/v1\x00approved\x00" + mine.digest)
    answer = rounds_pb2.AnswerStudyRequest(digest=mine.digest, answer="approved", signature=signature)
    with refusals():
        await east.stub.AnswerStudy(answer)
    (recorded,) = server.registry.study("ours").answers
    assert (recorded.site, recorded.answer, recorded.signature) == ("east", "approved", signature)


@pytest.mark.parametrize("signed", ["by another site", "for another answer", "for another study", "not at all"])
async def test_an_answer_that_the_site_did_not_sign_is_refused(server: Server, signed: str) -> None:
    east, west = server.client("east"), server.client("west")
    record = server.registry.publish(a_study(east.keys, west.keys))
    text = {
        "for another answer": b"quorate/answer/v1\x00rejected\x00" + record.digest,
        "for another study": b"quorate/answer/v1\x00approved\x00" + bytes(32),
    }.get(signed, b"quorate/answer/v1\x00approved\x00" + record.digest)
    key = west.keys.signing if signed == "by another site" else east.keys.signing
    signature = b"" if signed == "not at all" else key.sign(text)
    request = rounds_pb2.AnswerStudyRequest(digest=record.digest, answer="approved", signature=signature)
    with pytest.raises(KeyMismatchError), refusals():
        await east.stub.AnswerStudy(request)
    assert server.registry.study("malignancy").answers == ()


# --- attestation ---


async def test_a_site_gets_the_evidence_that_it_asked_for_and_nobody_else(server: Server) -> None:
    east, operator = server.client("east"), server.operator()
    request = attestation_pb2.AttestRequest(run=RUN, nonce=b"n" * 32)
    evidence, identity = answer_from_proto(await east.stub.Attest(request))
    assert (evidence.raw, identity) == (b"east" + b"n" * 32, MACHINE.identity)
    with pytest.raises(WrongRoleError), refusals():
        await operator.stub.Attest(request)
    with pytest.raises(AttestationError), refusals():
        await east.stub.Attest(attestation_pb2.AttestRequest(run="malignancy-other", nonce=b"n" * 32))
