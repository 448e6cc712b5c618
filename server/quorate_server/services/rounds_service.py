"""The gRPC service Rounds. Thin: it moves bytes between the wire and ``Sessions``, ``Mailbox`` and the spool."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from weakref import WeakValueDictionary

import grpc
import structlog

from quorate.errors import FrameError, KeyMismatchError, QuorateError, TransportError
from quorate.identity import RunId, SiteName
from quorate.process.cancellation import to_its_end
from quorate.rounds.blobs import BlobId
from quorate.rounds.instruction import MessageId
from quorate.rounds.spool import BlobWriter, Spool
from quorate.study.approval import is_signed_answer
from quorate.v1 import attestation_pb2, rounds_pb2, rounds_pb2_grpc
from quorate.wire.messages import (
    blob_from_proto,
    frame_from_proto,
    frame_to_proto,
    head_from_proto,
    head_to_proto,
    instruction_to_proto,
    member_to_proto,
    readiness_from_proto,
    reply_from_proto,
)
from quorate.wire.refusal import detail_of
from quorate_server.consortium.registry import Registry
from quorate_server.consortium.tables import StudyRecord
from quorate_server.reporting.metrics import ServerMetrics, UploadOutcome
from quorate_server.runs.mailbox import Mailbox
from quorate_server.runs.sessions import Session, Sessions
from quorate_server.services.access import Caller, caller
from quorate_server.services.pages import newest_that_fit

log = structlog.get_logger()

UPLOAD_IDLE_S = 30.0
UPLOADS_OF_A_SITE = 2
"""At a time. One that uploads as slowly as it may must not hold all slots."""
HELLO_S = 10.0
UNREAD_S = 60.0
"""A site that does not take a message for so long is gone, whatever its heartbeats say."""


Attest = Callable[[SiteName, RunId, bytes], Awaitable[bytes]]
"""Evidence of the machine that adds a run's sums, for a site and its nonce: an ``AttestReply``."""


class RoundsService(rounds_pb2_grpc.RoundsServicer):
    """Caller of every call: a site."""

    def __init__(
        self,
        *,
        consortium: str,
        heartbeat_s: float,
        upload_slots: int,
        sessions: Sessions,
        mailbox: Mailbox,
        registry: Registry,
        spool: Spool,
        metrics: ServerMetrics,
        attest: Attest,
        upload_idle_s: float = UPLOAD_IDLE_S,
        unread_s: float = UNREAD_S,
        hello_s: float = HELLO_S,
    ) -> None:
        self._consortium = consortium
        self._heartbeat_s = heartbeat_s
        self._sessions = sessions
        self._mailbox = mailbox
        self._registry = registry
        self._spool = spool
        self._metrics = metrics
        self._attest = attest
        self._upload_slots = asyncio.Semaphore(upload_slots)
        self._slots_of_sites: WeakValueDictionary[SiteName, asyncio.Semaphore] = WeakValueDictionary()
        self._upload_idle_s = upload_idle_s
        self._unread_s = unread_s
        self._hello_s = hello_s
        # A site that comes back may be faster than the news of its lost connection: one writer at a time.
        self._writers: WeakValueDictionary[tuple[SiteName, BlobId], asyncio.Lock] = WeakValueDictionary()

    # --- control ---

    async def Connect(
        self,
        requests: AsyncIterator[rounds_pb2.SiteEvent],
        context: grpc.aio.ServicerContext[rounds_pb2.SiteEvent, rounds_pb2.ServerEvent],
    ) -> None:
        who = caller()
        site = SiteName(who.subject.name)
        try:
            async with asyncio.timeout(self._hello_s):
                first = await anext(aiter(requests), None)
        except TimeoutError as error:
            raise FrameError("A connection was opened and nothing said on it") from error
        if first is None or first.WhichOneof("event") != "hello":
            raise FrameError("A connection must begin with the site's hello")
        (member,) = await asyncio.to_thread(self._registry.members, (site,))
        head = await self._sessions.ledger_head(member.signing_key)
        keys = await asyncio.to_thread(self._registry.earlier_keys, site)
        earlier = [found for key in keys if (found := await self._sessions.ledger_head(key)) is not None]
        session = await self._sessions.attach(site, first.hello.session, first.hello.version)
        log.info("site connected", site=site, session=session.number)
        # Before anything is awaited: what is asked from now on the session is told of by the mailbox.
        welcome = rounds_pb2.Welcome(
            consortium=self._consortium,
            heartbeat_s=self._heartbeat_s,
            server_unix_s=time.time(),
            ledger_head=head_to_proto(head) if head is not None else None,
            earlier_ledger_heads=[head_to_proto(each) for each in earlier],
        )
        session.send(rounds_pb2.ServerEvent(welcome=welcome))
        for instruction in self._mailbox.owed_by(site):
            session.send(rounds_pb2.ServerEvent(instruction=instruction_to_proto(instruction)))
        reader = asyncio.create_task(self._read(session, who, member.signing_key, requests))
        beats = asyncio.create_task(self._beat(session))
        try:
            while (event := await session.outgoing.get()) is not None:
                await self._send(session, context, event)
            if reader.done():
                reader.result()  # what nobody foresaw is logged by the guard of all calls
        finally:
            beats.cancel()
            reader.cancel()
            self._sessions.detach(session)
            log.info("site disconnected", site=site, session=session.number)

    async def _send(
        self,
        session: Session,
        context: grpc.aio.ServicerContext[rounds_pb2.SiteEvent, rounds_pb2.ServerEvent],
        event: rounds_pb2.ServerEvent,
    ) -> None:
        """Whoever does not read is gone, but the call goes on until it is read or broken off at the other end: were
        the writing broken off here, the transport could not end the call any more, and nobody would count it."""
        self._metrics.bytes_sent("control", event.ByteSize())
        is_unread = False

        def give_up() -> None:
            nonlocal is_unread
            is_unread = True
            self._sessions.detach(session)
            session.drop_waiting()

        patience = asyncio.get_running_loop().call_later(self._unread_s, give_up)
        try:
            await context.write(event)
        finally:
            patience.cancel()
        if is_unread:
            raise TransportError("The site does not read what it is sent")

    async def _read(
        self, session: Session, who: Caller, signing_key: bytes, requests: AsyncIterator[rounds_pb2.SiteEvent]
    ) -> None:
        """Everything that a site says, until its stream ends; then the session ends."""
        try:
            async for event in requests:
                self._metrics.bytes_received("control", event.ByteSize())
                match event.WhichOneof("event"):
                    case "heartbeat":
                        # A revoked or expired certificate ends an open stream at its next heartbeat.
                        await asyncio.to_thread(self._registry.check_certificate, who.subject, who.serial)
                        self._sessions.heard(session, paused=event.heartbeat.paused)
                    case "reply":
                        if event.reply.HasField("ledger_head"):
                            self._sessions.keep_ledger_head(signing_key, head_from_proto(event.reply.ledger_head))
                        self._take(session, event.reply)
                    case "goodbye":
                        break
                    case _:
                        session.end(FrameError("The site sent something that does not belong here"))
                        return
        except QuorateError as error:
            session.end(error)
            return
        except grpc.RpcError:
            log.info("connection lost", site=session.site)
        finally:
            session.end()

    def _take(self, session: Session, proto: rounds_pb2.Reply) -> None:
        reply = reply_from_proto(proto)
        try:
            written = self._mailbox.take(session.site, reply)
        except QuorateError as error:
            self._metrics.update_refused(error.code)
            log.warning("reply not taken", site=session.site, code=error.code)
            session.send(
                rounds_pb2.ServerEvent(
                    refused_reply=rounds_pb2.RefusedReply(message_id=reply.message_id, reason=detail_of(error))
                )
            )
        else:
            written.add_done_callback(partial(_acknowledge, session, reply.message_id))

    async def _beat(self, session: Session) -> None:
        sequence = 0
        while True:
            await asyncio.sleep(self._heartbeat_s)
            sequence += 1
            beat = rounds_pb2.Heartbeat(sequence=sequence, sent_unix_s=time.time())
            session.send(rounds_pb2.ServerEvent(heartbeat=beat))

    # --- bulk data ---

    async def OpenUpload(
        self, request: rounds_pb2.OpenUploadRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> rounds_pb2.OpenUploadReply:
        site = SiteName(caller().subject.name)
        blob = blob_from_proto(request.blob)
        self._mailbox.announce(site, MessageId(request.message_id), blob)
        async with self._writing(site, blob.id):
            if self._spool.has(blob):
                return rounds_pb2.OpenUploadReply(next_frame=blob.frames, complete=True)
            writer = await to_its_end(asyncio.to_thread(self._spool.writer, blob, site))
        if writer.next_frame:
            self._metrics.frames_resumed(writer.next_frame)
        return rounds_pb2.OpenUploadReply(next_frame=writer.next_frame)

    async def Upload(
        self,
        requests: AsyncIterator[rounds_pb2.UploadFrame],
        context: grpc.aio.ServicerContext[rounds_pb2.UploadFrame, rounds_pb2.UploadReply],
    ) -> rounds_pb2.UploadReply:
        site = SiteName(caller().subject.name)
        stream = aiter(requests)
        first = await self._next(stream)
        if first is None:
            raise FrameError("An upload holds no frame")
        message, blob = self._mailbox.announced(site, BlobId(first.blob_id))
        # Not reading is the back-pressure: the transport's window of a waiting stream fills up and stays full.
        of_site = self._slots_of_sites.setdefault(site, asyncio.Semaphore(UPLOADS_OF_A_SITE))
        async with self._writing(site, blob.id), of_site, self._upload_slots:
            with self._counted():
                is_new = not self._spool.has(blob)
                writer = await to_its_end(asyncio.to_thread(self._spool.writer, blob, site))
                try:
                    await self._receive(writer, first, stream)
                    await to_its_end(asyncio.to_thread(writer.finish))
                finally:
                    writer.close()
        if is_new:
            self._mailbox.uploaded(site, message, blob.id)
        return rounds_pb2.UploadReply(complete=True)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count an attempt to upload by its end."""
        outcome = UploadOutcome.BROKEN_OFF
        try:
            yield
            outcome = UploadOutcome.COMPLETE
        except TransportError as error:
            if isinstance(error.__cause__, TimeoutError):
                outcome = UploadOutcome.STALLED
            raise
        finally:
            self._metrics.upload_ended(outcome)

    def _writing(self, site: SiteName, blob: BlobId) -> asyncio.Lock:
        return self._writers.setdefault((site, blob), asyncio.Lock())

    async def _receive(
        self, writer: BlobWriter, first: rounds_pb2.UploadFrame, stream: AsyncIterator[rounds_pb2.UploadFrame]
    ) -> None:
        message: rounds_pb2.UploadFrame | None = first
        while message is not None:
            frame = frame_from_proto(message.frame)
            # Outside the event loop, and one at a time: more would save nothing and lie in memory for each upload.
            await to_its_end(asyncio.to_thread(writer.take, frame))
            self._metrics.bytes_received("blob", len(frame.data))
            message = await self._next(stream)

    async def _next(self, stream: AsyncIterator[rounds_pb2.UploadFrame]) -> rounds_pb2.UploadFrame | None:
        """The next frame, if there is one. A stopped site must not hold a slot for ever, nor a stream without one."""
        try:
            async with asyncio.timeout(self._upload_idle_s):
                return await anext(stream, None)
        except TimeoutError as error:
            raise TransportError(
                "An upload stood still", action="The daemon goes on with it where it ended, by itself"
            ) from error

    async def Download(
        self,
        request: rounds_pb2.DownloadRequest,
        context: grpc.aio.ServicerContext[rounds_pb2.DownloadRequest, rounds_pb2.UploadFrame],
    ) -> None:
        site = SiteName(caller().subject.name)
        blob = self._mailbox.check_download(site, BlobId(request.blob_id))
        for frame in self._spool.read(blob, request.first_frame):
            await context.write(frame_to_proto(frame))
            self._metrics.bytes_sent("blob", len(frame.data))

    # --- studies ---

    async def ListStudies(
        self, request: rounds_pb2.SiteStudiesRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> rounds_pb2.SiteStudiesReply:
        site = SiteName(caller().subject.name)
        named = [record for record in self._registry.studies() if site in record.study.site_names]
        return rounds_pb2.SiteStudiesReply(studies=newest_that_fit(named, self._offer))

    def _offer(self, record: StudyRecord) -> rounds_pb2.SiteStudy:
        return rounds_pb2.SiteStudy(
            digest=record.digest,
            canonical=record.canonical,
            members=[member_to_proto(member) for member in self._registry.members(record.study.site_names)],
            approvals=[
                rounds_pb2.StudyApproval(site=answer.site, signature=answer.signature)
                for answer in record.answers
                if answer.answer == "approved"
            ],
        )

    async def AnswerStudy(
        self, request: rounds_pb2.AnswerStudyRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> rounds_pb2.AnswerStudyReply:
        site = SiteName(caller().subject.name)
        (member,) = self._registry.members((site,))
        if not is_signed_answer(member.signing_key, request.signature, request.answer, request.digest):
            raise KeyMismatchError(
                "The answer to the study is not signed with the site's own key",
                action="Run the command with the state folder of this site",
            )
        self._registry.record_answer(request.digest, site, request.answer, request.signature)
        log.info("study answered", site=site, answer=request.answer, study=request.digest.hex()[:12])
        return rounds_pb2.AnswerStudyReply()

    async def ReportReadiness(
        self, request: rounds_pb2.ReportReadinessRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> rounds_pb2.ReportReadinessReply:
        # Whose report it is the certificate says: no site can speak for another one.
        site = SiteName(caller().subject.name)
        readiness = readiness_from_proto(request.readiness)
        self._registry.record_readiness(request.digest, site, readiness)
        log.debug("readiness reported", site=site, code=readiness.code, study=request.digest.hex()[:12])
        return rounds_pb2.ReportReadinessReply()

    # --- attestation ---

    async def Attest(
        self, request: attestation_pb2.AttestRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> attestation_pb2.AttestReply:
        site = SiteName(caller().subject.name)
        answer = await self._attest(site, RunId(request.run), request.nonce)
        return attestation_pb2.AttestReply.FromString(answer)


def _acknowledge(session: Session, message: MessageId, written: asyncio.Future[None]) -> None:
    """A reply that could not be written is not acknowledged: its site keeps it and brings it again."""
    if written.cancelled():
        return
    error = written.exception()
    if error is None:
        session.acknowledge(message)
    elif isinstance(error, QuorateError):
        log.error("reply not written", site=session.site, code=error.code, reason=str(error))
    else:
        log.error("reply not written", site=session.site, exc_info=error)
