"""A real door on a loopback port: our services behind the guard, with a small stand-in for runs."""

# ruff: noqa: N802  # handlers have the names of the proto

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from quorate.errors import InputError, NotFoundError, WrongStateError
from quorate.identity import Member, RunId, SiteName, sealing_proof
from quorate.rounds.run import Progress, RoundResult, RunState, RunView, SiteProgress
from quorate.study.study import Study
from quorate.v1 import common_pb2, enrolment_pb2_grpc, operator_pb2_grpc, rounds_pb2, rounds_pb2_grpc
from quorate_server.cli.founding import found
from quorate_server.consortium.ca import Authority, Credential, Issued, public_key_bytes
from quorate_server.consortium.config import ServerConfig
from quorate_server.consortium.registry import Registry
from quorate_server.consortium.server_certificate import ServerIdentity
from quorate_server.runs.sessions import Session, Sessions
from quorate_server.services.access import AccessGuard, caller
from quorate_server.services.enrolment_service import EnrolmentService
from quorate_server.services.operator_service import OperatorService
from quorate_server.storage.database import open_database
from quorate_server.storage.journal import Journal

CONSORTIUM = "north-sea"
NAME_OVERRIDE = (("grpc.ssl_target_name_override", "quorate-server"),)


class Clock:
    """Starts at the real time, because the handshake reads the machine's clock, and moves when it is told to."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now

    def forward(self, *, days: float) -> None:
        self.now += days * 86_400


class FakeRuns:
    """Runs that move when a test says so."""

    def __init__(self) -> None:
        self.views: dict[RunId, RunView] = {}
        self.moved = asyncio.Condition()
        self.model_path: Path | None = None
        self.watches_to_cut_short = 0

    async def start(self, study: Study) -> RunView:
        run = RunId(f"{study.name}-{len(self.views):06x}")
        view = RunView(
            run=run,
            study=study.name,
            study_digest=study.digest(),
            kind=study.kind,
            protection=study.protection.mode,
            state=RunState.RUNNING,
            rounds=study.rounds.count,
            round_number=1,
            phase="train",
            sites=tuple(SiteProgress(site, Progress.WORKING) for site in study.site_names),
            started_unix_s=1_800_000_000.0,
            changed_unix_s=1_800_000_000.0,
        )
        self.views[run] = view
        return view

    async def pause(self, run: RunId) -> RunView:
        return await self.move(run, state=RunState.PAUSED, reason=WrongStateError("An operator paused the run"))

    async def resume(self, run: RunId) -> RunView:
        return await self.move(run, state=RunState.RUNNING, reason=None)

    async def stop(self, run: RunId) -> RunView:
        return await self.move(run, state=RunState.STOPPED, reason=None)

    async def close_round(self, run: RunId, **metrics: float) -> RunView:
        """One more round counts; with the last one the run is complete."""
        view = self.view(run)
        number = len(view.results) + 1
        result = RoundResult(number, tuple(site.site for site in view.sites), metrics, {"train": 0.25})
        over = number == view.rounds
        return await self.move(
            run,
            results=(*view.results, result),
            round_number=number,
            state=RunState.COMPLETED if over else view.state,
            model_available=over,
        )

    async def move(self, run: RunId, **changed: Any) -> RunView:
        async with self.moved:
            self.views[run] = replace(self.view(run), **changed)
            self.moved.notify_all()
        return self.views[run]

    def list(self) -> list[RunView]:
        return list(self.views.values())

    def view(self, run: RunId) -> RunView:
        if run not in self.views:
            raise NotFoundError(f"There is no run {run}")
        return self.views[run]

    async def changes(self, run: RunId) -> AsyncIterator[RunView]:
        while True:
            view = self.view(run)
            yield view
            if view.state.is_over:
                return
            if self.watches_to_cut_short > 0:
                self.watches_to_cut_short -= 1
                return
            async with self.moved:
                await self.moved.wait_for(lambda seen=view: self.view(run) is not seen)

    async def report(self, run: RunId, format: str) -> bytes:
        view = self.view(run)
        if format not in ("html", "json"):
            raise InputError("There is no such form of a report")
        return f"<p>{view.run}".encode() if format == "html" else b"{}"

    def model(self, run: RunId) -> Path:
        if self.model_path is None:
            raise WrongStateError(f"The run {run} has no released model")
        return self.model_path


class EchoRounds(rounds_pb2_grpc.RoundsServicer):
    """Rounds that tell the caller who it is, in each of the forms that a handler can have."""

    async def Connect(self, requests: Any, context: Any) -> None:
        async for event in requests:
            await context.write(rounds_pb2.ServerEvent(welcome=rounds_pb2.Welcome(consortium=caller().subject.name)))
            if event.HasField("goodbye"):
                raise NotFoundError("Nobody of that name is here", expected="x" * 20_000)

    async def OpenUpload(self, request: Any, context: Any) -> rounds_pb2.OpenUploadReply:
        raise RuntimeError("a patient's name")

    async def Upload(self, requests: Any, context: Any) -> rounds_pb2.UploadReply:
        return rounds_pb2.UploadReply(complete=len([frame async for frame in requests]) > 1)

    async def Download(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for index in range(3):
            yield common_pb2.Frame(index=index, data=caller().subject.name.encode())
        if request.first_frame:
            raise NotFoundError("No such frame")

    async def ListStudies(self, request: Any, context: Any) -> rounds_pb2.SiteStudiesReply:
        return rounds_pb2.SiteStudiesReply()

    async def AnswerStudy(self, request: Any, context: Any) -> rounds_pb2.AnswerStudyReply:
        return rounds_pb2.AnswerStudyReply()

    async def ReportReadiness(self, request: Any, context: Any) -> rounds_pb2.ReportReadinessReply:
        return rounds_pb2.ReportReadinessReply()


@dataclass
class SiteKeys:
    """What a site makes for itself."""

    name: SiteName
    tls: ec.EllipticCurvePrivateKey
    signing: Ed25519PrivateKey

    @classmethod
    def make(cls, name: str) -> SiteKeys:
        return cls(SiteName(name), ec.generate_private_key(ec.SECP256R1()), Ed25519PrivateKey.generate())

    @property
    def member(self) -> Member:
        sealing = bytes(range(32))
        return Member(
            self.name, self.signing.public_key().public_bytes_raw(), sealing, sealing_proof(self.signing, sealing)
        )

    def csr(self, common_name: str = "anybody") -> bytes:
        builder = x509.CertificateSigningRequestBuilder().subject_name(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        )
        return builder.sign(self.tls, hashes.SHA256()).public_bytes(Encoding.PEM)

    def tls_digest(self) -> bytes:
        return hashlib.sha256(public_key_bytes(self.tls.public_key())).digest()

    def key_pem(self) -> bytes:
        return self.tls.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@dataclass
class Door:
    """An open door and everything behind it."""

    state_dir: Path
    config: ServerConfig
    authority: Authority
    registry: Registry
    clock: Clock
    runs: FakeRuns
    sessions: Sessions
    port: int = 0
    refused: list[str] = field(default_factory=list)
    """The codes of the calls that were refused."""

    def credential(self, issued: Issued, key_pem: bytes) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.authority.ca_pem, key_pem, issued.pem)

    def channel(self, credential: grpc.ChannelCredentials) -> grpc.aio.Channel:
        return grpc.aio.secure_channel(f"localhost:{self.port}", credential, options=NAME_OVERRIDE)

    def operator(self) -> grpc.ChannelCredentials:
        made = self.authority.issue_operator("alice", self.clock())
        self.registry.record_certificate(made.issued)
        return self.credential(made.issued, made.key_pem)

    def bootstrap(self, site: str, days: int = 7, *, keep_keys: bool = False) -> Credential:
        """An invitation, as the registry knows it."""
        made = self.authority.issue_bootstrap(SiteName(site), self.clock(), days * 86_400)
        self.registry.invite(SiteName(site), made.issued, self.clock() + days * 86_400, keep_keys=keep_keys)
        return made

    def invitation(self, site: str, days: int = 7) -> grpc.ChannelCredentials:
        made = self.bootstrap(site, days)
        return self.credential(made.issued, made.key_pem)

    def enrol(self, name: str) -> tuple[SiteKeys, Issued]:
        """A site that has joined."""
        keys = SiteKeys.make(name)
        bootstrap = self.bootstrap(name)
        issued = self.authority.issue_site(keys.name, keys.csr(), self.clock(), 30)
        return keys, self.registry.redeem(bootstrap.issued.serial, keys.member, keys.tls_digest(), issued)

    def site(self, name: str) -> grpc.ChannelCredentials:
        keys, issued = self.enrol(name)
        return self.credential(issued, keys.key_pem())

    async def connect(self, name: str, session: int = 1) -> Session:
        """A site that has its stream open."""
        return await self.sessions.attach(SiteName(name), session, "0.1.0")


def told(session: Session) -> list[str]:
    """What waits for a site: the events' names, of a refusal its code, and ``end``."""
    events = []
    while not session.outgoing.empty():
        event = session.outgoing.get_nowait()
        name = event.WhichOneof("event") if event else "end"
        events.append(event.refused.code if name == "refused" else name)
    return events


@asynccontextmanager
async def open_door(state_dir: Path, settings: str = "") -> AsyncIterator[Door]:
    """``settings`` are more lines of server.toml."""
    clock = Clock()
    found(state_dir, consortium=CONSORTIUM, address="localhost:8443", listen="127.0.0.1:0", now=clock())
    with (state_dir / "server.toml").open("a") as file:
        file.write(settings)
    config = ServerConfig.read(state_dir)
    authority = Authority.load(config.ca_dir, CONSORTIUM)
    engine = open_database(config.engine_url)
    journal = Journal(engine, clock)
    door = Door(
        state_dir,
        config,
        authority,
        Registry(engine, clock),
        clock,
        FakeRuns(),
        Sessions(journal, 3600.0),
    )
    server = grpc.aio.server(interceptors=[AccessGuard(CONSORTIUM, door.registry, refused=door.refused.append)])
    enrolment_pb2_grpc.add_EnrolmentServicer_to_server(
        EnrolmentService(
            authority=authority,
            registry=door.registry,
            sessions=door.sessions,
            certificate_days=config.certificate_days,
            clock=clock,
        ),
        server,
    )
    operator_pb2_grpc.add_OperatorServicer_to_server(
        OperatorService(
            config=config,
            authority=authority,
            registry=door.registry,
            runs=door.runs,
            sessions=door.sessions,
            clock=clock,
        ),
        server,
    )
    rounds_pb2_grpc.add_RoundsServicer_to_server(EchoRounds(), server)
    identity = ServerIdentity(authority, "localhost", clock)
    door.port = server.add_secure_port("127.0.0.1:0", identity.server_credentials())
    await server.start()
    try:
        yield door
    finally:
        await server.stop(None)
        journal.close()
        engine.dispose()


@contextmanager
def door_in_thread(state_dir: Path, settings: str = "") -> Iterator[tuple[Door, asyncio.AbstractEventLoop]]:
    """The same for callers that block: the door lives in its own thread, with the loop that is given."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    opened = open_door(state_dir, settings)
    try:
        door = asyncio.run_coroutine_threadsafe(opened.__aenter__(), loop).result()
        try:
            yield door, loop
        finally:
            asyncio.run_coroutine_threadsafe(opened.__aexit__(None, None, None), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def a_study(*sites: SiteKeys, name: str = "malignancy", **changes: Any) -> Study:
    """A valid study of these sites."""
    content: dict[str, Any] = {
        "consortium": CONSORTIUM,
        "name": name,
        "purpose": "Tell malignant from benign",
        "task": {"name": "tabular-classifier", "digest": "ab" * 32, "parameters": {"model": "logistic"}},
        "rounds": {"count": 3, "quorum": 1},
        "protection": {"mode": "none"},
        "sites": [{"name": site.name, "signing_key": site.member.signing_key.hex()} for site in sites],
    }
    return Study.model_validate(content | changes)
