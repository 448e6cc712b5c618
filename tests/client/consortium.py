"""A small real server for the tests of a site: its own authority, mutual TLS, and the services that a site calls.

It takes what sites say and says what a test tells it to; it has no rounds. What it checks, the real one checks too.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import NameOID

from quorate.errors import (
    BlobMissingError,
    InvitationSpentError,
    MessageUnknownError,
    QuorateError,
    WrongRoleError,
)
from quorate.identity import Member, Role, SiteName, Subject
from quorate.rounds.blobs import Blob, BlobId
from quorate.rounds.instruction import Instruction
from quorate.rounds.spool import Spool
from quorate.study.approval import Approval
from quorate.study.readiness import Readiness
from quorate.study.study import Study
from quorate.v1 import enrolment_pb2, enrolment_pb2_grpc, rounds_pb2, rounds_pb2_grpc
from quorate.wire.messages import (
    blob_from_proto,
    frame_from_proto,
    frame_to_proto,
    instruction_to_proto,
    member_from_proto,
    member_to_proto,
    readiness_from_proto,
)
from quorate.wire.refusal import DETAIL_KEY, detail_of, status_of
from tests.patience import PATIENCE_S

NAME = "testers"
DAY_S = 86_400.0


class Authority:
    """Issues certificates for one consortium."""

    def __init__(self, consortium: str = NAME) -> None:
        self.consortium = consortium
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"authority of {consortium}")])
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        certificate = (
            self._builder(self._name, self._key.public_key(), -DAY_S, 10 * DAY_S)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.pem = certificate.public_bytes(serialization.Encoding.PEM)

    def issue(
        self, subject: Subject, key: Any, starts_s: float = -DAY_S, ends_s: float = DAY_S, dns: str = ""
    ) -> bytes:
        """A certificate that is valid from and to so many seconds from now."""
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(subject.uri())]
        if dns:
            names += [x509.DNSName(dns), x509.IPAddress(ip_address("127.0.0.1"))]
        own = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{subject.role} {subject.name}")])
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            self._builder(own, key, starts_s, ends_s)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(identifier, critical=False)
            .sign(self._key, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
        )

    def credential(self, role: Role, name: str, ends_s: float = DAY_S, dns: str = "") -> tuple[bytes, bytes]:
        """A fresh key and its certificate, PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return pem, self.issue(Subject(self.consortium, role, name), key.public_key(), -2 * DAY_S, ends_s, dns)

    def invitation(self, site: str, address: str, expires_s: float = DAY_S) -> dict[str, Any]:
        """The content of an invitation file."""
        key, certificate = self.credential(Role.BOOTSTRAP, site, expires_s)
        return {
            "format": "quorate.invitation/1",
            "consortium": self.consortium,
            "address": address,
            "site": site,
            "ca_pem": self.pem.decode(),
            "certificate_pem": certificate.decode(),
            "key_pem": key.decode(),
            "expires_unix_s": int(time.time() + expires_s),
        }

    def _builder(self, name: x509.Name, key: Any, starts_s: float, ends_s: float) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(seconds=starts_s))
            .not_valid_after(now + timedelta(seconds=ends_s))
        )


class Visit:
    """One connection of a site, as the server sees it."""

    def __init__(self, hello: rounds_pb2.SiteHello) -> None:
        self.hello = hello
        self.certificate_pem = b""
        self._came: asyncio.Queue[rounds_pb2.SiteEvent | None] = asyncio.Queue()
        self.outgoing: asyncio.Queue[rounds_pb2.ServerEvent | None] = asyncio.Queue()

    def came(self, event: rounds_pb2.SiteEvent | None) -> None:
        self._came.put_nowait(event)

    async def next(self, kind: str) -> Any:
        """The next event of that kind; others are passed over."""
        async with asyncio.timeout(PATIENCE_S):
            while (event := await self._came.get()) is not None:
                if event.WhichOneof("event") == kind:
                    return getattr(event, kind)
        raise AssertionError(f"the site left before it sent a {kind}")

    async def end(self) -> None:
        """Wait until the site is gone."""
        async with asyncio.timeout(PATIENCE_S):
            while await self._came.get() is not None:
                pass

    def drain(self) -> list[str]:
        """The kinds of all events that have come and were not looked at."""
        found = []
        while not self._came.empty():
            event = self._came.get_nowait()
            found.append(event.WhichOneof("event") if event is not None else "end")
        return found

    def send(self, **event: Any) -> None:
        self.outgoing.put_nowait(rounds_pb2.ServerEvent(**event))

    def instruct(self, instruction: Instruction) -> None:
        self.send(instruction=instruction_to_proto(instruction))

    def acknowledge(self, message: bytes) -> None:
        self.send(ack=rounds_pb2.ReplyAck(message_ids=[message]))

    def refuse(self, error: QuorateError) -> None:
        self.send(refused=detail_of(error))
        self.hang_up()

    def hang_up(self) -> None:
        self.outgoing.put_nowait(None)


@dataclass
class Faults:
    """What goes wrong on purpose. Counters go down as the fault happens."""

    uploads_cut: int = 0
    downloads_cut: int = 0
    downloads_corrupted: int = 0
    downloads_truncated: int = 0
    answers_refused: QuorateError | None = None
    studies_refused: QuorateError | None = None
    welcome_refused: QuorateError | None = None
    redeem_answers_lost: int = 0


class Server(rounds_pb2_grpc.RoundsServicer, enrolment_pb2_grpc.EnrolmentServicer):
    """The services and what they remember."""

    def __init__(self, authority: Authority, folder: Path) -> None:
        self.authority = authority
        self.spool = Spool(folder)
        self.heartbeat_s = 1.0
        self.clock: Callable[[], float] = time.time
        self.certificate_ends_s = DAY_S
        self.faults = Faults()
        self.beats = True
        self.ledger_head: rounds_pb2.LedgerHead | None = None
        self.earlier_ledger_heads: list[rounds_pb2.LedgerHead] = []
        self.members: dict[str, Member] = {}
        self.redeemed: dict[bytes, bytes] = {}
        self.studies: list[Study] = []
        self.sign_as: dict[SiteName, Callable[[str, bytes], bytes]] = {}
        """How the other members sign an answer."""
        self.approvals: Iterable[Approval] = []
        """What is passed on with each study."""
        self.answers: list[tuple[bytes, str]] = []
        self.older_than_reports: Literal["", "with a guard", "without a guard"] = ""
        """Whether it is of a version that does not know ``ReportReadiness``, and who says so."""
        self.unknown_calls = 0
        self.reports: asyncio.Queue[tuple[bytes, Readiness]] = asyncio.Queue()
        self.visits: asyncio.Queue[Visit] = asyncio.Queue()
        self.expected: dict[bytes, Blob] = {}
        self.wanted: set[bytes] | None = None
        self.given_out: set[bytes] | None = None
        """The blobs that some instruction names, where the server looks at that."""
        self.frames_taken: list[int] = []
        self.frames_sent: list[int] = []

    async def visit(self) -> Visit:
        async with asyncio.timeout(PATIENCE_S):
            return await self.visits.get()

    # --- enrolment ---

    def Redeem(self, request: enrolment_pb2.RedeemRequest, context: Any) -> Any:  # noqa: N802
        with refusals(context):
            subject, invitation = _caller(context, Role.BOOTSTRAP)
            member = member_from_proto(request.member)
            known = self.redeemed.setdefault(invitation, member.signing_key)
            if known != member.signing_key:
                raise InvitationSpentError("The invitation was redeemed before, with other keys")
            self.members[member.name] = member
            issued = self._certify(subject.name, request.csr_pem)
            if self.faults.redeem_answers_lost:
                self.faults.redeem_answers_lost -= 1
                context.abort(grpc.StatusCode.UNAVAILABLE, "the line broke")
            return issued
        return None

    def Renew(self, request: enrolment_pb2.RenewRequest, context: Any) -> Any:  # noqa: N802
        with refusals(context):
            subject, _ = _caller(context, Role.SITE)
            return self._certify(subject.name, request.csr_pem)
        return None

    def _certify(self, site: str, csr_pem: bytes) -> enrolment_pb2.Certificate:
        request = x509.load_pem_x509_csr(csr_pem)
        assert request.is_signature_valid
        subject = Subject(self.authority.consortium, Role.SITE, site)
        pem = self.authority.issue(subject, request.public_key(), -1, self.certificate_ends_s)
        return enrolment_pb2.Certificate(
            certificate_pem=pem,
            ca_pem=self.authority.pem,
            consortium=self.authority.consortium,
            expires_unix_s=int(time.time() + self.certificate_ends_s),
        )

    # --- studies ---

    def ListStudies(self, request: Any, context: Any) -> Any:  # noqa: N802
        with refusals(context):
            _caller(context, Role.SITE)
            if self.faults.studies_refused is not None:
                raise self.faults.studies_refused
            return rounds_pb2.SiteStudiesReply(
                studies=[
                    rounds_pb2.SiteStudy(
                        digest=study.digest(),
                        canonical=study.canonical(),
                        members=[member_to_proto(self.members[name]) for name in study.site_names],
                        approvals=[
                            rounds_pb2.StudyApproval(site=each.site, signature=each.signature)
                            for each in self.approvals
                        ],
                    )
                    for study in self.studies
                ]
            )
        return None

    def AnswerStudy(self, request: rounds_pb2.AnswerStudyRequest, context: Any) -> Any:  # noqa: N802
        with refusals(context):
            subject, _ = _caller(context, Role.SITE)
            if self.faults.answers_refused is not None:
                raise self.faults.answers_refused
            signed = b"quorate/answer/v1\x00" + request.answer.encode() + b"\x00" + request.digest
            key = Ed25519PublicKey.from_public_bytes(self.members[subject.name].signing_key)
            key.verify(request.signature, signed)
            self.answers.append((request.digest, request.answer))
            return rounds_pb2.AnswerStudyReply()
        return None

    async def ReportReadiness(self, request: rounds_pb2.ReportReadinessRequest, context: Any) -> Any:  # noqa: N802
        _caller(context, Role.SITE)
        if self.older_than_reports:
            self.unknown_calls += 1
        if self.older_than_reports == "with a guard":
            await abort(context, WrongRoleError("This server does not offer this call to anybody"))
        elif self.older_than_reports == "without a guard":
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        self.reports.put_nowait((request.digest, readiness_from_proto(request.readiness)))
        return rounds_pb2.ReportReadinessReply()

    async def report(self) -> tuple[bytes, Readiness]:
        """The next one that comes."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.reports.get()

    # --- control ---

    async def Connect(self, requests: AsyncIterator[rounds_pb2.SiteEvent], context: Any) -> None:  # noqa: N802
        _, certificate = _caller(context, Role.SITE)
        first = await anext(aiter(requests))
        if self.faults.welcome_refused is not None:
            await context.write(rounds_pb2.ServerEvent(refused=detail_of(self.faults.welcome_refused)))
            return
        visit = Visit(first.hello)
        visit.certificate_pem = certificate
        welcome = rounds_pb2.Welcome(
            consortium=self.authority.consortium,
            heartbeat_s=self.heartbeat_s,
            server_unix_s=self.clock(),
            ledger_head=self.ledger_head,
            earlier_ledger_heads=self.earlier_ledger_heads,
        )
        await context.write(rounds_pb2.ServerEvent(welcome=welcome))
        self.visits.put_nowait(visit)
        beside = [asyncio.create_task(_read(requests, visit)), asyncio.create_task(self._beat(visit))]
        try:
            while (event := await visit.outgoing.get()) is not None:
                await context.write(event)
        finally:
            for task in beside:
                task.cancel()
            await asyncio.wait(beside)
            visit.came(None)

    async def _beat(self, visit: Visit) -> None:
        while self.beats:
            visit.send(heartbeat=rounds_pb2.Heartbeat(sent_unix_s=self.clock()))
            await asyncio.sleep(self.heartbeat_s / 2)

    # --- bulk data ---

    async def OpenUpload(self, request: rounds_pb2.OpenUploadRequest, context: Any) -> Any:  # noqa: N802
        if self.wanted is not None and request.message_id not in self.wanted:
            await abort(context, MessageUnknownError("No reply to this message is expected"))
        blob = blob_from_proto(request.blob)
        self.expected[bytes(blob.id)] = blob
        writer = self.spool.writer(blob)
        return rounds_pb2.OpenUploadReply(next_frame=writer.next_frame, complete=self.spool.has(blob))

    async def Upload(self, requests: AsyncIterator[rounds_pb2.UploadFrame], context: Any) -> Any:  # noqa: N802
        stream = aiter(requests)
        first = await anext(stream)
        writer = self.spool.writer(self.expected[first.blob_id])
        try:
            writer.take(frame_from_proto(first.frame))
            self.frames_taken.append(first.frame.index)
            async for message in stream:
                if self.faults.uploads_cut and message.frame.index >= 2:
                    self.faults.uploads_cut -= 1
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "the line broke")
                writer.take(frame_from_proto(message.frame))
                self.frames_taken.append(message.frame.index)
            writer.finish()
        except QuorateError as error:
            await abort(context, error)
        finally:
            writer.close()
        return rounds_pb2.UploadReply(complete=True)

    async def Download(self, request: rounds_pb2.DownloadRequest, context: Any) -> None:  # noqa: N802
        if self.given_out is not None and request.blob_id not in self.given_out:
            await abort(context, BlobMissingError("There is no such work"))
        blob = Blob(BlobId(request.blob_id), self.spool.path(BlobId(request.blob_id)).stat().st_size)
        for frame in self.spool.read(blob, request.first_frame):
            proto = frame_to_proto(frame)
            if self.faults.downloads_corrupted:
                self.faults.downloads_corrupted -= 1
                proto.data = bytes(len(frame.data))
            if self.faults.downloads_truncated and frame.index == 1:
                self.faults.downloads_truncated -= 1
                return
            if self.faults.downloads_cut and frame.index == 2:
                self.faults.downloads_cut -= 1
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the line broke")
            self.frames_sent.append(frame.index)
            await context.write(proto)


async def _read(requests: AsyncIterator[rounds_pb2.SiteEvent], visit: Visit) -> None:
    with contextlib.suppress(grpc.RpcError):
        async for event in requests:
            visit.came(event)
    visit.hang_up()


def _caller(context: Any, role: Role) -> tuple[Subject, bytes]:
    pem = context.auth_context()["x509_pem_cert"][0]
    subject = Subject.of(x509.load_pem_x509_certificate(pem))
    if subject.role is not role:
        raise WrongRoleError(f"This call is not for a {subject.role}")
    return subject, pem


@contextlib.contextmanager
def refusals(context: Any) -> Any:
    """For synchronous calls: a refusal travels as the real server sends it."""
    try:
        yield
    except QuorateError as error:
        context.set_trailing_metadata(((DETAIL_KEY, detail_of(error).SerializeToString()),))
        context.set_code(status_of(error))
        context.set_details(error.what)


async def abort(context: Any, error: QuorateError) -> None:
    await context.abort(status_of(error), error.what, ((DETAIL_KEY, detail_of(error).SerializeToString()),))


def server_credentials(authority: Authority, issuer: Authority | None = None) -> grpc.ServerCredentials:
    """TLS of a server that lets in the sites of ``authority``; ``issuer`` made its own certificate."""
    key, certificate = (issuer or authority).credential(Role.SERVER, "quorate-server", dns="quorate-server")
    return grpc.ssl_server_credentials([(key, certificate)], authority.pem, require_client_auth=True)


@dataclass
class RunningServer:
    """A server at a port, for tests that have an event loop."""

    services: Server
    port: int
    _server: Any = field(repr=False)
    certificate_pem: bytes = b""

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def stop(self) -> None:
        await self._server.stop(None)


async def start_server(
    services: Server, port: int = 0, issuer: Authority | None = None, name: str = "quorate-server"
) -> RunningServer:
    server = grpc.aio.server(migration_thread_pool=ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
    rounds_pb2_grpc.add_RoundsServicer_to_server(services, server)
    enrolment_pb2_grpc.add_EnrolmentServicer_to_server(services, server)
    key, certificate = (issuer or services.authority).credential(Role.SERVER, name, dns=name)
    credentials = grpc.ssl_server_credentials([(key, certificate)], services.authority.pem, require_client_auth=True)
    port = server.add_secure_port(f"127.0.0.1:{port}", credentials)
    await server.start()
    return RunningServer(services, port, server, certificate)


@contextlib.contextmanager
def blocking_server(services: Server, issuer: Authority | None = None) -> Any:
    """The short calls only, for tests of commands; gives the address."""
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
        rounds_pb2_grpc.add_RoundsServicer_to_server(services, server)
        enrolment_pb2_grpc.add_EnrolmentServicer_to_server(services, server)
        port = server.add_secure_port("127.0.0.1:0", server_credentials(services.authority, issuer))
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(None).wait()
