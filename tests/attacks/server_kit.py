"""A whole server on a loopback port, and sites whose side of the rounds service a test writes by hand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from quorate import __version__
from quorate.errors import AttestationError, QuorateError
from quorate.identity import RunId, SiteName
from quorate.rounds.blobs import Blob, BlobId, blob_id, cut
from quorate.rounds.instruction import Instruction, MessageId, Phase, Reply, message_id
from quorate.v1 import operator_pb2_grpc, rounds_pb2, rounds_pb2_grpc
from quorate.wire.messages import blob_to_proto, frame_to_proto, reply_to_proto
from quorate.wire.refusal import error_from_call
from quorate_server.cli.founding import found
from quorate_server.consortium.ca import Authority, Issued
from quorate_server.consortium.config import ServerConfig
from quorate_server.consortium.server_certificate import ServerIdentity
from quorate_server.daemon import Server
from quorate_server.services.access import AccessGuard
from quorate_server.services.open_calls import MAX_CALLS
from quorate_server.services.rounds_service import RoundsService
from tests.patience import PATIENCE_S
from tests.server.door import CONSORTIUM, NAME_OVERRIDE, SiteKeys

SMALL_WINDOW = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536))
"""How much a peer that does not read lets the other one send."""
RUN = RunId("malignancy-0a1b2c")
NOW = time.time()


class HandSite:
    """A site's side of the rounds service, with a real certificate and without manners."""

    def __init__(self, keys: SiteKeys, channel: grpc.aio.Channel) -> None:
        self.keys = keys
        self.name = keys.name
        self.channel = channel
        self.stub: Any = rounds_pb2_grpc.RoundsStub(channel)
        self.call: Any = None

    async def connect(self, session: int = 1, version: str = __version__) -> Any:
        """The first answer of the server: a welcome, or a refusal."""
        self.call = self.stub.Connect(timeout=PATIENCE_S)
        await self.say(hello=rounds_pb2.SiteHello(session=session, version=version))
        return await self.call.read()

    async def say(self, **event: Any) -> None:
        await self.call.write(rounds_pb2.SiteEvent(**event))

    async def reply(self, reply: Reply) -> None:
        await self.say(reply=reply_to_proto(reply))

    async def next(self, kind: str) -> Any:
        """The next event of a kind; others are passed over."""
        while True:
            event = await self.call.read()
            assert event is not grpc.aio.EOF, f"the stream ended before a {kind} came"
            if event.WhichOneof("event") == kind:
                return getattr(event, kind)

    async def announce(self, message: MessageId, blob: Blob) -> Any:
        request = rounds_pb2.OpenUploadRequest(message_id=message, blob=blob_to_proto(blob))
        return await self.stub.OpenUpload(request, timeout=PATIENCE_S)

    async def upload(self, message: MessageId, content: bytes) -> Blob:
        """Announce and upload; the reference without inline content."""
        blob = reference(content)
        opened = await self.announce(message, blob)
        if not opened.complete:
            await self.stub.Upload(iter(frames_of(content)), timeout=PATIENCE_S)
        return blob


@dataclass
class Consortium:
    """A running server and what its sites need to connect."""

    server: Server
    config: ServerConfig
    authority: Authority
    port: int
    channels: list[grpc.aio.Channel] = field(default_factory=list)

    def enrol(self, name: str) -> tuple[SiteKeys, Issued]:
        """A site that has joined, by the registry alone."""
        keys = SiteKeys.make(name)
        bootstrap = self.authority.issue_bootstrap(keys.name, NOW, 86_400)
        registry = self.server.registry
        registry.invite(keys.name, bootstrap.issued, 2**40, keep_keys=False)
        issued = self.authority.issue_site(keys.name, keys.csr(), NOW, 30)
        return keys, registry.redeem(bootstrap.issued.serial, keys.member, keys.tls_digest(), issued)

    def site(self, name: str) -> HandSite:
        keys, issued = self.enrol(name)
        return HandSite(keys, self.channel(issued.pem, keys.key_pem()))

    def again(self, site: HandSite) -> HandSite:
        """The same site with a certificate and a connection beside those that it has."""
        issued = self.authority.issue_site(site.name, site.keys.csr(), NOW, 30)
        self.server.registry.record_certificate(issued)
        return HandSite(site.keys, self.channel(issued.pem, site.keys.key_pem()))

    def operator(self) -> Any:
        made = self.authority.issue_operator("mallory", NOW)
        self.server.registry.record_certificate(made.issued)
        return operator_pb2_grpc.OperatorStub(self.channel(made.issued.pem, made.key_pem))  # type: ignore[no-untyped-call]

    def channel(self, certificate_pem: bytes, key_pem: bytes) -> grpc.aio.Channel:
        credentials = grpc.ssl_channel_credentials(self.authority.ca_pem, key_pem, certificate_pem)
        options = (*NAME_OVERRIDE, *SMALL_WINDOW)
        channel = grpc.aio.secure_channel(f"127.0.0.1:{self.port}", credentials, options=options)
        self.channels.append(channel)
        return channel

    def ask(
        self,
        site: SiteName,
        phase: Phase = Phase.UPLOAD,
        number: int = 1,
        taken: list[Reply] | None = None,
        refers_to: frozenset[BlobId] = frozenset(),
        **limits: Any,
    ) -> MessageId:
        """An instruction as the server's daemon sends it for a run's worker."""
        if not any(record.run == RUN for record in self.server.journal.runs()):
            self.server.journal.create_run(RUN, bytes(32))
        name = message_id(RUN, number, phase, 0, site)
        instruction = Instruction(name, RUN, number, phase, 0, bytes(32), 60.0)
        heard = [] if taken is None else taken
        self.server.mailbox.send(site, instruction, refers_to, lambda _, reply: heard.append(reply), **limits)
        return name

    def has(self, blob: Blob) -> bool:
        return self.server.spool.has(blob)


@asynccontextmanager
async def impatient_door(consortium: Consortium, most_calls: int = MAX_CALLS) -> AsyncIterator[None]:
    """Another door of the same server, with the same rounds behind it and less patience."""
    server = consortium.server
    door = grpc.aio.server(interceptors=[AccessGuard(CONSORTIUM, server.registry, most_calls)])
    service = RoundsService(
        consortium=CONSORTIUM,
        heartbeat_s=60.0,
        upload_slots=4,
        sessions=server.sessions,
        mailbox=server.mailbox,
        registry=server.registry,
        spool=server.spool,
        metrics=server.metrics,
        attest=no_machine,
        unread_s=0.3,
        hello_s=0.3,
        upload_idle_s=0.3,
    )
    rounds_pb2_grpc.add_RoundsServicer_to_server(service, door)  # type: ignore[no-untyped-call]
    identity = ServerIdentity(consortium.authority, "localhost", time.time)
    consortium.port = door.add_secure_port("127.0.0.1:0", identity.server_credentials())
    await door.start()
    try:
        yield
    finally:
        await door.stop(None)


@asynccontextmanager
async def open_consortium(folder: Path, settings: str = "") -> AsyncIterator[Consortium]:
    found(folder, consortium=CONSORTIUM, address="localhost:8443", listen="127.0.0.1:0", now=time.time())
    with (folder / "server.toml").open("a") as file:
        file.write('metrics_listen = ""\n' + settings)
    config = ServerConfig.read(folder)
    server = Server(config)
    port = await server.start()
    consortium = Consortium(server, config, Authority.load(config.ca_dir, CONSORTIUM), port)
    try:
        yield consortium
    finally:
        for channel in consortium.channels:
            await channel.close()
        await server.stop()


async def no_machine(site: SiteName, run: RunId, nonce: bytes) -> bytes:
    raise AttestationError("No machine adds here")


def reference(content: bytes) -> Blob:
    return Blob(blob_id(content), len(content))


def frames_of(content: bytes, name: BlobId | None = None) -> Sequence[rounds_pb2.UploadFrame]:
    return [
        rounds_pb2.UploadFrame(blob_id=b"" if frame.index else (name or blob_id(content)), frame=frame_to_proto(frame))
        for frame in cut([content])
    ]


async def refusal(call: Any) -> QuorateError:
    """With what a call is refused."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            await call
    except grpc.aio.AioRpcError as failure:
        return error_from_call(failure, "")
    raise AssertionError("the call was not refused")


async def until(found: Callable[[], bool]) -> None:
    """Wait for something that happens behind the line."""
    async with asyncio.timeout(PATIENCE_S):
        while not found():
            await asyncio.sleep(0.01)
